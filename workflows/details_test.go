package workflows_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	sdkpb "go.temporal.io/api/sdk/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// currentDetails are what the Web UI asks a run for.
func (b *bundle) currentDetails() string {
	value, err := b.QueryWorkflow("__temporal_workflow_metadata")
	if err != nil {
		return err.Error()
	}
	var metadata sdkpb.WorkflowMetadata
	if err := value.Get(&metadata); err != nil {
		return err.Error()
	}
	return metadata.GetCurrentDetails()
}

func lines(l ...string) string { return strings.Join(l, "\n") + "\n" }

func TestJobWorkflowTellsItsStory(t *testing.T) {
	t.Parallel()
	const (
		asking       = "**Now:** asking the model (agent call on queue `executor-agent`); its attempts are below, as a pending activity"
		published    = "- Published to `signalr:updates`"
		acknowledged = "- Acknowledged: `1700000000000-0` of `jobs:agent`"
		finishing    = "- Answered: model `m`, 3 prompt and 5 completion tokens, 1 attempt, after 0s\n\n" +
			"**Now:** storing the row, publishing the update and acknowledging the entry\n"
	)
	completedElsewhere := job.Row{Effect: "entry:jobs:agent/1-0", Outcome: job.Outcome{Status: job.Completed}}
	tests := map[string]struct {
		change func(t *testing.T, b *bundle)
		told   []string // per activity
		end    string
	}{
		"completed": {
			told: []string{
				lines(asking),
				finishing, finishing, finishing,
			},
			end: lines("- Answered: model `m`, 3 prompt and 5 completion tokens, 1 attempt, after 0s", "- Stored: completed", published, acknowledged, "",
				"**Ended:** completed"),
		},
		"completed at the third attempt, truncated": {
			change: func(_ *testing.T, b *bundle) {
				b.run = func(ctx context.Context, _ workflows.Call) (workflows.Answer, error) {
					if activity.GetInfo(ctx).Attempt < 3 {
						return workflows.Answer{}, temporal.NewApplicationError("down", "llm_unreachable")
					}
					return workflows.Answer{Model: "m", Attempts: 3, Truncated: true}, nil
				}
			},
			end: lines("- Answered: model `m`, tokens not counted, 3 attempts, after 3s, truncated at the token limit",
				"- Stored: completed", published, acknowledged, "", "**Ended:** completed"),
		},
		"failed": {
			change: func(_ *testing.T, b *bundle) {
				b.run = func(context.Context, workflows.Call) (workflows.Answer, error) {
					return workflows.Answer{}, temporal.NewNonRetryableApplicationError("safe", "llm_bad_request", nil,
						workflows.Failure{Model: "m", Attempts: 2, Cause: "llm_bad_request, status 400 (`x`)"})
				}
			},
			end: lines("- Failed: `llm_bad_request`, model `m`, 2 attempts", "- Cause: `llm_bad_request, status 400 (\\u0060x\\u0060)`",
				"- Stored: failed with `llm_bad_request`", published, "- Dead letter written", acknowledged, "", "**Ended:** failed with `llm_bad_request`"),
		},
		"failed in an unknown role": {
			change: func(_ *testing.T, b *bundle) { b.in.Job.Role = "nobody" },
			end: lines("- Failed: `unknown_role`", "- Stored: failed with `unknown_role`", published, "- Dead letter written", acknowledged, "",
				"**Ended:** failed with `unknown_role`"),
		},
		"canceled": {
			change: func(_ *testing.T, b *bundle) {
				b.run = func(context.Context, workflows.Call) (workflows.Answer, error) {
					b.CancelWorkflow()
					return workflows.Answer{}, temporal.NewCanceledError()
				}
			},
			end: lines("- Canceled while the model was asked", "- Stored: canceled", published, acknowledged, "", "**Ended:** canceled"),
		},
		"superseded": {
			change: func(_ *testing.T, b *bundle) {
				b.persist = func(row job.Row) (workflows.Stored, error) {
					return workflows.Stored{Verdict: job.Superseded, Row: &row}, nil
				}
			},
			end: lines("- Answered: model `m`, 3 prompt and 5 completion tokens, 1 attempt, after 0s",
				"- Superseded: a newer run has stored completed, so nothing is published", acknowledged, "", "**Ended:** completed"),
		},
		"started by a person, completed before": {
			change: func(t *testing.T, b *bundle) {
				t.Helper()
				require.NoError(t, b.SetMemoOnStart(nil))
				b.stored = workflows.Stored{Found: true, Row: &completedElsewhere}
			},
			told: []string{lines("**Now:** reading the row, because a person started this run")},
			end:  lines("**Ended:** another run has completed the job, so the model was not asked and nothing is published"),
		},
		"with an override": {
			change: func(_ *testing.T, b *bundle) {
				b.RegisterDelayedCallback(func() {
					b.SignalWorkflow(workflows.OverrideSignal, workflows.Override{Model: "<b>`other`", MaxTokens: 7, Force: true})
				}, 0)
			},
			told: []string{
				lines("**Now:** asking the model (agent call, model `<b>\\u0060other\\u0060`, at most 7 tokens on queue `executor-agent`); " +
					"its attempts are below, as a pending activity"),
			},
		},
		"without an entry": {
			change: func(_ *testing.T, b *bundle) { b.in.Origin.EntryID, b.in.Origin.Updates = "", "" },
			end: lines("- Answered: model `m`, 3 prompt and 5 completion tokens, 1 attempt, after 0s", "- Stored: completed",
				"- Published to (empty)", "", "**Ended:** completed"),
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t, job.Agent).fromEntry(t)
			b.in.Job.Task, b.in.Job.Payload = "CANARY-task", "CANARY-payload"
			if tt.change != nil {
				tt.change(t, b)
			}
			_, err := b.execute(t)
			t.Logf("it ended with %v", err)
			for i, want := range tt.told {
				require.Equal(t, want, b.told[i], b.steps[i])
			}
			end := b.currentDetails()
			if tt.end != "" {
				require.Equal(t, tt.end, end)
			}
			require.NotContains(t, strings.Join(b.told, "")+end, "CANARY")
			require.NotContains(t, strings.Join(b.told, "")+end, "the answer")
		})
	}
}

// TestJobWorkflowTellsThatAStepIsStuck: while a final step is retried, the UI shows
// it as a pending activity, and the run which step it is.
func TestJobWorkflowTellsThatAStepIsStuck(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	var told []string
	b.publish = func(_ int, local bool) error {
		if local {
			return errors.New("redis is down")
		}
		told = append(told, b.currentDetails())
		return nil
	}
	_, err := b.execute(t)
	require.NoError(t, err)
	require.Len(t, told, 1)
	require.Contains(t, told[0], "- Stored: completed\n\n"+
		"**Now:** publishing the update, again and again until it succeeds; the last error is below, at the pending activity\n")
	require.Contains(t, b.told[len(b.told)-1], "- Published to")
	require.Contains(t, b.told[len(b.told)-1], "**Now:** acknowledging the entry\n", "the next step is not stuck")
}

func hostile() []string {
	return []string{
		"<script>alert(1)</script>", "[click](https://evil.example)", "![x](https://evil.example/x.png)", "**bold**", "a`b``c```d",
		"`", "``` ```", "# heading", "a\n\n# heading\n", "line\r\n---\n", "x\x1b[31mred", "x\x00y", "\u202eevil", "a\u2028b", "\xff\xfe",
		"|a|b|", "$$x$$", "\\", "\\`", " ", "&lt;", "{{.Secret}}", "日本語 ünïcode 🚀", "\u200b", "\u00a0", strings.Repeat("`\n", 1000),
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	for _, s := range hostile() {
		for _, limit := range []int{3, 7, 160, 1 << 20} {
			got := workflows.Plain(s, limit)
			require.LessOrEqual(t, len(got), limit)
			require.True(t, utf8.ValidString(got))
			require.NotContains(t, got, "\n")
			for _, r := range got {
				require.True(t, unicode.IsPrint(r), "%q in %q", r, got)
			}
		}
	}
	for s, want := range map[string]string{
		"":                         "",
		"plain-1.2_3":              "plain-1.2_3",
		"日本語 ünïcode":              "日本語 ünïcode",
		"a\nb\rc\td":               `a\nb\rc\td`,
		"\x00\x1b\u202e\xff":       `\u0000\u001b\u202e\xff`,
		"\U000e0001":               `\U000e0001`,
		"\ufffd":                   "\ufffd",
		"0123456789012345678901":   "0123456789012345678901",
		"01234567890123456789012":  "0123456789012345678…",
		"012345678901234567\n\n\n": "012345678901234567…",
		"01234567890123456日本語":     "01234567890123456…",
	} {
		require.Equal(t, want, workflows.Plain(s, 22), "%q", s)
	}
}

func TestStartDetails(t *testing.T) {
	t.Parallel()
	in := workflows.Input{
		Job: job.Job{
			Role: job.Agent, ID: "j1", WorkflowID: "w1", UserID: "u1", ProjectID: "p1", NodeID: "n1", ConnectionID: "c1",
			Task: "CANARY-task", Payload: "CANARY-payload", Model: "m",
		},
		Origin: job.Origin{Stream: "jobs:agent", EntryID: "1-0"},
	}
	require.Equal(t, lines("- Job: `j1`", "- Stream: `jobs:agent`", "- Entry: `1-0`", "- User: `u1`", "- Project: `p1`",
		"- Node: `n1`", "- NodPT workflow: `w1`"), workflows.StartDetails(in))
	require.Empty(t, workflows.StartDetails(workflows.Input{}))
	for _, s := range hostile() {
		in := in
		in.Job.ID, in.Job.UserID, in.Job.ProjectID, in.Job.NodeID, in.Job.WorkflowID = s, s, s, s, s
		details := workflows.StartDetails(in)
		require.Less(t, len(details), 2000, "the server takes 20 kB, and encryption adds to it")
		items := strings.Split(strings.TrimSuffix(details, "\n"), "\n")
		require.Len(t, items, 7)
		for _, item := range items {
			require.Regexp(t, "^- [A-Za-z ]+: (`[^`]+`|\\(empty\\))$", item, "everything is inside of a code span")
		}
	}
}
