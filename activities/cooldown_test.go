package activities_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/llm"
)

// sharedCoolDown is a SharedCoolDown in memory.
type sharedCoolDown struct {
	until map[string]time.Time
	looks int
}

func (s *sharedCoolDown) SetCooldown(_ context.Context, key string, d time.Duration) error {
	s.until[key] = time.Now().Add(d)
	return nil
}

func (s *sharedCoolDown) Cooldown(_ context.Context, key string) (time.Duration, error) {
	s.looks++
	return max(time.Until(s.until[key]), 0), nil
}

func TestCoolDownLetsOneProbeThrough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := activities.NewCoolDown("e", nil)
		ctx := t.Context()

		first, err := c.Enter(ctx)
		require.NoError(t, err)
		second, err := c.Enter(ctx)
		require.NoError(t, err, "before the first refusal calls go in parallel")
		first(limited())
		second(nil)

		_, err = c.Enter(ctx)
		require.ErrorContains(t, err, "asked to wait")

		<-time.After(10 * time.Second)
		synctest.Wait()
		probe, err := c.Enter(ctx)
		require.NoError(t, err, "the window is over")
		_, err = c.Enter(ctx)
		require.Error(t, err, "one probe at a time")
		<-time.After(5 * time.Second)
		_, err = c.Enter(ctx)
		require.NoError(t, err, "a probe that is slow holds nobody up")
		_, err = c.Enter(ctx)
		require.Error(t, err)
		probe(limited())
		_, err = c.Enter(ctx)
		require.Error(t, err, "refused again, a new window")

		<-time.After(10 * time.Second)
		synctest.Wait()
		probe, err = c.Enter(ctx)
		require.NoError(t, err)
		probe(nil)
		for range 3 {
			_, err = c.Enter(ctx)
			require.NoError(t, err, "accepted: everybody may go")
		}
	})
}

func TestCoolDownProbeThatFailsOtherwiseFreesTheProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := activities.NewCoolDown("e", nil)
		leave, err := c.Enter(t.Context())
		require.NoError(t, err)
		leave(limited())
		<-time.After(10 * time.Second)
		for range 3 {
			leave, err = c.Enter(t.Context())
			require.NoError(t, err)
			leave(&llm.Error{Kind: llm.Unreachable})
		}
	})
}

func TestCoolDownIsShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shared := &sharedCoolDown{until: map[string]time.Time{}}
		here, there := activities.NewCoolDown("e", shared), activities.NewCoolDown("e", shared)
		elsewhere := activities.NewCoolDown("another", shared)
		leave, err := here.Enter(t.Context())
		require.NoError(t, err)
		leave(limited())
		_, err = there.Enter(t.Context())
		require.Error(t, err)
		_, err = elsewhere.Enter(t.Context())
		require.NoError(t, err)

		looks := shared.looks
		for range 10 {
			_, err = there.Enter(t.Context())
			require.Error(t, err)
		}
		require.Equal(t, looks, shared.looks, "looked up at most once a second")
	})
}

func limited() error {
	return &llm.Error{Kind: llm.RateLimited, Status: 429, RetryAfter: 10 * time.Second}
}
