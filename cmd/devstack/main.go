// Command devstack runs the whole world of the executor on one machine, without
// Docker: the real Temporal server with its Web UI, Redis, a stand-in for the
// LLM, and the executor as a child process. It is a module of its own, because
// the Temporal server brings more dependencies than everything else together.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/nodpt/executor/cmd/devstack/internal/demo"
	"github.com/nodpt/executor/cmd/devstack/internal/stack"
)

const usage = `devstack runs Temporal, its Web UI, Redis, an LLM stand-in and the executor.

Usage:
  devstack demo      start everything, run one set of jobs, print a table, stop
  devstack dev       the same, and stay up until Ctrl-C
  devstack temporal  only the Temporal server and its Web UI, until Ctrl-C

LLM_ENDPOINT, if set, names a real LLM to use instead of the stand-in.
Flags, after the command:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// Once stopping has begun a second Ctrl-C ends the process at once; the
	// kernel takes the children along.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: 0 as expected, 1 not, 2 wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts := stack.Options{LLMEndpoint: os.Getenv("LLM_ENDPOINT"), Progress: stderr}
	flags := flag.NewFlagSet("devstack", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&opts.Data, "data", ".devstack", "`directory` of all state and logs")
	flags.StringVar(&opts.Executor, "executor", "bin/executor", "`path` of the executor's binary")
	flags.IntVar(&opts.TemporalPort, "temporal-port", 7233, "`port` of the Temporal server; if busy another one is used")
	flags.IntVar(&opts.UIPort, "ui-port", 8233, "`port` of the Web UI; likewise")
	flags.IntVar(&opts.RedisPort, "redis-port", 6379, "`port` of Redis; likewise")
	flags.IntVar(&opts.HTTPPort, "http-port", 9090, "`port` of the executor's metrics and health; likewise")
	flags.StringVar(&opts.TemporalPostgres, "postgres", "", "`URL` of a Postgres database for Temporal's state, created if absent together with one\nfor visibility (NAME_visibility); without it a SQLite file in the data directory")
	flags.IntVar(&opts.TemporalShards, "shards", 0, "`number` of Temporal's history shards, with --postgres; it cannot change later (default 4 for a new database)")
	flags.Usage = func() {
		_, _ = io.WriteString(stderr, usage)
		flags.PrintDefaults()
	}
	if len(args) == 0 {
		flags.Usage()
		return 2
	}
	switch err := flags.Parse(args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		_, _ = fmt.Fprintf(stderr, "devstack: unexpected argument %q\n", flags.Arg(0))
		return 2
	}

	var err error
	switch args[0] {
	case "demo":
		err = runJobs(ctx, opts, stdout, stderr, nil)
	case "dev":
		err = runJobs(ctx, opts, stdout, stderr, stayUp)
	case "temporal":
		err = runTemporal(ctx, opts, stdout)
	case "help", "-h", "--help":
		flags.Usage()
	default:
		_, _ = fmt.Fprintf(stderr, "devstack: unknown command %q\n", args[0])
		flags.Usage()
		return 2
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "devstack: %v\n", err)
		return 1
	}
	return 0
}

// runJobs starts the stack, runs the demo's jobs on it and stops it, after
// calling stay if there is one.
func runJobs(ctx context.Context, opts stack.Options, stdout, stderr io.Writer, stay func(context.Context, *stack.Stack, io.Writer) error) (err error) {
	s, err := stack.Up(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		// Stopping is owed even where ctx is what ended the run.
		err = errors.Join(err, s.Down(context.WithoutCancel(ctx)))
	}()
	if err := s.StartExecutor(ctx); err != nil {
		return err
	}

	_, scripted := s.LLM()
	cfg := demo.Config{
		Redis: s.RedisAddress(), Database: s.Database(), Scripted: scripted, WorkflowURL: s.WorkflowURL,
		Progress: stderr, Patience: time.Minute,
	}
	if !scripted {
		cfg.Patience = 10 * time.Minute // a model may have to be loaded first
		_, _ = fmt.Fprintln(stderr, "a real LLM does not fail on demand: only plain jobs are submitted")
	}
	jobs := demo.Jobs(strconv.FormatInt(time.Now().UnixMilli(), 36), scripted)
	if err := demo.Run(ctx, cfg, jobs); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	_, _ = fmt.Fprintln(stderr)
	if err := demo.Report(cfg, jobs, stdout); err != nil {
		return fmt.Errorf("%w\nlast lines of the executor's log, all logs are in %s:\n%s", err, s.Logs(), s.ExecutorLog(20))
	}
	if stay != nil {
		return stay(ctx, s, stdout)
	}
	_, _ = fmt.Fprintf(stderr, "all as expected; `make dev` keeps the stack up, so that the links work\n")
	return nil
}

// stayUp prints what a developer needs and waits for Ctrl-C.
func stayUp(ctx context.Context, s *stack.Stack, stdout io.Writer) error {
	_, port, err := net.SplitHostPort(s.RedisAddress())
	if err != nil {
		return err
	}
	llm, _ := s.LLM()
	_, err = fmt.Fprintf(stdout, `
Temporal Web UI  %s
Temporal server  %s
Redis            %s
Executor         http://%s/metrics and /readyz
LLM              %s
Logs             %s

Submit a job, and read what comes back:
  redis-cli -p %[7]s XADD jobs:agent '*' jobId j1 workflowId w1 userId u1 projectId p1 connectionId c1 task hello payload '{"k":1}'
  redis-cli -p %[7]s XREVRANGE signalr:updates + - COUNT 1

Run another worker on this stack:
  ( . %[8]s && HTTP_ADDR=127.0.0.1:0 %[9]s worker --queues agent )

Ctrl-C stops everything. What is not finished goes on at the next start.
`, s.UI(), s.TemporalAddress(), s.RedisAddress(), s.HTTPAddress(), llm, s.Logs(), port, s.EnvFile(), s.Executor())
	if err != nil {
		return err
	}
	return s.Wait(ctx)
}

func runTemporal(ctx context.Context, opts stack.Options, stdout io.Writer) (err error) {
	// Whoever asks for this server alone has written its port down elsewhere.
	opts.TemporalOnly, opts.Strict = true, true
	s, err := stack.Up(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Down(context.WithoutCancel(ctx))) }()
	if _, err := fmt.Fprintf(stdout, "Temporal serves %s, its Web UI %s. Ctrl-C stops it.\n", s.TemporalAddress(), s.UI()); err != nil {
		return err
	}
	return s.Wait(ctx)
}
