package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/retry"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/internal/term"
)

// fixedRows is a result store with these rows.
type fixedRows []job.Row

func (f fixedRows) List(_ context.Context, filter store.Filter) ([]job.Row, error) {
	var found []job.Row
	for _, r := range f {
		if slices.Contains(filter.Roles, r.Role) && slices.Contains(filter.JobIDs, r.JobID) {
			found = append(found, r)
		}
	}
	return found, nil
}

func TestNamed(t *testing.T) {
	t.Parallel()
	row := func(role job.Role, id string) job.Row {
		return job.Row{Role: role, JobID: id, Outcome: job.Outcome{Status: job.Failed}}
	}
	rows := fixedRows{row(job.Agent, "a"), row(job.Agent, "both"), row(job.Chat, "both"), row(job.Agent, "job:chat:both")}
	tests := map[string]struct {
		args  []string
		roles []job.Role
		want  []string
		of    []int
		err   string
	}{
		"a job id":            {args: []string{"a"}, want: []string{"agent/a"}, of: []int{0}},
		"twice":               {args: []string{"a", "a", "job:agent:a"}, want: []string{"agent/a"}, of: []int{0}},
		"a workflow id":       {args: []string{"job:agent:both"}, want: []string{"agent/both"}, of: []int{0}},
		"two roles":           {args: []string{"a", "both"}, err: `2 jobs have the id "both", one of each of the roles agent, chat: choose one with --role`},
		"two roles and one":   {args: []string{"both"}, roles: []job.Role{job.Chat}, want: []string{"chat/both"}, of: []int{0}},
		"no row":              {args: []string{"a", "x"}, want: []string{"agent/a", "manager/x", "inspector/x", "agent/x", "chat/x"}, of: []int{0, 1, 1, 1, 1}},
		"no row, of one role": {args: []string{"x"}, roles: []job.Role{job.Agent}, want: []string{"agent/x"}, of: []int{0}},
		"a workflow id of another role is a job id": {args: []string{"job:chat:both"}, roles: []job.Role{job.Agent}, want: []string{"agent/job:chat:both"}, of: []int{0}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			jobs, of, err := named(t.Context(), rows, tt.args, tt.roles)
			if tt.err != "" {
				require.EqualError(t, err, tt.err)
				require.Equal(t, exitUsage, exitCode(err))
				return
			}
			require.NoError(t, err)
			var got []string
			for _, r := range jobs {
				got = append(got, string(r.Role)+"/"+r.JobID)
			}
			require.Equal(t, tt.want, got)
			require.Equal(t, tt.of, of)
		})
	}
}

func exitCode(err error) int {
	if exit, ok := errors.AsType[*exitError](err); ok {
		return exit.code
	}
	return -1
}

// Of a job without a row each role is tried; what no role knows is said once.
func TestKnown(t *testing.T) {
	t.Parallel()
	result := func(role job.Role, id string, action retry.Action) retry.Result {
		return retry.Result{Row: job.Row{Role: role, JobID: id}, Action: action, Unknown: action == retry.Cannot}
	}
	got := known([]retry.Result{
		result(job.Agent, "a", retry.Retried),
		result(job.Manager, "x", retry.Cannot), result(job.Inspector, "x", retry.Cannot),
		result(job.Agent, "r", retry.Cannot), result(job.Chat, "r", retry.Running),
		result(job.Agent, "one", retry.Cannot),
	}, []int{0, 1, 1, 2, 2, 3})
	require.Equal(t, []retry.Result{
		result(job.Agent, "a", retry.Retried), result("", "x", retry.Cannot), result(job.Chat, "r", retry.Running), result(job.Agent, "one", retry.Cannot),
	}, got)
	require.Empty(t, known(nil, nil))
}

func TestPreview(t *testing.T) {
	t.Parallel()
	var jobs []job.Row
	for i, code := range []string{"a", "b", "b", "b"} {
		jobs = append(jobs, job.Row{Role: job.Agent, JobID: "j" + string(rune('1'+i)), Outcome: job.Outcome{Status: job.Failed, ErrorCode: code}})
	}
	var out bytes.Buffer
	require.NoError(t, preview(term.New(&out, term.Table, ""), jobs, 2))
	require.Equal(t, strings.TrimLeft(`
JOBS  ROLE   STATUS  CODE
   3  agent  failed  b
   1  agent  failed  a

the oldest 2 of 4 jobs
ROLE   JOB  STATUS  CODE  ENDED
agent  j1   failed  a
agent  j2   failed  b
`, "\n"), out.String())

	out.Reset()
	require.NoError(t, preview(term.New(&out, term.JSONL, ""), jobs, 2))
	require.Equal(t, 4, strings.Count(out.String(), "\n"), "programs get all of them")
}

func TestRetryErrors(t *testing.T) {
	t.Parallel()
	done := []retry.Result{{Action: retry.Retried}, {Action: retry.Running}}
	half := []retry.Result{{Action: retry.Retried}, {}}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	tests := map[string]struct {
		ctx     context.Context //nolint:containedctx // an argument
		results []retry.Result
		err     error
		code    int
		says    string
	}{
		"all is well":  {t.Context(), done, nil, -1, ""},
		"interrupted":  {ended, half, context.Canceled, exitFailed, "interrupted: 1 of 2 done; run the same command again for the rest"},
		"outage":       {t.Context(), half, &retry.OutageError{Err: errors.New("down")}, exitUnreachable, "down: 1 of 2 done"},
		"denied":       {t.Context(), half, &retry.DeniedError{Reason: "not allowed"}, exitFailed, "not allowed: 1 of 2 done"},
		"one cannot":   {t.Context(), []retry.Result{{Action: retry.Cannot}}, nil, exitFailed, "1 job could not be retried"},
		"failed again": {t.Context(), []retry.Result{{Action: retry.Retried, Outcome: &job.Row{}}}, nil, exitFailed, "1 job not completed"},
		"timeout":      {t.Context(), done, &exitError{exitTimeout, errors.New("late")}, exitTimeout, "late"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := retryError(tt.ctx, tt.results, tt.err)
			require.Equal(t, tt.code, exitCode(err))
			if tt.says != "" {
				require.ErrorContains(t, err, tt.says)
			}
		})
	}
}

func TestAskTyped(t *testing.T) {
	t.Parallel()
	for typed, want := range map[string]bool{"17\n": true, " 17 \n": true, "17": true, "y\n": false, "\n": false, "": false} {
		var out bytes.Buffer
		require.Equal(t, want, askTyped(t.Context(), strings.NewReader(typed), &out, "Delete 17 dead letters.", "17"), "%q", typed)
		require.Equal(t, `Delete 17 dead letters. Type "17" to go on: `, out.String())
	}
	// Ctrl-C at the question.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in, hold := io.Pipe()
	require.False(t, askTyped(ctx, in, io.Discard, "?", "17"))
	require.NoError(t, hold.Close())
}

func TestNobodyCanBeAsked(t *testing.T) {
	t.Parallel()
	cmd := newRetry()
	cmd.SetIn(strings.NewReader("y\n"))
	err := confirm(cmd, false, "?")
	require.Equal(t, exitUsage, exitCode(err))
	require.ErrorContains(t, err, "--yes")
	require.NoError(t, confirm(cmd, true, "?"))
	require.Equal(t, exitUsage, exitCode(confirmTyped(cmd, false, "?", "17")))
	require.NoError(t, confirmTyped(cmd, true, "?", "17"))
}

// Progress is for terminals.
func TestMeter(t *testing.T) {
	t.Parallel()
	cmd := newRetry()
	var out bytes.Buffer
	cmd.SetErr(&out)
	m := newMeter(cmd, "retrying", 10)
	m.step()
	m.stop()
	require.Empty(t, out.String())
}

func TestLetterRefs(t *testing.T) {
	t.Parallel()
	refs, err := letterRefs([]string{"agent/1-2", "jobs:agent:dead/1-2", "jobs:chat:dead/3-4"})
	require.NoError(t, err)
	require.Equal(t, []letterRef{{job.Agent, "1-2"}, {job.Chat, "3-4"}}, refs)
	for _, arg := range []string{"", "agent", "agent/", "/1-1", "agent/1", "cook/1-1", "1-1", "agent/1-1/2", "signalr:updates/1-1"} {
		_, err := letterRefs([]string{arg})
		require.Equal(t, exitUsage, exitCode(err), arg)
	}
}

// pages serves dead letters like Redis does.
type pages []stream.Dead

func (p pages) DeadLetters(_ context.Context, key string, r stream.DeadRange) ([]stream.Dead, error) {
	var found []stream.Dead
	for _, d := range p {
		if d.Stream == key && (r.Before == "" || job.CompareEntryIDs(d.ID, r.Before) < 0) && len(found) < r.Limit {
			found = append(found, d)
		}
	}
	return found, nil
}

func TestLettersOfManyPages(t *testing.T) {
	t.Parallel()
	var all pages
	for i := 250; i > 0; i-- {
		reason := "a"
		if i%2 == 0 {
			reason = "b"
		}
		all = append(all, stream.Dead{
			Stream: "jobs:agent", ID: strconv.Itoa(i) + "-0", Reason: reason,
			Fields: []job.Field{{Name: "task", Value: "t"}},
		})
	}
	count := func(f letterFlags, most int) int {
		n := 0
		require.NoError(t, f.lettersOf(t.Context(), all, fixedRows{}, job.Agent, time.Now(), func(l retry.Letter) bool {
			require.Nil(t, l.Fields)
			n++
			return n < most
		}))
		return n
	}
	require.Equal(t, 250, count(letterFlags{}, 1000))
	require.Equal(t, 120, count(letterFlags{}, 120))
	require.Equal(t, 125, count(letterFlags{reasons: []string{"b"}}, 1000))
}

func TestStreamCells(t *testing.T) {
	t.Parallel()
	n, unread := 3, int64(4)
	tests := map[string]struct {
		info                              streamInfo
		unread, unresolved, alive, oldest string
		color                             term.Color
	}{
		"nothing is known": {streamInfo{}, "?", "?", "0", "", term.Plain},
		"all is known": {
			streamInfo{
				Unread: &unread, DeadLetters: deadInfo{Total: 3, Looked: 3, Unresolved: &n}, OldestPendingMS: 61_000,
				Consumers: []consumerInfo{{Alive: true, Pending: 1}},
			}, "4", "3", "1", "61s", term.Plain,
		},
		"more dead letters than were looked at": {
			streamInfo{DeadLetters: deadInfo{Total: 1001, Looked: 1000, Unresolved: &n}}, "?", "3+", "0", "", term.Plain,
		},
		"somebody died": {
			streamInfo{DeadLetters: deadInfo{Unresolved: new(int)}, Consumers: []consumerInfo{{Alive: true}, {Pending: 2}}}, "?", "0", "1 of 2", "", term.Bad,
		},
		"somebody left": {
			streamInfo{DeadLetters: deadInfo{Unresolved: new(int)}, Consumers: []consumerInfo{{Alive: true}, {}}}, "?", "0", "1 of 2", "", term.Plain,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.unread, tt.info.unread())
			require.Equal(t, tt.unresolved, tt.info.unresolved())
			require.Equal(t, tt.alive, tt.info.alive())
			require.Equal(t, tt.oldest, tt.info.oldest())
			require.Equal(t, tt.color, tt.info.aliveColor())
		})
	}
}
