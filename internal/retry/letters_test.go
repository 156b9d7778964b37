package retry

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// Whether a dead letter is resolved is derived from the rows.
func TestResolved(t *testing.T) {
	t.Parallel()
	dead := stream.Dead{
		Stream: "jobs:agent", ID: "2000-1", EntryID: "1000-1", Reason: "llm_timeout",
		Fields: fields("jobId", "j1", "userId", "u1", "task", "t"),
	}
	row := func(status job.Status, deadID string) *job.Row {
		r := failedJob("j1")
		r.Status, r.DeadID = status, deadID
		return &r
	}
	rejected := func(deadID string) *job.Row {
		r := failedJob(job.RejectedID("1000-1"))
		r.Status, r.DeadID = job.Rejected, deadID
		return &r
	}
	later := row(job.Completed, "")
	later.EntryID, later.LastEntryID = "3000-1", "3000-1"
	tests := map[string]struct {
		rows     []*job.Row
		resolved bool
		says     job.Status // of the row it is shown with
	}{
		"the row names it":                       {[]*job.Row{row(job.Failed, "2000-1")}, false, job.Failed},
		"its id is not in the row yet":           {[]*job.Row{row(job.Failed, "")}, false, job.Failed},
		"the job is completed":                   {[]*job.Row{row(job.Completed, "")}, true, job.Completed},
		"the job was canceled when it ran again": {[]*job.Row{row(job.Canceled, "")}, true, job.Canceled},
		"the job failed again":                   {[]*job.Row{row(job.Failed, "2500-1")}, true, job.Failed},
		"no row":                                 {nil, false, ""},
		"rejected":                               {[]*job.Row{rejected("2000-1")}, false, job.Rejected},
		"rejected, a good entry came later":      {[]*job.Row{rejected("2000-1"), later}, true, job.Rejected},
		"rejected, its job was completed before": {[]*job.Row{rejected("2000-1"), row(job.Completed, "")}, false, job.Rejected},
		"rejected, its job failed for itself":    {[]*job.Row{rejected("2000-1"), row(job.Failed, "2500-1")}, false, job.Rejected},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rows := &fakeRows{}
			for _, r := range tt.rows {
				rows.rows = append(rows.rows, *r)
			}
			letters, err := Letters(t.Context(), rows, []stream.Dead{dead})
			require.NoError(t, err)
			require.Len(t, letters, 1)
			l := letters[0]
			require.Equal(t, tt.resolved, l.Resolved)
			require.Equal(t, job.Job{Role: job.Agent, ID: "j1", UserID: "u1"}, l.Job, "identifiers only")
			if tt.says == "" {
				require.Nil(t, l.Row)
				return
			}
			require.Equal(t, tt.says, l.Row.Status)
		})
	}
}

// Whatever stands in a dead letter, it can be listed.
func TestLettersThatCannotBeRead(t *testing.T) {
	t.Parallel()
	rows := &fakeRows{}
	letters, err := Letters(t.Context(), rows, []stream.Dead{
		{Stream: "jobs:agent", ID: "1-1"},
		{Stream: "jobs:chat", ID: "1-1", EntryID: "0-1", Fields: fields("jobId", "\x00", "userId", "u1")},
		{Stream: "jobs:agent", ID: "1-1", EntryID: "0-1", Fields: fields("task", "t")},
	})
	require.NoError(t, err)
	require.Equal(t, job.Job{Role: job.Agent}, letters[0].Job)
	require.Equal(t, job.Job{Role: job.Chat, UserID: "u1"}, letters[1].Job)
	require.Equal(t, job.Job{Role: job.Agent, ID: "0-1"}, letters[2].Job)
	for _, l := range letters {
		require.False(t, l.Resolved)
	}
	none, err := Letters(t.Context(), rows, nil)
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestReplay(t *testing.T) {
	t.Parallel()
	sent := fields("jobId", "j1", "task", "t")
	tests := map[string]struct {
		dead     stream.Dead
		resolved bool
		deleted  bool
		want     Result
		sent     []job.Field
	}{
		"whole":    {dead: stream.Dead{EntryID: "1000-1", Fields: sent}, want: Result{Action: Resent, EntryID: "9000-1"}, sent: sent},
		"resolved": {dead: stream.Dead{EntryID: "1000-1", Fields: sent}, resolved: true, want: Result{Action: Resolved}},
		"deleted":  {deleted: true, want: Result{Action: Cannot, Reason: "it is deleted"}},
		"shortened": {
			dead: stream.Dead{EntryID: "1000-1", Fields: sent, Truncated: true},
			want: Result{Action: Cannot, Reason: "it is shortened, because the entry was larger than 64 KiB: send the job again from where it came"},
		},
		"no jobId": {
			dead: stream.Dead{EntryID: "1000-1", Fields: fields("task", "t", "unknown", "x")},
			want: Result{Action: Resent, EntryID: "9000-1"}, sent: fields("jobId", "1000-1", "task", "t"),
		},
		"neither jobId nor entry id": {
			dead: stream.Dead{Fields: fields("task", "t")},
			want: Result{Action: Resent, EntryID: "9000-1"}, sent: fields("task", "t"),
		},
		"would be rejected again": {
			dead: stream.Dead{EntryID: "1000-1", Fields: fields("jobId", "j1")},
			want: Result{Action: Cannot, Reason: "it would be rejected again (task_missing)"},
		},
		"a shortened copy that was added by hand": {
			dead: stream.Dead{EntryID: "1000-1", Fields: fields("jobId", "j1", "task", "t", "original_id", "900-1", "truncated", "1")},
			want: Result{Action: Cannot, Reason: "it would be rejected again (dead_letter_truncated)"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, streams, _ := world()
			tt.dead.Stream, tt.dead.ID = "jobs:agent", "2000-1"
			if !tt.deleted {
				streams.dead["jobs:agent/2000-1"] = tt.dead
			}
			l := letter(tt.dead)
			l.Resolved = tt.resolved
			l.Fields = nil
			replayer := &Replayer{Streams: streams, Pace: Pace{Rate: 1e6, Parallel: 1}}
			reported := 0
			results, err := replayer.Do(t.Context(), []Letter{l}, func(int, Result) { reported++ })
			require.NoError(t, err)
			require.Equal(t, 1, reported)
			require.Len(t, results, 1)
			results[0].Row = job.Row{}
			require.Equal(t, tt.want, results[0])
			var added []job.Field
			for _, e := range streams.added {
				require.Equal(t, "jobs:agent", e.Stream)
				added = append(added, e.Fields...)
			}
			require.Equal(t, tt.sent, added)
		})
	}
}

func TestReplayStopsAtAnOutage(t *testing.T) {
	t.Parallel()
	_, streams, _ := world()
	dead := stream.Dead{Stream: "jobs:agent", ID: "2000-1", EntryID: "1000-1", Fields: fields("jobId", "j1", "task", "t")}
	streams.dead["jobs:agent/2000-1"] = dead
	streams.err = &stream.Error{Op: "add to jobs:agent", Kind: stream.ErrUnavailable}
	replayer := &Replayer{Streams: streams, Pace: Pace{Rate: 1e6, Parallel: 1}}
	results, err := replayer.Do(t.Context(), []Letter{letter(dead), letter(dead)}, func(int, Result) {})
	var outage *OutageError
	require.ErrorAs(t, err, &outage)
	require.Empty(t, results[0].Action)
	require.Empty(t, results[1].Action)
}
