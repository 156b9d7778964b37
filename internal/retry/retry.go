// Package retry runs jobs again that ended badly, one or ten thousand, because
// doing that by hand is where operators lose jobs or pay twice: it asks the
// workflow service what became of a job before it starts anything, starts nothing
// that runs, repeats a request whose reply was lost under the same request id, and
// falls back to the job's dead letter where its history is gone. What was healed
// is completed and not chosen again, so a bulk retry that was interrupted goes on
// by calling it once more.
package retry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// Run is the newest run of a job's workflow.
type Run struct {
	WorkflowID string
	RunID      string
	Open       bool
}

// Request says how a run is started again.
type Request struct {
	// ID makes repeated requests one: the run that the first has started is the
	// answer to all of them.
	ID       string
	Reason   string
	Override workflows.Override
}

// Runs is what retrying needs of the workflow service. Errors are ErrGone,
// *OpenError, *RefusedError or *DeniedError; after any other one the same call may
// be made again.
type Runs interface {
	// Current returns the newest run of a workflow id.
	Current(ctx context.Context, workflowID string) (Run, error)
	// Again starts a closed run's workflow once more with the same input, and
	// returns the id of the new run. The override is there before the new run does
	// anything.
	Again(ctx context.Context, run Run, req Request) (runID string, err error)
}

// ErrGone says that the workflow service knows nothing of a workflow id or run:
// its retention is over, it was deleted, or it never was.
var ErrGone = errors.New("its history is gone from Temporal")

// OpenError says that a run is open, so that none was started.
type OpenError struct{ RunID string }

// Error implements error.
func (e *OpenError) Error() string { return "a run is open: " + e.RunID }

// RefusedError says that this one request can never succeed.
type RefusedError struct{ Reason string }

// Error implements error.
func (e *RefusedError) Error() string { return e.Reason }

// DeniedError says that no request will succeed until somebody changes rights or
// settings.
type DeniedError struct{ Reason string }

// Error implements error.
func (e *DeniedError) Error() string { return e.Reason }

// Rows is what retrying needs of the result store.
type Rows interface {
	List(ctx context.Context, f store.Filter) ([]job.Row, error)
}

// Streams is what retrying needs of Redis.
type Streams interface {
	Entry(ctx context.Context, key, id string) (job.Entry, bool, error)
	ReadDead(ctx context.Context, key, id string) (stream.Dead, bool, error)
	Add(ctx context.Context, key string, fields []job.Field) (string, error)
}

// Action is what was done for a job.
type Action string

// The actions.
const (
	Retried   Action = "retried"   // a new run was started
	Running   Action = "running"   // a run is open already
	Completed Action = "completed" // nothing to do
	Resent    Action = "resent"    // its history is gone: its entry was added again
	Resolved  Action = "resolved"  // dead letters only: nothing to do
	Cannot    Action = "cannot"    // see Reason

	// Of a dry run, in place of Retried and Resent.
	WouldRetry  Action = "would be retried"
	WouldResend Action = "would be resent"
)

// Result is what came of one job.
type Result struct {
	Row     job.Row // as it was when the job was chosen; without a status: no row
	Action  Action  // empty: not tried
	RunID   string  // Retried, Running
	EntryID string  // Resent: the new entry
	Reason  string  // Cannot
	// Unknown: Cannot, because there is no such job.
	Unknown bool
	// Outcome is the row as it stands after Await, nil where none is awaited or came.
	Outcome *job.Row
}

// Options say how jobs are retried.
type Options struct {
	Reason   string
	Override workflows.Override
	Pace     Pace
	// DryRun finds out what would be done, from the same servers, and does nothing.
	DryRun bool
}

// Retrier retries jobs.
type Retrier struct {
	Runs Runs
	// Streams connects to Redis. It is called where a job's history is gone, which
	// is seldom, so that retrying does not need Redis otherwise.
	Streams func(ctx context.Context) (Streams, error)
	Options Options
}

// Do retries jobs in the order given, and calls report after each. Jobs whose turn
// did not come, because ctx ended or a server does not answer any more, have no
// action; the error says why. It is *OutageError where trying again later is all
// there is to do.
func (r *Retrier) Do(ctx context.Context, rows []job.Row, report func(Result)) ([]Result, error) {
	results := make([]Result, len(rows))
	for i, row := range rows {
		results[i].Row = row
	}
	err := r.Options.Pace.each(ctx, len(rows), func(ctx context.Context, i int) error {
		res, err := r.one(ctx, rows[i])
		if err != nil {
			return err
		}
		res.Row = rows[i]
		results[i] = res
		return nil
	}, func(i int) { report(results[i]) })
	return results, err
}

// one retries a job. An error means that the next job would fare no better.
func (r *Retrier) one(ctx context.Context, row job.Row) (Result, error) {
	switch {
	case row.Status == job.Completed && !r.Options.Override.Force:
		return Result{Action: Completed}, nil
	case row.Status == job.Rejected:
		return cannot("it was rejected (%s) and never ran; if it could be read now: executor dlq replay %s/%s", row.ErrorCode, row.Role, row.DeadID), nil
	}
	workflowID := row.WorkflowID
	if workflowID == "" {
		workflowID = job.WorkflowID(row.Role, row.JobID)
	}

	var run Run
	err := persist(ctx, func() (err error) {
		run, err = r.Runs.Current(ctx, workflowID)
		return err
	})
	switch {
	case errors.Is(err, ErrGone):
		return r.resend(ctx, row)
	case err != nil:
		return verdict(err)
	case run.Open:
		return Result{Action: Running, RunID: run.RunID}, nil
	case row.Status == "":
		return cannot("its run has ended and it has no row: a bridge writes that of a terminated run within 15 s; if rows were lost: executor dlq replay --unresolved"), nil
	case r.Options.DryRun:
		return Result{Action: WouldRetry}, nil
	}

	req := Request{ID: requestID(row, run), Reason: r.Options.Reason, Override: r.Options.Override}
	var runID string
	var open *OpenError
	unsure := false
	err = persist(ctx, func() (err error) {
		runID, err = r.Runs.Again(ctx, run, req)
		if errors.As(err, &open) && unsure {
			// The reply to an earlier call was lost, and that run is what is open.
			runID, err = open.RunID, nil
		}
		unsure = unsure || transient(err)
		return err
	})
	switch {
	case err == nil:
		return Result{Action: Retried, RunID: runID}, nil
	case errors.As(err, &open):
		return Result{Action: Running, RunID: open.RunID}, nil
	case errors.Is(err, ErrGone):
		return r.resend(ctx, row)
	default:
		return verdict(err)
	}
}

// resend adds the entry of a job whose history is gone once more, which makes it
// an entry that asks to run a failed job again.
func (r *Retrier) resend(ctx context.Context, row job.Row) (Result, error) {
	switch {
	case row.Status == "":
		return Result{Action: Cannot, Unknown: true, Reason: "there is no such job"}, nil
	case r.Options.Override != workflows.Override{}:
		return cannot("%v, so it can only be sent again as it was: leave --model, --max-tokens and --force out", ErrGone), nil
	}
	streams, err := r.Streams(ctx)
	if err != nil {
		return cannot("%v, and its dead letter cannot be read: %v", ErrGone, err), nil
	}
	fields, err := r.sent(ctx, streams, row)
	if err != nil {
		return verdict(err)
	}
	if r.Options.DryRun {
		return Result{Action: WouldResend}, nil
	}
	id, err := streams.Add(ctx, row.Stream, fields)
	if err != nil {
		return Result{}, addFailed(err)
	}
	return Result{Action: Resent, EntryID: id}, nil
}

// sent is what the job came as, from its dead letter or else its entry.
func (r *Retrier) sent(ctx context.Context, streams Streams, row job.Row) ([]job.Field, error) {
	gone := ErrGone.Error() + ", and "
	if row.DeadID != "" {
		dead, found, err := streams.ReadDead(ctx, row.Stream, row.DeadID)
		if err != nil {
			return nil, err
		}
		if found && !dead.Truncated {
			return fieldsAgain(row.Role, dead.EntryID, dead.Fields)
		}
	}
	entry, found, err := streams.Entry(ctx, row.Stream, row.EntryID)
	switch {
	case err != nil:
		return nil, err
	case !found && row.DeadID != "":
		return nil, &RefusedError{gone + "its dead letter " + string(row.Role) + "/" + row.DeadID + " is shortened or deleted: send the job again from where it came"}
	case !found:
		return nil, &RefusedError{gone + "its entry is deleted: send the job again from where it came"}
	}
	return fieldsAgain(row.Role, entry.ID, entry.Fields)
}

// fieldsAgain are the fields under which an entry is the same job when it is added
// again. One without a jobId has its entry id for one, and would be another job
// under the new entry's.
func fieldsAgain(role job.Role, entryID string, fields []job.Field) ([]job.Field, error) {
	id := entryID
	if id == "" {
		id = "0-1" // written by hand; any id will do to see whether it can be read
	}
	decoded, err := job.Decode(role, job.Entry{Stream: role.Stream(), ID: id, Fields: fields})
	if rejection, ok := errors.AsType[*job.Rejection](err); ok {
		return nil, &RefusedError{"it would be rejected again (" + rejection.Reason + ")"}
	}
	if err != nil {
		return nil, &RefusedError{"it cannot be read"}
	}
	if entryID != "" && slices.Contains(decoded.Notes, job.NoteJobIDFromEntry) {
		return decoded.Job.Fields(), nil
	}
	return fields, nil
}

// addFailed is the error of an XADD. It is not repeated: the entry may be there,
// and a second one could be answered a second time.
func addFailed(err error) error {
	if errors.Is(err, stream.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w; the entry may have been added all the same, which shows when you try again", err)
	}
	return &OutageError{err}
}

// verdict turns an error into the result of one job, where it concerns only that.
func verdict(err error) (Result, error) {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return Result{Action: Cannot, Reason: refused.Reason}, nil
	}
	if denied, ok := errors.AsType[*DeniedError](err); ok {
		return Result{}, denied
	}
	return Result{}, &OutageError{err}
}

func cannot(format string, args ...any) Result {
	return Result{Action: Cannot, Reason: fmt.Sprintf(format, args...)}
}

// requestID is the same for whoever wants the outcome that stands in the row to be
// replaced, so that two operators who retry at once start one run.
func requestID(row job.Row, run Run) string {
	project := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/nodpt/executor"))
	return uuid.NewSHA1(project, []byte("retry:"+run.WorkflowID+"/"+run.RunID+"/"+row.Effect)).String()
}

// OutageError says that a server does not answer.
type OutageError struct{ Err error }

// Error implements error.
func (e *OutageError) Error() string { return e.Err.Error() }

// Unwrap returns the server's error.
func (e *OutageError) Unwrap() error { return e.Err }

// transient reports whether a call may be made again after this error of Runs.
func transient(err error) bool {
	var (
		open    *OpenError
		refused *RefusedError
		denied  *DeniedError
	)
	return err != nil && !errors.Is(err, ErrGone) &&
		!errors.As(err, &open) && !errors.As(err, &refused) && !errors.As(err, &denied)
}

// Pauses between calls to a workflow service that does not answer.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 2 * time.Second
)

// persist makes a call until it is answered or ctx ends.
func persist(ctx context.Context, call func() error) error {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := call()
		if !transient(err) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}
