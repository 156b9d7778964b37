package activities

import (
	"context"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/outcome"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// Publisher publishes an update once per effect.
type Publisher interface {
	Publish(ctx context.Context, u stream.Update) (bool, error)
}

// Publish is the second final activity: it tells the browser.
type Publish struct{ updates Publisher }

// NewPublish returns the activity.
func NewPublish(updates Publisher) *Publish { return &Publish{updates: updates} }

// Run publishes the row's outcome and reports whether it did so now.
func (p *Publish) Run(ctx context.Context, s workflows.Settled) (bool, error) {
	published, err := p.updates.Publish(ctx, outcome.Update(s.Row, s.Job, s.Origin.Updates, s.Row.Effect))
	if err == nil {
		err = failpoint.Hit(ctx, failpoint.Published)
	}
	return published, unavailable(CodeStream, err)
}

// DeadLetters keeps what failed jobs came as.
type DeadLetters interface {
	Entry(ctx context.Context, key, id string) (job.Entry, bool, error)
	DeadLetter(ctx context.Context, d stream.DeadLetter) (string, error)
}

// DeadIDs notes in the row where its dead letter is.
type DeadIDs interface {
	SetDeadID(ctx context.Context, key job.Key, effect, deadID string) error
}

// DeadLetter is the final activity of failed jobs: it puts the original entry
// where an operator finds it.
type DeadLetter struct {
	letters DeadLetters
	rows    DeadIDs
}

// NewDeadLetter returns the activity.
func NewDeadLetter(letters DeadLetters, rows DeadIDs) *DeadLetter {
	return &DeadLetter{letters: letters, rows: rows}
}

// Run writes the dead letter once per effect and returns its entry id.
func (d *DeadLetter) Run(ctx context.Context, s workflows.Settled) (string, error) {
	entry, found, err := d.letters.Entry(ctx, s.Origin.Stream, s.Origin.EntryID)
	if err != nil {
		return "", unavailable(CodeStream, err)
	}
	fields := entry.Fields
	if !found {
		fields = s.Job.Fields() // trimmed or deleted meanwhile
	}
	id, err := d.letters.DeadLetter(ctx, outcome.DeadLetter(s.Row, fields, s.Row.Effect))
	if err == nil {
		err = failpoint.Hit(ctx, failpoint.DeadLettered)
	}
	if err != nil {
		return "", unavailable(CodeStream, err)
	}
	return id, unavailable(CodeStore, d.rows.SetDeadID(ctx, s.Row.Key(), s.Row.Effect, id))
}
