//go:build chaos

package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A schedule is what happens in one run of row F60: jobs that are submitted and
// faults that strike, each at its time after the start. A seed draws it, so that
// the same seed is the same schedule.
type schedule struct {
	jobs   []plannedJob
	faults []plannedFault
}

type plannedJob struct {
	at        time.Duration
	role      string
	directive string
	again     time.Duration // its entry is added a second time so much later; 0: not
}

type plannedFault struct {
	at   time.Duration
	last time.Duration // until it is over
	// target is what is struck. No two faults strike one target at the same time.
	target string
	kind   string
	// point and action arm a failure point, for the kind "crash".
	point, action string
	pass          int
	// strength is the latency in milliseconds, or which of many is struck.
	strength int
}

func (f plannedFault) String() string {
	s := fmt.Sprintf("%6.1fs %-12s %-8s for %4.1fs", f.at.Seconds(), f.target, f.kind, f.last.Seconds())
	switch f.kind {
	case crash:
		s += fmt.Sprintf(" %s:%d:%s", f.point, f.pass, f.action)
	case slow:
		s += fmt.Sprintf(" %d ms", f.strength)
	}
	return s
}

// Kinds of faults.
const (
	kill      = "kill"      // SIGKILL, and started again when the fault is over
	term      = "term"      // SIGTERM (Postgres: SIGINT, or it would wait for its clients), the same
	freeze    = "freeze"    // SIGSTOP, SIGCONT
	crash     = "crash"     // started anew with a failure point
	cut       = "cut"       // connections broken and refused
	slow      = "slow"      // latency
	halfOpen  = "half-open" // connections that carry nothing
	refuse    = "refuse"    // the LLM answers 503
	ration    = "ration"    // the LLM answers 429 with Retry-After
	destroy   = "destroy"   // XGROUP DESTROY
	terminate = "terminate" // an operator terminates an open run
)

// What can be struck, and how.
const (
	theBridge, otherBridge = "bridge", "bridge-2"
	theWorkflows           = "workflows"
	theRoles, otherRoles   = "roles", "roles-2"

	redisServer, temporalServer, postgresServer = "redis", "temporal", "postgres"
)

// isServer reports whether a target is what executors depend on.
func isServer(target string) bool {
	return target == redisServer || target == temporalServer || target == postgresServer
}

func strikes() map[string][]string {
	process, server, network := []string{kill, term, freeze, crash, crash}, []string{kill, freeze, term}, []string{cut, slow, halfOpen}
	return map[string][]string{
		theBridge: process, otherBridge: process, theWorkflows: process, theRoles: process, otherRoles: process,
		redisServer: server, temporalServer: server, postgresServer: server,
		"edge bridge-redis": network, "edge worker-redis": network, "edge temporal": network, "edge llm": network, "edge database": network,
		"llm": {refuse, ration}, "group": {destroy}, "run": {terminate},
	}
}

func failurePoints(target string) []string {
	switch target {
	case theBridge, otherBridge:
		return []string{"read", "decode", "claimed", "start_sent", "started", "published", "acked", "settled"}
	case theWorkflows:
		return []string{"persist_tx", "persisted", "published", "dead_lettered", "acked"}
	default:
		return []string{"leased", "llm_sent", "llm_done", "answer_kept"}
	}
}

// gap is the time between the beginnings of two faults; settle is how long a
// target is left alone after one.
const (
	minGap, maxGap = 2 * time.Second, 10 * time.Second
	settle         = 2 * time.Second
)

// draw returns the schedule of a seed. Jobs come evenly over all but the last
// tenth of the time.
func draw(seed int, length time.Duration, jobs int) schedule {
	return rapid.Custom(func(t *rapid.T) schedule {
		return schedule{jobs: drawJobs(t, length-length/10, jobs), faults: drawFaults(t, length)}
	}).Example(seed)
}

func drawJobs(t *rapid.T, length time.Duration, n int) []plannedJob {
	directives := slices.Concat(
		slices.Repeat([]string{""}, 78),
		slices.Repeat([]string{"!slow 2s"}, 12), slices.Repeat([]string{"!slow 9s"}, 2),
		slices.Repeat([]string{"!fail 400"}, 4), slices.Repeat([]string{"!fail 503 x1"}, 4),
	)
	jobs := make([]plannedJob, n)
	for i := range jobs {
		j := plannedJob{
			at:        length * time.Duration(i) / time.Duration(n),
			role:      rapid.SampledFrom(roles).Draw(t, "role"),
			directive: directives[rapid.IntRange(0, len(directives)-1).Draw(t, "directive")],
		}
		// A second entry for a failed job is a retry: another row's subject.
		if j.directive == "" && rapid.IntRange(0, 19).Draw(t, "again") == 19 {
			j.again = millis(t, "again after", 1, 5000)
		}
		jobs[i] = j
	}
	return jobs
}

func drawFaults(t *rapid.T, length time.Duration) []plannedFault {
	all := strikes()
	busy := map[string]time.Duration{} // until when a target is struck
	var faults []plannedFault
	for at := minGap; at < length; at += millis(t, "gap", minGap, maxGap) {
		free := slices.DeleteFunc(slices.Sorted(keys(all)), func(target string) bool { return busy[target] > at })
		f := plannedFault{at: at, target: rapid.SampledFrom(free).Draw(t, "target")}
		f.kind = rapid.SampledFrom(all[f.target]).Draw(t, "kind")
		switch f.kind {
		case kill:
			f.last = millis(t, "down", 0, 6*time.Second)
		case freeze:
			f.last = millis(t, "frozen", time.Second, 15*time.Second)
			if isServer(f.target) {
				// Shorter than permits (9 s) and heartbeats (8 s) live, so that it is the
				// silence that is tried, and not what their loss leads to.
				f.last = millis(t, "silent", time.Second, 6*time.Second)
			}
		case term:
			f.last = 12 * time.Second // it may drain
			if isServer(f.target) {
				f.last = millis(t, "down", time.Second, 6*time.Second)
			}
		case crash:
			f.last = 15 * time.Second
			f.point = rapid.SampledFrom(failurePoints(f.target)).Draw(t, "point")
			f.pass = rapid.IntRange(1, 12).Draw(t, "pass")
			f.action = rapid.SampledFrom([]string{"kill", "kill", "error", "sleep=3s"}).Draw(t, "action")
		case slow:
			f.last = millis(t, "slow", 2*time.Second, 12*time.Second)
			f.strength = rapid.IntRange(50, 1500).Draw(t, "latency")
		case cut, halfOpen, refuse, ration:
			f.last = millis(t, "away", 500*time.Millisecond, 10*time.Second)
		default:
			f.strength = rapid.IntRange(0, 1000).Draw(t, "which")
		}
		busy[f.target] = f.at + f.last + settle
		faults = append(faults, f)
	}
	return faults
}

func millis(t *rapid.T, label string, from, to time.Duration) time.Duration {
	return time.Duration(rapid.Int64Range(from.Milliseconds(), to.Milliseconds()).Draw(t, label)) * time.Millisecond
}

// kinds counts the faults by kind, for the table.
func (s schedule) kinds() string {
	count := map[string]int{}
	for _, f := range s.faults {
		count[f.kind]++
	}
	names := slices.SortedFunc(keys(count), func(a, b string) int {
		return cmp.Or(cmp.Compare(count[b], count[a]), strings.Compare(a, b))
	})
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = fmt.Sprintf("%d %s", count[name], name)
	}
	return strings.Join(parts, ", ")
}

// TestSameSeedSameSchedule is what makes a seed worth printing.
func TestSameSeedSameSchedule(t *testing.T) {
	t.Parallel()
	for seed := range 20 {
		first := draw(seed, 10*time.Minute, 2000)
		require.Equal(t, first, draw(seed, 10*time.Minute, 2000))
		require.NotEqual(t, first, draw(seed+1, 10*time.Minute, 2000))
		require.Len(t, first.jobs, 2000)
		require.Greater(t, len(first.faults), 60)
		until := map[string]time.Duration{}
		for _, f := range first.faults {
			require.GreaterOrEqual(t, f.at, until[f.target], "%s is struck twice at a time", f.target)
			until[f.target] = f.at + f.last
		}
	}
}
