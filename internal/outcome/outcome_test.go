package outcome_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/outcome"
	"github.com/nodpt/executor/internal/stream"
)

func TestUpdate(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	completed := job.Row{Role: job.Chat, JobID: "c1", Outcome: job.Outcome{Status: job.Completed, Output: "an answer", FinishedAt: at}}
	failed := job.Row{Role: job.Chat, JobID: "c1", Outcome: job.Outcome{
		Status: job.Failed, ErrorCode: "llm_timeout", ErrorMessage: "The model did not answer in time.", FinishedAt: at,
	}}
	rejected := job.Row{Role: job.Chat, JobID: "entry:5-0", Outcome: job.Outcome{
		Status: job.Rejected, ErrorCode: "task_missing", ErrorMessage: "The job does not say what to do.", FinishedAt: at,
	}}
	listed := job.Job{Role: job.Chat, ID: "c1", ConnectionID: "k", Source: job.SourceList}
	plain := job.Job{Role: job.Chat, ID: "c1", ConnectionID: "k"}

	for name, tc := range map[string]struct {
		row  job.Row
		job  job.Job
		want stream.Update
	}{
		"an answer": {completed, plain, stream.Update{
			Type: stream.TypeResult, Payload: "an answer", Job: plain,
		}},
		"an answer to the legacy list": {completed, listed, stream.Update{
			Type: stream.TypeResult, Payload: "an answer", Job: listed,
			Channel: "AI.RESPONSE", ChannelText: "an answer",
		}},
		"a failure is an error, never an answer": {failed, plain, stream.Update{
			Type: stream.TypeError, Job: plain,
			Payload: `{"code":"llm_timeout","message":"The model did not answer in time."}`,
		}},
		"a failure for the legacy list is marked": {failed, listed, stream.Update{
			Type: stream.TypeError, Job: listed,
			Payload: `{"code":"llm_timeout","message":"The model did not answer in time."}`,
			Channel: "AI.RESPONSE", ChannelText: "[NodPT error] This message could not be answered (code llm_timeout, job c1).",
		}},
		"a rejected entry without a jobId is named by its row": {rejected, job.Job{Role: job.Chat, UserID: "u"}, stream.Update{
			Type: stream.TypeError, Job: job.Job{Role: job.Chat, ID: "entry:5-0", UserID: "u"},
			Payload: `{"code":"task_missing","message":"The job does not say what to do."}`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.want.Effect, tc.want.Stream, tc.want.At = "entry:jobs:chat/5-0", "signalr:updates", at
			require.Equal(t, tc.want, outcome.Update(tc.row, tc.job, "signalr:updates", "entry:jobs:chat/5-0"))
		})
	}
}

func TestDeadLetter(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	j := job.Job{Role: job.Agent, ID: "j1", UserID: "u1"}
	row := job.NewRow(j, job.Origin{Stream: "jobs:agent", EntryID: "7-1"}, "entry:jobs:agent/7-1", job.Outcome{
		Status: job.Failed, ErrorCode: "terminated", ErrorMessage: "It was stopped.", FinishedAt: at,
	})
	require.Equal(t, "7-1", row.LastEntryID)
	require.Equal(t, at, row.Fence)
	fields := []job.Field{{Name: "jobId", Value: "j1"}}
	require.Equal(t, stream.DeadLetter{
		Effect: row.Effect, Stream: "jobs:agent", EntryID: "7-1",
		Reason: "terminated", Error: "It was stopped.", Fields: fields, FailedAt: at,
	}, outcome.DeadLetter(row, fields, row.Effect))
}

func TestNeedsDeadLetter(t *testing.T) {
	t.Parallel()
	require.True(t, outcome.NeedsDeadLetter(job.Failed))
	require.True(t, outcome.NeedsDeadLetter(job.Rejected))
	require.False(t, outcome.NeedsDeadLetter(job.Canceled))
	require.False(t, outcome.NeedsDeadLetter(job.Completed))
}
