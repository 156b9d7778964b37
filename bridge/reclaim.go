package bridge

import (
	"context"
	"log/slog"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// sweep takes over the entries of consumers that are not alive any more, and
// dispatches them. A run that exists is found again by its request id, so that
// nothing is started twice.
func (l *lane) sweep(stop, work context.Context, p *progress) error {
	for stop.Err() == nil {
		batch, err := l.claimDead(work)
		if err != nil {
			l.nextSweep = l.b.now() // nobody else may know of the entries that were claimed
			return err
		}
		if len(batch.Entries) == 0 && len(batch.Deleted) == 0 {
			return nil
		}
		l.log.InfoContext(work, "took over entries of a consumer that is gone", slog.Int("count", len(batch.Entries)))
		if err := l.takeOver(work, batch, p); err != nil || p.failed > 0 {
			return err
		}
	}
	return nil
}

func (l *lane) claimDead(ctx context.Context) (stream.Batch, error) {
	ctx, cancel := context.WithTimeout(ctx, l.b.timing.call)
	defer cancel()
	batch, err := l.b.redis.ClaimDead(ctx, l.stream, batchSize)
	if err == nil {
		err = each(ctx, failpoint.Claimed, batch.Entries)
	}
	return batch, err
}

// autoClaim takes over entries that nobody has looked after for ClaimMinIdle,
// whoever owns them. It is the fallback for what the sweep cannot see: a
// consumer that beats but does not work, or one of another program.
func (l *lane) autoClaim(stop, work context.Context, p *progress) error {
	cursor := "0-0"
	for stop.Err() == nil {
		batch, next, err := l.claimIdle(work, cursor)
		if err != nil {
			return err
		}
		if err := l.takeOver(work, batch, p); err != nil {
			return err
		}
		if next == "0-0" || next == "" || p.failed > 0 {
			return nil
		}
		cursor = next
	}
	return nil
}

func (l *lane) claimIdle(ctx context.Context, cursor string) (stream.Batch, string, error) {
	ctx, cancel := context.WithTimeout(ctx, l.b.timing.call)
	defer cancel()
	batch, next, err := l.b.redis.AutoClaim(ctx, l.stream, l.b.cfg.ClaimMinIdle, cursor, batchSize)
	if err == nil {
		err = each(ctx, failpoint.Claimed, batch.Entries)
	}
	return batch, next, err
}

// takeOver dispatches claimed entries, except those whose run is known.
func (l *lane) takeOver(ctx context.Context, batch stream.Batch, p *progress) error {
	if err := l.dropDeleted(ctx, batch.Deleted); err != nil {
		return err
	}
	todo := make([]job.Entry, 0, len(batch.Entries))
	for _, e := range batch.Entries {
		if !l.started.has(e.ID) && l.waiting[e.ID] == nil {
			todo = append(todo, e)
		}
	}
	l.dispatchEntries(ctx, todo, false, p)
	return nil
}
