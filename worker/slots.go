package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	sdk "go.temporal.io/sdk/worker"
	"golang.org/x/sync/semaphore"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/job"
)

// When tasks are fetched ahead of a free slot. Between two calls the report of
// the first, a poll and the start of the next task at the server take 60 to
// 100 ms, measured while jobs come in.
const (
	// prefetchAhead is how much work is fetched ahead: what the slots begin in that
	// time. It is more than the gap, because calls do not end evenly: of five slots
	// with calls of a second two are in the gap at once every few seconds.
	prefetchAhead = 250 * time.Millisecond
	// prefetchMost is the number of tasks fetched ahead where calls take next to
	// nothing.
	prefetchMost = 64
	// prefetchCalls is the longest usual call with which tasks are fetched ahead.
	// Above it the gap costs 2 to 3 %, and a task that waits here could have been
	// called by another process long ago.
	prefetchCalls = 3 * time.Second
	// patience is how long a task waits here when calls have become longer since it
	// was fetched. Then any process with a free slot may take it.
	patience = 5 * time.Second
)

// weight is the part of a finished call in the estimate of the usual one.
const weight = 8

// Slots are the slots of a role in this process, in both meanings: calls under
// way, of which there are never more than the limit, and what the SDK wants to
// have before it polls. Were the two the same, a slot would be idle from the end
// of its call until the next task is there. So while calls are short the SDK gets
// a few more, and the tasks it fetches with them wait here, first come, first
// served.
type Slots struct {
	limit int
	most  int                 // tasks fetched ahead at most
	calls *semaphore.Weighted // serves in order

	mu      sync.Mutex
	issued  int           // to the SDK
	freed   chan struct{} // closed when there may be one more to issue; nil if nobody waits
	running int           // calls under way
	changed time.Time     // when one began or ended
	usual   time.Duration // how long they take; 0 before the first has ended
}

// NewSlots returns the slots of a role in this process.
func NewSlots(cfg Config, role job.Role) *Slots {
	limit := cfg.slots(role)
	s := &Slots{limit: limit, calls: semaphore.NewWeighted(int64(limit))}
	if cfg.limited(role) {
		s.most = min(limit, prefetchMost)
	}
	return s
}

// Acquire waits for a place to make a call. The returned function gives it back
// and must be told the call's error, once.
//
// Without one, the error is the context's or activities.ErrNoSlot: calls take
// long, and the task should go where a slot is free.
func (s *Slots) Acquire(ctx context.Context) (func(error), error) {
	if !s.calls.TryAcquire(1) {
		if err := s.wait(ctx); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	s.began(began)
	return func(err error) {
		s.ended(began, err)
		s.calls.Release(1)
	}, nil
}

func (s *Slots) wait(ctx context.Context) error {
	if s.room() == s.limit {
		// It came with a poll that has been open since calls were shorter.
		return activities.ErrNoSlot
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, activities.ErrNoSlot)
	defer cancel()
	if s.calls.Acquire(ctx, 1) == nil {
		return nil
	}
	err := context.Cause(ctx)
	if errors.Is(err, activities.ErrNoSlot) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.usual = max(s.usual, patience) // not to fetch the next one at once
	}
	return err
}

func (s *Slots) began(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running++
	s.changed = now
	s.wake()
}

func (s *Slots) ended(began time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	s.changed = time.Now()
	// A call that soon failed says nothing of how long the next one takes.
	if took := s.changed.Sub(began); err == nil || took > prefetchCalls {
		if s.usual == 0 {
			s.usual = max(took, 1)
		}
		s.usual += (took - s.usual) / weight
	}
	s.wake()
}

// room is the number of slots there are for the SDK.
func (s *Slots) room() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit + s.ahead()
}

// ahead is the number of tasks to fetch ahead. Time alone only lowers it: what may
// raise it wakes those who wait for a slot.
func (s *Slots) ahead() int {
	call := s.usual
	if s.running == s.limit {
		call = max(call, time.Since(s.changed)) // calls under way tell before they end
	}
	if s.usual == 0 || call > prefetchCalls {
		return 0
	}
	begin := (time.Duration(s.limit)*prefetchAhead + call - 1) / call
	return int(min(begin, time.Duration(s.most)))
}

// wake lets those who wait for a slot look again.
func (s *Slots) wake() {
	if s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
}

// tryReserve returns a permit, or what to wait for.
func (s *Slots) tryReserve() (*sdk.SlotPermit, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.issued < s.limit+s.ahead() {
		s.issued++
		return &sdk.SlotPermit{}, nil
	}
	if s.freed == nil {
		s.freed = make(chan struct{})
	}
	return nil, s.freed
}

// ReserveSlot waits for a slot to poll with.
func (s *Slots) ReserveSlot(ctx context.Context, _ sdk.SlotReservationInfo) (*sdk.SlotPermit, error) {
	for {
		permit, freed := s.tryReserve()
		if permit != nil {
			return permit, nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// TryReserveSlot is for tasks that come without a poll; role queues have none.
func (s *Slots) TryReserveSlot(sdk.SlotReservationInfo) *sdk.SlotPermit {
	permit, _ := s.tryReserve()
	return permit
}

// MarkSlotUsed does nothing: a slot counts from its reservation on.
func (s *Slots) MarkSlotUsed(sdk.SlotMarkUsedInfo) {}

// ReleaseSlot takes a slot back.
func (s *Slots) ReleaseSlot(sdk.SlotReleaseInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issued--
	s.wake()
}

// MaxSlots is what the SDK's metrics subtract the used slots from. It is the
// limit, so that they show what operators have set; tasks fetched ahead make the
// number of free slots negative.
func (s *Slots) MaxSlots() int { return s.limit }

// tuner gives the SDK the slots of a worker that serves nothing but a role.
func (s *Slots) tuner() sdk.WorkerTuner {
	t, _ := sdk.NewCompositeTuner(sdk.CompositeTunerOptions{ActivitySlotSupplier: s}) // never fails
	return t
}
