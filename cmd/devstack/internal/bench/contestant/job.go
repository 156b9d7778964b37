package contestant

import "strings"

// The jobs of the benchmark are those of an agent: the prompt is the task.
const (
	role      = "agent"
	model     = "trt-llm-agent"
	maxTokens = 128
)

// Job is one job. As JSON it looks like the executor's, so that it is as large in
// an engine or a queue.
type Job struct {
	ID           string `json:"jobId"`
	WorkflowID   string `json:"workflowId,omitempty"` // NodPT's, never Temporal's
	UserID       string `json:"userId,omitempty"`
	ProjectID    string `json:"projectId,omitempty"`
	NodeID       string `json:"nodeId,omitempty"`
	ConnectionID string `json:"connectionId,omitempty"`
	Task         string `json:"task,omitempty"`
	Payload      string `json:"payload,omitempty"`
}

// NewJob makes a job whose task and payload have that many bytes. The task begins
// with the id, as far as it fits, so that no two prompts are the same.
func NewJob(id string, taskBytes, payloadBytes int) Job {
	const before, after = `{"code":"`, `"}`
	return Job{
		ID:           id,
		WorkflowID:   "workflow-1",
		UserID:       "user-1",
		ProjectID:    "project-1",
		NodeID:       "node-1",
		ConnectionID: "connection-1",
		Task:         fill(id+" ", taskBytes),
		Payload:      before + fill("", payloadBytes-len(before)-len(after)) + after,
	}
}

// fill makes a text of n bytes that begins with some.
func fill(begin string, n int) string {
	n = max(n, 0)
	return begin[:min(len(begin), n)] + strings.Repeat("x", max(n-len(begin), 0))
}

// Fields are the names and values of the job's entry in a stream. The executor
// takes them as they are.
func (j Job) Fields() []string {
	return []string{
		"jobId", j.ID,
		"workflowId", j.WorkflowID,
		"userId", j.UserID,
		"projectId", j.ProjectID,
		"nodeId", j.NodeID,
		"connectionId", j.ConnectionID,
		"task", j.Task,
		"payload", j.Payload,
	}
}

// jobOf reads an entry. Contestants trust their input.
func jobOf(fields map[string]any) Job {
	text := func(name string) string {
		value, _ := fields[name].(string)
		return value
	}
	return Job{
		ID:           text("jobId"),
		WorkflowID:   text("workflowId"),
		UserID:       text("userId"),
		ProjectID:    text("projectId"),
		NodeID:       text("nodeId"),
		ConnectionID: text("connectionId"),
		Task:         text("task"),
		Payload:      text("payload"),
	}
}
