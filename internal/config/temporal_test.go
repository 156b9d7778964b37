package config_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/tlstest"
)

// writeCertificate writes cert.pem and key.pem into a directory of the test.
func writeCertificate(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	tlstest.New(t).Issue(t, dir)
	return dir
}

func TestTemporalDefaults(t *testing.T) {
	t.Parallel()
	opts, err := load(t, nil).Temporal()
	require.NoError(t, err)
	require.Equal(t, "localhost:7233", opts.HostPort)
	require.Equal(t, "default", opts.Namespace)
	require.Nil(t, opts.ConnectionOptions.TLS)
	require.Nil(t, opts.Credentials)
}

func TestTemporalVariables(t *testing.T) {
	t.Parallel()
	opts, err := load(t, environ{
		"TEMPORAL_ADDRESS": "ns.acct.tmprl.cloud:7233", "TEMPORAL_NAMESPACE": "ns.acct", "TEMPORAL_API_KEY": "key",
		"TEMPORAL_TLS_SERVER_NAME": "other.name",
	}).Temporal()
	require.NoError(t, err)
	require.Equal(t, "ns.acct.tmprl.cloud:7233", opts.HostPort)
	require.Equal(t, "ns.acct", opts.Namespace)
	require.NotNil(t, opts.Credentials)
	require.Equal(t, "other.name", opts.ConnectionOptions.TLS.ServerName)
	require.False(t, opts.ConnectionOptions.TLS.InsecureSkipVerify)
}

func TestTemporalClearText(t *testing.T) {
	t.Parallel()
	const fine, warned, refused = "fine", "warned", "refused"
	for address, want := range map[string]string{
		"localhost:7233":                     fine,
		"127.0.0.1:7233":                     fine,
		"[::1]:7233":                         fine,
		"dns:///localhost:7233":              fine,
		"temporal:7233":                      warned, // compose
		"temporal-frontend.temporal:7233":    warned, // Kubernetes, service.namespace
		"temporal.default.svc:7233":          warned,
		"t.default.svc.cluster.local:7233":   warned,
		"temporal.internal:7233":             warned,
		"10.1.2.3:7233":                      warned,
		"192.168.1.9:7233":                   warned,
		"100.64.0.7:7233":                    warned,
		"[fd00::5]:7233":                     warned,
		"passthrough:///10.1.2.3:7233":       warned,
		"8.8.8.8:7233":                       refused,
		"[2001:4860:4860::8888]:7233":        refused,
		"[::ffff:8.8.8.8]:7233":              refused,
		"temporal.example.com:7233":          refused,
		"temporal.example.com.:7233":         refused,
		"dns:///temporal.example.co.uk:7233": refused,
	} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			env := environ{"TEMPORAL_ADDRESS": address, "MAX_TOTAL": "1"}
			if want == refused {
				found := mistakes(t, env)
				require.Len(t, found, 1)
				require.Contains(t, found["TEMPORAL_ADDRESS"], "without TLS")
				require.Contains(t, found["TEMPORAL_ADDRESS"], "ALLOW_INSECURE=1")

				env["ALLOW_INSECURE"] = "1"
				require.Len(t, load(t, env).Warnings(), 1)

				delete(env, "ALLOW_INSECURE")
				env["TEMPORAL_TLS"] = "true"
				require.Empty(t, load(t, env).Warnings())

				env["TEMPORAL_TLS"] = "false"
				env["TEMPORAL_API_KEY"] = "key"
				require.Contains(t, mistakes(t, env), "TEMPORAL_ADDRESS", "switching TLS off by hand is no excuse")
				return
			}
			warnings := load(t, env).Warnings()
			if want == fine {
				require.Empty(t, warnings)
				return
			}
			require.Len(t, warnings, 1)
			require.Contains(t, warnings[0], "TEMPORAL_ADDRESS is reached without TLS")
		})
	}
}

func TestTemporalMistakes(t *testing.T) {
	t.Parallel()
	dir, otherDir := writeCertificate(t), writeCertificate(t)
	cert, key, otherKey := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(otherDir, "key.pem")
	secretTOML := write(t, "[profile.default]\napi_key = "+canary+"\n")
	for _, tt := range []struct {
		name     string
		env      environ
		variable string
		want     string
	}{
		{"no port", environ{"TEMPORAL_ADDRESS": "localhost"}, "TEMPORAL_ADDRESS", "host:port"},
		{"port 0", environ{"TEMPORAL_ADDRESS": "localhost:0"}, "TEMPORAL_ADDRESS", "host:port"},
		{"a URL", environ{"TEMPORAL_ADDRESS": "http://localhost:7233"}, "TEMPORAL_ADDRESS", "host:port"},
		{"bool", environ{"TEMPORAL_TLS_DISABLE_HOST_VERIFICATION": "on"}, "TEMPORAL_TLS_DISABLE_HOST_VERIFICATION", "true"},
		{"certificate without key", environ{"TEMPORAL_TLS_CLIENT_CERT_PATH": cert}, "TEMPORAL_TLS_CLIENT_CERT_PATH", "must both be given"},
		{"key of another certificate", environ{"TEMPORAL_TLS_CLIENT_CERT_PATH": cert, "TEMPORAL_TLS_CLIENT_KEY_PATH": otherKey}, "TEMPORAL_TLS_CLIENT_CERT_PATH", "belong together"},
		{"missing key", environ{"TEMPORAL_TLS_CLIENT_CERT_PATH": cert, "TEMPORAL_TLS_CLIENT_KEY_PATH": dir + "/no"}, "TEMPORAL_TLS_CLIENT_KEY_PATH", "no such file"},
		{"CA is no certificate", environ{"TEMPORAL_TLS_SERVER_CA_CERT_PATH": key}, "TEMPORAL_TLS_SERVER_CA_CERT_PATH", "no PEM certificate"},
		{"no such file", environ{"TEMPORAL_CONFIG_FILE": "/does/not/exist"}, "TEMPORAL_CONFIG_FILE", "no such file"},
		{"not TOML", environ{"TEMPORAL_CONFIG_FILE": secretTOML}, "TEMPORAL_CONFIG_FILE", "TOML"},
		{"no such profile", environ{"TEMPORAL_PROFILE": "prod"}, "TEMPORAL_PROFILE", "no such profile"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			found := mistakes(t, tt.env)
			require.Len(t, found, 1, "%v", found)
			require.Contains(t, found[tt.variable], tt.want)
			require.NotContains(t, found[tt.variable], canary)
		})
	}
}

func TestTemporalConfigFile(t *testing.T) {
	t.Parallel()
	file := write(t, "[profile.default]\naddress = \"localhost:1\"\nnamespace = \"file\"\n[profile.prod]\naddress = \"temporal:2\"\n")
	opts, err := load(t, environ{"TEMPORAL_CONFIG_FILE": file, "TEMPORAL_ADDRESS": "localhost:3"}).Temporal()
	require.NoError(t, err)
	require.Equal(t, "localhost:3", opts.HostPort)
	require.Equal(t, "file", opts.Namespace)

	opts, err = load(t, environ{"TEMPORAL_CONFIG_FILE": file, "TEMPORAL_PROFILE": "prod"}).Temporal()
	require.NoError(t, err)
	require.Equal(t, "temporal:2", opts.HostPort)
}

func TestTemporalCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	dir := writeCertificate(t)
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	opts, err := load(t, environ{
		"TEMPORAL_ADDRESS": "temporal.example.com:7233", "TEMPORAL_TLS_CLIENT_CERT_PATH": cert, "TEMPORAL_TLS_CLIENT_KEY_PATH": key,
	}).Temporal()
	require.NoError(t, err)
	get := opts.ConnectionOptions.TLS.GetClientCertificate
	first, err := get(&tls.CertificateRequestInfo{})
	require.NoError(t, err)

	renewed := writeCertificate(t)
	require.NoError(t, os.Rename(filepath.Join(renewed, "cert.pem"), cert))
	require.NoError(t, os.Rename(filepath.Join(renewed, "key.pem"), key))
	second, err := get(&tls.CertificateRequestInfo{})
	require.NoError(t, err)
	require.NotEqual(t, first.Certificate, second.Certificate)
}
