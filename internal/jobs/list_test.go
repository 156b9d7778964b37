package jobs

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"

	"github.com/nodpt/executor/internal/job"
)

func names(all []Job) []string {
	out := []string{}
	for _, j := range all {
		out = append(out, string(j.Role)+"/"+j.JobID+" "+stateAndPast(j))
	}
	return out
}

func stateAndPast(j Job) string {
	if j.Was == "" {
		return j.State()
	}
	return j.State() + " was " + string(j.Was)
}

func TestOpen(t *testing.T) {
	t.Parallel()
	manager := agentJob("m1")
	manager.Role, manager.UserID = job.Manager, "o'brien"
	fails := started(t, agentJob("a2"), "r-a2", openStatus)
	fails.pending = &workflowpb.PendingActivityInfo{Attempt: 3, LastFailure: failure("llm_timeout", "m"), State: enumspb.PENDING_ACTIVITY_STATE_SCHEDULED}
	again := started(t, agentJob("a3"), "r-a3-second", openStatus)
	firstRun := started(t, agentJob("a3"), "r-a3-first", failedStatus)
	finishing := started(t, agentJob("a4"), "r-a4", openStatus)
	ended := started(t, agentJob("a5"), "r-a5", doneStatus)
	ended.listed = openStatus
	w := func() *world {
		return &world{
			runs: []*fakeRun{started(t, manager, "r-m1", openStatus), fails, again, finishing, ended, started(t, agentJob("a1"), "r-a1", openStatus)},
			rows: []job.Row{firstRun.row(t, job.Failed, "llm_timeout"), finishing.row(t, job.Completed, "")},
		}
	}
	all := []string{"manager/m1 running", "agent/a2 retrying", "agent/a3 running was failed", "agent/a4 running", "agent/a1 running"}
	tests := map[string]struct {
		query Query
		want  []string
	}{
		"all":                 {Query{}, all},
		"of a role":           {Query{Roles: []job.Role{job.Manager}}, all[:1]},
		"of a user":           {Query{User: "o'brien"}, all[:1]},
		"of a project":        {Query{Project: "p1"}, all},
		"of nobody":           {Query{User: "x"}, all[:0]},
		"of a state":          {Query{Statuses: []Status{Retrying, Failed}}, all[1:2]},
		"of a code":           {Query{Codes: []string{"llm_timeout"}}, all[1:2]},
		"only ended ones":     {Query{Statuses: []Status{Completed}}, all[:0]},
		"some":                {Query{Limit: 3}, all[:3]},
		"a page":              {Query{Limit: 2}, all[:2]},
		"however long it ran": {Query{Since: at(59)}, all},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, bare := range []bool{false, true} {
				var got []Job
				world := w()
				world.bare = bare
				n, err := newView(t, world).Open(t.Context(), tt.query, collect(&got))
				require.NoError(t, err)
				require.Equal(t, tt.want, names(got))
				require.Equal(t, len(tt.want), n)
			}
		})
	}

	t.Run("what their rows say", func(t *testing.T) {
		t.Parallel()
		var got []Job
		_, err := newView(t, w()).Open(t.Context(), Query{Roles: []job.Role{job.Agent}}, collect(&got))
		require.NoError(t, err)
		require.Equal(t, "n1", got[1].NodeID, "whose job it is")
		require.Zero(t, got[1].PromptTokens, "not what an earlier run cost")
		require.EqualValues(t, 3, got[2].PromptTokens, "but what this run has stored")
	})
	t.Run("without rows", func(t *testing.T) {
		t.Parallel()
		var got []Job
		world := w()
		world.failRows = errors.New("the store is away")
		_, err := newView(t, world).Open(t.Context(), Query{Limit: 3}, collect(&got))
		require.NoError(t, err)
		require.Equal(t, []string{"manager/m1 running", "agent/a2 retrying", "agent/a3 running"}, names(got))
	})
	t.Run("without Temporal", func(t *testing.T) {
		t.Parallel()
		world := w()
		world.failTemporal = serviceerror.NewUnavailable("away")
		_, err := newView(t, world).Open(t.Context(), Query{}, collect(new([]Job)))
		require.ErrorContains(t, err, "list the runs of jobs")
	})
	t.Run("a reader that has enough", func(t *testing.T) {
		t.Parallel()
		full := errors.New("full")
		_, err := newView(t, w()).Open(t.Context(), Query{}, func([]Job) error { return full })
		require.ErrorIs(t, err, full)
	})
}

func TestVisibilityQueries(t *testing.T) {
	t.Parallel()
	const open = "WorkflowType = 'JobWorkflow' AND ExecutionStatus = 'Running'"
	user := func(name string) string { return open + " AND (JobUser = '" + name + "' OR JobRole IS NULL)" }
	tests := map[string]struct {
		query Query
		want  string
	}{
		"all":            {Query{}, open},
		"roles":          {Query{Roles: []job.Role{job.Agent, job.Chat}}, open + " AND (WorkflowId STARTS_WITH 'job:agent:' OR WorkflowId STARTS_WITH 'job:chat:')"},
		"user":           {Query{User: "u1"}, user("u1")},
		"user, project":  {Query{User: "ü 日本", Project: "a=b%_"}, user("ü 日本") + " AND (JobProject = 'a=b%_' OR JobRole IS NULL)"},
		"a quote":        {Query{User: "' OR 1=1 --"}, open},
		"quotes":         {Query{User: `a"b`, Project: "a`b"}, open},
		"a backslash":    {Query{User: `\`}, open},
		"control":        {Query{User: "a\nb"}, open},
		"no text":        {Query{User: "a\xff"}, open},
		"longer than is": {Query{User: strings.Repeat("u", 255)}, open},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &world{}
			_, err := newView(t, w).Open(t.Context(), tt.query, collect(new([]Job)))
			require.NoError(t, err)
			require.Equal(t, []string{tt.want}, w.queries)

			w = &world{bare: true}
			_, err = newView(t, w).Open(t.Context(), tt.query, collect(new([]Job)))
			require.NoError(t, err)
			require.NotContains(t, w.queries[len(w.queries)-1], "Job"+"User", "a namespace without attributes is asked again")
		})
	}
}

func TestEnded(t *testing.T) {
	t.Parallel()
	w := func() *world {
		w := &world{}
		for i, status := range []job.Status{job.Completed, job.Failed, job.Canceled, job.Failed, job.Completed} {
			r := started(t, agentJob("a"+strconv.Itoa(i)), "r"+strconv.Itoa(i), doneStatus)
			code := ""
			if status != job.Completed {
				code = "code-" + strconv.Itoa(i)
			}
			w.runs = append(w.runs, r)
			w.rows = append(w.rows, r.row(t, status, code))
		}
		rejected := w.rows[0]
		rejected.JobID, rejected.Status, rejected.WorkflowID, rejected.RunID = "entry:1-0", job.Rejected, "", ""
		w.rows = append(w.rows, rejected)
		return w
	}
	all := []string{"agent/a0 completed", "agent/a1 failed", "agent/a2 canceled", "agent/a3 failed", "agent/a4 completed", "agent/entry:1-0 rejected"}
	tests := map[string]struct {
		query Query
		want  []string
	}{
		"all":             {Query{}, all},
		"of a state":      {Query{Statuses: []Status{Running, Canceled}}, all[2:3]},
		"of a code":       {Query{Codes: []string{"code-3"}}, all[3:4]},
		"only open ones":  {Query{Statuses: []Status{Queued, Running, Retrying}}, all[:0]},
		"some":            {Query{Limit: 4}, all[:4]},
		"since too late":  {Query{Since: at(41)}, all[:0]},
		"since early":     {Query{Since: at(40)}, all},
		"of nobody":       {Query{User: "x"}, all[:0]},
		"of another role": {Query{Roles: []job.Role{job.Chat}}, all[:0]},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []Job
			n, err := newView(t, w()).Ended(t.Context(), tt.query, nil, collect(&got))
			require.NoError(t, err)
			require.Equal(t, tt.want, names(got))
			require.Equal(t, len(tt.want), n)
		})
	}

	t.Run("a whole job", func(t *testing.T) {
		t.Parallel()
		var got []Job
		_, err := newView(t, w()).Ended(t.Context(), Query{Limit: 1}, nil, collect(&got))
		require.NoError(t, err)
		entry := got[0].EntryID
		require.Equal(t, []Job{{
			Role: job.Agent, JobID: "a0", Status: Completed, Attempts: 2, Model: "m", PromptTokens: 3, CompletionTokens: 4,
			UserID: "u1", ProjectID: "p1", NodeID: "n1", ConnectionID: "c1",
			EnqueuedAt: noon(), StartedAt: at(10), FinishedAt: at(40), WaitedMS: 10_000, TookMS: 30_000,
			WorkflowID: "job:agent:a0", RunID: "r0", Stream: "jobs:agent", EntryID: entry, LastEntryID: entry, UI: "ui/job:agent:a0/r0",
		}}, got)
	})
	t.Run("but for those that run again", func(t *testing.T) {
		t.Parallel()
		world := w()
		world.runs = append([]*fakeRun{
			started(t, agentJob("a1"), "r1-again", openStatus),
		}, world.runs...)
		world.runs[4].listed = openStatus // a3 ended a moment ago
		for _, limit := range []int{0, 10} {
			var got []Job
			_, err := newView(t, world).Ended(t.Context(), Query{Statuses: []Status{Failed}, Limit: limit}, nil, collect(&got))
			require.NoError(t, err)
			require.Equal(t, all[3:4], names(got))
		}
	})
	t.Run("but for those listed before", func(t *testing.T) {
		t.Parallel()
		var got []Job
		_, err := newView(t, w()).Ended(t.Context(), Query{Limit: 2}, map[job.Key]bool{{Role: job.Agent, JobID: "a0"}: true}, collect(&got))
		require.NoError(t, err)
		require.Equal(t, all[1:3], names(got))
	})
	t.Run("without Temporal", func(t *testing.T) {
		t.Parallel()
		world := w()
		world.failTemporal = serviceerror.NewUnavailable("away")
		for _, limit := range []int{0, 10} {
			var got []Job
			n, err := newView(t, world).Ended(t.Context(), Query{Limit: limit}, nil, collect(&got))
			require.ErrorIs(t, err, ErrRuns)
			require.Equal(t, all, names(got))
			require.Equal(t, len(all), n)
		}
		var got []Job
		_, err := New(Config{Rows: fakeRows{world}}).Ended(t.Context(), Query{}, nil, collect(&got))
		require.NoError(t, err, "nobody was asked")
		require.Len(t, got, len(all))
	})
	t.Run("without rows", func(t *testing.T) {
		t.Parallel()
		world := w()
		world.failRows = errors.New("the store is away")
		_, err := newView(t, world).Ended(t.Context(), Query{}, nil, collect(new([]Job)))
		require.ErrorIs(t, err, world.failRows)
	})
}

func TestEndedInPages(t *testing.T) {
	t.Parallel()
	w := &world{}
	const many = 2*listPage + 7
	for i := range many {
		r := started(t, agentJob(strconv.Itoa(i)), "r", doneStatus)
		w.rows = append(w.rows, r.row(t, job.Completed, ""))
	}
	for _, limit := range []int{0, many + 1, many, listPage, listPage + 3} {
		var got []Job
		pages := 0
		n, err := newView(t, w).Ended(t.Context(), Query{Limit: limit}, nil, func(page []Job) error {
			pages++
			got = append(got, page...)
			return nil
		})
		require.NoError(t, err)
		want := many
		if limit > 0 {
			want = min(limit, many)
		}
		require.Equal(t, want, n)
		require.Len(t, got, want)
		require.Equal(t, strconv.Itoa(want-1), got[want-1].JobID)
		require.Equal(t, (want+listPage-1)/listPage, pages)
	}
}
