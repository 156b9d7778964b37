package app

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
)

// announcements is Redis as far as the result store needs it.
type announcements struct{ up atomic.Bool }

func (a *announcements) AnnounceStore(context.Context, string) (string, error) {
	if !a.up.Load() {
		return "", errors.New("down")
	}
	return "", nil
}

func TestResultStoreSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	redis := &announcements{}
	s := newResultStore(store.Config{URL: "sqlite://" + t.TempDir() + "/executor.db"}, redis,
		slog.New(slog.NewTextHandler(t.Output(), nil)), func(err error, _ int) { t.Error(err) })
	require.ErrorIs(t, s.Check(t.Context()), errNotOpen)
	s.Start()
	t.Cleanup(func() { require.NoError(t, s.Stop()) })

	require.Eventually(t, func() bool { return errors.Is(s.Check(t.Context()), errNotConfirmed) }, 30*time.Second, time.Millisecond)
	_, err := s.Persist(t.Context(), job.Row{})
	require.ErrorIs(t, err, errNotConfirmed, "nothing is written before Redis has confirmed the database")

	redis.up.Store(true)
	require.Eventually(t, func() bool { return s.Check(t.Context()) == nil }, 30*time.Second, time.Millisecond)
	_, found, err := s.Row(t.Context(), job.Key{Role: job.Agent, JobID: "j"})
	require.NoError(t, err)
	require.False(t, found)
}

// A server that is frozen gives no error by itself.
func TestNoCallOfTheResultStoreWaitsForEver(t *testing.T) {
	t.Parallel()
	redis := &announcements{}
	redis.up.Store(true)
	s := newResultStore(store.Config{URL: "sqlite://" + t.TempDir() + "/executor.db"}, redis,
		slog.New(slog.DiscardHandler), func(err error, _ int) { t.Error(err) })
	s.limit = 0 // over as soon as it begins
	s.Start()
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	require.Eventually(t, func() bool { return s.Check(t.Context()) == nil }, 30*time.Second, time.Millisecond)

	key := job.Key{Role: job.Agent, JobID: "j"}
	for name, call := range map[string]func(context.Context) error{
		"Persist": func(ctx context.Context) error {
			_, err := s.Persist(ctx, job.NewRow(job.Job{Role: job.Agent, ID: "j"}, job.Origin{}, "e", job.Outcome{Status: job.Completed}))
			return err
		},
		"Row":        func(ctx context.Context) error { _, _, err := s.Row(ctx, key); return err },
		"Rows":       func(ctx context.Context) error { _, err := s.Rows(ctx, []job.Key{key}); return err },
		"RaiseEntry": func(ctx context.Context) error { return s.RaiseEntry(ctx, key, "1-1") },
		"SetDeadID":  func(ctx context.Context) error { return s.SetDeadID(ctx, key, "e", "1-1") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.ErrorIs(t, call(context.WithoutCancel(t.Context())), context.DeadlineExceeded)
		})
	}
}
