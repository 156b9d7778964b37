package bridge

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

func TestARunThatWasKilledIsFailed(t *testing.T) { // F27
	t.Parallel()
	for name, tc := range map[string]struct {
		state RunState
		code  string
	}{
		"terminated": {RunTerminated, "terminated"},
		"timed out":  {RunTimedOut, "timed_out"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.run(w.bridge("b1"))
			id := w.agentJob("j1")
			run := w.started(job.Agent, "j1")
			w.temporal.close(run.WorkflowID, tc.state, "")
			w.settled(job.Agent)
			row, ok := w.row("j1")
			require.True(t, ok)
			require.Equal(t, job.Failed, row.Status)
			require.Equal(t, tc.code, row.ErrorCode)
			require.Equal(t, run.RunID, row.RunID)
			require.Equal(t, job.EntryEffect("jobs:agent", id), row.Effect)
			updates, dead := w.updates(), w.dead(job.Agent)
			require.Len(t, updates, 1)
			require.Equal(t, "error", updates[0]["Type"])
			require.Contains(t, updates[0]["Payload"], tc.code)
			require.Len(t, dead, 1)
			require.Equal(t, tc.code, dead[0]["reason"])
			require.Equal(t, "do it", dead[0]["task"])
			require.NotEmpty(t, row.DeadID)
			require.Equal(t, 1, w.metrics.get("finished agent failed "+tc.code))

			// The same id sent again is a retry.
			w.agentJob("j1")
			w.finish(w.started(job.Agent, "j1"), good("ok"))
			w.settled(job.Agent)
			require.Len(t, w.updates(), 2)
		})
	}
}

func TestKilledRunsAreNoticedWithoutVisibility(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.temporal.blind = true // the listing shows nothing: every entry becomes suspect in time
	w.run(w.bridge("b1"))
	w.agentJob("killed")
	w.agentJob("open")
	w.temporal.close(w.started(job.Agent, "killed").WorkflowID, RunTerminated, "")
	open := w.started(job.Agent, "open")
	w.eventually("the killed one is settled", func() bool { return len(w.dead(job.Agent)) == 1 })
	w.settledButOne() // the open one is left alone
	w.finish(open, good("ok"))
	w.settled(job.Agent)
	require.Len(t, w.temporal.startedIDs(), 2)
}

// retryKilled fails a job, submits it again and terminates that run. It returns
// the row, which tells of the retry.
func (w *world) retryKilled(jobID string) job.Row {
	w.t.Helper()
	w.agentJob(jobID)
	w.finish(w.started(job.Agent, jobID), bad())
	w.settled(job.Agent)
	retry := w.agentJob(jobID)
	w.temporal.close(w.started(job.Agent, jobID).WorkflowID, RunTerminated, "")
	w.settled(job.Agent)
	row, _ := w.row(jobID)
	require.Equal(w.t, "terminated", row.ErrorCode)
	require.Equal(w.t, retry, row.EntryID)
	return row
}

func TestARetryThatWasKilledReplacesTheOldFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	w.retryKilled("j1")
	require.Len(t, w.updates(), 2)
	require.Len(t, w.dead(job.Agent), 2)
}

func TestAKilledRunWhoseEntryIsGoneIsFailedFromItsInput(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	id := w.agentJob("j1")
	run := w.started(job.Agent, "j1")
	w.redis("XACK", "jobs:agent", "executor-group", id)
	w.redis("XDEL", "jobs:agent", id)
	w.temporal.close(run.WorkflowID, RunTerminated, "")
	w.eventually("it is settled all the same", func() bool { return len(w.dead(job.Agent)) == 1 })
	row, ok := w.row("j1")
	require.True(t, ok)
	require.Equal(t, "terminated", row.ErrorCode)
	require.Len(t, w.updates(), 1)
	require.Equal(t, "do it", w.dead(job.Agent)[0]["task"])
}

// Fault F56: the listing of killed runs goes by the server's clock.
func TestKilledRunsAreFoundWhateverTheClockOfTheBridgeSays(t *testing.T) {
	t.Parallel()
	for name, skew := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.run(w.bridge("b1", func(b *Bridge) {
				b.now = func() time.Time { return time.Now().Add(skew) }
			}))
			for i, jobID := range []string{"j1", "j2"} {
				id := w.agentJob(jobID)
				run := w.started(job.Agent, jobID)
				w.redis("XACK", "jobs:agent", "executor-group", id)
				w.redis("XDEL", "jobs:agent", id)
				w.temporal.close(run.WorkflowID, RunTerminated, "")
				w.eventually("it is settled", func() bool { return len(w.dead(job.Agent)) == i+1 })
			}
		})
	}
}

func TestAKilledRunIsAcknowledgedInTheGroupOfItsEntry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.agentJob("j1")
	w.redis("XGROUP", "CREATE", "jobs:agent", "old-group", "0")
	w.redis("XGROUP", "CREATE", "jobs:agent", "executor-group", "$")
	w.redis("XREADGROUP", "GROUP", "old-group", "b0", "STREAMS", "jobs:agent", ">")
	_, err := w.temporal.Start(t.Context(), StartRequest{Input: workflows.Input{
		Job:    job.Job{Role: job.Agent, ID: "j1", Task: "do it"},
		Origin: job.Origin{Stream: "jobs:agent", EntryID: id, Group: "old-group", Updates: stream.Updates},
	}})
	require.NoError(t, err)
	w.temporal.close(job.WorkflowID(job.Agent, "j1"), RunTerminated, "")
	w.run(w.bridge("b1"))
	w.eventually("acknowledged", func() bool {
		return strings.HasPrefix(w.redis("XPENDING", "jobs:agent", "old-group"), "0")
	})
	require.Len(t, w.updates(), 1)
}

func TestTheClockOfTheBridgeDoesNotDecideWhichRunCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1", func(b *Bridge) {
		b.now = func() time.Time { return time.Now().Add(-time.Hour) }
	}))
	row := w.retryKilled("j1")
	run, _ := w.temporal.current(job.WorkflowID(job.Agent, "j1"))
	require.WithinDuration(t, run.StartedAt, row.StartedAt, time.Microsecond)
	require.WithinDuration(t, run.ClosedAt, row.FinishedAt, time.Microsecond)
	require.Len(t, w.updates(), 2)
}

// A copy that a person started has the input of the job and no memo.
func TestACopyThatIsKilledSpeaksForItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	w.agentJob("j1")
	first := w.started(job.Agent, "j1")
	w.finish(first, bad())
	w.settled(job.Agent)
	again := w.temporal.copy(first)
	w.persist(again, good("at last"))
	w.temporal.close(again.WorkflowID, RunTerminated, "")
	w.eventually("its answer is published", func() bool { return len(w.updates()) == 2 })
	row, _ := w.row("j1")
	require.Equal(t, job.RunEffect(again.RunID), row.Effect)
	require.Equal(t, "at last", w.updates()[1]["Payload"])
}

// It may be a copy of the entry's own run, and if it is lost nothing else would
// remember the entry.
func TestAnEntryWaitsForTheRunOfAPerson(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.run(w.bridge("b1"))
	w.agentJob("j1")
	run := w.started(job.Agent, "j1")
	stop()
	w.die("b1")
	w.temporal.close(run.WorkflowID, RunTerminated, "")
	again := w.temporal.copy(run)
	calls := w.temporal.startCalls()
	w.run(w.bridge("b2"))
	w.eventually("tried and tried again", func() bool { return w.temporal.startCalls() > calls+1 })
	w.settledButOne()
	require.Empty(t, w.updates())
	w.finish(again, good("ok"))
	w.settled(job.Agent)
	row, _ := w.row("j1")
	require.Equal(t, job.RunEffect(again.RunID), row.Effect)
	require.Len(t, w.updates(), 1)
}

// Each case stops the books of a killed run behind its row. Nobody else will
// finish them: its entry is not pending.
func TestABurialIsResumed(t *testing.T) {
	t.Parallel()

	t.Run("by the next survey", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		flaky := &publishRecorder{Redis: w.open("b1"), failures: 1}
		w.run(w.bridge("b1", func(b *Bridge) { b.redis = flaky }))
		id := w.agentJob("j1")
		run := w.started(job.Agent, "j1")
		w.redis("XACK", "jobs:agent", "executor-group", id)
		w.temporal.close(run.WorkflowID, RunTerminated, "")
		w.eventually("the dead letter", func() bool { return len(w.dead(job.Agent)) == 1 })
		require.Len(t, w.updates(), 1)
	})

	t.Run("by the next bridge", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		broken := &publishRecorder{Redis: w.open("b1"), failures: 1 << 30}
		stop := w.run(w.bridge("b1", func(b *Bridge) { b.redis = broken }))
		id := w.agentJob("j1")
		run := w.started(job.Agent, "j1")
		w.redis("XACK", "jobs:agent", "executor-group", id)
		w.temporal.close(run.WorkflowID, RunTerminated, "")
		w.eventually("the row", func() bool { _, ok := w.row("j1"); return ok })
		stop()
		require.Empty(t, w.updates())
		w.run(w.bridge("b2"))
		w.eventually("the dead letter", func() bool { return len(w.dead(job.Agent)) == 1 })
		require.Len(t, w.updates(), 1)
	})

	t.Run("before a newer entry is a retry", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		flaky := &publishRecorder{Redis: w.open("b1"), failures: 2}
		w.run(w.bridge("b1", func(b *Bridge) { b.redis, b.timing.survey = flaky, time.Hour }))
		id := w.agentJob("j1")
		first := w.started(job.Agent, "j1")
		w.redis("XACK", "jobs:agent", "executor-group", id)
		w.temporal.close(first.WorkflowID, RunTerminated, "")
		retry := w.agentJob("j1")
		w.finish(w.started(job.Agent, "j1"), good("ok"))
		w.settled(job.Agent)
		row, _ := w.row("j1")
		require.Equal(t, retry, row.EntryID)
		require.Len(t, w.dead(job.Agent), 1)
		updates := w.updates()
		require.Len(t, updates, 2)
		require.Contains(t, updates[0]["Payload"], "terminated")
		require.Equal(t, "ok", updates[1]["Payload"])
	})

	t.Run("of a reset that had its answer", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		w.agentJob("j1")
		first := w.started(job.Agent, "j1")
		w.finish(first, bad())
		w.settled(job.Agent)
		again := w.temporal.reset(first.WorkflowID)
		w.persist(again, good("at last"))
		w.temporal.close(again.WorkflowID, RunTerminated, "")
		w.eventually("its answer is published", func() bool { return len(w.updates()) == 2 })
		require.Equal(t, "at last", w.updates()[1]["Payload"])
		row, _ := w.row("j1")
		require.Equal(t, job.Completed, row.Status, "what it had achieved stays")
	})
}

func TestAKilledRunThatCannotBeSettledDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	odd := job.WorkflowID(job.Agent, "a")
	w.temporal.inputFault = func(run Run) error {
		if run.WorkflowID == odd {
			return errors.New("unavailable")
		}
		return nil
	}
	w.run(w.bridge("b1"))
	for _, id := range []string{"a", "b", "c"} { // in the order they are listed in
		entry := w.agentJob(id)
		run := w.started(job.Agent, id)
		w.redis("XACK", "jobs:agent", "executor-group", entry)
		w.temporal.close(run.WorkflowID, RunTerminated, "")
	}
	w.eventually("the others are settled", func() bool { return len(w.dead(job.Agent)) == 2 })
	w.temporal.set(func(f *fakeTemporal) { f.inputFault = nil })
	w.eventually("and in the end the first", func() bool { return len(w.dead(job.Agent)) == 3 })
	require.Len(t, w.updates(), 3)
}

func TestAResetIsNotAKilledRun(t *testing.T) { // F29, S23
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	w.agentJob("j1")
	first := w.started(job.Agent, "j1")
	again := w.temporal.reset(first.WorkflowID) // terminates the first
	w.agentJob("probe")                         // marks that the reconciler has seen it
	w.temporal.close(w.started(job.Agent, "probe").WorkflowID, RunTerminated, "")
	w.eventually("a survey has passed", func() bool { return w.metrics.get("finished agent failed terminated") == 1 })
	_, ok := w.row("j1")
	require.False(t, ok)

	w.finish(again, good("ok")) // it is its outcome that counts
	w.settled(job.Agent)
	row, _ := w.row("j1")
	require.Equal(t, job.Completed, row.Status)
	require.Equal(t, job.RunEffect(again.RunID), row.Effect)
}

func TestAResetThatIsKilledSpeaksForItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	w.agentJob("j1")
	first := w.started(job.Agent, "j1")
	again := w.temporal.reset(first.WorkflowID)
	w.temporal.close(again.WorkflowID, RunTerminated, "")
	w.settled(job.Agent)
	row, ok := w.row("j1")
	require.True(t, ok)
	require.Equal(t, job.RunEffect(again.RunID), row.Effect)
	require.Len(t, w.updates(), 1)
}

func TestTemporalLosesItsState(t *testing.T) { // F24
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	w.run(w.bridge("b2"))
	const jobs = 40
	for i := range jobs {
		w.agentJob("j" + strconv.Itoa(i))
	}
	for i := range jobs {
		run := w.started(job.Agent, "j"+strconv.Itoa(i))
		switch {
		case i < 10: // all done
			w.finish(run, good("ok"))
		case i < 20: // the row is written, the rest is not
			w.persist(run, good("ok"))
		}
	}
	w.temporal.lose("ns-2")
	for i := 20; i < jobs; i++ {
		w.finish(w.started(job.Agent, "j"+strconv.Itoa(i)), good("ok"))
	}
	w.settled(job.Agent)
	require.Len(t, w.updates(), jobs)
	require.Len(t, w.temporal.startedIDs(), jobs+20, "jobs with a row are not run again")
}

func TestABridgeWithoutItsNamespaceIsNotReady(t *testing.T) { // F26
	t.Parallel()
	w := newWorld(t)
	w.temporal.lose("")
	b := w.bridge("b1")
	w.run(b)
	w.eventually("it says what is missing", func() bool { return errors.Is(b.Ready(t.Context()), ErrNoNamespace) })
	w.temporal.lose("ns-1")
	w.eventually("the namespace was created", func() bool { return b.Ready(t.Context()) == nil })
}

func TestARunThatIsUnknownIsStartedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	w.agentJob("j1")
	w.started(job.Agent, "j1")
	w.temporal.lose("ns-1") // the same namespace id: only the pending entry tells
	w.finish(w.started(job.Agent, "j1"), good("ok"))
	w.settled(job.Agent)
	require.Equal(t, []string{"j1", "j1"}, w.temporal.startedIDs())
}

func TestAnEntryTriedAgainDoesNotHideALostRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.temporal.fault = func(r StartRequest) error {
		if r.Input.Job.ID == "odd" {
			return errors.New("internal error")
		}
		return nil
	}
	w.run(w.bridge("b1"))
	w.agentJob("odd") // tried again every few milliseconds
	w.agentJob("j1")
	w.started(job.Agent, "j1")
	w.temporal.lose("ns-1") // only how long its entry is idle tells
	w.finish(w.started(job.Agent, "j1"), good("ok"))
	w.settledButOne()
	w.temporal.set(func(f *fakeTemporal) { f.fault = nil })
	w.finish(w.started(job.Agent, "odd"), good("ok"))
	w.settled(job.Agent)
}

func TestAClosedRunWithoutARow(t *testing.T) {
	t.Parallel()

	t.Run("its own entry does the job again", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		id := w.agentJob("j1")
		first := w.started(job.Agent, "j1")
		w.temporal.close(first.WorkflowID, RunEnded, job.Completed) // as if the store had lost the row
		second := w.started(job.Agent, "j1")
		require.Equal(t, repeatID("jobs:agent", id, first.RunID), second.requestID)
		w.finish(second, good("ok"))
		w.settled(job.Agent)
		require.Len(t, w.updates(), 1)
	})

	t.Run("another entry does the job again", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		first := w.agentJob("j1")
		run := w.started(job.Agent, "j1")
		w.redis("XACK", "jobs:agent", "executor-group", first)
		w.temporal.close(run.WorkflowID, RunEnded, job.Completed)
		second := w.agentJob("j1")
		w.eventually("a run for the second", func() bool {
			run, _ := w.temporal.current(run.WorkflowID)
			return run.EntryID == second
		})
	})

	t.Run("a killed one is failed first, then the new entry is a retry", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1", func(b *Bridge) { b.timing.survey = time.Hour })) // the reconciler is of no help
		first := w.agentJob("j1")
		run := w.started(job.Agent, "j1")
		w.redis("XACK", "jobs:agent", "executor-group", first)
		w.temporal.close(run.WorkflowID, RunTerminated, "")
		second := w.agentJob("j1")
		w.eventually("a run for the second", func() bool {
			run, _ := w.temporal.current(run.WorkflowID)
			return run.EntryID == second
		})
		row, ok := w.row("j1")
		require.True(t, ok)
		require.Equal(t, first, row.EntryID)
		require.Len(t, w.dead(job.Agent), 1)
	})
}

func TestAKilledRunOfWhichNothingIsKnownIsNotInTheWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.temporal.unreadable = true
	w.run(w.bridge("b1"))
	first := w.agentJob("j1")
	run := w.started(job.Agent, "j1")
	w.redis("XACK", "jobs:agent", "executor-group", first)
	w.temporal.close(run.WorkflowID, RunTerminated, "")
	second := w.agentJob("j1")
	w.eventually("a run for the second", func() bool {
		run, _ := w.temporal.current(run.WorkflowID)
		return run.EntryID == second
	})
	_, ok := w.row("j1")
	require.False(t, ok)
}

func TestALostAcknowledgementIsRepeated(t *testing.T) { // F38
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	w.agentJob("j1")
	run := w.started(job.Agent, "j1")
	w.publish(run, w.persist(run, good("ok")))
	w.temporal.close(run.WorkflowID, RunEnded, job.Completed) // and no XACK
	w.settled(job.Agent)
	require.Len(t, w.updates(), 1)
	require.Len(t, w.temporal.startedIDs(), 1)
}

func TestEntriesOfOpenRunsAreRefreshed(t *testing.T) { // S08
	t.Parallel()
	w := newWorld(t)
	watch := &refreshRecorder{Redis: w.open("b1"), seen: make(map[string]int)}
	w.run(w.bridge("b1", func(b *Bridge) { b.redis = watch }))
	id := w.agentJob("j1")
	w.started(job.Agent, "j1")
	w.eventually("refreshed for its owner", func() bool { return watch.count("b1 "+id) >= 3 })
	list, err := w.client.PendingList(t.Context(), "jobs:agent", "", 10)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, "b1", list[0].Consumer)
	require.EqualValues(t, 1, list[0].Deliveries, "refreshing is no delivery")
	require.Equal(t, 1, w.temporal.startCalls(), "an open run needs no look")
}

func TestOneBridgeReconciles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var bridges []*Bridge
	var stops []func()
	for i := range 3 {
		b := w.bridge("b" + strconv.Itoa(i))
		bridges = append(bridges, b)
		stops = append(stops, w.run(b))
	}
	leaders := func() (n, which int) {
		for i, b := range bridges {
			if b.leader.Load() {
				n, which = n+1, i
			}
		}
		return n, which
	}
	w.eventually("a leader", func() bool { n, _ := leaders(); return n == 1 })
	_, first := leaders()
	stops[first]()
	w.eventually("another leader, at once", func() bool { n, which := leaders(); return n == 1 && which != first })
}

func TestKilledRunsAreLookedAtInSmallNumbers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1", func(b *Bridge) {
		b.timing.lookups = 20
		b.setTiming(b.timing)
	}))
	const jobs = 60
	for i := range jobs {
		w.agentJob("j" + strconv.Itoa(i))
	}
	for i := range jobs {
		w.temporal.close(w.started(job.Agent, "j"+strconv.Itoa(i)).WorkflowID, RunTerminated, "")
	}
	w.agentJob("later")
	w.finish(w.started(job.Agent, "later"), good("ok")) // intake goes on meanwhile
	w.settled(job.Agent)
	require.Len(t, w.dead(job.Agent), jobs)
	require.Len(t, w.updates(), jobs+1)
}

// refreshRecorder counts refreshed entries by consumer and id.
type refreshRecorder struct {
	Redis
	mu   sync.Mutex
	seen map[string]int
}

func (r *refreshRecorder) Refresh(ctx context.Context, key, consumer string, ids ...string) error {
	r.mu.Lock()
	for _, id := range ids {
		r.seen[consumer+" "+id]++
	}
	r.mu.Unlock()
	return r.Redis.Refresh(ctx, key, consumer, ids...)
}

func (r *refreshRecorder) count(key string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[key]
}
