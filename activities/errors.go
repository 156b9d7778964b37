package activities

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/workflows"
)

// Codes of failures that are not the LLM's; those are llm.Kind values.
const (
	CodeWorkerDied = "worker_died"
	CodePanic      = "executor_panic"
	CodeShutdown   = "worker_shutdown"
	CodeCoolDown   = "llm_cool_down"
	CodeTaskLost   = "task_lost"
	CodeNoSlot     = "no_free_slot"
	CodeGate       = "total_limit_unavailable"
	CodeStore      = "store_unavailable"
	CodeStream     = "redis_unavailable"
)

// How often a job may be tried where a repetition is unlikely to help.
const (
	maxMalformed    = 3
	maxWorkerDeaths = 5
)

// Delays before the next attempt. Where none is given here, the workflow's retry
// policy decides (1 s, doubled up to 15 s).
const (
	slowRetry      = time.Minute            // most, for errors in our own configuration
	returnedDelay  = 100 * time.Millisecond // a task given back
	coolDownJitter = 0.2                    // so that waiting jobs do not come back all at once
)

// ErrNoSlot is the error of Slots whose calls take too long to wait for one.
var ErrNoSlot = errors.New("calls take long, and all slots of this worker are taken")

// Why an attempt ended without an answer and without the LLM's doing.
var (
	errUserCanceled = errors.New("canceled by a user")
	errHeardLate    = fmt.Errorf("%w (heard after heartbeats had been lost)", errUserCanceled)
	errShutdown     = errors.New("the worker is shutting down")
	errTaskLost     = errors.New("the server gave the task to another worker")
	errPanic        = errors.New("panic")
)

// coolDownError is returned instead of a call while an endpoint asks for patience.
type coolDownError struct {
	wait   time.Duration
	probed bool // the patience is over, and another call finds out whether it was enough
}

func (e coolDownError) Error() string {
	if e.probed {
		return "the LLM endpoint asked to wait, and another call finds out whether it accepts again"
	}
	return "the LLM endpoint asked to wait"
}

// afterDeaths ends the job when its workers keep dying: it is probably the job
// that kills them.
func (a *attempt) afterDeaths() error {
	if a.deaths() < maxWorkerDeaths {
		return nil
	}
	a.metrics.ActivityError(a.role, CodeWorkerDied)
	return a.fail(CodeWorkerDied, int(a.info.Attempt)-1, a.signed(fmt.Sprintf(
		"%d attempts ended without a report: look for what ended their workers, for example a memory limit", a.deaths())))
}

// end turns the error of an attempt into what Temporal is told, and leaves the
// count for the next attempt. It is the only place that decides what is retried.
func (a *attempt) end(err error) error {
	switch {
	case errors.Is(err, errHeardLate):
		// A plain cancellation is one to the SDK only if it ended the activity's
		// context itself.
		return temporal.NewNonRetryableApplicationError(errHeardLate.Error(), workflows.CodeCanceled, temporal.NewCanceledError())
	case errors.Is(err, errUserCanceled):
		return temporal.NewCanceledError()
	}
	code := kindOf(err)
	p := a.progress
	p.Classified++
	now := a.serverNow()
	tooLong := !p.FirstFailure.IsZero() && now.Sub(p.FirstFailure) >= a.cfg.RetryFor
	var until time.Time // the endpoint wants to be left alone
	if wait := patience(err); wait > 0 {
		until = now.Add(wait)
	}
	why := a.explain(err, code, until)
	again := func(delay time.Duration, category temporal.ApplicationErrorCategory) error {
		a.beats.stop()
		a.beats.leave(p, waitingFor(err, code, until), now)
		return temporal.NewApplicationErrorWithOptions(why, code, temporal.ApplicationErrorOptions{
			NextRetryDelay: delay,
			Category:       category,
			Details:        []any{workflows.Failure{Model: a.model, Attempts: a.counted()}},
		})
	}

	// Given back, without anything having failed.
	var cooling coolDownError
	switch {
	case errors.Is(err, errShutdown), errors.Is(err, errTaskLost), errors.Is(err, ErrNoSlot):
		p.Returned++
		return again(returnedDelay, temporal.ApplicationErrorCategoryBenign)
	case errors.As(err, &cooling) && !tooLong:
		p.Returned++
		return again(jittered(cooling.wait), temporal.ApplicationErrorCategoryBenign)
	}

	a.metrics.ActivityError(a.role, code)
	if tooLong || a.cfg.RetryFor <= 0 {
		return a.fail(code, a.counted(), fmt.Sprintf("%s, given up after RETRY_FOR (%s)", why, a.cfg.RetryFor))
	}
	if p.FirstFailure.IsZero() {
		p.FirstFailure = now
	}
	var llmErr *llm.Error
	switch {
	case errors.Is(err, errPanic):
		if p.Malformed++; p.Malformed >= maxMalformed {
			return a.fail(code, a.counted(), why)
		}
		return again(0, temporal.ApplicationErrorCategoryUnspecified)
	case !errors.As(err, &llmErr):
		return again(0, temporal.ApplicationErrorCategoryUnspecified)
	}
	switch llmErr.Kind {
	case llm.BadRequest, llm.Filtered, llm.TooLarge:
		return a.fail(code, a.counted(), why)
	case llm.Malformed:
		if p.Malformed++; p.Malformed >= maxMalformed {
			return a.fail(code, a.counted(), why)
		}
	case llm.Quota, llm.Misconfigured:
		return again(backoff(p.Classified-p.Returned, slowRetry), temporal.ApplicationErrorCategoryUnspecified)
	case llm.RateLimited, llm.ServerError:
		if wait := coolDownOf(err); wait > 0 {
			return again(jittered(wait), temporal.ApplicationErrorCategoryBenign)
		}
	case llm.Unreachable, llm.Timeout, llm.Canceled:
	}
	return again(0, temporal.ApplicationErrorCategoryUnspecified)
}

// fail ends the job. The message is for users, why is for operators.
func (a *attempt) fail(code string, attempts int, why string) error {
	return temporal.NewApplicationErrorWithOptions(userMessage(code), code, temporal.ApplicationErrorOptions{
		NonRetryable: true,
		Details:      []any{workflows.Failure{Model: a.model, Attempts: attempts, Cause: why}},
	})
}

// kindOf is the stable code of an error: for the row, the update and the metrics.
func kindOf(err error) string {
	var llmErr *llm.Error
	var cooling coolDownError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &llmErr):
		return string(llmErr.Kind)
	case errors.As(err, &cooling):
		return CodeCoolDown
	case errors.Is(err, errPanic):
		return CodePanic
	case errors.Is(err, errShutdown):
		return CodeShutdown
	case errors.Is(err, errTaskLost):
		return CodeTaskLost
	case errors.Is(err, ErrNoSlot):
		return CodeNoSlot
	case errors.Is(err, errUserCanceled), errors.Is(err, context.Canceled):
		return workflows.CodeCanceled
	default:
		return CodeGate
	}
}

// userMessage is what a user may read about a failed job. It says nothing of
// endpoints, and nothing that came from the LLM.
func userMessage(code string) string {
	switch code {
	case string(llm.Unreachable):
		return "The language model could not be reached."
	case string(llm.Timeout):
		return "The language model did not answer in time."
	case string(llm.ServerError):
		return "The language model reported an error of its own."
	case string(llm.RateLimited), CodeCoolDown:
		return "The language model was too busy to take the request."
	case string(llm.Quota):
		return "The language model's quota is used up."
	case string(llm.Misconfigured):
		return "The language model refused the service's request; an administrator has to look at its settings."
	case string(llm.BadRequest):
		return "The language model did not accept the request."
	case string(llm.Malformed):
		return "The language model's answer could not be used."
	case string(llm.Filtered):
		return "The language model's content filter stopped the answer."
	case string(llm.TooLarge):
		return "The language model's answer is too large."
	case CodeWorkerDied:
		return "The workers that ran this job kept dying."
	case CodePanic:
		return "The job could not be run because of an internal error."
	default:
		return "The job could not be run."
	}
}

// coolDownOf is how long the endpoint asked to be left alone, or 0.
func coolDownOf(err error) time.Duration {
	var e *llm.Error
	if !errors.As(err, &e) {
		return 0
	}
	switch {
	case e.Kind == llm.RateLimited && e.RetryAfter == 0:
		return defaultCoolDown
	case e.Kind == llm.RateLimited, e.Kind == llm.ServerError && e.Status == 503:
		return e.RetryAfter
	default:
		return 0
	}
}

// patience is how long the endpoint wants to be left alone, as far as an attempt
// knows, or 0.
func patience(err error) time.Duration {
	var cooling coolDownError
	if errors.As(err, &cooling) && !cooling.probed {
		return cooling.wait
	}
	return coolDownOf(err)
}

// backoff doubles from one second with every failure, up to most.
func backoff(failures int, most time.Duration) time.Duration {
	return min(time.Second<<min(max(failures-1, 0), 10), most)
}

// jittered lengthens a delay by up to a fifth, never below a second.
func jittered(d time.Duration) time.Duration {
	d = max(d, time.Second)
	return d + time.Duration(rand.Float64()*coolDownJitter*float64(d)) //nolint:gosec // spreads load, guards nothing
}

// unavailable marks an error of a final activity for the UI. The activity is
// retried until it succeeds.
func unavailable(code string, err error) error {
	if err == nil {
		return nil
	}
	return temporal.NewApplicationErrorWithOptions(err.Error(), code, temporal.ApplicationErrorOptions{})
}
