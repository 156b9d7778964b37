package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/leak"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/temporald"
)

// namespacesPerRound is how many tests can have a Temporal namespace of their
// own: all executors poll the same task queues, and must not run each other's
// jobs. -count=n runs n rounds.
const namespacesPerRound = 96

// suite is what all tests share.
type suite struct {
	temporal *temporald.Server
	ports    *proc.Ports
	binary   string
	dir      string
	free     chan string // namespaces nobody uses yet
}

// shared is set by TestMain before any test runs, and not changed afterwards.
var shared *suite //nolint:gochecknoglobals // the only way from TestMain to a test

func TestMain(m *testing.M) {
	if dir := os.Getenv(stackVariable); dir != "" {
		os.Exit(playStack(dir))
	}
	os.Exit(runSuite(m))
}

func runSuite(m *testing.M) int {
	flag.Parse()
	rounds, err := strconv.Atoi(flag.Lookup("test.count").Value.String())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s, err := newSuite(max(rounds, 1))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared = s
	code := m.Run()
	if err := errors.Join(s.temporal.Stop(), os.RemoveAll(s.dir), leak.Check()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

func newSuite(rounds int) (*suite, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "executor-e2e-")
	if err != nil {
		return nil, err
	}
	names := make([]string, namespacesPerRound*rounds)
	s := &suite{ports: new(proc.Ports), dir: dir, free: make(chan string, len(names))}
	for i := range names {
		names[i] = "test-" + strconv.Itoa(i+1)
		s.free <- names[i]
	}

	// Building the executor and starting the server share the waiting.
	var built sync.WaitGroup
	var buildErr error
	built.Go(func() { s.binary, buildErr = harness.ExecutorBinary(ctx, dir) })
	port, err := s.ports.Free(ctx)
	if err == nil {
		s.temporal, err = temporald.Start(ctx, temporald.Config{
			Port: port, Database: filepath.Join(dir, "temporal.db"), LogFile: filepath.Join(dir, "temporal.log"),
			Namespaces: names,
		}, s.ports)
	}
	built.Wait()
	return s, errors.Join(err, buildErr)
}
