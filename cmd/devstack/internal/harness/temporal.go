package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/temporald"
)

// temporalVariable makes a test binary play the Temporal server: its value is
// the JSON of a temporald.Config.
const temporalVariable = "DEVSTACK_TEST_TEMPORAL"

// PlayTemporal runs a Temporal server if this process was started to be one, and
// reports whether it was. TestMain calls it first.
func PlayTemporal() (code int, played bool) {
	text := os.Getenv(temporalVariable)
	if text == "" {
		return 0, false
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var cfg temporald.Config
	err := json.Unmarshal([]byte(text), &cfg)
	if err == nil {
		var server *temporald.Server
		if server, err = temporald.Start(ctx, cfg, new(proc.Ports)); err == nil {
			<-ctx.Done()
			err = server.Stop()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// Temporal is a Temporal server in a process of its own, so that a test can kill
// and freeze it.
type Temporal struct {
	cfg     temporald.Config
	log     string
	process *proc.Process
}

// StartTemporal runs a server that ends with the test. The config's port must be
// free.
func StartTemporal(t *testing.T, cfg temporald.Config, log string) *Temporal {
	t.Helper()
	s := &Temporal{cfg: cfg, log: log}
	s.Restart(t)
	// It has nothing to lose that a test would look at after its end.
	t.Cleanup(s.Kill)
	return s
}

// Address is the host:port of the frontend.
func (s *Temporal) Address() string { return proc.Loopback(s.cfg.Port) }

// Process is the server's process.
func (s *Temporal) Process() *proc.Process { return s.process }

// Kill ends the server without warning.
func (s *Temporal) Kill() { s.process.Kill() }

// Reconfigure changes how the server runs after the next Restart.
func (s *Temporal) Reconfigure(change func(*temporald.Config)) { change(&s.cfg) }

// Restart runs the server again on its database, and returns when it serves its
// namespaces.
func (s *Temporal) Restart(t *testing.T) {
	t.Helper()
	text, err := json.Marshal(s.cfg)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	s.process, err = proc.Start(proc.Spec{
		Name: "temporal", Path: self, LogFile: s.log,
		Env: proc.Environ(func(string) bool { return true }, map[string]string{temporalVariable: string(text)}),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, s.process.WaitReady(ctx, func(ctx context.Context) error {
		return temporald.Serving(ctx, s.Address(), s.cfg.Namespaces...)
	}))
}
