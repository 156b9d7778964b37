package bridge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/outcome"
	"github.com/nodpt/executor/internal/redistest"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// TestAnyScheduleKeepsTheGuarantees draws schedules of what users, operators,
// workers and broken machines can do to two bridges, and checks I1 to I4 of
// DESIGN.md section 3 after every step and again once everything has healed.
//
// Nothing runs by itself: bridges make a pass when told to, runs do their steps
// when told to, and the time is the schedule's. A failing schedule is therefore
// one that rapid can replay and make shorter.
func TestAnyScheduleKeepsTheGuarantees(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	rapid.Check(t, func(rt *rapid.T) {
		inFlight := rapid.SampledFrom([]int{1000, 1, 2}).Draw(rt, "max in flight")
		skew := rapid.SampledFrom([]time.Duration{0, -time.Minute, time.Minute}).Draw(rt, "the bridges' clock is off by")
		moves := rapid.SliceOfN(moves(), 3, 40).Draw(rt, "moves")

		m := l.machine(rt, inFlight, skew)
		for _, mv := range moves {
			m.do(mv)
			m.check()
		}
		m.heal()
		m.checkRest()
	})
}

// lab is what all schedules of a test share, because starting it takes longer
// than a schedule does.
type lab struct {
	t       *testing.T
	server  *redistest.Server
	store   *store.Store
	raw     *bufio.ReadWriter
	clients map[string]*stream.Client
	epoch   time.Time // each schedule has a day of its own
	cases   int
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{
		t: t, server: redistest.Start(t),
		clients: make(map[string]*stream.Client),
		epoch:   time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	db, err := store.Open(t.Context(), store.Config{URL: "sqlite://" + filepath.Join(t.TempDir(), "rows.db")}, quiet())
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	l.store = db
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.server.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	l.raw = bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	t.Cleanup(func() {
		for _, c := range l.clients {
			_ = c.Close()
		}
	})
	return l
}

func (l *lab) client(consumer string) *stream.Client {
	if c := l.clients[consumer]; c != nil {
		return c
	}
	c, err := stream.Open(stream.Config{Connection: l.server.Addr(), Consumer: consumer}, quiet())
	require.NoError(l.t, err)
	l.clients[consumer] = c
	return c
}

// redis sends any command: a schedule sends too many for a redis-cli each.
func (l *lab) redis(args ...string) any {
	_, _ = fmt.Fprintf(l.raw, "*%d\r\n", len(args))
	for _, a := range args {
		_, _ = fmt.Fprintf(l.raw, "$%d\r\n%s\r\n", len(a), a)
	}
	require.NoError(l.t, l.raw.Flush())
	return l.reply()
}

func (l *lab) reply() any {
	line, err := l.raw.ReadString('\n')
	require.NoError(l.t, err)
	kind, text := line[0], strings.TrimSpace(line[1:])
	n, _ := strconv.Atoi(text)
	switch kind {
	case '*':
		list := make([]any, 0, max(0, n))
		for range n {
			list = append(list, l.reply())
		}
		return list
	case '$':
		if n < 0 {
			return nil
		}
		buf := make([]byte, n+2)
		_, err := io.ReadFull(l.raw, buf)
		require.NoError(l.t, err)
		return string(buf[:n])
	case '-':
		return fmt.Errorf("redis: %s", text) //nolint:err113 // a reply, looked at by tests only
	default:
		return text
	}
}

// machine is one schedule under way.
type machine struct {
	*lab
	ctx      context.Context //nolint:containedctx // of one schedule
	rt       *rapid.T
	client   *stream.Client // the test's own
	now      time.Time      // of Redis and the workflow service
	newest   int64          // milliseconds of the stream's newest id
	still    bool           // ids stay there, because the clock of Redis is behind
	skew     time.Duration
	inFlight int
	idle     time.Duration // how long every pending entry has been idle, as far as bridges see
	down     [sides]bool
	temporal *fakeTemporal
	lagging  bool
	listed   struct{ open, killed []Run }
	procs    [2]*proc
	named    int

	entries []*entry
	scripts []*script
	known   map[string]*script // by run id
	llm     int                // calls of the model
	losses  int                // of the workflow service's state
	jobs    map[string]*jobState

	updates  []fields
	lastSeen string
	failure  string
}

// proc is the process of one bridge.
type proc struct {
	*seam
	name string
	b    *Bridge
	r    *reconciler
}

// entry is what was added to the stream.
type entry struct {
	id      string
	job     string
	bad     bool
	deleted bool
	dropped bool // it was pending, and its consumer was deleted
	before  int  // updates of its job when it was added
	runs    int  // started for it
	// asksAgain says that the job was completed when it was added, so that its own
	// connection is owed an answer.
	asksAgain bool
}

// jobState is what a schedule did to a job that excuses something.
type jobState struct {
	updates int  // those that tell how a run of it ended, or repeat that
	resets  int  // by an operator
	zombie  bool // a run that no longer exists has written something
	deleted bool // an entry of it was deleted
	refused bool // the workflow service refused an entry of it, whose row says so
}

// untouched reports whether nobody but runs and bridges has acted on the job.
func (j *jobState) untouched() bool { return j.resets == 0 && !j.zombie && !j.deleted && !j.refused }

const jobsOfASchedule = 3

func (l *lab) machine(rt *rapid.T, inFlight int, skew time.Duration) *machine {
	l.cases++
	l.epoch = l.epoch.Add(24 * time.Hour)
	l.redis("FLUSHALL")
	m := &machine{
		lab: l, ctx: l.t.Context(), rt: rt, client: l.client("observer"),
		now: l.epoch, skew: skew, inFlight: inFlight,
		temporal: newFakeTemporal(),
		known:    make(map[string]*script), jobs: make(map[string]*jobState),
		lastSeen: "0",
	}
	m.temporal.now = func() time.Time { return m.now }
	for i := range m.procs {
		m.spawn(i)
	}
	return m
}

// spawn starts a process. Its name is new, as after a restart.
func (m *machine) spawn(who int) {
	name := "b" + strconv.Itoa(m.named)
	m.named++
	p := &proc{seam: &seam{m: m}, name: name}
	cfg := Config{MaxInFlight: m.inFlight, ClaimMinIdle: time.Minute, Updates: stream.Updates}
	b, err := New(cfg, seamRedis{p.seam, m.lab.client(name)}, seamRows{p.seam, m.store}, seamTemporal{p.seam, m.temporal}, newCounts(), quiet())
	require.NoError(m.rt, err)
	b.now = func() time.Time { return m.now.Add(m.skew) }
	quick := defaultTiming(cfg)
	quick.backoffMin, quick.backoffMax = 1, 1 // with jitter a schedule could not be replayed
	quick.parallel = 1                        // nor with a race
	quick.lookups = 1 << 20                   // counted by the real clock
	quick.audit = time.Minute                 // measured by it
	b.setTiming(quick)
	b.lanes = []*lane{b.lane(job.Agent)}
	p.b, p.r = b, newReconciler(b)
	m.procs[who] = p
	b.beat(m.ctx)
}

func (m *machine) logf(format string, args ...any) { m.rt.Logf(format, args...) }

// fail notes a failure. Moves may happen on the goroutine of a dispatch, which
// must not end a test. The test then fails with the format alone, because rapid
// takes two failures for the same by their text, and ids are never the same.
func (m *machine) fail(format string, args ...any) {
	m.logf("FAILED: "+format, args...)
	if m.failure == "" {
		m.failure = format
	}
}

// kind is what a move does.
type kind string

const (
	mvAdd       kind = "add"        // an entry of job Which
	mvAddBad    kind = "add-bad"    // an entry that is no job
	mvPass      kind = "pass"       // bridge Which makes a pass
	mvSurvey    kind = "survey"     // bridge Which compares
	mvWork      kind = "work"       // open run Which does a step
	mvRun       kind = "run"        // the same, several
	mvZombie    kind = "zombie"     // a run that is gone does a step that was under way
	mvCrash     kind = "crash"      // bridge Which dies
	mvFreeze    kind = "freeze"     // bridge Which is taken for dead
	mvWait      kind = "wait"       // time passes
	mvIdle      kind = "idle"       // pending entries have been idle for a while
	mvLag       kind = "lag"        // listings show from now on what they show now, or are up to date again
	mvKill      kind = "kill"       // an operator terminates a run
	mvReset     kind = "reset"      // an operator resets a job
	mvCopy      kind = "copy"       // an operator starts a run like an earlier one
	mvLose      kind = "lose"       // the workflow service loses its state
	mvDown      kind = "down"       // service Which goes away
	mvUp        kind = "up"         // all services are back
	mvUngroup   kind = "ungroup"    // the group is destroyed
	mvDelete    kind = "delete"     // entry Which is deleted
	mvDelStream kind = "del-stream" // the whole stream is
	mvDrop      kind = "drop"       // a consumer is deleted between two surveys: that of a bridge, or one that has just read
	mvStill     kind = "still"      // the clock of Redis falls behind the newest id, or is right again
	mvAhead     kind = "ahead"      // an entry of job Which whose producer gave it an id an hour ahead
	mvRefuse    kind = "refuse"     // the workflow service refuses the last job, or no longer
)

// move is one step of a schedule.
type move struct {
	Kind  kind
	Which int
	How   int // a second choice: the model's answer, a duration
	Lost  bool
	Plan  *plan
}

func (mv move) String() string {
	s := fmt.Sprintf("%s %d/%d", mv.Kind, mv.Which, mv.How)
	if mv.Lost {
		s += " reply lost"
	}
	if mv.Plan != nil {
		s += " {" + mv.Plan.String() + "}"
	}
	return s
}

// GoString is what rapid prints.
func (mv move) GoString() string { return mv.String() }

// moves draws what is common often and what is rare now and then.
func moves() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		mv := drawMove(t, []kind{
			mvAdd, mvAdd, mvAdd, mvAdd, mvAddBad,
			mvPass, mvPass, mvPass, mvPass, mvPass, mvPass, mvPass, mvPass,
			mvSurvey, mvSurvey, mvSurvey,
			mvWork, mvWork, mvWork, mvWork, mvRun, mvRun, mvRun, mvRun,
			mvZombie, mvCrash, mvFreeze, mvWait, mvWait, mvWait, mvIdle, mvLag,
			mvKill, mvKill, mvReset, mvCopy, mvLose, mvDown, mvUp, mvUngroup, mvDelete, mvDelStream, mvDrop, mvDrop, mvRefuse,
			mvStill, mvAhead,
		})
		if mv.Kind != mvPass && mv.Kind != mvSurvey || rapid.IntRange(0, 2).Draw(t, "undisturbed") > 0 {
			return mv
		}
		mv.Plan = &plan{
			At:    rapid.IntRange(1, 25).Draw(t, "at call"),
			After: rapid.Bool().Draw(t, "after"),
			Fate:  rapid.SampledFrom([]planFate{planFail, planCrash, planNested}).Draw(t, "fate"),
		}
		if mv.Plan.Fate == planNested {
			nested := drawMove(t, []kind{
				mvAdd, mvPass, mvPass, mvSurvey, mvWork, mvRun, mvZombie, mvFreeze, mvWait, mvKill, mvReset,
				mvLose, mvDown, mvUngroup, mvDelete,
			})
			if nested.Kind == mvPass || nested.Kind == mvSurvey {
				nested.Which = mv.Which + 1 // the other bridge
			}
			mv.Plan.Move = &nested
		}
		return mv
	})
}

func drawMove(t *rapid.T, kinds []kind) move {
	return move{
		Kind:  rapid.SampledFrom(kinds).Draw(t, "kind"),
		Which: rapid.IntRange(0, 5).Draw(t, "which"),
		How:   rapid.IntRange(0, 5).Draw(t, "how"),
		Lost:  rapid.IntRange(0, 5).Draw(t, "lost") == 5,
	}
}

// do makes a move. A move that has nothing to act on does nothing.
func (m *machine) do(mv move) {
	m.now = m.now.Add(time.Millisecond)
	m.logf("%s %s", m.now.Format("15:04:05.000"), mv)
	switch mv.Kind {
	case mvAdd:
		m.add(mv.Which%jobsOfASchedule, false, m.now)
	case mvAddBad:
		m.add(mv.Which%jobsOfASchedule, true, m.now)
	case mvAhead:
		m.add(mv.Which%jobsOfASchedule, false, m.now.Add(time.Hour))
	case mvStill:
		m.still = !m.still
	case mvPass:
		m.pass(mv.Which%len(m.procs), mv.Plan)
	case mvSurvey:
		m.survey(mv.Which%len(m.procs), mv.Plan)
	case mvWork:
		if open := m.open(); len(open) > 0 {
			m.step(open[mv.Which%len(open)], mv.How, mv.Lost)
		}
	case mvRun:
		if open := m.open(); len(open) > 0 {
			s := open[mv.Which%len(open)]
			for until := s.at + 1 + mv.How; s.at < until && !s.closed; {
				before := s.at
				if m.step(s, mv.Which, false); s.at == before {
					break
				}
			}
		}
	case mvZombie:
		m.zombie(mv.Which)
	case mvCrash:
		m.crash(mv.Which % len(m.procs))
	case mvFreeze:
		m.redis("DEL", aliveKey(m.procs[mv.Which%len(m.procs)].name))
	case mvWait:
		m.wait([]time.Duration{time.Second, 2 * time.Second, 6 * time.Second, 6 * time.Second, 20 * time.Second, time.Hour}[mv.How])
	case mvIdle:
		m.idle = []time.Duration{0, 0, 13 * time.Second, 13 * time.Second, time.Minute, time.Minute}[mv.How]
	case mvLag:
		m.lagging = !m.lagging
		m.listed.open, _ = m.temporal.Open(m.ctx)
		m.listed.killed, _ = m.temporal.Killed(m.ctx, time.Time{})
	case mvKill:
		if open := m.open(); len(open) > 0 {
			m.temporal.close(open[mv.Which%len(open)].run.WorkflowID, []RunState{RunTerminated, RunTimedOut}[mv.How%2], "")
		}
	case mvReset:
		m.reset(mv.Which % jobsOfASchedule)
	case mvCopy:
		m.sync()
		if runs := m.temporal.list(func(RunState) bool { return true }); len(runs) > 0 {
			run := runs[mv.Which%len(runs)]
			if current, _ := m.temporal.current(run.WorkflowID); current.State != RunOpen {
				m.job(current.input.Job.ID).resets++
				m.temporal.copy(current)
			}
		}
	case mvLose:
		m.sync()
		m.losses++
		m.temporal.lose("ns-" + strconv.Itoa(m.losses+1))
	case mvDown:
		m.down[mv.Which%int(sides)] = true
	case mvUp:
		m.down = [sides]bool{}
	case mvUngroup:
		m.redis("XGROUP", "DESTROY", job.Agent.Stream(), stream.DefaultGroup)
	case mvDelete:
		if len(m.entries) > 0 {
			e := m.entries[len(m.entries)-1-mv.Which%min(3, len(m.entries))]
			m.delete(e)
			m.redis("XDEL", job.Agent.Stream(), e.id)
		}
	case mvDelStream:
		if mv.How == 0 {
			for _, e := range m.entries {
				m.delete(e)
			}
			m.redis("DEL", job.Agent.Stream())
			m.newest = 0
		}
	case mvDrop:
		consumer := "ghost"
		if who := mv.Which % (len(m.procs) + 1); who < len(m.procs) {
			consumer = m.procs[who].name
		}
		m.drop(consumer)
	case mvRefuse:
		if m.temporal.refuse != nil {
			m.temporal.refuse = nil
		} else {
			m.temporal.refuse = func(req StartRequest) bool { return req.Input.Job.ID == m.jobID(jobsOfASchedule-1) }
		}
	}
	m.sync()
}

func aliveKey(consumer string) string {
	return "{executor}:alive:" + stream.DefaultGroup + ":" + consumer
}

func (m *machine) jobID(n int) string { return fmt.Sprintf("c%d-j%d", m.cases, n) }

func (m *machine) job(id string) *jobState {
	if m.jobs[id] == nil {
		m.jobs[id] = &jobState{}
	}
	return m.jobs[id]
}

// add submits a job at a time by the clock of Redis.
func (m *machine) add(n int, bad bool, at time.Time) {
	if newest := m.newest; m.still && newest > 0 || at.UnixMilli() < newest {
		at = time.UnixMilli(newest) // what Redis makes of *
	}
	m.newest = at.UnixMilli()

	e := &entry{job: m.jobID(n), bad: bad}
	e.before = m.job(e.job).updates
	row, found := m.row(e.job)
	e.asksAgain = !bad && found && row.Status == job.Completed
	args := []string{"XADD", job.Agent.Stream(), fmt.Sprintf("%d-*", m.newest), "jobId", e.job, "userId", "u", "connectionId", "c"}
	if !bad {
		args = append(args, "task", "do it")
	}
	id, ok := m.redis(args...).(string)
	if !ok {
		m.fail("XADD gave no id")
		return
	}
	e.id = id
	m.entries = append(m.entries, e)
	m.logf("  entry %s of %s", e.id, e.job)
}

func (m *machine) delete(e *entry) {
	e.deleted = true
	m.job(e.job).deleted = true
}

// drop deletes a consumer with all it has pending. The reconciler takes back what it
// has seen pending, so that it has a look before and after: what nobody has seen is
// only reported. Then it must be up to date, too.
func (m *machine) drop(consumer string) {
	if m.down != [sides]bool{} || m.lagging {
		return
	}
	if consumer == "ghost" {
		m.redis("XREADGROUP", "GROUP", stream.DefaultGroup, consumer, "COUNT", "3", "STREAMS", job.Agent.Stream(), ">")
	}
	m.wait(6 * time.Second) // the lease of a process that died is over
	surveys := func() {
		for range 2 { // one may bring a new leader
			for i := range m.procs {
				m.survey(i, nil)
			}
		}
	}
	surveys()
	list, err := m.client.PendingList(m.ctx, job.Agent.Stream(), "", 1000)
	if err != nil {
		return // no group
	}
	for _, p := range list {
		for _, e := range m.entries {
			if e.id == p.ID && p.Consumer == consumer {
				e.dropped = true
				m.logf("  %s of %s is dropped", e.id, e.job)
			}
		}
	}
	m.redis("XGROUP", "DELCONSUMER", job.Agent.Stream(), stream.DefaultGroup, consumer)
	surveys()
}

func (m *machine) pass(who int, p *plan) {
	proc := m.procs[who]
	proc.arm(p)
	proc.b.lanes[0].pass(m.ctx, m.ctx)
	m.disarm(who)
}

func (m *machine) survey(who int, p *plan) {
	proc := m.procs[who]
	proc.arm(nil)
	proc.b.beat(m.ctx)
	proc.arm(p)
	proc.r.survey(m.ctx)
	m.disarm(who)
}

func (m *machine) disarm(who int) {
	p := m.procs[who]
	p.arm(nil)
	if p.dead {
		m.crash(who)
	}
}

func (m *machine) crash(who int) {
	m.procs[who].dead = true
	m.logf("  %s is dead", m.procs[who].name)
	m.spawn(who)
	m.logf("  %s takes its place", m.procs[who].name)
}

// wait lets time pass. What expires meanwhile belongs to processes that died.
func (m *machine) wait(d time.Duration) {
	m.now = m.now.Add(d)
	if d >= 6*time.Second {
		living := make([]string, 0, len(m.procs))
		for _, p := range m.procs {
			living = append(living, p.name)
		}
		for i := range m.named {
			if name := "b" + strconv.Itoa(i); !slices.Contains(living, name) {
				m.redis("DEL", aliveKey(name))
			}
		}
		if holder, ok := m.redis("GET", "{executor}:lease:"+LeaseName).(string); ok && !slices.Contains(living, holder) {
			m.redis("DEL", "{executor}:lease:"+LeaseName)
		}
	}
	for _, p := range m.procs {
		calls, planned := p.calls, p.plan
		p.arm(nil)
		p.b.beat(m.ctx)
		p.calls, p.plan = calls, planned
	}
}

// script is what a run of JobWorkflow has done and has yet to do.
type script struct {
	run       fakeRun
	effect    string
	person    bool // started by a person: it speaks for itself
	at        int
	outcome   job.Outcome
	persisted job.Persisted
	closed    bool // by itself
	gone      bool // killed, or lost with everything else
	spent     bool // the step that was under way is over
}

// The steps of a run.
const (
	stepCall = iota
	stepPersist
	stepPublish
	stepDeadLetter
	stepAcknowledge
	stepClose
)

// sync takes note of runs that were started and runs that are gone.
func (m *machine) sync() {
	open := make(map[string]bool)
	for _, run := range m.temporal.list(func(s RunState) bool { return s == RunOpen }) {
		open[run.RunID] = true
		if m.known[run.RunID] != nil {
			continue
		}
		current, _ := m.temporal.current(run.WorkflowID)
		s := &script{run: current, effect: current.effect()}
		s.person = s.effect == job.RunEffect(run.RunID)
		m.known[run.RunID] = s
		m.scripts = append(m.scripts, s)
		m.logf("  run %d of %s for %s", len(m.scripts)-1, current.input.Job.ID, current.input.Origin.EntryID)
	}
	for _, s := range m.scripts {
		s.gone = !s.closed && !open[s.run.RunID]
	}
}

func (m *machine) open() []*script {
	return slices.DeleteFunc(slices.Clone(m.scripts), func(s *script) bool { return s.gone || s.closed })
}

// zombie does the step that was under way in a run that is gone: a worker does
// not hear of it before the step is over.
func (m *machine) zombie(which int) {
	var under []*script
	for _, s := range m.scripts {
		if s.gone && !s.spent && s.at > stepCall && s.at < stepClose {
			under = append(under, s)
		}
	}
	if len(under) == 0 || m.down[redisSide] || m.down[storeSide] {
		return
	}
	s := under[which%len(under)]
	s.spent = true
	m.job(s.run.input.Job.ID).zombie = true
	m.step(s, 0, true)
}

// step does the next step of a run. With a lost reply it is done again later.
func (m *machine) step(s *script, answer int, lost bool) {
	in := s.run.input
	if m.down[redisSide] || m.down[storeSide] || m.down[temporalSide] && !s.gone {
		return
	}
	m.logf("  run of %s: step %d", in.Job.ID, s.at)
	next := s.at + 1
	switch s.at {
	case stepCall:
		lost = false
		row, found := m.row(in.Job.ID)
		if s.person && found && row.Status == job.Completed && row.Effect != s.effect {
			s.closed = true
			m.temporal.close(s.run.WorkflowID, RunEnded, job.Completed)
			return
		}
		m.llm++
		switch answer {
		case 3, 4:
			s.outcome = bad()
		case 5:
			s.outcome = job.Outcome{Status: job.Canceled, ErrorCode: workflows.CodeCanceled, ErrorMessage: "The job was canceled."}
		default:
			s.outcome = good("answer " + strconv.Itoa(m.llm))
		}
		s.outcome.StartedAt, s.outcome.FinishedAt = s.run.StartedAt, m.now
	case stepPersist:
		row := job.NewRow(in.Job, in.Origin, s.effect, s.outcome)
		row.WorkflowID, row.RunID = s.run.WorkflowID, s.run.RunID
		m.mayPersist(row)
		var err error
		s.persisted, err = m.store.Persist(m.ctx, row)
		m.must(err)
		if s.persisted.Verdict == job.Superseded {
			next = stepAcknowledge
		}
	case stepPublish:
		row := s.persisted.Row
		_, err := m.client.Publish(m.ctx, outcome.Update(row, in.Job, in.Origin.Updates, row.Effect))
		m.must(err)
		if row.Status != job.Failed {
			next = stepAcknowledge
		}
	case stepDeadLetter:
		row := s.persisted.Row
		id, err := m.client.DeadLetter(m.ctx, outcome.DeadLetter(row, in.Job.Fields(), row.Effect))
		m.must(err)
		m.must(m.store.SetDeadID(m.ctx, row.Key(), row.Effect, id))
	case stepAcknowledge:
		_, err := m.client.Ack(m.ctx, in.Origin.Stream, in.Origin.Group, in.Origin.EntryID)
		m.must(err)
	case stepClose:
		s.closed = true
		m.temporal.close(s.run.WorkflowID, RunEnded, s.persisted.Row.Status)
		return
	}
	if !lost {
		s.at = next
	}
}

func (m *machine) must(err error) {
	if err != nil {
		m.fail("the schedule's own step failed: %v", err)
	}
}

// reset starts the current run of a job again, whatever its state.
func (m *machine) reset(n int) {
	id := job.WorkflowID(job.Agent, m.jobID(n))
	m.sync()
	before, ok := m.temporal.current(id)
	if !ok {
		return
	}
	m.job(m.jobID(n)).resets++
	m.temporal.reset(id)
	m.temporal.set(func(f *fakeTemporal) {
		runs := f.runs[id]
		current := &runs[len(runs)-1]
		// The code of the new run sees the times of the old history.
		current.StartedAt = before.StartedAt
		// A reset of a copy is no run of an entry either.
		current.Stream, current.EntryID = before.Stream, before.EntryID
	})
}

func (m *machine) row(jobID string) (job.Row, bool) {
	row, found, err := m.store.Row(m.ctx, job.Key{Role: job.Agent, JobID: jobID})
	m.must(err)
	return row, found
}
