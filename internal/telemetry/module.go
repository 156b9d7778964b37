package telemetry

import (
	"log/slog"
	"os"

	"go.temporal.io/sdk/client"
	"go.uber.org/fx"
)

// MetricsConfig holds what metrics must know of the configuration.
type MetricsConfig struct {
	// Models are the configured models: the only ones that become labels.
	Models []string
}

// Module provides the logger (on standard error, because standard output belongs
// to the commands), the metrics, also as the Temporal SDK wants them, and the
// health of the process. It serves the endpoints while the application runs. It
// needs a LogConfig, an HTTPConfig and a MetricsConfig. List it first, so that it
// is stopped last.
func Module() fx.Option {
	return fx.Module("telemetry",
		fx.Provide(
			func(cfg LogConfig) *slog.Logger { return NewLogger(os.Stderr, cfg) },
			func(cfg MetricsConfig) (*Metrics, error) { return NewMetrics(cfg.Models...) },
			NewHealth,
			NewServer,
			func(m *Metrics) client.MetricsHandler { return m.TemporalHandler() },
		),
		fx.Invoke(func(lc fx.Lifecycle, s *Server, m *Metrics) {
			lc.Append(fx.StopHook(m.Shutdown))
			lc.Append(fx.StartStopHook(s.Start, s.Stop))
		}),
	)
}
