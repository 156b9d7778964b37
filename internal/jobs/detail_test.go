package jobs

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	historypb "go.temporal.io/api/history/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/proto"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

func scheduled(id int64, activity string) *historypb.HistoryEvent {
	return &historypb.HistoryEvent{
		EventId: id, EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
		Attributes: &historypb.HistoryEvent_ActivityTaskScheduledEventAttributes{
			ActivityTaskScheduledEventAttributes: &historypb.ActivityTaskScheduledEventAttributes{ActivityType: &commonpb.ActivityType{Name: activity}},
		},
	}
}

func begun(id int64, attempt int32, last *failurepb.Failure) *historypb.HistoryEvent {
	return &historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_STARTED, EventTime: stamp(20),
		Attributes: &historypb.HistoryEvent_ActivityTaskStartedEventAttributes{
			ActivityTaskStartedEventAttributes: &historypb.ActivityTaskStartedEventAttributes{
				ScheduledEventId: id, Attempt: attempt, LastFailure: last, Identity: "w1",
			},
		},
	}
}

func activityDone(id int64) *historypb.HistoryEvent {
	return &historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED, EventTime: stamp(30),
		Attributes: &historypb.HistoryEvent_ActivityTaskCompletedEventAttributes{
			ActivityTaskCompletedEventAttributes: &historypb.ActivityTaskCompletedEventAttributes{ScheduledEventId: id},
		},
	}
}

func activityFailed(id int64, f *failurepb.Failure) *historypb.HistoryEvent {
	return &historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_FAILED, EventTime: stamp(30),
		Attributes: &historypb.HistoryEvent_ActivityTaskFailedEventAttributes{
			ActivityTaskFailedEventAttributes: &historypb.ActivityTaskFailedEventAttributes{ScheduledEventId: id, Failure: f},
		},
	}
}

func runCompleted(t *testing.T, verdict job.Verdict) *historypb.HistoryEvent {
	t.Helper()
	return &historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionCompletedEventAttributes{
			WorkflowExecutionCompletedEventAttributes: &historypb.WorkflowExecutionCompletedEventAttributes{
				Result: payloads(t, workflows.Result{Status: job.Completed, Verdict: verdict}),
			},
		},
	}
}

func runFailed(code string) *historypb.HistoryEvent {
	return &historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionFailedEventAttributes{
			WorkflowExecutionFailedEventAttributes: &historypb.WorkflowExecutionFailedEventAttributes{Failure: failure(code, "The job failed.")},
		},
	}
}

// healed is a job whose first run failed and whose second, a reset, completed it;
// a third, another reset, had nothing to say.
func healed(t *testing.T) *world {
	t.Helper()
	first := started(t, agentJob("j1"), "r1", failedStatus)
	first.events = append(
		first.events, scheduled(5, "RunAgent"), begun(5, 3, failure("llm_timeout", "slow")),
		activityFailed(5, &failurepb.Failure{
			Cause:       failure("llm_malformed_answer", "broken"),
			FailureInfo: &failurepb.Failure_ActivityFailureInfo{ActivityFailureInfo: &failurepb.ActivityFailureInfo{}},
		}),
		scheduled(9, workflows.ActivityPublish), begun(9, 2, failure("redis_unavailable", "no Redis")), activityDone(9),
		runFailed("llm_malformed_answer"),
	)
	second := started(t, agentJob("j1"), "r2", doneStatus)
	second.info.FirstRunId = "r1"
	second.events = append(second.events, scheduled(5, "RunAgent"), begun(5, 1, nil), activityDone(5), runCompleted(t, job.Written))
	third := started(t, agentJob("j1"), "r3", doneStatus)
	third.info.FirstRunId = "r1"
	third.events = append(third.events, runCompleted(t, job.Superseded))
	row := second.row(t, job.Completed, "")
	row.Effect = job.RunEffect("r2")
	return &world{runs: []*fakeRun{third, second, first}, rows: []job.Row{row}}
}

func TestDetail(t *testing.T) {
	t.Parallel()
	w := healed(t)
	entryID := w.rows[0].EntryID
	dead := func(id, entryID, jobID string) stream.Dead {
		return stream.Dead{Stream: "jobs:agent", ID: id, EntryID: entryID, Reason: "why", Fields: []job.Field{
			{Name: "jobId", Value: jobID}, {Name: "task", Value: canary},
		}}
	}
	w.dead = []stream.Dead{
		dead("1780315244000-0", "8-8", "j1"), // of another entry
		dead("1780315243000-0", "7-7", "other"),
		dead("1780315242000-0", entryID, ""), // does not say whose it is
		dead("1780315241000-0", entryID, "j1"),
		dead("1780310000000-0", entryID, "j1"), // long before
	}
	v := newView(t, w)
	f, err := v.Find(t.Context(), "j1", nil)
	require.NoError(t, err)
	d, err := v.Detail(t.Context(), f, false)
	require.NoError(t, err)
	require.Equal(t, f.Job, d.Job)
	require.Equal(t, stream.MessageID("run:r2"), d.MessageID)
	require.Empty(t, d.AnswerID)
	require.Empty(t, d.Notes)
	require.Nil(t, d.Content)
	require.Equal(t, []DeadLetter{
		{Stream: "jobs:agent:dead", ID: "1780315244000-0", Reason: "why", Resolved: true},
		{Stream: "jobs:agent:dead", ID: "1780315242000-0", Reason: "why"},
		{Stream: "jobs:agent:dead", ID: "1780315241000-0", Reason: "why", Resolved: true},
	}, d.DeadLetters)
	effect := job.EntryEffect("jobs:agent", entryID)
	require.Equal(t, []Run{
		{
			RunID: "r3", Status: "completed", StartedAt: at(10), ClosedAt: at(40), Verdict: job.Superseded,
			Effect: "run:r3", UI: "ui/job:agent:j1/r3",
		},
		{
			RunID: "r2", Status: "completed", StartedAt: at(10), ClosedAt: at(40), Attempts: 1, Verdict: job.Written, Speaks: true,
			Effect: "run:r2", MessageID: stream.MessageID("run:r2"), UI: "ui/job:agent:j1/r2",
		},
		{
			RunID: "r1", Status: "failed", StartedAt: at(10), ClosedAt: at(40), Attempts: 3,
			Code: "llm_malformed_answer", Message: "The job failed.",
			Effect: effect, MessageID: stream.MessageID(effect), UI: "ui/job:agent:j1/r1",
		},
	}, d.Runs)
	require.Equal(t, []Attempt{
		{Step: StepCalling, Attempt: 1, Status: "completed", StartedAt: at(20), EndedAt: at(30), Worker: "w1"},
	}, d.Tries, "of the latest run that has any")
	require.Empty(t, w.asked, "no answer was read")

	text, err := json.Marshal(d)
	require.NoError(t, err)
	require.NotContains(t, string(text), "CANARY")
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	attempts := func(t *testing.T, r *fakeRun) []Attempt {
		t.Helper()
		v := newView(t, &world{runs: []*fakeRun{r}})
		f, err := v.Find(t.Context(), "j1", nil)
		require.NoError(t, err)
		d, err := v.Detail(t.Context(), f, false)
		require.NoError(t, err)
		return d.Tries
	}
	t.Run("of an ended run", func(t *testing.T) {
		t.Parallel()
		w := healed(t)
		require.Equal(t, []Attempt{
			{Step: StepCalling, Attempt: 2, Status: "failed", Code: "llm_timeout", Message: "slow"},
			{Step: StepCalling, Attempt: 3, Status: "failed", StartedAt: at(20), EndedAt: at(30), Worker: "w1", Code: "llm_malformed_answer", Message: "broken"},
			{Step: StepPublishing, Attempt: 1, Status: "failed", Code: "redis_unavailable", Message: "no Redis"},
			{Step: StepPublishing, Attempt: 2, Status: "completed", StartedAt: at(20), EndedAt: at(30), Worker: "w1"},
		}, attempts(t, w.runs[2]))
	})
	t.Run("that wait", func(t *testing.T) {
		t.Parallel()
		r := started(t, agentJob("j1"), "r1", openStatus)
		r.pending = &workflowpb.PendingActivityInfo{
			ActivityType: &commonpb.ActivityType{Name: "RunAgent"}, State: enumspb.PENDING_ACTIVITY_STATE_SCHEDULED, Attempt: 4,
			LastFailure: failure("llm_timeout", "slow"), LastStartedTime: stamp(20), LastAttemptCompleteTime: stamp(30),
			NextAttemptScheduleTime: stamp(70), LastWorkerIdentity: "w1",
		}
		require.Equal(t, []Attempt{
			{Step: StepCalling, Attempt: 3, Status: "failed", StartedAt: at(20), EndedAt: at(30), Worker: "w1", Code: "llm_timeout", Message: "slow"},
			{Step: StepCalling, Attempt: 4, Status: "waiting", NextAt: at(70)},
		}, attempts(t, r))
	})
	t.Run("that run", func(t *testing.T) {
		t.Parallel()
		r := started(t, agentJob("j1"), "r1", openStatus)
		r.pending = &workflowpb.PendingActivityInfo{
			ActivityType: &commonpb.ActivityType{Name: "RunAgent"}, State: enumspb.PENDING_ACTIVITY_STATE_STARTED, Attempt: 2,
			LastFailure: failure("llm_timeout", "slow"), LastStartedTime: stamp(20), LastAttemptCompleteTime: stamp(15), LastWorkerIdentity: "w2",
			HeartbeatDetails: payloads(t, map[string]any{
				"state": "calling the LLM", "since": at(21), "attempt": 2, "model": "m", "endpoint": "http://llm", "classified": 1,
			}),
		}
		want := []Attempt{
			{Step: StepCalling, Attempt: 1, Status: "failed", EndedAt: at(15), Code: "llm_timeout", Message: "slow"},
			{
				Step: StepCalling, Attempt: 2, Status: "running", StartedAt: at(20), Worker: "w2",
				State: "calling the LLM", StateSince: at(21), Model: "m", Endpoint: "http://llm",
			},
		}
		require.Equal(t, want, attempts(t, r))

		stale := started(t, agentJob("j1"), "r1", openStatus)
		stale.pending = r.pending
		r.pending.Attempt = 3 // what is said is still the second's
		got := attempts(t, stale)
		require.Empty(t, got[1].State)
	})
	t.Run("canceled before it was started", func(t *testing.T) {
		t.Parallel()
		r := started(t, agentJob("j1"), "r1", enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED)
		r.events = append(r.events, scheduled(5, "RunAgent"), &historypb.HistoryEvent{
			EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_CANCELED,
			Attributes: &historypb.HistoryEvent_ActivityTaskCanceledEventAttributes{
				ActivityTaskCanceledEventAttributes: &historypb.ActivityTaskCanceledEventAttributes{ScheduledEventId: 5},
			},
		})
		require.Empty(t, attempts(t, r))
	})
	t.Run("timed out", func(t *testing.T) {
		t.Parallel()
		r := started(t, agentJob("j1"), "r1", failedStatus)
		r.events = append(r.events, scheduled(5, "RunAgent"), &historypb.HistoryEvent{
			EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT, EventTime: stamp(30),
			Attributes: &historypb.HistoryEvent_ActivityTaskTimedOutEventAttributes{
				ActivityTaskTimedOutEventAttributes: &historypb.ActivityTaskTimedOutEventAttributes{
					ScheduledEventId: 5,
					Failure: &failurepb.Failure{Message: "activity StartToClose timeout", FailureInfo: &failurepb.Failure_TimeoutFailureInfo{
						TimeoutFailureInfo: &failurepb.TimeoutFailureInfo{TimeoutType: enumspb.TIMEOUT_TYPE_START_TO_CLOSE},
					}},
				},
			},
		})
		require.Equal(t, []Attempt{
			{Step: StepCalling, Status: "failed", EndedAt: at(30), Code: "activity_timeout", Message: "activity StartToClose timeout"},
		}, attempts(t, r))
	})
}

func TestEncryptedFailureKeepsItsCode(t *testing.T) {
	t.Parallel()
	v := newView(t, &world{})
	f := failure("llm_timeout", "Encoded failure")
	f.EncodedAttributes = payload(t, map[string]string{"message": "slow", "stack_trace": ""})
	code, message, _ := v.failure(f)
	require.Equal(t, "llm_timeout", code)
	require.Equal(t, "slow", message)
	require.NotNil(t, f.GetEncodedAttributes(), "the failure given is left alone")

	f.EncodedAttributes = &commonpb.Payload{Metadata: map[string][]byte{"encoding": []byte("binary/encrypted")}}
	code, message, _ = v.failure(f)
	require.Equal(t, "llm_timeout", code)
	require.Equal(t, "Encoded failure", message)
}

// mangled stands for a codec: what it was not told to write it cannot read.
type mangled struct{}

func (mangled) Encode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	return recode(payloads, "plain", "mangled", nil)
}

func (mangled) Decode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	return recode(payloads, "mangled", "plain", errors.New("not mangled"))
}

func recode(payloads []*commonpb.Payload, from, to string, wrong error) ([]*commonpb.Payload, error) {
	var all []*commonpb.Payload
	for _, p := range payloads {
		kind, marked := p.GetMetadata()["kind"]
		if wrong != nil && (!marked || string(kind) != from) {
			return nil, wrong
		}
		clone := proto.CloneOf(p)
		clone.Metadata["kind"] = []byte(to)
		all = append(all, clone)
	}
	return all, nil
}

func TestDetailTellsOperatorsTheCause(t *testing.T) {
	t.Parallel()
	const cause = "llm_bad_request, status 400 (attempt 2, model m, endpoint http://llm)"
	secret := converter.NewCodecDataConverter(converter.GetDefaultDataConverter(), mangled{})
	plain := converter.GetDefaultDataConverter()
	for name, test := range map[string]struct {
		detail      any
		write, read converter.DataConverter
		code, want  string
	}{
		"clear text":           {workflows.Failure{Model: "m", Attempts: 2, Cause: cause}, plain, plain, "llm_bad_request", cause},
		"encrypted":            {workflows.Failure{Cause: cause}, secret, secret, "llm_bad_request", cause},
		"with another key":     {workflows.Failure{Cause: cause}, plain, secret, "llm_bad_request", ""},
		"of another version":   {[]int{1}, plain, plain, "llm_bad_request", ""},
		"without":              {workflows.Failure{Model: "m"}, plain, plain, "llm_bad_request", ""},
		"ended in another way": {workflows.Failure{Cause: cause}, plain, plain, codeTerminated, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := failure("llm_bad_request", "for users")
			details, err := test.write.ToPayloads(test.detail)
			require.NoError(t, err)
			f.GetApplicationFailureInfo().Details = details
			r := started(t, agentJob("j1"), "r1", failedStatus)
			r.events = append(r.events, scheduled(5, "RunAgent"), begun(5, 2, failure("llm_timeout", "slow")), activityFailed(5, f), runFailed(test.code))
			w := &world{runs: []*fakeRun{r}, rows: []job.Row{r.row(t, job.Failed, test.code)}}
			v := newView(t, w)
			v.payloads = test.read
			found, err := v.Find(t.Context(), "job:agent:j1", nil)
			require.NoError(t, err)
			d, err := v.Detail(t.Context(), found, false)
			require.NoError(t, err)
			require.Equal(t, test.want, d.Cause)
		})
	}
}

func TestContent(t *testing.T) {
	t.Parallel()
	detail := func(t *testing.T, w *world, id string) Detail {
		t.Helper()
		v := newView(t, w)
		f, err := v.Find(t.Context(), id, nil)
		require.NoError(t, err)
		d, err := v.Detail(t.Context(), f, true)
		require.NoError(t, err)
		return d
	}
	t.Run("from history and row", func(t *testing.T) {
		t.Parallel()
		d := detail(t, healed(t), "j1")
		require.Equal(t, &Content{Task: canary, Payload: canary + " payload", Answer: canary + " answer"}, d.Content)
		require.Empty(t, d.Notes)
	})
	t.Run("history gone, entry there", func(t *testing.T) {
		t.Parallel()
		w := healed(t)
		w.runs = nil
		w.backlog = map[string][]job.Entry{"jobs:agent": {entry(job.Agent, w.rows[0].EntryID, "jobId", "j1", "task", "from the stream")}}
		d := detail(t, w, "j1")
		require.Equal(t, &Content{Task: "from the stream", Answer: canary + " answer"}, d.Content)
		require.Equal(t, []string{"The history of this job is gone: Temporal keeps it for the namespace's retention time only."}, d.Notes)
		require.Empty(t, d.Runs)
	})
	t.Run("all gone", func(t *testing.T) {
		t.Parallel()
		w := healed(t)
		w.runs = nil
		d := detail(t, w, "j1")
		require.Equal(t, &Content{Answer: canary + " answer"}, d.Content)
		require.Contains(t, d.Notes[1], "are gone")
	})
	t.Run("encrypted, without the key", func(t *testing.T) {
		t.Parallel()
		w := healed(t)
		unreadable := &commonpb.Payload{Metadata: map[string][]byte{"encoding": []byte("binary/encrypted")}, Data: []byte(canary)}
		for _, r := range w.runs {
			r.info.Memo.Fields = map[string]*commonpb.Payload{workflows.MemoEntryID: unreadable, workflows.MemoStream: unreadable}
			input := r.events[0].GetWorkflowExecutionStartedEventAttributes()
			input.Input = &commonpb.Payloads{Payloads: []*commonpb.Payload{unreadable}}
		}
		d := detail(t, w, "j1")
		require.Equal(t, &Content{Answer: canary + " answer"}, d.Content)
		require.Contains(t, d.Notes[0], "encrypted")
		require.Equal(t, "run:r3", d.Runs[0].Effect, "a reset, whatever its memo says")
		require.Empty(t, d.Runs[2].Effect, "what it was started for cannot be read")
		require.Empty(t, d.Runs[2].MessageID)
		require.NotContains(t, strings.Join(d.Notes, ""), "CANARY")
	})
	t.Run("of another version", func(t *testing.T) {
		t.Parallel()
		w := healed(t)
		for _, r := range w.runs {
			r.events[0].GetWorkflowExecutionStartedEventAttributes().Input = payloads(t, []string{canary})
		}
		d := detail(t, w, "j1")
		require.Contains(t, d.Notes[0], "another version")
		require.NotContains(t, strings.Join(d.Notes, ""), "CANARY")
	})
	t.Run("of an entry that was not started", func(t *testing.T) {
		t.Parallel()
		w := &world{backlog: map[string][]job.Entry{"jobs:agent": {
			entry(job.Agent, "1-1", "jobId", "j1", "task", canary), entry(job.Agent, "1-2", "jobId", "j2"),
		}}}
		require.Equal(t, &Content{Task: canary}, detail(t, w, "j1").Content)
		require.Contains(t, detail(t, w, "j2").Notes[0], "cannot be read as a job: see XRANGE jobs:agent 1-2 1-2")
	})
	t.Run("of a job that failed", func(t *testing.T) {
		t.Parallel()
		w := healed(t)
		w.rows = []job.Row{w.runs[2].row(t, job.Failed, "llm_malformed_answer")}
		w.rows[0].DeadID = "1780315241000-0"
		w.dead = []stream.Dead{{Stream: "jobs:agent", ID: w.rows[0].DeadID, EntryID: w.rows[0].EntryID, Fields: []job.Field{{Name: "jobId", Value: "j1"}}}}
		d := detail(t, w, "j1")
		require.Equal(t, &Content{Task: canary, Payload: canary + " payload"}, d.Content)
		require.Empty(t, w.asked)
		require.Equal(t, []DeadLetter{{Stream: "jobs:agent:dead", ID: w.rows[0].DeadID}}, d.DeadLetters)
		require.True(t, d.Runs[2].Speaks)
	})
}

func TestDetailOfARepeatedAnswer(t *testing.T) {
	t.Parallel()
	w := healed(t)
	w.rows[0].LastEntryID = "1780315299000-0"
	v := newView(t, w)
	f, err := v.Find(t.Context(), "j1", nil)
	require.NoError(t, err)
	d, err := v.Detail(t.Context(), f, false)
	require.NoError(t, err)
	require.Equal(t, stream.MessageID("answer:jobs:agent/1780315299000-0"), d.AnswerID)
}

func TestDetailWithServersAway(t *testing.T) {
	t.Parallel()
	w := healed(t)
	w.failRedis = errors.New("Redis is away")
	v := New(Config{Rows: fakeRows{w}, Streams: fakeStreams{w}})
	f, err := v.Find(t.Context(), "j1", []job.Role{job.Agent})
	require.NoError(t, err)
	require.Equal(t, Completed, f.Status)
	d, err := v.Detail(t.Context(), f, false)
	require.NoError(t, err)
	require.Empty(t, d.Runs)
	require.Equal(t, []string{"Dead letters could not be looked for: Redis is away."}, d.Notes)
}

func TestManyRuns(t *testing.T) {
	t.Parallel()
	w := healed(t)
	for range maxRuns {
		w.runs = append(w.runs, w.runs[2])
	}
	v := newView(t, w)
	f, err := v.Find(t.Context(), "j1", nil)
	require.NoError(t, err)
	d, err := v.Detail(t.Context(), f, false)
	require.NoError(t, err)
	require.Len(t, d.Runs, maxRuns)
	require.Equal(t, []string{"Only the last 20 of 23 runs are shown."}, d.Notes)
}
