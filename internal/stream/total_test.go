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

// acquire waits for a permit in the background and hands over its release.
func acquire(t *testing.T, l *Total, holder string) <-chan func() {
	t.Helper()
	granted := make(chan func(), 1)
	go func() {
		release, err := l.Acquire(t.Context(), holder)
		if err == nil {
			granted <- release
		}
	}()
	return granted
}

// permit is the release function that acquire hands over.
func permit(t *testing.T, granted <-chan func()) func() {
	t.Helper()
	return receive(t, granted)
}

// subscribed waits until that many processes listen for permits.
func subscribed(t *testing.T, c *Client, n int64) {
	t.Helper()
	require.Eventually(t, func() bool {
		found, err := c.commands.PubSubNumSub(context.WithoutCancel(t.Context()), totalChannel).Result()
		return err == nil && found[totalChannel] == n
	}, waitFor, tick)
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

func TestTotalServesInOrderAndHandsOnAtOnce(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	control := open(t, s.Addr(), "control")
	var limits []*Total
	for p := range 3 {
		l := total(t, open(t, s.Addr(), fmt.Sprintf("p%d", p)), 1, slowPoll())
		l.Start()
		limits = append(limits, l)
	}
	subscribed(t, control, 3)
	release, err := limits[0].Acquire(t.Context(), "first")
	require.NoError(t, err)

	// Nothing polls within this test: each grant below was handed on by release.
	var waiting []<-chan func()
	for i := range 9 {
		waiting = append(waiting, acquire(t, limits[(i*2)%3], fmt.Sprintf("w%d", 8-i)))
		queued(t, control, int64(i+1))
	}
	for i, granted := range waiting {
		for j, later := range waiting[i:] {
			require.Empty(t, later, "waiter %d before the permit is given back", i+j)
		}
		release()
		release = permit(t, granted)
	}
	release()
	require.Eventually(t, func() bool { return zcard(t, control, "held") == 0 }, waitFor, tick)
}

func TestTotalIsIdempotentPerHolder(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := open(t, s.Addr(), "p")
	l := total(t, c, 1, slowPoll())
	first, err := l.Acquire(t.Context(), "same")
	require.NoError(t, err)
	second, err := l.Acquire(t.Context(), "same")
	require.NoError(t, err)
	other := acquire(t, l, "other")
	queued(t, c, 1)

	first()
	first()
	require.EqualValues(t, 1, zcard(t, c, "held"))
	require.Empty(t, other, "releasing twice gives back once")
	second()
	permit(t, other)()

	again, err := l.Acquire(t.Context(), "same")
	require.NoError(t, err, "a holder may come back")
	again()
}

func TestTotalLeavingTheQueue(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := open(t, s.Addr(), "p")
	l := total(t, c, 1, slowPoll())
	release, err := l.Acquire(t.Context(), "holder")
	require.NoError(t, err)

	ctx, cancel := contextWithCancel(t)
	failed := make(chan error, 1)
	go func() {
		_, err := l.Acquire(ctx, "impatient")
		failed <- err
	}()
	queued(t, c, 1)
	next := acquire(t, l, "next")
	queued(t, c, 2)
	cancel()
	require.ErrorIs(t, receive(t, failed), context.Canceled)
	queued(t, c, 1)
	release()
	permit(t, next)()
}

func TestTotalTakesTheSmallestLiveLimit(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	control := open(t, s.Addr(), "control")
	large := total(t, open(t, s.Addr(), "large"), 3, slowPoll())
	small := total(t, open(t, s.Addr(), "small"), 1, slowPoll())
	small.Start()
	require.Eventually(t, func() bool { return zcard(t, control, "limits") == 1 }, waitFor, tick)

	release, err := large.Acquire(t.Context(), "a")
	require.NoError(t, err)
	defer release()
	var more []<-chan func()
	for i := range 3 {
		more = append(more, acquire(t, large, fmt.Sprintf("b%d", i)))
		queued(t, control, int64(i+1))
	}
	require.EqualValues(t, 1, zcard(t, control, "held"))

	small.Close()
	for _, granted := range more[:2] {
		defer permit(t, granted)()
	}
	require.EqualValues(t, 3, zcard(t, control, "held"))
	require.EqualValues(t, 1, zcard(t, control, "queue"))
}

// A process that died holds its permit until the lease ends, and a dead waiter
// does not stand in the way.
func TestTotalSurvivesDeadProcesses(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	timing := quick()
	timing.pause = 0
	// A process that makes one step for each of its holders and is gone.
	dead := newTotal(open(t, s.Addr(), "dead"), 1, nil, timing)
	_, _, orders, err := dead.call(t.Context(), 1, nil, nil, []any{"dead holder", "0"})
	require.NoError(t, err)
	require.Equal(t, []string{"0"}, orders)
	_, _, orders, err = dead.call(t.Context(), 1, nil, nil, []any{"dead waiter", "0"})
	require.NoError(t, err)
	require.NotEqual(t, []string{"0"}, orders)

	l := total(t, open(t, s.Addr(), "alive"), 1, timing)
	release, err := l.Acquire(t.Context(), "alive")
	require.NoError(t, err)
	release()
}

// The permits of a live process do not end, however long it holds them.
func TestTotalRenews(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := open(t, s.Addr(), "p")
	l := total(t, c, 1, quick())
	release, err := l.Acquire(t.Context(), "long")
	require.NoError(t, err)
	defer release()
	expiry := func() float64 {
		score, err := c.commands.ZScore(t.Context(), "{executor:total}:held", "long").Result()
		require.NoError(t, err)
		return score
	}
	first := expiry()
	require.Eventually(t, func() bool { return expiry() > first+1000 }, waitFor, tick,
		"renewed to beyond what one lease lasts")
}

// Redis forgets everything while permits are held: the holders announce
// themselves again before anybody else is granted one.
func TestTotalSurvivesLostMemory(t *testing.T) {
	t.Parallel()
	for name, forget := range map[string]func(*testing.T, *redistest.Server, *Client){
		"FLUSHALL": func(t *testing.T, _ *redistest.Server, c *Client) { t.Helper(); do(t, c, "FLUSHALL") },
		"restart":  func(t *testing.T, s *redistest.Server, _ *Client) { t.Helper(); s.Restart(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t)
			timing := defaultTotalTiming()
			timing.renew, timing.poll = 100*time.Millisecond, 50*time.Millisecond
			one := total(t, open(t, s.Addr(), "one"), 1, timing)
			two := total(t, open(t, s.Addr(), "two"), 1, timing)
			control := open(t, s.Addr(), "control")
			release, err := one.Acquire(t.Context(), "holder")
			require.NoError(t, err)
			waiter := acquire(t, two, "waiter")
			queued(t, control, 1)

			forget(t, s, control)
			// The new epoch is over the pause only later than the holder is back.
			require.Eventually(t, func() bool {
				members, err := control.commands.ZRange(t.Context(), "{executor:total}:held", 0, -1).Result()
				return err == nil && len(members) == 1 && members[0] == "holder"
			}, waitFor, tick)
			granting := false
			require.Eventually(t, func() bool {
				granting, _, _, err = two.call(t.Context(), 1, nil, nil, nil)
				return err == nil && granting
			}, waitFor, tick)
			require.Empty(t, waiter)
			release()
			permit(t, waiter)()
		})
	}
}

// Redis comes back, as a server without the last second's changes or as a replica
// that lagged behind: the epoch is still there and a holder is not.
func TestTotalDoesNotTrustAnotherLifeOfRedis(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := open(t, s.Addr(), "p")
	timing := quick()
	timing.pause = 0
	_, _, orders, err := newTotal(c, 1, nil, timing).call(t.Context(), 1, nil, nil, []any{"holder", "0"})
	require.NoError(t, err)
	require.Equal(t, []string{"0"}, orders, "the holder has the only permit")
	epoch, err := c.commands.Get(t.Context(), "{executor:total}:epoch").Result()
	require.NoError(t, err)

	s.Restart(t)
	do(t, c, "SET", "{executor:total}:epoch", epoch)
	timing.pause = time.Minute
	granting, _, orders, err := newTotal(c, 1, nil, timing).call(t.Context(), 1, nil, nil, []any{"other", "0"})
	require.NoError(t, err)
	require.False(t, granting)
	require.NotEqual(t, []string{"0"}, orders)
}

func TestTotalGrantsNothingWhileRedisIsDown(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := open(t, s.Addr(), "p")
	l := total(t, c, 2, quick())
	release, err := l.Acquire(t.Context(), "running")
	require.NoError(t, err)
	s.Kill()
	require.Eventually(t, func() bool { return c.Ping(t.Context()) != nil }, waitFor, tick)

	waiter := acquire(t, l, "new")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = l.Acquire(ctx, "impatient")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Empty(t, waiter)
	release() // does not wait for Redis

	s.Restart(t)
	permit(t, waiter)()
}

func TestTotalClose(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	control := open(t, s.Addr(), "control")
	one := total(t, open(t, s.Addr(), "one"), 1, slowPoll())
	two := total(t, open(t, s.Addr(), "two"), 1, slowPoll())
	two.Start()
	subscribed(t, control, 1)
	_, err := one.Acquire(t.Context(), "held until close")
	require.NoError(t, err)
	failed := make(chan error, 1)
	go func() {
		_, err := one.Acquire(t.Context(), "waits")
		failed <- err
	}()
	queued(t, control, 1)
	next := acquire(t, two, "next")
	queued(t, control, 2)

	one.Close()
	one.Close()
	require.ErrorIs(t, receive(t, failed), ErrClosed)
	permit(t, next)()
	require.EqualValues(t, 1, zcard(t, control, "limits"))
	_, err = one.Acquire(t.Context(), "late")
	require.ErrorIs(t, err, ErrClosed)

	unused := NewTotal(open(t, s.Addr(), "unused"), 1, nil)
	unused.Close()
	unused.Start()
	_, err = unused.Acquire(t.Context(), "late")
	require.ErrorIs(t, err, ErrClosed)
}

func TestTotalWithoutLimit(t *testing.T) {
	t.Parallel()
	c, err := Open(Config{Connection: "127.0.0.1:1"}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	l := total(t, c, 0, defaultTotalTiming())
	l.Start()
	release, err := l.Acquire(t.Context(), "any")
	require.NoError(t, err)
	release()
}
