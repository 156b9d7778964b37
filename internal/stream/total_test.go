package stream

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/redistest"
)

// quick is the protocol's timing, shortened so that a lease can run out within
// a test.
func quick() totalTiming {
	return totalTiming{
		permit: 900 * time.Millisecond,
		waiter: 300 * time.Millisecond,
		pause:  100 * time.Millisecond,
		renew:  80 * time.Millisecond,
		poll:   40 * time.Millisecond,
	}
}

// slowPoll is a timing where nothing happens by polling within a test, so that
// only handing on can.
func slowPoll() totalTiming {
	return totalTiming{
		permit: 10 * time.Minute, waiter: 5 * time.Minute, pause: 0, renew: 2 * time.Minute, poll: time.Minute,
	}
}

func total(t *testing.T, c *Client, limit int, timing totalTiming) *Total {
	t.Helper()
	l := newTotal(c, limit, nil, timing)
	t.Cleanup(l.Close)
	return l
}

// queued waits until that many holders wait.
func queued(t *testing.T, c *Client, n int64) {
	t.Helper()
	require.Eventually(t, func() bool { return zcard(t, c, "queue") == n }, waitFor, tick)
}

func zcard(t *testing.T, c *Client, set string) int64 {
	t.Helper()
	n, err := c.commands.ZCard(context.WithoutCancel(t.Context()), "{executor:total}:"+set).Result()
	require.NoError(t, err)
	return n
}

func TestTotalIsNeverExceededOverProcesses(t *testing.T) {
	t.Parallel()
	const limit, holders = 7, 50
	s := redistest.Start(t)
	var running, highest, done atomic.Int64
	var all sync.WaitGroup
	for p := range 3 {
		l := total(t, open(t, s.Addr(), fmt.Sprintf("p%d", p)), limit, quick())
		for h := range holders {
			all.Go(func() {
				release, err := l.Acquire(t.Context(), fmt.Sprintf("p%d/%d", p, h))
				if err != nil {
					return
				}
				defer release()
				now := running.Add(1)
				defer running.Add(-1)
				for was := highest.Load(); now > was && !highest.CompareAndSwap(was, now); was = highest.Load() {
				}
				// A round trip as the work, so that holders overlap.
				_ = l.client.Ping(t.Context())
				done.Add(1)
			})
		}
	}
	all.Wait()
	require.EqualValues(t, 3*holders, done.Load())
	require.LessOrEqual(t, highest.Load(), int64(limit))
	require.Positive(t, highest.Load())
}
