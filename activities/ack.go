package activities

import (
	"context"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
)

// Acknowledger removes entries from a group's pending entries.
type Acknowledger interface {
	Ack(ctx context.Context, stream, group string, ids ...string) (int64, error)
}

// Acknowledge is the last final activity.
type Acknowledge struct{ entries Acknowledger }

// NewAcknowledge returns the activity.
func NewAcknowledge(entries Acknowledger) *Acknowledge { return &Acknowledge{entries: entries} }

// Run acknowledges the entry the job came in, in the group it was read through:
// the worker that runs this may be set to another one. That nothing was pending is no
// error: it was acknowledged before, or the group was lost.
func (a *Acknowledge) Run(ctx context.Context, origin job.Origin) error {
	if origin.Stream == "" || origin.EntryID == "" {
		return nil // started by hand, without an entry
	}
	_, err := a.entries.Ack(ctx, origin.Stream, origin.Group, origin.EntryID)
	if err == nil {
		err = failpoint.Hit(ctx, failpoint.Acked)
	}
	return unavailable(CodeStream, err)
}
