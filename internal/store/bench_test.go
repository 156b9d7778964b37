package store

import (
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// firstOutcomes returns a function that returns the row of another job each time.
// It may be called from several goroutines.
func firstOutcomes() func() job.Row {
	var n atomic.Int64
	return func() job.Row {
		return completed("job-"+strconv.FormatInt(n.Add(1), 10), "entry:jobs:agent/1700000000000-0", noon())
	}
}

// BenchmarkPersist writes first outcomes into a SQLite file: one caller, which
// pays for a whole commit each time, and as many as one process has slots, which
// share them.
func BenchmarkPersist(b *testing.B) {
	b.Run("one caller", func(b *testing.B) {
		s, next := open(b, sqliteFiles{}.fresh(b)), firstOutcomes()
		b.ReportAllocs()
		for b.Loop() {
			_, err := s.Persist(b.Context(), next())
			require.NoError(b, err)
		}
		reportCommits(b, s)
	})
	b.Run("32 callers", func(b *testing.B) {
		s, next := open(b, sqliteFiles{}.fresh(b)), firstOutcomes()
		b.SetParallelism(max(1, 32/runtime.GOMAXPROCS(0)))
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				_, err := s.Persist(b.Context(), next())
				assert.NoError(b, err)
			}
		})
		reportCommits(b, s)
	})
}

func reportCommits(b *testing.B, s *Store) {
	b.Helper()
	group, ok := s.writer.(*groupCommit)
	require.True(b, ok)
	b.ReportMetric(float64(group.commits.Load())/float64(b.N), "commits/op")
}

// BenchmarkRows asks for a batch of the bridge: two keys for each of 16 entries,
// in a store that holds some rows.
func BenchmarkRows(b *testing.B) {
	s, next := open(b, sqliteFiles{}.fresh(b)), firstOutcomes()
	var stored, fresh []job.Key
	for range 32 {
		row := next()
		persist(b, s, row)
		stored = append(stored, row.Key())
		fresh = append(fresh, next().Key())
	}
	for name, bc := range map[string]struct {
		keys []job.Key
		want int
	}{
		"none": {keys: fresh},
		"all":  {keys: stored, want: len(stored)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				rows, err := s.Rows(b.Context(), bc.keys)
				require.NoError(b, err)
				require.Len(b, rows, bc.want)
			}
		})
	}
}
