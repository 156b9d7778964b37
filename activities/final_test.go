package activities_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// books records what the final activities do, and fails where told to.
type books struct {
	persisted job.Persisted
	row       job.Row
	found     bool
	entry     job.Entry
	err       error

	finished []job.Status
	updates  []stream.Update
	letters  []stream.DeadLetter
	deadID   string
	acked    []string
}

func (b *books) Persist(context.Context, job.Row) (job.Persisted, error) { return b.persisted, b.err }

func (b *books) Row(context.Context, job.Key) (job.Row, bool, error) { return b.row, b.found, b.err }

func (b *books) SetDeadID(_ context.Context, _ job.Key, _, id string) error {
	b.deadID = id
	return nil
}

func (b *books) Publish(_ context.Context, u stream.Update) (bool, error) {
	b.updates = append(b.updates, u)
	return b.err == nil, b.err
}

func (b *books) Entry(context.Context, string, string) (job.Entry, bool, error) {
	return b.entry, len(b.entry.Fields) > 0, b.err
}

func (b *books) DeadLetter(_ context.Context, d stream.DeadLetter) (string, error) {
	b.letters = append(b.letters, d)
	return "9-0", b.err
}

func (b *books) Ack(_ context.Context, s, group string, ids ...string) (int64, error) {
	b.acked = append(b.acked, append([]string{s, group}, ids...)...)
	return 0, b.err
}

func (b *books) JobFinished(_ job.Role, status job.Status, _ string, _ time.Duration) {
	b.finished = append(b.finished, status)
}

func TestPersist(t *testing.T) {
	t.Parallel()
	mine := job.Row{Role: job.Agent, JobID: "j", Effect: "e", Outcome: job.Outcome{Status: job.Completed, Output: "answer"}}
	other := mine
	other.Status, other.Output, other.ErrorCode = job.Failed, "", "llm_timeout"
	newer := mine
	newer.Effect, newer.Output = "run:2", "another answer"
	tests := map[string]struct {
		persisted job.Persisted
		want      workflows.Stored
		finished  int
	}{
		"written":        {job.Persisted{Verdict: job.Written, Row: mine}, workflows.Stored{Verdict: job.Written}, 1},
		"kept, as it is": {job.Persisted{Verdict: job.Kept, Row: mine}, workflows.Stored{Verdict: job.Kept}, 0},
		"kept, another":  {job.Persisted{Verdict: job.Kept, Row: other}, workflows.Stored{Verdict: job.Kept, Row: &other}, 0},
		"superseded": {
			job.Persisted{Verdict: job.Superseded, Row: newer},
			workflows.Stored{Verdict: job.Superseded, Row: func() *job.Row { r := newer; r.Output = ""; return &r }()},
			0,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &books{persisted: tt.persisted}
			stored, err := activities.NewPersist(b, b).Run(t.Context(), mine)
			require.NoError(t, err)
			require.Equal(t, tt.want, stored)
			require.Len(t, b.finished, tt.finished, "a job is counted once")
		})
	}
}

func TestReadRowLeavesTheOutputOut(t *testing.T) {
	t.Parallel()
	b := &books{found: true, row: job.Row{JobID: "j", Outcome: job.Outcome{Status: job.Completed, Output: "long"}}}
	stored, err := activities.NewReadRow(b).Run(t.Context(), job.Key{})
	require.NoError(t, err)
	require.True(t, stored.Found)
	require.Equal(t, job.Completed, stored.Row.Status)
	require.Empty(t, stored.Row.Output)

	b.found = false
	stored, err = activities.NewReadRow(b).Run(t.Context(), job.Key{})
	require.NoError(t, err)
	require.Equal(t, workflows.Stored{}, stored)
}

func TestPublish(t *testing.T) {
	t.Parallel()
	b := &books{}
	published, err := activities.NewPublish(b).Run(t.Context(), workflows.Settled{
		Row:    job.Row{Effect: "e", Outcome: job.Outcome{Status: job.Completed, Output: "answer"}},
		Job:    job.Job{Role: job.Agent, ID: "j"},
		Origin: job.Origin{Updates: "signalr:updates"},
	})
	require.NoError(t, err)
	require.True(t, published)
	require.Equal(t, "e", b.updates[0].Effect)
	require.Equal(t, "signalr:updates", b.updates[0].Stream)
	require.Equal(t, "answer", b.updates[0].Payload)
}

func TestDeadLetter(t *testing.T) {
	t.Parallel()
	raw := []job.Field{{Name: "TASK", Value: "as it came"}}
	tests := map[string]struct {
		entry job.Entry
		want  []job.Field
	}{
		"the entry is there":                {job.Entry{Fields: raw}, raw},
		"the entry was trimmed, so the job": {job.Entry{}, job.Job{ID: "j", Task: "t"}.Fields()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &books{entry: tt.entry}
			id, err := activities.NewDeadLetter(b, b).Run(t.Context(), workflows.Settled{
				Row: job.Row{Effect: "e", Stream: "jobs:agent", EntryID: "1-0", Outcome: job.Outcome{Status: job.Failed, ErrorCode: "llm_timeout"}},
				Job: job.Job{ID: "j", Task: "t"},
			})
			require.NoError(t, err)
			require.Equal(t, "9-0", id)
			require.Equal(t, "9-0", b.deadID)
			require.Equal(t, tt.want, b.letters[0].Fields)
			require.Equal(t, "llm_timeout", b.letters[0].Reason)
		})
	}
}

func TestAcknowledge(t *testing.T) {
	t.Parallel()
	b := &books{}
	require.NoError(t, activities.NewAcknowledge(b).Run(t.Context(), job.Origin{Stream: "jobs:agent", Group: "g", EntryID: "1-0"}))
	require.Equal(t, []string{"jobs:agent", "g", "1-0"}, b.acked, "an entry no longer pending is no error")
	require.NoError(t, activities.NewAcknowledge(b).Run(t.Context(), job.Origin{}))
	require.Len(t, b.acked, 3, "a run without an entry has nothing to acknowledge")
}

func TestFinalActivitiesReportOutages(t *testing.T) {
	t.Parallel()
	b := &books{err: errors.New("the store is away")}
	settled := workflows.Settled{}
	_, persist := activities.NewPersist(b, b).Run(t.Context(), job.Row{})
	_, read := activities.NewReadRow(b).Run(t.Context(), job.Key{})
	_, publish := activities.NewPublish(b).Run(t.Context(), settled)
	_, dead := activities.NewDeadLetter(b, b).Run(t.Context(), settled)
	ack := activities.NewAcknowledge(b).Run(t.Context(), job.Origin{Stream: "s", EntryID: "1-0"})
	for code, errs := range map[string][]error{
		activities.CodeStore:  {persist, read},
		activities.CodeStream: {publish, dead, ack},
	} {
		for _, err := range errs {
			var applicationErr *temporal.ApplicationError
			require.ErrorAs(t, err, &applicationErr)
			require.Equal(t, code, applicationErr.Type())
			require.False(t, applicationErr.NonRetryable())
		}
	}
}
