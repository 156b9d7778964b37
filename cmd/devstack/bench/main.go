// Command bench measures the executor against its engine and against other
// designs. It is a program apart from devstack, so that nothing it starts has the
// Temporal server inside its own process.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nodpt/executor/cmd/devstack/internal/bench"
)

const usage = `bench measures the executor; each command is one run.

Usage:
  bench quick   ratios in a few minutes; the last line of output is JSON
  bench full    everything, about an hour; --results keeps it
  bench one     one contestant alone: --contestant, --concurrency, --seconds

Flags, after the command:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: 0 measured, 1 not, 2 wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == "play" {
		return report(stderr, bench.Play(ctx))
	}
	opts := bench.Options{Progress: stderr}
	var (
		results, name        string
		concurrency, seconds int
	)
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&opts.Executor, "executor", "bin/executor", "`path` of the executor to measure")
	flags.StringVar(&opts.Devstack, "devstack", "bin/devstack", "`path` of the program that serves Temporal")
	flags.StringVar(&opts.Data, "data", "build/bench", "`directory` of state and logs; what an earlier run left there is removed")
	flags.BoolVar(&opts.Postgres, "postgres", false, "let Temporal keep its state in a PostgreSQL server")
	flags.StringVar(&results, "results", "", "`file` for all that was measured, as JSON")
	flags.StringVar(&name, "contestant", "executor", "`name` for one: executor, engine, naive, old or queue")
	flags.IntVar(&concurrency, "concurrency", 32, "`jobs` outstanding, for one")
	flags.IntVar(&seconds, "seconds", 20, "`time` to measure, for one")
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
		_, _ = fmt.Fprintf(stderr, "bench: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	var err error
	if opts.Self, err = os.Executable(); err != nil {
		return report(stderr, err)
	}
	if opts.Data, err = filepath.Abs(opts.Data); err != nil {
		return report(stderr, err)
	}
	if args[0] == "one" {
		return report(stderr, bench.One(ctx, opts, name, concurrency, time.Duration(seconds)*time.Second))
	}
	measure := map[string]func(context.Context, bench.Options) (bench.Report, error){"quick": bench.Quick, "full": bench.Full}[args[0]]
	if measure == nil {
		_, _ = fmt.Fprintf(stderr, "bench: unknown command %q\n", args[0])
		flags.Usage()
		return 2
	}
	return report(stderr, measured(ctx, measure, opts, results, stdout))
}

func report(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(stderr, "bench: %v\n", err)
	return 1
}

// measured runs a measurement, keeps its results and prints the figures.
func measured(ctx context.Context, measure func(context.Context, bench.Options) (bench.Report, error), opts bench.Options, results string, stdout io.Writer) error {
	r, err := measure(ctx, opts)
	if err != nil {
		return err
	}
	if results != "" {
		file, err := os.Create(results) //nolint:gosec // G304: named on the command line
		if err != nil {
			return err
		}
		if err := errors.Join(r.Write(file), file.Close()); err != nil {
			return err
		}
	}
	return json.NewEncoder(stdout).Encode(r.Figures())
}
