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
	"strings"
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

// minimalAccess is the access list of fault C02 with the additions its
// introduction names. Everything a worker or a bridge does must work with it.
const minimalAccess = "on >secret resetkeys ~jobs:* ~signalr:updates ~{signalr:updates}:* ~{jobs:* ~{executor* ~chat.jobs " +
	"resetchannels &AI.RESPONSE &executor:* -@all " +
	"+xreadgroup +xautoclaim +xclaim +xack +xadd +xpending +xrange +xlen +xinfo +xgroup|create +eval +evalsha " +
	"+set +get +ping +hello +publish +subscribe +zadd +zrem +zrange +zcard +time +info +script|load " +
	"+client|setname +lpop +xgroup|delconsumer"

func TestMinimalAccessIsEnough(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	control := open(t, s.Addr(), "control")
	args := []any{"ACL", "SETUSER", "executor"}
	for word := range strings.FieldsSeq(minimalAccess) {
		args = append(args, word)
	}
	do(t, control, args...)
	do(t, control, "RPUSH", "chat.jobs", "{}")

	c := open(t, s.Addr()+",user=executor,password=secret", "one")
	ctx := t.Context()
	id := "1-1"
	calls := []struct {
		name string
		call func() error
	}{
		{"Ping", func() error { return c.Ping(ctx) }},
		{"EnsureGroup", func() error { return c.EnsureGroup(ctx, agents) }},
		{"Beat", func() error { return c.Beat(ctx) }},
		{"Add", func() error { _, err := c.Add(ctx, agents, fields("k", "v")); return err }},
		{"ReadNew", func() error { _, err := c.ReadNew(ctx, agents, 1, time.Millisecond); return err }},
		{"ReadOwn", func() error { _, err := c.ReadOwn(ctx, agents, "0", 1); return err }},
		{"AutoClaim", func() error { _, _, err := c.AutoClaim(ctx, agents, 0, "0-0", 1); return err }},
		{"Refresh", func() error { return c.Refresh(ctx, agents, "one", id) }},
		{"Pending", func() error { _, err := c.Pending(ctx, agents); return err }},
		{"PendingList", func() error { _, err := c.PendingList(ctx, agents, "", 1); return err }},
		{"Entry", func() error { _, _, err := c.Entry(ctx, agents, id); return err }},
		{"Stats", func() error { _, err := c.Stats(ctx, agents); return err }},
		{"LastID", func() error { _, err := c.LastID(ctx, agents); return err }},
		{"Publish", func() error {
			u := update()
			u.Channel = ChatChannel
			_, err := c.Publish(ctx, u)
			return err
		}},
		{"DeadLetter", func() error { _, err := c.DeadLetter(ctx, letter()); return err }},
		{"MoveChat", func() error { _, err := c.MoveChat(ctx, "chat.jobs", 1); return err }},
		{"Lease", func() error { _, err := c.Lease(ctx, "l", time.Second); return err }},
		{"Unlease", func() error { return c.Unlease(ctx, "l") }},
		{"SaveAnswer", func() error { return c.SaveAnswer(ctx, "e", nil) }},
		{"LoadAnswer", func() error { _, _, err := c.LoadAnswer(ctx, "e"); return err }},
		{"SetCooldown", func() error { return c.SetCooldown(ctx, "e", time.Second) }},
		{"Cooldown", func() error { _, err := c.Cooldown(ctx, "e"); return err }},
		{"AnnounceStore", func() error { _, err := c.AnnounceStore(ctx, "u"); return err }},
		{"Ack", func() error { _, err := c.Ack(ctx, agents, "", id); return err }},
	}
	for _, tt := range calls {
		require.NoError(t, tt.call(), tt.name)
	}
	require.NotEmpty(t, c.ServerWarnings(ctx))

	dead := open(t, s.Addr(), "dead")
	add(t, dead, agents, "k", "v")
	require.Len(t, readNew(t, dead, agents, 10), 1)
	b, err := c.ClaimDead(ctx, agents, 10)
	require.NoError(t, err)
	require.Len(t, b.Entries, 1)
	n, err := c.DropIdleConsumers(ctx, agents, 0)
	require.NoError(t, err)
	require.Equal(t, 1, n)

	l := total(t, c, 1, slowPoll())
	release, err := l.Acquire(ctx, "a")
	require.NoError(t, err)
	subscribed(t, control, 1)
	granted := acquire(t, l, "b")
	queued(t, control, 1)
	release()
	permit(t, granted)()

	// What only submit does asks for one more right, and says so.
	_, err = c.TailUpdates(ctx, Updates, "0", 0)
	require.ErrorIs(t, err, ErrDenied)
	require.ErrorContains(t, err, "xread")
}
