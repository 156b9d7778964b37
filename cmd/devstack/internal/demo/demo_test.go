package demo

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestJobsAreFreshAndOfAllRoles(t *testing.T) {
	t.Parallel()
	for _, scripted := range []bool{true, false} {
		roles, ids := map[string]int{}, map[string]bool{}
		directives := 0
		for _, j := range append(Jobs("a", scripted), Jobs("b", scripted)...) {
			require.False(t, ids[j.ID], j.ID)
			ids[j.ID] = true
			roles[j.Role]++
			if strings.Contains(strings.Join(j.Fields, " "), "!fail") {
				directives++
			}
		}
		require.Len(t, roles, 4)
		for role, n := range roles {
			require.GreaterOrEqual(t, n, 4, role)
		}
		if scripted {
			require.Equal(t, 4, directives)
		} else {
			require.Zero(t, directives, "a real LLM would take them for prompts")
		}
	}
}

// asExpected is a finished job; tests spoil copies of it.
func asExpected() Job {
	return Job{
		Role: "agent", ID: "j1", WantStatus: "completed", WantAttempts: 3,
		Entry: "1000-0", Update: "3500-0", Type: "result", Acked: true,
		Row: &Row{Status: "completed", Attempts: 3, PromptTokens: 5, CompletionTokens: 7, WorkflowID: "job:agent:j1"},
	}
}

func TestDifferences(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil func(*Job)
		want  string
	}{
		"none":             {func(*Job) {}, ""},
		"no update":        {func(j *Job) { j.Update = "" }, "no outcome arrived"},
		"wrong type":       {func(j *Job) { j.Type = "error" }, `of type "error"`},
		"no row":           {func(j *Job) { j.Row = nil }, "no row"},
		"wrong status":     {func(j *Job) { j.Row.Status, j.Row.ErrorCode = "failed", "llm_timeout" }, "failed: llm_timeout"},
		"too few attempts": {func(j *Job) { j.Row.Attempts = 1 }, "1 attempts, not 3"},
		"dead letter":      {func(j *Job) { j.Dead = true }, "dead letter written: true"},
		"pending":          {func(j *Job) { j.Acked = false }, "still pending"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := asExpected()
			tc.spoil(&j)
			if tc.want == "" {
				require.Empty(t, j.Differences())
				return
			}
			require.Len(t, j.Differences(), 1)
			require.Contains(t, j.Differences()[0], tc.want)
		})
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	cfg := Config{WorkflowURL: func(id string) string { return "http://ui/" + id }}
	good, lost := asExpected(), asExpected()
	lost.ID, lost.Update, lost.Row = "j2", "", nil
	require.Equal(t, 2500*time.Millisecond, good.Latency())

	var out bytes.Buffer
	require.NoError(t, Report(cfg, []*Job{&good}, &out))
	for _, cell := range []string{"j1", "agent", "completed", "3", "5/7", "2.50 s", "http://ui/job:agent:j1"} {
		require.Contains(t, out.String(), cell)
	}

	err := Report(cfg, []*Job{&good, &lost}, &out)
	require.ErrorContains(t, err, "j2: no outcome arrived")
	require.NotContains(t, err.Error(), "j1")
}
