package store

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/tlstest"
)

// TestServers is what only concerns databases that are servers: those that
// EXECUTOR_TEST_DATABASES names. They are killed on the way, so they are not
// the ones that other tests use.
func TestServers(t *testing.T) {
	t.Parallel()
	servers := chosenServers(t)
	for _, name := range sortedNames(servers) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testLogin(t, servers[name])
			testLeastRights(t, servers[name])
			testOutage(t, servers[name])
			testEncryption(t, servers[name])
		})
	}
}

// testLogin opens databases that are not there for us.
func testLogin(t *testing.T, server *dbServer) {
	t.Helper()
	url := server.fresh(t)
	encoded := strings.TrimPrefix(url[:strings.LastIndex(url, "@")], server.kind.scheme+"://"+serverUser+":")
	for want, url := range map[string]string{
		"the login was refused":       strings.Replace(url, encoded, "SECRET", 1),
		"the database does not exist": server.url("none"),
	} {
		_, err := Open(t.Context(), Config{URL: url}, nil)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "check DATABASE_URL")
		require.NotContains(t, err.Error(), "SECRET")
		require.NotContains(t, err.Error(), serverPassword)
	}
	s := open(t, url)
	require.NotContains(t, s.Describe(), encoded)
	require.NotContains(t, s.Describe(), serverPassword)
	require.Contains(t, s.Describe(), serverUser+":***@127.0.0.1")
	require.NoError(t, s.Close())
}

// testOutage kills the server under an open store: calls fail in a way that
// says so, and when it is back the same store works on.
func testOutage(t *testing.T, server *dbServer) {
	t.Helper()
	s := open(t, server.fresh(t))
	row := completed("before", "run:1", noon())
	persist(t, s, row)

	server.kill()
	for range 20 { // more than there are pooled connections to find dead
		_, err := s.Persist(t.Context(), completed("during", "run:1", noon()))
		require.ErrorIs(t, err, ErrUnreachable)
	}
	_, err := s.Rows(t.Context(), []job.Key{row.Key()})
	require.ErrorIs(t, err, ErrUnreachable)
	require.ErrorIs(t, s.Ping(t.Context()), ErrUnreachable)

	server.start(t)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		assert.NoError(c, s.Ping(t.Context()))
	}, 30*time.Second, 20*time.Millisecond)
	require.Equal(t, job.Written, persist(t, s, completed("during", "run:1", noon())).Verdict)
	require.NoError(t, s.Close())
}

// testEncryption connects over TLS: to a server without it, to one whose
// certificate our authority signed, and to the same one trusting somebody else.
func testEncryption(t *testing.T, server *dbServer) {
	t.Helper()
	authority, stranger := tlstest.New(t), tlstest.New(t)
	trust := "?ssl-ca="
	if server.kind.scheme == "postgres" {
		trust = "?sslmode=verify-full&sslrootcert="
	}
	url := server.fresh(t)
	_, err := Open(t.Context(), Config{URL: url + trust + authority.File}, nil)
	require.ErrorContains(t, err, "TLS")

	server.kill()
	server.encrypt(t, authority)
	server.start(t)
	require.NoError(t, open(t, url+trust+authority.File).Close())
	_, err = Open(t.Context(), Config{URL: url + trust + stranger.File}, nil)
	require.ErrorContains(t, err, "certificate")
	require.ErrorIs(t, err, ErrUnreachable)
}

// encrypt makes the server speak TLS from its next start.
func (s *dbServer) encrypt(t *testing.T, a tlstest.Authority) {
	t.Helper()
	cert, key := a.Issue(t, s.dir)
	s.own(t)
	switch s.kind.scheme {
	case "postgres":
		s.args = append(s.args, "-c", "ssl=on", "-c", "ssl_cert_file="+cert, "-c", "ssl_key_file="+key)
	default:
		s.args = append(s.args, "--ssl-cert="+cert, "--ssl-key="+key)
	}
}
