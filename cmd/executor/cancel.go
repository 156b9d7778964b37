package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/jobs"
	"github.com/nodpt/executor/internal/term"
)

// cancelOptions are the flags of cancel.
type cancelOptions struct {
	roles, statuses []string
	user, project   string
	yes, dry, wait  bool
	timeout         time.Duration
}

// openStatuses are those of jobs that can be canceled.
func openStatuses() []jobs.Status { return []jobs.Status{jobs.Queued, jobs.Running, jobs.Retrying} }

func newCancel() *cobra.Command {
	var opts cancelOptions
	cmd := &cobra.Command{
		Use:   "cancel [ID…]",
		Short: "Cancel jobs, by id or by selection",
		Long: `Cancel jobs: those of the ids given (jobIds or workflow ids), or all open ones that
--status, --role, --user and --project select. A running call is given up when its
worker hears of it, with its next heartbeat, within seconds. The job ends as
canceled, or as completed if its answer came first.

There is a line per job. A job that has ended already is left as it is, which is no
failure; one whose entry was not started yet cannot be canceled, which is. With
--wait the command ends when the jobs have, and their updates are published.

A selection is asked about first; --yes answers for you, and is needed where there
is no terminal. --dry-run says what would be canceled.`,
		Example: `  executor cancel j1 --wait
  executor cancel --user u1 --role agent --dry-run
  executor cancel --status retrying --yes`,
		ValidArgsFunction: cobra.NoFileCompletions, // rows are of jobs that have ended
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := opts.check(args); err != nil {
				return err
			}
			roles, err := parseRoles(opts.roles)
			if err != nil {
				return err
			}
			statuses, err := parseStatuses(opts.statuses, openStatuses())
			if err != nil {
				return err
			}
			see := sight{rows: helpful, runs: needed}
			if len(args) > 0 {
				see.streams = wanted
			}
			l, err := newLookout(cmd.Context(), cmd, see)
			if err != nil {
				return err
			}
			defer l.Close()
			if len(args) > 0 {
				return l.cancelIDs(args, roles, opts)
			}
			return l.cancelSelected(jobs.Query{Roles: roles, Statuses: statuses, User: opts.user, Project: opts.project}, opts)
		},
	}
	roleFlag(cmd, &opts.roles, "only jobs of these roles")
	statusFlag(cmd, &opts.statuses, openStatuses())
	f := cmd.Flags()
	f.StringVar(&opts.user, "user", "", "only jobs of this user")
	f.StringVar(&opts.project, "project", "", "only jobs of this project")
	f.BoolVar(&opts.yes, "yes", false, "do not ask")
	f.BoolVar(&opts.dry, "dry-run", false, "only say what would be canceled")
	f.BoolVar(&opts.wait, "wait", false, "wait until the jobs have ended")
	f.DurationVar(&opts.timeout, "timeout", time.Minute, "how long to wait")
	outputFlag(cmd)
	return cmd
}

func (o cancelOptions) check(ids []string) error {
	selects := len(o.statuses) > 0 || o.user != "" || o.project != ""
	switch {
	case len(ids) > 0 && selects:
		return &exitError{exitUsage, errors.New("give either ids or a selection (--status, --user, --project)")}
	case len(ids) == 0 && !selects && len(o.roles) == 0:
		return &exitError{exitUsage, errors.New("which jobs? Give ids, or select open ones with --status, --role, --user or --project")}
	case o.timeout <= 0:
		return &exitError{exitUsage, errors.New("--timeout must be longer than that")}
	}
	return nil
}

// cancelIDs cancels jobs by their ids.
func (l *lookout) cancelIDs(ids []string, roles []job.Role, opts cancelOptions) error {
	ctx := l.cmd.Context()
	var found []jobs.Found
	var results []jobs.Cancellation
	for _, id := range ids {
		f, err := l.Find(ctx, id, roles)
		if errors.Is(err, jobs.ErrNotFound) && !l.missing {
			results = append(results, jobs.Cancellation{JobID: id, Result: jobs.NotFound, Message: "nothing is known of such a job"})
			continue
		}
		if err != nil {
			return l.failed(err)
		}
		found = append(found, f)
	}
	return l.cancel(found, results, opts)
}

// cancelSelected cancels open jobs that meet a query.
func (l *lookout) cancelSelected(q jobs.Query, opts cancelOptions) error {
	ctx := l.cmd.Context()
	if len(q.Statuses) == 0 {
		q.Statuses = openStatuses()
	}
	var all []jobs.Job
	if _, err := l.Open(ctx, q, func(page []jobs.Job) error {
		all = append(all, page...)
		return nil
	}); err != nil {
		return l.failed(err)
	}
	if len(all) > 0 && !opts.dry {
		if !opts.yes {
			for _, j := range all[:min(len(all), 10)] {
				fmt.Fprintf(l.cmd.ErrOrStderr(), "  %s  %s  %s\n", j.Role, term.Clean(j.Name()), stateOf(j))
			}
		}
		if err := confirm(l.cmd, opts.yes, fmt.Sprintf("Cancel %s?", countJobs(len(all)))); err != nil {
			return err
		}
	}
	found, err := l.Seen(ctx, all)
	if err != nil {
		return l.failed(err)
	}
	return l.cancel(found, nil, opts)
}

func countJobs(n int) string {
	if n == 1 {
		return "1 job"
	}
	return fmt.Sprintf("%d jobs", n)
}

// cancel cancels what was found and prints a line per job, after those there are.
func (l *lookout) cancel(found []jobs.Found, results []jobs.Cancellation, opts cancelOptions) error {
	ctx := l.cmd.Context()
	asked := l.CancelAll(ctx, found, opts.dry)
	var late error
	if opts.wait && !opts.dry {
		late = l.await(ctx, found, asked, opts.timeout)
	}
	results = append(results, asked...)
	if err := l.printResults(results); err != nil {
		return err
	}
	if late != nil {
		return late
	}
	has := func(all ...jobs.Result) bool {
		return slices.ContainsFunc(results, func(c jobs.Cancellation) bool { return slices.Contains(all, c.Result) })
	}
	switch {
	case has(jobs.NotCanceled):
		return &exitError{code: exitUnreachable}
	case has(jobs.NotFound, jobs.NotStarted):
		return &exitError{code: exitFailed}
	}
	return l.end()
}

// await follows the jobs that were asked to end and notes how they did.
func (l *lookout) await(ctx context.Context, found []jobs.Found, asked []jobs.Cancellation, timeout time.Duration) error {
	waiting, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	var index []int
	var open []jobs.Found
	for i, c := range asked {
		if c.Result == jobs.Requested {
			index, open = append(index, i), append(open, found[i])
		}
	}
	ended, err := l.Follow(waiting, open, func(jobs.Found) error { return nil })
	for i, f := range ended {
		asked[index[i]].Status, asked[index[i]].Code = f.Status, f.Code
	}
	switch {
	case ctx.Err() != nil:
		return &exitError{code: exitFailed}
	case waiting.Err() != nil:
		return l.overtime(ended)
	}
	return l.failed(err)
}

// printResults prints what came of it, a line per job.
func (l *lookout) printResults(results []jobs.Cancellation) error {
	if len(results) == 0 && l.out.Format() == term.Table {
		fmt.Fprintln(l.cmd.ErrOrStderr(), "no such jobs")
		return nil
	}
	columns := []term.Column[jobs.Cancellation]{
		{Head: "role", Cell: func(c jobs.Cancellation) string { return string(c.Role) }},
		{Head: "job", Cell: func(c jobs.Cancellation) string { return c.JobID }, Wide: 48},
		{Head: "result", Cell: func(c jobs.Cancellation) string { return string(c.Result) }, Color: resultColor},
		{Head: "status", Cell: func(c jobs.Cancellation) string { return string(c.Status) }, Color: func(c jobs.Cancellation) term.Color { return statusColor(c.Status) }},
		{Head: "message", Cell: func(c jobs.Cancellation) string { return c.Message }},
	}
	for i := range columns {
		columns[i].Omit = emptyColumn(columns[i].Cell)
	}
	return term.List(l.out, results, columns...)
}

func resultColor(c jobs.Cancellation) term.Color {
	switch c.Result {
	case jobs.Requested:
		return term.Good
	case jobs.NotCanceled, jobs.NotFound, jobs.NotStarted:
		return term.Bad
	case jobs.AlreadyEnded:
		return term.Faint
	case jobs.WouldCancel:
	}
	return term.Plain
}
