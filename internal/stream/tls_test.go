package stream

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/redistest"
	"github.com/nodpt/executor/internal/tlstest"
)

// Fault C01, against the shipped configuration and users with TLS switched on.
func TestTLSTrustsOnlyTheGivenAuthority(t *testing.T) {
	t.Parallel()
	ca, certFile, keyFile := certificate(t)
	otherCA, _, _ := certificate(t)
	s := redistest.StartShipped(t, "--tls-cert-file", certFile, "--tls-key-file", keyFile,
		"--tls-auth-clients", "no", "--tls-replication", "no")
	port := freeTLSPort(t, open(t, s.Login("admin"), "control"))
	const login = ",user=executor,password=password-of-executor"

	accepted := map[string]string{
		"URL":             "rediss://executor:password-of-executor@127.0.0.1:" + port,
		"StackExchange":   "127.0.0.1:" + port + ",ssl=true" + login,
		"name by sslHost": "127.0.0.1:" + port + ",ssl=true,sslHost=redis.test" + login,
		"with a database": "rediss://executor:password-of-executor@127.0.0.1:" + port + "/0?dial_timeout=3s",
	}
	for name, connection := range accepted {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := openTLS(t, connection, ca)
			require.NoError(t, c.Ping(t.Context()))
			require.NoError(t, c.EnsureGroup(t.Context(), agents))
			_, err := c.ReadNew(t.Context(), agents, 1, time.Millisecond)
			require.NoError(t, err)
		})
	}
	refused := map[string]struct{ connection, ca, setting string }{
		"another authority": {"rediss://127.0.0.1:" + port, otherCA, "REDIS_CA_FILE"},
		"the system's":      {"rediss://127.0.0.1:" + port, "", "REDIS_CA_FILE"},
		"not to be skipped": {"rediss://127.0.0.1:" + port + "?skip_verify=true", "", "REDIS_CA_FILE"},
		"another name":      {"127.0.0.1:" + port + ",ssl=true,sslHost=wrong.test", ca, "sslHost in REDIS_CONNECTION"},
		"another address":   {"rediss://localhost:" + port, ca, "REDIS_CONNECTION"},
	}
	for name, tt := range refused {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := openTLS(t, tt.connection, tt.ca).Ping(t.Context())
			require.ErrorIs(t, err, ErrUnavailable)
			require.ErrorContains(t, err, tt.setting)
		})
	}
}

// A server that does not speak TLS gets nothing but the greeting of TLS: no
// command, and so no password, in clear text.
func TestNoWayBackToClearText(t *testing.T) {
	t.Parallel()
	ca, _, _ := certificate(t)
	t.Run("a real server", func(t *testing.T) {
		t.Parallel()
		c := openTLS(t, "rediss://:geheim@"+redistest.Start(t).Addr()+"?dial_timeout=300ms", ca)
		require.ErrorContains(t, c.Ping(t.Context()), "REDIS_CONNECTION names a port of the server that speaks TLS")

		// Also where the caller is more impatient than the handshake.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		err := c.Ping(ctx)
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorContains(t, err, "speaks TLS")
	})
	t.Run("what it gets to see", func(t *testing.T) {
		t.Parallel()
		var lc net.ListenConfig
		l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { _ = l.Close() })
		seen := make(chan []byte, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			_, _ = conn.Write([]byte("-ERR this is not TLS\r\n"))
			all, _ := io.ReadAll(conn)
			seen <- all
		}()
		err = openTLS(t, l.Addr().String()+",ssl=true,user=u,password=geheim", ca).Ping(t.Context())
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorContains(t, err, "REDIS_CONNECTION")
		got := receive(t, seen)
		require.NotEmpty(t, got)
		require.Equal(t, byte(22), got[0], "a TLS handshake record")
		require.NotContains(t, string(got), "geheim")
		require.NotContains(t, string(got), "AUTH")
	})
	t.Run("and the other way round", func(t *testing.T) {
		t.Parallel()
		_, certFile, keyFile := certificate(t)
		s := redistest.StartWith(t, "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-auth-clients", "no")
		port := freeTLSPort(t, open(t, s.Addr(), "control"))
		require.ErrorIs(t, open(t, "127.0.0.1:"+port, "one").Ping(t.Context()), ErrUnavailable)
	})
}

func openTLS(t *testing.T, connection, caFile string) *Client {
	t.Helper()
	c, err := Open(Config{Connection: connection, CAFile: caFile}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// freeTLSPort opens a TLS port on a running server.
func freeTLSPort(t *testing.T, c *Client) string {
	t.Helper()
	var lc net.ListenConfig
	for range 10 {
		l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		_, port, err := net.SplitHostPort(l.Addr().String())
		require.NoError(t, err)
		require.NoError(t, l.Close())
		if c.commands.ConfigSet(t.Context(), "tls-port", port).Err() == nil {
			return port
		}
	}
	t.Fatal("no free port for TLS")
	return ""
}

// certificate makes an authority and a certificate of it for 127.0.0.1 and
// redis.test.
func certificate(t *testing.T) (caFile, certFile, keyFile string) {
	t.Helper()
	authority := tlstest.New(t)
	certFile, keyFile = authority.Issue(t, t.TempDir(), "redis.test")
	return authority.File, certFile, keyFile
}
