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
