package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/jobs"
	"github.com/nodpt/executor/internal/term"
)

func newList() *cobra.Command {
	var (
		choice   selection
		statuses []string
		codes    []string
		limit    int
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List jobs: those that are open, then those that ended, the newest first",
		Long: `List jobs: those that are open, then those that ended, the newest first.

A job is one line, however many runs its workflow had: a run that failed stays
Failed in the Web UI after a retry has healed its job, which is completed here. Jobs
whose entry no bridge has read yet are not listed; "executor streams" counts them.

queued     no worker has taken its call yet
running    being worked on
retrying   failed at least once and is tried again; see ATTEMPT, CODE and NEXT
The step follows in brackets where it is not the call: storing, publishing, ….

AGE is the time since the entry was added, TOOK the time from the start of the run
to its end or to now, TOKENS those of prompt and answer. Where Temporal or the
database does not answer, the rest is listed and the exit code is 3.`,
		Example: `  executor list
  executor list --status retrying,failed --role agent
  executor list --status failed --code llm_malformed_answer --since 2h --limit 0 -o jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			chosen, err := parseStatuses(statuses, jobs.Statuses())
			if err != nil {
				return err
			}
			if limit < 0 {
				return &exitError{exitUsage, errors.New("--limit must not be negative; 0 lists all")}
			}
			filter, err := choice.filter(time.Now())
			if err != nil {
				return err
			}
			l, err := newLookout(cmd.Context(), cmd, sight{rows: wanted, runs: wanted})
			if err != nil {
				return err
			}
			defer l.Close()
			return l.list(jobs.Query{
				Roles: filter.Roles, Statuses: chosen, Codes: codes, User: filter.UserID, Project: filter.ProjectID,
				Since: filter.Since, Limit: limit,
			})
		},
	}
	selectionFlags(cmd, &choice)
	cmd.Flags().Lookup("since").Usage += " (open ones always count)"
	statusFlag(cmd, &statuses, jobs.Statuses())
	cmd.Flags().StringSliceVar(&codes, "code", nil, "only jobs with these error codes, for example llm_unreachable")
	cmd.Flags().IntVar(&limit, "limit", 50, "how many jobs; 0 lists all")
	outputFlag(cmd)
	return cmd
}

// list prints the jobs of a query.
func (l *lookout) list(q jobs.Query) error {
	var all []jobs.Job
	open := map[job.Key]bool{}
	take := func(page []jobs.Job) error {
		for _, j := range page {
			open[job.Key{Role: j.Role, JobID: j.JobID}] = true
		}
		if l.out.Format() == term.JSONL {
			return term.List(l.out, page)
		}
		all = append(all, page...)
		return nil
	}
	ctx, left, found := l.cmd.Context(), q, 0
	if l.cfg.Runs != nil {
		n, err := l.Open(ctx, q, take)
		if ctx.Err() != nil {
			return l.failed(ctx.Err())
		}
		if err != nil {
			l.warn(err)
			l.cfg.Runs = nil
			l.View = jobs.New(l.cfg)
		}
		found = n
		left.Limit = max(q.Limit-n, 0)
	}
	if l.cfg.Rows != nil && (q.Limit == 0 || left.Limit > 0) {
		n, err := l.Ended(ctx, left, open, take)
		if ctx.Err() != nil {
			return l.failed(ctx.Err())
		}
		if err != nil {
			l.warn(err)
		}
		found += n
	}
	if l.out.Format() != term.JSONL {
		if err := l.printJobs(all); err != nil {
			return err
		}
	}
	if l.out.Format() == term.Table && q.Limit > 0 && found == q.Limit {
		fmt.Fprintf(l.cmd.ErrOrStderr(), "the first %d; --limit 0 lists all\n", found)
	}
	return l.end()
}

// printJobs prints a list of jobs.
func (l *lookout) printJobs(all []jobs.Job) error {
	if len(all) == 0 && l.out.Format() == term.Table {
		fmt.Fprintln(l.cmd.ErrOrStderr(), "no such jobs")
		return nil
	}
	now := time.Now()
	return term.List(l.out, all, jobColumns(now)...)
}

func jobColumns(now time.Time) []term.Column[jobs.Job] {
	columns := []term.Column[jobs.Job]{
		{Head: "role", Cell: func(j jobs.Job) string { return string(j.Role) }},
		{Head: "job", Cell: jobs.Job.Name, Wide: 48},
		{Head: "status", Cell: stateOf, Color: func(j jobs.Job) term.Color { return statusColor(j.Status) }},
		{Head: "attempt", Cell: func(j jobs.Job) string { return number(j.Attempts) }, Right: true},
		{Head: "code", Cell: codeOf, Wide: 40},
		{Head: "next", Cell: func(j jobs.Job) string { return until(j.NextAttemptAt, now) }},
		{Head: "age", Cell: func(j jobs.Job) string { return term.Ago(j.Since(), now) }, Right: true},
		{Head: "took", Cell: func(j jobs.Job) string { return short(j.Took()) }, Right: true},
		{Head: "tokens", Cell: func(j jobs.Job) string { return tokens(j.PromptTokens, j.CompletionTokens) }, Right: true},
		{Head: "user", Cell: func(j jobs.Job) string { return j.UserID }, Wide: 32},
		{Head: "project", Cell: func(j jobs.Job) string { return j.ProjectID }, Wide: 32},
	}
	for i := range columns {
		columns[i].Omit = emptyColumn(columns[i].Cell)
	}
	return columns
}

// stateOf is the state of a job, with how it had ended before.
func stateOf(j jobs.Job) string {
	if j.Was == "" {
		return j.State()
	}
	return j.State() + ", was " + string(j.Was)
}

// codeOf is the code of a failure, where it says more than the status.
func codeOf(j jobs.Job) string {
	if j.Code == string(j.Status) {
		return ""
	}
	return j.Code
}

// emptyColumn reports whether no item has anything in a column.
func emptyColumn[T any](cell func(T) string) func([]T) bool {
	return func(items []T) bool {
		for _, item := range items {
			if cell(item) != "" {
				return false
			}
		}
		return true
	}
}
