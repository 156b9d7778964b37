package workflows_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/nodpt/executor/workflows"
)

// TestReplay runs the workflow code against histories recorded by `make
// histories`. A failure means that this code would break jobs that are in flight
// when it is deployed: put the change behind a version, see versions.go.
func TestReplay(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.json")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), 11, "one history per path")
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			t.Parallel()
			f, err := os.Open(file)
			require.NoError(t, err)
			defer func() { require.NoError(t, f.Close()) }()
			history, err := client.HistoryFromJSON(f, client.HistoryJSONOptions{})
			require.NoError(t, err)

			replayer := worker.NewWorkflowReplayer()
			replayer.RegisterWorkflowWithOptions(workflows.JobWorkflow, workflow.RegisterOptions{Name: workflows.WorkflowType})
			logger := log.NewStructuredLogger(slog.New(slog.NewTextHandler(t.Output(), nil)))
			require.NoError(t, replayer.ReplayWorkflowHistoryWithOptions(logger, history, worker.ReplayWorkflowHistoryOptions{
				OriginalExecution: workflow.Execution{ID: "replayed", RunID: runID(history)},
			}))
		})
	}
}

// runID finds the id of the run a history is of. A reset run's history begins
// with the events of the run it was reset from, and names itself only where the
// reset is recorded.
func runID(history *historypb.History) string {
	id := history.GetEvents()[0].GetWorkflowExecutionStartedEventAttributes().GetOriginalExecutionRunId()
	for _, event := range history.GetEvents() {
		if reset := event.GetWorkflowTaskFailedEventAttributes(); reset.GetNewRunId() != "" {
			id = reset.GetNewRunId()
		}
	}
	return id
}
