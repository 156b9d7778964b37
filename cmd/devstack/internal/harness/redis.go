package harness

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/redisd"
)

// Users of the Redis of a bundle. All but the admin, who is the test itself, are
// those of deploy/redis/users.acl.
const (
	redisAdmin    = "admin"
	redisExecutor = "executor"
	redisOperator = "operator"
)

// startRedis runs Redis with the configuration and the users that are shipped in
// deploy/redis, so that whatever a test does also shows that their rights are
// enough.
func (b *Bundle) startRedis() {
	t := b.T
	root, err := RepositoryRoot()
	require.NoError(t, err)
	shipped := filepath.Join(root, "deploy", "redis")
	users, err := os.ReadFile(filepath.Join(shipped, "users.acl"))
	require.NoError(t, err)
	acl := filepath.Join(b.Dir, "users.acl")
	require.NoError(t, os.WriteFile(acl, []byte(withPasswords(string(users))), 0o600))

	cfg := redisd.Config{
		Port: b.Port(), LogFile: filepath.Join(b.Dir, "redis.log"), File: filepath.Join(shipped, "redis.conf"),
		User: redisAdmin, Password: redisPassword(redisAdmin),
		Args: append([]string{"--aclfile", acl}, b.Options.RedisArgs...),
	}
	if b.Options.Durable {
		cfg.Dir = filepath.Join(b.Dir, "redis")
	} else {
		cfg.Args = append([]string{"--dir", b.Dir}, cfg.Args...)
	}
	b.RedisServer = b.runRedis(cfg)
	b.Redis = redis.NewClient(&redis.Options{
		Username: redisAdmin, Password: redisPassword(redisAdmin),
		Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, b.redisAddress.Load().(string))
			if err == nil {
				b.redisConns.Store(conn, nil)
			}
			return conn, err
		},
	})
	b.UseRedis(b.RedisServer)
	t.Cleanup(func() { require.NoError(t, b.Redis.Close()) })
	t.Cleanup(b.nothingDenied)
}

// nothingDenied looks for commands that Redis refused the executor for want of a
// right, which it may have got over without a word. A Redis that is gone by the
// end of the test is not asked.
func (b *Bundle) nothingDenied() {
	entries, err := b.Redis.ACLLog(context.WithoutCancel(b.T.Context()), 128).Result()
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Username == redisExecutor {
			b.T.Errorf("deploy/redis/users.acl lacks a right: %s %s (%s)", e.Reason, e.Object, e.Context)
		}
	}
}

func (b *Bundle) runRedis(cfg redisd.Config) *redisd.Server {
	b.T.Helper()
	s, err := redisd.Start(b.T.Context(), cfg)
	require.NoError(b.T, err)
	require.False(b.T, s.Substitute(), "these tests need redis-server on PATH")
	b.T.Cleanup(func() { require.NoError(b.T, s.Stop(context.WithoutCancel(b.T.Context()))) })
	return s
}

// UseRedis lets the test's own client talk to that server from now on.
func (b *Bundle) UseRedis(s *redisd.Server) {
	b.redisAddress.Store(s.Address())
	b.redisConns.Range(func(conn, _ any) bool {
		_ = conn.(net.Conn).Close()
		b.redisConns.Delete(conn)
		return true
	})
}

// RedisReplica runs a second Redis that follows the bundle's, which it reaches
// by way of an address, and keeps its data like the first.
func (b *Bundle) RedisReplica(master string) *redisd.Server {
	b.T.Helper()
	host, port, err := net.SplitHostPort(master)
	require.NoError(b.T, err)
	root, err := RepositoryRoot()
	require.NoError(b.T, err)
	return b.runRedis(redisd.Config{
		Port: b.Port(), LogFile: filepath.Join(b.Dir, "replica.log"), Dir: filepath.Join(b.Dir, "replica"),
		File: filepath.Join(root, "deploy", "redis", "redis.conf"),
		User: redisAdmin, Password: redisPassword(redisAdmin),
		Args: []string{
			"--aclfile", filepath.Join(b.Dir, "users.acl"), "--replicaof", host + " " + port,
			"--masteruser", redisAdmin, "--masterauth", redisPassword(redisAdmin),
		},
	})
}

// RedisConnection is what an executor is told about Redis, by way of an address:
// the server's own or that of a proxy.
func (b *Bundle) RedisConnection(address string) string { return login(address, redisExecutor) }

// OperatorConnection is what a person at the command line uses, for example to
// submit a job, which the user of a running executor may not.
func (b *Bundle) OperatorConnection() string { return login(b.RedisServer.Address(), redisOperator) }

// AdminURL is what redis-cli takes to do anything at all.
func (b *Bundle) AdminURL() string {
	return (&url.URL{Scheme: "redis", User: url.UserPassword(redisAdmin, redisPassword(redisAdmin)), Host: b.RedisServer.Address()}).String()
}

func login(address, user string) string {
	return address + ",user=" + user + ",password=" + redisPassword(user)
}

// redisPassword contains the canary, so that no log may show it.
func redisPassword(user string) string { return Canary + "-redis-" + user }

// withPasswords does to the users what deploy/redis/README.md says, and adds the
// admin.
func withPasswords(users string) string {
	hash := func(user string) string { return fmt.Sprintf(" #%x", sha256.Sum256([]byte(redisPassword(user)))) }
	users = regexp.MustCompile(`(?m)^user \S+ on`).ReplaceAllStringFunc(users, func(line string) string {
		return line + hash(strings.Fields(line)[1])
	})
	return users + "user " + redisAdmin + " on" + hash(redisAdmin) + " ~* &* +@all\n"
}
