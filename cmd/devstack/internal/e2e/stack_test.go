package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/demo"
	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/stack"
)

// stackVariable makes the test binary play `devstack dev`, so that a test can
// kill it: its value is the data directory.
const stackVariable = "DEVSTACK_TEST_STACK"

func stackOptions(t *testing.T, data string) stack.Options {
	t.Helper()
	var found [4]int
	for i := range found {
		port, err := shared.ports.Free(t.Context())
		require.NoError(t, err)
		found[i] = port
	}
	return stack.Options{
		Data: data, Executor: shared.binary, Ports: shared.ports,
		TemporalPort: found[0], UIPort: found[1], RedisPort: found[2], HTTPPort: found[3],
	}
}

// runDemo does what `devstack demo` does, and returns what it printed.
func runDemo(ctx context.Context, opts stack.Options, tag string) (table, progress string, err error) {
	var out, steps bytes.Buffer
	opts.Progress = &steps
	s, err := stack.Up(ctx, opts)
	if err != nil {
		return "", steps.String(), err
	}
	err = func() error {
		if err := s.StartExecutor(ctx); err != nil {
			return err
		}
		_, scripted := s.LLM()
		cfg := demo.Config{
			Redis: s.RedisAddress(), Database: s.Database(), Scripted: scripted, WorkflowURL: s.WorkflowURL,
			Progress: &steps, Patience: harness.Patience,
		}
		jobs := demo.Jobs(tag, scripted)
		if err := demo.Run(ctx, cfg, jobs); err != nil {
			return err
		}
		return demo.Report(cfg, jobs, &out)
	}()
	if stopErr := s.Down(context.WithoutCancel(ctx)); err == nil {
		err = stopErr
	}
	return out.String(), steps.String(), err
}

// TestDemoSurvivesRestartAndCrash runs the demo, then kills a stack on the same
// data directory without warning, then runs the demo there again.
func TestDemoSurvivesRestartAndCrash(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")

	table, progress, err := runDemo(t.Context(), stackOptions(t, data), "one")
	require.NoError(t, err, progress)
	require.Contains(t, table, "demo-one-agent-third-try")
	require.Contains(t, table, "failed: llm_bad_request")

	ready := data + ".ready"
	opts, err := json.Marshal(stackOptions(t, data))
	require.NoError(t, err)
	crash := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // G204: itself
	crash.Env = append(os.Environ(), stackVariable+"="+string(opts), "DEVSTACK_TEST_READY="+ready)
	var out bytes.Buffer
	crash.Stdout, crash.Stderr = &out, &out
	require.NoError(t, crash.Start())
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	err = proc.Wait(ctx, func(context.Context) error { _, err := os.Stat(ready); return err })
	require.NoError(t, crash.Process.Signal(syscall.SIGKILL))
	require.Error(t, crash.Wait())
	require.NoError(t, err, out.String())

	// The same ports again: the killed stack's children must be gone from them.
	var same stack.Options
	require.NoError(t, json.Unmarshal(opts, &same))
	require.NoError(t, proc.Wait(ctx, func(ctx context.Context) error {
		for _, port := range []int{same.RedisPort, same.HTTPPort} {
			if !proc.IsFree(ctx, port) {
				return fmt.Errorf("port %d is busy (%s)", port, proc.Holder(port))
			}
		}
		return nil
	}))
	table, progress, err = runDemo(t.Context(), same, "two")
	require.NoError(t, err, progress)
	require.Contains(t, table, "demo-two-agent-third-try")
	require.NotContains(t, progress, "busy")
	require.Contains(t, table, "http://"+proc.Loopback(same.UIPort)+"/namespaces/default/workflows/job:agent:demo-two-agent-1")
}

// playStack starts a stack with the given options and stays up until killed.
func playStack(options string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var opts stack.Options
	err := json.Unmarshal([]byte(options), &opts)
	if err == nil {
		opts.Progress = os.Stderr
		err = func() error {
			s, err := stack.Up(ctx, opts)
			if err != nil {
				return err
			}
			if err := s.StartExecutor(ctx); err != nil {
				return err
			}
			if err := os.WriteFile(os.Getenv("DEVSTACK_TEST_READY"), []byte("ready"), 0o600); err != nil {
				return err
			}
			return s.Wait(ctx)
		}()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}
