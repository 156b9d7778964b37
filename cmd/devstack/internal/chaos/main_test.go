//go:build chaos

// Package chaos is the fault suite: it kills, cuts, freezes and empties what the
// executor depends on, and the executor itself, and then looks from the
// outside whether every guarantee of docs/DESIGN.md section 3 held. It exists
// apart from the end-to-end tests because it needs a binary with failure points,
// a Temporal server it may kill, and more time.
package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/leak"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// Settings of a run, from the environment.
const (
	// shortVariable, if not empty, cuts outages of minutes to seconds.
	shortVariable = "CHAOS_SHORT"
	// plainVariable names an executor without race detector and failure points,
	// for the rows that measure memory.
	plainVariable = "CHAOS_PLAIN_BINARY"
	// reportVariable names the file that the table of results is written to.
	reportVariable = "CHAOS_REPORT"
	// docVariable names the document whose table of results is brought up to date.
	docVariable = "CHAOS_DOC"
)

// shortWithin is what a short run is to take at most, without its build.
const shortWithin = 10 * time.Minute

// suite is what all cases share.
type suite struct {
	harness.Suite
	plain   string
	short   bool
	version string // of the executor
	report  *report
}

// shared is set by TestMain before any test runs, and not changed afterwards.
var shared *suite //nolint:gochecknoglobals // the only way from TestMain to a test

func TestMain(m *testing.M) {
	if code, played := harness.PlayTemporal(); played {
		os.Exit(code)
	}
	os.Exit(runSuite(m))
}

func runSuite(m *testing.M) int {
	flag.Parse()
	registerToxics()
	// Inherited by the servers that are started: one whose files may not grow any
	// more gets an error then, as on a full disk, and not this signal.
	signal.Ignore(syscall.SIGXFSZ)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "executor-chaos-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		shared = &suite{
			Suite: harness.Suite{Ports: new(proc.Ports)},
			short: os.Getenv(shortVariable) != "", plain: os.Getenv(plainVariable), report: new(report),
		}
		shared.Binary, err = harness.ExecutorBinary(ctx, dir, "failpoints")
	}
	if err == nil && shared.plain == "" {
		err = fmt.Errorf("%s is not set: run this through `make chaos`", plainVariable)
	}
	if err == nil {
		shared.version, err = version(ctx, shared.Binary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	began := time.Now()
	code := m.Run()
	shared.report.took = time.Since(began)
	if shared.short {
		shared.report.promised = shortWithin
	}
	leaked := leak.Check()
	if code != 0 || leaked != nil {
		shared.report.blame("a test that is no row failed, or goroutines outlive the rows")
	}
	if err := errors.Join(leaked, writeReport()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// version is what an executor says it is, which each line of the table repeats.
func version(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "version").Output()
	if err != nil {
		return "", fmt.Errorf("%s version: %w", binary, err)
	}
	words := strings.Fields(string(out))
	if len(words) < 2 {
		return "", fmt.Errorf("%s version: it says %q", binary, out)
	}
	return words[1], nil
}

// writeReport writes to standard output where no file is named.
func writeReport() error {
	path := os.Getenv(reportVariable)
	if path == "" {
		return shared.report.finish(os.Stdout, os.Getenv(docVariable))
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(shared.report.finish(f, os.Getenv(docVariable)), f.Close())
}
