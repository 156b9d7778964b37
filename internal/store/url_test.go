package store

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/tlstest"
)

func TestRedact(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"postgres://u:SECRET@h:5432/db?sslmode=require": "postgres://u:***@h:5432/db?sslmode=require",
		"postgres://u:SEC%40RET@h/db":                   "postgres://u:***@h/db",
		"postgres://u:SEC@RET@h/db":                     "postgres://u:***@h/db",
		"postgres://u:SEC:RET@h/db":                     "postgres://u:***@h/db",
		"postgres://u@h/db":                             "postgres://u@h/db",
		"postgres://h/db?user=u&password=SECRET":        "postgres://h/db?user=u&password=***",
		"postgres://h/db?sslpassword=SECRET&x=1":        "postgres://h/db?sslpassword=***&x=1",
		"postgres://h/db?p%61ssword=SECRET":             "postgres://h/db?p%61ssword=***",
		"mysql://u:SECRET@[::1]:3306/db?tls=true":       "mysql://u:***@[::1]:3306/db?tls=true",
		"mysql://u:SEC/RET@h/db":                        "mysql://***",
		"mysql://u:12/SECRET@h/db":                      "mysql://***",
		"mysql://u:SEC?RET@h/db":                        "mysql://***",
		"mysql://u:SEC#RET@h/db":                        "mysql://***",
		"mysql://u:SEC@R/SECRET@h/db":                   "mysql://***",
		"mysql://u:SEC%RET@h/db":                        "mysql://***",
		"postgres://h:SECRET":                           "postgres://***",
		"sqlite:///var/lib/a@b.db":                      "sqlite:///var/lib/a@b.db",
		"user=u password=SECRET host=h":                 "***",
		"":                                              "***",
	} {
		got := Redact(raw)
		require.Equal(t, want, got)
		require.NotContains(t, got, "SECRET")
	}
}

func TestBadURL(t *testing.T) {
	t.Parallel()
	notCert := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(notCert, []byte("SECRET"), 0o600))
	for raw, want := range map[string]string{
		"":                                   "must begin with sqlite://, postgres:// or mysql://",
		"executor.db":                        "must begin with",
		"oracle://u:SECRET@h/db":             "must begin with",
		"sqlite://":                          "a file is needed",
		"sqlite://:memory:":                  "a file is needed",
		"sqlite://x.db?_pragma=SECRET":       "takes a path and no parameters",
		"sqlite://x%zz.db":                   "write % as %25",
		"sqlite://x%00.db":                   "write % as %25",
		"postgres://u:SEC%RET@h/db":          "percent-encode",
		"postgres://u:SECRET@h:port/db":      "percent-encode",
		"mysql://u:SEC/SECRET@h/db":          "percent-encode",
		"mysql://u:12/SECRET@h/db":           "percent-encode",
		"mysql://u:SEC#SECRET@h/db":          "percent-encode",
		"mysql://u:SECRET@h":                 "must name host and database",
		"mysql://u:SECRET@h/":                "must name host and database",
		"mysql://u:SECRET@/db":               "must name host and database",
		"mysql://u:SECRET@h/db/more":         "must name host and database",
		"mysql://u@h/db?strict=SECRET":       `unknown parameter: "strict"`,
		"mysql://u@h/db?allowAllFiles=true":  "unknown parameter",
		"mysql://u@h/db?timeout=SECRET":      "has a value the driver does not know",
		"mysql://u@h/db?tls=SECRET":          "has a value the driver does not know",
		"mysql://u@h/db?ssl-mode=SECRET":     "ssl-mode must be",
		"mysql://u@h/db?ssl-ca=/SECRET/none": "cannot be read",
		"mysql://u@h/db?ssl-ca=" + notCert:   "holds no certificate",
		"mysql://u@h/db?%zz":                 "cannot be read",
	} {
		_, err := Open(t.Context(), Config{URL: raw}, nil)
		require.ErrorIs(t, err, ErrConfig, raw)
		require.ErrorContains(t, err, want, raw)
		require.ErrorContains(t, err, "DATABASE_URL", raw)
		require.NotContains(t, err.Error(), "SECRET", raw)
	}
}

func TestMySQLConfig(t *testing.T) {
	t.Parallel()
	cfg, err := mysqlConfig("mysql://us%40er:p%40ss%2Fw%3Ard%3F%23@db.example/jobs?timeout=2s&parseTime=false&charset=latin1&loc=Local")
	require.NoError(t, err)
	require.Equal(t, "us@er", cfg.User)
	require.Equal(t, "p@ss/w:rd?#", cfg.Passwd)
	require.Equal(t, "db.example:3306", cfg.Addr)
	require.Equal(t, "jobs", cfg.DBName)
	require.Equal(t, "2s", cfg.Timeout.String())
	require.True(t, cfg.ParseTime, "not the URL's to decide")
	require.Equal(t, "UTC", cfg.Loc.String())
	require.Contains(t, cfg.FormatDSN(), "charset=utf8mb4")
	require.Nil(t, cfg.TLS)

	for mode, want := range map[string]string{
		"DISABLED": "false", "preferred": "preferred", "REQUIRED": "skip-verify", "VERIFY_IDENTITY": "true", "verify-full": "true",
	} {
		cfg, err := mysqlConfig("mysql://h:3307/db?ssl-mode=" + mode)
		require.NoError(t, err)
		require.Equal(t, want, cfg.TLSConfig)
		require.Equal(t, "h:3307", cfg.Addr)
	}

	cfg, err = mysqlConfig("mysql://db.example/jobs?tls=true")
	require.NoError(t, err)
	require.Equal(t, "db.example", cfg.TLS.ServerName, "the name the certificate must have")

	authority := tlstest.New(t)
	cfg, err = mysqlConfig("mysql://h/db?ssl-ca=" + authority.File)
	require.NoError(t, err)
	require.Equal(t, "h", cfg.TLS.ServerName)
	require.False(t, cfg.TLS.InsecureSkipVerify)
	require.GreaterOrEqual(t, cfg.TLS.MinVersion, uint16(tls.VersionTLS12))
}

// TestUnreachable needs no server, only a port where there is none.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"postgres", "mysql"} {
		port := freePort(t)
		_, err := Open(t.Context(), Config{URL: fmt.Sprintf("%s://someone:SECRET@127.0.0.1:%d/db", scheme, port)}, nil)
		require.ErrorIs(t, err, ErrUnreachable)
		require.ErrorContains(t, err, net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
		require.ErrorContains(t, err, "store: open ("+scheme+"): the server cannot be reached: ")
		require.ErrorContains(t, err, "connection refused")
		require.ErrorContains(t, err, "check DATABASE_URL")
		require.NotContains(t, err.Error(), "SECRET")
		require.Equal(t, 1, strings.Count(err.Error(), "store:"), "%v", err)
	}
}
