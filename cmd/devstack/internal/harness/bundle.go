// Package harness is the world that the end-to-end tests and the fault suite put
// around the executor: real processes on loopback, an LLM stand-in that counts,
// and a look at everything from the outside. It exists so that both drive the
// built binary in the same way, and hold its logs to the same rules.
package harness

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver of its PostgreSQL
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	_ "modernc.org/sqlite" // the driver of the executor's result store

	"github.com/nodpt/executor/cmd/devstack/internal/postgresd"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/redisd"
)

const (
	// Patience is how long a test waits for what must happen. It only ever passes
	// when a test fails, so it is generous to slow machines.
	Patience = 90 * time.Second
	// stopPatience is above the executor's own time to drain.
	stopPatience = 60 * time.Second

	// Updates is the stream of results, Group the consumer group of the bridges.
	Updates = "signalr:updates"
	Group   = "executor-group"

	// Canary begins every task, payload, answer and secret of these tests. No log
	// may ever contain it.
	Canary = "CANARY"
	// APIKey is what the LLM stand-in wants to be shown.
	APIKey = Canary + "-key"
)

// Suite is what the tests of a package share.
type Suite struct {
	Binary string // the executor to test
	Ports  *proc.Ports
}

// Options of a bundle.
type Options struct {
	// Temporal is the address of the server that the test and the executors use;
	// Namespace is theirs alone, because all executors poll the same task queues.
	Temporal, Namespace string
	// Durable makes Redis keep its data in an append-only file; RedisArgs are more
	// options of its.
	Durable   bool
	RedisArgs []string
	// Postgres keeps the rows in a PostgreSQL server instead of an SQLite file.
	Postgres bool
	// Environ overrides settings of every executor of the bundle.
	Environ map[string]string
}

// Bundle is the world of one test: a Redis, an LLM stand-in and a result store of
// its own, and the executors the test starts.
type Bundle struct {
	T           *testing.T
	Suite       Suite
	Options     Options
	Dir         string
	Temporal    client.Client
	Redis       *redis.Client
	RedisServer *redisd.Server
	LLM         *Stub
	// Postgres is nil for SQLite.
	Postgres  *postgresd.Server
	executors int
	// redisAddress is where Redis connects to: the address of the server in use;
	// redisConns are the connections it has made.
	redisAddress atomic.Value
	redisConns   sync.Map
}

// New builds a bundle that ends with the test.
func New(t *testing.T, suite Suite, opts Options) *Bundle {
	t.Helper()
	b := &Bundle{T: t, Suite: suite, Options: opts, Dir: t.TempDir()}
	t.Cleanup(b.keep)

	b.startRedis()

	var err error
	b.Temporal, err = client.NewLazyClient(client.Options{HostPort: opts.Temporal, Namespace: opts.Namespace, Logger: Silent{}})
	require.NoError(t, err)
	t.Cleanup(b.Temporal.Close)

	if opts.Postgres {
		b.Postgres, err = postgresd.Start(t.Context(), postgresd.Config{
			Port: b.Port(), Dir: filepath.Join(b.Dir, "postgres"), LogFile: filepath.Join(b.Dir, "postgres.log"),
		})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Postgres.Stop(context.WithoutCancel(t.Context()))) })
	}

	address := proc.Loopback(b.Port())
	process := b.Spawn("mock-llm", nil, "mock-llm", "--addr", address)
	b.LLM = &Stub{b: b, Address: address, Process: process}
	require.NoError(t, process.WaitReady(t.Context(), proc.HTTPReady(b.LLM.url()+"/_/stats")))
	// Answers are content that no log may show, like everything else.
	b.LLM.Script(map[string]any{"api_key": APIKey, "answer": Canary + "-answer"})
	return b
}

// keepVariable names a directory to which everything a failed test has left
// behind is copied.
const keepVariable = "DEVSTACK_TEST_KEEP"

func (b *Bundle) keep() {
	dir := os.Getenv(keepVariable)
	if dir == "" || !b.T.Failed() {
		return
	}
	dir = filepath.Join(dir, strings.ReplaceAll(b.T.Name(), "/", "_"))
	if err := os.CopyFS(dir, os.DirFS(b.Dir)); err != nil {
		b.T.Logf("keep %s: %v", b.Dir, err)
	}
}

// Port is a free loopback port.
func (b *Bundle) Port() int {
	b.T.Helper()
	port, err := b.Suite.Ports.Free(b.T.Context())
	require.NoError(b.T, err)
	return port
}

// Env is a complete environment for an executor of this bundle: nothing of the
// developer's own settings reaches it.
func (b *Bundle) Env(extra map[string]string) []string {
	settings := map[string]string{
		"PATH":                 os.Getenv("PATH"),
		"HOME":                 b.Dir,
		"TEMPORAL_ADDRESS":     b.Options.Temporal,
		"TEMPORAL_NAMESPACE":   b.Options.Namespace,
		"TEMPORAL_CONFIG_FILE": os.DevNull,
		"REDIS_CONNECTION":     b.RedisConnection(b.RedisServer.Address()),
		"DATABASE_URL":         "sqlite://" + b.Database(),
		"LOG_LEVEL":            "debug", // the level at which content would most likely be logged
		"LLM_API_KEY":          APIKey,
		"DRAIN_TIMEOUT":        "30s",
	}
	if b.LLM != nil {
		settings["LLM_ENDPOINT"] = b.LLM.url() + "/v1/chat/completions"
	}
	if b.Postgres != nil {
		settings["DATABASE_URL"] = b.Postgres.URL(b.Postgres.Address())
	}
	maps.Copy(settings, b.Options.Environ)
	maps.Copy(settings, extra)
	return proc.Environ(func(string) bool { return false }, settings)
}

// Start runs the executor with these arguments and waits until it is ready. At
// the end of the test it is stopped, unless it has ended before, and must exit
// with 0.
func (b *Bundle) Start(env map[string]string, args ...string) *proc.Process {
	b.T.Helper()
	p := b.Launch(env, args...)
	b.Ready(p)
	return p.Process
}

// Executor is a started executor and where it tells whether it is ready.
type Executor struct {
	*proc.Process
	Port   int    // of its metrics and health
	Health string // http://127.0.0.1:port
}

// Launch runs the executor with these arguments, as Start does, and does not wait.
func (b *Bundle) Launch(env map[string]string, args ...string) Executor {
	b.T.Helper()
	port := b.Port()
	address := proc.Loopback(port)
	settings := map[string]string{"HTTP_ADDR": address}
	maps.Copy(settings, env)
	b.executors++
	p := b.Spawn(fmt.Sprintf("executor-%d-%s", b.executors, args[0]), settings, args...)
	return Executor{Process: p, Port: port, Health: "http://" + address}
}

// Ready waits until executors say that they are ready.
func (b *Bundle) Ready(executors ...Executor) {
	b.T.Helper()
	for _, e := range executors {
		ctx, cancel := context.WithTimeout(b.T.Context(), Patience)
		defer cancel()
		err := e.WaitReady(ctx, proc.HTTPReady(e.Health+"/readyz"))
		require.NoError(b.T, err, "%s: %s listens on its address", e.Name(), proc.Holder(e.Port))
	}
}

// Spawn runs the executor with these arguments. At the end of the test it is
// stopped, unless it has ended before, and its log is read.
func (b *Bundle) Spawn(name string, env map[string]string, args ...string) *proc.Process {
	b.T.Helper()
	p, err := proc.Start(proc.Spec{
		Name: name, Path: b.Suite.Binary, Args: args, Env: b.Env(env), LogFile: filepath.Join(b.Dir, name+".log"),
	})
	require.NoError(b.T, err)
	b.T.Cleanup(func() { b.finish(p) })
	return p
}

// finish stops a process and reads its log: whatever was tested, it must have
// kept every content to itself and had no data race.
func (b *Bundle) finish(p *proc.Process) {
	t := b.T
	var stopErr error
	select {
	case <-p.Done(): // the test has ended it and looked at its exit code
	default:
		_ = p.Signal(syscall.SIGCONT) // a test that failed may have left it frozen
		stopErr = p.Stop(context.WithoutCancel(t.Context()), stopPatience)
	}
	log := p.Log()
	for line := range strings.Lines(log) {
		if strings.Contains(line, Canary) {
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

// Stop ends an executor as an orchestrator does, and expects exit code 0.
func (b *Bundle) Stop(p *proc.Process) {
	b.T.Helper()
	require.NoError(b.T, p.Stop(b.T.Context(), stopPatience))
}

// Wait polls a check until it succeeds, or fails the test with its last error.
func (b *Bundle) Wait(what string, check func(context.Context) error) {
	b.T.Helper()
	b.WaitFor(Patience, what, check)
}

// WaitFor is Wait with another patience.
func (b *Bundle) WaitFor(d time.Duration, what string, check func(context.Context) error) {
	b.T.Helper()
	ctx, cancel := context.WithTimeout(b.T.Context(), d)
	defer cancel()
	require.NoError(b.T, proc.Wait(ctx, check), what)
}

// Submit adds an entry to the role's stream and returns its id. Fields are names
// and values.
func (b *Bundle) Submit(role string, fields ...string) string {
	b.T.Helper()
	id, err := b.Redis.XAdd(b.T.Context(), &redis.XAddArgs{Stream: "jobs:" + role, Values: fields}).Result()
	require.NoError(b.T, err)
	return id
}

// UpdatesOf are the updates of a job so far, oldest first.
func (b *Bundle) UpdatesOf(ctx context.Context, jobID string) ([]map[string]any, error) {
	all, err := b.Redis.XRange(ctx, Updates, "-", "+").Result()
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

// Update waits for the n-th update of a job (from 1) and returns it.
func (b *Bundle) Update(jobID string, n int) map[string]any {
	b.T.Helper()
	var found []map[string]any
	b.Wait(fmt.Sprintf("update %d of job %s", n, jobID), func(ctx context.Context) (err error) {
		if found, err = b.UpdatesOf(ctx, jobID); err != nil {
			return err
		}
		if len(found) < n {
			return fmt.Errorf("%d updates so far", len(found))
		}
		return nil
	})
	return found[n-1]
}

// Settled waits until nothing of a role's stream is pending and everything was
// read: all its jobs are acknowledged.
func (b *Bundle) Settled(role string) {
	b.T.Helper()
	b.Wait("all entries of jobs:"+role+" acknowledged", func(ctx context.Context) error {
		groups, err := b.Redis.XInfoGroups(ctx, "jobs:"+role).Result()
		if err != nil {
			return err
		}
		for _, g := range groups {
			if g.Name == Group && (g.Pending != 0 || g.Lag != 0) {
				return fmt.Errorf("%d pending, %d unread", g.Pending, g.Lag)
			}
		}
		if len(groups) != 1 {
			return fmt.Errorf("%d groups", len(groups))
		}
		return nil
	})
}

// DeadLetters of a role's stream, oldest first.
func (b *Bundle) DeadLetters(role string) []redis.XMessage {
	b.T.Helper()
	all, err := b.Redis.XRange(b.T.Context(), "jobs:"+role+":dead", "-", "+").Result()
	require.NoError(b.T, err)
	return all
}

// Database is the path of the result store.
func (b *Bundle) Database() string { return filepath.Join(b.Dir, "executor.db") }

// Row returns the row of a job with all its columns, nil if there is none.
func (b *Bundle) Row(role, jobID string) map[string]any {
	b.T.Helper()
	rows := b.Rows("role = ? AND job_id = ?", role, jobID)
	if len(rows) == 0 {
		return nil
	}
	return rows[0]
}

// Rows returns the rows that meet a condition, with all their columns.
func (b *Bundle) Rows(where string, args ...any) []map[string]any {
	b.T.Helper()
	rows, err := b.QueryRows(b.T.Context(), "SELECT * FROM executor_jobs WHERE "+where, args...)
	require.NoError(b.T, err)
	return rows
}

// QueryRows runs a query, with question marks for its arguments, on the result
// store, beside the executors' own connections.
func (b *Bundle) QueryRows(ctx context.Context, query string, args ...any) (_ []map[string]any, err error) {
	db, err := b.openStore()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if b.Postgres != nil {
		for i := range args {
			query = strings.Replace(query, "?", "$"+strconv.Itoa(i+1), 1)
		}
	}
	found, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	names, err := found.Columns()
	if err != nil {
		return nil, err
	}
	var out []map[string]any
	for found.Next() {
		values := make([]any, len(names))
		targets := make([]any, len(names))
		for i := range values {
			targets[i] = &values[i]
		}
		if err := found.Scan(targets...); err != nil {
			return nil, err
		}
		row := map[string]any{}
		for i, name := range names {
			row[name] = values[i]
		}
		out = append(out, row)
	}
	return out, found.Err()
}

func (b *Bundle) openStore() (*sql.DB, error) {
	if b.Postgres != nil {
		return sql.Open("pgx", b.Postgres.URL(b.Postgres.Address()))
	}
	dsn := (&url.URL{Scheme: "file", Path: b.Database(), RawQuery: "mode=ro&_pragma=busy_timeout(10000)"}).String()
	return sql.Open("sqlite", dsn)
}

// Run waits until the latest run of a workflow has the wanted status.
func (b *Bundle) Run(workflowID, status string) *workflowpb.WorkflowExecutionInfo {
	b.T.Helper()
	var info *workflowpb.WorkflowExecutionInfo
	b.Wait("run of "+workflowID+" is "+status, func(ctx context.Context) error {
		d, err := b.Temporal.DescribeWorkflowExecution(ctx, workflowID, "")
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

// NoRun expects that a workflow id was never used.
func (b *Bundle) NoRun(workflowID string) {
	b.T.Helper()
	_, err := b.Temporal.DescribeWorkflowExecution(b.T.Context(), workflowID, "")
	var notFound *serviceerror.NotFound
	require.ErrorAs(b.T, err, &notFound)
}

// Visible waits until a visibility query finds exactly n runs. Visibility is
// written after the fact.
func (b *Bundle) Visible(n int64, query string) {
	b.T.Helper()
	b.Wait(fmt.Sprintf("%d runs with %s", n, query), func(ctx context.Context) error {
		found, err := b.Temporal.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: query})
		if err != nil {
			return err
		}
		if found.GetCount() != n {
			return fmt.Errorf("%d found", found.GetCount())
		}
		return nil
	})
}

// Text is a canary of its own for a test's content.
func Text(what string) string { return Canary + "-" + what + "-" + uuid.NewString()[:8] }

// MessageID is the documented MessageId of an effect: UUIDv5 in the namespace
// UUIDv5(URL, project address).
func MessageID(effect string) string {
	project := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/nodpt/executor"))
	return uuid.NewSHA1(project, []byte(effect)).String()
}
