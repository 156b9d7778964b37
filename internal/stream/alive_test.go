package stream

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Fault F06.
func TestBeatMeetsAnotherProcessOfTheSameName(t *testing.T) {
	t.Parallel()
	s, one := bundle(t)
	twin := open(t, s.Addr(), "one")
	ctx := t.Context()
	for range 2 {
		require.NoError(t, one.Beat(ctx))
		require.NoError(t, twin.Beat(ctx), "one meeting is not enough")
	}
	for range 3 {
		require.ErrorIs(t, one.Beat(ctx), ErrConsumerShared)
		require.ErrorIs(t, twin.Beat(ctx), ErrConsumerShared)
	}
	require.ErrorContains(t, one.Beat(ctx), "CONSUMER_NAME")
	require.NoError(t, one.Beat(ctx), "the twin is silent")
	require.ErrorIs(t, twin.Beat(ctx), ErrConsumerShared)
	require.ErrorIs(t, one.Beat(ctx), ErrConsumerShared, "however rarely it beats")
}

// A beat is done also where it has something to report.
func TestBeatOfASharedNameKeepsItAlive(t *testing.T) {
	t.Parallel()
	s, one := bundle(t)
	twin := open(t, s.Addr(), "one")
	for range 3 {
		_, _ = one.Beat(t.Context()), twin.Beat(t.Context())
	}
	do(t, one, "PEXPIRE", one.aliveKey("one"), 5)
	require.Eventually(t, func() bool { return do(t, one, "EXISTS", one.aliveKey("one")) == int64(0) }, waitFor, tick)
	require.NoError(t, twin.Beat(t.Context()))
	require.ErrorIs(t, one.Beat(t.Context()), ErrConsumerShared)
	ttl, ok := do(t, one, "PTTL", one.aliveKey("one")).(int64)
	require.True(t, ok)
	require.Positive(t, ttl)
	require.LessOrEqual(t, time.Duration(ttl)*time.Millisecond, aliveTTL)
}

func TestBeatDoesNotMeetThePredecessor(t *testing.T) {
	t.Parallel()
	s, old := bundle(t)
	ctx := t.Context()
	for range 3 {
		require.NoError(t, old.Beat(ctx))
	}
	for range 5 { // restarted again and again
		next := open(t, s.Addr(), "one")
		require.NoError(t, next.Beat(ctx))
		_ = old.Beat(ctx) // its last, late; nobody is left there to be told anything
		for range 3 {
			require.NoError(t, next.Beat(ctx))
		}
		old = next
	}
}

func TestBeatAfterRedisLostItsMemory(t *testing.T) {
	t.Parallel()
	_, one := bundle(t)
	for range 4 {
		require.NoError(t, one.Beat(t.Context()))
		do(t, one, "FLUSHALL")
	}
}

func TestBeatsOfOtherNamesOrGroupsDoNotMeet(t *testing.T) {
	t.Parallel()
	s, one := bundle(t)
	two := open(t, s.Addr(), "two")
	elsewhere, err := Open(Config{Connection: s.Addr(), Consumer: "one", Group: "another-group"}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, elsewhere.Close()) })
	for range 4 {
		for _, c := range []*Client{one, two, elsewhere} {
			require.NoError(t, c.Beat(t.Context()))
		}
	}
}

func TestConcurrentBeatsOfOneProcessDoNotMeet(t *testing.T) {
	t.Parallel()
	_, one := bundle(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if err := one.Beat(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
