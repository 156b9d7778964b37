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
			"MAX_TOTAL": "12", "MAX_AGENT": "6", "LLM_TIMEOUT": "20s", "DRAIN_TIMEOUT": "4s", "CLAIM_MIN_IDLE": "20s",
		}},
		seed: true,
		run:  func(w *world) { newSoak(w).play(plan) },
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
	waiting   []func()            // submissions held back while Redis is away
}

func newSoak(w *world) *soak {
	s := &soak{
		w: w, deaths: map[string]int{}, struck: map[string]snapshot{},
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
			s.processes[name].kill()
			s.restart(name, "")
		}
	}
	s.w.heal()
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
	if s.away("redis") {
		s.waiting = append(s.waiting, func() { s.submit(j) })
		return
	}
	require.NoError(s.w.T, s.w.add(s.w.T.Context(), j))
}

// away reports whether a server is down.
func (s *soak) away(server string) bool {
	var done <-chan struct{}
	switch server {
	case "redis":
		done = s.w.RedisServer.Process().Done()
	case "temporal":
		done = s.w.server.Process().Done()
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// supervise starts again whatever a failure point has killed, as an orchestrator
// would.
func (s *soak) supervise() {
	for name, p := range s.processes {
		_, armed := p.env["EXEC_FAIL"]
		select {
		case <-p.Done():
			if armed && !p.gone {
				p.gone = true
				s.restart(name, "")
			}
		default:
		}
	}
}

// restart starts a process anew, with a failure point or without.
func (s *soak) restart(name, points string) {
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
	if s.away("redis") {
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

// after allows one more call to each job that may have been in a call while the
// fault lasted. Where the LLM itself refused, each of its refusals was a fault.
func (s *soak) after(f plannedFault) {
	was := s.struck[f.String()]
	delete(s.struck, f.String())
	asked := s.w.LLM.Stats().ByPrompt
	mortal := f.target == theRoles || f.target == otherRoles
	for _, j := range s.w.list() {
		n := asked[j.asked()]
		if n == 0 || was.finished[j.key()] {
			continue
		}
		hit(j)
		if f.target == "llm" {
			j.calls += n - was.asked[j.asked()]
		}
		if mortal {
			s.deaths[j.asked()]++
		}
	}
}

func (s *soak) strike(f plannedFault) {
	t := s.w.T
	switch f.kind {
	case kill:
		switch f.target {
		case "redis":
			s.w.RedisServer.Process().Kill()
		case "temporal":
			s.w.server.Kill()
		case "postgres":
			s.w.Postgres.Kill()
		default:
			s.processes[f.target].kill()
		}
	case term:
		s.processes[f.target].gone = true
		require.NoError(t, s.processes[f.target].Signal(syscall.SIGTERM))
	case freeze:
		require.NoError(t, s.processes[f.target].Signal(syscall.SIGSTOP))
	case crash:
		s.processes[f.target].kill()
		s.restart(f.target, fmt.Sprintf("%s:%d:%s", f.point, f.pass, f.action))
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
		if !s.away("redis") {
			role := roles[f.strength%len(roles)]
			require.NoError(t, s.w.Redis.XGroupDestroy(t.Context(), "jobs:"+role, harness.Group).Err())
		}
	case terminate:
		s.terminate(f.strength)
	}
}

func (s *soak) heal(f plannedFault) {
	t := s.w.T
	switch f.kind {
	case kill:
		switch f.target {
		case "redis":
			require.NoError(t, s.w.RedisServer.Restart(t.Context()))
			held := s.waiting
			s.waiting = nil
			for _, submit := range held {
				submit()
			}
		case "temporal":
			s.w.server.Restart(t)
		case "postgres":
			require.NoError(t, s.w.Postgres.Restart(t.Context()))
		default:
			s.restart(f.target, "")
		}
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
	if s.away("temporal") {
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
