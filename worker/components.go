package worker

import (
	"go.temporal.io/sdk/interceptor"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// Rows is what the final activities need of the result store.
type Rows interface {
	activities.RowWriter
	activities.RowReader
	activities.DeadIDs
}

// Entries is what the final activities need of Redis.
type Entries interface {
	activities.Publisher
	activities.DeadLetters
	activities.Acknowledger
}

// Calls is what all role activities of a process share.
type Calls struct {
	Config  activities.Config
	LLM     activities.Completer
	Gate    activities.Gate // nil: no limit over all roles
	Answers *activities.Answers
	Cool    *activities.CoolDown
	Metrics activities.RunMetrics
}

// NewRole returns the component of a role.
func NewRole(cfg Config, role job.Role, c Calls) Component {
	slots := NewSlots(cfg, role)
	return RoleComponent(cfg, role, slots,
		activities.NewRunner(role, c.Config, c.LLM, slots, c.Gate, c.Answers, c.Cool, c.Metrics))
}

// NewWorkflows returns the component of JobWorkflow and the final activities.
func NewWorkflows(rows Rows, entries Entries, m activities.FinishMetrics) Component {
	persist, publish := activities.NewPersist(rows, m), activities.NewPublish(entries)
	deadLetter, acknowledge := activities.NewDeadLetter(entries, rows), activities.NewAcknowledge(entries)
	return WorkflowsComponent(Final{
		workflows.ActivityReadRow:     activities.NewReadRow(rows).Run,
		workflows.ActivityFinish:      activities.NewFinish(persist, publish, deadLetter, acknowledge).Run,
		workflows.ActivityPersist:     persist.Run,
		workflows.ActivityPublish:     publish.Run,
		workflows.ActivityDeadLetter:  deadLetter.Run,
		workflows.ActivityAcknowledge: acknowledge.Run,
	})
}

// Interceptors returns what every worker runs its activities through.
func Interceptors() []interceptor.WorkerInterceptor {
	return []interceptor.WorkerInterceptor{&activities.Recover{}}
}
