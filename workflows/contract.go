// Package workflows holds JobWorkflow, the one workflow every job runs as, and
// the names that workflow shares with those who start it and those who serve
// its activities. It exists apart from the activities so that workflow code
// cannot reach a database, a socket or a clock by accident: activities are
// called by name.
package workflows

import (
	"unicode/utf8"

	"go.temporal.io/sdk/temporal"

	"github.com/nodpt/executor/internal/job"
)

// WorkflowType is the registered name of JobWorkflow.
const WorkflowType = "JobWorkflow"

// QueueWorkflows is the task queue of workflow tasks and final activities.
const QueueWorkflows = "executor-workflows"

// RoleQueue is the task queue of one role's activity, for example
// executor-agent. Nothing else runs there, so the slots of the workers that poll
// it are the role's concurrency limit.
func RoleQueue(role job.Role) string { return "executor-" + string(role) }

// Names of the activities. The role activity of a role is named after it. Finish
// does what the four below it do, one after the other.
const (
	ActivityReadRow     = "ReadRow"
	ActivityFinish      = "Finish"
	ActivityPersist     = "Persist"
	ActivityPublish     = "Publish"
	ActivityDeadLetter  = "DeadLetter"
	ActivityAcknowledge = "Acknowledge"
)

// RoleActivity is the registered name of a role's activity, for example
// RunAgent.
func RoleActivity(role job.Role) string {
	switch role {
	case job.Manager:
		return "RunManager"
	case job.Inspector:
		return "RunInspector"
	case job.Agent:
		return "RunAgent"
	case job.Chat:
		return "RunChat"
	default:
		return "Run:" + string(role)
	}
}

// Keys of the memo the bridge attaches to the runs it starts. A run that has
// them and is the first of its chain speaks for the entry; any other run (a
// reset, a copy) speaks for itself.
const (
	MemoEntryID = "entryId"
	MemoStream  = "stream"
)

// Search attributes of a run, all of type Keyword. They hold identifiers only,
// never content, and are set when the run is started.
const (
	AttributeRole          = "JobRole"
	AttributeUser          = "JobUser"
	AttributeProject       = "JobProject"
	AttributeNodptWorkflow = "JobNodptWorkflow"
	AttributeModel         = "JobModel"
)

// AttributeNames lists the search attributes in the order of their constants.
func AttributeNames() []string {
	return []string{AttributeRole, AttributeUser, AttributeProject, AttributeNodptWorkflow, AttributeModel}
}

// maxAttributeRunes is what the visibility stores keep of a Keyword: their
// column is VARCHAR(255).
const maxAttributeRunes = 255

// Attributes returns the search attributes of a job. model is the one the
// settings name when the run is started; empty values are left out.
func Attributes(j job.Job, model string) temporal.SearchAttributes {
	var updates []temporal.SearchAttributeUpdate
	for _, a := range []struct{ name, value string }{
		{AttributeRole, string(j.Role)},
		{AttributeUser, j.UserID},
		{AttributeProject, j.ProjectID},
		{AttributeNodptWorkflow, j.WorkflowID},
		{AttributeModel, model},
	} {
		if a.value != "" {
			updates = append(updates, temporal.NewSearchAttributeKeyKeyword(a.name).ValueSet(cut(a.value, maxAttributeRunes)))
		}
	}
	return temporal.NewSearchAttributes(updates...)
}

func cut(s string, runes int) string {
	if utf8.RuneCountInString(s) <= runes {
		return s
	}
	return string([]rune(s)[:runes])
}

// OverrideSignal carries an Override to a run, usually together with a reset.
const OverrideSignal = "override"

// Override changes how a retried run calls the LLM. Zero fields change nothing.
type Override struct {
	Model     string `json:"model,omitempty"`
	MaxTokens int    `json:"maxTokens,omitempty"`
	// Force runs the job again even where another run has completed it.
	Force bool `json:"force,omitempty"`
}

// Input is the argument of JobWorkflow.
type Input struct {
	Job    job.Job    `json:"job"`
	Origin job.Origin `json:"origin"`
	// Plan is the order of steps that the run follows: CurrentPlan, or less for a
	// run of an older version.
	Plan int `json:"plan,omitempty"`
}

// Call is the argument of a role activity.
type Call struct {
	Job job.Job `json:"job"`
	// Effect names the outcome the call is for; an answer that arrived is kept
	// under it until the run has ended.
	Effect    string `json:"effect"`
	Model     string `json:"model,omitempty"`     // override of the worker's setting
	MaxTokens int    `json:"maxTokens,omitempty"` // override of the worker's setting
	// Redelivered says that an earlier run may have left an answer.
	Redelivered bool `json:"redelivered,omitempty"`
}

// Answer is the result of a role activity.
type Answer struct {
	Text             string `json:"text"`
	Model            string `json:"model"`
	PromptTokens     int64  `json:"promptTokens"`
	CompletionTokens int64  `json:"completionTokens"`
	Truncated        bool   `json:"truncated,omitempty"`
	Attempts         int    `json:"attempts"` // attempts that worked on the job, see Failure
}

// Failure is the detail of the application error a role activity ends with. The
// error's type is the stable code of the row and the update, its message is safe
// to show a user.
type Failure struct {
	Model            string `json:"model,omitempty"`
	Attempts         int    `json:"attempts"` // attempts, less those given back unused (shutdown, cool-down)
	PromptTokens     int64  `json:"promptTokens,omitempty"`
	CompletionTokens int64  `json:"completionTokens,omitempty"`
	// Cause is for operators: kind, status and code, what to do, which attempt,
	// model and endpoint. It holds no content.
	Cause string `json:"cause,omitempty"`
}

// Stored is the result of Persist, Finish and ReadRow.
type Stored struct {
	Verdict job.Verdict `json:"verdict,omitempty"` // not of ReadRow
	Found   bool        `json:"found,omitempty"`   // ReadRow only
	// Row is the stored row where it differs from what the workflow knows
	// already; ReadRow leaves its output out.
	Row *job.Row `json:"row,omitempty"`
}

// Settled is the argument of Finish, Publish and DeadLetter: the row as it stands,
// and where its entry was read. Publish gets the job without task and payload. The
// argument of Persist is a job.Row, that of Acknowledge a job.Origin.
type Settled struct {
	Row    job.Row    `json:"row"`
	Job    job.Job    `json:"job"`
	Origin job.Origin `json:"origin"`
}

// Result is what a completed run returns. The answer itself is in the role
// activity's result and in the row, not here a third time.
type Result struct {
	Status           job.Status  `json:"status"`
	Verdict          job.Verdict `json:"verdict"`
	Effect           string      `json:"effect"`
	Model            string      `json:"model,omitempty"`
	PromptTokens     int64       `json:"promptTokens,omitempty"`
	CompletionTokens int64       `json:"completionTokens,omitempty"`
	Truncated        bool        `json:"truncated,omitempty"`
	Attempts         int         `json:"attempts,omitempty"`
}
