// Package job is the vocabulary every other package shares: what a job is,
// where it came from, how it ended. It exists so that the reader of the stream,
// the workflow, the store and the publisher agree on the words without knowing
// each other. It imports nothing but the standard library, because workflow
// code imports it and must stay deterministic.
package job

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Role is the kind of agent a job is for. The stream an entry is read from
// decides it; a field of the same name in the entry never does.
type Role string

// The four roles. Each has a stream (jobs:<role>), a task queue
// (executor-<role>) and a concurrency limit (MAX_<ROLE>) of its own.
const (
	Manager   Role = "manager"
	Inspector Role = "inspector"
	Agent     Role = "agent"
	Chat      Role = "chat"
)

// Roles returns all roles in the order in which they are documented.
func Roles() []Role { return []Role{Manager, Inspector, Agent, Chat} }

// ParseRole returns the role of that exact name.
func ParseRole(name string) (Role, error) {
	if r := Role(name); slices.Contains(Roles(), r) {
		return r, nil
	}
	return "", fmt.Errorf("unknown role %.40q: use one of %s", name, RoleNames())
}

// RoleNames lists the names of all roles for people, separated by commas.
func RoleNames() string {
	var names []string
	for _, r := range Roles() {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// Stream is the Redis stream the role's jobs arrive on, for example jobs:agent.
func (r Role) Stream() string { return "jobs:" + string(r) }

// Field is one name and value of a stream entry as Redis sent it. A stream
// entry may repeat a name, so fields are a list and not a map.
type Field struct{ Name, Value string }

// Entry is one raw stream entry.
type Entry struct {
	Stream string
	ID     string // "<milliseconds>-<sequence>"
	Fields []Field
}

// SourceList marks a job that came through the legacy chat list. Its answer is
// also published on the pub/sub channel the old web API listens on.
const SourceList = "list"

// Job is a validated job. Strings are valid UTF-8 and within the limits of
// DESIGN.md section 2.1; absent fields are empty. It is the part of the
// workflow input that does not depend on where the entry was read.
type Job struct {
	Role         Role   `json:"role"`
	ID           string `json:"jobId"`
	WorkflowID   string `json:"workflowId,omitempty"` // NodPT's workflow, never Temporal's
	UserID       string `json:"userId,omitempty"`
	ProjectID    string `json:"projectId,omitempty"`
	NodeID       string `json:"nodeId,omitempty"`
	ConnectionID string `json:"connectionId,omitempty"`
	Task         string `json:"task,omitempty"`     // for chat: the message
	Payload      string `json:"payload,omitempty"`  // opaque text, passed on byte for byte
	Priority     int    `json:"priority,omitempty"` // 1 (first) to 5 (last), 0 = not given
	ChatID       string `json:"chatId,omitempty"`
	NodeLevel    string `json:"nodeLevel,omitempty"`
	Model        string `json:"model,omitempty"`  // chat only: the model the entry asks for
	Source       string `json:"source,omitempty"` // SourceList or empty
}

// Origin says where an entry was read and where its outcome goes. It travels in
// the workflow's input, so that a worker needs no such settings of its own and a
// change of settings cannot send a running job's answer elsewhere.
type Origin struct {
	Stream     string    `json:"stream"`
	EntryID    string    `json:"entryId"`
	Group      string    `json:"group"`
	Updates    string    `json:"updates"`             // stream the outcome is published on
	EnqueuedAt time.Time `json:"enqueuedAt,omitzero"` // from the entry id: for display, never for deadlines
	// Redelivered is set where the entry was delivered before: an earlier run may
	// have left an answer that need not be paid for again.
	Redelivered bool `json:"redelivered,omitempty"`
}

// Status is how a job ended. There is no "running": a row exists only for a job
// that has ended.
type Status string

// The terminal states of a job.
const (
	Completed Status = "completed"
	Failed    Status = "failed"
	Rejected  Status = "rejected"
	Canceled  Status = "canceled"
)

// Retryable reports whether a later entry with the same jobId runs the job
// again. A completed job is answered from its row instead.
func (s Status) Retryable() bool { return s == Failed || s == Canceled || s == Rejected }

// Outcome is how one run of a job ended.
type Outcome struct {
	Status           Status    `json:"status"`
	Output           string    `json:"output,omitempty"`       // the answer, for Completed
	ErrorCode        string    `json:"errorCode,omitempty"`    // stable snake_case code, for the rest
	ErrorMessage     string    `json:"errorMessage,omitempty"` // safe to show a user, at most 2 kB
	Model            string    `json:"model,omitempty"`        // the model that answered or was asked last
	PromptTokens     int64     `json:"promptTokens,omitempty"`
	CompletionTokens int64     `json:"completionTokens,omitempty"`
	Truncated        bool      `json:"truncated,omitempty"` // the model stopped at its token limit
	Attempts         int       `json:"attempts,omitempty"`  // attempts of the role activity
	StartedAt        time.Time `json:"startedAt,omitzero"`
	FinishedAt       time.Time `json:"finishedAt,omitzero"`
}

// Key identifies a job: the same jobId on two streams is two jobs.
type Key struct {
	Role  Role
	JobID string
}

// Row is the record of a job in the result store: one per Key, written when the
// job has ended. Column names are the snake_case forms, see DESIGN.md 2.5.
type Row struct {
	Role  Role   `json:"role"`
	JobID string `json:"jobId"`
	Outcome
	WorkflowID      string    `json:"temporalWorkflowId,omitempty"`
	RunID           string    `json:"runId,omitempty"`
	Effect          string    `json:"effect"` // which run speaks for the job, see Effect
	Fence           time.Time `json:"fence"`  // start of finalisation; orders different effects; stored in microseconds
	Stream          string    `json:"stream,omitempty"`
	EntryID         string    `json:"entryId,omitempty"`
	LastEntryID     string    `json:"lastEntryId,omitempty"` // newest entry of this job that is dealt with
	DeadID          string    `json:"deadId,omitempty"`      // entry id in the dead-letter stream, if any
	NodptWorkflowID string    `json:"nodptWorkflowId,omitempty"`
	UserID          string    `json:"userId,omitempty"`
	ProjectID       string    `json:"projectId,omitempty"`
	NodeID          string    `json:"nodeId,omitempty"`
	ConnectionID    string    `json:"connectionId,omitempty"`
	EnqueuedAt      time.Time `json:"enqueuedAt,omitzero"`
}

// NewRow is the row of a job that ended so, for the entry it was read from. The
// fence is the outcome's FinishedAt; workflow and run are the caller's to add.
func NewRow(j Job, origin Origin, effect string, o Outcome) Row {
	return Row{
		Role:            j.Role,
		JobID:           j.ID,
		Outcome:         o,
		Effect:          effect,
		Fence:           o.FinishedAt,
		Stream:          origin.Stream,
		EntryID:         origin.EntryID,
		LastEntryID:     origin.EntryID,
		NodptWorkflowID: j.WorkflowID,
		UserID:          j.UserID,
		ProjectID:       j.ProjectID,
		NodeID:          j.NodeID,
		ConnectionID:    j.ConnectionID,
		EnqueuedAt:      origin.EnqueuedAt,
	}
}

// Key returns the identity of the row's job.
func (r Row) Key() Key { return Key{Role: r.Role, JobID: r.JobID} }

// Verdict is what the store made of an attempt to persist a row.
type Verdict string

// The verdicts of the effect and fence rule (DESIGN.md section 4).
const (
	Written    Verdict = "written"    // the row now holds this outcome
	Kept       Verdict = "kept"       // the same effect was stored before: publish the stored outcome
	Superseded Verdict = "superseded" // a newer run speaks for the job: acknowledge only
)

// Persisted is the answer of the store: the verdict and the row as it stands.
type Persisted struct {
	Verdict Verdict `json:"verdict"`
	Row     Row     `json:"row"`
}
