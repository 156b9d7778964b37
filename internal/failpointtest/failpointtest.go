//go:build failpoints

// Package failpointtest runs one test of a package in a process of its own whose
// failure points are armed. It exists because a plan is read once for a process,
// and because a killed process cannot report anything itself.
package failpointtest

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

const patience = time.Minute

// Run starts the calling test binary with the named test only, under a plan as
// in EXEC_FAIL and more variables in the form NAME=value. It waits for the end
// and returns what the process wrote to stderr and how it ended.
func Run(t *testing.T, test, plan string, env ...string) (stderr string, state *os.ProcessState) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(append(os.Environ(), "EXEC_FAIL="+plan), env...)
	var out strings.Builder
	cmd.Stderr = &out
	err := cmd.Run()
	if ctx.Err() != nil || cmd.ProcessState == nil {
		t.Fatalf("%s under %q did not come to its end: %v", test, plan, err)
	}
	return out.String(), cmd.ProcessState
}

// Killed reports whether a process ended by SIGKILL.
func Killed(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}
