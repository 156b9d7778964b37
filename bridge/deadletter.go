package bridge

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/outcome"
)

// reject settles an entry that is no job: row, error update, dead letter,
// acknowledgement, in that order. Each step can be repeated, so that a crash
// between any two leaves nothing to undo.
func (l *lane) reject(ctx context.Context, it *item) error {
	now := l.b.now()
	row := job.NewRow(it.rejected.Job, l.origin(it.entry), job.EntryEffect(l.stream, it.entry.ID), job.Outcome{
		Status:       job.Rejected,
		ErrorCode:    it.rejected.Reason,
		ErrorMessage: it.rejected.Message(),
		FinishedAt:   now,
	})
	row.Role = l.role
	row.JobID = job.RejectedID(it.entry.ID)
	persisted, err := l.b.rows.Persist(ctx, row)
	if err != nil {
		return &troubleError{kind: troubleStoreWrite, err: err}
	}
	if persisted.Verdict == job.Written {
		l.b.metrics.EntryRejected(l.role, it.rejected.Reason)
		l.b.metrics.JobFinished(l.role, job.Rejected, it.rejected.Reason, since(now, row.EnqueuedAt))
		l.log.WarnContext(ctx, "entry rejected", slog.String("entry", it.entry.ID),
			slog.String("reason", it.rejected.Reason), slog.String("field", it.rejected.Field))
	}
	if err := failpoint.Hit(ctx, failpoint.Persisted); err != nil {
		return &troubleError{kind: troubleStoreWrite, err: err}
	}
	return l.finish(ctx, persisted.Row, it.rejected.Job, l.origin(it.entry), it.entry.Fields)
}

// bury settles an entry whose run was terminated or timed out: such a run
// executed no code of ours, so nobody else will. Its end is the time the server
// closed it: a fence by this machine's clock could be older than that of a run
// before it, and the outcome would be passed over.
func (l *lane) bury(ctx context.Context, run Run, j job.Job, origin job.Origin, fields []job.Field) error {
	end := job.Outcome{
		Status:       job.Failed,
		ErrorCode:    codeTerminated,
		ErrorMessage: "The job was stopped by an operator before it ended.",
		StartedAt:    run.StartedAt,
		FinishedAt:   run.ClosedAt,
	}
	if run.State == RunTimedOut {
		end.ErrorCode, end.ErrorMessage = codeTimedOut, "The job ran longer than it was allowed to."
	}
	row := job.NewRow(j, origin, run.effect(), end)
	row.WorkflowID, row.RunID = run.WorkflowID, run.RunID
	persisted, err := l.b.rows.Persist(ctx, row)
	if err != nil {
		return &troubleError{kind: troubleStoreWrite, err: err}
	}
	switch persisted.Verdict {
	case job.Superseded:
		return l.ackOrigin(ctx, origin)
	case job.Written:
		l.b.metrics.JobFinished(l.role, job.Failed, end.ErrorCode, since(end.FinishedAt, row.EnqueuedAt))
		l.log.WarnContext(ctx, "run was closed from outside; its job is failed",
			slog.String("entry", origin.EntryID), slog.String("job", j.ID),
			slog.String("run_id", run.RunID), slog.String("code", end.ErrorCode))
	case job.Kept:
	}
	if err := failpoint.Hit(ctx, failpoint.Persisted); err != nil {
		return &troubleError{kind: troubleStoreWrite, err: err}
	}
	return l.finish(ctx, persisted.Row, j, origin, fields)
}

// buryRun is bury for a run whose entry is not at hand: what there is to know is
// in its input. Of a run that has a row already, whoever wrote it, the rest of
// the books is finished: the run cannot say any more how far it came, and a
// bridge may have died between two steps. Nothing is done where another run
// speaks for the job.
func (b *Bridge) buryRun(ctx context.Context, run Run) error {
	input, err := b.input(ctx, run)
	if err != nil {
		return err
	}
	j, origin := input.Job, input.Origin
	l := b.lane(j.Role)
	if l == nil {
		return ErrInputUnreadable
	}
	key := job.Key{Role: j.Role, JobID: j.ID}
	rows, err := b.readRows(ctx, []job.Key{key})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timing.entry)
	defer cancel()
	row := rows.of(key)
	switch {
	case row == nil || row.Effect != run.effect() && job.CompareEntryIDs(row.LastEntryID, origin.EntryID) < 0:
		return l.bury(ctx, run, j, origin, j.Fields())
	case row.Effect == run.effect() && remembered(row.FinishedAt, b.now()):
		return l.finish(ctx, *row, j, origin, j.Fields())
	default:
		return nil
	}
}

// unknowable reports whether err says that a run's input can never be read.
func unknowable(err error) bool {
	return errors.Is(err, ErrRunNotFound) || errors.Is(err, ErrInputUnreadable)
}

// Error codes of jobs whose run was closed from outside.
const (
	codeTerminated = "terminated"
	codeTimedOut   = "timed_out"
)

// finish does what follows a terminal row: it publishes its update, unless that
// was done, writes the dead letter if the row calls for one, and acknowledges
// the entry.
func (l *lane) finish(ctx context.Context, row job.Row, j job.Job, origin job.Origin, fields []job.Field) error {
	if row.Status != job.Rejected || j.UserID != "" || j.ConnectionID != "" {
		// Of a rejected entry only usable identifiers are left; with none there is
		// nobody to tell.
		_, err := l.b.redis.Publish(ctx, outcome.Update(row, j, l.b.cfg.Updates, row.Effect))
		if err == nil {
			err = failpoint.Hit(ctx, failpoint.Published)
		}
		if err != nil {
			return &troubleError{kind: troublePublish, err: err}
		}
	}
	if outcome.NeedsDeadLetter(row.Status) {
		letter := outcome.DeadLetter(row, fields, row.Effect)
		id, err := l.b.redis.DeadLetter(ctx, letter)
		if err == nil {
			err = failpoint.Hit(ctx, failpoint.DeadLettered)
		}
		if err != nil {
			return &troubleError{kind: troublePublish, err: err}
		}
		if row.DeadID != id {
			if err := l.b.rows.SetDeadID(ctx, row.Key(), row.Effect, id); err != nil {
				return &troubleError{kind: troubleStoreWrite, err: err}
			}
		}
	}
	return l.ackOrigin(ctx, origin)
}

// since is the age of an entry; producers may set ids by hand, so it can be
// anything.
func since(now, enqueued time.Time) time.Duration {
	if enqueued.IsZero() {
		return 0
	}
	return now.Sub(enqueued)
}
