package store

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
)

// groupCommit is SQLite's one writer. A commit costs an fsync however much it
// holds, so whatever waits is committed together; and a file has one writer at
// a time anyway, so a queue in the process replaces a fight for its lock.
type groupCommit struct {
	db    *sql.DB
	queue chan *write
	done  chan struct{} // closed when the queue is drained

	mu     sync.RWMutex // held shared while enqueueing, so that close loses nobody
	closed bool

	commits atomic.Int64 // transactions committed; tests compare it with the calls
}

// write is one caller's part of a transaction.
type write struct {
	op     operation
	given  func() error // the caller's ctx.Err: not nil when it stopped waiting
	result chan error   // buffered: the writer never waits for a caller
}

// Limits of one transaction and of the queue before it.
const (
	maxGroup = 64
	maxQueue = 1024
)

// newGroupCommit starts the writer. It outlives ctx, of which only the values
// are used: it ends with close.
func newGroupCommit(ctx context.Context, db *sql.DB) *groupCommit {
	g := &groupCommit{db: db, queue: make(chan *write, maxQueue), done: make(chan struct{})}
	go g.run(context.WithoutCancel(ctx))
	return g
}

// do runs op in a transaction, perhaps together with others, and returns when
// that is committed. After ctx ends it returns at once; op may then still
// happen, unless it had not begun.
func (g *groupCommit) do(ctx context.Context, op operation) error {
	w := &write{op: op, given: ctx.Err, result: make(chan error, 1)}
	if err := g.enqueue(ctx, w); err != nil {
		return err
	}
	select {
	case err := <-w.result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *groupCommit) enqueue(ctx context.Context, w *write) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return ErrClosed
	}
	select {
	case g.queue <- w:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close commits what is queued and ends the writer.
func (g *groupCommit) close() {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		close(g.queue)
	}
	g.mu.Unlock()
	<-g.done
}

func (g *groupCommit) run(ctx context.Context) {
	defer close(g.done)
	for first := range g.queue {
		g.commit(ctx, g.collect(first))
	}
}

// collect returns first and what else waits, without those nobody waits for.
func (g *groupCommit) collect(first *write) []*write {
	var group []*write
	add := func(w *write) {
		if err := w.given(); err != nil {
			w.result <- err
			return
		}
		group = append(group, w)
	}
	add(first)
	for len(group) < maxGroup {
		select {
		case w, open := <-g.queue:
			if !open {
				return group
			}
			add(w)
		default:
			return group
		}
	}
	return group
}

// commit answers every write of group. If together they fail, each is tried on
// its own, so that one cannot take the others down with it.
func (g *groupCommit) commit(ctx context.Context, group []*write) {
	if len(group) == 0 {
		return
	}
	begun, err := g.transact(ctx, group)
	if err != nil && begun && len(group) > 1 {
		for i := range group {
			g.commit(ctx, group[i:i+1])
		}
		return
	}
	for _, w := range group {
		w.result <- err
	}
}

func (g *groupCommit) transact(ctx context.Context, group []*write) (begun bool, err error) {
	tx, err := g.db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	for _, w := range group {
		if err := w.op(ctx, tx); err != nil {
			return true, err
		}
	}
	if err := tx.Commit(); err != nil {
		return true, err
	}
	g.commits.Add(1)
	return true, nil
}
