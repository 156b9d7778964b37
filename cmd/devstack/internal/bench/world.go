package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"golang.org/x/sync/errgroup"

	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
	"github.com/nodpt/executor/cmd/devstack/internal/postgresd"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/redisd"
)

// Options of a run.
type Options struct {
	// Executor and Devstack are the built binaries to measure and to serve
	// Temporal; Self is the benchmark's own, which plays the other designs.
	Executor, Devstack, Self string
	// Data is a directory for all state and logs; what is in it is removed first.
	Data string
	// Postgres lets Temporal keep its state there instead of in an SQLite file.
	Postgres bool
	// Shards is the number of Temporal's history shards in PostgreSQL; 0 is 4, the
	// devstack's default.
	Shards int
	// Progress receives a line for each thing measured.
	Progress io.Writer
	// Keep, if set, receives what there is after each part of a run, which may take
	// an hour.
	Keep func(Report) error
}

const (
	namespace     = "default"
	startPatience = 2 * time.Minute
	stopGrace     = 30 * time.Second
)

// world is the set of servers that some measurements share. Every server is a
// process of its own, so that the time and the memory of each can be told apart.
type world struct {
	opts  Options
	dir   string
	ports *proc.Ports

	temporal client.Client
	address  string // of Temporal
	redis    *redis.Client
	server   *redisd.Server
	postgres *postgresd.Server
	llm      *stub

	mu      sync.Mutex
	parts   map[string]int // process id of each part that is measured
	started []*member      // in the order of their starts
	trips   trips
}

// Names of the parts that are no contestants.
const (
	Driver   = "driver"   // this process, which adds the jobs and reads the updates
	Temporal = "temporal" // the server
	Database = "postgres" // the server, where Temporal keeps its state in one
	Redis    = "redis"
	LLM      = "llm" // the stand-in
)

// servers are the parts that all contestants share.
func (w *world) servers() []string {
	if w.postgres != nil {
		return []string{Temporal, Database, Redis, LLM}
	}
	return []string{Temporal, Redis, LLM}
}

// member is a started contestant.
type member struct {
	*proc.Process
	name string
	http string // http://host:port
}

// newWorld starts the servers, in a directory of their own.
func newWorld(ctx context.Context, opts Options, name string) (_ *world, err error) {
	w := &world{opts: opts, dir: filepath.Join(opts.Data, name), ports: new(proc.Ports), parts: map[string]int{Driver: os.Getpid()}}
	if err := os.RemoveAll(w.dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(w.dir, 0o750); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close(context.WithoutCancel(ctx)))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.startTemporal(ctx) })
	group.Go(func() error { return w.startRedis(ctx) })
	group.Go(func() error { return w.startLLM(ctx) })
	return w, group.Wait()
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) part(name string, pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parts[name] = pid
}

func (w *world) startTemporal(ctx context.Context) error {
	port, err := w.ports.Free(ctx)
	if err != nil {
		return err
	}
	ui, err := w.ports.Free(ctx)
	if err != nil {
		return err
	}
	args := []string{"temporal", "--data", w.path("temporal"), "--temporal-port", strconv.Itoa(port), "--ui-port", strconv.Itoa(ui)}
	if w.opts.Postgres {
		database, err := w.startPostgres(ctx)
		if err != nil {
			return err
		}
		args = append(args, "--postgres", database)
		if w.opts.Shards > 0 {
			args = append(args, "--shards", strconv.Itoa(w.opts.Shards))
		}
	}
	w.address = proc.Loopback(port)
	if w.temporal, err = client.NewLazyClient(client.Options{HostPort: w.address, Logger: silent{}}); err != nil {
		return err
	}
	_, err = w.start(ctx, proc.Spec{Name: Temporal, Path: w.opts.Devstack, Args: args, Env: os.Environ()}, func(ctx context.Context) error {
		_, err := w.temporal.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: namespace})
		return err
	})
	return err
}

func (w *world) startPostgres(ctx context.Context) (url string, err error) {
	port, err := w.ports.Free(ctx)
	if err != nil {
		return "", err
	}
	w.postgres, err = postgresd.Start(ctx, postgresd.Config{Port: port, Dir: w.path("postgres"), LogFile: w.path("postgres.log"), Durable: true})
	if err != nil {
		return "", err
	}
	w.part(Database, w.postgres.Pid())
	return w.postgres.URL(w.postgres.Address()), nil
}

func (w *world) startRedis(ctx context.Context) error {
	port, err := w.ports.Free(ctx)
	if err != nil {
		return err
	}
	w.server, err = redisd.Start(ctx, redisd.Config{Port: port, Dir: w.path("redis"), LogFile: w.path("redis.log")})
	if err != nil {
		return err
	}
	if w.server.Substitute() {
		return errors.New("redis-server is not installed: a substitute cannot be measured")
	}
	w.part(Redis, w.server.Process().Pid())
	w.redis = redis.NewClient(&redis.Options{Addr: w.server.Address(), DisableIdentity: true, MaxRetries: -1})
	w.redis.AddHook(&w.trips)
	return nil
}

func (w *world) startLLM(ctx context.Context) error {
	port, err := w.ports.Free(ctx)
	if err != nil {
		return err
	}
	w.llm = &stub{url: "http://" + proc.Loopback(port)}
	_, err = w.start(ctx, proc.Spec{
		Name: LLM, Path: w.opts.Executor, Args: []string{"mock-llm", "--addr", proc.Loopback(port)}, Env: os.Environ(),
	}, proc.HTTPReady(w.llm.url+"/_/stats"))
	return err
}

// start runs a process that is measured, and waits until it is ready.
func (w *world) start(ctx context.Context, spec proc.Spec, ready func(context.Context) error) (*member, error) {
	spec.LogFile = w.path(spec.Name + ".log")
	p, err := proc.Start(spec)
	if err != nil {
		return nil, err
	}
	m := &member{Process: p, name: spec.Name}
	w.mu.Lock()
	w.parts[spec.Name] = p.Pid()
	w.started = append(w.started, m)
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	return m, p.WaitReady(ctx, ready)
}

// executor starts the executor with these settings; name tells several apart.
func (w *world) executor(ctx context.Context, name string, env map[string]string, args ...string) (*member, error) {
	port, err := w.ports.Free(ctx)
	if err != nil {
		return nil, err
	}
	settings := map[string]string{
		"TEMPORAL_ADDRESS":     w.address,
		"TEMPORAL_NAMESPACE":   namespace,
		"TEMPORAL_CONFIG_FILE": os.DevNull,
		"REDIS_CONNECTION":     w.server.Address(),
		"DATABASE_URL":         "sqlite://" + w.path("executor.db"),
		"LLM_ENDPOINT":         w.llm.endpoint(),
		"HTTP_ADDR":            proc.Loopback(port),
		"DRAIN_TIMEOUT":        "10s",
	}
	maps.Copy(settings, env)
	// Nothing of a developer's own settings: every executor measured has the defaults.
	keep := func(name string) bool { return name == "PATH" || name == "HOME" || name == "TMPDIR" }
	m, err := w.start(ctx, proc.Spec{
		Name: name, Path: w.opts.Executor, Args: args, Env: proc.Environ(keep, settings),
	}, proc.HTTPReady("http://"+proc.Loopback(port)+"/readyz"))
	if m != nil {
		m.http = "http://" + proc.Loopback(port)
	}
	return m, err
}

// play starts another design.
func (w *world) play(ctx context.Context, name string) (*member, error) {
	port, err := w.ports.Free(ctx)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(contestant.Config{
		Name: name, Temporal: w.address, Namespace: namespace, Redis: w.server.Address(), LLM: w.llm.endpoint(),
		Database: w.path(name + ".db"), HTTP: proc.Loopback(port), AnswerBytes: answerBytes,
	})
	if err != nil {
		return nil, err
	}
	m, err := w.start(ctx, proc.Spec{
		Name: name, Path: w.opts.Self, Args: []string{"play"},
		Env: proc.Environ(func(string) bool { return true }, map[string]string{PlayVariable: string(text)}),
	}, proc.HTTPReady("http://"+proc.Loopback(port)+"/ready"))
	if m != nil {
		m.http = "http://" + proc.Loopback(port)
	}
	return m, err
}

// PlayVariable holds the contestant.Config of a process that is to play it.
const PlayVariable = "BENCH_CONTESTANT"

// Play runs the contestant that this process was started to be.
func Play(ctx context.Context) error {
	var cfg contestant.Config
	if err := json.Unmarshal([]byte(os.Getenv(PlayVariable)), &cfg); err != nil {
		return fmt.Errorf("%s: %w", PlayVariable, err)
	}
	return contestant.Run(ctx, cfg)
}

// stop ends members, all at the same time.
func (w *world) stop(ctx context.Context, members ...*member) error {
	var group errgroup.Group
	for _, m := range members {
		if m == nil {
			continue
		}
		group.Go(func() error {
			// One that was stopped before its turn would not hear the signal to end.
			return errors.Join(m.Signal(syscall.SIGCONT), m.Stop(ctx, stopGrace))
		})
		w.mu.Lock()
		delete(w.parts, m.name)
		for i, s := range w.started {
			if s == m {
				w.started = append(w.started[:i], w.started[i+1:]...)
				break
			}
		}
		w.mu.Unlock()
	}
	return group.Wait()
}

// close ends everything, contestants before what they need.
func (w *world) close(ctx context.Context) error {
	var errs []error
	for len(w.started) > 0 {
		last := w.started[len(w.started)-1]
		select {
		case <-last.Done():
			errs = append(errs, fmt.Errorf("%s ended by itself: %s", last.name, last.LogTail(5)))
			w.started = w.started[:len(w.started)-1]
		default:
			errs = append(errs, w.stop(ctx, last))
		}
	}
	if w.redis != nil {
		errs = append(errs, w.redis.Close())
	}
	if w.server != nil {
		errs = append(errs, w.server.Stop(ctx))
	}
	if w.temporal != nil {
		w.temporal.Close()
	}
	if w.postgres != nil {
		errs = append(errs, w.postgres.Stop(ctx))
	}
	return errors.Join(errs...)
}

// say prints what was measured.
func (w *world) say(format string, args ...any) {
	_, _ = fmt.Fprintf(w.opts.Progress, strings.TrimRight(format, "\n")+"\n", args...)
}

// silent drops the SDK's log.
type silent struct{}

func (silent) Debug(string, ...any) {}
func (silent) Info(string, ...any)  {}
func (silent) Warn(string, ...any)  {}
func (silent) Error(string, ...any) {}
