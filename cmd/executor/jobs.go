package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/sdk/converter"

	"github.com/nodpt/executor/internal/app"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/jobs"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/term"
)

// lookout is a view of jobs from as many servers as answer.
type lookout struct {
	*operator
	*jobs.View
	cfg     jobs.Config
	cmd     *cobra.Command
	missing bool // a server did not answer, and the view is not complete
}

// sight says what a command looks at. What it does not need it does without, with a
// warning, where the server does not answer; what only helps it also where the
// setting is wrong.
type sight struct{ rows, runs, streams need }

// need is how much a command depends on a server.
type need int

const (
	unused need = iota
	helpful
	wanted
	needed
)

// newLookout reads the settings and connects. Close it.
func newLookout(ctx context.Context, cmd *cobra.Command, s sight) (*lookout, error) {
	o, err := newOperator(cmd)
	if err != nil {
		return nil, err
	}
	l := &lookout{operator: o, cmd: cmd}
	if err := l.connect(ctx, s); err != nil {
		o.Close()
		return nil, err
	}
	l.View = jobs.New(l.cfg)
	return l, nil
}

func (l *lookout) connect(ctx context.Context, s sight) error {
	if s.runs > unused {
		c, namespace, err := l.temporal(ctx)
		if err := l.orElse(err, s.runs); err != nil {
			return err
		}
		l.cfg.Link = func(workflowID, runID string) string { return l.link(namespace, workflowID, runID) }
		if c != nil {
			l.cfg.Runs = c
		}
		l.cfg.Converter = l.converter()
	}
	if s.rows > unused {
		rows, err := l.rows(ctx)
		if err := l.orElse(err, s.rows); err != nil {
			return err
		}
		if rows != nil {
			l.cfg.Rows = rows
		}
	}
	if s.streams > unused {
		streams, err := l.redis(ctx)
		if err := l.orElse(err, s.streams); err != nil {
			return err
		}
		if streams != nil {
			l.cfg.Streams = streams
		}
	}
	return nil
}

// converter reads the payloads of runs, with the keys there are.
func (o *operator) converter() converter.DataConverter {
	options, err := app.TemporalOptions(o.cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil // temporal has said so
	}
	return options.DataConverter
}

// orElse returns the error of a server that is needed, or whose setting is wrong,
// and warns of any other.
func (l *lookout) orElse(err error, n need) error {
	exit, ok := errors.AsType[*exitError](err)
	if err == nil || n == needed || n == wanted && (!ok || exit.code != exitUnreachable) {
		return err
	}
	l.warn(err)
	return nil
}

// warn says on standard error that something could not be seen.
func (l *lookout) warn(err error) {
	l.missing = true
	fmt.Fprintln(l.cmd.ErrOrStderr(), "warning: "+term.Clean(err.Error()))
}

// end is how a command ends whose result was printed: with exit code 3 where the
// result is not complete.
func (l *lookout) end() error {
	if l.missing {
		return &exitError{code: exitUnreachable}
	}
	return nil
}

// failed gives an error of a view its exit code.
func (l *lookout) failed(err error) error {
	var ambiguous *jobs.AmbiguousError
	exit, typed := errors.AsType[*exitError](err)
	switch {
	case err == nil:
		return nil
	case typed:
		return exit
	case errors.As(err, &ambiguous):
		return &exitError{exitUsage, err}
	case errors.Is(err, jobs.ErrNotFound) && !l.missing:
		return &exitError{exitFailed, err}
	case errors.Is(err, jobs.ErrNotFound):
		return &exitError{exitUnreachable, fmt.Errorf("%w, as far as can be seen: not every server answers", err)}
	case errors.Is(err, context.Canceled):
		return &exitError{code: exitFailed} // a person has ended it, and knows
	default:
		return &exitError{exitUnreachable, err}
	}
}

// parseRoles reads --role.
func parseRoles(names []string) ([]job.Role, error) {
	var roles []job.Role
	for _, name := range names {
		role, err := job.ParseRole(name)
		if err != nil {
			return nil, &exitError{exitUsage, fmt.Errorf("--role: %w", err)}
		}
		roles = append(roles, role)
	}
	return roles, nil
}

// roleFlag adds --role for commands that take ids.
func roleFlag(cmd *cobra.Command, roles *[]string, usage string) {
	cmd.Flags().StringSliceVar(roles, "role", nil, usage)
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roleNames(), cobra.ShellCompDirectiveNoFileComp))
}

// parseStatuses reads --status, which takes some of those allowed.
func parseStatuses(names []string, allowed []jobs.Status) ([]jobs.Status, error) {
	var statuses []jobs.Status
	for _, name := range names {
		status := jobs.Status(name)
		if !slices.Contains(allowed, status) {
			return nil, &exitError{exitUsage, fmt.Errorf("--status: unknown status %.40q: use %s", name, strings.Join(statusNames(allowed), ", "))}
		}
		statuses = append(statuses, status)
	}
	return statuses, nil
}

// statusFlag adds --status.
func statusFlag(cmd *cobra.Command, statuses *[]string, allowed []jobs.Status) {
	cmd.Flags().StringSliceVar(statuses, "status", nil, "only jobs that are "+strings.Join(statusNames(allowed), ", "))
	_ = cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions(statusNames(allowed), cobra.ShellCompDirectiveNoFileComp))
}

func statusNames(statuses []jobs.Status) []string {
	names := make([]string, len(statuses))
	for i, s := range statuses {
		names[i] = string(s)
	}
	return names
}

// completeIDs offers the ids of jobs that ended lately. It is quick and silent:
// whoever presses the tab key wants no error.
func completeIDs(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const (
		budget = time.Second
		offer  = 50
	)
	ctx, cancel := context.WithTimeout(cmd.Context(), budget)
	defer cancel()
	cfg, err := loadConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	rows, err := store.Attach(ctx, cfg.Store())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer func() { _ = rows.Close() }()
	filter := store.Filter{Limit: 1000}
	if names, err := cmd.Flags().GetStringSlice("role"); err == nil {
		for _, name := range names {
			filter.Roles = append(filter.Roles, job.Role(name))
		}
	}
	found, err := rows.List(ctx, filter)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []cobra.Completion
	for _, row := range found {
		if len(ids) == offer {
			break
		}
		// A tab or a line break in an id would be taken for the end of it.
		if strings.HasPrefix(row.JobID, prefix) && term.Clean(row.JobID) == row.JobID && !slices.Contains(args, row.JobID) {
			ids = append(ids, cobra.CompletionWithDesc(row.JobID, string(row.Role)+", "+string(row.Status)+" "+term.Ago(row.FinishedAt, time.Now())+" ago"))
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

// statusColor is the color of a status.
func statusColor(s jobs.Status) term.Color {
	switch s {
	case jobs.Completed:
		return term.Good
	case jobs.Failed, jobs.Rejected:
		return term.Bad
	case jobs.Retrying:
		return term.Busy
	case jobs.Queued, jobs.Canceled:
		return term.Faint
	case jobs.Running:
	}
	return term.Plain
}

// tokens are the tokens of the prompt and of the answer.
func tokens(prompt, completion int64) string {
	if prompt == 0 && completion == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", prompt, completion)
}

// number is empty for 0.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// short is empty for no time at all.
func short(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return term.Short(d)
}

// until says how soon a moment is.
func until(t, now time.Time) string {
	if t.IsZero() || !t.After(now) {
		return ""
	}
	return "in " + term.Short(t.Sub(now))
}
