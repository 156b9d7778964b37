package activities

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"

	"github.com/nodpt/executor/workflows"
)

// progress is what an attempt leaves to the next in the heartbeat details. It is
// written only when an attempt fails: a successful one needs no memory, and every
// write is a call to the server.
type progress struct {
	FirstFailure time.Time `json:"first_failure_at,omitzero"` // by the server's clock
	// Classified counts the attempts that ended with a report. Those that did not
	// died with their worker.
	Classified int `json:"classified"`
	// Malformed counts unusable answers and panics.
	Malformed int `json:"malformed,omitempty"`
	// Returned counts classified attempts that gave the task back without having
	// worked on it: at a shutdown, while the endpoint asks for patience, or for want
	// of a slot.
	Returned int `json:"returned,omitempty"`
	// Waited counts those among the returned whose worker died while they waited.
	Waited int `json:"waited,omitempty"`
}

// readProgress is what the attempts before this one have left.
func readProgress(ctx context.Context, attempt int32) progress {
	var p progress
	if !activity.HasHeartbeatDetails(ctx) {
		return p
	}
	if activity.GetHeartbeatDetails(ctx, &p) != nil {
		return progress{} // details of another version: count anew
	}
	var last struct {
		State   string `json:"state"`
		Attempt int32  `json:"attempt"`
	}
	if activity.GetHeartbeatDetails(ctx, &last) != nil || last.Attempt >= attempt {
		return p
	}
	// An attempt whose last word was that it waits had not called, and killed no
	// worker. Or it did between two beats: so not for ever.
	if (last.State == stateSlot || last.State == stateTotal) && p.Waited < maxWorkerDeaths {
		p.Waited++
		p.Classified++
		p.Returned++
	}
	return p
}

// deaths is the number of earlier attempts whose worker died. Resetting the
// activity by hand counts attempts from one again and keeps the details.
func (a *attempt) deaths() int { return max(int(a.info.Attempt)-1-a.progress.Classified, 0) }

// counted is the number of attempts that worked on the job, this one included.
func (a *attempt) counted() int { return max(int(a.info.Attempt)-a.progress.Returned, 1) }

// beats tells the server every HeartbeatEvery that the attempt is alive and what
// it is doing, and carries the progress, because a beat erases the details of the
// one before.
type beats struct {
	ctx   context.Context //nolint:containedctx // the heartbeat API takes the activity's context
	ended <-chan struct{} // the activity's own context has ended
	heard <-chan error    // what the server answered to a beat that ends the attempt
	mu    sync.Mutex
	last  report
	sent  time.Time // when the last one was; zero: none yet
	done  chan struct{}
	once  sync.Once
	gone  sync.WaitGroup
}

func startBeats(ctx context.Context, first report) *beats {
	// After a beat that could not be delivered the SDK cancels the activity's
	// context, but the call goes on (see callContext), and so must the beats.
	b := &beats{ended: ctx.Done(), last: first, done: make(chan struct{})}
	b.ctx, b.heard = hearing(context.WithoutCancel(ctx))
	b.gone.Go(func() {
		ticker := time.NewTicker(workflows.HeartbeatEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				b.send()
			case <-b.done:
				return
			}
		}
	})
	return b
}

func (b *beats) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	activity.RecordHeartbeat(b.ctx, b.last)
	b.sent = time.Now()
}

// overdue reports whether nothing was heard of the attempt for so long that the
// server may have given the task to another worker.
func (b *beats) overdue(started time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sent.IsZero() {
		return time.Since(started) >= workflows.HeartbeatTimeout
	}
	return time.Since(b.sent) >= workflows.HeartbeatTimeout
}

// ours asks the server whether the task is still this worker's, where that is in
// doubt: the process was frozen with the task in hand or on its way. A zombie that
// found out with its next beat would have begun a call by then that another worker
// makes as well. Where the clocks of worker and server differ by that much, it
// costs each job a beat.
func (a *attempt) ours() error {
	if !a.beats.overdue(a.info.StartedTime) {
		return nil
	}
	a.beats.send()
	select {
	case answer := <-a.beats.heard:
		return whyEnded(answer)
	default:
		return nil
	}
}

// say changes what the next beat says. It sends nothing: a beat per step would
// slow down every short call.
func (b *beats) say(state string, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last.State, b.last.Since = state, since.UTC().Truncate(time.Second)
}

// leave records the progress for the next attempt, and what the job waits for
// until then.
func (b *beats) leave(p progress, state string, since time.Time) {
	b.say(state, since)
	b.mu.Lock()
	b.last.progress = p
	b.mu.Unlock()
	b.send()
	select {
	case <-b.ended:
		// The SDK holds a beat back that follows another too soon, and would send
		// it at the activity's end with the context that has ended. It has to be
		// given the time to send it by itself.
		<-time.After(workflows.HeartbeatEvery + beatSlack)
	default:
	}
}

// beatSlack is how much later than planned the SDK may send a beat.
const beatSlack = 200 * time.Millisecond

func (b *beats) stop() {
	b.once.Do(func() { close(b.done) })
	b.gone.Wait()
}

// callContext is the context of the LLM call. It ends when a user cancels, when
// the worker's drain time is over, and when the server has given the task to
// someone else, with a cause that says which. It does not end when heartbeats
// cannot be delivered for a while: the call is paid for, and its answer is kept
// whatever the server thinks of the attempt by then.
func (a *attempt) callContext(ctx context.Context) (context.Context, func()) {
	calling, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	go func() {
		ended, stopping := ctx.Done(), activity.GetWorkerStopChannel(ctx)
		var drained <-chan time.Time
		var heard <-chan error
		for {
			select {
			case <-calling.Done():
				return
			case <-ended:
				if why := whyEnded(context.Cause(ctx)); why != nil {
					cancel(why)
					return
				}
				// It ends once. From here on the answers to the beats speak.
				ended, heard = nil, a.beats.heard
			case answer := <-heard:
				why := whyEnded(answer)
				if errors.Is(why, errUserCanceled) {
					why = errHeardLate
				}
				cancel(why)
				return
			case <-stopping:
				stopping = nil
				drain := time.NewTimer(a.cfg.DrainTimeout)
				defer drain.Stop()
				drained = drain.C
			case <-drained:
				// A moment before the SDK would end everything: reports that it makes
				// itself at that point lose their type and delay.
				cancel(errShutdown)
				return
			}
		}
	}()
	return calling, func() { cancel(nil) }
}

// whyEnded says what the end of an activity's context means, or nil where it
// means only that the server could not be reached.
func whyEnded(cause error) error {
	var notFound *serviceerror.NotFound
	switch {
	case temporal.IsCanceledError(cause):
		return errUserCanceled
	case errors.Is(cause, worker.ErrWorkerShutdown):
		return errShutdown
	case errors.As(cause, &notFound), errors.Is(cause, activity.ErrActivityPaused), errors.Is(cause, activity.ErrActivityReset),
		errors.Is(cause, context.DeadlineExceeded):
		return errTaskLost
	default:
		return nil
	}
}
