package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/outcome"
	"github.com/nodpt/executor/internal/redistest"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait. It is long because the machine may be busy; no
// test waits for it to pass.
const patience = 30 * time.Second

// world is one system around bridges: a real Redis, a real store, and a workflow
// service in memory that keeps the server's promises about ids.
type world struct {
	t        testing.TB
	server   *redistest.Server
	client   *stream.Client // the test's own view
	store    *store.Store
	rows     *switchRows
	temporal *fakeTemporal
	metrics  *counts
}

func newWorld(t testing.TB) *world {
	t.Helper()
	server := redistest.Start(t)
	w := &world{t: t, server: server, temporal: newFakeTemporal(), metrics: newCounts()}
	w.client = w.open("observer")
	db, err := store.Open(t.Context(), store.Config{URL: "sqlite://" + filepath.Join(t.TempDir(), "rows.db")}, quiet())
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	w.store, w.rows = db, &switchRows{Store: db}
	return w
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (w *world) open(consumer string) *stream.Client {
	w.t.Helper()
	c, err := stream.Open(stream.Config{Connection: w.server.Addr(), Consumer: consumer}, quiet())
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// bridge returns a bridge of that consumer name, with short intervals.
func (w *world) bridge(consumer string, change ...func(*Bridge)) *Bridge {
	w.t.Helper()
	cfg := Config{MaxInFlight: 1000, ClaimMinIdle: time.Minute, Updates: stream.Updates}
	b, err := New(cfg, w.open(consumer), w.rows, w.temporal, w.metrics, quiet())
	require.NoError(w.t, err)
	quick := defaultTiming(cfg)
	quick.block = 20 * time.Millisecond
	quick.beat = 50 * time.Millisecond
	quick.sweep = 50 * time.Millisecond
	quick.survey = 50 * time.Millisecond
	quick.suspectIdle = 200 * time.Millisecond
	quick.closing = 20 * time.Millisecond
	quick.full = 5 * time.Millisecond
	quick.countFor = 5 * time.Millisecond
	quick.backoffMin = 5 * time.Millisecond
	quick.backoffMax = 50 * time.Millisecond
	quick.wrongType = 20 * time.Millisecond
	quick.chatPoll = 10 * time.Millisecond
	quick.lookups = 1000
	b.setTiming(quick)
	for _, f := range change {
		f(b)
	}
	return b
}

// run runs a bridge until the returned function is called or the test ends.
func (w *world) run(b *Bridge) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			require.NoError(w.t, err)
		case <-time.After(patience):
			require.Fail(w.t, "the bridge did not stop")
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// die forgets a stopped bridge as if its process had been killed long ago.
func (w *world) die(consumer string) { w.redis("DEL", "{executor}:alive:executor-group:"+consumer) }

// redis runs one command and returns its answer.
func (w *world) redis(args ...string) string {
	w.t.Helper()
	host, port, _ := strings.Cut(w.server.Addr(), ":")
	cmd := exec.CommandContext(w.t.Context(), "redis-cli", append([]string{"-h", host, "-p", port}, args...)...)
	out, err := cmd.CombinedOutput()
	require.NoError(w.t, err, string(out))
	return strings.TrimSpace(string(out))
}

// add adds a job entry; pairs are field names and values.
func (w *world) add(role job.Role, pairs ...string) string {
	w.t.Helper()
	var fields []job.Field
	for pair := range slices.Chunk(pairs, 2) {
		fields = append(fields, job.Field{Name: pair[0], Value: pair[1]})
	}
	id, err := w.client.Add(w.t.Context(), role.Stream(), fields)
	require.NoError(w.t, err)
	return id
}

// agentJob adds a valid job for the agent.
func (w *world) agentJob(id string) string {
	w.t.Helper()
	return w.add(job.Agent, "jobId", id, "userId", "u-"+id, "connectionId", "c-"+id, "task", "do it")
}

func (w *world) eventually(what string, cond func() bool) {
	w.t.Helper()
	require.Eventually(w.t, cond, patience, 5*time.Millisecond, what)
}

func (w *world) pending(role job.Role) int64 {
	summary, err := w.client.Pending(context.WithoutCancel(w.t.Context()), role.Stream())
	if errors.Is(err, stream.ErrNoGroup) {
		return -1
	}
	require.NoError(w.t, err)
	return summary.Count
}

// settled waits until everything on a stream was read and acknowledged.
func (w *world) settled(role job.Role) {
	w.t.Helper()
	w.eventually("nothing pending or unread on "+role.Stream(), func() bool {
		stats, err := w.client.Stats(w.t.Context(), role.Stream())
		return err == nil && stats.Pending == 0 && stats.Lag == 0 && w.pending(role) == 0 // -1 without a group
	})
}

// fields are an entry's, by name.
type fields map[string]string

func (w *world) read(name string) []fields {
	w.t.Helper()
	var all []fields
	after := "0"
	for {
		entries, err := w.client.TailUpdates(w.t.Context(), name, after, 0)
		require.NoError(w.t, err)
		for _, e := range entries {
			f := fields{}
			for _, field := range e.Fields {
				f[field.Name] = field.Value
			}
			all = append(all, f)
			after = e.ID
		}
		if len(entries) == 0 {
			return all
		}
	}
}

func (w *world) updates() []fields { w.t.Helper(); return w.read(stream.Updates) }

func (w *world) dead(role job.Role) []fields {
	w.t.Helper()
	return w.read(stream.DeadStream(role.Stream()))
}

// row is a row of the agent.
func (w *world) row(id string) (job.Row, bool) {
	w.t.Helper()
	row, ok, err := w.store.Row(w.t.Context(), job.Key{Role: job.Agent, JobID: id})
	require.NoError(w.t, err)
	return row, ok
}

// started waits for a run of the job and returns it.
func (w *world) started(role job.Role, id string) fakeRun {
	w.t.Helper()
	var run fakeRun
	w.eventually("a run of "+id, func() bool {
		var ok bool
		run, ok = w.temporal.current(job.WorkflowID(role, id))
		return ok && run.State == RunOpen
	})
	return run
}

// persist does the first final step of a run.
func (w *world) persist(run fakeRun, o job.Outcome) job.Persisted {
	w.t.Helper()
	o.StartedAt, o.FinishedAt = run.StartedAt, time.Now()
	effect := job.EntryEffect(run.input.Origin.Stream, run.input.Origin.EntryID)
	if run.RunID != run.FirstRunID || run.EntryID == "" {
		effect = job.RunEffect(run.RunID)
	}
	row := job.NewRow(run.input.Job, run.input.Origin, effect, o)
	row.WorkflowID, row.RunID = run.WorkflowID, run.RunID
	p, err := w.store.Persist(w.t.Context(), row)
	require.NoError(w.t, err)
	return p
}

func (w *world) publish(run fakeRun, p job.Persisted) {
	w.t.Helper()
	_, err := w.client.Publish(w.t.Context(), outcome.Update(p.Row, run.input.Job, run.input.Origin.Updates, p.Row.Effect))
	require.NoError(w.t, err)
	if outcome.NeedsDeadLetter(p.Row.Status) {
		_, err := w.client.DeadLetter(w.t.Context(), outcome.DeadLetter(p.Row, run.input.Job.Fields(), p.Row.Effect))
		require.NoError(w.t, err)
	}
}

func (w *world) ack(run fakeRun) {
	w.t.Helper()
	_, err := w.client.Ack(w.t.Context(), run.input.Origin.Stream, run.input.Origin.Group, run.input.Origin.EntryID)
	require.NoError(w.t, err)
}

// finish does all final steps of a run and closes it.
func (w *world) finish(run fakeRun, o job.Outcome) {
	w.t.Helper()
	w.publish(run, w.persist(run, o))
	w.ack(run)
	w.temporal.close(run.WorkflowID, RunEnded, o.Status)
}

func good(answer string) job.Outcome { return job.Outcome{Status: job.Completed, Output: answer} }

func bad() job.Outcome {
	return job.Outcome{Status: job.Failed, ErrorCode: "llm_bad_request", ErrorMessage: "The model refused the job."}
}

// switchRows is the store with switches to turn it off, or writing only.
type switchRows struct {
	*store.Store
	mu       sync.Mutex
	down     bool
	readOnly bool
}

var errStoreDown = errors.New("store is down")

func (s *switchRows) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *switchRows) setReadOnly(readOnly bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readOnly = readOnly
}

func (s *switchRows) check(writes bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down || writes && s.readOnly {
		return errStoreDown
	}
	return nil
}

func (s *switchRows) Rows(ctx context.Context, keys []job.Key) (map[job.Key]job.Row, error) {
	if err := s.check(false); err != nil {
		return nil, err
	}
	return s.Store.Rows(ctx, keys)
}

func (s *switchRows) Persist(ctx context.Context, row job.Row) (job.Persisted, error) {
	if err := s.check(true); err != nil {
		return job.Persisted{}, err
	}
	return s.Store.Persist(ctx, row)
}

// safeBuffer collects what several goroutines write.
type safeBuffer struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// fakeRun is a run of the fake workflow service.
type fakeRun struct {
	Run
	status    job.Status // how it closed, for RunEnded
	requestID string
	input     workflows.Input
}

// fakeTemporal keeps runs in memory. It answers starts as server 1.32 does: a
// request id that the current run was started with gives that run back, open or
// closed; an open run is never replaced; the reuse policy decides about closed
// ones.
type fakeTemporal struct {
	mu         sync.Mutex
	namespace  string
	runs       map[string][]fakeRun // workflow id → runs, the current one last
	starts     []string             // job ids of runs, in order
	calls      int
	fault      func(StartRequest) error
	refuse     func(StartRequest) bool
	unreadable bool // inputs cannot be decoded
	inputFault func(Run) error
	blind      bool // visibility lists nothing
	now        func() time.Time
}

func newFakeTemporal() *fakeTemporal {
	return &fakeTemporal{namespace: "ns-1", runs: make(map[string][]fakeRun), now: time.Now}
}

func (f *fakeTemporal) Start(_ context.Context, req StartRequest) (StartResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.fault != nil {
		if err := f.fault(req); err != nil {
			return StartResult{}, err
		}
	}
	if f.refuse != nil && f.refuse(req) {
		return StartResult{Verdict: Refused}, nil
	}
	id := job.WorkflowID(req.Input.Job.Role, req.Input.Job.ID)
	if runs := f.runs[id]; len(runs) > 0 {
		current := runs[len(runs)-1]
		if current.requestID == req.RequestID {
			return StartResult{Verdict: Started, RunID: current.RunID}, nil
		}
		allowed := current.State != RunOpen && (req.Reuse == ReuseAny ||
			req.Reuse == ReuseUnsuccessful && (current.State.Killed() || current.status != job.Completed))
		if !allowed {
			return StartResult{Verdict: AlreadyStarted, RunID: current.RunID}, nil
		}
	}
	run := f.append(id, fakeRun{requestID: req.RequestID, input: req.Input}, "")
	f.starts = append(f.starts, req.Input.Job.ID)
	return StartResult{Verdict: Started, RunID: run.RunID}, nil
}

func (f *fakeTemporal) append(id string, run fakeRun, first string) fakeRun {
	runID := uuid.NewString()
	if first == "" {
		first = runID
	}
	run.Run = Run{
		WorkflowID: id, RunID: runID, FirstRunID: first,
		Stream: run.input.Origin.Stream, EntryID: run.input.Origin.EntryID, StartedAt: f.now(),
	}
	f.runs[id] = append(f.runs[id], run)
	return run
}

// reset terminates the current run where it is open and starts it anew, as an
// operator does.
func (f *fakeTemporal) reset(id string) fakeRun {
	f.mu.Lock()
	defer f.mu.Unlock()
	runs := f.runs[id]
	current := &runs[len(runs)-1]
	if current.State == RunOpen {
		current.State, current.ClosedAt = RunTerminated, f.now()
	}
	return f.append(id, fakeRun{requestID: current.requestID, input: current.input}, current.FirstRunID)
}

// copy starts a run with the input of another, as "start workflow like this one"
// does.
func (f *fakeTemporal) copy(run fakeRun) fakeRun {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.append(run.WorkflowID, fakeRun{requestID: uuid.NewString(), input: run.input}, "")
	runs := f.runs[run.WorkflowID]
	current := &runs[len(runs)-1]
	current.Stream, current.EntryID = "", ""
	return *current
}

func (f *fakeTemporal) close(id string, state RunState, status job.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	runs := f.runs[id]
	current := &runs[len(runs)-1]
	current.State, current.status, current.ClosedAt = state, status, f.now()
}

// lose forgets everything, like a server started on an empty database.
func (f *fakeTemporal) lose(namespace string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.namespace, f.runs = namespace, make(map[string][]fakeRun)
}

func (f *fakeTemporal) set(change func(*fakeTemporal)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeTemporal) current(id string) (fakeRun, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if runs := f.runs[id]; len(runs) > 0 {
		return runs[len(runs)-1], true
	}
	return fakeRun{}, false
}

// startedIDs are the job ids of all runs started so far, in order.
func (f *fakeTemporal) startedIDs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.starts)
}

func (f *fakeTemporal) startCalls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fakeTemporal) Describe(_ context.Context, id string) (Run, error) {
	if run, ok := f.current(id); ok {
		return run.Run, nil
	}
	return Run{}, ErrRunNotFound
}

func (f *fakeTemporal) Input(_ context.Context, run Run) (workflows.Input, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unreadable {
		return workflows.Input{}, ErrInputUnreadable
	}
	if f.inputFault != nil {
		if err := f.inputFault(run); err != nil {
			return workflows.Input{}, err
		}
	}
	for _, r := range f.runs[run.WorkflowID] {
		if r.RunID == run.RunID {
			return r.input, nil
		}
	}
	return workflows.Input{}, ErrRunNotFound
}

func (f *fakeTemporal) list(match func(RunState) bool) []Run {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []Run
	for _, id := range slices.Sorted(maps.Keys(f.runs)) {
		for _, run := range f.runs[id] {
			if !f.blind && match(run.State) {
				found = append(found, run.Run)
			}
		}
	}
	return found
}

func (f *fakeTemporal) Open(context.Context) ([]Run, error) {
	return f.list(func(s RunState) bool { return s == RunOpen }), nil
}

func (f *fakeTemporal) Killed(_ context.Context, since time.Time) ([]Run, error) {
	return slices.DeleteFunc(f.list(RunState.Killed), func(r Run) bool { return r.ClosedAt.Before(since) }), nil
}

func (f *fakeTemporal) Namespace(context.Context) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.namespace == "" {
		return "", ErrNoNamespace
	}
	return f.namespace, nil
}

// counts are metrics by name and label.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func newCounts() *counts { return &counts{n: make(map[string]int)} }

func (c *counts) add(n int, parts ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[strings.TrimSuffix(fmt.Sprintln(parts...), "\n")] += n
}

func (c *counts) get(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[name]
}

func (c *counts) JobFinished(role job.Role, status job.Status, code string, _ time.Duration) {
	c.add(1, "finished", role, status, code)
}
func (c *counts) EntryRejected(role job.Role, reason string) { c.add(1, "rejected", role, reason) }
func (c *counts) EntryDuplicate(role job.Role, kind string)  { c.add(1, "duplicate", role, kind) }
func (c *counts) EntryNormalised(role job.Role, note string) { c.add(1, "normalised", role, note) }
func (c *counts) EntriesLost(role job.Role, n int)           { c.add(n, "lost", role) }
func (c *counts) EntriesUnaccounted(role job.Role, kind string, n int) {
	c.add(n, "unaccounted", role, kind)
}
func (c *counts) BridgeError(role job.Role, kind string) { c.add(1, "error", role, kind) }

// publishRecorder keeps the updates that were published, after some failures.
type publishRecorder struct {
	Redis
	mu       sync.Mutex
	failures int
	updates  []stream.Update
}

func (p *publishRecorder) Publish(ctx context.Context, u stream.Update) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failures > 0 {
		p.failures--
		return false, errors.New("out of memory")
	}
	p.updates = append(p.updates, u)
	return p.Redis.Publish(ctx, u)
}

func (p *publishRecorder) last() stream.Update {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.updates[len(p.updates)-1]
}
