//go:build chaos

package chaos

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/temporald"
)

// setup is what a case wants to be different.
type setup struct {
	volatile  bool     // Redis keeps nothing on disk
	redisArgs []string // more options of redis-server
	forgetful bool     // Temporal keeps its state in memory only
	// temporalRPS is how many requests a second Temporal serves; 0 is plenty.
	temporalRPS int
	postgres    bool // rows live in PostgreSQL, behind an edge
	// plain runs the executor without race detector and failure points, whose
	// memory and speed are those of what ships.
	plain bool
	env   map[string]string
}

// world is a whole system for one case: every part a process of its own, and
// every connection between two of them an edge that can be cut.
type world struct {
	*harness.Bundle
	server *harness.Temporal

	bridgeRedis, workerRedis, toTemporal, toLLM *edge
	toDatabase                                  *edge // nil for SQLite

	processes []*process
	healed    time.Time
	notReady  []string // what breaks I7

	mu       sync.Mutex // the soak adds jobs while it watches
	jobs     []*jobRecord
	rejected []rejection
	remarks  []string // for the table

	watcher *watcher
}

var roles = []string{"manager", "inspector", "agent", "chat"} //nolint:gochecknoglobals // constant

func newWorld(t *testing.T, s setup) *world {
	t.Helper()
	dir := t.TempDir()
	port, err := shared.Ports.Free(t.Context())
	require.NoError(t, err)
	cfg := temporald.Config{Port: port, LogFile: filepath.Join(dir, "temporal-server.log"), NamespaceRPS: s.temporalRPS}
	if !s.forgetful {
		cfg.Database = filepath.Join(dir, "temporal.db")
	}
	w := &world{
		server: harness.StartTemporal(t, cfg, filepath.Join(dir, "temporal.log")),
	}
	binaries := shared.Suite
	if s.plain {
		binaries.Binary = shared.plain
	}
	w.Bundle = harness.New(t, binaries, harness.Options{
		Temporal: w.server.Address(), Namespace: temporald.DefaultNamespace,
		Durable: !s.volatile, RedisArgs: s.redisArgs, Postgres: s.postgres,
	})
	w.bridgeRedis = newEdge(t, "bridge-redis", w.Port(), w.RedisServer.Address())
	w.workerRedis = newEdge(t, "worker-redis", w.Port(), w.RedisServer.Address())
	w.toTemporal = newEdge(t, "temporal", w.Port(), w.server.Address())
	w.toLLM = newEdge(t, "llm", w.Port(), w.LLM.Address)
	env := map[string]string{
		"TEMPORAL_ADDRESS": w.toTemporal.address(),
		"LLM_ENDPOINT":     "http://" + w.toLLM.address() + "/v1/chat/completions",
		"DRAIN_TIMEOUT":    "5s",
		// A program with the race detector sleeps a second when it exits, and that
		// is not what is measured here.
		"GORACE": "atexit_sleep_ms=0",
	}
	if s.postgres {
		w.toDatabase = newEdge(t, "database", w.Port(), w.Postgres.Address())
		env["DATABASE_URL"] = w.Postgres.URL(w.toDatabase.address())
	}
	maps.Copy(env, s.env)
	w.Options.Environ = env
	w.watcher = watch(w)
	return w
}

// failing arms failure points of a process that is started with it.
func failing(points string) map[string]string { return map[string]string{"EXEC_FAIL": points} }

// process is an executor of the world.
type process struct {
	harness.Executor
	w    *world
	args []string
	env  map[string]string
	gone bool // the case ended it, and it is not to be missed
}

// launch runs an executor without waiting for it. The edge says which way it
// reaches Redis.
func (w *world) launch(redisEdge *edge, env map[string]string, args ...string) *process {
	w.T.Helper()
	settings := map[string]string{"REDIS_CONNECTION": w.RedisConnection(redisEdge.address())}
	maps.Copy(settings, env)
	p := &process{Executor: w.Launch(settings, args...), w: w, args: args, env: settings}
	w.processes = append(w.processes, p)
	return p
}

func (w *world) bridge(env map[string]string) *process {
	w.T.Helper()
	return w.launchReady(env, "bridge")
}

// launchReady starts an executor and waits until it says that it is ready.
func (w *world) launchReady(env map[string]string, args ...string) *process {
	w.T.Helper()
	p := w.launch(w.bridgeRedis, env, args...)
	w.Ready(p.Executor)
	return p
}

// worker serves the queues, for example "workflows" or "agent,chat".
func (w *world) worker(queues string, env map[string]string) *process {
	w.T.Helper()
	p := w.launch(w.workerRedis, env, "worker", "--queues", queues)
	w.Ready(p.Executor)
	return p
}

const roleQueues = "manager,inspector,agent,chat"

// system is the usual set of processes. A case may start others.
type system struct {
	bridge    *process
	workflows *process // workflow tasks and final activities
	roles     *process // the LLM calls of all roles
}

func (w *world) system() system {
	w.T.Helper()
	s := w.launchSystem()
	w.Ready(s.bridge.Executor, s.workflows.Executor, s.roles.Executor)
	return s
}

// launchSystem starts the usual set of processes without waiting for it.
func (w *world) launchSystem() system {
	w.T.Helper()
	return system{
		bridge:    w.launch(w.bridgeRedis, nil, "bridge"),
		workflows: w.launch(w.workerRedis, nil, "worker", "--queues", "workflows"),
		roles:     w.launch(w.workerRedis, nil, "worker", "--queues", roleQueues),
	}
}

// again starts the same executor anew, without its failure points.
func (p *process) again() *process {
	p.w.T.Helper()
	env := maps.Clone(p.env)
	delete(env, "EXEC_FAIL")
	p.gone = true
	n := &process{Executor: p.w.Launch(env, p.args...), w: p.w, args: p.args, env: env}
	p.w.processes = append(p.w.processes, n)
	p.w.Ready(n.Executor)
	return n
}

// kill is kill -9.
func (p *process) kill() {
	p.gone = true
	p.Process.Kill()
}

// died waits until the process was killed by its failure point.
func (p *process) died() {
	p.w.T.Helper()
	p.gone = true
	ctx, cancel := context.WithTimeout(p.w.T.Context(), harness.Patience)
	defer cancel()
	code, err := p.ExitCode(ctx)
	require.NoError(p.w.T, err, "the failure point %s was never reached", p.env["EXEC_FAIL"])
	require.Equal(p.w.T, -1, code, "%s ended by itself:\n%s", p.Name(), p.LogTail(30))
}

// jobRecord is a job that was submitted, and what is to become of it.
type jobRecord struct {
	role, id, prompt string
	entries          []string // its entries in the stream, first to last

	status  string // that its row ends with: completed; several are joined by |
	calls   int    // the LLM may be called at most so often: 1, and one for each fault that hit the call
	updates int    // entries of signalr:updates with its jobId: 1
	more    int    // as many more may be there, if it depends on who is faster
	runs    int    // runs of its workflow id, at most: 1
	// lost says why nobody can expect the job to be done: the fault took the only
	// copy of its entry before anything of ours had started it.
	lost string
	// untold says why its update is not there although it was told: the fault took
	// the stream that held it.
	untold string
	// resent: after that the producer submitted the job again, and all holds for the
	// last of its entries.
	resent bool
}

// rejection is an entry that is no job.
type rejection struct{ role, entry string }

func (j *jobRecord) stream() string     { return "jobs:" + j.role }
func (j *jobRecord) workflowID() string { return "job:" + j.role + ":" + j.id }

// submit adds a job of the role to its stream. The task begins with the
// directive, for example "!hang", and is a canary.
func (w *world) submit(role, directive string) *jobRecord {
	w.T.Helper()
	j := w.draft(role, directive)
	require.NoError(w.T, w.add(w.T.Context(), j))
	return j
}

// draft makes up a job without submitting it.
func (w *world) draft(role, directive string) *jobRecord {
	w.mu.Lock()
	defer w.mu.Unlock()
	j := &jobRecord{role: role, id: fmt.Sprintf("j%05d", len(w.jobs)), status: "completed", calls: 1, updates: 1, runs: 1}
	j.prompt = directive
	if directive != "" {
		j.prompt += " "
	}
	j.prompt += harness.Canary + "-" + role + "-" + j.id
	w.jobs = append(w.jobs, j)
	return j
}

// add submits an entry for a job, its first or another one.
func (w *world) add(ctx context.Context, j *jobRecord) error {
	id, err := w.Redis.XAdd(ctx, &redis.XAddArgs{Stream: j.stream(), Values: j.fields()}).Result()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	j.entries = append(j.entries, id)
	return nil
}

func (j *jobRecord) fields() []string {
	text := "task"
	if j.role == "chat" {
		text = "message"
	}
	return []string{
		"jobId", j.id, "workflowId", "w1", "userId", "u1", "projectId", "p1", "connectionId", "c1",
		text, j.prompt, "payload", `{"secret":"` + harness.Canary + `"}`,
	}
}

// asked is the prompt as the LLM sees it.
func (j *jobRecord) asked() string {
	if j.role != "inspector" {
		return j.prompt
	}
	text, err := json.Marshal(struct {
		Code string `json:"code"`
		Task string `json:"task"`
	}{`{"secret":"` + harness.Canary + `"}`, j.prompt})
	if err != nil {
		panic(err) // two strings
	}
	return string(text)
}

// load submits n ordinary jobs, one role after the other.
func (w *world) load(n int) []*jobRecord {
	w.T.Helper()
	jobs := make([]*jobRecord, 0, n)
	for i := range n {
		jobs = append(jobs, w.submit(roles[i%len(roles)], ""))
	}
	return jobs
}

// lose expects that nothing of ours ever hears of jobs.
func lose(why string, jobs ...*jobRecord) {
	for _, j := range jobs {
		j.lost = why
		j.calls, j.updates, j.runs = 0, 0, 0
	}
}

// untell expects that the updates of jobs are gone, and nothing else of them.
func untell(why string, jobs ...*jobRecord) {
	for _, j := range jobs {
		j.untold = why
		j.updates = 0
	}
}

// resend is the producer who submits jobs again that were lost or not told.
func (w *world) resend(jobs ...*jobRecord) {
	w.T.Helper()
	for _, j := range jobs {
		require.NoError(w.T, w.add(w.T.Context(), j))
		j.resent = true
		j.calls, j.updates, j.runs = 1, 1, 1
	}
}

// exceptions are the guarantees that do not hold for jobs of which the fault left
// too little, and why.
func (w *world) exceptions() []exception {
	count := map[exception]int{}
	for _, j := range w.list() {
		for guarantee, why := range map[string]string{"I1": j.lost, "I3": j.untold} {
			if why == "" {
				continue
			}
			if j.resent {
				why += "; so it was until they were submitted again"
			}
			count[exception{guarantee: guarantee, why: why}]++
		}
	}
	var out []exception
	for e, n := range count {
		e.jobs = n
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b exception) int {
		return cmp.Or(cmp.Compare(a.guarantee, b.guarantee), cmp.Compare(a.why, b.why))
	})
	return out
}

// reject notes that an entry is to be rejected.
func (w *world) reject(role, entry string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rejected = append(w.rejected, rejection{role, entry})
}

// await waits until jobs have had their updates.
func (w *world) await(jobs ...*jobRecord) {
	w.T.Helper()
	w.WaitFor(restPatience, "updates of jobs", func(ctx context.Context) error {
		count, err := w.updateCounts(ctx)
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if n := count[j.key()]; n < j.updates {
				return fmt.Errorf("%s has %d updates of %d", j.workflowID(), n, j.updates)
			}
		}
		return nil
	})
}

// calling waits until so many LLM calls are running.
func (w *world) calling(n int) {
	w.T.Helper()
	w.LLM.Await(fmt.Sprintf("%d calls run", n), func(s harness.Stats) bool { return s.Running == n })
}

func (j *jobRecord) key() string { return j.role + "/" + j.id }

// hit notes that a fault struck the LLM calls of jobs, each of which may cost
// one more.
func hit(jobs ...*jobRecord) {
	for _, j := range jobs {
		j.calls++
	}
}

// remark adds a figure or an observation to the row's line of the table.
func (w *world) remark(format string, args ...any) {
	w.remarks = append(w.remarks, fmt.Sprintf(format, args...))
}

// outage is how long something stays away: less when time is short.
func outage(full, short time.Duration) time.Duration {
	if shared.short {
		return short
	}
	return full
}

// pass lets time pass, which is what an outage does.
func (w *world) pass(d time.Duration) {
	w.T.Helper()
	select {
	case <-time.After(d):
	case <-w.T.Context().Done():
		w.T.FailNow()
	}
}

// list is a copy of the jobs so far.
func (w *world) list() []*jobRecord {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.jobs)
}

// running are the executors that ought to be alive.
func (w *world) running() []*process {
	return slices.DeleteFunc(slices.Clone(w.processes), func(p *process) bool { return p.gone })
}
