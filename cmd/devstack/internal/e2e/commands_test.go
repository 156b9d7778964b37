package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// output of a command that has ended.
type output struct {
	stdout, stderr string
	code           int
}

// command runs the executor to its end in this bundle's environment.
func (b *bundle) command(env map[string]string, args ...string) output {
	b.T.Helper()
	ctx, cancel := context.WithTimeout(b.T.Context(), harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.binary, args...) //nolint:gosec // G204: the binary under test
	cmd.Dir, cmd.Env = b.Dir, b.Env(env)
	return ended(b.T, cmd)
}

// ended runs a command to its end.
func ended(t *testing.T, cmd *exec.Cmd) output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return output{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
}

func TestSubmitAndWait(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	operator := map[string]string{"REDIS_CONNECTION": b.OperatorConnection()}

	answer := harness.Text("answer")
	out := b.command(operator, "submit", "--role", "agent", "--job-id", "s1", "--task", "!echo "+answer, "--wait")
	require.Equal(t, 0, out.code, out.stderr)
	require.Equal(t, answer+"\n", out.stdout)

	out = b.command(operator, "submit", "--role", "chat", "--job-id", "s2", "--task", "!fail 400 "+harness.Text("task"), "--wait", "-o", "json")
	require.Equal(t, 1, out.code, out.stderr)
	var submission map[string]string
	require.NoError(t, json.Unmarshal([]byte(out.stdout), &submission))
	require.Equal(t, "s2", submission["jobId"])
	require.Equal(t, "jobs:chat", submission["stream"])
	require.Equal(t, "error", submission["type"])
	require.Contains(t, submission["payload"], "llm_bad_request")

	out = b.command(operator, "submit", "--role", "cook", "--task", "x")
	require.Equal(t, 2, out.code)
	require.Contains(t, out.stderr, "--role")
}

func TestCommandsThatOnlyTell(t *testing.T) {
	t.Parallel()
	b := newBundle(t)

	out := b.command(nil, "version")
	require.Equal(t, 0, out.code, out.stderr)
	require.Contains(t, out.stdout, "executor")

	out = b.command(nil, "config")
	require.Equal(t, 0, out.code, out.stderr)
	require.Contains(t, out.stdout, "REDIS_CONNECTION")
	require.NotContains(t, out.stdout+out.stderr, harness.Canary)

	out = b.command(map[string]string{"MAX_AGENT": "many", "LLM_TIMEOUT": "soon"}, "run")
	require.Equal(t, 2, out.code)
	require.Contains(t, out.stderr, "MAX_AGENT")
	require.Contains(t, out.stderr, "LLM_TIMEOUT", "all mistakes at once")
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	e := b.Launch(nil, "run")
	b.Ready(e)
	address := map[string]string{"HTTP_ADDR": e.Health[len("http://"):]}
	out := b.command(address, "healthcheck")
	require.Equal(t, 0, out.code, out.stderr)
	b.Stop(e.Process)
	out = b.command(address, "healthcheck")
	require.NotEqual(t, 0, out.code)
}
