//go:build temporalcli

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// temporalCLI names the Temporal CLI, which `make test-temporal-cli` builds.
const temporalCLI = "TEMPORAL_CLI"

// temporal runs the Temporal CLI against the bundle's namespace.
func (b *bundle) temporal(args ...string) string {
	b.T.Helper()
	path := os.Getenv(temporalCLI)
	require.NotEmpty(b.T, path, "run this through make test-temporal-cli")
	ctx, cancel := context.WithTimeout(b.T.Context(), harness.Patience)
	defer cancel()
	args = append(args, "--address", b.Options.Temporal, "--namespace", b.Options.Namespace, "--disable-config-file", "--disable-config-env")
	cmd := exec.CommandContext(ctx, path, args...) //nolint:gosec // G204: the tool under test
	cmd.Dir, cmd.Env = b.Dir, []string{"HOME=" + b.Dir, "PATH=" + os.Getenv("PATH")}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(b.T, cmd.Run(), "%v\n%s", args, out.String())
	return out.String()
}

// TestDocumentedCommandsOfTheTemporalCLI executes the lines of all pages.
func TestDocumentedCommandsOfTheTemporalCLI(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	for i, c := range documented(t, "temporal") {
		id := fmt.Sprintf("documented-%d", i)
		b.Submit("agent", "jobId", id, "userId", "u1", "task", "!fail 400 x1 "+harness.Text("task"))
		require.Equal(t, "error", b.Update(id, 1)["Type"])
		b.Settled("agent")
		b.Visible(1, "WorkflowType='JobWorkflow' AND ExecutionStatus='Failed' AND WorkflowId='job:agent:"+id+"'")
		line := strings.NewReplacer(" ID ", " job:agent:"+id+" ", "--namespace default", "").Replace(c.text)
		// The CLI itself, with where to find this bundle's server.
		b.T.Logf("%s: %s\n%s", c.place, line, b.temporalLine(line))
		if strings.Contains(line, " reset ") {
			b.healed("agent", id, 2)
		}
	}
}

// temporalLine runs a line that begins with `temporal`, quoted for a shell.
func (b *bundle) temporalLine(line string) string {
	b.T.Helper()
	words := exec.CommandContext(b.T.Context(), "sh", "-euc", `for word in "$@"; do printf '%s\n' "$word"; done`, "sh")
	words.Args[2] = "set -- " + strings.TrimPrefix(line, "temporal ") + "; " + words.Args[2]
	output, err := words.Output()
	require.NoError(b.T, err, line)
	return b.temporal(strings.Split(strings.TrimSuffix(string(output), "\n"), "\n")...)
}

// TestRetryByTheTemporalCLI resets one run, then all that a query finds, twice.
func TestRetryByTheTemporalCLI(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	const n = 5
	var jobs []string
	for i := range n {
		jobs = append(jobs, fmt.Sprintf("j%d", i))
		b.Submit("agent", "jobId", jobs[i], "userId", "u1", "task", "!fail 400 x1 "+harness.Text("task"))
	}
	for _, j := range jobs {
		require.Equal(t, "error", b.Update(j, 1)["Type"])
	}
	b.Settled("agent")
	const query = "WorkflowType='JobWorkflow' AND ExecutionStatus='Failed' AND JobRole='agent'"
	b.Visible(n, query)

	b.temporal("workflow", "reset", "--workflow-id", "job:agent:j0", "--type", "FirstWorkflowTask", "--reason", "the model is fixed")
	b.healed("agent", "j0", 2)
	require.Equal(t, n+1, b.LLM.Stats().Calls)

	for range 2 {
		b.temporal("workflow", "reset", "--query", query, "--type", "FirstWorkflowTask", "--reason", "the model is fixed", "--yes")
		for _, j := range jobs {
			b.healed("agent", j, 2)
		}
	}
	// One run for the single reset, and one of each bulk reset for every job.
	b.Visible(2*n+1, "WorkflowType='JobWorkflow' AND ExecutionStatus='Completed' AND JobRole='agent'")
	require.Equal(t, 2*n, b.LLM.Stats().Calls, "one call for each failure, one for each retry")
	require.Contains(t, b.temporal("batch", "list"), "Completed")
}
