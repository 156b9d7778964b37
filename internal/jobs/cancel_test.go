package jobs

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"

	"github.com/nodpt/executor/internal/job"
)

func TestCancel(t *testing.T) {
	t.Parallel()
	w := func() *world {
		done := started(t, agentJob("done"), "r-done", doneStatus)
		return &world{
			runs:    []*fakeRun{started(t, agentJob("open"), "r-open", openStatus), done},
			rows:    []job.Row{done.row(t, job.Completed, "")},
			backlog: map[string][]job.Entry{"jobs:agent": {entry(job.Agent, "1-1", "jobId", "waits", "task", "x")}},
		}
	}
	find := func(t *testing.T, v *View, ids ...string) []Found {
		t.Helper()
		var all []Found
		for _, id := range ids {
			f, err := v.Find(t.Context(), id, nil)
			require.NoError(t, err)
			all = append(all, f)
		}
		return all
	}
	const entryWaits = "entry 1-1 of jobs:agent was not started yet; cancel the job when it was"
	open := Cancellation{Role: job.Agent, JobID: "open", Result: Requested, Status: Running, WorkflowID: "job:agent:open", RunID: "r-open"}
	done := Cancellation{
		Role: job.Agent, JobID: "done", Result: AlreadyEnded, Status: Completed, Message: "it is completed",
		WorkflowID: "job:agent:done", RunID: "r-done",
	}
	waits := Cancellation{Role: job.Agent, JobID: "waits", Result: NotStarted, Status: Queued, Message: entryWaits, WorkflowID: "job:agent:waits"}

	t.Run("by ids", func(t *testing.T) {
		t.Parallel()
		world := w()
		v := newView(t, world)
		require.Equal(t, []Cancellation{open, done, waits}, v.CancelAll(t.Context(), find(t, v, "open", "done", "waits"), false))
		require.Equal(t, []string{"job:agent:open r-open"}, world.canceled)
		f := find(t, v, "open")[0]
		require.Equal(t, "canceling", f.State())
	})
	t.Run("not really", func(t *testing.T) {
		t.Parallel()
		world := w()
		v := newView(t, world)
		dry := open
		dry.Result = WouldCancel
		require.Equal(t, []Cancellation{dry, done, waits}, v.CancelAll(t.Context(), find(t, v, "open", "done", "waits"), true))
		require.Empty(t, world.canceled)
	})
	t.Run("too late", func(t *testing.T) {
		t.Parallel()
		world := w()
		v := newView(t, world)
		f := find(t, v, "open")
		world.runs[0].info.Status = failedStatus
		world.rows = append(world.rows, world.runs[0].row(t, job.Failed, "llm_timeout"))
		late := open
		late.Result, late.Status, late.Code, late.Message = AlreadyEnded, Failed, "llm_timeout", "it ended a moment ago"
		require.Equal(t, []Cancellation{late}, v.CancelAll(t.Context(), f, false))
	})
	t.Run("in vain", func(t *testing.T) {
		t.Parallel()
		world := w()
		v := newView(t, world)
		f := find(t, v, "open")
		world.failTemporal = serviceerror.NewUnavailable("away")
		refused := open
		refused.Result, refused.Message = NotCanceled, "away"
		require.Equal(t, []Cancellation{refused}, v.CancelAll(t.Context(), f, false))
	})
	t.Run("what was listed", func(t *testing.T) {
		t.Parallel()
		world := w()
		v := newView(t, world)
		var listed []Job
		_, err := v.Open(t.Context(), Query{}, collect(&listed))
		require.NoError(t, err)
		listed = append(listed, Job{Role: job.Agent, JobID: "gone", WorkflowID: "job:agent:gone"})
		found, err := v.Seen(t.Context(), listed)
		require.NoError(t, err)
		require.Equal(t, []Cancellation{open}, v.CancelAll(t.Context(), found, false))

		world.failTemporal = serviceerror.NewUnavailable("away")
		_, err = v.Seen(t.Context(), listed)
		require.Error(t, err)
	})
}
