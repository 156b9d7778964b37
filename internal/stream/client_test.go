package stream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/redistest"
)

func TestNames(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c, err := Open(Config{Connection: s.Addr(), Group: "g", Consumer: "me", ClientName: "executor bridge\n1"}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	require.Equal(t, "g", c.Group())
	require.Equal(t, "me", c.Consumer())
	require.Contains(t, do(t, c, "CLIENT", "LIST"), "name=executor_bridge_1 ")

	a, b := open(t, s.Addr(), ""), open(t, s.Addr(), "")
	require.Equal(t, DefaultGroup, a.Group())
	require.NotEmpty(t, a.Consumer())
	require.NotEqual(t, a.Consumer(), b.Consumer(), "two processes never share a name by default")
}

func TestOpenRefusesBadConfig(t *testing.T) {
	t.Parallel()
	_, err := Open(Config{Connection: "h:x"}, nil)
	require.ErrorContains(t, err, "REDIS_CONNECTION")
	_, err = Open(Config{Connection: "rediss://h", CAFile: filepath.Join(t.TempDir(), "none.pem")}, nil)
	require.ErrorContains(t, err, "REDIS_CA_FILE")
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, []byte("no certificate"), 0o600))
	_, err = Open(Config{Connection: "rediss://h", CAFile: empty}, nil)
	require.ErrorContains(t, err, "REDIS_CA_FILE")
}

// Fault C01.
func TestTLSTrustsOnlyTheGivenAuthority(t *testing.T) {
	t.Parallel()
	ca, certFile, keyFile := certificate(t)
	otherCA, _, _ := certificate(t)
	plain := redistest.StartWith(t, "--tls-cert-file", certFile, "--tls-key-file", keyFile,
		"--tls-auth-clients", "no", "--tls-replication", "no")
	control := open(t, plain.Addr(), "control")
	port := freeTLSPort(t, control)

	connect := func(connection, caFile string) error {
		c, err := Open(Config{Connection: connection, CAFile: caFile}, nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c.Ping(t.Context())
	}
	require.NoError(t, connect("rediss://127.0.0.1:"+port, ca))
	require.NoError(t, connect("127.0.0.1:"+port+",ssl=true", ca))
	require.NoError(t, connect("127.0.0.1:"+port+",ssl=true,sslHost=redis.test", ca))

	err := connect("rediss://127.0.0.1:"+port, otherCA)
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "REDIS_CA_FILE")
	require.ErrorIs(t, connect("rediss://127.0.0.1:"+port+"?skip_verify=true", ""), ErrUnavailable)
	require.ErrorIs(t, connect("127.0.0.1:"+port+",ssl=true,sslHost=wrong.test", ca), ErrUnavailable)
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
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "redis"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"redis.test"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)

	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	return write("ca.pem", "CERTIFICATE", caDER), write("cert.pem", "CERTIFICATE", leafDER),
		write("key.pem", "PRIVATE KEY", keyDER)
}
