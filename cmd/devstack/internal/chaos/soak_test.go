//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// seedsVariable holds the seeds to play, separated by commas. Without it a
// random one is.
const seedsVariable = "CHAOS_SEEDS"

// Size of a soak. The short one is for CI.
const (
	soakLength, soakJobs           = 10 * time.Minute, 2400
	shortSoakLength, shortSoakJobs = 75 * time.Second, 300
	// maxDeaths is below the number of worker deaths that rightly ends a job.
	maxDeaths = 3

	maxTotal    = 12               // LLM calls at once, over all processes
	maxAgent    = 4                // calls of agents at once, in each process
	agentModel  = "soak-agent"     // theirs alone, by which the stand-in counts them
	soakTimeout = 20 * time.Second // of a call
	// watchCalls is how often the number of running calls is looked at, at most.
	watchCalls = 500 * time.Millisecond
)

// TestSoak plays random schedules, row F60.
func TestSoak(t *testing.T) {
	t.Parallel()
	t.Run("F60", func(t *testing.T) {
		t.Parallel()
		for _, seed := range seeds(t) {
			t.Run("seed-"+strconv.Itoa(seed), func(t *testing.T) { soakOne(t, seed) }) //nolint:paralleltest // each needs the machine
		}
	})
}

func seeds(t *testing.T) []int {
	t.Helper()
	text := os.Getenv(seedsVariable)
	if text == "" {
		return []int{rand.IntN(1_000_000)}
	}
	var out []int
	for s := range strings.SplitSeq(text, ",") {
		seed, err := strconv.Atoi(strings.TrimSpace(s))
		require.NoError(t, err, "%s holds numbers separated by commas", seedsVariable)
		out = append(out, seed)
	}
	return out
}

func soakOne(t *testing.T, seed int) {
	t.Helper()
	length, jobs := soakLength, soakJobs
	if shared.short {
		length, jobs = shortSoakLength, shortSoakJobs
	}
	plan := draw(seed, length, jobs)
	t.Logf("seed %d: %d jobs, %d faults", seed, len(plan.jobs), len(plan.faults))
	f := fault{
		id: fmt.Sprintf("seed %06d", seed), name: fmt.Sprintf("%d faults in %s: %s", len(plan.faults), length, plan.kinds()),
		setup: setup{postgres: true, env: map[string]string{
			"MAX_TOTAL": strconv.Itoa(maxTotal), "MAX_AGENT": strconv.Itoa(maxAgent), "LLM_TIMEOUT": soakTimeout.String(),
			"MODEL_AGENT": agentModel, "MODEL_CHAT": "soak-chat", "DRAIN_TIMEOUT": "4s", "CLAIM_MIN_IDLE": "20s",
		}},
		seed: true,
		// Jobs go on coming until a minute before the end, or a few seconds.
		drains: 3 * time.Minute,
		run:    func(w *world) { newSoak(w).play(plan) },
	}
	f.play(t)
}

// soak plays one schedule. Everything happens in the test's goroutine, one event
// after the other, so that no job is being submitted while Redis is killed.
type soak struct {
	w         *world
	began     time.Time
	processes map[string]*process
	edges     map[string]*edge
	deaths    map[string]int      // by prompt, of workers in whose hands the call may have been
	struck    map[string]snapshot // how things stood when a fault began, by fault
	armed     map[string]snapshot // how things stood when a role worker was armed, by its name
	looked    time.Time           // when the number of running calls was looked at
	hidden    int                 // faults that last and hide calls from the count of MAX_TOTAL
	excused   time.Time           // until when calls may run on that such a fault had hidden
	most      int                 // calls at once when nothing excused more than maxTotal
	waiting   []func()            // submissions held back while Redis is away
	struckNow map[string]bool     // servers that are killed, told to stop or frozen
}

func newSoak(w *world) *soak {
	s := &soak{
		w: w, deaths: map[string]int{}, struck: map[string]snapshot{}, armed: map[string]snapshot{}, struckNow: map[string]bool{},
		edges: map[string]*edge{
			"edge bridge-redis": w.bridgeRedis, "edge worker-redis": w.workerRedis, "edge temporal": w.toTemporal,
			"edge llm": w.toLLM, "edge database": w.toDatabase,
		},
		processes: map[string]*process{
			theBridge: w.launch(w.bridgeRedis, nil, "bridge"), otherBridge: w.launch(w.bridgeRedis, nil, "bridge"),
			theWorkflows: w.launch(w.workerRedis, nil, "worker", "--queues", "workflows"),
			theRoles:     w.launch(w.workerRedis, nil, "worker", "--queues", roleQueues),
			otherRoles:   w.launch(w.workerRedis, nil, "worker", "--queues", roleQueues),
		},
	}
	for _, p := range s.processes {
		w.Ready(p.Executor)
	}
	w.LLM.Script(map[string]any{"latency_ms": 150, "jitter_ms": 300})
	return s
}

type event struct {
	at time.Duration
	do func()
}

func (s *soak) play(plan schedule) {
	var events []event
	for _, j := range plan.jobs {
		record := s.w.plan(j.role, j.directive)
		events = append(events, event{j.at, func() { s.submit(record) }})
		if j.again > 0 {
			// A duplicate while the job runs, a question for the answer after it.
			record.more = 1
			events = append(events, event{j.at + j.again, func() { s.submit(record) }})
		}
	}
	for _, f := range plan.faults {
		struck := false
		events = append(events, event{f.at, func() {
			if struck = s.mayStrike(f); struck {
				s.w.T.Logf("%6.1fs %s", time.Since(s.began).Seconds(), f)
				s.before(f)
				s.strike(f)
			}
		}}, event{f.at + f.last, func() {
			if struck {
				s.heal(f)
				s.after(f)
			}
		}})
	}
	slices.SortStableFunc(events, func(a, b event) int { return int(a.at - b.at) })
	s.began = time.Now()
	for _, e := range events {
		s.w.pass(max(0, e.at-time.Since(s.began)))
		s.supervise()
		e.do()
	}
	for name := range s.processes { // some may still be armed
		if _, armed := s.processes[name].env["EXEC_FAIL"]; armed {
			s.failing(name)
			now := snapshot{finished: s.finished()}
			s.processes[name].kill()
			if name == theRoles || name == otherRoles {
				s.charge(now, true)
			}
			s.restart(name, "")
		}
	}
	s.w.heal()
	s.limits()
}

// limits are those of the running calls. MAX_TOTAL binds all processes together
// but for those that are frozen or cut off from Redis, whose permits lapse while
// their calls run on; MAX_AGENT binds each process.
func (s *soak) limits() {
	t := s.w.T
	stats := s.w.LLM.Stats()
	require.Positive(t, s.most, "nobody looked at the calls that run")
	require.LessOrEqual(t, s.most, maxTotal, "MAX_TOTAL, while no process was frozen or cut off")
	require.LessOrEqual(t, stats.MaxRunningByModel[agentModel], 2*maxAgent, "MAX_AGENT of two processes")
	t.Logf("at most %d calls at once, %d of agents, %d while a process was frozen or cut off", s.most, stats.MaxRunningByModel[agentModel], stats.MaxRunning)
}

// plan makes up a job like draft, with what its directive will make of it.
func (w *world) plan(role, directive string) *jobRecord {
	j := w.draft(role, directive)
	switch directive {
	case "!fail 400":
		j.status = "failed"
	case "!fail 503 x1":
		j.calls = 2
	}
	return j
}

func (s *soak) submit(j *jobRecord) {
	if s.away(redisServer) {
		s.waiting = append(s.waiting, func() { s.submit(j) })
		return
	}
	require.NoError(s.w.T, s.w.add(s.w.T.Context(), j))
}

// away reports whether a server answers nobody.
func (s *soak) away(server string) bool { return s.struckNow[server] }

// supervise starts again whatever a failure point has killed, as an orchestrator
// would.
func (s *soak) supervise() {
	look := time.Since(s.looked) >= watchCalls
	for name, p := range s.processes {
		_, armed := p.env["EXEC_FAIL"]
		select {
		case <-p.Done():
			if armed && !p.gone {
				p.gone = true
				s.restart(name, "")
			}
		default:
			if look {
				s.failing(name)
			}
		}
	}
	if !look {
		return
	}
	s.looked = time.Now()
	if s.hidden == 0 && time.Now().After(s.excused) {
		s.most = max(s.most, s.w.LLM.Stats().Running)
	}
}

// failing charges the jobs that an armed role worker may have failed, once its
// failure point has struck, which can be long after the worker was armed.
func (s *soak) failing(name string) {
	was, armed := s.armed[name]
	if armed && s.processes[name].said("failpoint ") {
		delete(s.armed, name)
		s.charge(was, strings.Contains(s.processes[name].env["EXEC_FAIL"], ":kill"))
	}
}

// restart starts a process anew, with a failure point or without.
func (s *soak) restart(name, points string) {
	s.failing(name)
	delete(s.armed, name)
	old := s.processes[name]
	old.gone = true
	args, env := old.args, map[string]string{}
	if points != "" {
		env = failing(points)
	}
	e := s.w.workerRedis
	if args[0] == "bridge" {
		e = s.w.bridgeRedis
	}
	s.processes[name] = s.w.launch(e, env, args...)
}

// mayStrike refuses to kill a worker that holds a job which was killed often
// enough to be given up for it.
func (s *soak) mayStrike(f plannedFault) bool {
	if f.target != theRoles && f.target != otherRoles {
		return true
	}
	for _, prompt := range s.inCall() {
		if s.deaths[prompt] >= maxDeaths {
			s.w.T.Logf("%6.1fs not struck, for a job that was killed %d times: %s", time.Since(s.began).Seconds(), maxDeaths, f)
			return false
		}
	}
	return true
}

// inCall are the prompts of jobs that may be in a call now: asked, and without an
// update.
func (s *soak) inCall() []string {
	asked := s.w.LLM.Stats().ByPrompt
	finished := s.finished()
	var out []string
	for _, j := range s.w.list() {
		if asked[j.asked()] > 0 && !finished[j.key()] {
			out = append(out, j.asked())
		}
	}
	return out
}

// finished are the jobs that have an update, as role/jobId. While Redis is away
// none is known, which only makes the count of calls more lenient.
func (s *soak) finished() map[string]bool {
	out := map[string]bool{}
	if s.away(redisServer) {
		return out
	}
	updates, err := s.w.updates(s.w.T.Context())
	require.NoError(s.w.T, err)
	for _, u := range updates {
		out[u.job] = true
	}
	return out
}

// snapshot is how things stood when a fault began.
type snapshot struct {
	finished map[string]bool
	asked    map[string]int // calls so far, by prompt
}

func (s *soak) before(f plannedFault) {
	s.struck[f.String()] = snapshot{finished: s.finished(), asked: s.w.LLM.Stats().ByPrompt}
}

// after allows one more call to each job that may have been in a call while a
// fault lasted that can cost one. Those of the bridges, the worker that closes the
// books, Redis, the database and the ways to them cannot: a call goes on without
// them, and so does an answer.
func (s *soak) after(f plannedFault) {
	was := s.struck[f.String()]
	delete(s.struck, f.String())
	switch f.target {
	case theRoles, otherRoles:
		s.charge(was, true)
	case temporalServer:
		// One that was frozen for too long, on a machine that is busy, takes workers for
		// dead.
		s.charge(was, f.kind == freeze)
	case "edge temporal", "edge llm":
		s.charge(was, false)
	case "llm":
		// Each of its refusals was a fault.
		asked := s.w.LLM.Stats().ByPrompt
		for _, j := range s.charge(was, false) {
			j.calls += asked[j.asked()] - was.asked[j.asked()]
		}
	}
}

// charge allows one more call to each job that may have been in a call since, and
// returns these jobs. Where a worker died, it may have been in each one's.
func (s *soak) charge(was snapshot, died bool) []*jobRecord {
	asked := s.w.LLM.Stats().ByPrompt
	var struck []*jobRecord
	for _, j := range s.w.list() {
		if asked[j.asked()] == 0 || was.finished[j.key()] {
			continue
		}
		hit(j)
		struck = append(struck, j)
		if died {
			s.deaths[j.asked()]++
		}
	}
	return struck
}

// hides reports whether the calls of a process go on while Redis hears nothing of
// it, so that others get its permits.
func (f plannedFault) hides() bool {
	switch f.target {
	case "edge worker-redis":
		return true
	case theRoles, otherRoles, redisServer:
		return f.kind == freeze
	default:
		return false
	}
}

// server is the process of a server.
func (s *soak) server(name string) *proc.Process {
	switch name {
	case redisServer:
		return s.w.RedisServer.Process()
	case temporalServer:
		return s.w.server.Process()
	default:
		return s.w.Postgres.Process()
	}
}

// strikeServer kills a server, tells it to stop, or freezes it.
func (s *soak) strikeServer(f plannedFault) {
	t := s.w.T
	s.struckNow[f.target] = true
	p := s.server(f.target)
	switch {
	case f.kind == kill && f.target == postgresServer:
		s.w.Postgres.Kill() // with its children
	case f.kind == kill:
		p.Kill()
	case f.kind == freeze && f.target == postgresServer:
		s.w.freezeDatabase()
	case f.kind == freeze:
		t.Cleanup(func() { _ = p.Signal(syscall.SIGCONT) }) // or nothing could end it
		require.NoError(t, p.Signal(syscall.SIGSTOP))
	case f.target == postgresServer:
		require.NoError(t, p.Signal(syscall.SIGINT))
	default:
		require.NoError(t, p.Signal(syscall.SIGTERM))
	}
}

// healServer lets a server work again.
func (s *soak) healServer(f plannedFault) {
	t := s.w.T
	p := s.server(f.target)
	if f.kind == term {
		select {
		case <-p.Done():
		case <-time.After(harness.Patience):
			require.Fail(t, "it does not stop", "%s:\n%s", f.target, p.LogTail(20))
		}
	}
	switch {
	case f.kind == freeze && f.target == postgresServer:
		s.w.thawDatabase()
	case f.kind == freeze:
		require.NoError(t, p.Signal(syscall.SIGCONT))
	case f.target == redisServer:
		require.NoError(t, s.w.RedisServer.Restart(t.Context()))
	case f.target == temporalServer:
		s.w.server.Restart(t)
	default:
		require.NoError(t, s.w.Postgres.Restart(t.Context()))
	}
	delete(s.struckNow, f.target)
	if f.target == redisServer {
		held := s.waiting
		s.waiting = nil
		for _, submit := range held {
			submit()
		}
	}
}

func (s *soak) strike(f plannedFault) {
	t := s.w.T
	if f.hides() {
		s.hidden++
	}
	if isServer(f.target) {
		s.strikeServer(f)
		return
	}
	switch f.kind {
	case kill:
		s.processes[f.target].kill()
	case term:
		s.processes[f.target].gone = true
		require.NoError(t, s.processes[f.target].Signal(syscall.SIGTERM))
	case freeze:
		require.NoError(t, s.processes[f.target].Signal(syscall.SIGSTOP))
	case crash:
		s.processes[f.target].kill()
		s.restart(f.target, fmt.Sprintf("%s:%d:%s", f.point, f.pass, f.action))
		if f.target == theRoles || f.target == otherRoles {
			s.armed[f.target] = s.struck[f.String()]
		}
	case cut:
		s.edges[f.target].cut()
	case slow:
		s.edges[f.target].toxic("latency", "down", map[string]any{"latency": f.strength, "jitter": f.strength / 4})
	case halfOpen:
		s.edges[f.target].toxic("timeout", "down", map[string]any{"timeout": 0})
	case refuse:
		s.w.LLM.Script(map[string]any{"status": 503})
	case ration:
		s.w.LLM.Script(map[string]any{"status": 429, "retry_after": 2})
	case destroy:
		if !s.away(redisServer) {
			role := roles[f.strength%len(roles)]
			require.NoError(t, s.w.Redis.XGroupDestroy(t.Context(), "jobs:"+role, harness.Group).Err())
		}
	case terminate:
		s.terminate(f.strength)
	}
}

func (s *soak) heal(f plannedFault) {
	t := s.w.T
	if f.hides() {
		defer func() {
			s.hidden--
			s.excused = time.Now().Add(soakTimeout) // such a call may take as long
		}()
	}
	if isServer(f.target) {
		s.healServer(f)
		return
	}
	switch f.kind {
	case kill:
		s.restart(f.target, "")
	case term:
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
		defer cancel()
		code, err := s.processes[f.target].ExitCode(ctx)
		require.NoError(t, err)
		require.Zero(t, code, "exit code after SIGTERM:\n%s", s.processes[f.target].LogTail(20))
		s.restart(f.target, "")
	case freeze:
		require.NoError(t, s.processes[f.target].Signal(syscall.SIGCONT))
	case cut:
		s.edges[f.target].join()
	case slow, halfOpen:
		s.edges[f.target].heal()
	case refuse, ration:
		s.w.LLM.Script(map[string]any{"status": 0, "retry_after": 0})
	}
}

// terminate ends one of the open runs the way an operator does. Its job fails,
// unless its row was written already.
func (s *soak) terminate(which int) {
	if s.away(temporalServer) {
		return
	}
	ctx, cancel := context.WithTimeout(s.w.T.Context(), 10*time.Second)
	defer cancel()
	open, err := s.w.Temporal.ListOpenWorkflow(ctx, &workflowservice.ListOpenWorkflowExecutionsRequest{MaximumPageSize: 100})
	if err != nil || len(open.GetExecutions()) == 0 {
		s.w.T.Logf("no run to terminate: %v", err)
		return
	}
	run := open.GetExecutions()[which%len(open.GetExecutions())].GetExecution()
	j := s.w.jobOf(run.GetWorkflowId())
	if j == nil || j.more > 0 {
		return // a second entry of a failed job is a retry: another row's subject
	}
	if err := s.w.Temporal.TerminateWorkflow(ctx, run.GetWorkflowId(), run.GetRunId(), "chaos"); err != nil {
		if !errors.Is(err, context.DeadlineExceeded) {
			s.w.T.Logf("not terminated: %v", err)
		}
	}
	j.status = "completed|failed"
}

func (w *world) jobOf(workflowID string) *jobRecord {
	for _, j := range w.list() {
		if j.workflowID() == workflowID {
			return j
		}
	}
	return nil
}
