package bridge

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// audit looks for entries of one stream that nobody will ever deliver again and
// whose job has neither a row nor a run: their consumer was deleted, or somebody
// else acknowledged them.
//
// From Redis alone such an entry looks like one that was done long ago by another
// program, or whose row was removed since. So only those are taken back that this
// reconciler has itself seen pending, because whoever settles an entry properly
// leaves a row or an open run before it stops being pending. The others are
// counted and reported, each once.
type audit struct {
	l *lane

	// seen are the entries that were pending when last listed, and those since gone
	// of which is not known yet what became of them.
	seen map[string]struct{}
	// mark is the id up to which entries never seen pending were looked for; empty
	// until it was asked where the last reconciler stopped.
	mark  string
	saved string // where the next one would begin
	upTo  string // what was delivered at the last survey

	found int      // to be reported once the mark has caught up
	named []string // the first of them
}

func newAudit(l *lane) *audit { return &audit{l: l, seen: make(map[string]struct{})} }

// auditPages bounds how many pages of entries are read of one stream in one
// survey: a stream is never trimmed and may be long when it is first looked at.
const auditPages = 64

// maxNamed is how many entries a report names: a log shows no longer lists.
const maxNamed = 16

// What was done about entries without row and run, as metrics name it.
const (
	unaccountedRestored = "restored"
	unaccountedReported = "reported"
)

// census is what one survey knows of a stream. The order matters: an entry
// delivered by then, and not pending in a listing that began later, is settled or
// lost; and what settled it had left a row, or a run that was open, before rows and
// runs were looked at.
type census struct {
	delivered string // the last id the group was given, before pending was listed
	pending   map[string]struct{}
	busy      map[string]struct{} // workflow ids with a run that is open, or closed from outside of late
}

// look compares. It stops when ctx ends, and goes on at the next survey.
func (a *audit) look(ctx context.Context, c census) error {
	err := a.takeBack(ctx, c)
	for id := range c.pending {
		a.seen[id] = struct{}{}
	}
	if err == nil {
		err = a.scan(ctx, c)
	}
	return errors.Join(err, a.save(ctx))
}

// takeBack makes lost entries pending again that were seen pending.
func (a *audit) takeBack(ctx context.Context, c census) error {
	var gone []string
	for id := range a.seen {
		if _, ok := c.pending[id]; !ok {
			gone = append(gone, id)
		}
	}
	slices.SortFunc(gone, job.CompareEntryIDs)
	for len(gone) > 0 {
		page := gone[:min(len(gone), batchSize)]
		last := page[len(page)-1]
		entries, err := a.l.b.redis.Range(ctx, a.l.stream, page[0], last, batchSize)
		if err != nil {
			return err
		}
		if len(entries) == batchSize {
			last = entries[batchSize-1].ID
		}
		entries = slices.DeleteFunc(entries, func(e job.Entry) bool { return !slices.Contains(page, e.ID) })
		kept, err := a.takeBackSome(ctx, entries, c)
		if err != nil && kept == nil {
			return err
		}
		for len(gone) > 0 && job.CompareEntryIDs(gone[0], last) <= 0 {
			if !slices.Contains(kept, gone[0]) {
				delete(a.seen, gone[0])
			}
			gone = gone[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// takeBackSome returns those of the entries that have to be looked at again: a run
// may yet write their row, or nothing could be found out. With an error that concerns
// them all it returns none.
func (a *audit) takeBackSome(ctx context.Context, entries []job.Entry, c census) ([]string, error) {
	missing, busy, err := a.unaccounted(ctx, entries, c)
	if err != nil {
		return nil, err
	}
	kept, lost := make([]string, 0, len(entries)), []string(nil)
	for _, it := range busy {
		kept = append(kept, it.entry.ID)
	}
	for _, it := range missing {
		what := isLost // of what is no job there is no run either
		if it.rejected == nil && err == nil {
			what, err = a.judge(ctx, it)
		}
		if it.rejected == nil && err != nil {
			what = isOpen // for all that is known
		}
		switch what {
		case isLost:
			lost = append(lost, it.entry.ID)
			kept = append(kept, it.entry.ID) // it is pending again
		case isOpen:
			kept = append(kept, it.entry.ID)
		case isDone:
		}
	}
	if len(lost) == 0 {
		return kept, err
	}
	if err := a.l.b.redis.Restore(ctx, a.l.stream, lost...); err != nil {
		return nil, err
	}
	a.l.suspect(lost...)
	a.l.b.metrics.EntriesUnaccounted(a.l.role, unaccountedRestored, len(lost))
	a.l.log.WarnContext(ctx, "entries were acknowledged by somebody else, or their consumer was deleted, before their jobs ran: they are pending again",
		slog.Int("count", len(lost)), slog.String("entry", lost[0]))
	return kept, err
}

// errNoTime says that the rest has its turn at the next survey.
var errNoTime = errors.New("no time left")

// finding is what an entry without a row turned out to be.
type finding int

const (
	isLost finding = iota
	isOpen         // a run speaks for its job, or the burial of one is due
	isDone
)

// judge asks the workflow service about the job of an entry that was pending, is
// not any more, and has no row.
func (a *audit) judge(ctx context.Context, it *item) (finding, error) {
	b := a.l.b
	if err := b.lookups.Wait(ctx); err != nil {
		return isOpen, errNoTime
	}
	run, err := b.describe(ctx, job.WorkflowID(a.l.role, it.decoded.Job.ID))
	own := run.Stream == a.l.stream && run.EntryID == it.entry.ID
	switch {
	case errors.Is(err, ErrRunNotFound):
		return isLost, nil
	case err != nil:
		return isOpen, err
	case run.State == RunOpen, run.State.Killed() && !own:
		return isOpen, nil
	case run.State.Killed():
		return isLost, nil // it is buried with the entry at hand
	case own:
		return isDone, nil // it wrote its row before it closed: somebody has removed it
	}
	// The run of another entry, which was open a moment ago, maybe, and has its row
	// since.
	rows, err := b.readRows(ctx, []job.Key{it.key(a.l.role)})
	if err != nil {
		return isOpen, err
	}
	if rows.of(it.key(a.l.role)) != nil {
		return isDone, nil
	}
	return isLost, nil
}

// unaccounted are those of the entries whose job has no row. Of busy ones a run
// speaks for the job.
//
// Any row of the job will do. One older than the entry does not prove that the
// entry was dealt with, but a duplicate that was acknowledged while its job ran
// leaves no other, and to take that for a retry would be paid for.
func (a *audit) unaccounted(ctx context.Context, entries []job.Entry, c census) (missing, busy []*item, err error) {
	if len(entries) == 0 {
		return nil, nil, nil
	}
	items := a.l.decode(entries, false)
	keys := make([]job.Key, 0, 2*len(items))
	for _, it := range items {
		keys = append(keys, it.key(a.l.role), it.rejectedKey(a.l.role))
	}
	rows, err := a.l.b.readRows(ctx, keys)
	if err != nil {
		return nil, nil, err
	}
	for _, it := range items {
		if rows.of(it.key(a.l.role)) != nil || rows.of(it.rejectedKey(a.l.role)) != nil {
			continue
		}
		if it.rejected == nil {
			if _, ok := c.busy[job.WorkflowID(a.l.role, it.decoded.Job.ID)]; ok {
				busy = append(busy, it)
				continue
			}
		}
		missing = append(missing, it)
	}
	return missing, busy, nil
}

// scan looks at entries that were never seen pending, up to what was delivered at
// the last survey: by now most of it is settled, and the rest is seen.
func (a *audit) scan(ctx context.Context, c census) error {
	if a.mark == "" {
		mark, err := a.l.b.redis.Audited(ctx, a.l.stream)
		if err != nil {
			return err
		}
		a.mark, a.saved = mark, mark
	}
	if job.CompareEntryIDs(c.delivered, a.mark) < 0 {
		a.mark = c.delivered // the group was made anew: what follows is delivered again
	}
	upTo := a.upTo
	a.upTo = c.delivered
	if job.CompareEntryIDs(upTo, c.delivered) > 0 {
		upTo = c.delivered
	}
	for range auditPages {
		if job.CompareEntryIDs(a.mark, upTo) >= 0 {
			break
		}
		if err := a.scanPage(ctx, upTo, c); err != nil {
			return err
		}
	}
	if a.found > 0 && job.CompareEntryIDs(a.mark, upTo) >= 0 {
		a.l.log.WarnContext(ctx, "entries are neither pending nor is anything known of their jobs: done by another program, their rows removed, "+
			"or lost with a deleted consumer; nothing is done about them",
			slog.Int("count", a.found), slog.Any("entry_ids", a.named))
		a.found, a.named = 0, nil
	}
	return nil
}

func (a *audit) scanPage(ctx context.Context, upTo string, c census) error {
	entries, err := a.l.b.redis.Range(ctx, a.l.stream, "("+a.mark, upTo, batchSize)
	if err != nil {
		return err
	}
	mark := upTo
	if len(entries) == batchSize {
		mark = entries[batchSize-1].ID
	}
	entries = slices.DeleteFunc(entries, func(e job.Entry) bool {
		_, seen := a.seen[e.ID]
		return seen
	})
	missing, _, err := a.unaccounted(ctx, entries, c)
	if err != nil {
		return err
	}
	a.mark = mark
	if len(missing) == 0 {
		return nil
	}
	for _, it := range missing[:min(len(missing), maxNamed-len(a.named))] {
		a.named = append(a.named, it.entry.ID)
	}
	a.found += len(missing)
	a.l.b.metrics.EntriesUnaccounted(a.l.role, unaccountedReported, len(missing))
	return nil
}

// save remembers where the next reconciler has to begin: what is seen now it will
// not have seen.
func (a *audit) save(ctx context.Context) error {
	if a.mark == "" {
		return nil
	}
	mark := a.mark
	if len(a.seen) > 0 {
		oldest := before(slices.MinFunc(slices.Collect(maps.Keys(a.seen)), job.CompareEntryIDs))
		if job.CompareEntryIDs(oldest, mark) < 0 {
			mark = oldest
		}
	}
	if mark == a.saved {
		return nil
	}
	if err := a.l.b.redis.SetAudited(ctx, a.l.stream, mark); err != nil {
		return err
	}
	a.saved = mark
	return nil
}

// busyIDs are the workflow ids of runs.
func busyIDs(lists ...[]Run) map[string]struct{} {
	busy := make(map[string]struct{})
	for _, runs := range lists {
		for _, run := range runs {
			busy[run.WorkflowID] = struct{}{}
		}
	}
	return busy
}

// idsOf are the ids of pending entries.
func idsOf(entries []stream.PendingEntry) map[string]struct{} {
	ids := make(map[string]struct{}, len(entries))
	for _, e := range entries {
		ids[e.ID] = struct{}{}
	}
	return ids
}
