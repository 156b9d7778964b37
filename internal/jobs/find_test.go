package jobs

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/serviceerror"

	"github.com/nodpt/executor/internal/job"
)

func TestFind(t *testing.T) {
	t.Parallel()
	chat := func(id string) job.Job {
		return job.Job{Role: job.Chat, ID: id, UserID: "u2", Task: canary}
	}
	hashed := agentJob("with blanks")
	w := &world{
		runs: []*fakeRun{
			started(t, agentJob("one"), "r-one", openStatus),
			started(t, agentJob("both"), "r-both", doneStatus), started(t, chat("both"), "r-both-chat", openStatus),
			started(t, hashed, "r-hashed", openStatus),
		},
		backlog: map[string][]job.Entry{
			"jobs:agent": {
				entry(job.Agent, "1-1", "jobId", "other", "task", "x"),
				entry(job.Agent, "1780315200000-1", "jobId", "waits", "task", canary, "userId", "u1"),
				entry(job.Agent, "1-3", "jobId", "wrong"),                  // will be rejected: it has no task
				entry(job.Agent, "1-5", "jobId", "entry:1-1", "task", "x"), // so will this
			},
			"jobs:chat": {entry(job.Chat, "1-4", "jobId", "waits in chat", "message", canary)},
		},
	}
	w.rows = []job.Row{w.runs[1].row(t, job.Completed, "")}
	rejected := w.rows[0]
	rejected.JobID, rejected.Status, rejected.WorkflowID, rejected.RunID = "entry:9-9", job.Rejected, "", ""
	looksLike := w.rows[0]
	looksLike.JobID = "job:agent:gone"
	old := w.rows[0]
	old.JobID, old.RunID = "old", "r-old"
	w.rows = append(w.rows, rejected, looksLike, old)

	tests := map[string]struct {
		id    string
		roles []job.Role
		want  string // or
		err   string
	}{
		"a job id":                        {"one", nil, "agent/one running", ""},
		"of another role":                 {"one", []job.Role{job.Chat}, "", `no such job: "one"`},
		"of two roles":                    {"both", nil, "", `2 jobs have the id "both", one of each of the roles agent, chat: choose one with --role`},
		"of one of two roles":             {"both", []job.Role{job.Agent}, "agent/both completed", ""},
		"of the other":                    {"both", []job.Role{job.Chat, job.Manager}, "chat/both running", ""},
		"a workflow id":                   {"job:chat:both", nil, "chat/both running", ""},
		"a workflow id of another role":   {"job:chat:both", []job.Role{job.Agent}, "", "no such job"},
		"a hashed id":                     {"with blanks", nil, "agent/with blanks running", ""},
		"a hashed workflow id":            {w.runs[3].info.GetExecution().GetWorkflowId(), nil, "agent/with blanks running", ""},
		"a job id like a workflow id":     {"job:agent:gone", nil, "agent/job:agent:gone completed", ""},
		"a rejected entry":                {"entry:9-9", nil, "agent/entry:9-9 rejected", ""},
		"a job older than its history":    {"old", nil, "agent/old completed", ""},
		"an entry that was not started":   {"waits", nil, "agent/waits queued (in the stream)", ""},
		"the same with its role":          {"waits in chat", []job.Role{job.Chat}, "chat/waits in chat queued (in the stream)", ""},
		"an entry that cannot be started": {"wrong", nil, "agent/wrong queued (in the stream)", ""},
		"nothing":                         {"none", nil, "", `no such job: "none"`},
		"no id":                           {"", nil, "", `no such job: ""`},
		"something hostile":               {"' OR '1'='1", nil, "", "no such job"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, err := newView(t, w).Find(t.Context(), tt.id, tt.roles)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				var ambiguous *AmbiguousError
				require.NotEqual(t, errors.Is(err, ErrNotFound), errors.As(err, &ambiguous), "an error that can be told")
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, names([]Job{f.Job})[0])
		})
	}

	t.Run("what an entry says", func(t *testing.T) {
		t.Parallel()
		f, err := newView(t, w).Find(t.Context(), "waits", nil)
		require.NoError(t, err)
		require.Equal(t, Job{
			Role: job.Agent, JobID: "waits", Status: Queued, Step: StepEntry, UserID: "u1", EnqueuedAt: noon(),
			Stream: "jobs:agent", EntryID: "1780315200000-1", WorkflowID: "job:agent:waits",
		}, f.Job)
	})
	t.Run("with servers away", func(t *testing.T) {
		t.Parallel()
		for _, tt := range []struct {
			w    *world
			want string
		}{
			{&world{failTemporal: serviceerror.NewUnavailable("away")}, "describe the run of a job: away"},
			{&world{failRows: errors.New("rows away")}, "rows away"},
			{&world{failRedis: errors.New("Redis away")}, "Redis away"},
		} {
			_, err := newView(t, tt.w).Find(t.Context(), "one", nil)
			require.ErrorContains(t, err, tt.want)
		}
		blind := New(Config{})
		_, err := blind.Find(t.Context(), "one", nil)
		require.ErrorIs(t, err, ErrNotFound)
	})
	t.Run("behind too many entries", func(t *testing.T) {
		t.Parallel()
		long := &world{backlog: map[string][]job.Entry{}}
		for i := range backlogLimit + 1 {
			long.backlog["jobs:chat"] = append(long.backlog["jobs:chat"], job.Entry{Stream: "jobs:chat", ID: fmt.Sprintf("1-%d", i)})
		}
		_, err := newView(t, long).Find(t.Context(), "x", nil)
		require.ErrorIs(t, err, ErrNotFound)
		require.ErrorContains(t, err, "only the first 20000 entries that wait in jobs:chat")
	})
}

// A run that was closed from outside has no row until the bridge writes one.
func TestFindARunWithoutRow(t *testing.T) {
	t.Parallel()
	tests := map[enumspb.WorkflowExecutionStatus]struct {
		want  Status
		code  string
		event *historypb.HistoryEvent
	}{
		enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED: {Failed, codeTerminated, &historypb.HistoryEvent{
			EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
			Attributes: &historypb.HistoryEvent_WorkflowExecutionTerminatedEventAttributes{
				WorkflowExecutionTerminatedEventAttributes: &historypb.WorkflowExecutionTerminatedEventAttributes{Reason: "enough"},
			},
		}},
		enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT: {Failed, codeTimedOut, &historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT}},
		enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:  {Canceled, "canceled", &historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED}},
		enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED: {Completed, "", nil},
	}
	for status, tt := range tests {
		t.Run(status.String(), func(t *testing.T) {
			t.Parallel()
			r := started(t, agentJob("j1"), "r1", status)
			if tt.event != nil {
				r.events = append(r.events, tt.event)
			}
			f, err := newView(t, &world{runs: []*fakeRun{r}}).Find(t.Context(), "j1", nil)
			require.NoError(t, err)
			require.True(t, f.Ended())
			require.Equal(t, tt.want, f.Status)
			require.Equal(t, tt.code, f.Code)
			require.Equal(t, at(40), f.FinishedAt)
			require.EqualValues(t, 30_000, f.TookMS)
		})
	}
}
