package harness

import (
	"context"
	"crypto/sha256"
	"fmt"
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
	b.RedisServer, err = redisd.Start(t.Context(), cfg)
	require.NoError(t, err)
	require.False(t, b.RedisServer.Substitute(), "these tests need redis-server on PATH")
	t.Cleanup(func() { require.NoError(t, b.RedisServer.Stop(context.WithoutCancel(t.Context()))) })
	b.Redis = redis.NewClient(&redis.Options{
		Addr: b.RedisServer.Address(), Username: redisAdmin, Password: redisPassword(redisAdmin),
	})
	t.Cleanup(func() { require.NoError(t, b.Redis.Close()) })
}

// RedisConnection is what an executor is told about Redis, by way of an address:
// the server's own or that of a proxy.
func (b *Bundle) RedisConnection(address string) string { return login(address, redisExecutor) }

// OperatorConnection is what a person at the command line uses, for example to
// submit a job, which the user of a running executor may not.
func (b *Bundle) OperatorConnection() string { return login(b.RedisServer.Address(), redisOperator) }

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
