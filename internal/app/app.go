// Package app is the one list of which modules make up which command. It exists
// so that no package bundles its neighbours: each module provides what it owns,
// and here, and only here, one sees what a process consists of and in which
// order it starts and stops.
package app

import (
	"context"
	"fmt"
	"log/slog"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"go.temporal.io/sdk/client"
	"go.uber.org/dig"
	"go.uber.org/fx"
	"go.uber.org/fx/fxevent"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/bridge"
	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/internal/telemetry"
	"github.com/nodpt/executor/worker"
)

// Kind says what a process does.
type Kind struct {
	// Bridge reads the streams and starts workflows.
	Bridge bool
	// Queues are the task queues to serve, by the names of worker.Queues(); none
	// means that the process runs no workers.
	Queues []string
	// Version is written to the log at the start.
	Version string
}

// All is a process that does everything: `executor run`.
func All(version string) Kind { return Kind{Bridge: true, Queues: worker.Queues(), Version: version} }

const (
	startTimeout  = 15 * time.Second
	askRedisAgain = 5 * time.Second
)

// Options lists the modules of a process. Started from the top, stopped from
// the bottom: the bridge stops reading before the workers drain, and connections
// are closed when nothing needs them any more.
func Options(cfg config.Config, kind Kind) fx.Option {
	modules := []fx.Option{
		fx.StartTimeout(startTimeout),
		fx.StopTimeout(cfg.StopTimeout()),
		fx.WithLogger(func(log *slog.Logger) fxevent.Logger {
			l := &fxevent.SlogLogger{Logger: log}
			l.UseLogLevel(slog.LevelDebug)
			l.UseErrorLevel(slog.LevelDebug) // what matters comes back from Start and Stop
			return l
		}),
		fx.Supply(cfg, kind, cfg.Log(), cfg.HTTP(), cfg.Metrics()),
		telemetry.Module(),
		fx.Module("process", fx.Provide(newEnd), fx.Invoke(announceStart)),
		redisModule(cfg),
		storeModule(cfg),
		temporalModule(cfg),
	}
	if len(kind.Queues) > 0 {
		modules = append(modules, llmModule(cfg), workers(cfg, kind))
	}
	if kind.Bridge {
		modules = append(modules, bridges(cfg))
	}
	return fx.Options(append(modules, fx.Invoke(drainFirst))...)
}

// Run starts a process and waits until it is told to stop or cannot go on. It
// returns the exit code. A second interrupt ends the process at once.
func Run(ctx context.Context, cfg config.Config, kind Kind) (int, error) {
	var last *end
	a := fx.New(Options(cfg, kind), fx.Populate(&last))
	if err := a.Err(); err != nil {
		return 2, fmt.Errorf("cannot be set up: %w", dig.RootCause(err))
	}
	// A process that is told to stop while it starts does both: fx would leave
	// half of it running.
	starting, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	if err := a.Start(starting); err != nil {
		// Start hooks wait for nobody; what can fail is a setting.
		return 2, fmt.Errorf("cannot start: %w", dig.RootCause(err))
	}
	var signaled fx.ShutdownSignal
	select {
	case signaled = <-a.Wait():
	case <-ctx.Done():
	}
	signal.Reset(syscall.SIGINT)

	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), cfg.StopTimeout())
	defer cancel()
	if err := a.Stop(ctx); err != nil {
		return 1, fmt.Errorf("did not stop cleanly: %w", dig.RootCause(err))
	}
	return signaled.ExitCode, last.why()
}

// end is how parts of the process end it.
type end struct {
	log    *slog.Logger
	health *telemetry.Health
	fx.Shutdowner

	mu    sync.Mutex
	cause error
}

func newEnd(log *slog.Logger, health *telemetry.Health, s fx.Shutdowner) *end {
	return &end{log: log, health: health, Shutdowner: s}
}

// fatal makes the process not ready and stops it with an exit code.
func (e *end) fatal(err error, exitCode int) {
	e.log.Error("cannot go on, stopping", slog.Any("error", err))
	e.health.Fail(err)
	e.mu.Lock()
	if e.cause == nil {
		e.cause = err
	}
	e.mu.Unlock()
	if err := e.Shutdown(fx.ExitCode(exitCode)); err != nil {
		e.log.Error("cannot stop by itself", slog.Any("error", err))
	}
}

// why is what ended the process, nil if it was asked to stop.
func (e *end) why() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cause
}

func announceStart(cfg config.Config, kind Kind, log *slog.Logger) {
	log.Info("executor starting", slog.String("version", kind.Version), slog.Bool("bridge", kind.Bridge), slog.Any("queues", kind.Queues))
	for _, warning := range cfg.Warnings() {
		log.Warn("configuration", slog.String("warning", warning))
	}
	if keys := cfg.Encryption(); len(keys) > 0 {
		log.Info("payloads in Temporal are encrypted", slog.String("name", keys[0].ID), slog.Int("keys", len(keys)))
	} else {
		log.Info("payloads in Temporal are stored in clear text", slog.String("setting", "ENCRYPTION_KEYS"))
	}
}

// drainFirst is invoked last, so its stop hook runs first: whoever routes work
// here sees that the process is going before it goes.
func drainFirst(lc fx.Lifecycle, health *telemetry.Health, log *slog.Logger) {
	lc.Append(fx.StopHook(func() {
		log.Info("stopping")
		health.Drain()
	}))
}

func redisModule(cfg config.Config) fx.Option {
	return fx.Module("redis",
		fx.Supply(cfg.Stream()),
		fx.Provide(
			stream.Open,
			func(c *stream.Client) activities.AnswerStore { return c },
			func(c *stream.Client) activities.SharedCoolDown { return c },
			func(c *stream.Client) worker.Entries { return c },
			func(c *stream.Client) bridge.Redis { return c },
		),
		fx.Invoke(func(lc fx.Lifecycle, c *stream.Client, h *telemetry.Health) {
			lc.Append(fx.StopHook(c.Close))
			h.Register("redis", c.Ping)
		}),
		fx.Invoke(adviseOnRedis),
	)
}

// adviseOnRedis warns of settings of the Redis server under which jobs get lost,
// once it can be asked.
func adviseOnRedis(lc fx.Lifecycle, c *stream.Client, log *slog.Logger) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	lc.Append(fx.StartStopHook(
		func() {
			go func() {
				defer close(done)
				for c.Ping(ctx) != nil {
					select {
					case <-ctx.Done():
						return
					case <-time.After(askRedisAgain):
					}
				}
				for _, warning := range c.ServerWarnings(ctx) {
					log.WarnContext(ctx, "the Redis server can lose jobs", slog.String("warning", warning))
				}
			}()
		},
		func() {
			stop()
			<-done
		},
	))
}

func storeModule(cfg config.Config) fx.Option {
	return fx.Module("store",
		fx.Supply(cfg.Store()),
		fx.Provide(
			func(c *stream.Client) announcer { return c },
			func(e *end) func(error, int) { return e.fatal },
			newResultStore,
			func(s *resultStore) worker.Rows { return s },
			func(s *resultStore) bridge.Rows { return s },
		),
		fx.Invoke(func(lc fx.Lifecycle, s *resultStore, h *telemetry.Health) {
			lc.Append(fx.StartStopHook(s.Start, s.Stop))
			h.Register("store", s.Check)
		}),
	)
}

func temporalModule(cfg config.Config) fx.Option {
	return fx.Module("temporal",
		fx.Provide(
			func(log *slog.Logger, metrics client.MetricsHandler) (client.Options, error) {
				return TemporalOptions(cfg, log, metrics)
			},
			client.NewLazyClient,
		),
		fx.Invoke(func(lc fx.Lifecycle, c client.Client, h *telemetry.Health) {
			lc.Append(fx.StopHook(c.Close))
			h.Register("temporal", func(ctx context.Context) error {
				_, err := c.CheckHealth(ctx, &client.CheckHealthRequest{})
				return err
			})
		}),
	)
}

func llmModule(cfg config.Config) fx.Option {
	return fx.Module("llm",
		fx.Supply(cfg.LLM()),
		fx.Provide(
			llm.New,
			func(c *llm.Client) activities.Completer { return c },
			func(c *llm.Client) worker.EndpointKey { return worker.EndpointKey(c.EndpointKey()) },
		),
		fx.Invoke(func(lc fx.Lifecycle, c *llm.Client, log *slog.Logger) {
			lc.Append(fx.StopHook(c.Close))
			log.Info("calling the LLM", slog.String("endpoint", c.Endpoint()))
		}),
	)
}

func workers(cfg config.Config, kind Kind) fx.Option {
	settings := cfg.Worker()
	settings.Queues = kind.Queues
	return fx.Options(
		fx.Supply(settings, cfg.Roles()),
		fx.Provide(
			func(m *telemetry.Metrics) activities.RunMetrics { return m },
			func(m *telemetry.Metrics) activities.FinishMetrics { return m },
			func(e *end) worker.Fatal { return func(err error) { e.fatal(err, 1) } },
			newGate,
		),
		worker.Module(),
		fx.Invoke(func(p *worker.Pool, h *telemetry.Health) { h.Register("workers", p.Check) }),
	)
}

// newGate returns the limit over all roles and processes, or nil where there is
// none.
func newGate(lc fx.Lifecycle, cfg worker.Config, c *stream.Client, log *slog.Logger) activities.Gate {
	if cfg.Total <= 0 {
		return nil
	}
	total := stream.NewTotal(c, cfg.Total, log)
	lc.Append(fx.StartStopHook(total.Start, total.Close))
	return total
}

// ownWorkers are those of a process that has any.
type ownWorkers struct {
	fx.In

	Pool *worker.Pool `optional:"true"`
}

// run reports whether they are polling.
func (w ownWorkers) run() bool { return w.Pool != nil && w.Pool.Check(context.Background()) == nil }

func bridges(cfg config.Config) fx.Option {
	return fx.Options(
		fx.Supply(cfg.Bridge()),
		fx.Provide(
			func(m *telemetry.Metrics) bridge.Metrics { return m },
			func(c client.Client, options client.Options, workers ownWorkers, log *slog.Logger) bridge.Temporal {
				return bridge.Connect(c, bridge.TemporalConfig{
					Namespace: options.Namespace,
					Model:     cfg.Roles().ModelFor,
					Eager:     workers.run,
					Converter: options.DataConverter,
				}, log)
			},
		),
		bridge.Module(),
		fx.Invoke(
			func(b *bridge.Bridge, h *telemetry.Health) { h.Register("bridge", b.Ready) },
			observeStreams,
		),
	)
}

// observeStreams fills the gauges of stream length, pending entries and dead
// letters. Only bridges do it: the figures are the same for all processes.
func observeStreams(m *telemetry.Metrics, c *stream.Client) {
	m.ObserveStreams(func(ctx context.Context) (map[job.Role]telemetry.StreamStats, error) {
		all := map[job.Role]telemetry.StreamStats{}
		for _, role := range job.Roles() {
			s, err := c.Stats(ctx, role.Stream())
			if err != nil {
				return nil, err
			}
			all[role] = telemetry.StreamStats(s)
		}
		return all, nil
	})
}
