package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	_ "modernc.org/sqlite" // the driver of the executor's result store

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/redisd"
)

const (
	// patience is how long a test waits for what must happen. It only ever passes
	// when a test fails, so it is generous to slow machines.
	patience = 90 * time.Second
	// stopPatience is above the executor's own time to drain.
	stopPatience = 60 * time.Second

	updates = "signalr:updates"
	group   = "executor-group"

	// canary begins every task, payload, answer and secret of these tests. No log
	// may ever contain it.
	canary = "CANARY"
	apiKey = canary + "-key"
)

// bundle is the world of one test: a Redis, an LLM stand-in, a result store and
// a Temporal namespace of its own, and the executors the test starts.
type bundle struct {
	t         *testing.T
	dir       string
	namespace string
	temporal  client.Client
	redis     *redis.Client
	redisAddr string
	llm       *stub
	executors int
}

func newBundle(t *testing.T) *bundle {
	t.Helper()
	select {
	case namespace := <-shared.free:
		return newBundleIn(t, namespace)
	default:
		t.Fatal("more tests than namespaces: raise the constant")
		return nil
	}
}

func newBundleIn(t *testing.T, namespace string) *bundle {
	t.Helper()
	b := &bundle{t: t, dir: t.TempDir(), namespace: namespace}

	server, err := redisd.Start(t.Context(), redisd.Config{Port: b.port(), LogFile: filepath.Join(b.dir, "redis.log")})
	require.NoError(t, err)
	require.False(t, server.Substitute(), "these tests need redis-server on PATH")
	t.Cleanup(func() { require.NoError(t, server.Stop(context.WithoutCancel(t.Context()))) })
	b.redisAddr = server.Address()
	b.redis = redis.NewClient(&redis.Options{Addr: b.redisAddr})
	t.Cleanup(func() { require.NoError(t, b.redis.Close()) })

	b.temporal, err = client.Dial(client.Options{HostPort: shared.temporal.Address(), Namespace: namespace, Logger: silent{}})
	require.NoError(t, err)
	t.Cleanup(b.temporal.Close)

	address := proc.Loopback(b.port())
	process := b.spawn("mock-llm", nil, "mock-llm", "--addr", address)
	b.llm = &stub{b: b, url: "http://" + address}
	require.NoError(t, process.WaitReady(t.Context(), proc.HTTPReady(b.llm.url+"/_/stats")))
	b.llm.script(map[string]any{"api_key": apiKey})
	return b
}

func (b *bundle) port() int {
	b.t.Helper()
	port, err := shared.ports.Free(b.t.Context())
	require.NoError(b.t, err)
	return port
}

// env is a complete environment for an executor of this bundle: nothing of the
// developer's own settings reaches it.
func (b *bundle) env(extra map[string]string) []string {
	settings := map[string]string{
		"PATH":                 os.Getenv("PATH"),
		"HOME":                 b.dir,
		"TEMPORAL_ADDRESS":     shared.temporal.Address(),
		"TEMPORAL_NAMESPACE":   b.namespace,
		"TEMPORAL_CONFIG_FILE": os.DevNull,
		"REDIS_CONNECTION":     b.redisAddr,
		"DATABASE_URL":         "sqlite://" + b.database(),
		"LOG_LEVEL":            "debug", // the level at which content would most likely be logged
		"LLM_API_KEY":          apiKey,
		"DRAIN_TIMEOUT":        "30s",
	}
	if b.llm != nil {
		settings["LLM_ENDPOINT"] = b.llm.url + "/v1/chat/completions"
	}
	maps.Copy(settings, extra)
	return proc.Environ(func(string) bool { return false }, settings)
}

// start runs the executor with these arguments and waits until it is ready. At
// the end of the test it is stopped, unless it has ended before, and must exit
// with 0.
func (b *bundle) start(env map[string]string, args ...string) *proc.Process {
	b.t.Helper()
	p := b.launch(env, args...)
	b.ready(p)
	return p.Process
}

// executor is a started executor and where it tells whether it is ready.
type executor struct {
	*proc.Process
	port   int
	health string
}

func (b *bundle) launch(env map[string]string, args ...string) executor {
	b.t.Helper()
	port := b.port()
	address := proc.Loopback(port)
	settings := map[string]string{"HTTP_ADDR": address}
	maps.Copy(settings, env)
	b.executors++
	p := b.spawn(fmt.Sprintf("executor-%d-%s", b.executors, args[0]), settings, args...)
	return executor{Process: p, port: port, health: "http://" + address}
}

func (b *bundle) ready(executors ...executor) {
	b.t.Helper()
	for _, e := range executors {
		ctx, cancel := context.WithTimeout(b.t.Context(), patience)
		defer cancel()
		err := e.WaitReady(ctx, proc.HTTPReady(e.health+"/readyz"))
		require.NoError(b.t, err, "%s: %s listens on its address", e.Name(), proc.Holder(e.port))
	}
}

func (b *bundle) spawn(name string, env map[string]string, args ...string) *proc.Process {
	b.t.Helper()
	p, err := proc.Start(proc.Spec{
		Name: name, Path: shared.binary, Args: args, Env: b.env(env), LogFile: filepath.Join(b.dir, name+".log"),
	})
	require.NoError(b.t, err)
	b.t.Cleanup(func() { b.finish(p) })
	return p
}

// finish stops a process and reads its log: whatever was tested, it must have
// kept every content to itself and had no data race.
func (b *bundle) finish(p *proc.Process) {
	t := b.t
	var stopErr error
	select {
	case <-p.Done(): // the test has ended it and looked at its exit code
	default:
		stopErr = p.Stop(context.WithoutCancel(t.Context()), stopPatience)
	}
	log := p.Log()
	for line := range strings.Lines(log) {
		if strings.Contains(line, canary) {
			t.Errorf("%s logs a job's content or a secret: %s", p.Name(), line)
		}
	}
	if _, race, found := strings.Cut(log, "WARNING: DATA RACE"); found {
		t.Errorf("%s has a data race: %s", p.Name(), race[:min(len(race), 4000)])
	}
	if stopErr != nil {
		t.Errorf("stop: %v", stopErr)
	}
	if t.Failed() {
		t.Logf("end of the log of %s:\n%s", p.Name(), p.LogTail(60))
	}
}

// stop ends an executor as an orchestrator does, and expects exit code 0.
func (b *bundle) stop(p *proc.Process) {
	b.t.Helper()
	require.NoError(b.t, p.Stop(b.t.Context(), stopPatience))
}

// wait polls a check until it succeeds, or fails the test with its last error.
func (b *bundle) wait(what string, check func(context.Context) error) {
	b.t.Helper()
	b.waitFor(patience, what, check)
}

func (b *bundle) waitFor(d time.Duration, what string, check func(context.Context) error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), d)
	defer cancel()
	require.NoError(b.t, proc.Wait(ctx, check), what)
}

// submit adds an entry to the role's stream and returns its id. Fields are names
// and values.
func (b *bundle) submit(role string, fields ...string) string {
	b.t.Helper()
	id, err := b.redis.XAdd(b.t.Context(), &redis.XAddArgs{Stream: "jobs:" + role, Values: fields}).Result()
	require.NoError(b.t, err)
	return id
}

// updatesOf are the updates of a job so far, oldest first.
func (b *bundle) updatesOf(ctx context.Context, jobID string) ([]map[string]any, error) {
	all, err := b.redis.XRange(ctx, updates, "-", "+").Result()
	if err != nil {
		return nil, err
	}
	var mine []map[string]any
	for _, m := range all {
		if m.Values["JobId"] == jobID {
			mine = append(mine, m.Values)
		}
	}
	return mine, nil
}

// update waits for the n-th update of a job (from 1) and returns it.
func (b *bundle) update(jobID string, n int) map[string]any {
	b.t.Helper()
	var found []map[string]any
	b.wait(fmt.Sprintf("update %d of job %s", n, jobID), func(ctx context.Context) (err error) {
		if found, err = b.updatesOf(ctx, jobID); err != nil {
			return err
		}
		if len(found) < n {
			return fmt.Errorf("%d updates so far", len(found))
		}
		return nil
	})
	return found[n-1]
}

// settled waits until nothing of a role's stream is pending and everything was
// read: all its jobs are acknowledged.
func (b *bundle) settled(role string) {
	b.t.Helper()
	b.wait("all entries of jobs:"+role+" acknowledged", func(ctx context.Context) error {
		groups, err := b.redis.XInfoGroups(ctx, "jobs:"+role).Result()
		if err != nil {
			return err
		}
		for _, g := range groups {
			if g.Name == group && (g.Pending != 0 || g.Lag != 0) {
				return fmt.Errorf("%d pending, %d unread", g.Pending, g.Lag)
			}
		}
		if len(groups) != 1 {
			return fmt.Errorf("%d groups", len(groups))
		}
		return nil
	})
}

// deadLetters of a role's stream, oldest first.
func (b *bundle) deadLetters(role string) []redis.XMessage {
	b.t.Helper()
	all, err := b.redis.XRange(b.t.Context(), "jobs:"+role+":dead", "-", "+").Result()
	require.NoError(b.t, err)
	return all
}

func (b *bundle) database() string { return filepath.Join(b.dir, "executor.db") }

// row returns the row of a job with all its columns, nil if there is none.
func (b *bundle) row(role, jobID string) map[string]any {
	b.t.Helper()
	rows := b.rows("role = ? AND job_id = ?", role, jobID)
	if len(rows) == 0 {
		return nil
	}
	return rows[0]
}

func (b *bundle) rows(where string, args ...any) []map[string]any {
	b.t.Helper()
	dsn := (&url.URL{Scheme: "file", Path: b.database(), RawQuery: "mode=ro&_pragma=busy_timeout(10000)"}).String()
	db, err := sql.Open("sqlite", dsn)
	require.NoError(b.t, err)
	defer func() { require.NoError(b.t, db.Close()) }()
	found, err := db.QueryContext(b.t.Context(), "SELECT * FROM executor_jobs WHERE "+where, args...) //nolint:gosec // G202: constants of these tests
	require.NoError(b.t, err)
	defer func() { require.NoError(b.t, found.Close()) }()
	names, err := found.Columns()
	require.NoError(b.t, err)
	var out []map[string]any
	for found.Next() {
		values := make([]any, len(names))
		targets := make([]any, len(names))
		for i := range values {
			targets[i] = &values[i]
		}
		require.NoError(b.t, found.Scan(targets...))
		row := map[string]any{}
		for i, name := range names {
			row[name] = values[i]
		}
		out = append(out, row)
	}
	require.NoError(b.t, found.Err())
	return out
}

// run waits until the latest run of a workflow has the wanted status.
func (b *bundle) run(workflowID, status string) *workflowpb.WorkflowExecutionInfo {
	b.t.Helper()
	var info *workflowpb.WorkflowExecutionInfo
	b.wait("run of "+workflowID+" is "+status, func(ctx context.Context) error {
		d, err := b.temporal.DescribeWorkflowExecution(ctx, workflowID, "")
		if err != nil {
			return err
		}
		info = d.GetWorkflowExecutionInfo()
		if got := info.GetStatus().String(); got != status {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	return info
}

func (b *bundle) noRun(workflowID string) {
	b.t.Helper()
	_, err := b.temporal.DescribeWorkflowExecution(b.t.Context(), workflowID, "")
	var notFound *serviceerror.NotFound
	require.ErrorAs(b.t, err, &notFound)
}

// visible waits until a visibility query finds exactly n runs. Visibility is
// written after the fact.
func (b *bundle) visible(n int64, query string) {
	b.t.Helper()
	b.wait(fmt.Sprintf("%d runs with %s", n, query), func(ctx context.Context) error {
		found, err := b.temporal.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: query})
		if err != nil {
			return err
		}
		if found.GetCount() != n {
			return fmt.Errorf("%d found", found.GetCount())
		}
		return nil
	})
}

// text is a canary of its own for a test's content.
func text(what string) string { return canary + "-" + what + "-" + uuid.NewString()[:8] }

// messageID is the documented MessageId of an effect: UUIDv5 in the namespace
// UUIDv5(URL, project address).
func messageID(effect string) string {
	project := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/nodpt/executor"))
	return uuid.NewSHA1(project, []byte(effect)).String()
}

// stub is the LLM stand-in, seen through its admin API.
type stub struct {
	b   *bundle
	url string
}

type stubStats struct {
	Calls             int            `json:"calls"`
	Running           int            `json:"running"`
	MaxRunning        int            `json:"max_running"`
	ByPrompt          map[string]int `json:"by_prompt"`
	ByModel           map[string]int `json:"by_model"`
	ByStatus          map[int]int    `json:"by_status"`
	MaxRunningByModel map[string]int `json:"max_running_by_model"`
}

func (s *stub) do(ctx context.Context, method, path string, body any) (stubStats, error) {
	var out stubStats
	text, err := json.Marshal(body)
	if err != nil {
		return out, err
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(text))
	if err != nil {
		return out, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err = io.ReadAll(resp.Body)
	if err != nil {
		return out, err
	}
	if resp.StatusCode != http.StatusOK {
		return out, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	if path == "/_/script" {
		return out, nil // answers with the script
	}
	return out, json.Unmarshal(text, &out)
}

func (s *stub) stats() stubStats {
	s.b.t.Helper()
	st, err := s.do(s.b.t.Context(), http.MethodGet, "/_/stats", nil)
	require.NoError(s.b.t, err)
	return st
}

// script changes the settings given.
func (s *stub) script(settings map[string]any) {
	s.b.t.Helper()
	_, err := s.do(s.b.t.Context(), http.MethodPost, "/_/script", settings)
	require.NoError(s.b.t, err)
}

// release answers the calls that hang now.
func (s *stub) release() {
	s.b.t.Helper()
	_, err := s.do(s.b.t.Context(), http.MethodPost, "/_/release", nil)
	require.NoError(s.b.t, err)
}

// await waits until the counters meet a condition.
func (s *stub) await(what string, condition func(stubStats) bool) {
	s.b.t.Helper()
	s.b.wait(what, func(ctx context.Context) error {
		st, err := s.do(ctx, http.MethodGet, "/_/stats", nil)
		if err != nil {
			return err
		}
		if !condition(st) {
			return fmt.Errorf("counters are %+v", st)
		}
		return nil
	})
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// errorPayload decodes the Payload of an error update.
func errorPayload(t *testing.T, update map[string]any) map[string]string {
	t.Helper()
	payload, ok := update["Payload"].(string)
	require.True(t, ok)
	var out map[string]string
	require.NoError(t, json.Unmarshal([]byte(payload), &out))
	return out
}

// silent drops the SDK's log.
type silent struct{}

func (silent) Debug(string, ...any) {}
func (silent) Info(string, ...any)  {}
func (silent) Warn(string, ...any)  {}
func (silent) Error(string, ...any) {}
