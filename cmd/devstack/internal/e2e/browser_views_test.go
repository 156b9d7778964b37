//go:build browser

package e2e

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// readmeViews are the links into the Web UI that the README offers as ready-made
// views: from their texts to their paths.
func readmeViews(t *testing.T) map[string]string {
	t.Helper()
	root, err := harness.RepositoryRoot()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	views := map[string]string{}
	link := regexp.MustCompile(`\[([^\]]+)\]\(http://127\.0\.0\.1:8233(/namespaces/default/workflows\?query=[^)\s]+)\)`)
	for _, found := range link.FindAllStringSubmatch(string(text), -1) {
		require.NotContains(t, views, found[1], "two views of one name")
		views[found[1]] = found[2]
	}
	return views
}

// openView opens a list of runs when the server knows of n of them, and waits
// until the browser lists as many.
func (b *browser) openView(path string, n int) []string {
	b.T.Helper()
	u, err := url.Parse(path)
	require.NoError(b.T, err)
	b.Visible(int64(n), u.Query().Get("query"))
	b.open(path)
	return read(b, "runs listed by "+u.Query().Get("query"),
		`[...document.querySelectorAll('[data-testid="workflows-summary-configurable-table-row"]')].map(row =>
			row.querySelector("td a").textContent.trim() + " " + row.querySelector('[data-testid="execution-status"]').textContent.trim())`,
		func(rows []string) bool { return len(rows) == n })
}

// TestBrowserOpensTheViewsOfTheReadme follows every link, and expects exactly the
// runs that the README promises.
func TestBrowserOpensTheViewsOfTheReadme(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, nil)
	b.LLM.Script(map[string]any{"rules": []map[string]any{
		{"contains": "(refused)", "status": 400},
		{"contains": "(refused once)", "times": 1, "status": 400},
		{"contains": "(refused at first)", "times": 1, "status": 400},
		{"contains": "(endless)", "hang": true},
	}})
	b.Start(nil, "run")
	submit := func(role, jobID, user, project, text string) {
		field := map[bool]string{true: "message", false: "task"}[role == "chat"]
		b.Submit(role, "jobId", jobID, "userId", user, "projectId", project, field, harness.Text("task")+" "+text)
	}
	submit("agent", "summary-1", "u1", "p1", "(refused)")
	submit("agent", "summary-2", "u1", "p1", "(refused once)")
	submit("agent", "outline-1", "u2", "p2", "(refused at first)")
	submit("manager", "plan-1", "u1", "p2", "(refused)")
	submit("chat", "question-1", "u2", "p1", "")
	submit("inspector", "review-1", "u2", "p2", "(endless)")
	for _, jobID := range []string{"summary-1", "summary-2", "outline-1", "plan-1", "question-1"} {
		b.Update(jobID, 1)
	}
	b.Settled("agent")
	b.LLM.Await("the call runs", func(s harness.Stats) bool { return s.Running == 1 })
	require.NoError(t, b.Temporal.CancelWorkflow(t.Context(), "job:inspector:review-1", ""))
	b.Update("review-1", 1)
	submit("inspector", "review-2", "u2", "p2", "(endless)")
	b.Run("job:inspector:review-2", "Running")
	submit("inspector", "review-3", "u2", "p1", "(endless)")
	b.Run("job:inspector:review-3", "Running")

	operator := map[string]string{"REDIS_CONNECTION": b.OperatorConnection()}
	out := b.command(operator, "retry", "--role", "agent", "summary-2", "--yes", "--wait")
	require.Equal(t, 0, out.code, out.stderr)
	b.resetFirst("job:agent:outline-1")
	b.healed("agent", "summary-2", 2)
	b.healed("agent", "outline-1", 2)

	views := readmeViews(t)
	for name, want := range map[string][]string{
		"Failed jobs of a role": {"job:agent:outline-1 Failed", "job:agent:summary-1 Failed", "job:agent:summary-2 Failed"},
		"What runs now":         {"job:inspector:review-3 Running", "job:inspector:review-2 Running"},
		"A user's jobs": {
			"job:agent:summary-1 Failed", "job:agent:summary-2 Completed", "job:agent:summary-2 Failed", "job:manager:plan-1 Failed",
		},
		"A project's jobs": {
			"job:agent:summary-1 Failed", "job:agent:summary-2 Completed", "job:agent:summary-2 Failed",
			"job:chat:question-1 Completed", "job:inspector:review-3 Running",
		},
		"Jobs that were run again": {"job:agent:outline-1 Completed", "job:agent:summary-2 Completed"},
	} {
		require.Contains(t, views, name)
		got := b.openView(views[name], len(want))
		if name != "What runs now" { // the longest at the bottom
			slices.Sort(got)
		}
		require.Equal(t, want, got, name)
		delete(views, name)
	}
	require.Empty(t, views, "of these the test knows nothing")

	b.LLM.Release()
	b.Settled("inspector")
}
