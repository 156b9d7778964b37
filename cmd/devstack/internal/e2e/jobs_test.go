package e2e

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// updateNames are the fields of every update, sorted; chat has two more.
func updateNames(role string) []string {
	names := []string{
		"ClientConnectionId", "JobId", "MessageId", "NodeId", "Payload", "ProjectId", "Role", "Timestamp", "Type", "UserId", "WorkflowGroup",
	}
	if role == "chat" {
		names = append(names, "chatId", "connectionId")
	}
	return names
}

const timestampPattern = `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z$`

func columns() []string {
	return []string{
		"attempts", "completion_tokens", "connection_id", "dead_id", "effect", "enqueued_at", "entry_id", "error_code", "error_message",
		"fence", "finished_at", "job_id", "last_entry_id", "model", "node_id", "nodpt_workflow_id", "output", "project_id",
		"prompt_tokens", "role", "run_id", "started_at", "status", "stream", "truncated", "user_id", "workflow_id",
	}
}

// roleCase is one well-behaved job of a role.
type roleCase struct {
	role, model string
	fields      []string // beside the identifiers
	prompt      string   // what the LLM must get
	answer      string
}

func roleCases() []roleCase {
	answer := func(role string) string { return harness.Text("answer-"+role) + " <b>&amp; ünïcode 日本語" }
	manager, inspector, agent, chat := answer("manager"), answer("inspector"), answer("agent"), answer("chat")
	payload := `{"k":"` + harness.Text("payload") + ` <b>&","n":1e400}`
	return []roleCase{
		{"manager", "trt-llm-manager", []string{"task", "!echo " + manager, "payload", payload}, "!echo " + manager, manager},
		{
			"inspector", "trt-llm-inspector",
			[]string{"task", "!echo " + inspector, "payload", payload},
			`{"code":` + quoted(payload) + `,"task":"!echo ` + inspector + `"}`, inspector,
		},
		{"agent", "trt-llm-agent", []string{"task", "!echo " + agent, "payload", payload, "priority", "2"}, "!echo " + agent, agent},
		{
			"chat", "trt-llm-inspector",
			[]string{"message", "!echo " + chat, "nodeLevel", "inspector", "chatId", "chat-7"},
			"!echo " + chat, chat,
		},
	}
}

// quoted is a JSON string whose only escapes are those JSON demands.
func quoted(s string) string {
	out := []byte{'"'}
	for _, c := range []byte(s) {
		if c == '"' || c == '\\' {
			out = append(out, '\\')
		}
		out = append(out, c)
	}
	return string(append(out, '"'))
}

func TestEachRoleFromStreamToUpdate(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	for _, c := range roleCases() {
		jobID := "job-" + c.role
		fields := append([]string{
			"jobId", jobID, "workflowId", "w-" + c.role, "userId", "u-" + c.role, "projectId", "p-" + c.role,
			"connectionId", "c-" + c.role, "nodeId", "n-" + c.role,
		}, c.fields...)
		if c.role == "chat" {
			fields = append(fields[:2], fields[4:]...) // chats have no workflowId
		}
		before := time.Now()
		entry := b.Submit(c.role, fields...)
		workflowID := "job:" + c.role + ":" + jobID
		effect := "entry:jobs:" + c.role + "/" + entry
		nodptWorkflow := "w-" + c.role
		if c.role == "chat" {
			nodptWorkflow = ""
		}

		update := b.Update(jobID, 1)
		require.Equal(t, updateNames(c.role), harness.SortedKeys(update))
		stamp, err := time.Parse(time.RFC3339Nano, update["Timestamp"].(string))
		require.NoError(t, err)
		require.Regexp(t, timestampPattern, update["Timestamp"])
		require.WithinRange(t, stamp, before.Add(-time.Second), time.Now().Add(time.Second))
		id, err := uuid.Parse(update["MessageId"].(string))
		require.NoError(t, err)
		require.Equal(t, uuid.Version(5), id.Version())
		want := map[string]any{
			"MessageId": harness.MessageID(effect), "NodeId": "n-" + c.role, "ProjectId": "p-" + c.role, "UserId": "u-" + c.role,
			"ClientConnectionId": "c-" + c.role, "WorkflowGroup": nodptWorkflow, "Type": "result", "Payload": c.answer,
			"Timestamp": update["Timestamp"], "JobId": jobID, "Role": c.role,
		}
		if c.role == "chat" {
			want["chatId"], want["connectionId"] = "chat-7", "c-chat"
		}
		require.Equal(t, want, update)

		// Whoever sees the update finds the row.
		row := b.Row(c.role, jobID)
		require.Equal(t, columns(), harness.SortedKeys(row))
		for name, value := range map[string]any{
			"role": c.role, "job_id": jobID, "status": "completed", "output": c.answer, "error_code": "", "error_message": "",
			"model": c.model, "prompt_tokens": int64(len(c.prompt)+3) / 4, "completion_tokens": int64(len(c.answer)+3) / 4,
			"truncated": int64(0), "attempts": int64(1), "workflow_id": workflowID, "effect": effect, "stream": "jobs:" + c.role,
			"entry_id": entry, "last_entry_id": entry, "dead_id": "", "nodpt_workflow_id": nodptWorkflow,
			"user_id": "u-" + c.role, "project_id": "p-" + c.role, "node_id": "n-" + c.role, "connection_id": "c-" + c.role,
		} {
			require.Equal(t, value, row[name], "column %s", name)
		}
		require.Positive(t, row["fence"])
		for _, name := range []string{"enqueued_at", "started_at", "finished_at"} {
			at, err := time.Parse(time.RFC3339Nano, asText(row[name]))
			require.NoError(t, err, name)
			require.WithinRange(t, at, before.Add(-time.Second), time.Now().Add(time.Second), name)
		}

		b.Settled(c.role)
		info := b.Run(workflowID, "Completed")
		require.Equal(t, row["run_id"], info.GetExecution().GetRunId())
		began := b.history(t.Context(), workflowID).GetEvents()[0].GetWorkflowExecutionStartedEventAttributes()
		require.True(t, began.GetEagerExecutionAccepted(), "bridge and worker are one process")
		attributes := map[string]string{"JobRole": c.role, "JobUser": "u-" + c.role, "JobProject": "p-" + c.role, "JobModel": c.model}
		if nodptWorkflow != "" {
			attributes["JobNodptWorkflow"] = nodptWorkflow
		}
		require.Equal(t, attributes, keywords(t, info.GetSearchAttributes()))
		query := `ExecutionStatus = "Completed"`
		for name, value := range attributes {
			query += ` AND ` + name + ` = "` + value + `"`
		}
		b.Visible(1, query)

		stats := b.LLM.Stats()
		require.Equal(t, 1, stats.ByPrompt[c.prompt], "calls with exactly the documented prompt; seen: %v", stats.ByPrompt)
		require.Empty(t, b.DeadLetters(c.role))
		found, err := b.UpdatesOf(t.Context(), jobID)
		require.NoError(t, err)
		require.Len(t, found, 1)
	}
	stats := b.LLM.Stats()
	require.Equal(t, map[string]int{"trt-llm-manager": 1, "trt-llm-inspector": 2, "trt-llm-agent": 1}, stats.ByModel)
}

// asText is a column that the driver may have returned as text or as a time.
func asText(v any) string {
	if at, ok := v.(time.Time); ok {
		return at.Format(time.RFC3339Nano)
	}
	s, _ := v.(string)
	return s
}

// keywords decodes the job's search attributes, leaving out Temporal's own.
func keywords(t *testing.T, attributes *commonpb.SearchAttributes) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, payload := range attributes.GetIndexedFields() {
		if len(name) > 3 && name[:3] == "Job" {
			var value string
			require.NoError(t, converter.GetDefaultDataConverter().FromPayload(payload, &value), name)
			out[name] = value
		}
	}
	return out
}

func TestSearchAttributesInANewNamespace(t *testing.T) {
	t.Parallel()
	b := newBundleIn(t, newNamespace(t))
	b.Start(nil, "run")
	b.Submit("agent", "jobId", "j1", "userId", "u1", "task", harness.Text("task"))
	b.Update("j1", 1)
	b.Settled("agent")
	info := b.Run("job:agent:j1", "Completed")
	require.Equal(t, map[string]string{"JobRole": "agent", "JobUser": "u1", "JobModel": "trt-llm-agent"}, keywords(t, info.GetSearchAttributes()))
}

func TestFailingJob(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	task, payload := "!fail 400 "+harness.Text("task"), `{"k":"`+harness.Text("payload")+`"}`
	before := time.Now()
	entry := b.Submit("agent", "jobId", "bad", "workflowId", "w1", "userId", "u1", "projectId", "p1", "connectionId", "c1", "task", task, "payload", payload)

	update := b.Update("bad", 1)
	require.Equal(t, updateNames("agent"), harness.SortedKeys(update))
	require.Equal(t, "error", update["Type"])
	require.Equal(t, harness.MessageID("entry:jobs:agent/"+entry), update["MessageId"])
	require.Equal(t, "c1", update["ClientConnectionId"])
	failure := harness.ErrorPayload(t, update)
	require.Len(t, failure, 2)
	require.Equal(t, "llm_bad_request", failure["code"])
	require.NotEmpty(t, failure["message"])
	require.NotContains(t, failure["message"], harness.Canary)

	b.Settled("agent")
	row := b.Row("agent", "bad")
	require.Equal(t, "failed", row["status"])
	require.Equal(t, "llm_bad_request", row["error_code"])
	require.Equal(t, failure["message"], row["error_message"])
	require.Equal(t, int64(1), row["attempts"])
	require.Equal(t, "trt-llm-agent", row["model"])
	require.Empty(t, row["output"])

	dead := b.DeadLetters("agent")
	require.Len(t, dead, 1)
	require.Equal(t, row["dead_id"], dead[0].ID)
	failedAt, err := time.Parse(time.RFC3339Nano, dead[0].Values["failed_at"].(string))
	require.NoError(t, err)
	require.WithinRange(t, failedAt, before.Add(-time.Second), time.Now().Add(time.Second))
	require.Equal(t, map[string]any{
		"jobId": "bad", "workflowId": "w1", "userId": "u1", "projectId": "p1", "connectionId": "c1", "task": task, "payload": payload,
		"original_id": entry, "failed_at": dead[0].Values["failed_at"], "reason": "llm_bad_request", "error": failure["message"],
	}, dead[0].Values)

	b.Run("job:agent:bad", "Failed")
	b.Visible(1, `ExecutionStatus = "Failed" AND JobRole = "agent"`)
	require.Equal(t, 1, b.LLM.Stats().Calls, "a bad request is not repeated")
}

func TestThirdAttemptSucceeds(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	b.Submit("manager", "jobId", "third", "userId", "u1", "task", "!fail 503 x2 "+harness.Text("task"))

	require.Equal(t, "result", b.Update("third", 1)["Type"])
	b.Settled("manager")
	row := b.Row("manager", "third")
	require.Equal(t, "completed", row["status"])
	require.Equal(t, int64(3), row["attempts"])
	require.Empty(t, row["error_code"])
	require.Empty(t, b.DeadLetters("manager"))
	b.Run("job:manager:third", "Completed")
	require.Equal(t, 3, b.LLM.Stats().Calls)
}

func TestRejectedEntry(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	secret := harness.Text("payload")
	entry := b.Submit("agent", "jobId", "taskless", "userId", "u1", "connectionId", "c1", "payload", secret)
	// Nobody could be told about this one.
	nobody := b.Submit("agent", "payload", secret)

	update := b.Update("taskless", 1)
	require.Equal(t, updateNames("agent"), harness.SortedKeys(update))
	require.Equal(t, "error", update["Type"])
	require.Equal(t, harness.MessageID("entry:jobs:agent/"+entry), update["MessageId"])
	failure := harness.ErrorPayload(t, update)
	require.Equal(t, "task_missing", failure["code"])
	require.NotContains(t, failure["message"], harness.Canary)

	b.Settled("agent")
	require.Nil(t, b.Row("agent", "taskless"), "a rejected entry does not take its jobId")
	row := b.Row("agent", "entry:"+entry)
	require.Equal(t, "rejected", row["status"])
	require.Equal(t, "task_missing", row["error_code"])
	require.Equal(t, "rejected", b.Row("agent", "entry:"+nobody)["status"])

	dead := b.DeadLetters("agent")
	require.Len(t, dead, 2)
	require.Equal(t, map[string]any{
		"jobId": "taskless", "userId": "u1", "connectionId": "c1", "payload": secret,
		"original_id": entry, "failed_at": dead[0].Values["failed_at"], "reason": "task_missing", "error": dead[0].Values["error"],
	}, dead[0].Values)
	require.Equal(t, nobody, dead[1].Values["original_id"])

	b.NoRun("job:agent:taskless")
	require.Zero(t, b.LLM.Stats().Calls)
	all, err := b.Redis.XLen(t.Context(), harness.Updates).Result()
	require.NoError(t, err)
	require.EqualValues(t, 1, all, "one update: the other entry names nobody to tell")
}

func TestSameEntryAgainIsAnsweredFromTheRow(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	answer := harness.Text("answer")
	fields := []string{"jobId", "j1", "workflowId", "w1", "userId", "u1", "projectId", "p1", "connectionId", "c1", "task", "!echo " + answer, "payload", `{"k":1}`}
	b.Submit("agent", fields...)
	first := b.Update("j1", 1)
	b.Settled("agent")
	b.Run("job:agent:j1", "Completed")

	fields[9] = "c2" // the browser has connected anew meanwhile
	again := b.Submit("agent", fields...)
	second := b.Update("j1", 2)
	b.Settled("agent")
	require.Equal(t, answer, second["Payload"])
	require.Equal(t, "result", second["Type"])
	require.Equal(t, "c1", first["ClientConnectionId"])
	require.Equal(t, "c2", second["ClientConnectionId"])
	require.Equal(t, harness.MessageID("answer:jobs:agent/"+again), second["MessageId"])
	require.NotEqual(t, first["MessageId"], second["MessageId"])

	require.Equal(t, 1, b.LLM.Stats().Calls)
	require.Equal(t, again, b.Row("agent", "j1")["last_entry_id"])
	b.Visible(1, `WorkflowId = "job:agent:j1"`)
	found, err := b.UpdatesOf(t.Context(), "j1")
	require.NoError(t, err)
	require.Len(t, found, 2)
}

func TestFailedJobRunsAgainForANewEntry(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	task := "!fail 400 x1 " + harness.Text("task")
	b.Submit("agent", "jobId", "j1", "userId", "u1", "task", task)
	require.Equal(t, "error", b.Update("j1", 1)["Type"])
	b.Settled("agent")
	b.Run("job:agent:j1", "Failed")

	entry := b.Submit("agent", "jobId", "j1", "userId", "u1", "task", task)
	update := b.Update("j1", 2)
	b.Settled("agent")
	require.Equal(t, "result", update["Type"])
	require.Equal(t, harness.MessageID("entry:jobs:agent/"+entry), update["MessageId"])
	row := b.Row("agent", "j1")
	require.Equal(t, "completed", row["status"])
	require.Empty(t, row["dead_id"])
	require.Equal(t, 2, b.LLM.Stats().Calls)
	b.Visible(2, `WorkflowId = "job:agent:j1"`)
}

func TestLegacyChatList(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	sub := b.Redis.Subscribe(t.Context(), "AI.RESPONSE")
	t.Cleanup(func() { require.NoError(t, sub.Close()) })
	_, err := sub.Receive(t.Context())
	require.NoError(t, err, "subscribed")
	push := func(connection, message string) {
		item, err := json.Marshal(map[string]any{
			"UserId": "u1", "ConnectionId": connection, "Message": message, "ProjectId": "p1", "NodeLevel": "manager", "Model": nil,
		})
		require.NoError(t, err)
		require.NoError(t, b.Redis.RPush(t.Context(), "chat.jobs", item).Err())
	}
	receive := func() (message struct{ ConnectionId, Content string }) { //nolint:revive // the contract's spelling
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
		defer cancel()
		got, err := sub.ReceiveMessage(ctx)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal([]byte(got.Payload), &message))
		return message
	}

	answer := harness.Text("answer")
	push("c1", "!echo "+answer)
	message := receive()
	require.Equal(t, "c1", message.ConnectionId)
	require.Equal(t, answer, message.Content)

	push("c2", "!fail 400 "+harness.Text("message"))
	message = receive()
	require.Equal(t, "c2", message.ConnectionId)
	require.Contains(t, message.Content, "llm_bad_request")
	require.NotContains(t, message.Content, harness.Canary)

	b.Settled("chat")
	entries, err := b.Redis.XRange(t.Context(), harness.Updates, "-", "+").Result()
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.Equal(t, "chat", entries[0].Values["Role"])
	require.Equal(t, "result", entries[0].Values["Type"])
	require.Equal(t, answer, entries[0].Values["Payload"])
	require.Equal(t, "c1", entries[0].Values["ClientConnectionId"])
	require.Equal(t, "error", entries[1].Values["Type"])
	left, err := b.Redis.LLen(t.Context(), "chat.jobs").Result()
	require.NoError(t, err)
	require.Zero(t, left)
	require.Equal(t, map[string]int{"trt-llm-manager": 2}, b.LLM.Stats().ByModel, "the level's model")
}

// givenUpWithin is how soon after a cancellation the running call must have ended.
// Its worker hears of it with its next beat, some 2 s later, and at the latest
// within the heartbeat timeout of 8 s; the rest is for a machine that is busy. A
// worker that does not listen shows only when the SDK's default interval of a
// minute, or the call, is over.
const givenUpWithin = 15 * time.Second

func TestCancelRunningJob(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	b.Submit("agent", "jobId", "endless", "userId", "u1", "task", "!hang "+harness.Text("task"))
	b.LLM.Await("the call runs", func(s harness.Stats) bool { return s.Running == 1 })

	require.NoError(t, b.Temporal.CancelWorkflow(t.Context(), "job:agent:endless", ""))
	b.LLM.AwaitFor(givenUpWithin, "the call is given up", func(s harness.Stats) bool { return s.Running == 0 })
	update := b.Update("endless", 1)
	require.Equal(t, "error", update["Type"])
	require.Equal(t, "canceled", harness.ErrorPayload(t, update)["code"])
	b.Settled("agent")
	row := b.Row("agent", "endless")
	require.Equal(t, "canceled", row["status"])
	require.Equal(t, "canceled", row["error_code"])
	b.Run("job:agent:endless", "Canceled")
	require.Empty(t, b.DeadLetters("agent"), "a cancellation is no fault")
	require.Equal(t, 1, b.LLM.Stats().Calls)
}

// TestCancelJobThatFailsMeanwhile cancels a run whose call ends with an error
// that would be retried, before the worker hears of the cancellation.
func TestCancelJobThatFailsMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	b.LLM.Script(map[string]any{"rules": []map[string]any{{"contains": "flaky", "status": 503, "latency_ms": 1000}}})
	b.Submit("agent", "jobId", "flaky", "userId", "u1", "task", "flaky "+harness.Text("task"))
	b.LLM.Await("the call runs", func(s harness.Stats) bool { return s.Running == 1 })
	require.NoError(t, b.Temporal.CancelWorkflow(t.Context(), "job:agent:flaky", ""))

	update := b.Update("flaky", 1)
	require.Equal(t, map[string]string{"code": "canceled", "message": "The job was canceled."}, harness.ErrorPayload(t, update))
	b.Settled("agent")
	require.Equal(t, "canceled", b.Row("agent", "flaky")["status"])
	b.Run("job:agent:flaky", "Canceled")
	require.Empty(t, b.DeadLetters("agent"))
}
