package bridge

import (
	"slices"
	"time"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// What follows looks at Redis, the rows and the runs, never into a bridge.

// delivery says which entries are acknowledged.
type delivery struct {
	last    string // the last id the group was given
	pending map[string]struct{}
}

func (m *machine) delivery() delivery {
	d := delivery{pending: make(map[string]struct{})}
	groups, _ := m.redis("XINFO", "GROUPS", job.Agent.Stream()).([]any)
	for _, group := range groups {
		info, _ := group.([]any)
		for pair := range slices.Chunk(info, 2) {
			if pair[0] == "last-delivered-id" {
				d.last, _ = pair[1].(string)
			}
		}
	}
	if d.last == "" {
		return d
	}
	list, err := m.client.PendingList(m.ctx, job.Agent.Stream(), "", 1000)
	m.must(err)
	for _, p := range list {
		d.pending[p.ID] = struct{}{}
	}
	return d
}

func (d delivery) acknowledged(e *entry) bool {
	_, pending := d.pending[e.id]
	return d.last != "" && job.CompareEntryIDs(e.id, d.last) <= 0 && !pending
}

// check looks at what must hold at any moment.
func (m *machine) check() {
	m.readUpdates()
	d := m.delivery()
	for _, e := range m.entries {
		if d.acknowledged(e) && !m.owed(e, d) {
			m.fail("I4: %s of %s is acknowledged, and nobody will tell its user", e.id, e.job)
		}
	}
	m.report()
}

func (m *machine) report() {
	if m.failure != "" {
		m.rt.Fatalf("%s", m.failure)
	}
}

// readUpdates takes note of new updates and checks each.
func (m *machine) readUpdates() {
	for {
		entries, err := m.client.TailUpdates(m.ctx, stream.Updates, m.lastSeen, 0)
		m.must(err)
		for _, e := range entries {
			f := fields{}
			for _, field := range e.Fields {
				f[field.Name] = field.Value
			}
			m.lastSeen = e.ID
			m.noteUpdate(f)
		}
		if len(entries) == 0 {
			return
		}
	}
}

func (m *machine) noteUpdate(f fields) {
	if m.published(f["MessageId"]) {
		m.fail("I3: the update %s of %s was published twice", f["MessageId"], f["JobId"])
	}
	m.updates = append(m.updates, f)
	bad, known := false, false
	for _, e := range m.entries {
		switch f["MessageId"] {
		case stream.MessageID(job.EntryEffect(job.Agent.Stream(), e.id)):
			known = true
			_, refused := m.row(job.RejectedID(e.id))
			bad = e.bad
			m.job(f["JobId"]).refused = m.job(f["JobId"]).refused || refused && !bad
		case stream.MessageID(job.AnswerEffect(job.Agent.Stream(), e.id)):
			known = true
		}
	}
	for _, s := range m.scripts {
		known = known || f["MessageId"] == stream.MessageID(s.effect)
	}
	if !known {
		m.fail("I3: an update of %s is for no run and no entry", f["JobId"])
	}
	if bad {
		return
	}
	m.job(f["JobId"]).updates++
	if _, found := m.row(f["JobId"]); !found && !m.job(f["JobId"]).refused {
		m.fail("I4: an update of %s was published, and there is no row", f["JobId"])
	}
}

func (m *machine) published(messageID string) bool {
	return slices.ContainsFunc(m.updates, func(f fields) bool { return f["MessageId"] == messageID })
}

// answered reports whether an entry's user was told after it was added how the
// job ended.
func (m *machine) answered(e *entry) bool {
	j := m.job(e.job)
	switch {
	case m.published(stream.MessageID(job.EntryEffect(job.Agent.Stream(), e.id))):
		return true
	case e.asksAgain && j.untouched() && m.losses == 0:
		return m.published(stream.MessageID(job.AnswerEffect(job.Agent.Stream(), e.id)))
	default:
		return !e.bad && j.updates > e.before
	}
}

// owed reports whether an acknowledged entry's user was told or will be.
func (m *machine) owed(e *entry, d delivery) bool {
	if e.deleted || m.answered(e) || m.excused(e) {
		return true
	}
	if e.bad || m.hasRun(e) && !e.dropped {
		return false // what a run is to tell comes before its acknowledgement
	}
	if run, ok := m.temporal.current(job.WorkflowID(job.Agent, e.job)); ok {
		if run.State == RunOpen {
			return true
		}
		row, found := m.row(e.job)
		if run.State.Killed() && (!found || row.Effect == run.effect() && !m.published(stream.MessageID(row.Effect)) ||
			row.Effect != run.effect() && job.CompareEntryIDs(row.LastEntryID, run.EntryID) < 0) {
			return true // the bridge owes its burial
		}
	}
	return slices.ContainsFunc(m.entries, func(other *entry) bool {
		return other.job == e.job && !other.bad && other != e && !d.acknowledged(other)
	})
}

// hasRun reports whether the workflow service knows a run that was started for
// the entry.
func (m *machine) hasRun(e *entry) bool {
	runs := m.temporal.list(func(RunState) bool { return true })
	return slices.ContainsFunc(runs, func(r Run) bool { return r.EntryID == e.id })
}

// excused reports whether the schedule destroyed all that was left of an entry's
// job: the entry that another was a duplicate of, or the only run that knew of
// it, which an operator had made. An entry that was dropped is owed a row of its
// job, of whichever entry that is: from the row alone nobody can tell it from a
// duplicate.
func (m *machine) excused(e *entry) bool {
	j := m.job(e.job)
	if _, found := m.row(e.job); found && e.dropped {
		return true
	}
	return m.losses > 0 && (j.deleted || j.resets > 0)
}

// mayPublish checks an update before it is published: the row comes first.
func (m *machine) mayPublish(u stream.Update) {
	row, found := m.row(u.Job.ID)
	for _, e := range m.entries {
		if u.Effect == job.EntryEffect(job.Agent.Stream(), e.id) {
			if rejection, ok := m.row(job.RejectedID(e.id)); ok {
				row, found = rejection, ok
			}
		}
	}
	if !found {
		m.fail("I4: %s of %s is to be published, and there is no row", u.Effect, u.Job.ID)
	}
	if u.Type == stream.TypeResult && u.Payload != row.Output {
		m.fail("the answer to be published of %s is not that of its row", u.Job.ID)
	}
}

// mayPersist checks a row before it is stored: one that replaces another's
// outcome must not do so before that was told.
func (m *machine) mayPersist(row job.Row) {
	stored, found := m.row(row.JobID)
	if !found || stored.Effect == row.Effect || !row.Fence.After(stored.Fence) {
		return
	}
	m.readUpdates()
	if m.job(row.JobID).untouched() && m.losses == 0 && !m.published(stream.MessageID(stored.Effect)) {
		m.fail("I3: the outcome %s of %s is replaced, and nobody was told", stored.Effect, row.JobID)
	}
}

// mayAcknowledge checks entries before a bridge acknowledges them.
func (m *machine) mayAcknowledge(ids ...string) {
	m.readUpdates()
	d := m.delivery()
	for _, id := range ids {
		delete(d.pending, id)
	}
	for _, e := range m.entries {
		if slices.Contains(ids, e.id) && !m.owed(e, d) {
			m.fail("I4: %s of %s is to be acknowledged, and nobody will tell its user", e.id, e.job)
		}
	}
}

// mayStart checks a run that was just created for an entry.
func (m *machine) mayStart(req StartRequest) {
	id := req.Input.Job.ID
	row, found := m.row(id)
	for _, e := range m.entries {
		if e.id != req.Input.Origin.EntryID {
			continue
		}
		if e.runs++; e.runs > 1+m.losses {
			m.fail("I5: run %d for entry %s of %s", e.runs, e.id, id)
		}
		if m.losses > 0 || m.job(id).zombie {
			continue // the row may have come from a run nobody can see
		}
		switch {
		case !found:
			if runs := m.temporal.runs[job.WorkflowID(job.Agent, id)]; len(runs) > 1 {
				m.fail("I5: %s has run before, and it is run again without a row", id)
			}
		case !row.Status.Retryable():
			m.fail("I5: %s is %s, and it is run again", id, row.Status)
		case row.EntryID == e.id:
			m.fail("I5: entry %s of %s is dealt with, and it is run again", e.id, id)
		}
	}
}

const (
	healRounds = 60
	// quietRounds without anything new is rest: runs whose entry is gone are
	// buried by a survey that finds them, one or two rounds after the last entry.
	quietRounds = 4
)

// heal ends all trouble and lets everybody work until there is nothing to do.
func (m *machine) heal() {
	m.logf("heal")
	m.down = [sides]bool{}
	m.lagging = false
	for round, quiet := 0, 0; quiet < quietRounds; round++ {
		if round == healRounds {
			m.fail("I1: they do not come to rest")
			break
		}
		updates, runs := len(m.updates), len(m.scripts)
		if quiet++; !m.round(round) || len(m.updates) != updates || len(m.scripts) != runs {
			quiet = 0
		}
	}
	m.report()
}

// round gives everybody a turn, and reports whether there is nothing left.
func (m *machine) round(n int) bool {
	m.idle = 13 * time.Second
	if n > healRounds/2 {
		m.idle = time.Minute
	}
	m.wait(6 * time.Second)
	for i := range m.procs {
		m.pass(i, nil)
		m.sync()
	}
	for i := range m.procs {
		m.survey(i, nil)
	}
	for _, s := range m.open() {
		for !s.closed && !s.gone {
			m.step(s, 0, false)
			m.sync()
		}
	}
	m.check()
	d := m.delivery()
	busy := len(m.open()) > 0 || len(d.pending) > 0
	for _, e := range m.entries {
		busy = busy || !e.deleted && !d.acknowledged(e)
	}
	return !busy
}

// checkRest looks at what must hold when there is nothing left to do.
func (m *machine) checkRest() {
	d := m.delivery()
	if len(d.pending) > 0 {
		m.fail("I1: %d entries stay pending", len(d.pending))
	}
	dead, err := m.client.TailUpdates(m.ctx, stream.DeadStream(job.Agent.Stream()), "0", 0)
	m.must(err)
	letters := make(map[string]fields, len(dead))
	for _, letter := range dead {
		letters[letter.ID] = fields{}
		for _, f := range letter.Fields {
			letters[letter.ID][f.Name] = f.Value
		}
	}
	for _, e := range m.entries {
		if e.deleted {
			continue
		}
		if !d.acknowledged(e) {
			m.fail("I1: %s of %s is not acknowledged", e.id, e.job)
		}
		if !m.answered(e) && !m.excused(e) {
			m.fail("I1: the user of %s of %s was never told", e.id, e.job)
		}
		rejection, rejected := m.row(job.RejectedID(e.id))
		if e.bad && !rejected {
			m.fail("I1: no row says that %s was rejected", e.id)
		}
		if rejected {
			m.checkRow(rejection, letters)
			continue
		}
		row, found := m.row(e.job)
		if !found {
			if !m.job(e.job).refused && !m.excused(e) {
				m.fail("I1: %s has no row", e.job)
			}
			continue
		}
		if j := m.job(e.job); !j.zombie && (m.losses == 0 || j.resets == 0 && !j.deleted) {
			m.checkRow(row, letters)
		}
	}
	if failures := len(m.failedEffects()); len(dead) > failures {
		m.fail("I3: %d dead letters for %d failures", len(dead), failures)
	}
	m.report()
}

// failedEffects are the error updates that call for a dead letter.
func (m *machine) failedEffects() []fields {
	return slices.DeleteFunc(slices.Clone(m.updates), func(f fields) bool {
		return f["Type"] != stream.TypeError || f["Payload"] == stream.ErrorPayload("canceled", "The job was canceled.")
	})
}

// checkRow checks that what a row says was told as it says it.
func (m *machine) checkRow(row job.Row, letters map[string]fields) {
	i := slices.IndexFunc(m.updates, func(f fields) bool { return f["MessageId"] == stream.MessageID(row.Effect) })
	if i < 0 {
		m.fail("I1: the outcome %s of %s was not published", row.Effect, row.JobID)
		return
	}
	if row.Status == job.Completed && m.updates[i]["Payload"] != row.Output {
		m.fail("the answer of %s is not the one that was published", row.JobID)
	}
	if row.Status == job.Failed || row.Status == job.Rejected {
		letter := letters[row.DeadID]
		if letter == nil {
			m.fail("I1: %s is %s without a dead letter", row.JobID, row.Status)
		} else if letter["reason"] != row.ErrorCode || letter["original_id"] != row.EntryID {
			m.fail("the dead letter of %s is another one's", row.JobID)
		}
	}
}
