package bridge

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// Faults F33 and F38: Redis comes back without what it confirmed last. No call
// fails, and the bridge knows the entry as one whose run exists.
func TestWhatRedisForgotIsDoneAgainWhenItWasRestarted(t *testing.T) {
	t.Parallel()
	for name, rest := range map[string]func(w *world, run fakeRun){
		"the run has ended":    func(w *world, run fakeRun) { w.finish(run, bad()) },
		"the run is not known": func(w *world, run fakeRun) { w.finish(run, bad()); w.temporal.lose("ns-1") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			redis := &reborn{Redis: w.open("b1")}
			w.run(w.bridge("b1", withoutSurvey, func(b *Bridge) { b.redis = redis }))
			id := w.agentJob("j1")
			rest(w, w.started(job.Agent, "j1"))
			w.settled(job.Agent)

			w.redis("DEL", "signalr:updates", "jobs:agent:dead")
			for key := range strings.FieldsSeq(w.redis("KEYS", "*pub:*") + " " + w.redis("KEYS", "*seen:*")) {
				w.redis("DEL", key)
			}
			w.redis("XCLAIM", "jobs:agent", "executor-group", "b1", "0", id, "FORCE", "JUSTID")
			redis.lives.Add(1)

			w.settled(job.Agent)
			require.Len(t, w.updates(), 1)
			require.Len(t, w.dead(job.Agent), 1)
			require.Len(t, w.temporal.startedIDs(), 1)
			row, ok := w.row("j1")
			require.True(t, ok)
			require.Equal(t, w.lastID("jobs:agent:dead"), row.DeadID)
		})
	}
}

// The same after any failed call: the connection may have ended because Redis
// did.
func TestWhatRedisForgotIsDoneAgainAfterAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	redis := &reborn{Redis: w.open("b1")}
	w.run(w.bridge("b1", withoutSurvey, func(b *Bridge) { b.redis = redis }))
	id := w.agentJob("j1")
	w.finish(w.started(job.Agent, "j1"), good("yes"))
	w.settled(job.Agent)
	w.redis("XCLAIM", "jobs:agent", "executor-group", "b1", "0", id, "FORCE", "JUSTID")
	redis.cut.Store(true)
	w.settled(job.Agent)
	require.Len(t, w.updates(), 1)
}

// Comparing costs no calls of the workflow service where nothing was forgotten.
func TestRunningJobsAreLeftAloneWhenRedisWasRestarted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	redis := &reborn{Redis: w.open("b1")}
	b := w.bridge("b1", withoutSurvey, func(b *Bridge) { b.redis = redis })
	w.run(b)
	id := w.agentJob("j1")
	w.started(job.Agent, "j1")
	w.eventually("the run is known", func() bool { return b.lane(job.Agent).started.has(id) })
	calls := w.temporal.startCalls()
	deliveries := w.deliveries(id)
	redis.lives.Add(1)
	w.eventually("the entry is read again", func() bool { return w.deliveries(id) > deliveries })
	w.agentJob("j2")
	w.started(job.Agent, "j2")
	require.Equal(t, calls+1, w.temporal.startCalls())
}

// Fault F37.
func TestEntriesOfADeletedConsumerAreTakenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.temporal.set(func(f *fakeTemporal) { f.fault = func(StartRequest) error { return errors.New("away") } })
	b := w.bridge("b1", withoutSurvey)
	w.run(b)
	w.agentJob("j1")
	w.eventually("it cannot be started", func() bool { return w.temporal.startCalls() > 0 })
	require.Equal(t, "1", w.redis("XGROUP", "DELCONSUMER", "jobs:agent", "executor-group", "b1"))
	w.temporal.set(func(f *fakeTemporal) { f.fault = nil })
	w.finish(w.started(job.Agent, "j1"), good("yes"))
	w.settled(job.Agent)
	require.Len(t, w.updates(), 1)
	require.Zero(t, w.metrics.get("lost agent"))
}

// Fault F34.
func TestEntriesThatWaitAreCountedWhenTheirStreamIsDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.temporal.set(func(f *fakeTemporal) { f.fault = func(StartRequest) error { return errors.New("away") } })
	w.run(w.bridge("b1"))
	w.agentJob("j1")
	w.eventually("it waits", func() bool { return w.temporal.startCalls() > 1 })
	w.redis("DEL", "jobs:agent")
	w.eventually("it is counted", func() bool { return w.metrics.get("lost agent") == 1 })

	// With the group alone nothing is lost.
	w.agentJob("j2")
	calls := w.temporal.startCalls()
	w.eventually("the other waits", func() bool { return w.temporal.startCalls() > calls+1 })
	w.redis("XGROUP", "DESTROY", "jobs:agent", "executor-group")
	w.temporal.set(func(f *fakeTemporal) { f.fault = nil })
	w.finish(w.started(job.Agent, "j2"), good("yes"))
	w.settled(job.Agent)
	require.Equal(t, 1, w.metrics.get("lost agent"))
}

// withoutSurvey leaves it to the lanes to notice things.
func withoutSurvey(b *Bridge) {
	slow := b.timing
	slow.survey = time.Hour
	b.setTiming(slow)
}

func (w *world) deliveries(id string) int64 {
	w.t.Helper()
	list, err := w.client.PendingList(w.t.Context(), "jobs:agent", before(id), 1)
	require.NoError(w.t, err)
	require.NotEmpty(w.t, list)
	return list[0].Deliveries
}

func (w *world) lastID(stream string) string {
	w.t.Helper()
	id, err := w.client.LastID(w.t.Context(), stream)
	require.NoError(w.t, err)
	return id
}

// reborn is a Redis that says it was restarted, or cuts a connection, when told
// to.
type reborn struct {
	Redis
	lives atomic.Int64
	cut   atomic.Bool
}

func (r *reborn) ServerRun(context.Context) (string, error) {
	return string(rune('a' + r.lives.Load())), nil
}

func (r *reborn) ReadNew(ctx context.Context, key string, count int, block time.Duration) ([]job.Entry, error) {
	if key == "jobs:agent" && r.cut.Swap(false) {
		return nil, errors.New("cut")
	}
	return r.Redis.ReadNew(ctx, key, count, block)
}
