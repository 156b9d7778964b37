package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/proxy"
	querypb "go.temporal.io/api/query/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/proto"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// encryptionKeys is a value of ENCRYPTION_KEYS; a key follows from its id, which
// is one letter.
func encryptionKeys(ids string) map[string]string {
	keys := make([]string, len(ids))
	for i, id := range ids {
		secret := harness.Canary + strings.Repeat(string(id), 32)
		keys[i] = string(id) + ":" + base64.StdEncoding.EncodeToString([]byte(secret[:32]))
	}
	return map[string]string{"ENCRYPTION_KEYS": strings.Join(keys, ",")}
}

// history are the events of the latest run of a workflow, as the server has them.
func (b *bundle) history(ctx context.Context, workflowID string) *historypb.History {
	b.T.Helper()
	h := &historypb.History{}
	events := b.Temporal.GetWorkflowHistory(ctx, workflowID, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		require.NoError(b.T, err)
		h.Events = append(h.Events, event)
	}
	return h
}

// payloads are all payloads in a message but for search attributes, which the
// server has to read.
func payloads(ctx context.Context, t *testing.T, m proto.Message) []*commonpb.Payload {
	t.Helper()
	var all []*commonpb.Payload
	require.NoError(t, proxy.VisitPayloads(ctx, m, proxy.VisitPayloadsOptions{
		SkipSearchAttributes: true,
		Visitor: func(_ *proxy.VisitPayloadsContext, found []*commonpb.Payload) ([]*commonpb.Payload, error) {
			all = append(all, found...)
			return found, nil
		},
	}))
	return all
}

// keyIDs are the keys with which a message's payloads are encrypted, sorted, and
// "clear" if any of them is not.
func keyIDs(ctx context.Context, t *testing.T, m proto.Message) []string {
	t.Helper()
	var ids []string
	for _, p := range payloads(ctx, t, m) {
		id := "clear"
		if string(p.GetMetadata()["encoding"]) == "binary/encrypted" {
			id = string(p.GetMetadata()["encryption-key-id"])
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// inDatabase reports which of the texts are in the files of the Temporal server:
// its database, what it has written ahead, and its log.
func inDatabase(t *testing.T, texts []string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(shared.dir, "temporal.*"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var found []string
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, text := range texts {
			if bytes.Contains(content, []byte(text)) {
				found = append(found, text)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// markedJob is a job of which every part holds a text of its own, many times over: in
// the database a long value may be cut anywhere.
type markedJob struct {
	role, id string
	fields   []string
	marks    []string
}

func markedJobs() []markedJob {
	var jobs []markedJob
	add := func(role, id, command string, payload bool) {
		j := markedJob{role: role, id: id}
		mark := func(what string) string {
			text := harness.Text("db-" + what)
			j.marks = append(j.marks, text)
			return strings.Repeat(text+" ", 100)
		}
		field := "task"
		if role == "chat" {
			field = "message"
		}
		// What is echoed is the answer, too.
		j.fields = []string{"jobId", id, "userId", "u1", "projectId", "p1", field, command + " " + mark("task")}
		if payload {
			j.fields = append(j.fields, "payload", mark("payload"))
		}
		jobs = append(jobs, j)
	}
	for _, role := range []string{"manager", "inspector", "agent", "chat"} {
		add(role, "enc-"+role, "!echo", role != "chat")
	}
	add("agent", "enc-fails", "!fail 400", true)
	add("agent", "enc-third-try", "!fail 503 x2", true)
	return jobs
}

// TestTemporalHoldsNoContent runs jobs of all roles, one that fails and one that
// is retried, and searches the server's files for what they held. Without
// encryption it must be found there, or the search is worth nothing.
func TestTemporalHoldsNoContent(t *testing.T) {
	t.Parallel()
	for _, encrypted := range []bool{true, false} {
		t.Run(fmt.Sprintf("encrypted %t", encrypted), func(t *testing.T) {
			t.Parallel()
			settings := encryptionKeys("")
			if encrypted {
				settings = encryptionKeys("a")
			}
			b := newBundleWith(t, harness.Options{Environ: settings})
			p := b.Start(nil, "run")
			jobs := markedJobs()
			var marks []string
			for _, j := range jobs {
				b.Submit(j.role, j.fields...)
				marks = append(marks, j.marks...)
			}
			for _, j := range jobs {
				b.Update(j.id, 1)
				b.Settled(j.role)
			}
			require.Equal(t, "completed", b.Row("agent", "enc-third-try")["status"])
			require.Equal(t, "llm_bad_request", b.Row("agent", "enc-fails")["error_code"])
			slices.Sort(marks)
			if !encrypted {
				require.Equal(t, marks, inDatabase(t, marks))
				return
			}
			require.Empty(t, inDatabase(t, marks))
			for _, j := range jobs {
				b.requireEncrypted("job:"+j.role+":"+j.id, "a")
			}
			b.requireFailureEncrypted("job:agent:enc-fails")
			b.requireDecodable(jobs)
			b.Stop(p)
		})
	}
}

// requireEncrypted looks at everything the server tells of a run: its history
// with summaries, its description with memo, summary and details, and the
// current details, which the UI asks a worker for.
func (b *bundle) requireEncrypted(workflowID, key string) {
	b.T.Helper()
	ctx := b.T.Context()
	history := b.history(ctx, workflowID)
	require.GreaterOrEqual(b.T, len(payloads(ctx, b.T, history)), 8, "input, memo, call, answer, markers, result")
	require.Equal(b.T, []string{key}, keyIDs(ctx, b.T, history), workflowID)

	described, err := b.Temporal.DescribeWorkflowExecution(ctx, workflowID, "")
	require.NoError(b.T, err)
	require.GreaterOrEqual(b.T, len(payloads(ctx, b.T, described)), 3, "memo and summary")
	require.Equal(b.T, []string{key}, keyIDs(ctx, b.T, described), workflowID)

	current, err := b.Temporal.WorkflowService().QueryWorkflow(ctx, &workflowservice.QueryWorkflowRequest{
		Namespace: b.Options.Namespace,
		Execution: &commonpb.WorkflowExecution{WorkflowId: workflowID},
		Query:     &querypb.WorkflowQuery{QueryType: "__temporal_workflow_metadata"},
	})
	require.NoError(b.T, err)
	require.Equal(b.T, []string{key}, keyIDs(ctx, b.T, current), workflowID)
}

// requireFailureEncrypted expects that of a failure only its code can be read.
func (b *bundle) requireFailureEncrypted(workflowID string) {
	b.T.Helper()
	failures := 0
	for _, event := range b.history(b.T.Context(), workflowID).GetEvents() {
		for _, failure := range []interface {
			GetMessage() string
			GetStackTrace() string
			GetEncodedAttributes() *commonpb.Payload
		}{
			event.GetActivityTaskFailedEventAttributes().GetFailure(),
			event.GetWorkflowExecutionFailedEventAttributes().GetFailure(),
		} {
			if failure.GetMessage() == "" {
				continue
			}
			failures++
			require.Equal(b.T, "Encoded failure", failure.GetMessage())
			require.Empty(b.T, failure.GetStackTrace())
			require.NotNil(b.T, failure.GetEncodedAttributes())
		}
	}
	require.Equal(b.T, 2, failures, "of the activity and of the run")
	require.Equal(b.T, "llm_bad_request",
		b.closing(workflowID).GetWorkflowExecutionFailedEventAttributes().GetFailure().GetApplicationFailureInfo().GetType())
}

func (b *bundle) closing(workflowID string) *historypb.HistoryEvent {
	b.T.Helper()
	events := b.history(b.T.Context(), workflowID).GetEvents()
	return events[len(events)-1]
}

// requireDecodable gives every payload of the jobs' histories to a codec server
// of the same settings, as the UI does, and finds the content in them again.
func (b *bundle) requireDecodable(jobs []markedJob) {
	b.T.Helper()
	ctx := b.T.Context()
	token := harness.Canary + "-codec-server-token"
	address := proc.Loopback(b.Port())
	server := b.Spawn("codec-server", map[string]string{"CODEC_ADDR": address, "CODEC_TOKEN": token}, "codec-server")
	require.NoError(b.T, server.WaitReady(ctx, proc.HTTPReady("http://"+address+"/healthz")))
	remote := converter.NewRemotePayloadCodec(converter.RemotePayloadCodecOptions{Endpoint: "http://" + address + "/" + token})
	for _, j := range jobs {
		var text strings.Builder
		decoded, err := remote.Decode(payloads(ctx, b.T, b.history(ctx, "job:"+j.role+":"+j.id)))
		require.NoError(b.T, err)
		for _, p := range decoded {
			require.NotEqual(b.T, "binary/encrypted", string(p.GetMetadata()["encoding"]))
			text.Write(p.GetData())
		}
		for _, mark := range j.marks {
			require.Contains(b.T, text.String(), mark)
		}
		if j.id == "enc-fails" {
			require.Contains(b.T, text.String(), "The language model did not accept the request.")
		}
	}
	_, err := converter.NewRemotePayloadCodec(converter.RemotePayloadCodecOptions{Endpoint: "http://" + address + "/another-token-of-that-length"}).
		Decode(payloads(ctx, b.T, b.history(ctx, "job:agent:enc-agent")))
	require.Error(b.T, err)

	req, err := http.NewRequestWithContext(ctx, http.MethodOptions, "http://"+address+"/"+token+"/decode", nil)
	require.NoError(b.T, err)
	req.Header.Set("Origin", "http://127.0.0.1:8233")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(b.T, err)
	require.NoError(b.T, resp.Body.Close())
	require.Equal(b.T, "http://127.0.0.1:8233", resp.Header.Get("Access-Control-Allow-Origin"), "the default UI")
	b.Stop(server)
}

// TestLargestJobIsEncrypted: encryption must not lift a job or an answer that is
// just small enough over what the server takes.
func TestLargestJobIsEncrypted(t *testing.T) {
	t.Parallel()
	b := newBundleWith(t, harness.Options{Environ: encryptionKeys("a")})
	p := b.Start(nil, "run")
	text := strings.Repeat(harness.Text("large")+"-", 1<<16)[:1<<20-1024]
	b.Submit("agent", "jobId", "large", "userId", "u1", "task", "!echo "+text)
	update := b.Update("large", 1)
	require.True(t, update["Payload"] == text, "%s with %d bytes", update["Type"], len(update["Payload"].(string)))
	b.Settled("agent")
	b.Submit("agent", "jobId", "fails", "userId", "u1", "task", "!fail 400 "+text)
	b.Update("fails", 1)
	b.Settled("agent")
	require.Equal(t, []string{"a"}, keyIDs(t.Context(), t, b.history(t.Context(), "job:agent:fails")))
	b.Stop(p)
}

// TestKeysChangeUnderOpenRuns restarts the executor with other keys while a call
// runs: the run goes on, and what comes after is encrypted with the new key.
func TestKeysChangeUnderOpenRuns(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		before, after string
		inHistory     []string
	}{
		"switched on": {"", "a", []string{"a", "clear"}},
		"rotated":     {"a", "ba", []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			start := func(ids string) *proc.Process {
				settings := encryptionKeys(ids)
				settings["DRAIN_TIMEOUT"] = "1s"
				return b.Start(settings, "run")
			}
			first := start(tt.before)
			b.Submit("agent", "jobId", "open", "userId", "u1", "task", "!hang "+harness.Text("task"))
			b.LLM.Await("the call runs", func(s harness.Stats) bool { return s.Running == 1 })
			b.Stop(first)

			second := start(tt.after)
			b.LLM.Await("the call runs again", func(s harness.Stats) bool { return s.Calls == 2 && s.Running == 1 })
			b.LLM.Release()
			require.Equal(t, "result", b.Update("open", 1)["Type"])
			b.Settled("agent")
			b.Run("job:agent:open", "Completed")
			require.Equal(t, tt.inHistory, keyIDs(t.Context(), t, b.history(t.Context(), "job:agent:open")))

			b.Submit("agent", "jobId", "later", "userId", "u1", "task", harness.Text("task"))
			b.Update("later", 1)
			b.Settled("agent")
			require.Equal(t, []string{tt.after[:1]}, keyIDs(t.Context(), t, b.history(t.Context(), "job:agent:later")))
			b.Stop(second)
		})
	}
}

// TestMissingKeyCostsNoJob gives the parts of the executor keys that do not go
// together, as a rollout in the wrong order does. Nothing may fail for it, and
// everything goes on when the keys are right.
func TestMissingKeyCostsNoJob(t *testing.T) {
	t.Parallel()
	const run = "job:agent:locked"
	b := newBundle(t)
	task := harness.Text("task")
	b.Start(encryptionKeys("a"), "bridge")

	lacking := b.Start(encryptionKeys("b"), "worker", "--queues", "workflows")
	b.Submit("agent", "jobId", "locked", "userId", "u1", "task", task)
	b.Wait("the workflow task fails and is repeated", func(ctx context.Context) error {
		d, err := b.Temporal.DescribeWorkflowExecution(ctx, run, "")
		if err != nil {
			return err
		}
		if d.GetPendingWorkflowTask().GetAttempt() < 2 {
			return fmt.Errorf("attempt %d", d.GetPendingWorkflowTask().GetAttempt())
		}
		return nil
	})
	require.Contains(t, lacking.Log(), "ENCRYPTION_KEYS", "the log says what to correct")
	b.Stop(lacking)
	workflows := b.Start(encryptionKeys("a"), "worker", "--queues", "workflows")

	lacking = b.Start(encryptionKeys("b"), "worker", "--queues", "agent")
	b.Wait("the call waits for its key", func(ctx context.Context) error {
		d, err := b.Temporal.DescribeWorkflowExecution(ctx, run, "")
		if err != nil {
			return err
		}
		for _, a := range d.GetPendingActivities() {
			if code := a.GetLastFailure().GetApplicationFailureInfo().GetType(); code != "payload_unreadable" || a.GetAttempt() < 3 {
				return fmt.Errorf("attempt %d, last failure %q", a.GetAttempt(), code)
			}
			return nil
		}
		return errors.New("no pending activity")
	})
	b.Stop(lacking)

	// The answer is paid for, and the workflow cannot read it.
	b.Start(encryptionKeys("ba"), "worker", "--queues", "agent")
	b.Wait("the workflow waits for the key of the answer", func(context.Context) error {
		if !strings.Contains(workflows.Log(), "ENCRYPTION_KEYS") {
			return errors.New("not yet")
		}
		return nil
	})
	require.Nil(t, b.Row("agent", "locked"))
	b.Stop(workflows)

	b.Start(encryptionKeys("ab"), "worker", "--queues", "workflows")
	require.Equal(t, "result", b.Update("locked", 1)["Type"])
	b.Settled("agent")
	b.Run(run, "Completed")
	require.EqualValues(t, 1, b.Row("agent", "locked")["attempts"], "attempts without a key were none")
	require.Equal(t, 1, b.LLM.Stats().Asked(task))
}

// TestLostKey: the jobs of runs that nobody can read any more are not lost with
// them, because their entries are still there.
func TestLostKey(t *testing.T) {
	t.Parallel()
	const run = "job:agent:lost"
	b := newBundle(t)
	task := harness.Text("task")
	settings := encryptionKeys("a")
	settings["DRAIN_TIMEOUT"] = "1s"
	first := b.Start(settings, "run")
	entry := b.Submit("agent", "jobId", "lost", "userId", "u1", "task", "!hang "+task)
	b.LLM.Await("the call runs", func(s harness.Stats) bool { return s.Running == 1 })
	b.Stop(first)

	b.Start(encryptionKeys("b"), "run")
	b.Wait("the call waits for its key", func(ctx context.Context) error {
		d, err := b.Temporal.DescribeWorkflowExecution(ctx, run, "")
		if err != nil {
			return err
		}
		for _, a := range d.GetPendingActivities() {
			if a.GetLastFailure().GetApplicationFailureInfo().GetType() == "payload_unreadable" {
				return nil
			}
		}
		return errors.New("not yet")
	})
	_, err := b.Temporal.WorkflowService().DeleteWorkflowExecution(t.Context(), &workflowservice.DeleteWorkflowExecutionRequest{
		Namespace: b.Options.Namespace, WorkflowExecution: &commonpb.WorkflowExecution{WorkflowId: run},
	})
	require.NoError(t, err)
	b.LLM.Await("the call runs again", func(s harness.Stats) bool { return s.Calls == 2 && s.Running == 1 })
	b.LLM.Release()
	require.Equal(t, harness.MessageID("entry:jobs:agent/"+entry), b.Update("lost", 1)["MessageId"])
	b.Settled("agent")
	require.Equal(t, []string{"b"}, keyIDs(t.Context(), t, b.history(t.Context(), run)))
}
