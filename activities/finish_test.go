package activities_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// ledger is books that write down the order of what is done, and fail at one step.
type ledger struct {
	books
	steps []string
	fails string
}

func (l *ledger) step(name string) error {
	if l.fails == name {
		return errors.New("unreachable")
	}
	l.steps = append(l.steps, name)
	return nil
}

func (l *ledger) Persist(ctx context.Context, row job.Row) (job.Persisted, error) {
	if err := l.step("row"); err != nil {
		return job.Persisted{}, err
	}
	return l.books.Persist(ctx, row)
}

func (l *ledger) Publish(ctx context.Context, u stream.Update) (bool, error) {
	if err := l.step("update"); err != nil {
		return false, err
	}
	return l.books.Publish(ctx, u)
}

func (l *ledger) DeadLetter(ctx context.Context, d stream.DeadLetter) (string, error) {
	if err := l.step("dead letter"); err != nil {
		return "", err
	}
	return l.books.DeadLetter(ctx, d)
}

func (l *ledger) Ack(ctx context.Context, s, group string, ids ...string) (int64, error) {
	if err := l.step("acknowledgement"); err != nil {
		return 0, err
	}
	return l.books.Ack(ctx, s, group, ids...)
}

func TestFinish(t *testing.T) {
	t.Parallel()
	completed := job.Row{Role: job.Agent, JobID: "j", Effect: "e", Outcome: job.Outcome{Status: job.Completed, Output: "answer"}}
	failed := completed
	failed.Status, failed.Output, failed.ErrorCode = job.Failed, "", "llm_timeout"
	tests := map[string]struct {
		row    job.Row
		stored job.Persisted
		fails  string
		steps  []string
		told   string // status the update is about
	}{
		"completed": {
			row: completed, stored: job.Persisted{Verdict: job.Written, Row: completed},
			steps: []string{"row", "update", "acknowledgement"}, told: "answer",
		},
		"failed": {
			row: failed, stored: job.Persisted{Verdict: job.Written, Row: failed},
			steps: []string{"row", "update", "dead letter", "acknowledgement"},
		},
		"stored before with another outcome, which stands": {
			row: failed, stored: job.Persisted{Verdict: job.Kept, Row: completed},
			steps: []string{"row", "update", "acknowledgement"}, told: "answer",
		},
		"superseded": {
			row: completed, stored: job.Persisted{Verdict: job.Superseded, Row: failed},
			steps: []string{"row", "acknowledgement"},
		},
		"no row, so nothing is told":     {row: failed, fails: "row"},
		"no update, so nothing is acked": {row: failed, stored: job.Persisted{Verdict: job.Written, Row: failed}, fails: "update", steps: []string{"row"}},
		"no dead letter, so nothing is acked": {
			row: failed, stored: job.Persisted{Verdict: job.Written, Row: failed}, fails: "dead letter", steps: []string{"row", "update"},
		},
		"not acknowledged": {
			row: failed, stored: job.Persisted{Verdict: job.Written, Row: failed}, fails: "acknowledgement",
			steps: []string{"row", "update", "dead letter"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &ledger{books: books{persisted: tt.stored}, fails: tt.fails}
			finish := activities.NewFinish(
				activities.NewPersist(l, l), activities.NewPublish(l), activities.NewDeadLetter(l, l), activities.NewAcknowledge(l),
			)
			stored, err := finish.Run(t.Context(), workflows.Settled{Row: tt.row, Origin: job.Origin{Stream: "s", EntryID: "1-0"}})
			require.Equal(t, tt.steps, l.steps)
			if tt.fails != "" {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.stored.Verdict, stored.Verdict)
			if tt.told != "" {
				require.Equal(t, tt.told, l.updates[0].Payload)
			}
		})
	}
}
