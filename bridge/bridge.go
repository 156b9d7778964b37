// Package bridge carries jobs from Redis streams into Temporal. It exists
// because neither side knows of the other: a stream entry may be delivered any
// number of times and stays pending until somebody acknowledges it, a workflow
// id can be started once. The bridge makes one run of every entry, never
// acknowledges what nobody has dealt with, and finishes the books of runs that
// can no longer do so themselves (DESIGN.md section 4).
//
// Any number of bridges may run. They share the consumer group, and every step
// can be repeated by another one.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// Bridge moves jobs from the streams of all roles into runs. Create it with New
// and run it once.
type Bridge struct {
	cfg      Config
	redis    Redis
	rows     Rows
	temporal Temporal
	metrics  Metrics
	log      *slog.Logger
	timing   timing
	now      func() time.Time

	lanes   []*lane
	lookups *rate.Limiter // looks at runs that are in doubt
	leader  atomic.Bool   // holds the reconciler's lease
	nowhere atomic.Bool   // the namespace does not exist
	began   atomic.Bool

	recovered chan struct{} // the workflow service answers again

	sharesLogged time.Time // beat's own
	redisRun     string    // beat's own: which life of Redis it met last
}

// New returns a bridge for the streams of all roles. It does no I/O. The error
// names every setting that makes no sense.
func New(cfg Config, redis Redis, rows Rows, temporal Temporal, metrics Metrics, log *slog.Logger) (*Bridge, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	b := &Bridge{
		cfg:      cfg,
		redis:    redis,
		rows:     rows,
		temporal: temporal,
		metrics:  metrics,
		log:      log.With(slog.String("component", "bridge")),
		now:      time.Now,

		recovered: make(chan struct{}, 1),
	}
	b.setTiming(defaultTiming(cfg))
	for _, role := range job.Roles() {
		b.lanes = append(b.lanes, newLane(b, role))
	}
	return b, nil
}

func (b *Bridge) setTiming(t timing) {
	b.timing = t
	b.lookups = rate.NewLimiter(rate.Limit(t.lookups), t.lookups)
}

// Run works until ctx ends, and returns nil then. It stops reading, finishes
// the dispatches it has in hand, which takes a few seconds at most, and leaves
// unfinished entries pending for the next bridge. Faults of Redis, the store or
// Temporal never end it: they are logged, counted and waited out.
func (b *Bridge) Run(ctx context.Context) error {
	if b.began.Swap(true) {
		return errors.New("the bridge was run before: create a new one")
	}
	// Known as alive before the first read, or a peer might take it for dead.
	b.beat(ctx)
	var wg sync.WaitGroup
	for _, l := range b.lanes {
		wg.Go(func() { l.run(ctx) })
	}
	wg.Go(func() { b.every(ctx, b.timing.beat, b.beat) })
	wg.Go(func() { newReconciler(b).run(ctx) })
	if b.cfg.ChatList != "" {
		wg.Go(func() { b.moveChat(ctx) })
	}
	b.log.InfoContext(ctx, "bridge is reading",
		slog.String("group", b.redis.Group()), slog.String("consumer", b.redis.Consumer()),
		slog.Int("max_in_flight", b.cfg.MaxInFlight), slog.String("list", b.cfg.ChatList))
	wg.Wait()
	b.leave(ctx)
	return nil
}

// every calls f at once and then in that interval until ctx ends.
func (b *Bridge) every(ctx context.Context, interval time.Duration, f func(context.Context)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		f(ctx)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// beat keeps this consumer known as alive and tries for the reconciler's lease.
// While Redis is away nobody leads, and nobody can take anything either.
func (b *Bridge) beat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, b.timing.call)
	defer cancel()
	switch err := b.redis.Beat(ctx); {
	case errors.Is(err, stream.ErrConsumerShared):
		b.sharesName(ctx, err)
	case err != nil:
		b.leader.Store(false)
		return // the lanes report Redis
	}
	held, err := b.redis.Lease(ctx, LeaseName, b.timing.lease)
	if led := b.leader.Swap(err == nil && held); !led && held {
		b.log.InfoContext(ctx, "this bridge reconciles pending entries with runs")
	}
	b.checkRedis(ctx)
}

// checkRedis notices that Redis was restarted or replaced. It may have forgotten
// what it confirmed last, so that entries are pending again whose jobs have
// ended, and a restart can be too short for any call to fail.
func (b *Bridge) checkRedis(ctx context.Context) {
	run, err := b.redis.ServerRun(ctx)
	if err != nil {
		return // the lanes report Redis
	}
	if b.redisRun != "" && b.redisRun != run {
		b.log.InfoContext(ctx, "Redis was restarted or is another one: pending entries are compared with the rows")
		for _, l := range b.lanes {
			l.compare.Store(true)
		}
	}
	b.redisRun = run
}

// sharesName reports that another bridge has this one's consumer name. Nothing
// is lost by it, so it is said now and then for as long as it lasts.
func (b *Bridge) sharesName(ctx context.Context, err error) {
	b.metrics.BridgeError("", consumerShared)
	if now := b.now(); now.Sub(b.sharesLogged) >= sharesLogEvery {
		b.sharesLogged = now
		b.log.WarnContext(ctx, "two bridges share a consumer name", slog.String("consumer", b.redis.Consumer()),
			slog.String("group", b.redis.Group()), slog.Any("error", err))
	}
}

const (
	consumerShared = "consumer_shared" // as metrics name it
	sharesLogEvery = time.Minute
)

// LeaseName is the lease that one of the running bridges always holds, the one
// that reconciles.
const LeaseName = "reconcile"

// leave hands the lease on.
func (b *Bridge) leave(ctx context.Context) {
	if !b.leader.Swap(false) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := b.redis.Unlease(ctx, LeaseName); err != nil {
		b.log.DebugContext(ctx, "the reconciler's lease was not given back and will expire", slog.Any("error", err))
	}
}

// Ready reports whether entries are being taken from every stream; the error
// names the streams that are stuck, and why, and a namespace that does not exist.
// It makes no calls.
func (b *Bridge) Ready(context.Context) error {
	if !b.began.Load() {
		return errors.New("the bridge is not running")
	}
	var errs []error
	if b.nowhere.Load() {
		errs = append(errs, ErrNoNamespace)
	}
	for _, l := range b.lanes {
		if err := l.troubles.current(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.stream, err))
		}
	}
	return errors.Join(errs...)
}

// moveChat moves items of the legacy list into the chat stream as they come.
func (b *Bridge) moveChat(ctx context.Context) {
	l := b.lane(job.Chat)
	failures := 0
	for ctx.Err() == nil {
		pause := b.timing.chatPoll
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.timing.call)
		moved, err := b.redis.MoveChat(call, b.cfg.ChatList, chatBatch)
		cancel()
		switch {
		case err != nil:
			failures++
			l.trouble(ctx, troubleChatList, err)
			pause = l.backoff(failures)
		case moved == chatBatch:
			pause = 0
			fallthrough
		default:
			failures = 0
			l.clear(ctx, troubleChatList)
		}
		sleep(ctx, pause)
	}
}

// chatBatch is how many list items one script moves: it blocks Redis meanwhile.
const chatBatch = 50

// sleep waits until d has passed or ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (b *Bridge) lane(role job.Role) *lane {
	for _, l := range b.lanes {
		if l.role == role {
			return l
		}
	}
	return nil
}

// rowSet holds the rows one query found.
type rowSet map[job.Key]job.Row

func (r rowSet) of(key job.Key) *job.Row {
	if row, ok := r[key]; ok {
		return &row
	}
	return nil
}

func (b *Bridge) readRows(ctx context.Context, keys []job.Key) (rowSet, error) {
	ctx, cancel := context.WithTimeout(ctx, b.timing.call)
	defer cancel()
	rows, err := b.rows.Rows(ctx, keys)
	if err != nil {
		return nil, &troubleError{kind: troubleStoreRead, err: err}
	}
	return rows, nil
}

func (b *Bridge) describe(ctx context.Context, workflowID string) (Run, error) {
	ctx, cancel := context.WithTimeout(ctx, b.timing.start)
	defer cancel()
	run, err := b.temporal.Describe(ctx, workflowID)
	if err != nil {
		return Run{}, &troubleError{kind: troubleTemporal, err: err}
	}
	return run, nil
}

func (b *Bridge) input(ctx context.Context, run Run) (workflows.Input, error) {
	ctx, cancel := context.WithTimeout(ctx, b.timing.start)
	defer cancel()
	input, err := b.temporal.Input(ctx, run)
	if err != nil {
		return workflows.Input{}, &troubleError{kind: troubleTemporal, err: err}
	}
	return input, nil
}
