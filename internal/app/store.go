package app

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
)

// announcer makes the processes that share a Redis agree on one result store.
type announcer interface {
	AnnounceStore(ctx context.Context, storeUUID string) (other string, err error)
}

// errNotOpen is what callers get until the database has answered once.
var errNotOpen = errors.New("the result store is not open yet: check DATABASE_URL")

// errNotConfirmed is what they get until Redis has answered too.
var errNotConfirmed = errors.New("the database is open; waiting for Redis to say that no other one is in use: check REDIS_CONNECTION")

// resultStore is the result store of a process that must come up, and stay up,
// while its database is away: opening it is tried again until it works, and
// until then every call says so. Rows are written only after Redis has confirmed
// that no other process works on another database, because two of them would
// silently lose the memory of which jobs are done.
type resultStore struct {
	cfg      store.Config
	log      *slog.Logger
	announce announcer
	fatal    func(err error, exitCode int)
	limit    time.Duration // of one call

	open  atomic.Pointer[store.Store]
	asked atomic.Bool // the database is open, Redis is being asked
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

const (
	announceEvery = 10 * time.Second
	announceRetry = time.Second
	openRetry     = 5 * time.Second
	// storeCall is how long one call may take. A frozen server and a network that
	// carries nothing give no error. A final step waits up to 10 s between two tries
	// (workflows.stepRegular), so that with these 5 s the next one comes within the 15 s
	// of I7 after the database is back, and not when the activity's own time is over.
	storeCall = 5 * time.Second
)

func newResultStore(cfg store.Config, a announcer, log *slog.Logger, fatal func(error, int)) *resultStore {
	return &resultStore{cfg: cfg, announce: a, log: log, fatal: fatal, limit: storeCall}
}

// Start begins to open the store and returns.
func (s *resultStore) Start() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.tasks.Go(func() { s.run(ctx) })
}

// Stop closes the store. Writes under way are finished first.
func (s *resultStore) Stop() error {
	s.stop()
	s.tasks.Wait()
	if opened := s.open.Swap(nil); opened != nil {
		return opened.Close()
	}
	return nil
}

func (s *resultStore) run(ctx context.Context) {
	opened := s.openStore(ctx)
	if opened == nil {
		return
	}
	s.asked.Store(true)
	for {
		other, err := s.announce.AnnounceStore(ctx, opened.UUID())
		switch {
		case err == nil && other != "":
			s.log.ErrorContext(ctx, "another executor on this Redis uses another database; one of them would forget what the other has done",
				slog.String("database", opened.Describe()))
			s.fatal(errors.New("two databases on one Redis: set the same DATABASE_URL everywhere, or stop the other executors for half a minute"), 2)
			if s.open.Load() == nil {
				_ = opened.Close()
			}
			return
		case err == nil:
			s.open.Store(opened)
		}
		delay := announceEvery
		if err != nil {
			delay = announceRetry
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			if s.open.Load() == nil {
				_ = opened.Close()
			}
			return
		case <-timer.C:
		}
	}
}

func (s *resultStore) openStore(ctx context.Context) *store.Store {
	for delay := 250 * time.Millisecond; ; delay = min(2*delay, openRetry) {
		opened, err := store.Open(ctx, s.cfg, s.log)
		if err == nil {
			return opened
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, store.ErrConfig) {
			s.fatal(err, 2)
			return nil
		}
		s.log.WarnContext(ctx, "the result store cannot be opened, trying again", slog.Any("error", err), slog.Duration("delay", delay))
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// ready returns the store, or why there is none yet.
func (s *resultStore) ready() (*store.Store, error) {
	switch opened := s.open.Load(); {
	case opened != nil:
		return opened, nil
	case s.asked.Load():
		return nil, errNotConfirmed
	default:
		return nil, errNotOpen
	}
}

// Check is the readiness of the store.
func (s *resultStore) Check(ctx context.Context) error {
	opened, err := s.ready()
	if err != nil {
		return err
	}
	return opened.Ping(ctx)
}

func (s *resultStore) Persist(ctx context.Context, row job.Row) (job.Persisted, error) {
	return limited(ctx, s, func(ctx context.Context, opened *store.Store) (job.Persisted, error) {
		return opened.Persist(ctx, row)
	})
}

func (s *resultStore) Row(ctx context.Context, key job.Key) (job.Row, bool, error) {
	rows, err := s.Rows(ctx, []job.Key{key})
	row, found := rows[key]
	return row, found, err
}

func (s *resultStore) Rows(ctx context.Context, keys []job.Key) (map[job.Key]job.Row, error) {
	return limited(ctx, s, func(ctx context.Context, opened *store.Store) (map[job.Key]job.Row, error) {
		return opened.Rows(ctx, keys)
	})
}

func (s *resultStore) RaiseEntry(ctx context.Context, key job.Key, entryID string) error {
	_, err := limited(ctx, s, func(ctx context.Context, opened *store.Store) (struct{}, error) {
		return struct{}{}, opened.RaiseEntry(ctx, key, entryID)
	})
	return err
}

func (s *resultStore) SetDeadID(ctx context.Context, key job.Key, effect, deadID string) error {
	_, err := limited(ctx, s, func(ctx context.Context, opened *store.Store) (struct{}, error) {
		return struct{}{}, opened.SetDeadID(ctx, key, effect, deadID)
	})
	return err
}

// limited makes one call, for which it takes no longer than it may. A call that was
// given up may have been done: each can be repeated.
func limited[T any](ctx context.Context, s *resultStore, call func(context.Context, *store.Store) (T, error)) (T, error) {
	opened, err := s.ready()
	if err != nil {
		var none T
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	return call(ctx, opened)
}
