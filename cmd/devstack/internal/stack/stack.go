// Package stack puts the development stack together: Temporal with its Web UI,
// Redis, an LLM stand-in and the executor, each started when what it needs is
// there and stopped in the opposite order. It exists apart from the command so
// that the end-to-end tests start the very same stack.
package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/redisd"
	"github.com/nodpt/executor/cmd/devstack/internal/temporald"
	"github.com/nodpt/executor/cmd/devstack/internal/uiserver"
)

// Options of a stack. Ports are on 127.0.0.1.
type Options struct {
	// Data is the directory of all state and logs. One stack at a time uses it.
	Data string
	// Executor is the path of the executor's binary. Unused by TemporalOnly.
	Executor string
	// LLMEndpoint is a real LLM to use; empty: the executor's own stand-in runs.
	LLMEndpoint string

	TemporalPort, UIPort, RedisPort, HTTPPort int

	// TemporalPostgres is the URL of Temporal's database on a Postgres server, and
	// TemporalShards the number of its history shards, as in temporald.Config.
	// Empty: a SQLite file in Data.
	TemporalPostgres string
	TemporalShards   int

	// TemporalOnly starts nothing but Temporal and its Web UI.
	TemporalOnly bool
	// Strict makes a busy port an error. Otherwise another one is used.
	Strict bool
	// Ports hands out ports that nobody asked for by number; nil: one of its own.
	Ports *proc.Ports `json:"-"`
	// Progress receives a line for each step.
	Progress io.Writer `json:"-"`
}

// Limits of the demo's executor, as in the README of the executor it replaces.
const (
	maxManager   = "5"
	maxInspector = "10"
	maxAgent     = "20"
	maxTotal     = "50"
)

const (
	startPatience = 60 * time.Second
	// drainTimeout is how long running LLM calls may finish after Ctrl-C; stopGrace
	// is when the executor is killed instead.
	drainTimeout = "10s"
	stopGrace    = 30 * time.Second
)

// Stack is a running stack.
type Stack struct {
	opts     Options
	lock     *proc.Lock
	temporal *temporald.Server
	ui       *uiserver.Server
	redis    *redisd.Server
	mock     *proc.Process
	executor *proc.Process

	llmEndpoint string
	httpAddress string

	progress sync.Mutex // parts start at the same time
}

// Up starts a stack and returns when it accepts jobs. On failure it has stopped
// what it had started.
func Up(ctx context.Context, opts Options) (*Stack, error) {
	if opts.Ports == nil {
		opts.Ports = new(proc.Ports)
	}
	s := &Stack{opts: opts}
	if err := s.up(ctx); err != nil {
		return nil, errors.Join(err, s.Down(context.WithoutCancel(ctx)))
	}
	return s, nil
}

func (s *Stack) up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if !s.opts.TemporalOnly {
		if _, err := os.Stat(s.opts.Executor); err != nil {
			return fmt.Errorf("the executor's binary: %w: run `make build`, or pass --executor", err)
		}
	}
	data, err := filepath.Abs(s.opts.Data)
	if err != nil {
		return err
	}
	s.opts.Data = data
	if s.lock, err = proc.LockDir(data); err != nil {
		return err
	}
	if err := os.MkdirAll(s.path("logs"), 0o750); err != nil {
		return err
	}

	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return s.startTemporal(ctx) })
	if !s.opts.TemporalOnly {
		parts.Go(func() error { return s.startRedis(ctx) })
		parts.Go(func() error { return s.startLLM(ctx) })
	}
	return parts.Wait()
}

// StartExecutor runs the executor on the stack and returns when it is ready.
func (s *Stack) StartExecutor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	began := time.Now()
	port, err := s.port(ctx, s.opts.HTTPPort, "the executor's metrics and health")
	if err != nil {
		return err
	}
	s.httpAddress = proc.Loopback(port)
	if err := s.writeEnv(); err != nil {
		return err
	}
	s.executor, err = proc.Start(proc.Spec{
		Name: "executor", Path: s.opts.Executor, Args: []string{"run"},
		Env: s.executorEnv(), LogFile: s.log("executor"),
	})
	if err != nil {
		return err
	}
	if err := s.executor.WaitReady(ctx, proc.HTTPReady("http://"+s.httpAddress+"/readyz")); err != nil {
		return err
	}
	s.say("executor", "http://"+s.httpAddress+"/metrics", began)
	return nil
}

func (s *Stack) startTemporal(ctx context.Context) error {
	began := time.Now()
	port, err := s.port(ctx, s.opts.TemporalPort, "the Temporal server")
	if err != nil {
		return err
	}
	cfg := temporald.Config{
		Port: port, Postgres: s.opts.TemporalPostgres, Shards: s.opts.TemporalShards, LogFile: s.log("temporal"),
	}
	if cfg.Postgres == "" {
		cfg.Database = s.path("temporal.db")
	}
	s.temporal, err = temporald.Start(ctx, cfg, s.opts.Ports)
	if err != nil {
		return err
	}
	s.say("Temporal server", s.temporal.Address(), began)

	began = time.Now()
	if port, err = s.port(ctx, s.opts.UIPort, "the Web UI"); err != nil {
		return err
	}
	if s.ui, err = uiserver.Start(ctx, port, s.temporal.Address(), temporald.DefaultNamespace); err != nil {
		return err
	}
	s.say("Temporal Web UI", s.ui.URL(), began)
	return nil
}

func (s *Stack) startRedis(ctx context.Context) error {
	began := time.Now()
	port, err := s.port(ctx, s.opts.RedisPort, "Redis")
	if err != nil {
		return err
	}
	s.redis, err = redisd.Start(ctx, redisd.Config{Port: port, Dir: s.path("redis"), LogFile: s.log("redis")})
	if err != nil {
		return err
	}
	s.say("Redis", s.redis.Address(), began)
	if s.redis.Substitute() {
		s.sayf("no redis-server on PATH: miniredis stands in, inside this process, and forgets everything at the end")
	}
	return nil
}

func (s *Stack) startLLM(ctx context.Context) error {
	if s.opts.LLMEndpoint != "" {
		s.llmEndpoint = s.opts.LLMEndpoint
		s.sayf("LLM_ENDPOINT is set: jobs go to a real LLM")
		return nil
	}
	began := time.Now()
	port, err := s.opts.Ports.Free(ctx)
	if err != nil {
		return err
	}
	address := proc.Loopback(port)
	s.mock, err = proc.Start(proc.Spec{
		Name: "mock-llm", Path: s.opts.Executor, Args: []string{"mock-llm", "--addr", address},
		Env: os.Environ(), LogFile: s.log("mock-llm"),
	})
	if err != nil {
		return err
	}
	if err := s.mock.WaitReady(ctx, proc.HTTPReady("http://"+address+"/_/stats")); err != nil {
		return err
	}
	s.llmEndpoint = "http://" + address + "/v1/chat/completions"
	s.say("LLM stand-in", s.llmEndpoint, began)
	return nil
}

// EnvFile is a shell script that sets the environment of this stack's executor,
// for commands, and for more executors, which need another HTTP_ADDR.
func (s *Stack) EnvFile() string { return s.path("env") }

func (s *Stack) writeEnv() error {
	settings := s.settings()
	var script strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&script, "export %s='%s'\n", name, strings.ReplaceAll(settings[name], "'", `'\''`))
	}
	if err := os.WriteFile(s.EnvFile(), []byte(script.String()), 0o600); err != nil {
		return fmt.Errorf("write the environment of the stack: %w", err)
	}
	return nil
}

// settings are those that tie an executor to this stack.
func (s *Stack) settings() map[string]string {
	settings := map[string]string{
		"TEMPORAL_ADDRESS":   s.temporal.Address(),
		"TEMPORAL_NAMESPACE": temporald.DefaultNamespace,
		// Not the developer's own profile, which may name another server's TLS.
		"TEMPORAL_CONFIG_FILE": os.DevNull,
		"TEMPORAL_UI_URL":      s.ui.URL(),
		"REDIS_CONNECTION":     s.redis.Address(),
		"DATABASE_URL":         "sqlite://" + s.Database(),
		"LLM_ENDPOINT":         s.llmEndpoint,
		"HTTP_ADDR":            s.httpAddress,
	}
	for name, value := range map[string]string{
		"MAX_MANAGER": maxManager, "MAX_INSPECTOR": maxInspector, "MAX_AGENT": maxAgent, "MAX_TOTAL": maxTotal,
		"DRAIN_TIMEOUT": drainTimeout, "LOG_FORMAT": "text",
	} {
		if os.Getenv(name) == "" {
			settings[name] = value
		}
	}
	return settings
}

// executorEnv is the environment of the executor: the developer's own settings
// pass through, save those that would lead it away from this stack.
func (s *Stack) executorEnv() []string {
	return proc.Environ(func(name string) bool {
		switch name {
		case "REDIS_URL", "REDIS_URL_FILE", "REDIS_CONNECTION_FILE", "REDIS_CA_FILE", "DATABASE_URL_FILE", "STOP_GRACE":
			return false
		}
		return !strings.HasPrefix(name, "TEMPORAL_") && !strings.HasPrefix(name, "DB_")
	}, s.settings())
}

// port returns the wanted port, or another one if that is busy and Strict is off.
func (s *Stack) port(ctx context.Context, want int, what string) (int, error) {
	port, notice, err := s.opts.Ports.Prefer(ctx, want, what)
	switch {
	case err != nil:
		return 0, err
	case notice != "" && s.opts.Strict:
		holder := proc.Holder(want)
		if holder != "" {
			holder = " (" + holder + ")"
		}
		return 0, fmt.Errorf("%s: port %d is busy%s", what, want, holder)
	case notice != "":
		s.sayf("%s", notice)
	}
	return port, nil
}

// Down stops the stack in order: the executor first, so that it can finish its
// books, and what it needs after it. It is harmless on a stack half started.
func (s *Stack) Down(ctx context.Context) error {
	var errs []error
	errs = append(errs, stop(ctx, s.executor))
	var rest errgroup.Group // collects the first error only, which is enough here
	rest.Go(func() error { return stop(ctx, s.mock) })
	if s.redis != nil {
		rest.Go(func() error { return s.redis.Stop(ctx) })
	}
	rest.Go(func() error {
		if s.ui != nil {
			s.ui.Stop()
		}
		if s.temporal != nil {
			return s.temporal.Stop()
		}
		return nil
	})
	errs = append(errs, rest.Wait())
	if s.lock != nil {
		errs = append(errs, s.lock.Unlock())
	}
	return errors.Join(errs...)
}

// stop ends a child. One that has ended by itself is nothing to report here:
// whoever waited for it did.
func stop(ctx context.Context, p *proc.Process) error {
	if p == nil {
		return nil
	}
	select {
	case <-p.Done():
		return nil
	default:
		return p.Stop(ctx, stopGrace)
	}
}

// Wait returns nil when ctx ends, and an error when a part of the stack ends by
// itself.
func (s *Stack) Wait(ctx context.Context) error {
	failed := make(chan *proc.Process, 3)
	watch := func(p *proc.Process) {
		if p == nil {
			return
		}
		go func() {
			select {
			case <-p.Done():
				failed <- p
			case <-ctx.Done():
			}
		}()
	}
	watch(s.executor)
	watch(s.mock)
	if s.redis != nil {
		watch(s.redis.Process())
	}
	select {
	case <-ctx.Done():
		return nil
	case p := <-failed:
		return fmt.Errorf("%s ended by itself; last lines of %s:\n%s", p.Name(), s.path("logs"), p.LogTail(20))
	}
}

// RedisAddress is the host:port of Redis.
func (s *Stack) RedisAddress() string { return s.redis.Address() }

// TemporalAddress is the host:port of Temporal's frontend.
func (s *Stack) TemporalAddress() string { return s.temporal.Address() }

// UI is the address of the Web UI.
func (s *Stack) UI() string { return s.ui.URL() }

// Database is the path of the executor's result store.
func (s *Stack) Database() string { return s.path("executor.db") }

// HTTPAddress is the host:port of the executor's metrics and health.
func (s *Stack) HTTPAddress() string { return s.httpAddress }

// LLM is the endpoint the executor calls; scripted says that it is the stand-in,
// which obeys prompts that begin with an exclamation mark.
func (s *Stack) LLM() (endpoint string, scripted bool) { return s.llmEndpoint, s.mock != nil }

// Executor is the path of the executor's binary.
func (s *Stack) Executor() string { return s.opts.Executor }

// Logs is the directory of all log files.
func (s *Stack) Logs() string { return s.path("logs") }

// ExecutorLog is the end of what the executor has logged.
func (s *Stack) ExecutorLog(lines int) string { return s.executor.LogTail(lines) }

// WorkflowURL is where the Web UI shows the latest run of a workflow.
func (s *Stack) WorkflowURL(workflowID string) string {
	return s.ui.URL() + "/namespaces/" + temporald.DefaultNamespace + "/workflows/" + url.PathEscape(workflowID)
}

func (s *Stack) path(name string) string { return filepath.Join(s.opts.Data, name) }
func (s *Stack) log(name string) string  { return filepath.Join(s.opts.Data, "logs", name+".log") }

func (s *Stack) say(what, address string, began time.Time) {
	s.sayf("%-16s %-44s up in %.1f s", what, address, time.Since(began).Seconds())
}

func (s *Stack) sayf(format string, args ...any) {
	s.progress.Lock()
	defer s.progress.Unlock()
	_, _ = fmt.Fprintf(s.opts.Progress, format+"\n", args...)
}
