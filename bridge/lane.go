package bridge

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// lane is everything the bridge does for one stream. One goroutine owns it: it
// reads, claims and dispatches in turn, so that entries start in order and no
// two parts of a bridge ever hold the same entry. What others may touch is at
// the end and guarded.
type lane struct {
	b      *Bridge
	role   job.Role
	stream string
	log    *slog.Logger

	ready      bool             // the group exists, as far as is known
	drainAll   bool             // own pending entries may hold some that nobody knows of
	blind      bool             // the last drain could not read rows
	waiting    map[string]*wait // own pending entries to be tried again
	failures   int              // passes in a row in which everything failed
	nextSweep  time.Time
	nextClaim  time.Time
	inFlight   int64 // pending entries of the group when last counted, plus those read since
	inFlightAt time.Time

	orphans []string // entries to be tried again when the group was lost

	started startedSet
	fresh   atomic.Bool // forget what is known and drain
	compare atomic.Bool // drain: Redis may have forgotten acknowledgements

	troubles troubles

	mu       sync.Mutex
	suspects []string // entries to look at again, from the reconciler
}

// wait is an entry that is tried again.
type wait struct {
	due      time.Time
	attempts int
	verify   bool
	trouble  string // what it waits for to be over
}

func newLane(b *Bridge, role job.Role) *lane {
	return &lane{
		b:        b,
		role:     role,
		stream:   role.Stream(),
		log:      b.log.With(slog.String("role", string(role)), slog.String("stream", role.Stream())),
		drainAll: true,
		waiting:  make(map[string]*wait),
		started:  startedSet{ids: make(map[string]struct{})},
		troubles: troubles{open: make(map[string]*trouble)},
	}
}

// run works until ctx ends. What it has in hand it finishes: an entry that was
// read is dispatched, because a read cannot be undone.
func (l *lane) run(ctx context.Context) {
	work := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		sleep(ctx, l.pass(ctx, work))
	}
}

// pass does one round: claims, entries to be tried again, then new ones. It
// returns how long to wait before the next round. stop ends when the bridge
// should; work does not.
func (l *lane) pass(stop, work context.Context) time.Duration {
	if l.fresh.CompareAndSwap(true, false) {
		l.forget()
	}
	if l.compare.CompareAndSwap(true, false) {
		l.drainAll = true
		l.inFlightAt = time.Time{}
	}
	l.takeSuspects()
	if !l.ready {
		if err := l.ensure(work); err != nil {
			return l.redisTrouble(work, err)
		}
	}
	var p progress
	err := l.own(stop, work, &p)
	if err == nil && stop.Err() == nil {
		err = l.readNew(work, &p)
	}
	if err != nil {
		return l.redisTrouble(work, err)
	}
	l.clear(work, troubleRedis, troubleGroup, troubleWrongType)
	for _, kind := range []string{troubleStoreRead, troubleStoreWrite, troubleTemporal, troublePublish} {
		if !l.waitsFor(kind) {
			l.clear(work, kind) // its entries were settled, here or elsewhere
		}
	}
	switch {
	case p.failed > 0 && p.done == 0:
		l.failures++
		return l.backoff(l.failures)
	case p.done > 0:
		l.failures = 0
	case len(l.waiting) == 0:
		l.failures = 0
	}
	return p.pause
}

// progress counts what happened in one pass.
type progress struct {
	done   int
	failed int
	pause  time.Duration
}

// ensure makes sure of the group. A group that had to be made again starts at
// the beginning of the stream: rows answer what was dealt with before.
func (l *lane) ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.b.timing.call)
	defer cancel()
	if err := l.b.redis.EnsureGroup(ctx, l.stream); err != nil {
		return err
	}
	if err := l.countOrphans(ctx); err != nil {
		return err
	}
	l.ready = true
	return nil
}

// countOrphans counts those entries that were read, waited to be tried again and
// are gone with the stream. The others are delivered again.
func (l *lane) countOrphans(ctx context.Context) error {
	var gone []string
	for _, id := range l.orphans {
		_, found, err := l.b.redis.Entry(ctx, l.stream, id)
		if err != nil {
			return err
		}
		if !found {
			gone = append(gone, id)
		}
	}
	l.orphans = nil
	l.countLost(ctx, gone)
	return nil
}

// own takes care of entries that are pending already: those of dead consumers,
// those of this one that nobody knows of, and those to be tried again.
func (l *lane) own(stop, work context.Context, p *progress) error {
	now := l.b.now()
	if !now.Before(l.nextSweep) {
		l.nextSweep = now.Add(l.b.timing.sweep)
		if err := l.sweep(stop, work, p); err != nil {
			return err
		}
	}
	if !now.Before(l.nextClaim) {
		l.nextClaim = now.Add(min(15*time.Second, l.b.cfg.ClaimMinIdle/4))
		if err := l.autoClaim(stop, work, p); err != nil {
			return err
		}
	}
	if l.drainAll {
		if err := l.drain(stop, work, p); err != nil {
			return err
		}
	}
	return l.retry(stop, work, p)
}

// drain reads all own pending entries from the first one, and dispatches those
// whose run is not known, or whose job has ended: Redis may have forgotten what
// the run did last. It stops where nothing succeeds; the entries read so far are
// then tried again like any other, and the drain begins anew.
func (l *lane) drain(stop, work context.Context, p *progress) error {
	l.blind = false
	cursor := "0"
	for stop.Err() == nil {
		batch, err := l.readOwn(work, cursor, batchSize)
		if err != nil {
			return err
		}
		last := lastID(batch)
		if last == "" {
			l.drainAll = false
			return nil
		}
		cursor = last
		ended, err := l.ended(work, batch.Entries)
		if err != nil {
			l.blind = true
			l.trouble(work, troubleStoreRead, err)
			p.failed++
			return nil
		}
		now := l.b.now()
		var todo []job.Entry
		for _, e := range batch.Entries {
			if w := l.waiting[e.ID]; w != nil && (w.verify || now.Before(w.due)) {
				continue // retry's turn
			}
			if _, ok := ended[e.ID]; ok || !l.started.has(e.ID) {
				todo = append(todo, e)
			}
		}
		if l.dispatchEntries(work, todo, false, p); p.failed > 0 {
			return nil
		}
	}
	return nil
}

// ended returns those of the entries whose run is known, but whose row is there
// already.
func (l *lane) ended(ctx context.Context, entries []job.Entry) (map[string]struct{}, error) {
	known := slices.DeleteFunc(slices.Clone(entries), func(e job.Entry) bool { return !l.started.has(e.ID) })
	if len(known) == 0 {
		return nil, nil
	}
	items := l.decode(known, false)
	keys := make([]job.Key, 0, len(items))
	for _, it := range items {
		keys = append(keys, it.key(l.role))
	}
	rows, err := l.b.readRows(ctx, keys)
	if err != nil {
		return nil, err
	}
	ended := make(map[string]struct{})
	for _, it := range items {
		row := rows.of(it.key(l.role))
		if row != nil && job.CompareEntryIDs(it.entry.ID, row.LastEntryID) <= 0 {
			ended[it.entry.ID] = struct{}{}
		}
	}
	return ended, nil
}

// retry dispatches the entries whose time has come. It reads each by its id:
// reading pending entries through the group would reset how long its neighbours
// have been idle, and a lost run of theirs would never be noticed.
//
// Where Redis is slow it stops after a while: the rest is still due in the next
// pass, and new entries must not wait for all of it.
func (l *lane) retry(stop, work context.Context, p *progress) error {
	enough, cancel := context.WithTimeout(stop, l.b.timing.call)
	defer cancel()
	for ids := range slices.Chunk(l.dueIDs(), batchSize) {
		if enough.Err() != nil {
			return nil
		}
		todo, err := l.fetch(enough, work, ids)
		if err != nil {
			return err
		}
		if l.dispatchEntries(work, todo, false, p); p.failed > 0 {
			return nil
		}
	}
	return nil
}

// fetch returns those entries that this consumer has still to settle, up to where
// enough ends, and at least the first. The others need no further try: another one
// has taken them, or their run was known and has acknowledged them.
func (l *lane) fetch(enough, ctx context.Context, ids []string) ([]job.Entry, error) {
	entries := make([]job.Entry, 0, len(ids))
	for i, id := range ids {
		select {
		case <-enough.Done():
			if i > 0 {
				return entries, nil
			}
		default:
		}
		entry, found, err := l.fetchOne(ctx, id)
		if err != nil {
			return nil, err
		}
		if found {
			entries = append(entries, entry)
		}
	}
	return entries, nil
}

func (l *lane) fetchOne(ctx context.Context, id string) (job.Entry, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, l.b.timing.call)
	defer cancel()
	pending, err := l.b.redis.PendingList(ctx, l.stream, before(id), 1)
	if err != nil {
		return job.Entry{}, false, err
	}
	isPending := len(pending) > 0 && pending[0].ID == id
	if isPending && pending[0].Consumer != l.b.redis.Consumer() || !isPending && l.waiting[id].verify {
		delete(l.waiting, id)
		return job.Entry{}, false, nil
	}
	entry, found, err := l.b.redis.Entry(ctx, l.stream, id)
	switch {
	case err != nil:
		return job.Entry{}, false, err
	case !found && isPending:
		return job.Entry{}, false, l.dropDeleted(ctx, []string{id})
	case !found:
		delete(l.waiting, id) // whoever acknowledged it has counted it
		return job.Entry{}, false, nil
	case !isPending:
		// Settled by another, or dropped together with this consumer. Nobody could
		// ever read it again, so it is settled once more, which does no harm.
		err = l.b.redis.Restore(ctx, l.stream, id)
	}
	return entry, err == nil, err
}

// dueIDs returns the entries to be tried now, in order. Those that need a look
// at their run are let through at the rate the workflow service is asked at.
func (l *lane) dueIDs() []string {
	now := l.b.now()
	var due []string
	for id, w := range l.waiting {
		if !now.Before(w.due) {
			due = append(due, id)
		}
	}
	slices.SortFunc(due, job.CompareEntryIDs)
	return slices.DeleteFunc(due, func(id string) bool {
		return l.waiting[id].verify && !l.b.lookups.Allow()
	})
}

// readOwn reads own pending entries after an id. Entries that were deleted
// from the stream can never be dispatched: they are acknowledged and, unless
// their run is known, counted as lost.
func (l *lane) readOwn(ctx context.Context, after string, count int) (stream.Batch, error) {
	ctx, cancel := context.WithTimeout(ctx, l.b.timing.call)
	defer cancel()
	batch, err := l.b.redis.ReadOwn(ctx, l.stream, after, count)
	if err != nil {
		return stream.Batch{}, err
	}
	if err := each(ctx, failpoint.Read, batch.Entries); err != nil {
		return stream.Batch{}, err
	}
	return batch, l.dropDeleted(ctx, batch.Deleted)
}

func (l *lane) dropDeleted(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	if err := l.ack(ctx, ids...); err != nil {
		return err
	}
	for _, id := range ids {
		delete(l.waiting, id)
	}
	l.countLost(ctx, slices.DeleteFunc(slices.Clone(ids), l.started.has))
	return nil
}

func (l *lane) countLost(ctx context.Context, ids []string) {
	if len(ids) == 0 {
		return
	}
	l.b.metrics.EntriesLost(l.role, len(ids))
	l.log.ErrorContext(ctx, "entries were deleted from the stream before their jobs began",
		slog.Int("count", len(ids)), slog.String("entry", ids[0]))
}

// readNew reads and dispatches new entries, if there is room for them.
func (l *lane) readNew(ctx context.Context, p *progress) error {
	room, err := l.room(ctx)
	if err != nil {
		return err
	}
	block := l.block()
	if p.failed > 0 {
		block = time.Millisecond // the pass ends with a pause of its own
	}
	switch {
	case l.waitsFor(troubleStoreRead, troubleStoreWrite):
		// Without rows nothing can be decided, and without writing them no job ends.
		p.pause = block
		return nil
	case p.failed > 0 || l.failures > 0:
		// One entry as a probe: those that failed may fail for ever, and must not
		// hold up those behind them.
		room = min(room, 1)
	}
	if room <= 0 {
		p.pause = l.b.timing.full
		return nil
	}
	entries, err := l.read(ctx, min(batchSize, room), block)
	if err != nil {
		return err
	}
	l.inFlight += int64(len(entries))
	l.dispatchEntries(ctx, entries, true, p)
	return nil
}

func (l *lane) read(ctx context.Context, count int, block time.Duration) ([]job.Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, block+l.b.timing.call)
	defer cancel()
	entries, err := l.b.redis.ReadNew(ctx, l.stream, count, block)
	if err == nil {
		err = each(ctx, failpoint.Read, entries)
	}
	return entries, err
}

// each passes a failpoint once per entry.
func each(ctx context.Context, point failpoint.Point, entries []job.Entry) error {
	for range entries {
		if err := failpoint.Hit(ctx, point); err != nil {
			return err
		}
	}
	return nil
}

// room is how many entries may still be taken into flight.
func (l *lane) room(ctx context.Context) (int, error) {
	if now := l.b.now(); now.Sub(l.inFlightAt) > l.b.timing.countFor || l.inFlight >= int64(l.b.cfg.MaxInFlight) {
		ctx, cancel := context.WithTimeout(ctx, l.b.timing.call)
		defer cancel()
		summary, err := l.b.redis.Pending(ctx, l.stream)
		if err != nil {
			return 0, err
		}
		l.inFlight, l.inFlightAt = summary.Count, now
	}
	return max(0, l.b.cfg.MaxInFlight-int(l.inFlight)), nil
}

// block is how long the next read may wait: not longer than the next thing to do.
func (l *lane) block() time.Duration {
	now := l.b.now()
	next := min(l.b.timing.block, l.nextSweep.Sub(now))
	for _, w := range l.waiting {
		due := w.due.Sub(now)
		if w.verify {
			due = max(due, l.b.timing.full) // may be held back by the limit on lookups
		}
		next = min(next, due)
	}
	return max(time.Millisecond, next)
}

// dispatchEntries dispatches entries and notes what became of them.
func (l *lane) dispatchEntries(ctx context.Context, entries []job.Entry, fresh bool, p *progress) {
	entries = l.undecoded(ctx, entries, p)
	if len(entries) == 0 {
		return
	}
	items := l.decode(entries, fresh)
	for _, it := range items {
		w := l.waiting[it.entry.ID]
		it.verify = w != nil && w.verify
	}
	fates := l.dispatch(ctx, items)
	for _, it := range items {
		f := fates[it.entry.ID]
		if f == settled {
			if err := failpoint.Hit(ctx, failpoint.Settled); err != nil {
				l.trouble(ctx, troubleRedis, err)
				it.trouble, f = troubleRedis, failing
			}
		}
		if f == failing {
			p.failed++
		} else {
			p.done++
		}
		l.note(it, f)
	}
}

// undecoded passes the failpoint before entries are decoded, and returns those
// that got through. Decoding itself has no transient failure: the others are
// tried again like entries of any other.
func (l *lane) undecoded(ctx context.Context, entries []job.Entry, p *progress) []job.Entry {
	if !failpoint.Armed(failpoint.Decode) {
		return entries
	}
	passed := make([]job.Entry, 0, len(entries))
	for _, e := range entries {
		if err := failpoint.Hit(ctx, failpoint.Decode); err != nil {
			l.trouble(ctx, troubleRedis, err)
			p.failed++
			l.note(&item{entry: e, trouble: troubleRedis}, failing)
			continue
		}
		passed = append(passed, e)
	}
	return passed
}

func (l *lane) note(it *item, f fate) {
	id := it.entry.ID
	switch f {
	case settled:
		delete(l.waiting, id)
		l.started.remove(id)
	case running:
		delete(l.waiting, id)
		l.started.add(id)
	case closing:
		l.waiting[id] = &wait{due: l.b.now().Add(l.b.timing.closing)}
	case failing:
		w := l.waiting[id]
		if w == nil {
			w = &wait{}
			l.waiting[id] = w
		}
		w.attempts++
		w.trouble = it.trouble
		w.due = l.b.now().Add(l.backoff(w.attempts))
	}
}

// waitsFor reports whether any entry, or the drain, waits for such trouble to be
// over.
func (l *lane) waitsFor(kinds ...string) bool {
	if l.blind && slices.Contains(kinds, troubleStoreRead) {
		return true
	}
	for _, w := range l.waiting {
		if slices.Contains(kinds, w.trouble) {
			return true
		}
	}
	return false
}

// backoff grows from backoffMin to backoffMax, with jitter.
func (l *lane) backoff(attempts int) time.Duration {
	d := l.b.timing.backoffMax
	if attempts < 16 {
		d = min(d, l.b.timing.backoffMin<<max(0, attempts-1))
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter needs no secrecy
}

// forget makes everything suspect: own pending entries are dispatched again, as
// after a start.
func (l *lane) forget() {
	l.started.clear()
	clear(l.waiting)
	l.drainAll = true
	l.inFlightAt = time.Time{}
}

// takeSuspects puts the entries the reconciler handed over among the waiting.
func (l *lane) takeSuspects() {
	l.mu.Lock()
	ids := l.suspects
	l.suspects = nil
	l.mu.Unlock()
	for _, id := range ids {
		if l.waiting[id] == nil {
			l.waiting[id] = &wait{due: l.b.now(), verify: true}
		}
		l.started.remove(id)
	}
}

// suspect asks for another look at pending entries of this consumer. It may be
// called from any goroutine.
func (l *lane) suspect(ids ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.suspects = append(l.suspects, ids...)
}

// suspectAll asks for another look at everything. It may be called from any
// goroutine.
func (l *lane) suspectAll() { l.fresh.Store(true) }

// redisTrouble takes note of a failed Redis call and returns how long to wait.
// Whatever the error, a reply may have been lost with entries in it, so that the
// own pending entries have to be read before new ones.
func (l *lane) redisTrouble(ctx context.Context, err error) time.Duration {
	l.drainAll = true
	l.inFlightAt = time.Time{}
	l.failures++
	switch {
	case errors.Is(err, stream.ErrNoGroup):
		// FLUSHALL, DEL or XGROUP DESTROY. Nothing is pending any more; the new
		// group delivers the whole stream again.
		l.trouble(ctx, troubleGroup, err)
		l.ready = false
		for id, w := range l.waiting {
			if w.attempts > 0 {
				l.orphans = append(l.orphans, id)
			}
		}
		l.forget()
		return l.backoff(min(l.failures, 3))
	case errors.Is(err, stream.ErrWrongType):
		l.trouble(ctx, troubleWrongType, err)
		l.ready = false
		return l.b.timing.wrongType
	default:
		l.trouble(ctx, troubleRedis, err)
		return l.backoff(l.failures)
	}
}

// lastID is the greatest id of a batch, deleted entries included.
func lastID(b stream.Batch) string {
	var last string
	for _, e := range b.Entries {
		if job.CompareEntryIDs(e.ID, last) > 0 {
			last = e.ID
		}
	}
	for _, id := range b.Deleted {
		if job.CompareEntryIDs(id, last) > 0 {
			last = id
		}
	}
	return last
}

// before is the id just before another one: reading after it finds that one.
func before(id string) string {
	ms, seq, _ := strings.Cut(id, "-")
	m, errM := strconv.ParseUint(ms, 10, 64)
	s, errS := strconv.ParseUint(seq, 10, 64)
	switch {
	case errM != nil || errS != nil || m == 0 && s == 0:
		return "0"
	case s > 0:
		return ms + "-" + strconv.FormatUint(s-1, 10)
	default:
		return strconv.FormatUint(m-1, 10) + "-18446744073709551615"
	}
}

// startedSet holds the pending entries whose run is known to exist, so that
// reading them again costs no call. Entries in flight bound its size.
type startedSet struct {
	mu  sync.Mutex
	ids map[string]struct{}
}

func (s *startedSet) add(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[id] = struct{}{}
}

func (s *startedSet) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

func (s *startedSet) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.ids[id]
	return ok
}

func (s *startedSet) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.ids)
}

// list returns the ids known now, for retain.
func (s *startedSet) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.ids))
	for id := range s.ids {
		ids = append(ids, id)
	}
	return ids
}

// retain forgets those of known that are not pending any more. known was listed
// before pending, so that entries started in between stay.
func (s *startedSet) retain(known []string, pending map[string]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range known {
		if _, ok := pending[id]; !ok {
			delete(s.ids, id)
		}
	}
}
