//go:build failpoints

package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestFailpointMistakes runs the scripts for what only a build with crash points
// has.
func TestFailpointMistakes(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/failpoints",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"exits": exits},
	})
}
