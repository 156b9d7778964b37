package bridge

import (
	"bytes"
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// slowRedis answers questions about single entries late, as a busy server does.
type slowRedis struct {
	*stream.Client
	delay time.Duration
	asked func() // called before the first delay
}

func (r slowRedis) PendingList(ctx context.Context, key, after string, count int) ([]stream.PendingEntry, error) {
	if count == 1 {
		r.asked()
		select {
		case <-time.After(r.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return r.Client.PendingList(ctx, key, after, count)
}

// Many entries to be looked at again take longer than one call may, all together.
// New jobs start nevertheless, and the others get their turn.
func TestManyLooksAtASlowRedisHoldUpNoNewJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const suspects = 20
	asked := make(chan struct{})
	b := w.bridge("b1", func(b *Bridge) {
		timing := b.timing
		timing.call = time.Second
		b.setTiming(timing)
		b.redis = slowRedis{Client: w.open("b1"), delay: timing.call / 10, asked: sync.OnceFunc(func() { close(asked) })}
	})
	var ids []string
	for i := range suspects {
		ids = append(ids, w.agentJob("s"+strconv.Itoa(i)))
	}
	w.run(b)
	for i := range suspects {
		w.started(job.Agent, "s"+strconv.Itoa(i))
	}
	b.lane(job.Agent).suspect(ids...)
	<-asked // no read is under way that could bring the new job
	w.agentJob("new")
	w.started(job.Agent, "new")
	for i := range suspects {
		w.finish(w.started(job.Agent, "s"+strconv.Itoa(i)), good("ok"))
	}
	w.finish(w.started(job.Agent, "new"), good("ok"))
	w.settled(job.Agent)
}

// A drain that cannot read rows is trouble until it can, also where no entry waits.
func TestADrainWithoutRowsIsNotReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log lockedBuffer
	b := w.bridge("b1", func(b *Bridge) { b.log = slog.New(slog.NewTextHandler(&log, nil)) })
	l := newLane(b, job.Agent)
	require.NoError(t, b.redis.EnsureGroup(t.Context(), l.stream))
	w.agentJob("j1")
	l.pass(t.Context(), t.Context())
	run := w.started(job.Agent, "j1")

	w.rows.set(true)
	l.compare.Store(true)
	for range 20 {
		l.pass(t.Context(), t.Context())
		require.Error(t, l.troubles.current())
	}
	w.agentJob("j2")
	l.pass(t.Context(), t.Context())
	stats, err := w.client.Stats(t.Context(), l.stream)
	require.NoError(t, err)
	require.EqualValues(t, 1, stats.Lag, "nothing is read that could not be decided on")

	w.rows.set(false)
	w.finish(run, good("ok"))
	w.eventually("it goes on", func() bool {
		l.pass(t.Context(), t.Context())
		return l.troubles.current() == nil && w.temporal.startCalls() == 2
	})
	require.Equal(t, 1, strings.Count(log.String(), "intake has to wait"))
	require.Equal(t, 1, strings.Count(log.String(), "trouble is over"))
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
