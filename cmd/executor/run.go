package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/app"
	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/worker"
)

func newRun() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the bridge and all workers in one process",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), app.All(version))
		},
	}
}

func newBridge() *cobra.Command {
	return &cobra.Command{
		Use:   "bridge",
		Short: "Read the job streams and start one workflow per entry",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), app.Kind{Bridge: true, Version: version})
		},
	}
}

func newWorker() *cobra.Command {
	var queues []string
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Serve task queues: " + strings.Join(worker.Queues(), ", "),
		Example: `  executor worker                              # all queues
  executor worker --queues agent               # one role, to scale it on its own
  executor worker --queues workflows,manager`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(queues) == 0 {
				return &exitError{exitUsage, errors.New("--queues names no queue")}
			}
			for _, q := range queues {
				if !slices.Contains(worker.Queues(), q) {
					return &exitError{exitUsage, fmt.Errorf("unknown queue %.40q: --queues takes a list of %s", q, strings.Join(worker.Queues(), ", "))}
				}
			}
			return serve(cmd.Context(), app.Kind{Queues: queues, Version: version})
		},
	}
	cmd.Flags().StringSliceVar(&queues, "queues", worker.Queues(), "task queues to serve")
	return cmd
}

func serve(ctx context.Context, kind app.Kind) error {
	if err := failpoint.Check(); err != nil {
		return &exitError{exitUsage, err}
	}
	// Without this a write to a log that nobody reads any more ends the process.
	signal.Ignore(syscall.SIGPIPE)
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	code, err := app.Run(ctx, cfg, kind)
	if err != nil || code != exitOK {
		return &exitError{code, err}
	}
	return nil
}
