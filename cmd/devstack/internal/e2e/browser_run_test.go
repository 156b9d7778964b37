//go:build browser

package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBrowserShowsARun reads the pages of a run that took three attempts, and of
// one whose call fails again and again.
func TestBrowserShowsARun(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, nil)
	b.LLM.Script(map[string]any{
		"answer": "Version 2.1 reads CSV files and starts twice as fast.",
		"rules": []map[string]any{
			{"contains": "release notes", "times": 2, "status": 503}, {"contains": "changelog", "status": 503},
		},
	})
	b.Start(nil, "run")
	b.Submit("agent", "jobId", "summary-1", "userId", "u1", "projectId", "p1", "task", "Summarise the release notes.")
	b.Submit("agent", "jobId", "summary-2", "userId", "u1", "projectId", "p1", "task", "Summarise the changelog.")
	require.Equal(t, "result", b.Update("summary-1", 1)["Type"])

	b.openRun("job:agent:summary-1", "Completed")
	b.contains("main", `"task": "Summarise the release notes."`, `"status": "completed"`, `"attempts": 3`)
	timeline := read(b, "the timeline",
		`[...document.querySelectorAll("#event-history-timeline-graph [aria-label]")].map(e => [e.getAttribute("aria-label"), e.textContent.trim()].join(" ").trim())`,
		func(got []string) bool { return len(got) == 3 })
	require.Regexp(t, `^Event RunAgent: Completed\s+3 •$`, timeline[1], "its attempts")
	require.Equal(t, "Event Finish: Unspecified Finish", timeline[2])
	b.picture("retried-call", 1080)

	b.openTab("history")
	// The last event stands on top.
	events := read(b, "all events", `[...document.querySelectorAll('[data-testid="event-summary-row"]')].map(row => row.innerText.replace(/\s+/g, " ").trim())`,
		func(got []string) bool { return len(got) == 12 })
	for i, want := range map[int]string{
		0: "Workflow Execution Completed", 1: "Local Activity Activity Type Finish",
		5: "Activity Task Completed", 6: "Activity Task Started Attempt 3",
		7: "Activity Task Scheduled Activity Type RunAgent", 11: "Workflow Execution Started",
	} {
		require.Contains(t, events[i], want)
	}
	b.click(`[data-testid="event-summary-row"]:nth-child(7) [aria-label="Expand details"]`, "")
	b.contains(`[data-testid="event-summary-row-expanded"]`, "llm_server_error, status 503", "(attempt 2, model trt-llm-agent")
	b.openTab("user-metadata")
	b.framed("user-metadata-summary", "agent")
	b.framed("user-metadata-details", "Job: summary-1", "User: u1", "Project: p1")
	b.framed("user-metadata-current-details", "Answered: model trt-llm-agent", "3 attempts", "Stored: completed", "Published to signalr:updates", "Ended: completed")
	b.openTab("search-attributes")
	b.contains("main", `"JobUser": "u1"`)

	b.openRun("job:agent:summary-2", "Running")
	b.openTab("pending-activities")
	b.contains("main", "RunAgent", "UNLIMITED", "llm_server_error, status 503", `"state": "failed with llm_server_error, waiting for the next attempt"`)
	b.picture("pending-call", 1130)
	b.openTab("user-metadata")
	b.framed("user-metadata-current-details", "Now: asking the model")
	b.LLM.Script(map[string]any{"rules": []map[string]any{}})
	require.Equal(t, "result", b.Update("summary-2", 1)["Type"])
}
