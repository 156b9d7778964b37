package temporald

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

const patience = 30 * time.Second

func start(t *testing.T, ports *proc.Ports, cfg Config) (*Server, client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var err error
	cfg.Port, err = ports.Free(ctx)
	require.NoError(t, err)
	cfg.LogFile = filepath.Join(t.TempDir(), "temporal.log")
	began := time.Now()
	server, err := Start(ctx, cfg, ports)
	require.NoError(t, err)
	t.Logf("serving after %s", time.Since(began).Round(time.Millisecond))
	c, err := client.Dial(client.Options{HostPort: server.Address(), Logger: quiet{}})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return server, c
}

func greet(_ workflow.Context, name string) (string, error) { return "hello " + name, nil }

// greetSomeone runs one workflow, of a JobRole, to its end.
func greetSomeone(t *testing.T, c client.Client) client.WorkflowRun {
	t.Helper()
	w := worker.New(c, "greetings", worker.Options{})
	w.RegisterWorkflow(greet)
	require.NoError(t, w.Start())
	defer w.Stop()
	run, err := c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{
		ID: "greet-1", TaskQueue: "greetings",
		TypedSearchAttributes: temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword("JobRole").ValueSet("agent"),
		),
	}, greet, "stack")
	require.NoError(t, err)
	var answer string
	require.NoError(t, run.Get(t.Context(), &answer))
	require.Equal(t, "hello stack", answer)
	return run
}

func requireListed(t *testing.T, c client.Client, run client.WorkflowRun) {
	t.Helper()
	require.Eventually(t, func() bool {
		found, err := c.ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{
			Query: `JobRole = "agent" and ExecutionStatus = "Completed"`,
		})
		return err == nil && len(found.GetExecutions()) == 1 &&
			found.GetExecutions()[0].GetExecution().GetRunId() == run.GetRunID()
	}, patience, 50*time.Millisecond, "the run is found by its search attribute")
}

func TestServerRunsWorkflowsAndKeepsThem(t *testing.T) {
	t.Parallel()
	ports := new(proc.Ports)
	database := filepath.Join(t.TempDir(), "a dir with spaces, ? and #", "temporal.db")

	server, c := start(t, ports, Config{Database: database})
	run := greetSomeone(t, c)
	requireListed(t, c, run)

	namespace, err := c.WorkflowService().DescribeNamespace(t.Context(), &workflowservice.DescribeNamespaceRequest{Namespace: DefaultNamespace})
	require.NoError(t, err)
	require.Equal(t, DefaultRetention, namespace.GetConfig().GetWorkflowExecutionRetentionTtl().AsDuration())

	began := time.Now()
	require.NoError(t, server.Stop())
	t.Logf("stopped after %s", time.Since(began).Round(time.Millisecond))

	second, c := start(t, ports, Config{Database: database})
	described, err := c.DescribeWorkflowExecution(t.Context(), run.GetID(), run.GetRunID())
	require.NoError(t, err)
	require.Equal(t, enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED, described.GetWorkflowExecutionInfo().GetStatus())
	require.NoError(t, second.Stop())
}

func TestServerInMemory(t *testing.T) {
	t.Parallel()
	ports := new(proc.Ports)
	server, c := start(t, ports, Config{Namespaces: []string{"one", "other"}, Retention: 48 * time.Hour})
	namespace, err := c.WorkflowService().DescribeNamespace(t.Context(), &workflowservice.DescribeNamespaceRequest{Namespace: "other"})
	require.NoError(t, err)
	require.Equal(t, 48*time.Hour, namespace.GetConfig().GetWorkflowExecutionRetentionTtl().AsDuration())
	require.NoError(t, server.Stop())
}

func TestStartRefusesBusyPort(t *testing.T) {
	t.Parallel()
	ports := new(proc.Ports)
	server, _ := start(t, ports, Config{})
	_, err := Start(t.Context(), Config{Port: portOf(t, server)}, ports)
	require.ErrorContains(t, err, "is busy")
	require.NoError(t, server.Stop())
}

func portOf(t *testing.T, s *Server) int {
	t.Helper()
	_, port, err := net.SplitHostPort(s.Address())
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	return n
}
