// Package jobs is the view of a job from outside: one thing made of its row, its
// run, and the entry that waits in its stream. It exists because none of these
// alone can tell how a job is. A run that failed stays Failed in Temporal when a
// retry has healed its job; a job that runs has no row yet, or one of an earlier
// run; and an entry that nobody has read is known to neither. The rules by which
// they are put together are here, once, for every command.
package jobs

import (
	"context"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
)

// Rows is the result store. List leaves answers out, Row does not.
type Rows interface {
	List(ctx context.Context, f store.Filter) ([]job.Row, error)
	Row(ctx context.Context, key job.Key) (job.Row, bool, error)
}

// Runs is what is needed of the Temporal client.
type Runs interface {
	ListWorkflow(ctx context.Context, req *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error)
	DescribeWorkflowExecution(ctx context.Context, workflowID, runID string) (*workflowservice.DescribeWorkflowExecutionResponse, error)
	GetWorkflowHistory(ctx context.Context, workflowID, runID string, longPoll bool, filter enumspb.HistoryEventFilterType) client.HistoryEventIterator
	CancelWorkflow(ctx context.Context, workflowID, runID string) error
}

// Streams is what is needed of Redis.
type Streams interface {
	Backlog(ctx context.Context, key string, limit int, more func(job.Entry) bool) (complete bool, err error)
	TailUpdates(ctx context.Context, key, after string, block time.Duration) ([]job.Entry, error)
	Entry(ctx context.Context, key, id string) (job.Entry, bool, error)
	LastID(ctx context.Context, key string) (string, error)
	DeadLetters(ctx context.Context, key string, r stream.DeadRange) ([]stream.Dead, error)
}

// Config is what a View is made of. A part that cannot be reached is nil: the
// view then shows what the others know.
type Config struct {
	Rows    Rows
	Runs    Runs
	Streams Streams
	// Converter reads payloads of runs; nil is the SDK's default, which cannot read
	// encrypted ones.
	Converter converter.DataConverter
	// Link is the page of a run in the Web UI; nil: no links.
	Link func(workflowID, runID string) string
	// Now is the clock; nil is the real one.
	Now func() time.Time
}

// View looks at jobs. It is safe for concurrent use.
type View struct {
	rows     Rows
	runs     Runs
	streams  Streams
	payloads converter.DataConverter
	failures converter.FailureConverter
	link     func(workflowID, runID string) string
	now      func() time.Time
	every    time.Duration // between two looks at a job that is followed
}

// New returns a view.
func New(cfg Config) *View {
	v := &View{rows: cfg.Rows, runs: cfg.Runs, streams: cfg.Streams, payloads: cfg.Converter, link: cfg.Link, now: cfg.Now, every: lookEvery}
	if v.payloads == nil {
		v.payloads = converter.GetDefaultDataConverter()
	}
	v.failures = temporal.NewDefaultFailureConverter(temporal.DefaultFailureConverterOptions{DataConverter: v.payloads})
	if v.link == nil {
		v.link = func(string, string) string { return "" }
	}
	if v.now == nil {
		v.now = time.Now
	}
	return v
}

// Status is what a job is doing, or how it ended.
type Status string

// The states of a job. Those of a job that has ended are those of its row.
const (
	// Queued waits to be worked on: its entry was not read yet, or no worker has
	// taken its call.
	Queued Status = "queued"
	// Running is being worked on, by its first attempt.
	Running Status = "running"
	// Retrying has failed at least once in the step it is at, and is tried again
	// now or later.
	Retrying Status = "retrying"

	Completed = Status(job.Completed)
	Failed    = Status(job.Failed)
	Canceled  = Status(job.Canceled)
	Rejected  = Status(job.Rejected)
)

// Statuses returns all states in the order in which a job passes them.
func Statuses() []Status {
	return []Status{Queued, Running, Retrying, Completed, Failed, Canceled, Rejected}
}

// Open reports whether a job in that state has not ended.
func (s Status) Open() bool { return s == Queued || s == Running || s == Retrying }

// Step is what an open job is at. It is empty where that cannot be seen from
// outside, because a worker is between two steps.
type Step string

// The steps of a job.
const (
	StepEntry       Step = "entry"         // waits in the stream: no bridge has started its run
	StepWorkflow    Step = "workflow"      // its workflow waits for a worker, or fails there
	StepReading     Step = "reading"       // the row, in a run started by hand
	StepCalling     Step = "calling"       // the LLM
	StepStoring     Step = "storing"       // the row
	StepPublishing  Step = "publishing"    // the update
	StepBurying     Step = "burying"       // the dead letter
	StepAcknowledge Step = "acknowledging" // the entry
)

// Job is a job as it is now. It holds no content.
type Job struct {
	Role   job.Role `json:"role"`
	JobID  string   `json:"jobId"` // empty where only a hash of it is known
	Status Status   `json:"status"`
	// Was is how the job had ended before the run that is open now.
	Was Status `json:"was,omitempty"`
	// Step, Canceling, Paused and NextAttemptAt are those of an open job.
	Step          Step      `json:"step,omitempty"`
	Canceling     bool      `json:"canceling,omitempty"` // a cancellation was asked for
	Paused        bool      `json:"paused,omitempty"`    // by hand, in the Web UI
	NextAttemptAt time.Time `json:"nextAttemptAt,omitzero"`
	// Attempts made at the call; of an open job, the number of the one at its step.
	Attempts int `json:"attempts,omitempty"`
	// Code and Message say why the job failed; of an open job, why its last attempt
	// did. Neither holds content.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`

	Model            string `json:"model,omitempty"`
	PromptTokens     int64  `json:"promptTokens,omitempty"`
	CompletionTokens int64  `json:"completionTokens,omitempty"`
	Truncated        bool   `json:"truncated,omitempty"`

	UserID          string `json:"userId,omitempty"`
	ProjectID       string `json:"projectId,omitempty"`
	NodptWorkflowID string `json:"nodptWorkflowId,omitempty"`
	NodeID          string `json:"nodeId,omitempty"`
	ConnectionID    string `json:"connectionId,omitempty"`

	EnqueuedAt time.Time `json:"enqueuedAt,omitzero"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	// WaitedMS is the time from the entry to the run, TookMS that from the run's
	// start to its end, or to now.
	WaitedMS int64 `json:"waitedMs"`
	TookMS   int64 `json:"tookMs"`

	WorkflowID  string `json:"temporalWorkflowId,omitempty"`
	RunID       string `json:"runId,omitempty"`
	Stream      string `json:"stream,omitempty"`
	EntryID     string `json:"entryId,omitempty"`
	LastEntryID string `json:"lastEntryId,omitempty"`
	UI          string `json:"ui,omitempty"`
}

// Waited is the time from the job's entry to its run; 0 where it is not known.
func (j Job) Waited() time.Duration { return time.Duration(j.WaitedMS) * time.Millisecond }

// Took is the time from the start of the job's run to its end, or to now.
func (j Job) Took() time.Duration { return time.Duration(j.TookMS) * time.Millisecond }

// Since is when the job came into the system, as far as that is known.
func (j Job) Since() time.Time {
	if j.EnqueuedAt.IsZero() {
		return j.StartedAt
	}
	return j.EnqueuedAt
}

// Name is the job's id, or what stands for it where only a hash is known.
func (j Job) Name() string {
	if j.JobID == "" {
		return j.WorkflowID
	}
	return j.JobID
}

// State is the status in words, with the step where that is not the call.
func (j Job) State() string {
	text := string(j.Status)
	switch {
	case !j.Status.Open():
		return text
	case j.Canceling:
		text = "canceling"
	case j.Paused:
		text = "paused"
	}
	switch j.Step {
	case "", StepCalling:
	case StepEntry:
		text += " (in the stream)"
	case StepWorkflow, StepReading, StepStoring, StepPublishing, StepBurying, StepAcknowledge:
		text += " (" + string(j.Step) + ")"
	}
	return text
}

// ended is the job of a row.
func (v *View) ended(row job.Row) Job {
	j := Job{
		Role: row.Role, JobID: row.JobID, Status: Status(row.Status),
		Attempts: row.Attempts, Code: row.ErrorCode, Message: row.ErrorMessage,
		RunID: row.RunID, StartedAt: row.StartedAt, FinishedAt: row.FinishedAt,
	}
	j.fill(row)
	j.WorkflowID = row.WorkflowID
	j.outcome(row)
	if j.RunID != "" {
		j.UI = v.link(j.WorkflowID, j.RunID)
	}
	j.measure(row.FinishedAt)
	return j
}

// outcome copies what a row says of the answer.
func (j *Job) outcome(row job.Row) {
	j.Model, j.PromptTokens, j.CompletionTokens, j.Truncated = row.Model, row.PromptTokens, row.CompletionTokens, row.Truncated
}

// fill copies whose job a row is and where it came from.
func (j *Job) fill(row job.Row) {
	j.UserID, j.ProjectID, j.NodptWorkflowID = row.UserID, row.ProjectID, row.NodptWorkflowID
	j.NodeID, j.ConnectionID = row.NodeID, row.ConnectionID
	j.EnqueuedAt, j.Stream, j.EntryID, j.LastEntryID = row.EnqueuedAt, row.Stream, row.EntryID, row.LastEntryID
}

// measure computes the durations; until is the end, or now.
func (j *Job) measure(until time.Time) {
	if j.StartedAt.IsZero() {
		return
	}
	j.TookMS = max(until.Sub(j.StartedAt).Milliseconds(), 0)
	if !j.EnqueuedAt.IsZero() {
		j.WaitedMS = max(j.StartedAt.Sub(j.EnqueuedAt).Milliseconds(), 0)
	}
}
