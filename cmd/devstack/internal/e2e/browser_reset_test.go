//go:build browser

package e2e

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// TestBrowserResetsManyByClicking runs all failed jobs of a role again, from the
// README's view of them. There the runs stay, and are reset once more: that costs
// no call.
func TestBrowserResetsManyByClicking(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, nil)
	b.Start(nil, "run")
	const n = 5
	var jobs []string
	for i := range n {
		jobs = append(jobs, fmt.Sprintf("summary-%d", i+1))
		b.Submit("agent", "jobId", jobs[i], "userId", "u1", "task", "!fail 400 x1 "+harness.Text("task"))
	}
	b.Submit("manager", "jobId", "other", "userId", "u1", "task", "!fail 400 "+harness.Text("task"))
	for _, j := range append(jobs, "other") {
		require.Equal(t, "error", b.Update(j, 1)["Type"])
	}
	b.Settled("agent")
	b.Settled("manager")

	reset := func() {
		b.openView(readmeViews(t)["Failed jobs of a role"], n)
		b.click(`[data-testid="batch-actions-checkbox-label"]`, "")
		b.contains("main", fmt.Sprintf("%d selected", n))
		b.picture("failed-jobs", 600)
		b.click(`[data-testid="bulk-reset-button"]`, "")
		b.contains("#batch-reset-confirmation-modal", fmt.Sprintf("reset %d workflows", n))
		b.click(`#batch-reset-confirmation-modal label:has(#reset-event-first)`, "")
		b.click(`#batch-reset-confirmation-modal [data-testid="confirm-modal-button"]`, "")
		b.until("the UI says that it does so", `document.body.innerText.includes("The batch reset request is processing in the background.")`)
	}
	const healthy = "WorkflowType='JobWorkflow' AND ExecutionStatus='Completed' AND JobRole='agent'"

	reset()
	for _, j := range jobs {
		b.healed("agent", j, 2)
	}
	b.Visible(n, healthy)
	require.Equal(t, 2*n+1, b.LLM.Stats().Calls)

	reset()
	b.Visible(2*n, healthy)
	for _, j := range jobs {
		b.healed("agent", j, 2)
	}
	require.Equal(t, 2*n+1, b.LLM.Stats().Calls)
	require.Equal(t, "failed", b.Row("manager", "other")["status"], "what was not selected stays as it is")
	all, err := b.Redis.XLen(t.Context(), harness.Updates).Result()
	require.NoError(t, err)
	require.EqualValues(t, 2*n+1, all)
}

// TestBrowserResetsOneByClicking runs a failed job again from the page of its run.
func TestBrowserResetsOneByClicking(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, nil)
	b.Start(nil, "run")
	b.Submit("agent", "jobId", "j1", "userId", "u1", "task", "!fail 400 x1 "+harness.Text("task"))
	require.Equal(t, "error", b.Update("j1", 1)["Type"])
	b.Settled("agent")

	b.openView(readmeViews(t)["Failed jobs of a role"], 1)
	b.click(`[data-testid="workflows-summary-configurable-table-row"] a`, "job:agent:j1")
	b.contains("main", "llm_bad_request", "The language model did not accept the request.")
	b.click("main button", "Reset")
	b.click(`dialog[open] [data-testid="workflow-reset-event-id-select-button"]`, "")
	b.click(`dialog[open] [role="option"]`, "4 - WorkflowTaskCompleted")
	b.click(`dialog[open] [data-testid="confirm-modal-button"]`, "")
	b.contains("main", "This Workflow has been reset")

	b.healed("agent", "j1", 2)
	require.Equal(t, 2, b.LLM.Stats().Calls)
	b.click("main a", "here")
	b.status("Completed")
}
