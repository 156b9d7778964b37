package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	activitypb "go.temporal.io/api/activity/v1"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	sdkpb "go.temporal.io/api/sdk/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/uiserver"
)

// uiRun is a run as the Web UI shows it: what it reads for the run's page, decoded.
type uiRun struct {
	status           string
	summary, details string // given at the start
	current          string // asked for by a query
	events, bytes    int64
	attributes       map[string]string
	pending          []uiPending
	activities       []string // summaries of the activities, in order of their events
	failures         []string // of everything in the history
}

// uiPending is a pending activity.
type uiPending struct {
	kind, failure, failureType string
	attempt                    int32
	heartbeat                  map[string]any
	next                       time.Time
}

func uiText(p *commonpb.Payload) (text string) {
	if p != nil && converter.GetDefaultDataConverter().FromPayload(p, &text) != nil {
		return p.String()
	}
	return text
}

// uiFailure is all text of a failure, details and causes too.
func uiFailure(f *failurepb.Failure) string { return f.String() }

// look reads the latest run of a workflow as the Web UI does.
func (b *bundle) look(ctx context.Context, workflowID string) (uiRun, error) {
	d, err := b.Temporal.DescribeWorkflowExecution(ctx, workflowID, "")
	if err != nil {
		return uiRun{}, err
	}
	info := d.GetWorkflowExecutionInfo()
	r := uiRun{
		status:     info.GetStatus().String(),
		summary:    uiText(d.GetExecutionConfig().GetUserMetadata().GetSummary()),
		details:    uiText(d.GetExecutionConfig().GetUserMetadata().GetDetails()),
		events:     info.GetHistoryLength(),
		bytes:      info.GetHistorySizeBytes(),
		attributes: map[string]string{},
	}
	for name, p := range info.GetSearchAttributes().GetIndexedFields() {
		r.attributes[name] = uiText(p)
	}
	for _, a := range d.GetPendingActivities() {
		p := uiPending{
			kind: a.GetActivityType().GetName(), attempt: a.GetAttempt(), next: a.GetNextAttemptScheduleTime().AsTime(),
			failure: a.GetLastFailure().GetMessage(), failureType: a.GetLastFailure().GetApplicationFailureInfo().GetType(),
		}
		if a.GetHeartbeatDetails() != nil {
			if err := converter.GetDefaultDataConverter().FromPayloads(a.GetHeartbeatDetails(), &p.heartbeat); err != nil {
				return r, err
			}
		}
		r.pending = append(r.pending, p)
		r.failures = append(r.failures, uiFailure(a.GetLastFailure()))
	}
	value, err := b.Temporal.QueryWorkflow(ctx, workflowID, "", "__temporal_workflow_metadata")
	if err != nil {
		return r, err
	}
	var metadata sdkpb.WorkflowMetadata
	if err := value.Get(&metadata); err != nil {
		return r, err
	}
	r.current = metadata.GetCurrentDetails()

	events := b.Temporal.GetWorkflowHistory(ctx, workflowID, info.GetExecution().GetRunId(), false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		if err != nil {
			return r, err
		}
		switch event.GetEventType() {
		case enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED, enumspb.EVENT_TYPE_MARKER_RECORDED:
			r.activities = append(r.activities, uiText(event.GetUserMetadata().GetSummary()))
		}
		for _, f := range []*failurepb.Failure{
			event.GetActivityTaskStartedEventAttributes().GetLastFailure(),
			event.GetActivityTaskFailedEventAttributes().GetFailure(),
			event.GetMarkerRecordedEventAttributes().GetFailure(),
			event.GetWorkflowExecutionFailedEventAttributes().GetFailure(),
			event.GetWorkflowTaskFailedEventAttributes().GetFailure(),
		} {
			if f != nil {
				r.failures = append(r.failures, uiFailure(f))
			}
		}
	}
	return r, nil
}

// shows waits until the UI shows a run that meets the condition, and looks for
// content in what it shows in clear text.
func (b *bundle) shows(workflowID, what string, condition func(uiRun) bool) uiRun {
	b.T.Helper()
	var r uiRun
	b.Wait(workflowID+" shows "+what, func(ctx context.Context) (err error) {
		if r, err = b.look(ctx, workflowID); err != nil {
			return err
		}
		if !condition(r) {
			return fmt.Errorf("it shows %+v", r)
		}
		return nil
	})
	require.NotContains(b.T, fmt.Sprintf("%+v", r), harness.Canary, "content in what the UI shows of %s", workflowID)
	return r
}

// call is the pending role activity, zero if there is none.
func (r uiRun) call() uiPending {
	for _, p := range r.pending {
		if strings.HasPrefix(p.kind, "Run") {
			return p
		}
	}
	return uiPending{}
}

func (p uiPending) state() string {
	state, _ := p.heartbeat["state"].(string)
	return state
}

func (r uiRun) closed() bool { return r.status != "Running" && r.status != "" }

// submitFor adds a job with the identifiers that the UI is to show.
func (b *bundle) submitFor(role, jobID, text string) (entry, workflowID string) {
	b.T.Helper()
	field := "task"
	if role == "chat" {
		field = "message"
	}
	fields := []string{"jobId", jobID, "userId", "u1", "projectId", "p1", "nodeId", "n1", field, text}
	if role != "chat" {
		fields = append(fields, "workflowId", "w1", "payload", harness.Text("payload"))
	}
	return b.Submit(role, fields...), "job:" + role + ":" + jobID
}

func TestUIShowsRunsUnderWay(t *testing.T) {
	t.Parallel()
	b := newBundleIn(t, newNamespace(t))
	b.Start(map[string]string{"MAX_TOTAL": "1"}, "run")
	entry, running := b.submitFor("manager", "j1", "!hang "+harness.Text("task"))
	b.LLM.Await("the call runs", func(s harness.Stats) bool { return s.Running == 1 })
	_, waiting := b.submitFor("chat", "j2", harness.Text("message"))

	r := b.shows(running, "what its call does", func(r uiRun) bool { return r.call().state() == "calling the LLM" })
	require.Equal(t, "manager", r.summary)
	require.Equal(t, "- Job: `j1`\n- Stream: `jobs:manager`\n- Entry: `"+entry+"`\n- User: `u1`\n- Project: `p1`\n- Node: `n1`\n- NodPT workflow: `w1`\n", r.details)
	require.Equal(t, "**Now:** asking the model (manager call on queue `executor-manager`); its attempts are below, as a pending activity\n", r.current)
	require.Equal(t, []string{"manager call"}, r.activities)
	call := r.call()
	require.Equal(t, "RunManager", call.kind)
	require.EqualValues(t, 1, call.attempt)
	require.Empty(t, call.failure)
	since, err := time.Parse(time.RFC3339, call.heartbeat["since"].(string))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), since, harness.Patience)
	delete(call.heartbeat, "since")
	require.Equal(t, map[string]any{
		"state": "calling the LLM", "attempt": 1.0, "model": "trt-llm-manager",
		"endpoint": "http://" + b.LLM.Address + "/v1/chat/completions", "classified": 0.0,
	}, call.heartbeat)

	r = b.shows(waiting, "what its call waits for", func(r uiRun) bool { return r.call().state() == "waiting for MAX_TOTAL" })
	require.EqualValues(t, 1, r.call().attempt)
	require.Equal(t, "trt-llm-agent", r.call().heartbeat["model"])

	b.LLM.Release()
	for _, id := range []string{running, waiting} {
		r := b.shows(id, "its end", uiRun.closed)
		require.Equal(t, "Completed", r.status)
		require.EqualValues(t, 12, r.events, "heartbeats are no events")
	}
}

// TestUIShowsRunsThatEnded goes through the ends of a run. Each costs 12 events of
// history.
func TestUIShowsRunsThatEnded(t *testing.T) {
	t.Parallel()
	b := newBundleIn(t, newNamespace(t))
	b.Start(nil, "run")
	steps := []string{"persist, publish, acknowledge"}
	ending := func(entry, role, how string) string {
		return "- Acknowledged: `" + entry + "` of `jobs:" + role + "`\n\n**Ended:** " + how + "\n"
	}

	for role, model := range map[string]string{
		"manager": "trt-llm-manager", "inspector": "trt-llm-inspector", "agent": "trt-llm-agent", "chat": "trt-llm-agent",
	} {
		entry, id := b.submitFor(role, "good", harness.Text("task"))
		r := b.shows(id, "its end", uiRun.closed)
		require.Equal(t, "Completed", r.status)
		require.Equal(t, role, r.summary)
		require.Contains(t, r.details, "- Job: `good`\n- Stream: `jobs:"+role+"`\n- Entry: `"+entry+"`\n")
		require.Regexp(t, "^- Answered: model `"+model+"`, [0-9]+ prompt and [0-9]+ completion tokens, 1 attempt, after [0-9.ms]+\n"+
			"- Stored: completed\n- Published to `signalr:updates`\n", r.current)
		require.Contains(t, r.current, ending(entry, role, "completed"))
		require.Equal(t, append([]string{role + " call"}, steps...), r.activities)
		require.EqualValues(t, 12, r.events)
		attributes := map[string]string{"JobRole": role, "JobUser": "u1", "JobProject": "p1", "JobNodptWorkflow": "w1", "JobModel": model}
		if role == "chat" {
			delete(attributes, "JobNodptWorkflow") // chats have no workflowId
		}
		for name, want := range attributes {
			require.Equal(t, want, r.attributes[name], name)
		}
		t.Logf("%s: %d events, %d bytes of history", role, r.events, r.bytes)
	}

	entry, id := b.submitFor("agent", "refused", "!fail 400 "+harness.Text("task"))
	r := b.shows(id, "its end", uiRun.closed)
	require.Equal(t, "Failed", r.status)
	cause := "llm_bad_request, status 400, invalid_request: see the LLM server's log for what it refuses " +
		"(attempt 1, model trt-llm-agent, endpoint http://" + b.LLM.Address + "/v1/chat/completions)"
	require.Equal(t, "- Failed: `llm_bad_request`, model `trt-llm-agent`, 1 attempt\n- Cause: `"+cause+"`\n"+
		"- Stored: failed with `llm_bad_request`\n- Published to `signalr:updates`\n- Dead letter written\n"+
		ending(entry, "agent", "failed with `llm_bad_request`"), r.current)
	require.Equal(t, []string{"agent call", "persist, publish, dead letter, acknowledge"}, r.activities)
	require.EqualValues(t, 12, r.events)
	require.Len(t, r.failures, 2, "of the activity and of the workflow")
	require.Contains(t, r.failures[0], "The language model did not accept the request.")
	require.Contains(t, r.failures[0], `see the LLM server`)

	entry, id = b.submitFor("agent", "endless", "!hang "+harness.Text("task"))
	b.shows(id, "its call", func(r uiRun) bool { return r.call().state() == "calling the LLM" })
	require.NoError(t, b.Temporal.CancelWorkflow(t.Context(), id, ""))
	r = b.shows(id, "its end", uiRun.closed)
	require.Equal(t, "Canceled", r.status)
	require.Equal(t, "- Canceled while the model was asked\n- Stored: canceled\n- Published to `signalr:updates`\n"+
		ending(entry, "agent", "canceled"), r.current)

	_, id = b.submitFor("agent", "long", "!finish length "+harness.Text("task"))
	r = b.shows(id, "its end", uiRun.closed)
	require.Regexp(t, "^- Answered: .*, truncated at the token limit\n", r.current)
}

// TestUIShowsRunsThatAreRetried looks at a call that fails again and again, and
// then ends its retries as the UI can: what the attempts said is for operators,
// and must not reach the user.
func TestUIShowsRunsThatAreRetried(t *testing.T) {
	t.Parallel()
	b := newBundleIn(t, newNamespace(t))
	b.Start(nil, "run")
	_, id := b.submitFor("agent", "flaky", "!fail 503 "+harness.Text("task"))
	r := b.shows(id, "two failed attempts", func(r uiRun) bool {
		return r.call().attempt > 2 && strings.HasPrefix(r.call().state(), "failed")
	})
	call := r.call()
	require.Equal(t, "llm_server_error", call.failureType)
	require.Regexp(t, `^llm_server_error, status 503[^:]*: a fault of the LLM server, see its log; tried again until RETRY_FOR is over `+
		`\(attempt \d+, model trt-llm-agent, endpoint http://[0-9.:]+/v1/chat/completions\)$`, call.failure)
	require.Equal(t, "failed with llm_server_error, waiting for the next attempt", call.state())
	require.NotEmpty(t, call.heartbeat["first_failure_at"])
	require.GreaterOrEqual(t, call.heartbeat["classified"], 2.0)
	require.GreaterOrEqual(t, call.heartbeat["attempt"], 2.0)
	require.Equal(t, "**Now:** asking the model (agent call on queue `executor-agent`); its attempts are below, as a pending activity\n", r.current)
	require.EqualValues(t, 5, r.events, "attempts are no events")

	_, err := b.Temporal.WorkflowService().UpdateActivityOptions(t.Context(), &workflowservice.UpdateActivityOptionsRequest{
		Namespace: b.Options.Namespace, Execution: &commonpb.WorkflowExecution{WorkflowId: id},
		Activity:        &workflowservice.UpdateActivityOptionsRequest_Type{Type: "RunAgent"},
		ActivityOptions: &activitypb.ActivityOptions{RetryPolicy: &commonpb.RetryPolicy{MaximumAttempts: 1}},
		UpdateMask:      &fieldmaskpb.FieldMask{Paths: []string{"retry_policy.maximum_attempts"}},
	})
	require.NoError(t, err)
	payload := harness.ErrorPayload(t, b.Update("flaky", 1))
	require.Equal(t, map[string]string{"code": "llm_server_error", "message": "The job could not be run."}, payload)
	r = b.shows(id, "its end", uiRun.closed)
	require.Contains(t, r.current, "- Cause: `llm_server_error, status 503")
}

// TestUIShowsThatAnEndpointAsksForPatience: the job that was refused, and another
// that is not even sent.
func TestUIShowsThatAnEndpointAsksForPatience(t *testing.T) {
	t.Parallel()
	b := newBundleIn(t, newNamespace(t))
	b.Start(nil, "run")
	begin := time.Now()
	_, refused := b.submitFor("agent", "refused", "!429 600 "+harness.Text("task"))
	r := b.shows(refused, "the refusal", func(r uiRun) bool { return r.call().failure != "" })
	_, held := b.submitFor("manager", "held", harness.Text("task"))
	other := b.shows(held, "the patience", func(r uiRun) bool { return r.call().failure != "" })

	for kind, call := range map[string]uiPending{"llm_rate_limited": r.call(), "llm_cool_down": other.call()} {
		require.Equal(t, kind, call.failureType)
		_, until, found := strings.Cut(call.state(), "waiting: endpoint asks for patience until ")
		require.True(t, found, call.state())
		patience, err := time.Parse(time.RFC3339, until)
		require.NoError(t, err)
		require.WithinRange(t, patience, begin.Add(9*time.Minute), begin.Add(12*time.Minute))
		require.Contains(t, call.failure, "; retry-after until "+until+" (attempt 1, model ")
		require.False(t, call.next.Before(patience), "%s is before %s", call.next, patience)
	}
	require.Contains(t, r.call().failure, "llm_rate_limited, status 429")
	require.Contains(t, other.call().failure, "the LLM endpoint asked to wait: nothing was sent")
	require.Equal(t, 1, b.LLM.Stats().Calls)

	for _, id := range []string{refused, held} {
		require.NoError(t, b.Temporal.CancelWorkflow(t.Context(), id, ""))
		require.Equal(t, "Canceled", b.shows(id, "its end", uiRun.closed).status)
	}
}

// TestUIShowsHostileIdentifiersAsText has the Web UI itself turn into HTML what it
// is told of a job whose identifiers are markup.
func TestUIShowsHostileIdentifiersAsText(t *testing.T) {
	t.Parallel()
	b := newBundleIn(t, newNamespace(t))
	b.Start(nil, "run")
	ui, err := uiserver.Start(t.Context(), b.Port(), b.Options.Temporal, b.Options.Namespace)
	require.NoError(t, err)
	t.Cleanup(ui.Stop)
	render := func(content string) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, ui.URL()+"/render?content="+url.QueryEscape(content), nil)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer func() { require.NoError(t, resp.Body.Close()) }()
		require.Equal(t, http.StatusOK, resp.StatusCode)
		page, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		_, body, found := strings.Cut(string(page), "<main>")
		require.True(t, found)
		body, _, _ = strings.Cut(body, "</main>")
		return body
	}
	require.Contains(t, render("<b>x</b> [y](https://evil.example)"), "<b>x</b>", "the UI leaves escaping to us")

	const (
		jobID   = "<script>alert(1)</script>`<b>`"
		model   = "<h1>m</h1>`](https://evil.example)"
		user    = "[click](https://evil.example) ``x`` **bold** https://evil.example $$x$$"
		project = "![x](https://evil.example/x.png)|a|b|"
	)
	b.Submit("chat", "jobId", jobID, "userId", user, "projectId", project, "nodeId", "# n", "model", model, "message", harness.Text("message"))
	id := fmt.Sprintf("job:chat:h:%.16x", sha256.Sum256([]byte(jobID)))
	r := b.shows(id, "its end", uiRun.closed)
	require.Equal(t, "Completed", r.status)
	require.Contains(t, r.details, "- Job: `<script>alert(1)</script>\\u0060<b>\\u0060`\n")
	require.Contains(t, r.current, "- Answered: model `<h1>m</h1>\\u0060](https://evil.example)`, ")
	for _, html := range []string{render(r.details), render(r.current), render(r.summary)} {
		for _, markup := range []string{"<script", "<b>", "<h1", "<a ", "<img", "<strong>bold", "<table", "math"} {
			require.NotContains(t, html, markup)
		}
	}
	require.Contains(t, render(r.details), "<code>&lt;script&gt;alert(1)&lt;/script&gt;")

	// The bridge refuses control characters in identifiers. Nobody does in the model
	// that an operator names for a run.
	const evil = "m`\x1b[2J\u202e\n# m"
	byHand := map[string]any{
		"job":    map[string]any{"role": "agent", "jobId": "by-hand", "userId": "u1", "task": "flaky " + harness.Text("task")},
		"origin": map[string]any{"updates": "signalr:updates"},
	}
	b.LLM.Script(map[string]any{"rules": []map[string]any{{"contains": "flaky", "status": 503}}})
	_, err = b.Temporal.SignalWithStartWorkflow(t.Context(), "by-hand", "override", map[string]any{"model": evil, "maxTokens": 7, "force": true},
		client.StartWorkflowOptions{TaskQueue: "executor-workflows"}, "JobWorkflow", byHand)
	require.NoError(t, err)
	r = b.shows("by-hand", "its failure", func(r uiRun) bool { return r.call().failure != "" })
	require.Contains(t, r.call().failure, "model m`\\u001b[2J\\u202e\\n# m, endpoint http://")
	require.Equal(t, "m`\\u001b[2J\\u202e\\n# m", r.call().heartbeat["model"])
	require.Equal(t, []string{"agent call, model `m\\u0060\\u001b[2J\\u202e\\n# m`, at most 7 tokens"}, r.activities)
	require.Contains(t, r.current, "asking the model ("+r.activities[0]+" on queue `executor-agent`)")
	b.LLM.Script(map[string]any{"rules": []map[string]any{}})
	r = b.shows("by-hand", "its end", uiRun.closed)
	require.Contains(t, r.current, "- Answered: model `m\\u0060\\u001b[2J\\u202e\\n# m`, ")
	require.NotContains(t, render(r.current)+render(r.activities[0]), "<h1")
}
