package bridge

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// instantTemporal starts every run and remembers none, so that a benchmark
// measures the bridge.
type instantTemporal struct{ *fakeTemporal }

func (instantTemporal) Start(context.Context, StartRequest) (StartResult, error) {
	return StartResult{Verdict: Started, RunID: "run"}, nil
}

// BenchmarkDispatch takes one batch of new jobs from Redis to their started runs:
// one read, one query for the rows, and a start for each.
func BenchmarkDispatch(b *testing.B) {
	w := newWorld(b)
	l := w.bridge("one", func(b *Bridge) {
		b.temporal = instantTemporal{w.temporal}
		b.setTiming(defaultTiming(b.cfg))
	}).lane(job.Agent)
	require.NoError(b, l.ensure(b.Context()))
	jobs := 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		ids := make([]string, batchSize)
		for i := range ids {
			jobs++
			ids[i] = w.agentJob("job-" + strconv.Itoa(jobs))
		}
		b.StartTimer()

		var p progress
		require.NoError(b, l.readNew(b.Context(), &p))

		b.StopTimer()
		require.Equal(b, progress{done: batchSize}, p)
		require.NoError(b, l.ack(b.Context(), ids...))
		l.started.clear() // the next survey would find that nothing is pending,
		l.inFlight = 0    // and so would the next count
		b.StartTimer()
	}
}

func BenchmarkDecide(b *testing.B) {
	now := time.Now()
	row := &job.Row{
		Outcome: job.Outcome{Status: job.Failed, StartedAt: now.Add(-time.Hour), FinishedAt: now.Add(-time.Minute)},
		EntryID: "1700000000000-0", LastEntryID: "1700000000000-0",
	}
	for name, bc := range map[string]struct {
		row  *job.Row
		want action
	}{
		"new":   {nil, actStart},
		"retry": {row, actRetry},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var got action
			for b.Loop() {
				got = decide("1700000000001-0", false, bc.row, now)
			}
			require.Equal(b, bc.want, got)
		})
	}
}
