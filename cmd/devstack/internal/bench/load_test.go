package bench

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
	"github.com/nodpt/executor/cmd/devstack/internal/leak"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/redisd"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m)) }

// startRedis returns a world that has a Redis and nothing else.
func startRedis(t *testing.T) *world {
	t.Helper()
	w := &world{ports: new(proc.Ports), dir: t.TempDir(), parts: map[string]int{}}
	port, err := w.ports.Free(t.Context())
	require.NoError(t, err)
	server, err := redisd.Start(t.Context(), redisd.Config{Port: port, LogFile: filepath.Join(w.dir, "redis.log")})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop(context.WithoutCancel(t.Context()))) })
	require.False(t, server.Substitute(), "install redis-server for the tests")
	w.redis = redis.NewClient(&redis.Options{Addr: server.Address(), DisableIdentity: true, MaxRetries: -1})
	w.redis.AddHook(&w.trips)
	t.Cleanup(func() { _ = w.redis.Close() })
	return w
}

const (
	testJobs    = "test:jobs"
	testUpdates = "test:updates"
)

// answer plays a design until the test ends: each entry gets an update of a type,
// or none where the type is empty.
func answer(t *testing.T, w *world, kind func(n int) string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		n, last := 0, "0-0"
		for ctx.Err() == nil {
			streams, err := w.redis.XRead(ctx, &redis.XReadArgs{Streams: []string{testJobs, last}, Block: 50 * time.Millisecond}).Result()
			if err != nil {
				continue // nothing yet, or the end of the test
			}
			for _, m := range streams[0].Messages {
				n, last = n+1, m.ID
				if kind(n) == "" {
					continue
				}
				update := []any{"Type", kind(n), "JobId", m.Values["jobId"]}
				if err := w.redis.XAdd(ctx, &redis.XAddArgs{Stream: testUpdates, Values: update}).Err(); err != nil && ctx.Err() == nil {
					ended <- err
					return
				}
			}
		}
		ended <- nil
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
	})
}

func result(int) string { return "result" }

func testLoop(w *world, outstanding int) *loop {
	return &loop{w: w, updates: testUpdates, lanes: []lane{{stream: testJobs, outstanding: outstanding}}}
}

func TestLoopCountsJobs(t *testing.T) {
	t.Parallel()
	w := startRedis(t)
	// One of an earlier load, and one that was never asked for: neither counts.
	for _, id := range []string{"earlier", "foreign"} {
		require.NoError(t, w.redis.XAdd(t.Context(), &redis.XAddArgs{Stream: testUpdates, Values: []any{"Type", "result", "JobId", id}}).Err())
	}
	answer(t, w, result)

	got, err := testLoop(w, 4).run(t.Context(), window{warmup: 50 * time.Millisecond, measure: 500 * time.Millisecond})
	require.NoError(t, err)
	require.Positive(t, got.Jobs)
	require.Len(t, got.Latencies, got.Jobs)
	require.True(t, slices.IsSorted(got.Latencies))
	require.Positive(t, got.Latencies[0])
	require.InDelta(t, 0.5, got.Seconds, 0)
	require.InDelta(t, 2*got.Jobs, got.rate(), 1e-9)
	require.NotEmpty(t, got.Last)

	// All that was added is answered: a loop leaves nothing behind.
	added, err := w.redis.XLen(t.Context(), testJobs).Result()
	require.NoError(t, err)
	answered, err := w.redis.XLen(t.Context(), testUpdates).Result()
	require.NoError(t, err)
	require.Equal(t, added+2, answered)
	require.GreaterOrEqual(t, added, int64(got.Jobs))
}

func TestLoopSubmitsToEveryLane(t *testing.T) {
	t.Parallel()
	w := startRedis(t)
	answer(t, w, result)
	submitted := map[string]int{}
	l := testLoop(w, 1)
	l.lanes = []lane{{stream: "a", outstanding: 2}, {stream: "b", outstanding: 3}}
	l.submit = func(ctx context.Context, l lane, job contestant.Job) error {
		submitted[l.stream]++
		return w.redis.XAdd(ctx, &redis.XAddArgs{Stream: testJobs, Values: job.Fields()}).Err()
	}
	_, err := l.run(t.Context(), window{measure: 300 * time.Millisecond})
	require.NoError(t, err)
	require.Greater(t, submitted["a"], 2)
	require.Greater(t, submitted["b"], 3)
}

func TestLoopReportsLostJobs(t *testing.T) {
	t.Parallel()
	w := startRedis(t)
	answer(t, w, func(n int) string {
		if n == 3 {
			return ""
		}
		return "result"
	})
	l := testLoop(w, 2)
	l.patience = time.Second
	_, err := l.run(t.Context(), window{measure: 200 * time.Millisecond})
	require.ErrorContains(t, err, "1 jobs were not answered, one of them ")
}

func TestLoopRefusesFailedJobs(t *testing.T) {
	t.Parallel()
	w := startRedis(t)
	answer(t, w, func(n int) string {
		if n == 3 {
			return "error"
		}
		return "result"
	})
	_, err := testLoop(w, 2).run(t.Context(), window{measure: 10 * time.Second})
	require.ErrorContains(t, err, "ended with an update of type error")
}

// TestSampleCountsTheWorkOfRedis checks that the driver's own requests are told
// from those of a design.
func TestSampleCountsTheWorkOfRedis(t *testing.T) {
	t.Parallel()
	w := startRedis(t)
	ctx := t.Context()
	pipeline := func() {
		_, err := w.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, "a", 1, 0)
			p.Set(ctx, "b", 2, 0)
			return nil
		})
		require.NoError(t, err)
	}
	pipeline() // pipelines have connections of their own, which greet the server
	before, err := w.redisWork(ctx)
	require.NoError(t, err)
	trips := w.trips.n.Load()
	pipeline()
	require.NoError(t, w.redis.Get(ctx, "a").Err())
	after, err := w.redisWork(ctx)
	require.NoError(t, err)
	// A pipeline is a single request. The question itself is one of both.
	require.InDelta(t, 4, after.commands-before.commands, 0)
	require.Equal(t, int64(3), w.trips.n.Load()-trips)
	require.InDelta(t, 3, after.reads-before.reads, 0)
}
