package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/nodpt/executor/internal/job"
)

// auditing is a bridge whose parts a test moves by hand: its reconciler leads.
type auditing struct {
	*world
	b   *Bridge
	r   *reconciler
	log safeBuffer
}

func newAuditing(t *testing.T) *auditing {
	t.Helper()
	a := &auditing{world: newWorld(t)}
	require.NoError(t, a.client.EnsureGroup(t.Context(), "jobs:agent"))
	a.lead("b1")
	return a
}

// lead starts another bridge, which leads from now on.
func (a *auditing) lead(consumer string) {
	a.t.Helper()
	a.b = a.bridge(consumer, func(b *Bridge) {
		b.timing.audit = patience
		b.timing.suspectIdle = time.Hour // or it takes what the ghost has, on a busy machine
		b.log = slog.New(slog.NewTextHandler(&a.log, nil))
		b.lanes = []*lane{newLane(b, job.Agent)}
		b.leader.Store(true)
	})
	a.r = newReconciler(a.b)
}

func (a *auditing) survey() { a.r.survey(a.t.Context()) }

// pass lets the lane look at what it was handed.
func (a *auditing) pass() {
	ctx := context.WithoutCancel(a.t.Context())
	a.b.lanes[0].pass(ctx, ctx)
}

// ghost reads everything that is new as another consumer, which counts as alive.
func (a *auditing) ghost() {
	a.t.Helper()
	a.redis("SET", "{executor}:alive:executor-group:ghost", "x")
	a.redis("XREADGROUP", "GROUP", "executor-group", "ghost", "COUNT", "1000", "STREAMS", "jobs:agent", ">")
}

func (a *auditing) deleteGhost() {
	a.t.Helper()
	a.redis("XGROUP", "DELCONSUMER", "jobs:agent", "executor-group", "ghost")
}

func (a *auditing) restored() int { return a.metrics.get("unaccounted agent restored") }
func (a *auditing) reported() int { return a.metrics.get("unaccounted agent reported") }

// Fault F37: nobody else knows of such an entry.
func TestEntriesSeenPendingAreTakenBack(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(a *auditing, ids []string){
		"their consumer was deleted": func(a *auditing, _ []string) { a.deleteGhost() },
		"somebody acknowledged them": func(a *auditing, ids []string) {
			a.redis(append([]string{"XACK", "jobs:agent", "executor-group"}, ids...)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuditing(t)
			const jobs = 2*batchSize + 1 // several pages
			var ids []string
			for i := range jobs {
				ids = append(ids, a.agentJob("j"+strconv.Itoa(i)))
			}
			bad := a.add(job.Agent, "jobId", "bad")
			a.ghost()
			a.survey()
			lose(a, append(ids, bad))
			a.survey()
			a.pass()
			a.pass()
			a.pass()
			for i := range jobs {
				a.finish(a.started(job.Agent, "j"+strconv.Itoa(i)), good("yes"))
			}
			a.settled(job.Agent)
			require.Len(t, a.updates(), jobs)
			require.Len(t, a.dead(job.Agent), 1)
			_, rejected := a.row(job.RejectedID(bad))
			require.True(t, rejected)
			require.Equal(t, jobs+1, a.restored())
			a.survey()
			a.survey()
			require.Equal(t, jobs+1, a.restored(), "once")
			require.Zero(t, a.reported())
			require.Contains(t, a.log.String(), "they are pending again")
		})
	}
}

// The workflow service is asked no faster for that.
func TestEntriesAreTakenBackAFewAtATime(t *testing.T) {
	t.Parallel()
	a := newAuditing(t)
	a.b.lookups = rate.NewLimiter(rate.Every(time.Hour), 5)
	const jobs = batchSize + 1
	for i := range jobs {
		a.agentJob("j" + strconv.Itoa(i))
	}
	a.ghost()
	a.survey()
	a.deleteGhost()
	a.survey()
	require.Equal(t, 5, a.restored())
	a.survey()
	require.Equal(t, 5, a.restored())
	a.b.lookups = rate.NewLimiter(rate.Inf, 0)
	a.survey()
	require.Equal(t, jobs, a.restored())
	require.Zero(t, a.reported())
	require.Zero(t, a.metrics.get("error  reconcile"))
}

// What a proper acknowledgement leaves is a row, or a run that will write one.
func TestEntriesThatAreAccountedForStayAcknowledged(t *testing.T) {
	t.Parallel()
	for name, settle := range map[string]func(a *auditing, id string, run fakeRun){
		"a row": func(a *auditing, _ string, run fakeRun) { a.finish(run, good("yes")) },
		"an open run": func(a *auditing, id string, _ fakeRun) {
			a.redis("XACK", "jobs:agent", "executor-group", id)
		},
		"an open run that is not listed yet": func(a *auditing, id string, _ fakeRun) {
			a.temporal.blind = true
			a.redis("XACK", "jobs:agent", "executor-group", id)
		},
		"a run whose row somebody has removed": func(a *auditing, id string, run fakeRun) {
			a.redis("XACK", "jobs:agent", "executor-group", id)
			a.temporal.close(run.WorkflowID, RunEnded, job.Completed)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuditing(t)
			id := a.agentJob("j1")
			a.pass()
			run := a.started(job.Agent, "j1")
			a.survey()
			settle(a, id, run)
			for range 3 {
				a.survey()
				a.pass()
			}
			require.Zero(t, a.pending(job.Agent))
			require.Zero(t, a.restored())
			require.Equal(t, []string{"j1"}, a.temporal.startedIDs())
		})
	}
}

// A duplicate was acknowledged because of a run, which is lost with its own entry.
func TestADuplicateSpeaksForAJobThatIsLost(t *testing.T) {
	t.Parallel()
	a := newAuditing(t)
	first := a.agentJob("j1")
	a.pass()
	run := a.started(job.Agent, "j1")
	second := a.agentJob("j1")
	a.ghost() // holds the second
	a.survey()
	a.redis("XACK", "jobs:agent", "executor-group", second)
	a.survey()
	require.Zero(t, a.restored(), "the run speaks for it")
	a.redis("XDEL", "jobs:agent", first)
	a.redis("XACK", "jobs:agent", "executor-group", first)
	a.temporal.lose("ns-1")
	a.survey()
	a.pass()
	again := a.started(job.Agent, "j1")
	require.NotEqual(t, run.RunID, again.RunID)
	require.Equal(t, second, again.EntryID)
	require.Equal(t, 1, a.restored())
}

// Nobody can tell an entry that was lost while no bridge ran from one that another
// program has done, or whose row was removed: running it again would be paid for.
func TestEntriesNeverSeenPendingAreReportedOnce(t *testing.T) {
	t.Parallel()
	a := newAuditing(t)
	const lost = batchSize + 3
	var ids []string
	for i := range lost {
		ids = append(ids, a.agentJob("j"+strconv.Itoa(i)))
	}
	a.ghost()
	a.deleteGhost()
	a.agentJob("ours")
	a.pass()
	a.finish(a.started(job.Agent, "ours"), good("yes"))
	for range 3 {
		a.survey()
		a.pass()
	}
	require.Equal(t, lost, a.reported())
	require.Contains(t, a.log.String(), fmt.Sprintf("count=%d entry_ids=\"%v\"\n", lost, ids[:maxNamed]))
	require.Equal(t, 1, strings.Count(a.log.String(), "count="))

	a.lead("b2")
	for range 3 {
		a.survey()
		a.pass()
	}
	require.Equal(t, lost, a.reported(), "the next leader goes on where this one was")
	require.Equal(t, []string{"ours"}, a.temporal.startedIDs())
	require.Zero(t, a.restored())
}

// What the last leader saw pending the next one has not seen.
func TestTheNextLeaderLooksAtWhatWasPending(t *testing.T) {
	t.Parallel()
	a := newAuditing(t)
	a.agentJob("j1")
	a.ghost()
	a.agentJob("ours")
	a.pass()
	a.finish(a.started(job.Agent, "ours"), good("yes"))
	a.survey()
	a.survey()
	require.Zero(t, a.reported())
	a.lead("b2")
	a.deleteGhost()
	a.survey()
	a.survey()
	require.Equal(t, 1, a.reported())
}

// A long stream that nobody has looked through must not keep the reconciler from
// its work.
func TestALongStreamIsLookedThroughInParts(t *testing.T) {
	t.Parallel()
	a := newAuditing(t)
	const part, lost = auditPages * batchSize, 2*auditPages*batchSize + 10
	a.redis("EVAL", "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], i .. '-1', 'jobId', 'j' .. i, 'task', 't') end",
		"1", "jobs:agent", strconv.Itoa(lost))
	a.redis("XGROUP", "SETID", "jobs:agent", "executor-group", "$")
	a.survey() // hears how far the group was read
	for _, want := range []int{part, 2 * part, lost, lost} {
		a.survey()
		require.Equal(t, want, a.reported())
	}
	require.Empty(t, a.temporal.startedIDs())
}

// What is delivered again after the group was lost is looked at again.
func TestTheAuditBeginsAnewWithTheGroup(t *testing.T) {
	t.Parallel()
	a := newAuditing(t)
	a.agentJob("j1")
	a.pass()
	a.finish(a.started(job.Agent, "j1"), good("yes"))
	a.survey()
	a.survey()
	a.redis("XGROUP", "DESTROY", "jobs:agent", "executor-group")
	a.survey()
	require.NoError(t, a.client.EnsureGroup(t.Context(), "jobs:agent"))
	a.survey()
	lost := a.agentJob("j2")
	a.ghost()
	a.deleteGhost()
	a.survey()
	a.survey()
	require.Equal(t, 1, a.reported())
	require.Contains(t, a.log.String(), "entry_ids=["+lost+"]")
}

// The whole of it, with everything running.
func TestADeletedConsumerCostsNoJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	watch := &refreshRecorder{Redis: w.open("b1"), seen: make(map[string]int)}
	w.run(w.bridge("b1", func(b *Bridge) { b.redis = watch }))
	id := w.agentJob("j1")
	run := w.started(job.Agent, "j1")
	w.eventually("the reconciler has seen it", func() bool { return watch.count("b1 "+id) >= 2 })
	w.redis("XGROUP", "DELCONSUMER", "jobs:agent", "executor-group", "b1")
	w.temporal.lose("ns-1") // the run goes, too
	w.eventually("another run", func() bool {
		again, ok := w.temporal.current(run.WorkflowID)
		return ok && again.RunID != run.RunID
	})
	w.finish(w.started(job.Agent, "j1"), good("yes"))
	w.settled(job.Agent)
	require.Len(t, w.updates(), 1)
}
