package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

func TestFollow(t *testing.T) {
	t.Parallel()
	r := started(t, agentJob("j1"), "r1", openStatus)
	w := &world{runs: []*fakeRun{r}}
	v := newView(t, w)
	f, err := v.Find(t.Context(), "j1", []job.Role{job.Agent})
	require.NoError(t, err)
	activity := &workflowpb.PendingActivityInfo{
		ActivityType: &commonpb.ActivityType{Name: "RunAgent"}, Attempt: 1, State: enumspb.PENDING_ACTIVITY_STATE_STARTED,
	}
	looks := 0
	w.step = func(w *world) { // with each look the job is further
		switch looks++; looks {
		case 1:
			r.pending = activity
		case 2, 3: // nothing new
		case 4:
			w.failTemporal = serviceerror.NewUnavailable("away")
		case 5:
			w.failTemporal = nil
			activity.Attempt, activity.LastFailure = 2, failure("llm_timeout", "slow")
			activity.NextAttemptScheduleTime = stamp(70)
		case 6:
			activity.NextAttemptScheduleTime = nil // it begins: no other state
		case 7:
			r.pending = nil
			r.info.Status = doneStatus
			w.rows = []job.Row{r.row(t, job.Completed, "")}
		}
	}
	var seen []string
	ended, err := v.Follow(t.Context(), []Found{f}, func(f Found) error {
		seen = append(seen, f.State()+" "+f.Code)
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, []string{"running ", "running ", "retrying llm_timeout", "completed "}, seen, "the second is another attempt than none")
	require.Len(t, ended, 1)
	require.True(t, ended[0].Ended())
	require.Equal(t, 7, looks, "an ended job is not looked at again")
}

func TestFollowEnds(t *testing.T) {
	t.Parallel()
	found := func(t *testing.T, v *View, id string) Found {
		t.Helper()
		f, err := v.Find(t.Context(), id, nil)
		require.NoError(t, err)
		return f
	}
	quiet := func(Found) error { return nil }
	t.Run("at once, with jobs that have ended", func(t *testing.T) {
		t.Parallel()
		v := newView(t, healed(t))
		ended, err := v.Follow(t.Context(), []Found{found(t, v, "j1")}, quiet)
		require.NoError(t, err)
		require.Equal(t, Completed, ended[0].Status)
	})
	t.Run("with the context", func(t *testing.T) {
		t.Parallel()
		w := &world{runs: []*fakeRun{started(t, agentJob("j1"), "r1", openStatus)}}
		v := newView(t, w)
		f := found(t, v, "j1")
		ctx, cancel := context.WithCancel(t.Context())
		looks := 0
		w.step = func(*world) {
			if looks++; looks == 3 {
				cancel()
			}
		}
		open, err := v.Follow(ctx, []Found{f}, quiet)
		require.ErrorIs(t, err, context.Canceled)
		require.Len(t, open, 1)
		require.False(t, open[0].Ended())
	})
	t.Run("with a server that stays away", func(t *testing.T) {
		t.Parallel()
		w := &world{runs: []*fakeRun{started(t, agentJob("j1"), "r1", openStatus)}}
		v := newView(t, w)
		f := found(t, v, "j1")
		w.failTemporal = serviceerror.NewUnavailable("away")
		clock := at(0)
		v.now = func() time.Time { clock = clock.Add(patience / 3); return clock }
		_, err := v.Follow(t.Context(), []Found{f}, quiet)
		require.ErrorContains(t, err, "away")
	})
	t.Run("with a reader that has enough", func(t *testing.T) {
		t.Parallel()
		v := newView(t, healed(t))
		full := errors.New("full")
		_, err := v.Follow(t.Context(), []Found{found(t, v, "j1")}, func(Found) error { return full })
		require.ErrorIs(t, err, full)
	})
	t.Run("not while an entry waits", func(t *testing.T) {
		t.Parallel()
		w := &world{backlog: map[string][]job.Entry{"jobs:agent": {entry(job.Agent, "1-1", "jobId", "j1", "task", "x")}}}
		v := newView(t, w)
		f := found(t, v, "j1")
		require.Equal(t, StepEntry, f.Step)
		looks := 0
		w.step = func(w *world) {
			if looks++; looks == 3 {
				r := started(t, agentJob("j1"), "r1", doneStatus)
				w.runs, w.rows = []*fakeRun{r}, []job.Row{r.row(t, job.Canceled, "canceled")}
			}
		}
		ended, err := v.Follow(t.Context(), []Found{f}, quiet)
		require.NoError(t, err)
		require.Equal(t, Canceled, ended[0].Status)
	})
	t.Run("with a job that vanishes", func(t *testing.T) {
		t.Parallel()
		w := &world{runs: []*fakeRun{started(t, agentJob("j1"), "r1", openStatus)}}
		v := newView(t, w)
		f := found(t, v, "j1")
		w.runs = nil
		clock := at(0)
		v.now = func() time.Time { clock = clock.Add(patience); return clock }
		_, err := v.Follow(t.Context(), []Found{f}, quiet)
		require.ErrorIs(t, err, ErrNotFound)
	})
}

// update is an entry of signalr:updates as it is published.
func update(id, kind, payload, effect string, j job.Job) job.Entry {
	return job.Entry{Stream: stream.Updates, ID: id, Fields: stream.Fields(stream.Update{
		Effect: effect, Type: kind, Payload: payload, Job: j, At: at(41),
	})}
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	j := agentJob("j1")
	chat := job.Job{Role: job.Chat, ID: "c1", UserID: "u2"}
	r := started(t, j, "r1", doneStatus)
	row := r.row(t, job.Completed, "")
	failed := started(t, agentJob("j2"), "r2", failedStatus)
	failedRow := failed.row(t, job.Failed, "llm_timeout")
	w := &world{rows: []job.Row{row, failedRow}, updates: []job.Entry{
		update("1-1", stream.TypeResult, canary, row.Effect, j),
		update("1-2", "delta", canary, "x", j),
		{ID: "1-3", Fields: []job.Field{{Name: "Type", Value: "result"}, {Name: "Payload", Value: canary}}}, // somebody else's
		update("1-4", stream.TypeError, stream.ErrorPayload("llm_timeout", canary), failedRow.Effect, agentJob("j2")),
		update("1-5", stream.TypeError, stream.ErrorPayload("llm_unreachable", canary), "run:earlier", agentJob("j2")),
		update("1-6", stream.TypeError, stream.ErrorPayload("canceled", canary), "x1", chat),
		update("1-7", stream.TypeError, stream.ErrorPayload("task_missing", canary), "x2", chat),
		update("1-8", stream.TypeError, "no JSON "+canary, "x3", chat),
		update("1-9", stream.TypeResult, canary, job.AnswerEffect("jobs:agent", "8-8"), j),
	}}
	collect := func(t *testing.T, w *world, roles ...job.Role) []Outcome {
		t.Helper()
		var all []Outcome
		v := newView(t, w)
		clock := at(0)
		v.now = func() time.Time { clock = clock.Add(patience / 2); return clock }
		err := v.Outcomes(t.Context(), roles, func(o Outcome) error {
			require.Equal(t, at(41), o.At)
			o.At = time.Time{}
			all = append(all, o)
			return nil
		})
		require.ErrorIs(t, err, errNoMore)
		text, err := json.Marshal(all)
		require.NoError(t, err)
		require.NotContains(t, string(text), "CANARY")
		return all
	}
	answered := Outcome{
		Role: job.Agent, JobID: "j1", Status: Completed, Model: "m", PromptTokens: 3, CompletionTokens: 4, TookMS: 30_000,
		UserID: "u1", ProjectID: "p1", MessageID: stream.MessageID(row.Effect), UpdateID: "1-1",
	}
	again := answered
	again.TookMS, again.Repeated, again.UpdateID, again.MessageID = 0, true, "1-9", stream.MessageID("answer:jobs:agent/8-8")
	agents := []Outcome{
		answered,
		{
			Role: job.Agent, JobID: "j2", Status: Failed, Code: "llm_timeout", Model: "m", PromptTokens: 3, CompletionTokens: 4, TookMS: 30_000,
			UserID: "u1", ProjectID: "p1", MessageID: stream.MessageID(failedRow.Effect), UpdateID: "1-4",
		},
		{
			Role: job.Agent, JobID: "j2", Status: Failed, Code: "llm_unreachable",
			UserID: "u1", ProjectID: "p1", MessageID: stream.MessageID("run:earlier"), UpdateID: "1-5",
		},
		again,
	}
	chats := []Outcome{
		{Role: job.Chat, JobID: "c1", Status: Canceled, Code: "canceled", UserID: "u2", MessageID: stream.MessageID("x1"), UpdateID: "1-6"},
		{Role: job.Chat, JobID: "c1", Status: Rejected, Code: "task_missing", UserID: "u2", MessageID: stream.MessageID("x2"), UpdateID: "1-7"},
		{Role: job.Chat, JobID: "c1", Status: Failed, UserID: "u2", MessageID: stream.MessageID("x3"), UpdateID: "1-8"},
	}
	require.Equal(t, agents, collect(t, w, job.Agent))
	require.Equal(t, chats, collect(t, w, job.Chat))
	all := collect(t, w)
	require.Len(t, all, len(agents)+len(chats))
	require.Equal(t, 30*time.Second, all[0].Took())

	w.failRows = errors.New("the store is away")
	require.Len(t, collect(t, w), len(all), "without rows they are shorter")

	w.failRedis = errors.New("Redis is away")
	require.ErrorIs(t, newView(t, w).Outcomes(t.Context(), nil, nil), w.failRedis)
}
