//go:build record

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/api/workflowservice/v1"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// TestRecordHistories writes one history per path of JobWorkflow to
// workflows/testdata, where a test of the root module replays them. Run it by
// `make histories` when a path was added; never to make that test pass.
func TestRecordHistories(t *testing.T) {
	t.Parallel()
	root, err := harness.RepositoryRoot()
	require.NoError(t, err)
	dir := filepath.Join(root, "workflows", "testdata")
	require.NoError(t, os.MkdirAll(dir, 0o755))

	b := newBundle(t)
	b.Start(nil, "run")
	for _, role := range []string{"manager", "inspector", "agent", "chat"} {
		field := "task"
		if role == "chat" {
			field = "message"
		}
		b.Submit(role, "jobId", "j1", "workflowId", "w1", "userId", "u1", "projectId", "p1", "connectionId", "c1", field, "hello", "payload", "{}")
		b.Update("j1", 1)
		b.Settled(role)
		b.record(dir, "completed-"+role, "job:"+role+":j1", "")
		require.NoError(t, b.Redis.Del(t.Context(), harness.Updates).Err()) // jobs of all roles have one id
	}

	b.Submit("agent", "jobId", "third-try", "userId", "u1", "task", "!fail 503 x2")
	b.Update("third-try", 1)
	b.Settled("agent")
	b.record(dir, "completed-third-attempt", "job:agent:third-try", "")

	b.Submit("agent", "jobId", "bad", "userId", "u1", "task", "!fail 400 x1")
	b.Update("bad", 1)
	b.Settled("agent")
	b.record(dir, "failed", "job:agent:bad", "")
	failed := b.Run("job:agent:bad", "Failed").GetExecution().GetRunId()

	// Reset twice: the first run again speaks for itself, the second finds the job
	// completed.
	healed := b.reset("job:agent:bad", failed, first)
	b.Update("bad", 2)
	b.Run("job:agent:bad", "Completed")
	b.record(dir, "reset-of-failed", "job:agent:bad", healed)
	again := b.reset("job:agent:bad", failed, first)
	b.Run("job:agent:bad", "Completed")
	b.record(dir, "reset-of-completed", "job:agent:bad", again)

	// Reset to the last workflow task: the run finds its call made and failed.
	b.Submit("agent", "jobId", "late", "userId", "u1", "task", "!fail 400 x1 again")
	b.Update("late", 1)
	b.Settled("agent")
	late := b.reset("job:agent:late", b.Run("job:agent:late", "Failed").GetExecution().GetRunId(), 10)
	b.Update("late", 2)
	b.Run("job:agent:late", "Failed")
	b.record(dir, "reset-to-last-task", "job:agent:late", late)

	b.Submit("agent", "jobId", "endless", "userId", "u1", "task", "!hang")
	b.LLM.Await("the call runs", func(s harness.Stats) bool { return s.Running == 1 })
	require.NoError(t, b.Temporal.CancelWorkflow(t.Context(), "job:agent:endless", ""))
	b.Update("endless", 1)
	b.Settled("agent")
	b.record(dir, "canceled", "job:agent:endless", "")

	// Publishing fails until the key is an updates stream again.
	require.NoError(t, b.Redis.Rename(t.Context(), harness.Updates, "aside").Err())
	require.NoError(t, b.Redis.Set(t.Context(), harness.Updates, "in the way", 0).Err())
	b.Submit("agent", "jobId", "outage", "userId", "u1", "task", "hello")
	b.Wait("the step falls back to a regular activity", func(ctx context.Context) error {
		d, err := b.Temporal.DescribeWorkflowExecution(ctx, "job:agent:outage", "")
		if err != nil {
			return err
		}
		for _, a := range d.GetPendingActivities() {
			if a.GetActivityType().GetName() == "Publish" {
				return nil
			}
		}
		return errors.New("no pending Publish")
	})
	require.NoError(t, b.Redis.Rename(t.Context(), "aside", harness.Updates).Err())
	b.Update("outage", 1)
	b.Settled("agent")
	b.record(dir, "completed-after-outage", "job:agent:outage", "")
}

// first is the event that completes the first workflow task.
const first = 4

// reset starts a run anew from a completed workflow task and returns the new run.
func (b *bundle) reset(workflowID, runID string, task int64) string {
	b.T.Helper()
	response, err := b.Temporal.ResetWorkflowExecution(b.T.Context(), &workflowservice.ResetWorkflowExecutionRequest{
		Namespace:                 b.Options.Namespace,
		WorkflowExecution:         &commonpb.WorkflowExecution{WorkflowId: workflowID, RunId: runID},
		Reason:                    "test",
		WorkflowTaskFinishEventId: task,
		RequestId:                 b.T.Name() + runID + harness.Text("reset"),
	})
	require.NoError(b.T, err)
	return response.GetRunId()
}

// record waits until a run is closed and writes its history as JSON.
func (b *bundle) record(dir, name, workflowID, runID string) {
	b.T.Helper()
	_ = b.Temporal.GetWorkflow(b.T.Context(), workflowID, runID).Get(b.T.Context(), nil) // how it ended does not matter here
	events := b.Temporal.GetWorkflowHistory(b.T.Context(), workflowID, runID, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	history := &historypb.History{}
	for events.HasNext() {
		event, err := events.Next()
		require.NoError(b.T, err)
		history.Events = append(history.Events, event)
	}
	data, err := temporalproto.CustomJSONMarshalOptions{Indent: " "}.Marshal(history)
	require.NoError(b.T, err)
	// Workers sign with the name of their machine, which is nobody's business.
	host, err := os.Hostname()
	require.NoError(b.T, err)
	data = bytes.ReplaceAll(data, []byte("@"+host), []byte("@host"))
	require.NoError(b.T, os.WriteFile(filepath.Join(dir, name+".json"), append(data, '\n'), 0o644))
}
