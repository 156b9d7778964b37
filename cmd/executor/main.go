// Command executor runs NodPT's AI jobs: it moves jobs from Redis streams through
// Temporal workflows to an LLM, and their outcomes to a database and to
// signalr:updates. This package only reads the command line; what a process
// consists of is listed in internal/app.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/config"
)

// version is set by the linker.
var version = "dev"

// Exit codes, for scripts.
const (
	exitOK          = 0
	exitFailed      = 1 // the job failed, or the process could not go on
	exitUsage       = 2 // wrong flags or settings
	exitUnreachable = 3 // a server did not answer
	exitTimeout     = 4
)

// exitError is an error with an exit code. An error without text ends the
// command silently: what there was to say has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	// Nothing of ours writes to the standard logger. net/http does, and quotes what
	// an LLM sends behind the end of its response, past the filter of our own.
	log.SetOutput(io.Discard)

	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	// What is wrong on the command line never gets as far as a command of ours.
	code := exitUsage
	if exit, ok := errors.AsType[*exitError](err); ok {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(stderr, "executor: "+text)
	}
	return code
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "executor",
		Short: "Run NodPT's AI jobs durably, on Temporal and Redis Streams",
		Long: `Run NodPT's AI jobs durably: every entry of the streams jobs:manager,
jobs:inspector, jobs:agent and jobs:chat becomes one Temporal workflow, which asks
the LLM, stores the answer, publishes it on signalr:updates and acknowledges the
entry.

Settings come from environment variables; "executor config" lists them.
Exit codes: 0 ok, 1 failed, 2 wrong usage or settings, 3 unreachable, 4 timeout.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newRun(), newBridge(), newWorker(),
		newList(), newShow(), newWatch(), newCancel(),
		newSubmit(), newRetry(), newDLQ(), newStreams(), newDoctor(), newConfig(), newHealthcheck(), newMockLLM(), newCodecServer(), newVersion(),
	)
	return root
}

// loadConfig reads the environment; its error lists every mistake.
func loadConfig() (config.Config, error) {
	cfg, err := config.Load(config.Environ())
	if err != nil {
		return config.Config{}, &exitError{exitUsage, err}
	}
	return cfg, nil
}
