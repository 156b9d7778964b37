package stream

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// totalChannel is where the holders that were granted a permit are named.
const totalChannel = "executor:total"

// totalTiming are the intervals of the protocol. Tests shorten them.
type totalTiming struct {
	permit time.Duration // a permit expires when it was not renewed for this long
	waiter time.Duration // a waiter loses its place when it was not renewed for this long
	pause  time.Duration // nothing is granted for this long after Redis lost its memory
	renew  time.Duration // how often permits are renewed; less than pause
	poll   time.Duration // how often waiters are renewed
}

func defaultTotalTiming() totalTiming {
	return totalTiming{
		permit: 9 * time.Second,
		waiter: 3 * time.Second,
		pause:  3 * time.Second,
		renew:  2 * time.Second,
		poll:   time.Second,
	}
}

// Total is a limit on how many holders work at the same time, over all
// processes that use the same Redis (DESIGN.md section 4, "Queues and limits").
//
// Permits are leases: they live for 9 s and are renewed by one goroutine per
// process. Waiters are served in the order in which they first asked, and a
// permit is handed on in the step that gives it back. Where processes announce
// different limits, the smallest of the live ones holds. While Redis cannot be
// reached, holders go on and nobody is granted a permit; after Redis lost its
// memory, nothing is granted for 3 s, in which holders announce themselves
// again. Only a process that was frozen or cut off for longer than its lease can
// make the number exceed the limit.
type Total struct {
	client *Client
	limit  int
	timing totalTiming
	log    *slog.Logger

	start sync.Once
	stop  context.CancelFunc
	ended chan struct{} // closed when the background work is over; nil before start
	wake  chan struct{} // capacity 1

	mu     sync.Mutex
	closed chan struct{}
	claims map[string]*claim
	done   map[string]struct{} // holders to take out of Redis
}

// claim is one holder's wish for a permit, waiting or fulfilled.
type claim struct {
	refs    int
	order   string        // place in the queue, "0" before Redis assigned one
	ask     bool          // ask for it in the next step
	held    bool          // guards granted against a second close
	granted chan struct{} // closed when the permit is held
}

// NewTotal makes a limit of that many concurrent holders; 0 or less means no
// limit at all. It does no I/O; Start or the first Acquire does. Close it before
// the client.
func NewTotal(c *Client, limit int, log *slog.Logger) *Total {
	return newTotal(c, limit, log, defaultTotalTiming())
}

func newTotal(c *Client, limit int, log *slog.Logger, timing totalTiming) *Total {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Total{
		client: c,
		limit:  limit,
		timing: timing,
		log:    log,
		wake:   make(chan struct{}, 1),
		closed: make(chan struct{}),
		claims: map[string]*claim{},
		done:   map[string]struct{}{},
	}
}

// Start announces this process's limit and keeps it announced until Close. The
// first Acquire starts as well; starting with the process makes the limit hold
// for others while this process is idle.
func (t *Total) Start() {
	if t.limit <= 0 {
		return
	}
	t.start.Do(func() {
		// The work belongs to the process and not to a caller, so it has a context
		// of its own, ended by Close.
		ctx, cancel := context.WithCancel(context.Background())
		t.mu.Lock()
		defer t.mu.Unlock()
		select {
		case <-t.closed:
			cancel()
			return
		default:
		}
		t.stop, t.ended = cancel, make(chan struct{})
		go t.run(ctx, t.ended)
	})
}

// Close gives back all permits and places in the queue of this process and ends
// its goroutines. Waiting calls of Acquire return ErrClosed.
func (t *Total) Close() {
	t.mu.Lock()
	select {
	case <-t.closed:
	default:
		close(t.closed)
	}
	stop, ended := t.stop, t.ended
	t.mu.Unlock()
	if ended != nil {
		stop()
		<-ended
	}
}

// Acquire waits for a permit. The holder names who works, and must be unique
// over all processes, such as run, activity and attempt; asking again for a
// holder that has a permit returns at once. The permit is held, and renewed,
// until release is called for each Acquire of the holder; release may be called
// more than once and does not wait.
//
// When ctx ends, the place in the queue is given up and the error is the
// context's. The only other error is ErrClosed.
func (t *Total) Acquire(ctx context.Context, holder string) (release func(), err error) {
	if t.limit <= 0 {
		return func() {}, nil
	}
	t.Start() //nolint:contextcheck // the background work outlives this caller

	t.mu.Lock()
	c := t.claims[holder]
	if c == nil {
		c = &claim{order: "0", ask: true, granted: make(chan struct{})}
		t.claims[holder] = c
	}
	c.refs++
	t.mu.Unlock()
	t.signal()

	drop := sync.OnceFunc(func() { t.drop(holder, c) })
	select {
	case <-c.granted:
		return drop, nil
	case <-ctx.Done():
		drop()
		return nil, &Error{Op: "wait for a permit of MAX_TOTAL", Kind: ctx.Err()}
	case <-t.closed:
		drop()
		return nil, &Error{Op: "wait for a permit of MAX_TOTAL", Kind: ErrClosed}
	}
}

// drop ends one use of a claim, and the claim with its last use.
func (t *Total) drop(holder string, c *claim) {
	t.mu.Lock()
	c.refs--
	if c.refs == 0 {
		delete(t.claims, holder)
		t.done[holder] = struct{}{}
	}
	t.mu.Unlock()
	t.signal()
}

func (t *Total) signal() {
	select {
	case t.wake <- struct{}{}:
	default: // a step is due already
	}
}

// run makes all steps of this process, one after the other. Because there is
// only one at a time, a step never brings back a holder that a later one has
// removed.
func (t *Total) run(ctx context.Context, ended chan<- struct{}) {
	defer close(ended)
	var listener sync.WaitGroup
	listener.Go(func() { t.listen(ctx) })
	defer listener.Wait()

	ticker := time.NewTicker(t.timing.poll)
	defer ticker.Stop()
	var (
		renewed time.Time // start of the last successful step that renewed
		failing bool
	)
	for full := true; ctx.Err() == nil; {
		now := time.Now()
		renew := full && now.Sub(renewed) >= t.timing.renew-t.timing.poll/2
		granting, err := t.step(ctx, full, renew)
		if err == nil && !granting && !renew {
			// Redis has lost its memory: what this process holds must be known there
			// before anything is granted.
			renew = true
			_, err = t.step(ctx, full, renew)
		}
		if err == nil && renew {
			renewed = now
		}
		t.report(ctx, err, &failing)

		// A step that failed is repeated with the next tick, not at once.
		select {
		case <-ticker.C:
			full = true
		case <-t.wakeUnless(failing):
			full = false
		case <-ctx.Done():
		}
	}
	t.leave(context.WithoutCancel(ctx))
}

func (t *Total) wakeUnless(failing bool) <-chan struct{} {
	if failing {
		return nil
	}
	return t.wake
}

// report logs the beginning and the end of an outage, once each.
func (t *Total) report(ctx context.Context, err error, failing *bool) {
	switch {
	case ctx.Err() != nil:
	case err != nil && !*failing:
		t.log.WarnContext(ctx, "MAX_TOTAL: no job starts until Redis answers again", slog.Any("error", err))
	case err == nil && *failing:
		t.log.InfoContext(ctx, "MAX_TOTAL: Redis answers again")
	}
	*failing = err != nil
}

// listen turns each message on the channel into a question about its holder. The
// message is only a hint: what counts is the answer of the next step.
func (t *Total) listen(ctx context.Context) {
	sub := t.client.commands.Subscribe(ctx, totalChannel)
	defer func() { _ = sub.Close() }()
	messages := sub.Channel()
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return
			}
			t.hint(m)
		case <-ctx.Done():
			return
		}
	}
}

func (t *Total) hint(m *redis.Message) {
	t.mu.Lock()
	c := t.claims[m.Payload]
	waiting := c != nil && !c.held
	if waiting {
		c.ask = true
	}
	t.mu.Unlock()
	if waiting {
		t.signal()
	}
}

// step does one round trip: it gives back what is done, asks for waiters (all of
// them if full, else those marked) and renews what is held. It reports whether
// Redis grants permits at present.
func (t *Total) step(ctx context.Context, full, renew bool) (granting bool, err error) {
	t.mu.Lock()
	var done, held, asked, pairs []any
	for holder := range t.done {
		if c := t.claims[holder]; c == nil || !c.held {
			done = append(done, holder)
		}
	}
	clear(t.done)
	for holder, c := range t.claims {
		switch {
		case c.held && renew:
			held = append(held, holder)
		case !c.held && (full || c.ask):
			c.ask = false
			asked = append(asked, holder)
			pairs = append(pairs, holder, c.order)
		}
	}
	t.mu.Unlock()

	granting, granted, orders, err := t.call(ctx, t.limit, done, held, pairs)

	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		for _, holder := range done {
			t.done[holder.(string)] = struct{}{}
		}
		return false, err
	}
	for _, holder := range granted {
		t.grant(holder)
	}
	for i, holder := range asked {
		if orders[i] == "0" {
			t.grant(holder.(string))
		} else if c := t.claims[holder.(string)]; c != nil {
			c.order = orders[i]
		}
	}
	return granting, nil
}

// grant tells the holder's callers, if they are still there. A permit for a
// holder that left meanwhile is given back by the next step, for which its
// removal is already noted.
func (t *Total) grant(holder string) {
	if c := t.claims[holder]; c != nil && !c.held {
		c.held = true
		close(c.granted)
	}
}

// leave takes everything of this process out of Redis.
func (t *Total) leave(ctx context.Context) {
	t.mu.Lock()
	var done []any
	for holder := range t.claims {
		done = append(done, holder)
	}
	for holder := range t.done {
		if t.claims[holder] == nil {
			done = append(done, holder)
		}
	}
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, t.timing.poll)
	defer cancel()
	if _, _, _, err := t.call(ctx, 0, done, nil, nil); err != nil {
		t.log.WarnContext(ctx, "MAX_TOTAL: permits were not given back and will expire", slog.Any("error", err))
	}
}

// call runs the script. pairs are waiters, each followed by its order.
func (t *Total) call(ctx context.Context, limit int, done, held, pairs []any) (
	granting bool, granted, orders []string, err error,
) {
	const op = "share MAX_TOTAL"
	args := []any{
		t.client.consumer, limit, t.timing.permit.Milliseconds(), t.timing.waiter.Milliseconds(),
		t.timing.pause.Milliseconds(), totalChannel,
	}
	args = append(append(args, len(done)), done...)
	args = append(append(args, len(held)), held...)
	args = append(append(args, len(pairs)/2), pairs...)

	// A step that hangs would keep the permits from being renewed.
	ctx, cancel := context.WithTimeout(ctx, t.timing.waiter)
	defer cancel()
	reply, err := run(ctx, t.client.scripts.total, t.client.effects, op, []string{
		"{executor:total}:held", "{executor:total}:queue", "{executor:total}:waiters",
		"{executor:total}:limits", "{executor:total}:epoch",
	}, args...)
	if err != nil {
		return false, nil, nil, err
	}
	parts, err := listReply(reply, 3)
	if err != nil {
		return false, nil, nil, fail(ctx, op, err)
	}
	granted, grantedErr := stringsReply(parts[1])
	orders, ordersErr := stringsReply(parts[2])
	if err := errors.Join(grantedErr, ordersErr); err != nil {
		return false, nil, nil, fail(ctx, op, err)
	}
	if len(orders) != len(pairs)/2 {
		return false, nil, nil, fail(ctx, op, replyError{"answer per waiter"})
	}
	return parts[0] == int64(1), granted, orders, nil
}
