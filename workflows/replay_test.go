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
	require.GreaterOrEqual(t, len(files), 22, "one history per path and plan")
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			t.Parallel()
			replay := replayHistory(t, file, slog.NewTextHandler(t.Output(), nil))
			require.NoError(t, replay())
		})
	}
}

// replayHistory returns a function that runs the workflow code against the history in
// a file.
func replayHistory(t testing.TB, file string, logs slog.Handler) func() error {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	history, err := client.HistoryFromJSON(f, client.HistoryJSONOptions{})
	require.NoError(t, err)

	replayer := worker.NewWorkflowReplayer()
	replayer.RegisterWorkflowWithOptions(workflows.JobWorkflow, workflow.RegisterOptions{Name: workflows.WorkflowType})
	return func() error {
		return replayer.ReplayWorkflowHistoryWithOptions(log.NewStructuredLogger(slog.New(logs)), history,
			worker.ReplayWorkflowHistoryOptions{OriginalExecution: workflow.Execution{ID: "replayed", RunID: runID(history)}})
	}
}

// BenchmarkReplay is what a whole job costs in workflow code, the SDK's part
// included: decoding its events, running JobWorkflow and comparing its commands.
func BenchmarkReplay(b *testing.B) {
	for _, name := range []string{"completed-agent", "failed"} {
		b.Run(name, func(b *testing.B) {
			replay := replayHistory(b, filepath.Join("testdata", name+".json"), slog.DiscardHandler)
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, replay())
			}
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
