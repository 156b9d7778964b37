package stack

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/leak"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m)) }

// options are those of a stack on free ports. Nothing starts its executor, which
// only has to be there, and a stand-in for the LLM is not needed.
func options(t *testing.T) Options {
	t.Helper()
	executor := filepath.Join(t.TempDir(), "executor")
	require.NoError(t, os.WriteFile(executor, nil, 0o700))
	opts := Options{
		Data: t.TempDir(), Executor: executor, LLMEndpoint: "http://127.0.0.1:1/v1", Progress: io.Discard, Ports: new(proc.Ports),
	}
	for _, port := range []*int{&opts.TemporalPort, &opts.UIPort, &opts.RedisPort} {
		free, err := opts.Ports.Free(t.Context())
		require.NoError(t, err)
		*port = free
	}
	return opts
}

// TestStackComesUpNoticesADeathAndGoesDown is what the command does, but for the
// executor, which the end-to-end tests add.
func TestStackComesUpNoticesADeathAndGoesDown(t *testing.T) {
	t.Parallel()
	opts := options(t)
	s, err := Up(t.Context(), opts)
	require.NoError(t, err)
	down := false
	t.Cleanup(func() {
		if !down {
			require.NoError(t, s.Down(context.WithoutCancel(t.Context())))
		}
	})

	_, err = Up(t.Context(), opts)
	require.ErrorContains(t, err, opts.Data, "one stack at a time uses a directory")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Wait(ended), "nothing happened until the context ended")

	s.redis.Process().Kill()
	require.ErrorContains(t, s.Wait(t.Context()), "redis-server ended by itself")

	down = true
	require.NoError(t, s.Down(t.Context()))
	lock, err := proc.LockDir(opts.Data)
	require.NoError(t, err, "the directory is free again")
	require.NoError(t, lock.Unlock())
}

func TestStackThatCannotStartLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	opts := options(t)
	opts.Executor = filepath.Join(t.TempDir(), "missing")
	_, err := Up(t.Context(), opts)
	require.ErrorContains(t, err, "make build")

	opts = options(t)
	require.NoError(t, os.WriteFile(filepath.Join(opts.Data, "logs"), nil, 0o600)) // in the way of a directory
	_, err = Up(t.Context(), opts)
	require.Error(t, err)
	lock, err := proc.LockDir(opts.Data)
	require.NoError(t, err, "the directory is free again")
	require.NoError(t, lock.Unlock())
}
