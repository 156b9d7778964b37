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
	return WorkflowsComponent(Final{
		workflows.ActivityReadRow:     activities.NewReadRow(rows).Run,
		workflows.ActivityPersist:     activities.NewPersist(rows, m).Run,
		workflows.ActivityPublish:     activities.NewPublish(entries).Run,
		workflows.ActivityDeadLetter:  activities.NewDeadLetter(entries, rows).Run,
		workflows.ActivityAcknowledge: activities.NewAcknowledge(entries).Run,
	})
}

// Interceptors returns what every worker runs its activities through.
func Interceptors() []interceptor.WorkerInterceptor {
	return []interceptor.WorkerInterceptor{&activities.Recover{}}
}
