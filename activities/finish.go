package activities

import (
	"context"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// Finish does all final activities in order, which while all is well is one local
// activity instead of three or four. Where it fails the workflow does them one by
// one, and each finds out what was done already.
type Finish struct {
	persist     *Persist
	publish     *Publish
	deadLetter  *DeadLetter
	acknowledge *Acknowledge
}

// NewFinish returns the activity.
func NewFinish(persist *Persist, publish *Publish, deadLetter *DeadLetter, acknowledge *Acknowledge) *Finish {
	return &Finish{persist: persist, publish: publish, deadLetter: deadLetter, acknowledge: acknowledge}
}

// Run stores the row, publishes the outcome that stands, writes the dead letter of
// a failed job, and acknowledges the entry. It returns what Persist returns.
func (f *Finish) Run(ctx context.Context, s workflows.Settled) (workflows.Stored, error) {
	stored, err := f.persist.Run(ctx, s.Row)
	if err != nil {
		return workflows.Stored{}, err
	}
	if stored.Row != nil {
		s.Row = *stored.Row
	}
	if stored.Verdict != job.Superseded {
		if _, err := f.publish.Run(ctx, s); err != nil {
			return workflows.Stored{}, err
		}
		if s.Row.Status == job.Failed {
			if _, err := f.deadLetter.Run(ctx, s); err != nil {
				return workflows.Stored{}, err
			}
		}
	}
	return stored, f.acknowledge.Run(ctx, s.Origin)
}
