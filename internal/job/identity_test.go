package job_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nodpt/executor/internal/job"
)

func TestWorkflowID(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ jobID, want string }{
		"plain":              {"a.B-9_z", "job:agent:a.B-9_z"},
		"path":               {"../etc/passwd", ""},
		"space":              {"a b", ""},
		"colon":              {"a:b", ""},
		"looks like a hash":  {"h:2cf24dba5fb0a30e26e83b2ac5b9e29e", ""},
		"other script":       {"日本語", ""},
		"line break":         {"a\nb", ""},
		"NUL":                {"\x00", ""},
		"not UTF-8":          {"\xff", ""},
		"128 bytes":          {strings.Repeat("a", 128), "job:agent:" + strings.Repeat("a", 128)},
		"129 bytes":          {strings.Repeat("a", 129), ""},
		"internal to server": {"__temporal_x", "job:agent:__temporal_x"},
		"empty":              {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := job.WorkflowID(job.Agent, tt.jobID)
			if tt.want == "" {
				require.Regexp(t, `^job:agent:h:[0-9a-f]{32}$`, got)
				return
			}
			require.Equal(t, tt.want, got)
		})
	}
	// The hash is part of the contract: another one would run old jobs again.
	require.Equal(t, "job:chat:h:7509e5bda0c762d2bac7f90d758b5b22", job.WorkflowID(job.Chat, "hello world!"))
	require.NotEqual(t, job.WorkflowID(job.Agent, "x"), job.WorkflowID(job.Chat, "x"))
	require.NotEqual(t, job.WorkflowID(job.Agent, "x"), job.WorkflowID(job.Agent, "X"))
}

func TestWorkflowIDIsInjective(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		roles := rapid.SampledFrom(job.Roles())
		ids := rapid.OneOf(rapid.String(), rapid.StringMatching(`[A-Za-z0-9._-]{1,130}`), rapid.StringMatching(`(h:)?[0-9a-f]{32}`))
		keyA := job.Key{Role: roles.Draw(rt, "role a"), JobID: ids.Draw(rt, "id a")}
		keyB := job.Key{Role: roles.Draw(rt, "role b"), JobID: ids.Draw(rt, "id b")}
		a, b := job.WorkflowID(keyA.Role, keyA.JobID), job.WorkflowID(keyB.Role, keyB.JobID)
		requireWorkflowID(rt, a)
		requireWorkflowID(rt, b)
		require.Equal(rt, keyA == keyB, a == b)
	})
}

// requireWorkflowID checks what the Temporal SDK and server need of an id.
func requireWorkflowID(t require.TestingT, id string) {
	require.LessOrEqual(t, len(id), 200)
	for _, c := range []byte(id) {
		require.True(t, c > ' ' && c < 0x7f, "byte %#x", c)
	}
}

func TestEffectsAreDistinct(t *testing.T) {
	t.Parallel()
	effects := []string{
		job.EntryEffect("jobs:agent", "1-0"),
		job.EntryEffect("jobs:agent", "1-1"),
		job.EntryEffect("jobs:chat", "1-0"),
		job.AnswerEffect("jobs:agent", "1-0"),
		job.RunEffect("1-0"),
	}
	require.Equal(t, "entry:jobs:agent/1-0", effects[0])
	require.Equal(t, "answer:jobs:agent/1-0", effects[3])
	require.Equal(t, "run:1-0", effects[4])
	for i, effect := range effects {
		require.Equal(t, i == 4, job.IsRunEffect(effect), effect)
	}
	slices.Sort(effects)
	require.Len(t, slices.Compact(effects), 5)
}

func TestRejectedIDIsNoJobID(t *testing.T) {
	t.Parallel()
	_, err := job.Decode(job.Agent, entry("jobId", job.RejectedID("1-0"), "task", "x"))
	var rejection *job.Rejection
	require.ErrorAs(t, err, &rejection)
	require.Equal(t, job.ReasonJobIDReserved, rejection.Reason)
	require.Equal(t, "entry:1-0", job.RejectedID("1-0"))
}

func TestCompareEntryIDs(t *testing.T) {
	t.Parallel()
	// In ascending order; what stands on one line is equal.
	order := [][]string{
		{"", "x", "x-1", "-5", "5-x", "5-", "18446744073709551616-0", "0-0"},
		{"0-1"},
		{"1-0", "1"},
		{"1-2"},
		{"1-10"},
		{"9-0"},
		{"10-0"},
		{"1526919030474-55"},
		{"18446744073709551615-18446744073709551615"},
	}
	for i, left := range order {
		for k, right := range order {
			for _, a := range left {
				for _, b := range right {
					require.Equal(t, sign(i-k), job.CompareEntryIDs(a, b), "%q, %q", a, b)
				}
			}
		}
	}
}

func sign(n int) int { return max(-1, min(1, n)) }

func TestEntryTime(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]time.Time{
		"1526919030474-55":       time.Date(2018, 5, 21, 16, 10, 30, 474e6, time.UTC),
		"253402300799999-0":      time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC),
		"253402300800000-0":      {},
		"18446744073709551615-0": {},
		"0-1":                    {},
		"":                       {},
		"nonsense":               {},
	} {
		require.Equal(t, want, job.EntryTime(id), id)
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	for _, role := range job.Roles() {
		got, err := job.ParseRole(string(role))
		require.NoError(t, err)
		require.Equal(t, role, got)
		require.Equal(t, "jobs:"+string(role), role.Stream())
	}
	for _, name := range []string{"", "Agent", "agents", strings.Repeat("x", 1000)} {
		_, err := job.ParseRole(name)
		require.Error(t, err)
		require.Less(t, len(err.Error()), 200)
	}
}
