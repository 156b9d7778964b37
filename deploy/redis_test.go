package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/redistest"
	"github.com/nodpt/executor/internal/stream"
)

// TestRedisPasswordCommand runs the command that the README of deploy/redis
// gives, and logs in with the password it put in.
func TestRedisPasswordCommand(t *testing.T) {
	t.Parallel()
	command := matches(t, read(t, "redis/README.md"), "(?s)```sh\n(.*?)```")[0]
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "users.acl"), []byte(read(t, "redis/users.acl")), 0o600))
	for _, name := range []string{"executor", "web"} {
		sh := exec.CommandContext(t.Context(), "sh", "-euc", command)
		sh.Dir = dir
		sh.Env = append(os.Environ(), "NAME="+name, `PASSWORD=with "quotes", $dollars/ & \back\slashes`)
		output, err := sh.CombinedOutput()
		require.NoError(t, err, string(output))
	}

	s := redistest.StartWith(t, "--aclfile", filepath.Join(dir, "users.new"))
	login := func(connection string) error {
		c, err := stream.Open(stream.Config{Connection: connection}, nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c.EnsureGroup(t.Context(), job.Agent.Stream())
	}
	const encoded = "with%20%22quotes%22%2C%20%24dollars%2F%20%26%20%5Cback%5Cslashes"
	require.NoError(t, login("redis://executor:"+encoded+"@"+s.Addr()))
	// It may log in and not make a group.
	require.ErrorContains(t, login("redis://web:"+encoded+"@"+s.Addr()), "NOPERM for xgroup")
	require.ErrorIs(t, login("redis://operator:"+encoded+"@"+s.Addr()), stream.ErrDenied, "no password was put in for this one")
}

// TestRedisFilesHoldNoPassword: whoever installs them has to put in their own.
func TestRedisFilesHoldNoPassword(t *testing.T) {
	t.Parallel()
	require.NotRegexp(t, `(?m)^user .*(nopass|[ (][>#])`, read(t, "redis/users.acl"))
	require.NotRegexp(t, `(?m)^(requirepass|masterauth|user) `, read(t, "redis/redis.conf"))
}
