package bridge

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

func (w *world) application(populate **Bridge) *fxtest.App {
	w.t.Helper()
	return fxtest.New(w.t,
		fx.NopLogger,
		fx.Supply(Config{MaxInFlight: 10, ClaimMinIdle: time.Minute, Updates: stream.Updates}, quiet()),
		fx.Provide(
			func() Redis { return w.open("b1") },
			func() Rows { return w.rows },
			func() Temporal { return w.temporal },
			func() Metrics { return w.metrics },
		),
		Module(),
		fx.Populate(populate),
	)
}

func TestModuleRunsTheBridgeForTheLifeOfTheApplication(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var b *Bridge
	app := w.application(&b)
	app.RequireStart()
	w.agentJob("j1")
	w.started(job.Agent, "j1")
	require.NoError(t, b.Ready(t.Context()))
	app.RequireStop()
	require.EqualValues(t, 1, w.pending(job.Agent), "left for the next")
}

func TestModuleStopsTheApplicationWhenTheBridgeEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var b *Bridge
	app := w.application(&b)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, b.Run(ended)) // used up: the module's own Run fails at once
	app.RequireStart()
	select {
	case signal := <-app.Wait():
		require.Equal(t, 1, signal.ExitCode)
	case <-time.After(patience):
		require.Fail(t, "the application goes on without its bridge")
	}
	app.RequireStop()
}

func TestModuleGraph(t *testing.T) {
	t.Parallel()
	require.NoError(t, fx.ValidateApp(
		fx.Supply(Config{}),
		fx.Provide(
			func() *slog.Logger { return nil },
			func() Redis { return nil },
			func() Rows { return nil },
			func() Temporal { return nil },
			func() Metrics { return nil },
		),
		Module(),
	))
}
