// Command bench measures the executor against its engine and against other
// designs, and writes docs/benchmarks.md. It is a program apart from devstack, so
// that nothing it starts has the Temporal server inside its own process.
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
  bench quick     ratios in a few minutes; the last line of output is JSON
  bench full      everything, about an hour; --results keeps it
  bench postgres  rounds and slots with Temporal's state in a PostgreSQL server
  bench one       one contestant alone: --contestant, --concurrency, --seconds
  bench report    no run: write what full and postgres kept into docs/benchmarks.md

Each command has flags of its own: bench COMMAND --help
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// command adds its flags to a set and returns what to do once they are parsed.
type command func(flags *flag.FlagSet, stdout, stderr io.Writer) func(context.Context) error

func commands() map[string]command {
	return map[string]command{
		"quick": measuring(bench.Quick, choosePostgres),
		"full":  measuring(bench.Full, func(*flag.FlagSet, *bench.Options) {}),
		"postgres": measuring(bench.Postgres, func(flags *flag.FlagSet, opts *bench.Options) {
			opts.Postgres = true
			chooseShards(flags, opts)
		}),
		"one":    one,
		"report": report,
	}
}

// run returns the exit code: 0 done, 1 not, 2 wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == "play" { // started by a run
		return exit(stderr, bench.Play(ctx))
	}
	if len(args) == 0 {
		_, _ = io.WriteString(stderr, usage)
		return 2
	}
	begin := commands()[args[0]]
	switch {
	case args[0] == "help", args[0] == "-h", args[0] == "--help":
		_, _ = io.WriteString(stdout, usage)
		return 0
	case begin == nil:
		_, _ = fmt.Fprintf(stderr, "bench: unknown command %q\n%s", args[0], usage)
		return 2
	}
	flags := flag.NewFlagSet("bench "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	do := begin(flags, stdout, stderr)
	switch err := flags.Parse(args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		_, _ = fmt.Fprintf(stderr, "bench: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	err := do(ctx)
	var wrong *usageError
	if errors.As(err, &wrong) {
		_, _ = fmt.Fprintf(stderr, "bench: %v\n", err)
		return 2
	}
	return exit(stderr, err)
}

func exit(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(stderr, "bench: %v\n", err)
	return 1
}

// usageError says that the command line asks for what cannot be.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// options adds the flags of every measurement.
func options(flags *flag.FlagSet, stderr io.Writer) *bench.Options {
	opts := &bench.Options{Progress: stderr}
	flags.StringVar(&opts.Executor, "executor", "bin/executor", "`path` of the executor to measure")
	flags.StringVar(&opts.Devstack, "devstack", "bin/devstack", "`path` of the program that serves Temporal")
	flags.StringVar(&opts.Data, "data", "build/bench", "`directory` of state and logs; the state of an earlier run is removed, its results stay")
	return opts
}

func choosePostgres(flags *flag.FlagSet, opts *bench.Options) {
	flags.BoolVar(&opts.Postgres, "postgres", false, "let Temporal keep its state in a PostgreSQL server")
	chooseShards(flags, opts)
}

func chooseShards(flags *flag.FlagSet, opts *bench.Options) {
	flags.IntVar(&opts.Shards, "shards", 0, "`number` of Temporal's history shards in PostgreSQL (default 4)")
}

// complete fills in what no flag says.
func complete(opts *bench.Options) (err error) {
	if opts.Shards != 0 && !opts.Postgres {
		return &usageError{"--shards goes with --postgres: in SQLite there is one"}
	}
	if opts.Self, err = os.Executable(); err != nil {
		return err
	}
	opts.Data, err = filepath.Abs(opts.Data)
	return err
}

// measuring is a command that runs a measurement, keeps its results and prints the
// figures.
func measuring(measure func(context.Context, bench.Options) (bench.Report, error), add func(*flag.FlagSet, *bench.Options)) command {
	return func(flags *flag.FlagSet, stdout, stderr io.Writer) func(context.Context) error {
		opts := options(flags, stderr)
		add(flags, opts)
		results := flags.String("results", "", "`file` for all that was measured, as JSON")
		return func(ctx context.Context) error {
			if err := complete(opts); err != nil {
				return err
			}
			if *results != "" {
				opts.Keep = func(r bench.Report) error { return write(*results, r) }
			}
			r, err := measure(ctx, *opts)
			if err != nil {
				return err
			}
			return json.NewEncoder(stdout).Encode(r.Figures())
		}
	}
}

// write replaces a file. What it held before is there until the new text is whole.
func write(path string, r bench.Report) error {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }() // after the rename there is none
	if err := errors.Join(r.Write(file), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

// one measures one contestant alone.
func one(flags *flag.FlagSet, _, stderr io.Writer) func(context.Context) error {
	opts := options(flags, stderr)
	choosePostgres(flags, opts)
	name := flags.String("contestant", bench.Executor, "`name`: executor, engine, eager, floor, naive, old or queue")
	concurrency := flags.Int("concurrency", 32, "`jobs` outstanding")
	seconds := flags.Int("seconds", 20, "`time` to measure")
	return func(ctx context.Context) error {
		if *concurrency < 1 || *seconds < 1 {
			return &usageError{"--concurrency and --seconds are at least 1"}
		}
		if err := complete(opts); err != nil {
			return err
		}
		return bench.One(ctx, *opts, *name, *concurrency, time.Duration(*seconds)*time.Second)
	}
}
