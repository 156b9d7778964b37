package app_test

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/fx"
	"go.uber.org/fx/fxevent"
	"go.uber.org/goleak"

	"github.com/nodpt/executor/internal/app"
	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/redistest"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// load returns settings under which nothing answers, on top of which come extra.
func load(t *testing.T, extra map[string]string) config.Config {
	t.Helper()
	environ := map[string]string{
		"REDIS_CONNECTION": "127.0.0.1:1",
		"TEMPORAL_ADDRESS": "127.0.0.1:1",
		"DATABASE_URL":     "sqlite://" + t.TempDir() + "/executor.db",
		"HTTP_ADDR":        "127.0.0.1:0",
		"LOG_LEVEL":        "error",
		"MAX_TOTAL":        "7",
	}
	maps.Copy(environ, extra)
	cfg, err := config.Load(environ)
	require.NoError(t, err)
	return cfg
}

func kinds() map[string]app.Kind {
	all := map[string]app.Kind{
		"run":    app.All("test"),
		"bridge": {Bridge: true},
	}
	for _, queue := range worker.Queues() {
		all["worker --queues "+queue] = app.Kind{Queues: []string{queue}}
	}
	return all
}

func TestGraphOfEveryCommand(t *testing.T) {
	t.Parallel()
	for name, kind := range kinds() {
		for setting, env := range map[string]map[string]string{
			"":            nil,
			", encrypted": {"ENCRYPTION_KEYS": encryptionKeys("a")},
		} {
			t.Run(name+setting, func(t *testing.T) {
				t.Parallel()
				require.NoError(t, fx.ValidateApp(app.Options(load(t, env), kind)))
			})
		}
	}
}

// hooks records which hooks were run, by the function that appended them.
type hooks struct {
	mu      sync.Mutex
	stopped []string
}

func (h *hooks) LogEvent(event fxevent.Event) {
	if e, ok := event.(*fxevent.OnStopExecuted); ok {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.stopped = append(h.stopped, e.CallerName)
	}
}

// TestStopOrder pins what DESIGN.md section 4 demands of a shutdown. It also
// shows that a process comes up and goes down while no server answers.
func TestStopOrder(t *testing.T) {
	t.Parallel()
	h := &hooks{}
	a := fx.New(app.Options(load(t, nil), app.All("test")), fx.WithLogger(func() fxevent.Logger { return h }))
	require.NoError(t, a.Err())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, a.Start(ctx))
	require.NoError(t, a.Stop(ctx))

	want := []string{
		"app.drainFirst", // not ready any more
		"bridge.manage",  // stop reading, finish dispatches
		"worker.Module",  // drain roles, then workflows
		"app.newGate",    // nobody waits for a permit any more
		"app.llmModule",
		"app.temporalModule",
		"app.storeModule",
		"app.adviseOnRedis",
		"app.redisModule",
		"telemetry.Module", // the endpoints answer to the end
		"telemetry.Module",
	}
	require.Len(t, h.stopped, len(want), "%v", h.stopped)
	for i, caller := range h.stopped {
		require.Contains(t, caller, want[i], "position %d of %s", i, strings.Join(h.stopped, ", "))
	}
}

// TestTwoDatabasesOnOneRedis shows that a process refuses to work with a
// database that does not know what another executor has done.
func TestTwoDatabasesOnOneRedis(t *testing.T) {
	t.Parallel()
	cfg := load(t, map[string]string{"REDIS_CONNECTION": redistest.Start(t).Addr()})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	other, err := stream.Open(cfg.Stream(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	_, err = other.AnnounceStore(ctx, "another database")
	require.NoError(t, err)

	code, err := app.Run(ctx, cfg, app.Kind{Bridge: true})
	require.ErrorContains(t, err, "two databases on one Redis")
	require.Equal(t, 2, code)
}

// TestUnusableDatabaseURL shows that what only the database can tell ends the
// process as other mistakes in the settings do.
func TestUnusableDatabaseURL(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/not-a-database"
	require.NoError(t, os.WriteFile(file, []byte(strings.Repeat("no database ", 100)), 0o600))
	cfg := load(t, map[string]string{"DATABASE_URL": "sqlite://" + file})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code, err := app.Run(ctx, cfg, app.Kind{Bridge: true})
	require.ErrorContains(t, err, "DATABASE_URL")
	require.Equal(t, 2, code)
}
