package redisd

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

func connect(t *testing.T, s *Server) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Address()})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func config(t *testing.T, ports *proc.Ports) Config {
	t.Helper()
	port, err := ports.Free(t.Context())
	require.NoError(t, err)
	dir := t.TempDir()
	return Config{Port: port, Dir: filepath.Join(dir, "data"), LogFile: filepath.Join(dir, "redis.log")}
}

func TestRedisKeepsDataAcrossACrash(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cfg := config(t, new(proc.Ports))

	s, err := Start(ctx, cfg)
	require.NoError(t, err)
	require.False(t, s.Substitute(), "install redis-server for the tests")
	c := connect(t, s)
	policy, err := c.ConfigGet(ctx, "maxmemory-policy").Result()
	require.NoError(t, err)
	require.Equal(t, map[string]string{"maxmemory-policy": "noeviction"}, policy)
	require.NoError(t, c.Do(ctx, "CONFIG", "SET", "appendfsync", "always").Err())
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	s.Process().Kill()

	s, err = Start(ctx, cfg)
	require.NoError(t, err)
	require.Equal(t, "v", connect(t, s).Get(ctx, "k").Val())
	require.NoError(t, s.Stop(ctx))
}

func TestSubstituteServesStreams(t *testing.T) {
	t.Parallel()
	s, err := startMini(config(t, new(proc.Ports)))
	require.NoError(t, err)
	require.True(t, s.Substitute())
	c := connect(t, s)
	require.NoError(t, c.XAdd(t.Context(), &redis.XAddArgs{Stream: "s", Values: []string{"a", "1"}}).Err())
	require.EqualValues(t, 1, c.XLen(t.Context(), "s").Val())
	require.NoError(t, s.Stop(t.Context()))
}
