package contestant

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
)

// dial connects to Temporal.
func dial(ctx context.Context, cfg Config) (client.Client, error) {
	c, err := client.DialContext(ctx, client.Options{
		HostPort: cfg.Temporal, Namespace: cfg.Namespace, Logger: sdklog.NewStructuredLogger(logger()),
		// As the executor does on a network of one's own.
		ConnectionOptions: client.ConnectionOptions{GrpcCompression: &client.GrpcCompressionNone{}},
	})
	if err != nil {
		return nil, fmt.Errorf("temporal: %w", err)
	}
	return c, nil
}

// logger writes what goes wrong to the process's standard error.
func logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// withWorker runs a worker while work runs. It ends work's context when the worker
// cannot go on.
func withWorker(
	ctx context.Context, c client.Client, queue string, options worker.Options,
	register func(worker.Registry), work func(context.Context) error,
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	options.OnFatalError = cancel
	w := worker.New(c, queue, options)
	register(w)
	if err := w.Start(); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	defer w.Stop()
	if err := work(ctx); ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("worker: %w", context.Cause(ctx))
}
