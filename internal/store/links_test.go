package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/tlstest"
)

func TestLinks(t *testing.T) {
	t.Parallel()
	authority := tlstest.New(t)
	const no, encrypted, verified = "no", "encrypted", "verified"
	for raw, want := range map[string]string{
		"postgres://u:p@db.example/x":                                                   no, // the driver prefers TLS, and does without
		"postgres://u:p@db.example/x?sslmode=disable":                                   no,
		"postgres://u:p@db.example/x?sslmode=allow":                                     no,
		"postgres://u:p@db.example/x?sslmode=prefer":                                    no,
		"postgres://u:p@db.example/x?sslmode=require":                                   encrypted,
		"postgres://u:p@db.example/x?sslmode=verify-ca&sslrootcert=" + authority.File:   verified,
		"postgres://u:p@db.example/x?sslmode=verify-full&sslrootcert=" + authority.File: verified,
		"postgresql://u:p@db.example/x?sslmode=verify-full":                             verified,
		"mysql://u:p@db.example/x":                                                      no,
		"mysql://u:p@db.example/x?tls=false":                                            no,
		"mysql://u:p@db.example/x?tls=preferred":                                        no,
		"mysql://u:p@db.example/x?ssl-mode=PREFERRED":                                   no,
		"mysql://u:p@db.example/x?tls=true&allowFallbackToPlaintext=true":               no,
		"mysql://u:p@db.example/x?tls=skip-verify":                                      encrypted,
		"mysql://u:p@db.example/x?ssl-mode=REQUIRED":                                    encrypted,
		"mysql://u:p@db.example/x?tls=true":                                             verified,
		"mariadb://u:p@db.example/x?ssl-mode=VERIFY_IDENTITY":                           verified,
		"mysql://u:p@db.example/x?ssl-ca=" + authority.File:                             verified,
	} {
		links, err := Links(Config{URL: raw})
		require.NoError(t, err, raw)
		require.Equal(t, []Link{{Host: "db.example", Encrypted: want != no, Verified: want == verified}}, links, raw)
	}

	links, err := Links(Config{URL: "postgres://u:p@one.example:1,two.example:2,one.example:3/x?sslmode=require"})
	require.NoError(t, err)
	require.Equal(t, []Link{{Host: "one.example", Encrypted: true}, {Host: "two.example", Encrypted: true}}, links)

	links, err = Links(Config{URL: "postgres://u:p@/x?host=/run/postgresql"})
	require.NoError(t, err)
	require.Equal(t, []Link{{Host: ""}}, links, "a socket")

	links, err = Links(Config{URL: "mysql://u:p@[::1]:3306/x"})
	require.NoError(t, err)
	require.Equal(t, []Link{{Host: "::1"}}, links)

	links, err = Links(Config{URL: "sqlite://x.db"})
	require.NoError(t, err)
	require.Empty(t, links)

	_, err = Links(Config{URL: "oracle://u:SECRET@h/x"})
	require.ErrorIs(t, err, ErrConfig)
	require.NotContains(t, err.Error(), "SECRET")
}
