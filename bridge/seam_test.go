package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// The seams lie between a bridge and the three services it talks to. Through
// them a test stops the bridge at any call it makes: before the call has an
// effect, or after it had one and before the bridge hears of it.

// side is one of those services.
type side int

const (
	redisSide side = iota
	storeSide
	temporalSide
	sides
)

var (
	errCutOff = errors.New("the connection was cut")
	errDown   = errors.New("the service is down")
)

// plan is what happens at one call of a bridge.
type plan struct {
	At    int  // which call of the pass, from 1
	After bool // the call has had its effect
	Fate  planFate
	Move  *move // for planNested
}

type planFate string

const (
	planFail   planFate = "fail"   // the call returns an error
	planCrash  planFate = "crash"  // the process dies: nothing it does from here on reaches anyone
	planNested planFate = "nested" // something else happens at that moment
)

func (p plan) String() string {
	when := "before"
	if p.After {
		when = "after"
	}
	if p.Move != nil {
		return fmt.Sprintf("%s call %d: %s", when, p.At, *p.Move)
	}
	return fmt.Sprintf("%s %s call %d", p.Fate, when, p.At)
}

// seam counts the calls of one process.
type seam struct {
	m     *machine
	calls int
	dead  bool
	plan  *plan
}

// arm makes the calls of the next pass count from one.
func (s *seam) arm(p *plan) { s.calls, s.plan = 0, p }

func (s *seam) call(on side, name string, do func() error) error {
	if s.dead {
		return errCutOff
	}
	if s.m.down[on] {
		return errDown
	}
	s.calls++
	p := s.plan
	hit := p != nil && s.calls == p.At
	if hit && !p.After {
		if err := s.strike(name); err != nil {
			return err
		}
	}
	err := do()
	if hit && p.After {
		if err := s.strike(name); err != nil {
			return err
		}
	}
	return err
}

func (s *seam) strike(name string) error {
	p := s.plan
	s.plan = nil
	s.m.logf("  %s (%s)", p, name)
	switch p.Fate {
	case planCrash:
		s.dead = true
		return errCutOff
	case planNested:
		s.m.do(*p.Move)
		return nil
	case planFail:
	}
	return errCutOff
}

// through is call for functions that return something, which is lost with the
// reply.
func through[T any](s *seam, on side, name string, do func() (T, error)) (T, error) {
	var out T
	err := s.call(on, name, func() error {
		var err error
		out, err = do()
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return out, nil
}

// seamRedis is Redis behind a seam. How long entries have been idle follows the
// machine's clock, since Redis would measure the test's.
type seamRedis struct {
	*seam
	c *stream.Client
}

func (r seamRedis) Group() string    { return r.c.Group() }
func (r seamRedis) Consumer() string { return r.c.Consumer() }

func (r seamRedis) EnsureGroup(ctx context.Context, key string) error {
	return r.call(redisSide, "EnsureGroup", func() error { return r.c.EnsureGroup(ctx, key) })
}

func (r seamRedis) ReadNew(ctx context.Context, key string, count int, _ time.Duration) ([]job.Entry, error) {
	return through(r.seam, redisSide, "ReadNew", func() ([]job.Entry, error) { return r.c.ReadNew(ctx, key, count, 0) })
}

func (r seamRedis) ReadOwn(ctx context.Context, key, after string, count int) (stream.Batch, error) {
	return through(r.seam, redisSide, "ReadOwn", func() (stream.Batch, error) { return r.c.ReadOwn(ctx, key, after, count) })
}

func (r seamRedis) Entry(ctx context.Context, key, id string) (job.Entry, bool, error) {
	var found bool
	e, err := through(r.seam, redisSide, "Entry", func() (e job.Entry, err error) {
		e, found, err = r.c.Entry(ctx, key, id)
		return e, err
	})
	return e, found && err == nil, err
}

func (r seamRedis) Beat(ctx context.Context) error {
	return r.call(redisSide, "Beat", func() error { return r.c.Beat(ctx) })
}

func (r seamRedis) ClaimDead(ctx context.Context, key string, limit int) (stream.Batch, error) {
	return through(r.seam, redisSide, "ClaimDead", func() (stream.Batch, error) { return r.c.ClaimDead(ctx, key, limit) })
}

func (r seamRedis) AutoClaim(ctx context.Context, key string, minIdle time.Duration, cursor string, count int) (stream.Batch, string, error) {
	if r.m.idle >= minIdle {
		minIdle = 0
	}
	var next string
	b, err := through(r.seam, redisSide, "AutoClaim", func() (b stream.Batch, err error) {
		b, next, err = r.c.AutoClaim(ctx, key, minIdle, cursor, count)
		return b, err
	})
	if err != nil {
		next = ""
	}
	return b, next, err
}

func (r seamRedis) Refresh(ctx context.Context, key, consumer string, ids ...string) error {
	return r.call(redisSide, "Refresh", func() error { return r.c.Refresh(ctx, key, consumer, ids...) })
}

func (r seamRedis) Restore(ctx context.Context, key string, ids ...string) error {
	return r.call(redisSide, "Restore", func() error { return r.c.Restore(ctx, key, ids...) })
}

func (r seamRedis) ServerRun(ctx context.Context) (string, error) {
	return through(r.seam, redisSide, "ServerRun", func() (string, error) { return r.c.ServerRun(ctx) })
}

func (r seamRedis) DropIdleConsumers(ctx context.Context, key string, idle time.Duration) (int, error) {
	return through(r.seam, redisSide, "DropIdleConsumers", func() (int, error) { return r.c.DropIdleConsumers(ctx, key, idle) })
}

func (r seamRedis) Pending(ctx context.Context, key string) (stream.PendingSummary, error) {
	return through(r.seam, redisSide, "Pending", func() (stream.PendingSummary, error) { return r.c.Pending(ctx, key) })
}

func (r seamRedis) PendingList(ctx context.Context, key, after string, count int) ([]stream.PendingEntry, error) {
	return through(r.seam, redisSide, "PendingList", func() ([]stream.PendingEntry, error) {
		list, err := r.c.PendingList(ctx, key, after, count)
		for i := range list {
			list[i].Idle = r.m.idle
		}
		return list, err
	})
}

func (r seamRedis) Delivered(ctx context.Context, key string) (string, error) {
	return through(r.seam, redisSide, "Delivered", func() (string, error) { return r.c.Delivered(ctx, key) })
}

func (r seamRedis) Range(ctx context.Context, key, from, to string, count int) ([]job.Entry, error) {
	return through(r.seam, redisSide, "Range", func() ([]job.Entry, error) { return r.c.Range(ctx, key, from, to, count) })
}

func (r seamRedis) Audited(ctx context.Context, key string) (string, error) {
	return through(r.seam, redisSide, "Audited", func() (string, error) { return r.c.Audited(ctx, key) })
}

func (r seamRedis) SetAudited(ctx context.Context, key, id string) error {
	return r.call(redisSide, "SetAudited", func() error { return r.c.SetAudited(ctx, key, id) })
}

func (r seamRedis) Publish(ctx context.Context, u stream.Update) (bool, error) {
	return through(r.seam, redisSide, "Publish", func() (bool, error) {
		r.m.mayPublish(u)
		return r.c.Publish(ctx, u)
	})
}

func (r seamRedis) DeadLetter(ctx context.Context, d stream.DeadLetter) (string, error) {
	return through(r.seam, redisSide, "DeadLetter", func() (string, error) { return r.c.DeadLetter(ctx, d) })
}

func (r seamRedis) Ack(ctx context.Context, key, group string, ids ...string) (int64, error) {
	return through(r.seam, redisSide, "Ack", func() (int64, error) {
		r.m.mayAcknowledge(ids...)
		return r.c.Ack(ctx, key, group, ids...)
	})
}

func (r seamRedis) Lease(ctx context.Context, name string, ttl time.Duration) (bool, error) {
	return through(r.seam, redisSide, "Lease", func() (bool, error) { return r.c.Lease(ctx, name, ttl) })
}

func (r seamRedis) Unlease(ctx context.Context, name string) error {
	return r.call(redisSide, "Unlease", func() error { return r.c.Unlease(ctx, name) })
}

func (r seamRedis) MoveChat(ctx context.Context, list string, limit int) (int, error) {
	return through(r.seam, redisSide, "MoveChat", func() (int, error) { return r.c.MoveChat(ctx, list, limit) })
}

// seamRows is the store behind a seam.
type seamRows struct {
	*seam
	rows Rows
}

func (r seamRows) Rows(ctx context.Context, keys []job.Key) (map[job.Key]job.Row, error) {
	return through(r.seam, storeSide, "Rows", func() (map[job.Key]job.Row, error) { return r.rows.Rows(ctx, keys) })
}

func (r seamRows) Persist(ctx context.Context, row job.Row) (job.Persisted, error) {
	return through(r.seam, storeSide, "Persist", func() (job.Persisted, error) {
		r.m.mayPersist(row)
		return r.rows.Persist(ctx, row)
	})
}

func (r seamRows) RaiseEntry(ctx context.Context, key job.Key, entryID string) error {
	return r.call(storeSide, "RaiseEntry", func() error { return r.rows.RaiseEntry(ctx, key, entryID) })
}

func (r seamRows) SetDeadID(ctx context.Context, key job.Key, effect, deadID string) error {
	return r.call(storeSide, "SetDeadID", func() error { return r.rows.SetDeadID(ctx, key, effect, deadID) })
}

// seamTemporal is the workflow service behind a seam. Its listings may lag
// behind, as those of the server do.
type seamTemporal struct {
	*seam
	f *fakeTemporal
}

func (t seamTemporal) Start(ctx context.Context, req StartRequest) (StartResult, error) {
	return through(t.seam, temporalSide, "Start", func() (StartResult, error) {
		before := len(t.f.startedIDs())
		res, err := t.f.Start(ctx, req)
		if len(t.f.startedIDs()) > before {
			t.m.mayStart(req)
		}
		return res, err
	})
}

func (t seamTemporal) Describe(ctx context.Context, id string) (Run, error) {
	return through(t.seam, temporalSide, "Describe", func() (Run, error) { return t.f.Describe(ctx, id) })
}

func (t seamTemporal) Input(ctx context.Context, run Run) (workflows.Input, error) {
	return through(t.seam, temporalSide, "Input", func() (workflows.Input, error) { return t.f.Input(ctx, run) })
}

func (t seamTemporal) Open(ctx context.Context) ([]Run, error) {
	return through(t.seam, temporalSide, "Open", func() ([]Run, error) {
		if t.m.lagging {
			return t.m.listed.open, nil
		}
		return t.f.Open(ctx)
	})
}

func (t seamTemporal) Killed(ctx context.Context, since time.Time) ([]Run, error) {
	return through(t.seam, temporalSide, "Killed", func() ([]Run, error) {
		runs, err := t.f.Killed(ctx, since)
		if t.m.lagging {
			runs = slices.Clone(t.m.listed.killed)
		}
		return slices.DeleteFunc(runs, func(r Run) bool { return r.ClosedAt.Before(since) }), err
	})
}

func (t seamTemporal) Namespace(ctx context.Context) (string, error) {
	return through(t.seam, temporalSide, "Namespace", func() (string, error) { return t.f.Namespace(ctx) })
}
