package bridge

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nodpt/executor/internal/stream"
)

// reconciler compares what is pending with the runs that exist. Entries are
// acknowledged by the last step of their run, so whatever keeps a run from its
// last step (an operator, a lost database) would leave its entry pending for
// ever if nobody looked.
type reconciler struct {
	b         *Bridge
	namespace string              // id of the Temporal namespace when last seen
	done      map[string]struct{} // killed runs that need no further look
	since     time.Time           // killed runs closed before then have been dealt with
	audits    map[*lane]*audit
	nextDrop  time.Time
}

func newReconciler(b *Bridge) *reconciler {
	return &reconciler{b: b, done: make(map[string]struct{}), audits: make(map[*lane]*audit)}
}

// run surveys in a fixed interval, sooner while the workflow service is away, and
// at once when it is back: it may have come back empty.
func (r *reconciler) run(ctx context.Context) {
	for ctx.Err() == nil {
		pause := r.b.timing.survey
		if !r.survey(ctx) {
			pause = min(pause, r.b.timing.beat)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-r.b.recovered:
		}
		timer.Stop()
	}
}

// survey is one round. Every bridge tidies up its own memory; one of them, by
// lease, looks after the pending entries of all. It reports whether the workflow
// service answered.
func (r *reconciler) survey(ctx context.Context) bool {
	answered := r.checkNamespace(ctx)
	// Listed before the runs are: an entry started in between is then not pending
	// here, rather than pending without a run.
	pending := make(map[*lane][]stream.PendingEntry, len(r.b.lanes))
	counted := make(map[*lane]census, len(r.b.lanes))
	for _, l := range r.b.lanes {
		known := l.started.list()
		delivered, err := r.delivered(ctx, l)
		if err != nil {
			continue // the lane reports Redis
		}
		entries, err := r.pending(ctx, l)
		if err != nil {
			continue
		}
		ids := idsOf(entries)
		l.started.retain(known, ids)
		pending[l] = entries
		counted[l] = census{delivered: delivered, pending: ids}
	}
	if !r.b.leader.Load() {
		// The next leader, maybe this one, begins anew.
		r.since = time.Time{}
		clear(r.audits)
		return answered
	}
	if err := r.reconcile(ctx, pending, counted); err != nil && ctx.Err() == nil {
		r.b.metrics.BridgeError("", "reconcile")
		r.b.log.WarnContext(ctx, "pending entries could not be compared with runs; tried again shortly", slog.Any("error", err))
	}
	r.dropConsumers(ctx)
	return answered
}

// checkNamespace notices that the workflow service lost its state: the
// namespace has the same name and another id. No run that was known exists any
// more, so everything pending is dispatched again at once.
func (r *reconciler) checkNamespace(ctx context.Context) (answered bool) {
	call, cancel := context.WithTimeout(ctx, r.b.timing.start)
	defer cancel()
	id, err := r.b.temporal.Namespace(call)
	r.b.nowhere.Store(errors.Is(err, ErrNoNamespace))
	if err != nil {
		if ctx.Err() == nil {
			r.b.metrics.BridgeError("", troubleTemporal)
			r.b.log.WarnContext(ctx, "the Temporal namespace cannot be looked at", slog.Any("error", err))
		}
		return false
	}
	if r.namespace != "" && r.namespace != id {
		r.b.log.ErrorContext(ctx, "the Temporal namespace is a new one: its runs are lost, pending entries are started again",
			slog.String("namespace_id", id))
		clear(r.done)
		for _, l := range r.b.lanes {
			l.suspectAll()
		}
	}
	r.namespace = id
	return true
}

func (r *reconciler) delivered(ctx context.Context, l *lane) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.b.timing.call)
	defer cancel()
	return r.b.redis.Delivered(ctx, l.stream)
}

func (r *reconciler) pending(ctx context.Context, l *lane) ([]stream.PendingEntry, error) {
	var all []stream.PendingEntry
	after := ""
	for {
		call, cancel := context.WithTimeout(ctx, r.b.timing.call)
		page, err := r.b.redis.PendingList(call, l.stream, after, pageSize)
		cancel()
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if len(page) < pageSize {
			return all, nil
		}
		after = page[len(page)-1].ID
	}
}

// reconcile refreshes entries whose run is open, hands the others to their
// lanes, settles killed runs whose entry is not pending, and looks for entries
// that are lost.
func (r *reconciler) reconcile(ctx context.Context, pending map[*lane][]stream.PendingEntry, counted map[*lane]census) error {
	call, cancel := context.WithTimeout(ctx, r.b.timing.survey+r.b.timing.call)
	defer cancel()
	open, err := r.b.temporal.Open(call)
	if err != nil {
		return err
	}
	since := r.since
	if since.IsZero() {
		since = r.b.now().Add(-r.b.timing.killedSince)
	}
	killed, err := r.b.temporal.Killed(call, since)
	if err != nil {
		return err
	}

	live := make(map[string]struct{}, len(open))
	for _, run := range open {
		live[run.Stream+"/"+run.EntryID] = struct{}{}
	}
	dead := make(map[string]struct{}, len(killed))
	for _, run := range killed {
		dead[run.Stream+"/"+run.EntryID] = struct{}{}
	}
	budget := max(1, int(float64(r.b.timing.lookups)*r.b.timing.survey.Seconds()))
	var errs []error
	for _, l := range r.b.lanes {
		handed, err := r.look(ctx, l, pending[l], live, dead, budget)
		budget -= handed
		errs = append(errs, err)
	}
	all, err := r.bury(call, killed, pending, max(1, budget/2))
	r.since = since
	if all {
		// By the server's clock, because ours may be ahead of it; and visibility lags
		// behind, so that the windows overlap.
		for _, run := range killed {
			if at := run.ClosedAt.Add(-visibilityLag); at.After(r.since) {
				r.since = at
			}
		}
	}
	errs = append(errs, err)
	busy := busyIDs(open, killed)
	for _, l := range r.b.lanes {
		if c, ok := counted[l]; ok {
			c.busy = busy
			errs = append(errs, r.audit(ctx, l, c))
		}
	}
	return errors.Join(errs...)
}

// audit gives the audit of one lane its time. What does not fit has its turn at
// the next survey.
func (r *reconciler) audit(ctx context.Context, l *lane, c census) error {
	call, cancel := context.WithTimeout(ctx, r.b.timing.audit)
	defer cancel()
	if r.audits[l] == nil {
		r.audits[l] = newAudit(l)
	}
	err := r.audits[l].look(call, c)
	if call.Err() != nil || errors.Is(err, errNoTime) {
		return nil
	}
	return err
}

// visibilityLag is how late a closed run may appear in a listing.
const visibilityLag = 2 * time.Minute

// look sorts the pending entries of one lane. It returns how many it handed
// over for a closer look; entries beyond budget have their turn next time.
func (r *reconciler) look(
	ctx context.Context, l *lane, entries []stream.PendingEntry, live, dead map[string]struct{}, budget int,
) (int, error) {
	refresh := make(map[string][]string) // consumer → ids
	var suspects, foreign []string
	for _, e := range entries {
		ref := l.stream + "/" + e.ID
		_, isLive := live[ref]
		_, isDead := dead[ref]
		switch {
		case isLive:
			refresh[e.Consumer] = append(refresh[e.Consumer], e.ID)
		case len(suspects) >= budget:
		case isDead, e.Idle >= r.b.timing.suspectIdle:
			suspects = append(suspects, e.ID)
			if e.Consumer != r.b.redis.Consumer() {
				foreign = append(foreign, e.ID)
			}
		}
	}
	for consumer, ids := range refresh {
		if err := r.refresh(ctx, l, consumer, ids); err != nil {
			return 0, err
		}
	}
	if len(foreign) > 0 {
		// Refreshing for another consumer is claiming for it: here, for this one.
		if err := r.refresh(ctx, l, r.b.redis.Consumer(), foreign); err != nil {
			return 0, err
		}
	}
	l.suspect(suspects...)
	return len(suspects), nil
}

func (r *reconciler) refresh(ctx context.Context, l *lane, consumer string, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, r.b.timing.call)
	defer cancel()
	return r.b.redis.Refresh(ctx, l.stream, consumer, ids...)
}

// bury settles killed runs whose entry is not pending: nothing else would lead
// to them. Runs with a pending entry are settled through it. It looks at no more
// than budget runs, because refreshing must not wait for it, and reports whether
// all are settled. A run that cannot be settled does not hold up the others; of
// several errors the first is returned.
func (r *reconciler) bury(
	ctx context.Context, killed []Run, pending map[*lane][]stream.PendingEntry, budget int,
) (all bool, failed error) {
	waiting := make(map[string]struct{})
	for l, entries := range pending {
		for _, e := range entries {
			waiting[l.stream+"/"+e.ID] = struct{}{}
		}
	}
	seen := make(map[string]struct{}, len(killed))
	for _, run := range killed {
		seen[run.RunID] = struct{}{}
		if _, known := r.done[run.RunID]; known {
			continue
		}
		if _, ok := waiting[run.Stream+"/"+run.EntryID]; ok {
			continue
		}
		if budget--; budget < 0 {
			return false, failed
		}
		if err := r.b.lookups.Wait(ctx); err != nil {
			return false, cmp.Or(failed, err)
		}
		if err := r.buryOne(ctx, run); err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		r.done[run.RunID] = struct{}{}
	}
	for id := range r.done {
		if _, ok := seen[id]; !ok {
			delete(r.done, id)
		}
	}
	return failed == nil, failed
}

// buryOne settles a killed run. A reset terminates the run it
// replaces, so it is the current run of the workflow id that counts.
func (r *reconciler) buryOne(ctx context.Context, run Run) error {
	current, err := r.b.describe(ctx, run.WorkflowID)
	if errors.Is(err, ErrRunNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if current.RunID != run.RunID || !current.State.Killed() {
		return nil // a later run speaks for the job; if killed too, it is in the list
	}
	err = r.b.buryRun(ctx, current)
	if unknowable(err) {
		r.b.log.WarnContext(ctx, "a run was closed from outside and nothing is known of its job", slog.String("run_id", run.RunID))
		return nil
	}
	return err
}

// dropConsumers removes consumers of processes that are long gone. Those with
// anything pending are never touched: their entries would be lost for good.
func (r *reconciler) dropConsumers(ctx context.Context) {
	now := r.b.now()
	if now.Before(r.nextDrop) {
		return
	}
	r.nextDrop = now.Add(r.b.timing.dropEvery)
	for _, l := range r.b.lanes {
		call, cancel := context.WithTimeout(ctx, r.b.timing.call)
		n, err := r.b.redis.DropIdleConsumers(call, l.stream, r.b.timing.dropIdle)
		cancel()
		if err == nil && n > 0 {
			l.log.InfoContext(ctx, "removed consumers that were idle for a day", slog.Int("count", n))
		}
	}
}
