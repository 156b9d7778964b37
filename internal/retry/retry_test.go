package retry

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// What is done for one job, by what became of it.
func TestOne(t *testing.T) {
	t.Parallel()
	failed := failedJob("j1")
	completed := failed
	completed.Status, completed.ErrorCode, completed.DeadID = job.Completed, "", ""
	rejected := failed
	rejected.Status, rejected.WorkflowID, rejected.JobID, rejected.ErrorCode = job.Rejected, "", job.RejectedID("1000-1"), "task_missing"
	rowless := job.Row{Role: job.Agent, JobID: "j1"}
	canceled, letterless := failed, failed
	canceled.Status, canceled.DeadID = job.Canceled, ""
	letterless.DeadID = ""
	sent := fields("jobId", "j1", "task", "t")
	force := workflows.Override{Force: true}
	override := workflows.Override{Model: "m", MaxTokens: 7}

	tests := map[string]struct {
		row      job.Row
		override workflows.Override
		prepare  func(*fakeRuns, *fakeStreams)
		want     Result
		sent     []job.Field // that were added to jobs:agent
	}{
		"failed":         {row: failed, want: Result{Action: Retried, RunID: "again-1-of-run-of-j1"}},
		"canceled":       {row: canceled, want: Result{Action: Retried, RunID: "again-1-of-run-of-j1"}},
		"with overrides": {row: failed, override: override, want: Result{Action: Retried, RunID: "again-1-of-run-of-j1"}},
		"runs": {
			row: failed,
			prepare: func(r *fakeRuns, _ *fakeStreams) {
				r.current[failed.WorkflowID] = Run{WorkflowID: failed.WorkflowID, RunID: "other", Open: true}
			},
			want: Result{Action: Running, RunID: "other"},
		},
		"runs since a moment ago": {
			row: failed,
			prepare: func(r *fakeRuns, _ *fakeStreams) {
				r.hook = func(id string) { r.current[id] = Run{WorkflowID: id, RunID: "other", Open: true} }
			},
			want: Result{Action: Running, RunID: "other"},
		},
		"completed":        {row: completed, want: Result{Action: Completed}},
		"completed, force": {row: completed, override: force, want: Result{Action: Retried, RunID: "again-1-of-run-of-j1"}},
		"rejected": {row: rejected, want: Result{
			Action: Cannot,
			Reason: "it was rejected (task_missing) and never ran; if it could be read now: executor dlq replay agent/2000-1",
		}},
		"no row and a run": {
			row: rowless,
			prepare: func(r *fakeRuns, _ *fakeStreams) {
				r.current[failed.WorkflowID] = Run{WorkflowID: failed.WorkflowID, RunID: "other", Open: true}
			},
			want: Result{Action: Running, RunID: "other"},
		},
		"no row and a closed run": {
			row: rowless,
			want: Result{
				Action: Cannot,
				Reason: "its run has ended and it has no row: a bridge writes that of a terminated run within 15 s; if rows were lost: executor dlq replay --unresolved",
			},
		},
		"unknown": {
			row: rowless, prepare: gone,
			want: Result{Action: Cannot, Unknown: true, Reason: "there is no such job"},
		},
		"refused": {
			row:     failed,
			prepare: func(r *fakeRuns, _ *fakeStreams) { r.refuse = &RefusedError{"it may not"} },
			want:    Result{Action: Cannot, Reason: "it may not"},
		},
		"history gone, dead letter": {
			row: failed,
			prepare: func(r *fakeRuns, s *fakeStreams) {
				gone(r, s)
				s.dead["jobs:agent/2000-1"] = stream.Dead{EntryID: "1000-1", Fields: sent}
			},
			want: Result{Action: Resent, EntryID: "9000-1"}, sent: sent,
		},
		"history gone meanwhile": {
			row: failed,
			prepare: func(r *fakeRuns, s *fakeStreams) {
				r.refuse = ErrGone
				s.dead["jobs:agent/2000-1"] = stream.Dead{EntryID: "1000-1", Fields: sent}
			},
			want: Result{Action: Resent, EntryID: "9000-1"}, sent: sent,
		},
		"history gone, dead letter shortened, entry there": {
			row: failed,
			prepare: func(r *fakeRuns, s *fakeStreams) {
				gone(r, s)
				s.dead["jobs:agent/2000-1"] = stream.Dead{EntryID: "1000-1", Fields: sent[:1], Truncated: true}
				s.entries["jobs:agent/1000-1"] = job.Entry{ID: "1000-1", Fields: sent}
			},
			want: Result{Action: Resent, EntryID: "9000-1"}, sent: sent,
		},
		"history gone, the jobId was the entry's id": {
			row: failed,
			prepare: func(r *fakeRuns, s *fakeStreams) {
				gone(r, s)
				s.dead["jobs:agent/2000-1"] = stream.Dead{EntryID: "1000-1", Fields: fields("data", `{"task":"t","userId":"u"}`)}
			},
			want: Result{Action: Resent, EntryID: "9000-1"}, sent: fields("jobId", "1000-1", "userId", "u", "task", "t"),
		},
		"history gone, dead letter deleted": {
			row: failed, prepare: gone,
			want: Result{
				Action: Cannot,
				Reason: "its history is gone from Temporal, and its dead letter agent/2000-1 is shortened or deleted: send the job again from where it came",
			},
		},
		"history gone, no dead letter, entry deleted": {
			row: letterless, prepare: gone,
			want: Result{
				Action: Cannot,
				Reason: "its history is gone from Temporal, and its entry is deleted: send the job again from where it came",
			},
		},
		"history gone, overrides": {
			row: failed, override: override, prepare: gone,
			want: Result{
				Action: Cannot,
				Reason: "its history is gone from Temporal, so it can only be sent again as it was: leave --model, --max-tokens and --force out",
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runs, streams, r := world(failed)
			r.Options.Override = tt.override
			if tt.prepare != nil {
				tt.prepare(runs, streams)
			}
			results, err := r.Do(t.Context(), []job.Row{tt.row}, func(Result) {})
			require.NoError(t, err)
			tt.want.Row = tt.row
			require.Equal(t, []Result{tt.want}, results)
			if tt.want.Action == Retried {
				require.Equal(t, tt.override, runs.last.Override)
				require.Equal(t, "why", runs.last.Reason)
			}
			var added []job.Field
			for _, e := range streams.added {
				require.Equal(t, "jobs:agent", e.Stream)
				added = append(added, e.Fields...)
			}
			require.Equal(t, tt.sent, added)
		})
	}
}

// A dry run says what would be done, and does nothing.
func TestDryRun(t *testing.T) {
	t.Parallel()
	failed := failedJob("j1")
	completed, rowless := failed, job.Row{Role: job.Agent, JobID: "j1"}
	completed.Status = job.Completed
	letter := func(s *fakeStreams) {
		s.dead["jobs:agent/2000-1"] = stream.Dead{EntryID: "1000-1", Fields: fields("jobId", "j1", "task", "t")}
	}
	tests := map[string]struct {
		row      job.Row
		override workflows.Override
		prepare  func(*fakeRuns, *fakeStreams)
		want     Action
	}{
		"failed":                  {row: failed, want: WouldRetry},
		"completed":               {row: completed, want: Completed},
		"completed, other model":  {row: completed, override: workflows.Override{Model: "m"}, want: Completed},
		"completed, force":        {row: completed, override: workflows.Override{Force: true}, want: WouldRetry},
		"unknown":                 {row: rowless, prepare: gone, want: Cannot},
		"no row and a closed run": {row: rowless, want: Cannot},
		"runs": {row: failed, want: Running, prepare: func(r *fakeRuns, _ *fakeStreams) {
			r.current[failed.WorkflowID] = Run{WorkflowID: failed.WorkflowID, RunID: "other", Open: true}
		}},
		"history gone, dead letter":         {row: failed, want: WouldResend, prepare: func(r *fakeRuns, s *fakeStreams) { gone(r, s); letter(s) }},
		"history gone, dead letter deleted": {row: failed, want: Cannot, prepare: gone},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runs, streams, r := world(failed)
			r.Options.Override, r.Options.DryRun = tt.override, true
			if tt.prepare != nil {
				tt.prepare(runs, streams)
			}
			results, err := r.Do(t.Context(), []job.Row{tt.row}, func(Result) {})
			require.NoError(t, err)
			require.Equal(t, tt.want, results[0].Action)
			require.Empty(t, runs.asked)
			require.Empty(t, streams.added)
		})
	}
}

func gone(r *fakeRuns, _ *fakeStreams) { clear(r.current) }

// A lost reply is asked for again, and nothing is started twice.
func TestALostReply(t *testing.T) {
	t.Parallel()
	for name, override := range map[string]workflows.Override{"start": {}, "signal with start": {Force: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				row := failedJob("j1")
				runs, _, r := world(row)
				r.Options.Override = override
				runs.lose, runs.down = 3, 2
				results, err := r.Do(t.Context(), []job.Row{row}, func(Result) {})
				require.NoError(t, err)
				require.Equal(t, Retried, results[0].Action)
				require.Equal(t, "again-1-of-run-of-j1", results[0].RunID)
				require.Len(t, runs.begun, 1)
				require.Len(t, runs.asked, 4)

				// And called once more, by the same person or another.
				results, err = r.Do(t.Context(), []job.Row{row}, func(Result) {})
				require.NoError(t, err)
				require.Equal(t, Running, results[0].Action)
				require.Len(t, runs.begun, 1)
			})
		})
	}
}

// Where a service says "a run is open" to the repeated request, that run is the
// one the first has started.
func TestALostReplyToARequestThatIsNotRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		row := failedJob("j1")
		runs, _, r := world(row)
		runs.lose = 1
		runs.hook = func(string) { clear(runs.begun) }
		results, err := r.Do(t.Context(), []job.Row{row}, func(Result) {})
		require.NoError(t, err)
		require.Equal(t, []Result{{Row: row, Action: Retried, RunID: "again-1-of-run-of-j1"}}, results)
	})
}

// Two operators retry the same jobs at the same moment: each job gets one run.
func TestTwoOperatorsAtOnce(t *testing.T) {
	t.Parallel()
	var rows []job.Row
	for i := range 50 {
		rows = append(rows, failedJob(fmt.Sprintf("j%d", i)))
	}
	runs, _, r := world(rows...)
	r.Options.Pace.Parallel = 8
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := r.Do(context.WithoutCancel(t.Context()), rows, func(Result) {})
			done <- err
		}()
	}
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	require.Len(t, runs.begun, len(rows))
}

// The request id names the outcome to be replaced: the next one is another.
func TestRequestID(t *testing.T) {
	t.Parallel()
	row, run := failedJob("j1"), Run{WorkflowID: "w", RunID: "r"}
	id := requestID(row, run)
	require.Equal(t, id, requestID(row, run))
	next := row
	next.Effect = "run:x"
	require.NotEqual(t, id, requestID(next, run))
	require.NotEqual(t, id, requestID(row, Run{WorkflowID: "w", RunID: "r2"}))
	require.NotEqual(t, id, requestID(row, Run{WorkflowID: "w2", RunID: "r"}))
}

// Jobs are begun in their order, no faster than the rate.
func TestOrderAndRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var rows []job.Row
		var want []string
		for i := range 21 {
			row := failedJob(fmt.Sprintf("j%d", i))
			rows = append(rows, row)
			want = append(want, row.WorkflowID)
		}
		runs, _, r := world(rows...)
		r.Options.Pace = Pace{Rate: 20, Parallel: 1}
		began := time.Now()
		var reported []string
		results, err := r.Do(t.Context(), rows, func(res Result) { reported = append(reported, res.Row.WorkflowID) })
		require.NoError(t, err)
		require.Equal(t, want, runs.asked)
		require.Equal(t, want, reported)
		require.Equal(t, time.Second, time.Since(began), "21 jobs take 20 intervals of 50 ms")
		for i, res := range results {
			require.Equal(t, rows[i], res.Row)
			require.Equal(t, Retried, res.Action)
		}
	})
}

// Ctrl-C: jobs in hand are finished, no other is begun, and what was not tried can
// be told from the rest.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	for name, parallel := range map[string]int{"one at a time": 1, "four at a time": 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var rows []job.Row
				for i := range 40 {
					rows = append(rows, failedJob(fmt.Sprintf("j%02d", i)))
				}
				runs, _, r := world(rows...)
				r.Options.Pace = Pace{Rate: 1000, Parallel: parallel}
				ctx, cancel := context.WithCancel(t.Context())
				runs.hook = func(id string) {
					if id == rows[9].WorkflowID {
						cancel()
					}
					time.Sleep(10 * time.Millisecond) //nolint:forbidigo // in a bubble, a call that takes its time
				}
				reported := 0
				results, err := r.Do(ctx, rows, func(Result) { reported++ })
				require.ErrorIs(t, err, context.Canceled)
				tried := 0
				for _, res := range results {
					if res.Action != "" {
						require.Equal(t, Retried, res.Action, "what was begun was finished")
						tried++
					}
				}
				require.Equal(t, tried, reported)
				require.Len(t, runs.begun, tried)
				require.GreaterOrEqual(t, tried, 10)
				require.Less(t, tried, 10+parallel)

				// The same command again does the rest.
				runs.hook = nil
				results, err = r.Do(t.Context(), rows, func(Result) {})
				require.NoError(t, err)
				for i, res := range results {
					want := Retried
					if i < tried {
						want = Running
					}
					require.Equal(t, want, res.Action, "job %d", i)
				}
				require.Len(t, runs.begun, len(rows))
			})
		})
	}
}

// A service that does not come back ends the whole, instead of failing ten
// thousand jobs one by one.
func TestOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rows := []job.Row{failedJob("j1"), failedJob("j2"), failedJob("j3")}
		runs, _, r := world(rows...)
		runs.hook = func(id string) {
			if id == rows[1].WorkflowID {
				runs.refuse = errLost
			}
		}
		began := time.Now()
		results, err := r.Do(t.Context(), rows, func(Result) {})
		var outage *OutageError
		require.ErrorAs(t, err, &outage)
		require.ErrorIs(t, err, errLost)
		require.Equal(t, []Action{Retried, "", ""}, []Action{results[0].Action, results[1].Action, results[2].Action})
		require.Less(t, time.Since(began), perJob+lastPause)
		require.NotContains(t, runs.asked, rows[2].WorkflowID)
	})
}

func TestDenied(t *testing.T) {
	t.Parallel()
	rows := []job.Row{failedJob("j1"), failedJob("j2")}
	runs, _, r := world(rows...)
	runs.refuse = &DeniedError{"not allowed"}
	_, err := r.Do(t.Context(), rows, func(Result) {})
	var denied *DeniedError
	require.ErrorAs(t, err, &denied)
	require.Len(t, runs.asked, 1)
}

// An entry whose addition may or may not have happened is not added once more.
func TestAnAdditionIsNotRepeated(t *testing.T) {
	t.Parallel()
	row := failedJob("j1")
	runs, streams, r := world()
	clear(runs.current)
	streams.dead["jobs:agent/2000-1"] = stream.Dead{EntryID: "1000-1", Fields: fields("jobId", "j1", "task", "t")}
	streams.err = &stream.Error{Op: "add to jobs:agent", Kind: stream.ErrUnavailable}
	_, err := r.Do(t.Context(), []job.Row{row}, func(Result) {})
	var outage *OutageError
	require.ErrorAs(t, err, &outage)
	require.ErrorContains(t, err, "may have been added")
}

// Without Redis only the jobs that need it cannot be retried.
func TestNoRedis(t *testing.T) {
	t.Parallel()
	rows := []job.Row{failedJob("gone"), failedJob("here")}
	_, _, r := world(rows[1])
	r.Streams = func(context.Context) (Streams, error) { return nil, errors.New("Redis is down") }
	results, err := r.Do(t.Context(), rows, func(Result) {})
	require.NoError(t, err)
	require.Equal(t, Cannot, results[0].Action)
	require.Contains(t, results[0].Reason, "Redis is down")
	require.Equal(t, Retried, results[1].Action)
}
