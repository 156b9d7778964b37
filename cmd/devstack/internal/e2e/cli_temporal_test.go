//go:build temporalcli

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
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

// TestComposeFileByTheTemporalCLI runs what docker-compose.yml runs in Temporal's
// image, the server, its health check and the setup, with the tool itself instead
// of the stand-in that the compose test has to take.
func TestComposeFileByTheTemporalCLI(t *testing.T) {
	t.Parallel()
	cli := os.Getenv(temporalCLI)
	require.NotEmpty(t, cli, "run this through make test-temporal-cli")
	dir, bin := t.TempDir(), t.TempDir()
	require.NoError(t, os.Symlink(cli, filepath.Join(bin, "temporal")))
	port, err := shared.ports.Free(t.Context())
	require.NoError(t, err)
	uiPort, err := shared.ports.Free(t.Context())
	require.NoError(t, err)
	env := []string{"HOME=" + dir, "PATH=" + bin + ":" + os.Getenv("PATH")}
	run := func(ctx context.Context, name string, args ...string) error {
		cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // G204: the tool under test
		cmd.Dir, cmd.Env = dir, env
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %q: %w\n%s", name, args, err, out)
		}
		return nil
	}

	// The server, at other places than those of the container.
	args := strings.Fields(strings.ReplaceAll(ofCompose(t, "temporal", `(?m)^    command:\n((?:      - \S+\n)+)`), "      - ", ""))
	replace := func(flag string, with ...string) {
		i := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg+"=", flag+"=") })
		require.GreaterOrEqual(t, i, 0, "%s is not in %q", flag, args)
		args = slices.Replace(args, i, i+1, with...)
	}
	replace("--ip", "--ip=127.0.0.1", "--port="+strconv.Itoa(port))
	replace("--ui-port", "--ui-port="+strconv.Itoa(uiPort))
	replace("--db-filename", "--db-filename="+filepath.Join(dir, "temporal.db"))
	replace("--ui-disable-news-fetch") // newer than the newest version that can be built here; the image has it
	server, err := proc.Start(proc.Spec{
		Name: "temporal", Path: cli, Args: args, Env: env, Dir: dir, LogFile: filepath.Join(dir, "temporal.log"),
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, server.Stop(context.WithoutCancel(t.Context()), 30*time.Second), "within its stop_grace_period")
		if t.Failed() {
			t.Logf("end of the server's log:\n%s", server.LogTail(40))
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	var health []string
	require.NoError(t, json.Unmarshal([]byte(ofCompose(t, "temporal", `test: (\[.*\])`)), &health))
	require.Equal(t, "CMD", health[0])
	i := slices.Index(health, "--address=127.0.0.1:7233")
	require.Positive(t, i, "%q", health)
	health[i] = "--address=" + proc.Loopback(port)
	require.NoError(t, server.WaitReady(ctx, func(ctx context.Context) error { return run(ctx, filepath.Join(bin, health[1]), health[2:]...) }))
	require.NoError(t, server.WaitReady(ctx, proc.HTTPReady("http://"+proc.Loopback(uiPort))))

	// The setup, which runs again at each `up`.
	script := ofCompose(t, "setup", `(?m)^    command:\n      - \|\n((?:        .*\n)+)`)
	require.Contains(t, script, "temporal:7233")
	require.NotContains(t, script, "$", "compose would put something there")
	script = strings.ReplaceAll(script, "temporal:7233", proc.Loopback(port))
	for range 2 {
		require.NoError(t, run(ctx, "sh", "-euc", script))
	}

	c, err := client.NewLazyClient(client.Options{HostPort: proc.Loopback(port), Logger: harness.Silent{}})
	require.NoError(t, err)
	defer c.Close()
	namespace, err := c.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: "default"})
	require.NoError(t, err)
	require.Equal(t, 720*time.Hour, namespace.GetConfig().GetWorkflowExecutionRetentionTtl().AsDuration())
	attributes, err := c.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: "default"})
	require.NoError(t, err)
	names := slices.Sorted(maps.Keys(attributes.GetCustomAttributes()))
	for _, name := range []string{"JobModel", "JobNodptWorkflow", "JobProject", "JobRole", "JobUser"} {
		require.Contains(t, names, name)
		require.Equal(t, "Keyword", attributes.GetCustomAttributes()[name].String(), name)
	}
}

// ofCompose is the first group of a pattern's match in a service of
// docker-compose.yml.
func ofCompose(t *testing.T, service, pattern string) string {
	t.Helper()
	root, err := harness.RepositoryRoot()
	require.NoError(t, err)
	file, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	require.NoError(t, err)
	_, text, found := strings.Cut(string(file), "\n  "+service+":\n")
	require.True(t, found, service)
	text, _, _ = strings.Cut(text, "\n\n")
	match := regexp.MustCompile(pattern).FindStringSubmatch(text)
	require.NotNil(t, match, "%s has no %s", service, pattern)
	return match[1]
}
