package stream

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/redistest"
)

func TestDialNamesTheStepThatFailed(t *testing.T) {
	t.Parallel()
	ca, certFile, keyFile := certificate(t)
	otherCA, _, _ := certificate(t)
	s := redistest.StartWith(t, "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-auth-clients", "no")
	port := freeTLSPort(t, open(t, s.Addr(), "control"))
	// A port that was free a moment ago would soon be some other test's.
	const nobody = "127.0.0.1:1"

	tests := map[string]struct {
		connection, ca string
		fault          Fault
		reason         string
	}{
		"clear text":        {connection: s.Addr()},
		"TLS":               {connection: "rediss://127.0.0.1:" + port, ca: ca},
		"unknown name":      {connection: "redis.invalid:6379", fault: FaultName, reason: "redis.invalid"},
		"unknown, with TLS": {connection: "rediss://redis.invalid", ca: ca, fault: FaultName, reason: "redis.invalid"},
		"nobody listens":    {connection: nobody, fault: FaultDial, reason: "refused"},
		"nor with TLS":      {connection: "rediss://:geheim@" + nobody, ca: ca, fault: FaultDial, reason: "refused"},
		"speaks no TLS":     {connection: "rediss://:geheim@" + s.Addr() + "?dial_timeout=5s", ca: ca, fault: FaultTLS, reason: "handshake"},
		"unknown authority": {connection: "rediss://127.0.0.1:" + port, ca: otherCA, fault: FaultCertificate, reason: "authority"},
		"another host":      {connection: "127.0.0.1:" + port + ",ssl=true,sslHost=wrong.test", ca: ca, fault: FaultHost, reason: "wrong.test"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := Dial(t.Context(), Config{Connection: tt.connection, CAFile: tt.ca})
			if tt.fault == "" {
				require.NoError(t, err)
				return
			}
			var failed *DialError
			require.ErrorAs(t, err, &failed)
			require.Equal(t, tt.fault, failed.Fault, failed.Reason)
			require.Contains(t, failed.Reason, tt.reason)
			require.NotContains(t, failed.Reason, "geheim")
		})
	}
	t.Run("not a connection", func(t *testing.T) {
		t.Parallel()
		require.ErrorContains(t, Dial(t.Context(), Config{Connection: "http://x"}), "REDIS_CONNECTION")
		require.ErrorContains(t, Dial(t.Context(), Config{Connection: "rediss://x", CAFile: "/nowhere"}), "REDIS_CA_FILE")
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, Dial(ctx, Config{Connection: s.Addr()}), context.Canceled)
	})
}

func TestWhatTheServerReplied(t *testing.T) {
	t.Parallel()
	s := redistest.StartWith(t, "--requirepass", "geheim")
	free := redistest.Start(t)
	for connection, code := range map[string]string{
		s.Addr():                            "NOAUTH",
		s.Addr() + ",password=x":            "WRONGPASS",
		free.Addr() + ",defaultDatabase=99": "",
		"127.0.0.1:1":                       "",
	} {
		err := open(t, connection, "one").Ping(t.Context())
		require.Error(t, err, connection)
		require.Equal(t, code, Code(err), connection)
		require.False(t, ClosedByServer(err), connection)
	}
	require.Empty(t, Code(errors.New("NOAUTH")))
	require.False(t, ClosedByServer(nil))

	_, certFile, keyFile := certificate(t)
	secure := redistest.StartWith(t, "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-auth-clients", "no")
	port := freeTLSPort(t, open(t, secure.Addr(), "control"))
	err := open(t, "127.0.0.1:"+port, "one").Ping(t.Context())
	require.True(t, ClosedByServer(err), "%v", err)
}

func TestServerInfo(t *testing.T) {
	t.Parallel()
	s := redistest.StartWith(t, "--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	info, err := open(t, s.Addr(), "one").ServerInfo(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, info.Version)
	info.Version = ""
	require.Equal(t, ServerInfo{Mode: "standalone", AppendOnly: "on", Policy: "allkeys-lru", MaxMemory: 100 << 20}, info)

	host, port, err := net.SplitHostPort(s.Addr())
	require.NoError(t, err)
	replica := redistest.StartWith(t, "--replicaof", host+" "+port)
	info, err = open(t, replica.Addr(), "one").ServerInfo(t.Context())
	require.NoError(t, err)
	require.True(t, info.Replica)
	require.Equal(t, s.Addr(), info.Primary)
	require.Equal(t, "off", info.AppendOnly)

	replica.Kill()
	_, err = open(t, replica.Addr(), "one").ServerInfo(t.Context())
	require.ErrorIs(t, err, ErrUnavailable)
}

func TestMissingRights(t *testing.T) {
	t.Parallel()
	t.Run("none of the shipped user", func(t *testing.T) {
		t.Parallel()
		s := redistest.StartShipped(t)
		missing, err := open(t, s.Login("executor"), "one").MissingRights(t.Context(), "chat.jobs")
		require.NoError(t, err)
		require.Empty(t, missing)
		require.Empty(t, denied(t, open(t, s.Login("admin"), "control")), "asking is no attempt")
	})
	t.Run("of somebody who may not run scripts", func(t *testing.T) {
		t.Parallel()
		s := redistest.StartShipped(t)
		_, err := open(t, s.Login("operator"), "one").MissingRights(t.Context(), "chat.jobs")
		require.ErrorIs(t, err, ErrDenied)
	})
	t.Run("each is found, and its rule grants it", func(t *testing.T) {
		t.Parallel()
		s := redistest.Start(t)
		control := open(t, s.Addr(), "control")
		var rules []string
		for _, r := range control.rights("chat.jobs") {
			if !slices.Contains(rules, r.Rule) {
				rules = append(rules, r.Rule)
			}
		}
		user := func(name string, rules ...string) *Client {
			args := []any{"ACL", "SETUSER", name, "reset", "on", ">pw"}
			for _, rule := range rules {
				args = append(args, "("+rule+")")
			}
			do(t, control, args...)
			return open(t, s.Addr()+",user="+name+",password=pw", "one")
		}
		missing, err := user("all", rules...).MissingRights(t.Context(), "chat.jobs")
		require.NoError(t, err)
		require.Empty(t, missing)
		for i, rule := range rules {
			others := slices.Concat(rules[:i], rules[i+1:])
			missing, err := user("less", others...).MissingRights(t.Context(), "chat.jobs")
			switch rule {
			case "+eval +evalsha ~{executor}:*", "+client|setname":
				require.ErrorIs(t, err, ErrDenied, "without it nothing can be asked")
			default:
				require.NoError(t, err)
				require.Len(t, missing, 1, rule)
				require.Equal(t, rule, missing[0].Rule)
				require.NotEmpty(t, missing[0].Command)
			}
		}
		without, err := user("listless", slices.DeleteFunc(rules, func(r string) bool { return strings.Contains(r, "chat") })...).
			MissingRights(t.Context(), "")
		require.NoError(t, err)
		require.Empty(t, without, "rights on the chat list matter only where there is one")
	})
}

func TestGroupExists(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	exists := func(stream string) bool {
		found, err := c.GroupExists(t.Context(), stream)
		require.NoError(t, err)
		return found
	}
	require.True(t, exists(agents))
	require.False(t, exists("jobs:chat"), "no stream")
	add(t, c, "jobs:chat", "k", "v")
	require.False(t, exists("jobs:chat"), "no group on it")
	do(t, c, "SET", "jobs:manager", "v")
	_, err := c.GroupExists(t.Context(), "jobs:manager")
	require.ErrorIs(t, err, ErrWrongType)
}

func TestLeaseHolder(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	holder, err := c.LeaseHolder(t.Context(), "l")
	require.NoError(t, err)
	require.Empty(t, holder)
	held, err := c.Lease(t.Context(), "l", time.Minute)
	require.NoError(t, err)
	require.True(t, held)
	holder, err = c.LeaseHolder(t.Context(), "l")
	require.NoError(t, err)
	require.Equal(t, "one", holder)
}

func TestAnnouncedStore(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	id, err := c.AnnouncedStore(t.Context())
	require.NoError(t, err)
	require.Empty(t, id)
	_, err = c.AnnounceStore(t.Context(), "store-1")
	require.NoError(t, err)
	id, err = c.AnnouncedStore(t.Context())
	require.NoError(t, err)
	require.Equal(t, "store-1", id)
}
