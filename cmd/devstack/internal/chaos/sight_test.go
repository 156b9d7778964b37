//go:build chaos

package chaos

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// A checker that finds nothing shows nothing unless it would.
func TestWhatIsToldIsComparedWithTheRow(t *testing.T) {
	t.Parallel()
	done, failed := outcome{status: "completed", output: "42"}, outcome{status: "failed", code: "llm_bad_request"}
	for name, tc := range map[string]struct {
		told   update
		stored outcome
		want   string
	}{
		"the answer":         {update{kind: "result", payload: "42"}, done, ""},
		"another answer":     {update{kind: "result", payload: "43"}, done, "another answer is told than stored"},
		"the failure":        {update{kind: "error", payload: `{"code":"llm_bad_request","message":"no"}`}, failed, ""},
		"another failure":    {update{kind: "error", payload: `{"code":"worker_died"}`}, failed, "it is told as failed for worker_died and stored for llm_bad_request"},
		"no failure at all":  {update{kind: "error", payload: "oops"}, failed, "what is told of its failure cannot be read"},
		"an answer instead":  {update{kind: "result", payload: "42"}, failed, "it is told as result and stored as failed"},
		"a failure instead":  {update{kind: "error", payload: `{"code":""}`}, done, "it is told as error and stored as completed"},
		"canceled":           {update{kind: "error", payload: `{"code":"canceled"}`}, outcome{status: "canceled", code: "canceled"}, ""},
		"rejected, as error": {update{kind: "error", payload: `{"code":"task_missing"}`}, outcome{status: "rejected", code: "task_missing"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tc.want, tc.told.differs(tc.stored))
		})
	}
}

func TestTheOrderOfEachEntryIsLookedAt(t *testing.T) {
	t.Parallel()
	set := func(members ...string) map[string]bool {
		out := map[string]bool{}
		for _, m := range members {
			out[m] = true
		}
		return out
	}
	const first, second = "1-0", "2-0"
	own := func(id string) string { return harness.MessageID("entry:jobs:agent/" + id) }
	row := func(status, entry string) map[string]outcome {
		return map[string]outcome{"agent/j": {status: status, entry: entry, effect: "entry:jobs:agent/" + entry}}
	}
	j := &jobRecord{role: "agent", id: "j"}
	for name, tc := range map[string]struct {
		sight   sight
		entries []string
		want    []string
	}{
		"nothing yet": {sight{}, []string{first}, nil},
		"all done": {
			sight{acked: set("agent/1-0"), told: set(own(first)), byJob: set("agent/j"), rows: row("completed", first)},
			[]string{first},
			nil,
		},
		"acknowledged too early": {
			sight{acked: set("agent/1-0")},
			[]string{first},
			[]string{"agent/j was acknowledged before its update (1-0)"},
		},
		"both acknowledged too early": {
			sight{acked: set("agent/1-0", "agent/2-0")},
			[]string{first, second},
			[]string{"agent/j was acknowledged before its update (1-0)", "agent/j was acknowledged before its update (2-0)"},
		},
		"a duplicate while the run is open": {sight{acked: set("agent/2-0")}, []string{first, second}, nil},
		"published too early": {
			sight{told: set(own(first)), byJob: set("agent/j")},
			[]string{first},
			[]string{"agent/j was published before its row"},
		},
		"the retry acknowledged too early": {
			sight{
				acked: set("agent/1-0", "agent/2-0"), told: set(own(first)), byJob: set("agent/j"),
				letters: set("agent/1-0"), rows: row("completed", second),
			},
			[]string{first, second},
			[]string{"agent/j was acknowledged (agent/2-0) before its own update"},
		},
		"the dead letter too late": {
			sight{acked: set("agent/1-0"), told: set(own(first)), byJob: set("agent/j"), rows: row("failed", first)},
			[]string{first},
			[]string{"agent/j was acknowledged (agent/1-0) before its dead letter"},
		},
		"canceled, without a dead letter": {
			sight{acked: set("agent/1-0"), told: set(own(first)), byJob: set("agent/j"), rows: row("canceled", first)},
			[]string{first},
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tc.want, tc.sight.job(j, tc.entries))
		})
	}

	r := rejection{role: "agent", entry: first}
	rows := map[string]outcome{r.row(): {status: "rejected"}}
	require.Empty(t, sight{}.rejection(r))
	require.Empty(t, sight{acked: set("agent/1-0"), told: set(r.told()), letters: set("agent/1-0"), rows: rows}.rejection(r))
	require.Len(t, sight{acked: set("agent/1-0"), rows: rows}.rejection(r), 2)
	require.Len(t, sight{told: set(r.told())}.rejection(r), 1)
}

func TestAShortRunThatTakesLongSaysSo(t *testing.T) {
	t.Parallel()
	require.NotContains(t, (&report{took: time.Hour}).duration(), "WARNING")
	require.NotContains(t, (&report{took: shortWithin, promised: shortWithin}).duration(), "WARNING")
	require.Contains(t, (&report{took: shortWithin + time.Second, promised: shortWithin}).duration(), "WARNING")
}
