package jobs

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"pgregory.net/rapid"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

func TestProgressOfAnOpenJob(t *testing.T) {
	t.Parallel()
	const (
		scheduled = enumspb.PENDING_ACTIVITY_STATE_SCHEDULED
		begun     = enumspb.PENDING_ACTIVITY_STATE_STARTED
	)
	activity := func(name string, state enumspb.PendingActivityState, attempt int32) *workflowpb.PendingActivityInfo {
		return &workflowpb.PendingActivityInfo{ActivityType: &commonpb.ActivityType{Name: name}, State: state, Attempt: attempt}
	}
	failed := func(p *workflowpb.PendingActivityInfo, code string) *workflowpb.PendingActivityInfo {
		p.LastFailure = failure(code, "why")
		p.NextAttemptScheduleTime = stamp(70)
		return p
	}
	timedOut := activity("RunAgent", begun, 2)
	timedOut.LastFailure = &failurepb.Failure{FailureInfo: &failurepb.Failure_TimeoutFailureInfo{
		TimeoutFailureInfo: &failurepb.TimeoutFailureInfo{TimeoutType: enumspb.TIMEOUT_TYPE_HEARTBEAT},
	}}
	reporting := activity("RunAgent", begun, 1)
	reporting.HeartbeatDetails = payloads(t, map[string]any{"state": "calling the LLM", "model": "m2", "classified": 0})
	foreign := activity("RunAgent", begun, 1)
	foreign.HeartbeatDetails = payloads(t, 7)

	tests := map[string]struct {
		run   fakeRun
		want  Job
		state string
	}{
		"between two steps": {fakeRun{}, Job{Status: Running}, "running"},
		"no worker has its workflow": {
			fakeRun{task: &workflowpb.PendingWorkflowTaskInfo{State: enumspb.PENDING_WORKFLOW_TASK_STATE_SCHEDULED, Attempt: 1}},
			Job{Status: Queued, Step: StepWorkflow},
			"queued (workflow)",
		},
		"a worker has its workflow": {
			fakeRun{task: &workflowpb.PendingWorkflowTaskInfo{State: enumspb.PENDING_WORKFLOW_TASK_STATE_STARTED, Attempt: 1}},
			Job{Status: Running},
			"running",
		},
		"its workflow fails": {
			fakeRun{task: &workflowpb.PendingWorkflowTaskInfo{State: enumspb.PENDING_WORKFLOW_TASK_STATE_STARTED, Attempt: 7}},
			Job{Status: Retrying, Step: StepWorkflow, Attempts: 7, Code: codeWorkflow},
			"retrying (workflow)",
		},
		"no worker has its call": {
			fakeRun{pending: activity("RunAgent", scheduled, 1)},
			Job{Status: Queued, Step: StepCalling, Attempts: 1},
			"queued",
		},
		"called": {
			fakeRun{pending: activity("RunChat", begun, 1)},
			Job{Status: Running, Step: StepCalling, Attempts: 1},
			"running",
		},
		"called, and says so": {
			fakeRun{pending: reporting},
			Job{Status: Running, Step: StepCalling, Attempts: 1, Model: "m2"},
			"running",
		},
		"heartbeats of another version": {
			fakeRun{pending: foreign},
			Job{Status: Running, Step: StepCalling, Attempts: 1},
			"running",
		},
		"waits for the next attempt": {
			fakeRun{pending: failed(activity("RunAgent", scheduled, 3), "llm_unreachable")},
			Job{Status: Retrying, Step: StepCalling, Attempts: 3, Code: "llm_unreachable", Message: "why", NextAttemptAt: at(70)},
			"retrying",
		},
		"called again": {
			fakeRun{pending: timedOut},
			Job{
				Status: Retrying, Step: StepCalling, Attempts: 2, Code: "worker_lost",
				Message: "the worker stopped giving signs of life",
			},
			"retrying",
		},
		"cannot be stored": {
			fakeRun{pending: failed(activity(workflows.ActivityPersist, scheduled, 5), "store_unavailable")},
			Job{Status: Retrying, Step: StepStoring, Attempts: 5, Code: "store_unavailable", Message: "why", NextAttemptAt: at(70)},
			"retrying (storing)",
		},
		"is published": {
			fakeRun{pending: activity(workflows.ActivityPublish, begun, 1)},
			Job{Status: Running, Step: StepPublishing, Attempts: 1},
			"running (publishing)",
		},
		"is buried": {
			fakeRun{pending: activity(workflows.ActivityDeadLetter, begun, 1)},
			Job{Status: Running, Step: StepBurying, Attempts: 1},
			"running (burying)",
		},
		"is acknowledged": {
			fakeRun{pending: activity(workflows.ActivityAcknowledge, begun, 1)},
			Job{Status: Running, Step: StepAcknowledge, Attempts: 1},
			"running (acknowledging)",
		},
		"reads its row": {
			fakeRun{pending: activity(workflows.ActivityReadRow, begun, 1)},
			Job{Status: Running, Step: StepReading, Attempts: 1},
			"running (reading)",
		},
		"is being canceled": {
			fakeRun{cancel: true, pending: activity("RunAgent", enumspb.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED, 1)},
			Job{Status: Running, Step: StepCalling, Attempts: 1, Canceling: true},
			"canceling",
		},
		"is paused": {
			fakeRun{pending: activity("RunAgent", enumspb.PENDING_ACTIVITY_STATE_PAUSED, 1)},
			Job{Status: Running, Step: StepCalling, Attempts: 1, Paused: true},
			"paused",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := started(t, agentJob("j1"), "r1", openStatus)
			r.pending, r.task, r.cancel = tt.run.pending, tt.run.task, tt.run.cancel
			w := &world{runs: []*fakeRun{r}}
			f, err := newView(t, w).Find(t.Context(), "j1", []job.Role{job.Agent})
			require.NoError(t, err)
			want := tt.want
			want.Role, want.JobID, want.UserID, want.ProjectID = job.Agent, "j1", "u1", "p1"
			want.EnqueuedAt, want.StartedAt = noon(), at(10)
			want.WaitedMS, want.TookMS = 10_000, 50_000
			want.WorkflowID, want.RunID, want.UI = "job:agent:j1", "r1", "ui/job:agent:j1/r1"
			want.Stream, want.EntryID = "jobs:agent", f.EntryID
			require.Equal(t, want, f.Job)
			require.Equal(t, tt.state, f.State())
			require.False(t, f.Ended())
		})
	}
}

func TestParseWorkflowID(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		role := rapid.SampledFrom(job.Roles()).Draw(t, "role")
		jobID := rapid.OneOf(rapid.StringMatching(`[A-Za-z0-9._:-]{1,140}`), rapid.StringN(1, 40, -1)).Draw(t, "id")
		id := job.WorkflowID(role, jobID)
		gotRole, gotID, ok := parseWorkflowID(id)
		require.True(t, ok)
		require.Equal(t, role, gotRole)
		if strings.HasPrefix(id, "job:"+string(role)+":h:") {
			require.Empty(t, gotID)
		} else {
			require.Equal(t, jobID, gotID)
		}
	})
	for _, id := range []string{
		"", "job", "job:", "job:agent", "job:agent:", "job:cook:x", "x:agent:j1", "job:agent:a b", "job:agent:it's",
		"job:agent:h:short", "job:agent:h:0123456789abcdef0123456789ABCDEF", "job:agent:h:'; DROP 456789abcdef01234567",
	} {
		_, _, ok := parseWorkflowID(id)
		require.False(t, ok, id)
	}
}

func TestWhoseRunItIs(t *testing.T) {
	t.Parallel()
	plain := started(t, agentJob("j1"), "r1", openStatus)
	hashed := started(t, agentJob("with blanks"), "r1", openStatus)
	unreadable := started(t, agentJob("with blanks"), "r1", openStatus)
	unreadable.events = nil
	withoutAttributes := started(t, agentJob("j1"), "r1", openStatus)
	withoutAttributes.info.SearchAttributes = nil
	long := agentJob("j1")
	long.UserID = strings.Repeat("u", 300)
	cut := started(t, long, "r1", openStatus)
	cut.info.SearchAttributes.IndexedFields[workflows.AttributeUser] = payload(t, long.UserID[:255])
	withoutMemo := started(t, agentJob("j1"), "r1", openStatus)
	withoutMemo.info.Memo = nil
	fancyEntry := started(t, agentJob("j1"), "r1", openStatus)
	fancyEntry.info.Memo.Fields[workflows.MemoEntryID] = payload(t, "7-0")

	tests := map[string]struct {
		run      *fakeRun
		id, user string
		enqueued time.Time
	}{
		"from its ids":                     {plain, "j1", "u1", noon()},
		"a job id that only the input has": {hashed, "with blanks", "u1", noon()},
		"an input that cannot be read":     {unreadable, "", "u1", noon()},
		"started without attributes":       {withoutAttributes, "j1", "u1", noon()},
		"an attribute that was cut":        {cut, "j1", long.UserID, noon()},
		"started by hand":                  {withoutMemo, "j1", "u1", time.Time{}},
		"an entry with an id of its own":   {fancyEntry, "j1", "u1", time.Time{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all []Job
			n, err := newView(t, &world{runs: []*fakeRun{tt.run}}).Open(t.Context(), Query{}, collect(&all))
			require.NoError(t, err)
			require.Equal(t, 1, n)
			require.Len(t, all, 1)
			require.Equal(t, tt.id, all[0].JobID)
			require.Equal(t, tt.user, all[0].UserID)
			require.Equal(t, tt.enqueued, all[0].EnqueuedAt)
			if tt.enqueued.IsZero() {
				require.Equal(t, at(10), all[0].Since())
			}
			if tt.id == "" {
				require.Equal(t, tt.run.info.GetExecution().GetWorkflowId(), all[0].Name())
			}
		})
	}
}

func collect(into *[]Job) func([]Job) error {
	return func(page []Job) error {
		*into = append(*into, page...)
		return nil
	}
}
