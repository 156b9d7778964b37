package bridge

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// Reuse says which closed runs of a workflow id a start may follow. No start
// ever replaces an open run.
type Reuse int

const (
	// ReuseNever starts only an id that was never used: the rule for entries
	// whose job has no row.
	ReuseNever Reuse = iota
	// ReuseUnsuccessful may follow a run that did not complete: the rule where a
	// row says that this entry is a retry.
	ReuseUnsuccessful
	// ReuseAny may follow any closed run: the rule where the store lost the row of
	// a run that had ended, so that the job must be done again.
	ReuseAny
)

// StartRequest asks for the run of one entry.
type StartRequest struct {
	Input workflows.Input
	// RequestID identifies the entry to the server: a second request with the same
	// id is answered with the run the first one started.
	RequestID string
	Reuse     Reuse
}

// Verdict is what became of a StartRequest.
type Verdict int

const (
	// Started means that the entry's run exists, started now or by an earlier delivery. It
	// may have ended since.
	Started Verdict = iota
	// AlreadyStarted means that the workflow id belongs to a run of another entry, or of a
	// person.
	AlreadyStarted
	// Refused means that the server will never accept this input.
	Refused
)

// StartResult is the answer to a StartRequest. RunID is the entry's run, or the
// one in the way; it is empty for Refused.
type StartResult struct {
	Verdict Verdict
	RunID   string
}

// Starter starts runs of JobWorkflow. An error means that nothing is known and
// the same request must be repeated later.
type Starter interface {
	Start(ctx context.Context, req StartRequest) (StartResult, error)
}

// RunState is what the bridge needs to know of a run's status.
type RunState int

// The states of a run. Ended covers completed, failed and canceled: runs whose
// code wrote a row before they closed.
const (
	RunOpen RunState = iota
	RunEnded
	RunTerminated
	RunTimedOut
)

// Killed reports whether the run was closed without running any code of ours.
func (s RunState) Killed() bool { return s == RunTerminated || s == RunTimedOut }

// Run describes one run. Stream and EntryID come from its memo and are empty for
// runs the bridge has not started. ClosedAt is zero while the run is open.
type Run struct {
	WorkflowID string
	RunID      string
	FirstRunID string
	State      RunState
	Stream     string
	EntryID    string
	StartedAt  time.Time
	ClosedAt   time.Time
}

// effect is which outcome the run would have had; the same rule as in the
// workflow.
func (r Run) effect() string {
	if r.EntryID == "" || r.FirstRunID != "" && r.FirstRunID != r.RunID {
		return job.RunEffect(r.RunID)
	}
	return job.EntryEffect(r.Stream, r.EntryID)
}

// ErrRunNotFound is returned by Runs.Describe for a workflow id the server does
// not know: never started, past its retention, or lost.
var ErrRunNotFound = errors.New("no such run")

// ErrInputUnreadable is returned by Runs.Input for a run that was not started
// with the input of a job. An input encrypted with a key that is not at hand is
// another error: it can be read when the key is.
var ErrInputUnreadable = errors.New("the run's input is not that of a job")

// ErrNoNamespace is returned by Visibility.Namespace where the server answers and
// has no such namespace: it is misspelt, or was not created yet.
var ErrNoNamespace = errors.New("the namespace does not exist on the Temporal server: create it or set TEMPORAL_NAMESPACE")

// Runs looks at runs.
type Runs interface {
	// Describe returns the current run of a workflow id, consistently, or
	// ErrRunNotFound.
	Describe(ctx context.Context, workflowID string) (Run, error)
	// Input returns what a run was started with, or ErrRunNotFound or
	// ErrInputUnreadable.
	Input(ctx context.Context, run Run) (workflows.Input, error)
}

// Visibility lists runs. What it returns may lag behind by some seconds.
type Visibility interface {
	// Open returns the open runs of JobWorkflow.
	Open(ctx context.Context) ([]Run, error)
	// Killed returns runs that were terminated or timed out since then.
	Killed(ctx context.Context, since time.Time) ([]Run, error)
	// Namespace returns the id of the namespace, or ErrNoNamespace. It changes when
	// the server lost its state.
	Namespace(ctx context.Context) (string, error)
}

// Temporal is everything the bridge asks of the workflow service.
type Temporal interface {
	Starter
	Runs
	Visibility
}

// RequestID is the id under which an entry's run is started: the same for every
// delivery, so that a redelivered entry gets its own run back.
func RequestID(stream, entryID string) string {
	return uuid.NewSHA1(requestSpace(), []byte(stream+"/"+entryID)).String()
}

// repeatID is the request id for doing an entry again after the row of run was
// lost: RequestID would only find the old run.
func repeatID(stream, entryID, run string) string {
	return uuid.NewSHA1(requestSpace(), []byte(stream+"/"+entryID+"/"+run)).String()
}

// requestSpace is the UUIDv5 namespace of request ids. Changing it would let a
// redelivered entry start a second run.
func requestSpace() uuid.UUID {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/nodpt/executor#request"))
}
