package bridge

import (
	"context"
	"log/slog"
	"time"

	"go.uber.org/fx"
)

// Params are what the module takes from the application. Redis is satisfied by
// *stream.Client, Rows by *store.Store, Metrics by *telemetry.Metrics, Temporal
// by Connect.
type Params struct {
	fx.In

	Config   Config
	Redis    Redis
	Rows     Rows
	Temporal Temporal
	Metrics  Metrics
	Log      *slog.Logger
}

// Module provides the *Bridge and runs it while the application runs. List it
// after the module of the workers, so that it is stopped before them.
func Module() fx.Option {
	return fx.Module("bridge",
		fx.Provide(func(p Params) (*Bridge, error) {
			return New(p.Config, p.Redis, p.Rows, p.Temporal, p.Metrics, p.Log)
		}),
		fx.Invoke(manage),
	)
}

// stopWithin is how long a stop waits for the dispatches in hand; the drain of
// the workers comes after it.
const stopWithin = 5 * time.Second

// manage ties the bridge to the application's life: the start hook only begins
// the work, on a context that outlives it, and the stop hook waits for the
// dispatches in hand. A bridge that ends by itself takes the process with it: a
// process that looks alive and reads nothing would be worse.
func manage(lc fx.Lifecycle, b *Bridge, shutdown fx.Shutdowner, log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	lc.Append(fx.Hook{
		OnStart: func(context.Context) error {
			go func() {
				defer close(ended)
				err := b.Run(ctx)
				if ctx.Err() != nil {
					return
				}
				log.Error("the bridge ended by itself", slog.Any("error", err))
				if err := shutdown.Shutdown(fx.ExitCode(1)); err != nil {
					log.Error("the application could not be told to stop", slog.Any("error", err))
				}
			}()
			return nil
		},
		OnStop: func(stop context.Context) error {
			cancel()
			stop, done := context.WithTimeout(stop, stopWithin)
			defer done()
			select {
			case <-ended:
			case <-stop.Done():
				// What is in hand stays pending and is settled by the next bridge.
				log.WarnContext(stop, "the bridge stopped with entries in hand, because Redis, Temporal or the database does not answer")
			}
			return nil
		},
	})
}
