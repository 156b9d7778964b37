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
	"github.com/nodpt/executor/internal/store"
)

func TestSelect(t *testing.T) {
	t.Parallel()
	rows := &fakeRows{}
	const n = 2*rowsPerPage + 3
	for i := range n {
		row := failedJob(fmt.Sprintf("j%d", i))
		row.FinishedAt = time.UnixMilli(int64(i))
		rows.rows = append(rows.rows, row)
	}
	rows.rows[5].Status = job.Completed
	all, err := Select(t.Context(), rows, store.Filter{Statuses: []job.Status{job.Failed}})
	require.NoError(t, err)
	require.Len(t, all, n-1)
	require.Len(t, rows.queries, 3)
	for i := 1; i < len(all); i++ {
		require.True(t, all[i-1].FinishedAt.Before(all[i].FinishedAt), "the oldest first")
	}
	rows.err = errors.New("down")
	_, err = Select(t.Context(), rows, store.Filter{})
	require.ErrorIs(t, err, rows.err)
}

func TestByKey(t *testing.T) {
	t.Parallel()
	rows := &fakeRows{}
	var keys []job.Key
	for i := range 2*rowsPerQuery + 1 {
		row := failedJob(fmt.Sprintf("j%d", i))
		rows.rows = append(rows.rows, row)
		keys = append(keys, row.Key(), row.Key())
	}
	chat := failedJob("j1")
	chat.Role = job.Chat
	rows.rows = append(rows.rows, chat)
	found, err := ByKey(t.Context(), rows, append(keys, job.Key{Role: job.Manager, JobID: "j1"}))
	require.NoError(t, err)
	require.Len(t, found, 2*rowsPerQuery+1, "of the role that was asked for, each once")
	none, err := ByKey(t.Context(), rows, nil)
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestAwait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		retried, failing, resent, done := failedJob("retried"), failedJob("failing"), failedJob("resent"), failedJob("done")
		rows := &fakeRows{rows: []job.Row{retried, failing, resent, done}}
		results := []Result{
			{Row: retried, Action: Retried, RunID: "r"},
			{Row: failing, Action: Running},
			{Row: resent, Action: Resent},
			{Row: done, Action: Completed},
			{Row: failedJob("x"), Action: Cannot},
			{Row: failedJob("y")},
			{Row: job.Row{Role: job.Agent, JobID: "rowless"}, Action: Running},
		}
		change := func(row job.Row, effect string, status job.Status) job.Row {
			row.Effect, row.Status = effect, status
			return row
		}
		go func() {
			time.Sleep(time.Second) //nolint:forbidigo // in a bubble
			rows.put(change(retried, "run:r", job.Completed))
			time.Sleep(time.Second) //nolint:forbidigo // in a bubble
			rows.put(change(failing, "run:f", job.Failed))
			rows.put(change(resent, "entry:jobs:agent/9-9", job.Completed))
			rows.put(failedJob("rowless"))
		}()
		var reported []string
		missing, err := Await(t.Context(), rows, results, time.Second/2, func(r Result) { reported = append(reported, r.Row.JobID) })
		require.NoError(t, err)
		require.Zero(t, missing)
		require.Equal(t, []string{"retried", "failing", "resent", "rowless"}, reported)
		require.Equal(t, job.Completed, results[0].Outcome.Status)
		require.Equal(t, job.Failed, results[1].Outcome.Status)
		require.Equal(t, job.Completed, results[2].Outcome.Status)
		require.Equal(t, "rowless", results[6].Outcome.JobID)
		require.Nil(t, results[3].Outcome)
		require.Nil(t, results[4].Outcome)

		// Nothing is left to wait for.
		missing, err = Await(t.Context(), &fakeRows{err: errors.New("down")}, results, time.Second, func(Result) {})
		require.NoError(t, err)
		require.Zero(t, missing)
	})
}

func TestAwaitEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		row := failedJob("j1")
		results := []Result{{Row: row, Action: Retried}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		missing, err := Await(ctx, &fakeRows{rows: []job.Row{row}}, results, time.Second, func(Result) {})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1, missing)
		require.Nil(t, results[0].Outcome)

		down := &fakeRows{err: errors.New("down")}
		_, err = Await(t.Context(), down, results, time.Second, func(Result) {})
		require.ErrorIs(t, err, down.err)
	})
}
