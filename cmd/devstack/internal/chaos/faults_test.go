//go:build chaos

package chaos

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fault is one row of the catalogue of faults.
type fault struct {
	id    string // F11
	name  string // what is done to the system, and when
	setup setup
	// run starts the processes it wants, submits jobs and does harm to them. It
	// ends when the fault is over (heal); rest and the checks come after it.
	run func(w *world)
	// after looks, when all is at rest, at what this fault must have led to. It may
	// be nil.
	after func(w *world)
	// partial: run leaves work undone on purpose, because coming to rest would take
	// too long. Nothing is said of I1 then.
	partial bool
	// drains is how much longer than recoverWithin it may take to work off what has
	// piled up during the fault.
	drains time.Duration
	// within, if not 0, takes the place of recoverWithin.
	within time.Duration
	// first: the row waits longest, so that it must not be the last to start. Those
	// that work hardest are not meant: together they would starve each other.
	first bool
	// long: the row takes too long where time is short, and is left out there.
	long bool
	// cannot says why the row is not run here, and what is known instead.
	cannot string
	// note goes into the table: what was seen beside the guarantees.
	note string
	seed bool // a random schedule, which has a table of its own
}

// TestFaults runs every row. They share nothing but the machine.
func TestFaults(t *testing.T) {
	t.Parallel()
	all := slices.Concat(
		processFaults(), temporalFaults(), redisFaults(), databaseFaults(), llmFaults(), hostFaults(),
	)
	slices.SortStableFunc(all, func(a, b fault) int {
		switch {
		case a.first == b.first:
			return 0
		case a.first:
			return -1
		default:
			return 1
		}
	})
	seen := map[string]bool{}
	for _, f := range all {
		require.False(t, seen[f.id], "%s is there twice", f.id)
		seen[f.id] = true
		if f.long && shared.short {
			f.cannot = "takes too long for a short run; make chaos runs it"
		}
		if f.cannot != "" {
			shared.report.add(result{id: f.id, name: f.name, cannot: f.cannot})
			continue
		}
		t.Run(f.id, func(t *testing.T) {
			t.Parallel()
			f.play(t)
		})
	}
}

func (f fault) play(t *testing.T) {
	t.Helper()
	res := result{id: f.id, name: f.name, note: f.note, seed: f.seed, partial: f.partial, version: shared.version}
	// The first to be registered runs last: after the harness has ended the processes
	// and looked at their exit codes and complete logs, which can fail the row, too.
	t.Cleanup(func() {
		res.failed = t.Failed()
		shared.report.add(res)
	})
	w := newWorld(t, f.setup)
	f.run(w)
	v := w.rest(f)
	if f.after != nil {
		f.after(w)
	}
	if f.note != "" {
		w.remark("%s", f.note)
	}
	res.note = strings.Join(w.remarks, "; ")
	res.jobs, res.calls, res.maxCalls, res.recovery = v.jobs, v.calls, v.maxCalls, v.recovery
	res.excepted = w.exceptions()
	for _, g := range guarantees {
		found := v.all[g]
		if len(found) == 0 {
			continue
		}
		res.broken = append(res.broken, g)
		t.Errorf("%s is broken:\n%s", g, strings.Join(found[:min(len(found), 20)], "\n"))
	}
}
