package activities

import (
	"context"
	"time"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// RowWriter stores a row by the effect and fence rule.
type RowWriter interface {
	Persist(ctx context.Context, row job.Row) (job.Persisted, error)
}

// RowReader reads one row.
type RowReader interface {
	Row(ctx context.Context, key job.Key) (job.Row, bool, error)
}

// FinishMetrics counts jobs that ended; sinceEnqueued is 0 where unknown.
type FinishMetrics interface {
	JobFinished(role job.Role, status job.Status, code string, sinceEnqueued time.Duration)
}

// Persist is the first final activity: nothing is told to anyone before the row
// is committed.
type Persist struct {
	rows    RowWriter
	metrics FinishMetrics
}

// NewPersist returns the activity.
func NewPersist(rows RowWriter, metrics FinishMetrics) *Persist {
	return &Persist{rows: rows, metrics: metrics}
}

// Run stores the row. The stored row comes back only where it is another than
// the one given, because what an activity returns is written to the history.
func (p *Persist) Run(ctx context.Context, row job.Row) (workflows.Stored, error) {
	persisted, err := p.rows.Persist(ctx, row)
	if err != nil {
		return workflows.Stored{}, unavailable(CodeStore, err)
	}
	stored := workflows.Stored{Verdict: persisted.Verdict}
	switch persisted.Verdict {
	case job.Written:
		var age time.Duration
		if !row.EnqueuedAt.IsZero() {
			age = max(row.FinishedAt.Sub(row.EnqueuedAt), 0)
		}
		p.metrics.JobFinished(row.Role, row.Status, row.ErrorCode, age)
	case job.Kept:
		if !sameOutcome(persisted.Row, row) {
			stored.Row = &persisted.Row
		}
	case job.Superseded:
		persisted.Row.Output = ""
		stored.Row = &persisted.Row
	}
	return stored, unavailable(CodeStore, failpoint.Hit(ctx, failpoint.Persisted))
}

// sameOutcome reports whether two rows of one effect would be published alike.
func sameOutcome(a, b job.Row) bool {
	return a.Status == b.Status && a.Output == b.Output && a.ErrorCode == b.ErrorCode &&
		a.ErrorMessage == b.ErrorMessage && a.FinishedAt.Equal(b.FinishedAt)
}

// ReadRow tells a run that a person started what the row says, so that a job
// already completed is not paid for again.
type ReadRow struct{ rows RowReader }

// NewReadRow returns the activity.
func NewReadRow(rows RowReader) *ReadRow { return &ReadRow{rows: rows} }

// Run returns the row without its output.
func (r *ReadRow) Run(ctx context.Context, key job.Key) (workflows.Stored, error) {
	row, found, err := r.rows.Row(ctx, key)
	if err != nil {
		return workflows.Stored{}, unavailable(CodeStore, err)
	}
	if !found {
		return workflows.Stored{}, nil
	}
	row.Output = ""
	return workflows.Stored{Found: true, Row: &row}, nil
}
