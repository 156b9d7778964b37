package workflows

import (
	"errors"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/nodpt/executor/internal/job"
)

// Codes of outcomes that the workflow itself decides.
const (
	CodeCanceled    = "canceled"
	CodeUnknownRole = "unknown_role"
	CodeInternal    = "internal_error"
)

// JobWorkflow runs one job: it calls the role's activity, then persists,
// publishes and acknowledges the outcome, in that order, so that whoever sees an
// update finds a row, and whoever sees an acknowledged entry finds an update.
//
// It returns a Result for a completed job, an application error typed with the
// outcome's code for a failed one (the UI's Failed filter is then true), and a
// cancellation for a canceled one. In every case the books are finished first.
func JobWorkflow(ctx workflow.Context, in Input) (Result, error) {
	in.checkPlan()
	r := newRun(ctx, in)

	// Final steps are owed whether or not the run is canceled meanwhile.
	books, done := workflow.NewDisconnectedContext(ctx)
	defer done()

	override := lastOverride(ctx)
	if r.again && !override.Force && readsRowFirst(ctx) {
		r.story.now(ctx, "reading the row, because a person started this run")
		stored, err := r.completedElsewhere(books)
		if err != nil {
			return Result{}, err
		}
		if stored != nil {
			// Nothing to say. Should that other run have been cut off before it had
			// said everything, its entry is still pending, and the bridge says the rest.
			r.story.ended(ctx, "another run has completed the job, so the model was not asked and nothing is published")
			return result(*stored, job.Superseded), nil
		}
	}

	outcome, cause := r.call(ctx, override)
	return r.settle(books, outcome, cause)
}

// run is what one execution of JobWorkflow knows about itself.
type run struct {
	Input
	effect  string
	again   bool // a person started this run: it speaks for itself, not for the entry
	story   story
	id      workflow.Execution
	started time.Time
}

func newRun(ctx workflow.Context, in Input) *run {
	info := workflow.GetInfo(ctx)
	r := &run{Input: in, id: info.WorkflowExecution, started: workflow.Now(ctx)}
	_, ours := info.Memo.GetFields()[MemoEntryID]
	// A reset copies the memo and the first run's id, and makes a run id of its own.
	first := info.FirstRunID == "" || info.FirstRunID == info.WorkflowExecution.RunID
	if ours && first {
		r.effect = job.EntryEffect(in.Origin.Stream, in.Origin.EntryID)
	} else {
		r.effect = job.RunEffect(info.WorkflowExecution.RunID)
		r.again = true
	}
	return r
}

// lastOverride reads what was signaled so far; a reset applies its signal before
// the first workflow task of the new run.
func lastOverride(ctx workflow.Context) Override {
	var override, next Override
	ch := workflow.GetSignalChannel(ctx, OverrideSignal)
	for ch.ReceiveAsync(&next) {
		override, next = next, Override{}
	}
	return override
}

// completedElsewhere returns the row if another run has completed the job, so
// that a second bulk reset pays for no LLM call.
func (r *run) completedElsewhere(ctx workflow.Context) (*job.Row, error) {
	var stored Stored
	if err := r.step(ctx, ActivityReadRow, "read row", job.Key{Role: r.Job.Role, JobID: r.Job.ID}, &stored); err != nil {
		return nil, err
	}
	if !stored.Found || stored.Row == nil || stored.Row.Status != job.Completed || stored.Row.Effect == r.effect {
		return nil, nil
	}
	return stored.Row, nil
}

// call runs the role activity and turns whatever comes back into an outcome.
// The error is what the run is to fail with, or nil.
func (r *run) call(ctx workflow.Context, override Override) (job.Outcome, error) {
	if _, err := job.ParseRole(string(r.Job.Role)); err != nil {
		return r.failed(CodeUnknownRole, "The job's role is not known.", Failure{})
	}
	r.story.now(ctx, "asking the model ("+callSummary(r.Job.Role, override)+" on queue `"+RoleQueue(r.Job.Role)+
		"`); its attempts are below, as a pending activity")
	asked := workflow.Now(ctx)
	var answer Answer
	err := workflow.ExecuteActivity(
		workflow.WithActivityOptions(ctx, roleCall(r.Job.Role, override)),
		RoleActivity(r.Job.Role),
		Call{
			Job: r.Job, Effect: r.effect,
			Model: override.Model, MaxTokens: override.MaxTokens,
			Redelivered: r.Origin.Redelivered,
		},
	).Get(ctx, &answer)

	var applicationErr *temporal.ApplicationError
	switch {
	case err == nil:
		outcome := job.Outcome{
			Status:           job.Completed,
			Output:           answer.Text,
			Model:            answer.Model,
			PromptTokens:     answer.PromptTokens,
			CompletionTokens: answer.CompletionTokens,
			Truncated:        answer.Truncated,
			Attempts:         answer.Attempts,
		}
		r.story.answered(outcome, workflow.Now(ctx).Sub(asked))
		return outcome, nil
	case temporal.IsCanceledError(err), ctx.Err() != nil && !isFinal(err):
		// The server retries nothing once a cancellation was asked for, so an
		// attempt that failed before it heard of it comes back as it is.
		r.story.did("Canceled while the model was asked")
		return job.Outcome{
			Status:       job.Canceled,
			ErrorCode:    CodeCanceled,
			ErrorMessage: "The job was canceled.",
		}, temporal.NewCanceledError()
	case errors.As(err, &applicationErr):
		var failure Failure
		if applicationErr.HasDetails() {
			if applicationErr.Details(&failure) != nil {
				failure = Failure{} // a failure of another version: its code and message suffice
			}
		}
		message := applicationErr.Message()
		if !applicationErr.NonRetryable() {
			// Somebody ended the retries through Temporal. What the attempt said is
			// for operators.
			failure.Cause, message = message, messageInternal
		}
		return r.failed(applicationErr.Type(), message, failure)
	default:
		return r.failed(CodeInternal, messageInternal, Failure{})
	}
}

// isFinal reports whether an activity's error ended the job for good. The
// message of any other error is for operators.
func isFinal(err error) bool {
	var applicationErr *temporal.ApplicationError
	return errors.As(err, &applicationErr) && applicationErr.NonRetryable()
}

const messageInternal = "The job could not be run."

func (r *run) failed(code, message string, f Failure) (job.Outcome, error) {
	outcome := job.Outcome{
		Status:           job.Failed,
		ErrorCode:        code,
		ErrorMessage:     message,
		Model:            f.Model,
		PromptTokens:     f.PromptTokens,
		CompletionTokens: f.CompletionTokens,
		Attempts:         f.Attempts,
	}
	r.story.failed(outcome, f.Cause)
	return outcome, temporal.NewNonRetryableApplicationError(message, code, nil)
}

// settle finishes the books: row, update, dead letter, acknowledgement. While all
// is well that is one local activity, else one step after the other.
func (r *run) settle(ctx workflow.Context, outcome job.Outcome, cause error) (Result, error) {
	row := r.row(outcome, workflow.Now(ctx))
	if r.finishesAtOnce() {
		r.story.now(ctx, "storing the row, publishing the update and acknowledging the entry")
		summary := "persist, publish, acknowledge"
		if row.Status == job.Failed {
			summary = "persist, publish, dead letter, acknowledge"
		}
		var stored Stored
		if local(ctx, ActivityFinish, summary, Settled{Row: row, Job: r.Job, Origin: r.Origin}, &stored) == nil {
			row, cause = r.standing(row, stored, cause)
			r.story.stored(row, stored.Verdict)
			if stored.Verdict != job.Superseded {
				r.story.did("Published to " + code(r.Origin.Updates))
				if row.Status == job.Failed {
					r.story.did("Dead letter written")
				}
			}
			return r.acknowledged(ctx, row, stored.Verdict, cause)
		}
	}

	persist := r.step
	if r.finishesAtOnce() {
		persist = r.regular // the local budget is spent, and most likely on this one
	}
	var stored Stored
	r.story.now(ctx, "storing the row")
	if err := persist(ctx, ActivityPersist, "persist", row, &stored); err != nil {
		return Result{}, err
	}
	row, cause = r.standing(row, stored, cause)
	r.story.stored(row, stored.Verdict)
	if stored.Verdict != job.Superseded {
		settled := Settled{Row: row, Job: r.identifiers(), Origin: r.Origin}
		r.story.now(ctx, "publishing the update")
		if err := r.step(ctx, ActivityPublish, "publish", settled, nil); err != nil {
			return Result{}, err
		}
		r.story.did("Published to " + code(r.Origin.Updates))
		if row.Status == job.Failed {
			settled.Job = r.Job // in case the entry is gone from the stream
			r.story.now(ctx, "writing the dead letter")
			if err := r.step(ctx, ActivityDeadLetter, "dead letter", settled, nil); err != nil {
				return Result{}, err
			}
			r.story.did("Dead letter written")
		}
	}
	r.story.now(ctx, "acknowledging the entry")
	if err := r.step(ctx, ActivityAcknowledge, "acknowledge", r.Origin, nil); err != nil {
		return Result{}, err
	}
	return r.acknowledged(ctx, row, stored.Verdict, cause)
}

// standing is the row as it stands, and what the run ends with: what was stored
// first stands, and is what gets published.
func (r *run) standing(row job.Row, stored Stored, cause error) (job.Row, error) {
	if stored.Row == nil {
		return row, cause
	}
	if stored.Row.Effect == r.effect {
		cause = causeOf(*stored.Row)
	}
	return *stored.Row, cause
}

// acknowledged ends the run.
func (r *run) acknowledged(ctx workflow.Context, row job.Row, verdict job.Verdict, cause error) (Result, error) {
	if r.Origin.EntryID != "" {
		r.story.did("Acknowledged: " + code(r.Origin.EntryID) + " of " + code(r.Origin.Stream))
	}
	r.story.ended(ctx, outcomeText(row))
	if cause != nil {
		return Result{}, cause
	}
	return result(row, verdict), nil
}

// causeOf is the error a run with this stored outcome ends with.
func causeOf(row job.Row) error {
	switch row.Status {
	case job.Completed:
		return nil
	case job.Canceled:
		return temporal.NewCanceledError()
	case job.Failed, job.Rejected:
		return temporal.NewNonRetryableApplicationError(row.ErrorMessage, row.ErrorCode, nil)
	}
	return temporal.NewNonRetryableApplicationError("The stored outcome has an unknown status.", CodeInternal, nil)
}

func (r *run) row(outcome job.Outcome, now time.Time) job.Row {
	// In microseconds, as the stores keep it: what comes back is then the same.
	outcome.StartedAt, outcome.FinishedAt = r.started.Truncate(time.Microsecond), now.Truncate(time.Microsecond)
	row := job.NewRow(r.Job, r.Origin, r.effect, outcome)
	row.WorkflowID, row.RunID = r.id.ID, r.id.RunID
	return row
}

// identifiers is the job without its content. The argument of a final step goes
// into the history when the step falls back to a regular activity, and there an
// answer and a payload together would be more than the server takes.
func (r *run) identifiers() job.Job {
	j := r.Job
	j.Task, j.Payload = "", ""
	return j
}

func result(row job.Row, verdict job.Verdict) Result {
	return Result{
		Status:           row.Status,
		Verdict:          verdict,
		Effect:           row.Effect,
		Model:            row.Model,
		PromptTokens:     row.PromptTokens,
		CompletionTokens: row.CompletionTokens,
		Truncated:        row.Truncated,
		Attempts:         row.Attempts,
	}
}

// step runs a final step as a local activity, and as a regular one when the local
// budget is spent.
func (r *run) step(ctx workflow.Context, name, summary string, argument, result any) error {
	if local(ctx, name, summary, argument, result) == nil {
		return nil
	}
	return r.regular(ctx, name, summary, argument, result)
}

// regular runs a step until it succeeds: an error here is one that no retry can
// heal.
func (r *run) regular(ctx workflow.Context, name, summary string, argument, result any) error {
	r.story.stuck(ctx)
	return workflow.ExecuteActivity(
		workflow.WithActivityOptions(ctx, stepRegular(summary)), name, argument,
	).Get(ctx, result)
}

// local runs a final step, or all of them, as a local activity with a short
// budget.
func local(ctx workflow.Context, name, summary string, argument, result any) error {
	return workflow.ExecuteLocalActivity(
		workflow.WithLocalActivityOptions(ctx, stepLocal(summary)), name, argument,
	).Get(ctx, result)
}
