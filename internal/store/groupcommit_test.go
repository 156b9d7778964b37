package store

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// busyWriter is a SQLite store whose writer is in the middle of a transaction
// until release is called.
type busyWriter struct {
	*Store
	group   *groupCommit
	release func()
	first   chan error // result of the transaction in the middle
}

func newBusyWriter(t *testing.T) busyWriter {
	t.Helper()
	s := open(t, sqliteFiles{}.fresh(t))
	group, ok := s.writer.(*groupCommit)
	require.True(t, ok)
	begun, release := make(chan struct{}), make(chan struct{})
	b := busyWriter{Store: s, group: group, first: make(chan error, 1)}
	b.release = sync.OnceFunc(func() { close(release) })
	t.Cleanup(b.release)
	go func() {
		b.first <- group.do(t.Context(), func(context.Context, querier) error {
			close(begun)
			<-release
			return nil
		})
	}()
	<-begun
	return b
}

func (b busyWriter) waitQueued(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return len(b.group.queue) == n }, 10*time.Second, time.Millisecond)
}

func TestGroupCommit(t *testing.T) {
	t.Parallel()

	t.Run("what waits is committed together", func(t *testing.T) {
		t.Parallel()
		b := newBusyWriter(t)
		const callers = 50
		results := make(chan job.Persisted, callers)
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				got, err := b.Persist(t.Context(), completed(fmt.Sprintf("job-%d", i), "run:1", noon()))
				assert.NoError(t, err)
				results <- got
			})
		}
		b.waitQueued(t, callers)
		b.release()
		wg.Wait()
		close(results)
		jobs := map[string]bool{}
		for got := range results {
			require.Equal(t, job.Written, got.Verdict)
			jobs[got.Row.JobID] = true
		}
		require.Len(t, jobs, callers, "each caller gets the result of its own row")
		require.EqualValues(t, 2, b.group.commits.Load(), "one for the transaction they waited for, one for all of them")
	})

	t.Run("one that fails takes no other down", func(t *testing.T) {
		t.Parallel()
		b := newBusyWriter(t)
		const callers, bad = 10, 4
		errs := make([]error, callers)
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				if i == bad {
					errs[i] = b.group.do(t.Context(), func(ctx context.Context, tx querier) error {
						_, err := tx.ExecContext(ctx, "INSERT INTO executor_jobs (role) VALUES ('incomplete')")
						return err
					})
					return
				}
				_, errs[i] = b.Persist(t.Context(), completed(fmt.Sprintf("job-%d", i), "run:1", noon()))
			})
		}
		b.waitQueued(t, callers)
		b.release()
		wg.Wait()
		for i, err := range errs {
			if i == bad {
				require.Error(t, err)
				continue
			}
			require.NoError(t, err)
			stored(t, b.Store, job.Key{Role: job.Agent, JobID: fmt.Sprintf("job-%d", i)})
		}
		var rows int
		require.NoError(t, b.reads.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM executor_jobs").Scan(&rows))
		require.Equal(t, callers-1, rows)
	})

	t.Run("nobody's write is not begun", func(t *testing.T) {
		t.Parallel()
		b := newBusyWriter(t)
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := b.Persist(ctx, completed("gone", "run:1", noon()))
			gone <- err
		}()
		b.waitQueued(t, 1)
		cancel()
		require.ErrorIs(t, <-gone, context.Canceled)
		b.release()
		require.NoError(t, <-b.first)
		persist(t, b.Store, completed("next", "run:1", noon())) // after it in the queue
		_, found, err := b.Row(t.Context(), job.Key{Role: job.Agent, JobID: "gone"})
		require.NoError(t, err)
		require.False(t, found)
	})

	t.Run("close commits what waits", func(t *testing.T) {
		t.Parallel()
		b := newBusyWriter(t)
		const callers = 5
		errs := make(chan error, callers)
		for i := range callers {
			go func() {
				_, err := b.Persist(t.Context(), completed(fmt.Sprintf("job-%d", i), "run:1", noon()))
				errs <- err
			}()
		}
		b.waitQueued(t, callers)
		closed := make(chan error, 1)
		go func() { closed <- b.Close() }()
		require.Eventually(t, func() bool {
			b.group.mu.RLock()
			defer b.group.mu.RUnlock()
			return b.group.closed
		}, 10*time.Second, time.Millisecond)
		_, err := b.Persist(t.Context(), completed("late", "run:1", noon()))
		require.ErrorIs(t, err, ErrClosed)
		b.release()
		for range callers {
			require.NoError(t, <-errs)
		}
		require.NoError(t, <-b.first)
		require.NoError(t, <-closed)
	})

	t.Run("a full queue lets callers leave", func(t *testing.T) {
		t.Parallel()
		b := newBusyWriter(t)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range maxQueue + 1 {
			wg.Go(func() {
				assert.ErrorIs(t, b.group.do(ctx, nil), context.Canceled)
			})
		}
		b.waitQueued(t, maxQueue)
		cancel()
		wg.Wait()
		b.release()
		require.NoError(t, <-b.first)
	})
}
