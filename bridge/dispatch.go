package bridge

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/outcome"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// action is what an entry calls for. The row decides before the run: a job that
// has ended is never started because of a redelivery.
type action int

const (
	actStart  action = iota // no terminal row: start, unless the id was ever used
	actRetry                // a newer entry for a job that did not complete: start again
	actAnswer               // a newer entry for a completed job: publish the stored answer to it
	actFinish               // the entry the row was written for: publish once, dead letter, acknowledge
	actForget               // the same, but so old that the publish-once key may be gone: acknowledge
	actOld                  // an entry already dealt with: acknowledge
	actReject               // not a job: write the row that says so, then as actFinish
)

// decide applies the row-first rules of DESIGN.md section 4. row is the job's
// row, or for a rejected entry the row of that rejection; nil is none.
func decide(entryID string, rejected bool, row *job.Row, now time.Time) action {
	if row == nil {
		if rejected {
			return actReject
		}
		return actStart
	}
	if row.EntryID == entryID {
		if remembered(row.FinishedAt, now) {
			return actFinish
		}
		return actForget
	}
	dealtWith := job.CompareEntryIDs(entryID, row.LastEntryID) <= 0
	switch {
	case job.CompareEntryIDs(entryID, row.EntryID) < 0, cameDuring(entryID, row):
		return actOld
	case row.Status.Retryable() && dealtWith:
		return actOld
	case row.Status.Retryable():
		return actRetry
	case dealtWith && !remembered(row.FinishedAt, now) && !remembered(job.EntryTime(entryID), now):
		return actOld
	default:
		// Entries that ask again are not always answered in order: one at or before
		// the last may still be without its answer. As long as it is remembered what
		// was published, answering twice does nothing.
		return actAnswer
	}
}

// cameDuring reports whether an entry came while the run that wrote the row was
// open, which makes it a duplicate whenever it is looked at. While the run is open
// the run itself shows that; this rule is for later, when the group was lost and
// everything is delivered again.
//
// The times in entry ids are those of one clock (Redis), the row's of another. So
// two durations are compared: what comes no later after the row's entry than the
// run took has come before the run ended, because the run began after its entry
// was there. Entries of the time the row's entry had to wait are not recognised;
// they count as new ones, which loses nothing. A millisecond is what ids round
// off.
//
// A retry must never be taken for a duplicate, so ids that may not be times prove
// nothing. After a clock was set back, or at a failover to a master with an earlier
// one, ids stand still: they repeat the newest millisecond of the stream with
// higher sequence numbers, until the clock has passed it. Producers may number
// entries themselves, near zero or in the future; there the row's entry is far
// from its run, or behind its start. And a run that was reset sees the times of the
// history it began with, so that it seems to have been open since, also between the
// first failure and the reset, when a retry may have been sent.
func cameDuring(entryID string, row *job.Row) bool {
	if job.IsRunEffect(row.Effect) {
		return false
	}
	began := job.EntryTime(row.EntryID)
	waited := row.StartedAt.Sub(began)
	if row.StartedAt.IsZero() || waited < -clockSkew || waited > clockTrust || !job.FirstOfMillisecond(entryID) {
		return false
	}
	return job.EntryTime(entryID).Sub(began)+time.Millisecond <= row.FinishedAt.Sub(row.StartedAt)
}

const (
	// clockSkew is how far the clocks of Redis and Temporal may differ before the
	// times in ids are not believed.
	clockSkew = time.Second
	// clockTrust is how long an entry may have waited for its run before its id is
	// not taken for a time.
	clockTrust = 24 * time.Hour
)

// remembered reports whether what was published at that time or later is still
// known to be published. Half the time to live of the publish-once key leaves
// room for clocks that differ and for an entry that waits before it is settled.
func remembered(at, now time.Time) bool { return now.Sub(at) < stream.PublishTTL/2 }

// item is one entry on its way through the bridge.
type item struct {
	entry    job.Entry
	decoded  job.Decoded
	rejected *job.Rejection // nil: decoded is valid
	fresh    bool           // read for the first time, so that it is counted once
	verify   bool           // look at the run even if the start says that it exists
	trouble  string         // what kept it from being settled, if its fate is failing
}

// key is where the entry's row is.
func (it *item) key(role job.Role) job.Key {
	if it.rejected != nil {
		return it.rejectedKey(role)
	}
	return job.Key{Role: role, JobID: it.decoded.Job.ID}
}

// rejectedKey is where the entry's row is if it was rejected.
func (it *item) rejectedKey(role job.Role) job.Key {
	return job.Key{Role: role, JobID: job.RejectedID(it.entry.ID)}
}

// subject is the job the outcome is told about.
func (it *item) subject() job.Job {
	if it.rejected != nil {
		return it.rejected.Job
	}
	return it.decoded.Job
}

// fate is what became of an entry in one pass.
type fate int

const (
	settled fate = iota // acknowledged
	running             // its run exists and will acknowledge it
	closing             // another run has to end first; tried again in a second
	failing             // nothing is known; tried again with backoff
)

// decode turns raw entries into items and counts what was normalised.
func (l *lane) decode(entries []job.Entry, fresh bool) []*item {
	items := make([]*item, 0, len(entries))
	for _, e := range entries {
		e.Stream = l.stream
		it := &item{entry: e, fresh: fresh}
		decoded, err := job.Decode(l.role, e)
		if err != nil {
			it.rejected = rejectionOf(err)
			it.rejected.Job.Role = l.role
		} else {
			it.decoded = decoded
			if fresh {
				for _, note := range decoded.Notes {
					l.b.metrics.EntryNormalised(l.role, note)
				}
			}
		}
		items = append(items, it)
	}
	return items
}

func rejectionOf(err error) *job.Rejection {
	if rejection, ok := errors.AsType[*job.Rejection](err); ok {
		return rejection
	}
	return &job.Rejection{Reason: job.ReasonStartRefused}
}

// dispatch takes the items as far as it can and returns their fates, by entry
// id. Items of the same job go one after the other, so that the first entry and
// not the fastest call wins.
func (l *lane) dispatch(ctx context.Context, items []*item) map[string]fate {
	fates := make(map[string]fate, len(items))
	for len(items) > 0 {
		var wave, rest []*item
		seen := make(map[job.Key]struct{}, len(items))
		for _, it := range items {
			key := it.key(l.role)
			if _, again := seen[key]; again || len(wave) == rowsPerRead/2 {
				rest = append(rest, it)
				continue
			}
			seen[key] = struct{}{}
			wave = append(wave, it)
		}
		l.dispatchWave(ctx, wave, fates)
		items = rest
	}
	return fates
}

func (l *lane) dispatchWave(ctx context.Context, wave []*item, fates map[string]fate) {
	// An entry may have been refused although it can be decoded: that row is not
	// under its jobId.
	keys := make([]job.Key, 0, 2*len(wave))
	for _, it := range wave {
		keys = append(keys, it.key(l.role), it.rejectedKey(l.role))
	}
	rows, err := l.b.readRows(ctx, keys)
	if err != nil {
		l.trouble(ctx, troubleStoreRead, err)
		for _, it := range wave {
			it.trouble = troubleStoreRead
			fates[it.entry.ID] = failing
		}
		return
	}

	// The group's goroutines begin in the order of the entries.
	results := make([]fate, len(wave))
	var group errgroup.Group
	group.SetLimit(l.b.timing.parallel)
	for i, it := range wave {
		row := rows.of(it.rejectedKey(l.role))
		switch {
		case row == nil:
			row = rows.of(it.key(l.role))
		case it.rejected == nil:
			it.rejected = &job.Rejection{Reason: row.ErrorCode, Job: it.decoded.Job.Identifiers()}
		}
		group.Go(func() error {
			results[i] = l.handle(ctx, it, row)
			return nil
		})
	}
	_ = group.Wait() // the goroutines return no error
	for i, it := range wave {
		fates[it.entry.ID] = results[i]
	}
}

// handle does for one item what decide says.
func (l *lane) handle(ctx context.Context, it *item, row *job.Row) fate {
	ctx, cancel := context.WithTimeout(ctx, l.b.timing.entry)
	defer cancel()
	f, err := l.act(ctx, it, row)
	if err == nil {
		return f
	}
	it.trouble = troubleRedis
	if te, ok := errors.AsType[*troubleError](err); ok {
		it.trouble = te.kind
	}
	l.trouble(ctx, it.trouble, err)
	return failing
}

func (l *lane) act(ctx context.Context, it *item, row *job.Row) (fate, error) {
	switch decide(it.entry.ID, it.rejected != nil, row, l.b.now()) {
	case actStart:
		return l.start(ctx, it, nil, ReuseNever)
	case actRetry:
		if row.DeadID == "" {
			// Writing the dead letter's id is the step before the acknowledgement.
			// Without it nobody may have heard of the failure yet, and the run that
			// should tell may have been killed: it is looked at first.
			return l.start(ctx, it, row, ReuseNever)
		}
		return l.start(ctx, it, row, ReuseUnsuccessful)
	case actAnswer:
		return settled, l.answer(ctx, it, row)
	case actFinish:
		return settled, l.finish(ctx, *row, it.subject(), l.origin(it.entry), it.entry.Fields)
	case actForget:
		return settled, l.ack(ctx, it.entry.ID)
	case actOld:
		l.b.metrics.EntryDuplicate(l.role, duplicateOld)
		return settled, l.ack(ctx, it.entry.ID)
	case actReject:
		return settled, l.reject(ctx, it)
	default:
		return failing, nil
	}
}

// Kinds of duplicates, as metrics name them.
const (
	duplicateRunning = "running" // the job's run is open
	duplicateOld     = "old"     // dealt with before, or sent while the job ran
	duplicateAnswer  = "answer"  // the job is completed: its answer was repeated
)

// start asks for the run of the item's job. row is the row that makes it a
// retry, nil if there is none.
func (l *lane) start(ctx context.Context, it *item, row *job.Row, reuse Reuse) (fate, error) {
	res, err := l.request(ctx, it, RequestID(l.stream, it.entry.ID), reuse)
	switch {
	case err != nil:
		return failing, err
	case res.Verdict == Refused:
		return l.refused(ctx, it, row)
	case res.Verdict == Started && !it.verify:
		return running, nil
	}
	return l.examine(ctx, it, row)
}

// refused settles an entry that the workflow service will not accept, unless it
// accepted it before: a redelivered entry may have a run, and the service need
// not look for that first.
func (l *lane) refused(ctx context.Context, it *item, row *job.Row) (fate, error) {
	run, err := l.b.describe(ctx, job.WorkflowID(l.role, it.decoded.Job.ID))
	switch {
	case err != nil && !errors.Is(err, ErrRunNotFound):
		return failing, err
	case err == nil && run.Stream == l.stream && run.EntryID == it.entry.ID:
		return l.examine(ctx, it, row)
	}
	return l.refuse(ctx, it)
}

// refuse rejects an entry that could be decoded.
func (l *lane) refuse(ctx context.Context, it *item) (fate, error) {
	it.rejected = &job.Rejection{Reason: job.ReasonStartRefused, Job: it.decoded.Job.Identifiers()}
	return settled, l.reject(ctx, it)
}

func (l *lane) request(ctx context.Context, it *item, requestID string, reuse Reuse) (StartResult, error) {
	ctx, cancel := context.WithTimeout(ctx, l.b.timing.start)
	defer cancel()
	origin := l.origin(it.entry)
	origin.Redelivered = !it.fresh
	res, err := l.b.temporal.Start(ctx, StartRequest{
		Input:     workflows.Input{Job: it.decoded.Job, Origin: origin, Plan: workflows.CurrentPlan},
		RequestID: requestID,
		Reuse:     reuse,
	})
	if err == nil {
		err = failpoint.Hit(ctx, failpoint.Started)
	}
	if err != nil {
		return StartResult{}, &troubleError{kind: troubleTemporal, err: err}
	}
	if l.clear(ctx, troubleTemporal) {
		select {
		case l.b.recovered <- struct{}{}:
		default:
		}
	}
	return res, nil
}

func (l *lane) origin(e job.Entry) job.Origin {
	return job.Origin{
		Stream:     l.stream,
		EntryID:    e.ID,
		Group:      l.b.redis.Group(),
		Updates:    l.b.cfg.Updates,
		EnqueuedAt: job.EntryTime(e.ID),
	}
}

// examine looks at the run that has the item's workflow id: another one is in
// the way, or the item's own is in doubt.
func (l *lane) examine(ctx context.Context, it *item, row *job.Row) (fate, error) {
	j := it.decoded.Job
	run, err := l.b.describe(ctx, job.WorkflowID(l.role, j.ID))
	if errors.Is(err, ErrRunNotFound) {
		return closing, nil // gone since the start was answered
	}
	if err != nil {
		return failing, err
	}
	own := run.Stream == l.stream && run.EntryID == it.entry.ID
	if run.State == RunOpen {
		switch {
		case own:
			return running, nil
		case row != nil && row.EntryID == run.EntryID:
			return closing, nil // its row is written, or it is a reset of that run
		case run.EntryID == "":
			return closing, nil // a person's, who may have meant this entry or something else
		default:
			l.b.metrics.EntryDuplicate(l.role, duplicateRunning)
			return settled, l.ack(ctx, it.entry.ID)
		}
	}

	if run.State.Killed() && !own {
		// First the books of that run: once another has started nobody will look
		// for it.
		if err := l.b.buryRun(ctx, run); err != nil && !unknowable(err) {
			return failing, err
		}
	}

	// A run writes its row before it closes. So only now, that it is closed, does
	// a missing row mean something.
	rows, err := l.b.readRows(ctx, []job.Key{it.key(l.role)})
	if err != nil {
		return failing, err
	}
	row = rows.of(it.key(l.role))
	if row != nil && job.CompareEntryIDs(row.LastEntryID, run.EntryID) >= 0 {
		if decide(it.entry.ID, false, row, l.b.now()) == actRetry {
			// The row says retry, whatever status the run was closed with.
			return l.startAgain(ctx, it, RequestID(l.stream, it.entry.ID))
		}
		return l.act(ctx, it, row)
	}
	switch {
	case run.State.Killed() && own:
		return settled, l.bury(ctx, run, j, l.origin(it.entry), it.entry.Fields)
	case own:
		return l.startAgain(ctx, it, repeatID(l.stream, it.entry.ID, run.RunID))
	default:
		return l.startAgain(ctx, it, RequestID(l.stream, it.entry.ID))
	}
}

// startAgain starts the item's job although a closed run has its workflow id.
func (l *lane) startAgain(ctx context.Context, it *item, requestID string) (fate, error) {
	res, err := l.request(ctx, it, requestID, ReuseAny)
	switch {
	case err != nil:
		return failing, err
	case res.Verdict == Started:
		return running, nil
	case res.Verdict == Refused:
		return l.refuse(ctx, it)
	default:
		return closing, nil // something else was faster; look again
	}
}

// answer publishes the stored answer of a completed job to a newer entry that
// asks for it again.
func (l *lane) answer(ctx context.Context, it *item, row *job.Row) error {
	update := outcome.Update(*row, it.decoded.Job, l.b.cfg.Updates, job.AnswerEffect(l.stream, it.entry.ID))
	published, err := l.b.redis.Publish(ctx, update)
	if err == nil {
		err = failpoint.Hit(ctx, failpoint.Published)
	}
	if err != nil {
		return &troubleError{kind: troublePublish, err: err}
	}
	if err := l.b.rows.RaiseEntry(ctx, row.Key(), it.entry.ID); err != nil {
		return &troubleError{kind: troubleStoreWrite, err: err}
	}
	kind := duplicateOld
	if published {
		kind = duplicateAnswer
	}
	l.b.metrics.EntryDuplicate(l.role, kind)
	return l.ack(ctx, it.entry.ID)
}

// ack acknowledges entries of this bridge's group.
func (l *lane) ack(ctx context.Context, ids ...string) error {
	_, err := l.b.redis.Ack(ctx, l.stream, l.b.redis.Group(), ids...)
	return acked(ctx, err)
}

// ackOrigin acknowledges the entry a run was started for, in the group it was
// read through, which this bridge need not belong to.
func (l *lane) ackOrigin(ctx context.Context, o job.Origin) error {
	_, err := l.b.redis.Ack(ctx, o.Stream, o.Group, o.EntryID)
	return acked(ctx, err)
}

func acked(ctx context.Context, err error) error {
	if err == nil {
		err = failpoint.Hit(ctx, failpoint.Acked)
	}
	if err != nil {
		return &troubleError{kind: troubleRedis, err: err}
	}
	return nil
}
