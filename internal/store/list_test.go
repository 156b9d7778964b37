package store

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

func testList(t *testing.T, b bundle) {
	t.Helper()
	add := func(role job.Role, id string, status job.Status, code, user, project string, minute int) {
		row := completed(id, "run:"+id, noon().Add(time.Duration(minute)*time.Minute))
		row.Role, row.Status, row.ErrorCode, row.UserID, row.ProjectID = role, status, code, user, project
		persist(t, b.a, row)
	}
	add(job.Agent, "a1", job.Completed, "", "u1", "p1", 1)
	add(job.Agent, "a2", job.Failed, "llm_malformed_answer", "u1", "p2", 2)
	add(job.Chat, "a2", job.Failed, "terminated", "u2", "p1", 2)
	add(job.Manager, "m1", job.Canceled, "canceled", "u2", "p2", 3)
	add(job.Agent, "entry:1-1", job.Rejected, "no_task", "", "", 4)

	all := []string{"agent/entry:1-1", "manager/m1", "agent/a2", "chat/a2", "agent/a1"}
	tests := map[string]struct {
		filter Filter
		want   []string
	}{
		"everything, the newest first": {Filter{}, all},
		"role":                         {Filter{Roles: []job.Role{job.Agent}}, []string{all[0], all[2], all[4]}},
		"two roles":                    {Filter{Roles: []job.Role{job.Chat, job.Manager}}, []string{all[1], all[3]}},
		"status":                       {Filter{Statuses: []job.Status{job.Failed, job.Canceled}}, all[1:4]},
		"code":                         {Filter{Codes: []string{"terminated"}}, all[3:4]},
		"user and project":             {Filter{UserID: "u1", ProjectID: "p2"}, all[2:3]},
		"job id":                       {Filter{JobIDs: []string{"a2", "none"}}, all[2:4]},
		"since, inclusive":             {Filter{Since: noon().Add(3 * time.Minute)}, all[:2]},
		"before, exclusive":            {Filter{Before: noon().Add(2 * time.Minute)}, all[4:]},
		"nobody's":                     {Filter{UserID: "u3"}, nil},
		"hostile":                      {Filter{UserID: "' OR 1=1 --"}, nil},
	}
	for name, tt := range tests {
		got, err := b.b.List(t.Context(), tt.filter)
		require.NoError(t, err, name)
		require.Equal(t, tt.want, names(got), name)
	}

	var paged []string
	page := Filter{Limit: 2}
	for {
		got, err := b.b.List(t.Context(), page)
		require.NoError(t, err)
		paged = append(paged, names(got)...)
		if len(got) < page.Limit {
			break
		}
		page.After = &got[len(got)-1]
	}
	require.Equal(t, all, paged, "pages of two, one of which ends between rows of the same time")

	got, err := b.b.List(t.Context(), Filter{JobIDs: []string{"a1"}})
	require.NoError(t, err)
	want := stored(t, b.a, job.Key{Role: job.Agent, JobID: "a1"})
	require.NotEmpty(t, want.Output)
	want.Output = ""
	require.Equal(t, []job.Row{want}, got, "whole rows but for the answer")
}

func names(rows []job.Row) []string {
	var out []string
	for _, r := range rows {
		out = append(out, string(r.Role)+"/"+r.JobID)
	}
	return out
}

func testAttach(t *testing.T, dbs databases) {
	t.Helper()
	url := dbs.fresh(t)
	_, err := Attach(t.Context(), Config{URL: url})
	require.ErrorIs(t, err, ErrNoStore)
	require.ErrorContains(t, err, "DATABASE_URL")
	if path, ok := strings.CutPrefix(url, "sqlite://"); ok {
		_, err := os.Stat(path)
		require.ErrorIs(t, err, os.ErrNotExist, "no file was made")
	}

	a := open(t, url)
	persist(t, a, completed("j1", "run:1", noon()))
	b, err := Attach(t.Context(), Config{URL: url})
	require.NoError(t, err)
	require.Equal(t, a.UUID(), b.UUID())
	require.Equal(t, job.Completed, stored(t, b, job.Key{Role: job.Agent, JobID: "j1"}).Status)
	require.NoError(t, b.Close())
}
