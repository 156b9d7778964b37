package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/jobs"
	"github.com/nodpt/executor/internal/term"
)

func newShow() *cobra.Command {
	var (
		roles   []string
		content bool
	)
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one job: how it is, its runs, its attempts and their errors",
		Long: `Show one job: how it is, whose it is, its times, its runs, the attempts of the
latest run with their errors, its updates and dead letters, and where to find it in
Temporal's Web UI.

ID is a jobId, the id of a rejected entry ("entry:…"), or a workflow id
("job:agent:…"). Where several roles have a job of that id, choose with --role.

Of the attempts before the last, Temporal keeps the error of one. Of several runs
the one marked as speaking is the one whose outcome the row holds.

Task, payload and answer are shown only with --content. They may be confidential:
think of who sees your screen and of where the output goes.`,
		Example: `  executor show j1
  executor show j1 --role agent -o json
  executor show job:agent:j1 --content`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: firstArg(completeIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen, err := parseRoles(roles)
			if err != nil {
				return err
			}
			l, err := newLookout(cmd.Context(), cmd, sight{rows: wanted, runs: wanted, streams: wanted})
			if err != nil {
				return err
			}
			defer l.Close()
			f, err := l.Find(cmd.Context(), args[0], chosen)
			if err != nil {
				return l.failed(err)
			}
			d, err := l.Detail(cmd.Context(), f, content)
			if err != nil {
				return l.failed(err)
			}
			if err := l.printDetail(d); err != nil {
				return err
			}
			return l.end()
		},
	}
	roleFlag(cmd, &roles, "only jobs of this role")
	cmd.Flags().BoolVar(&content, "content", false, "show task, payload and answer as well; they may be confidential")
	outputFlag(cmd)
	return cmd
}

// firstArg completes the first argument only.
func firstArg(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(cmd, args, prefix)
	}
}

// printDetail prints everything about a job.
func (l *lookout) printDetail(d jobs.Detail) error {
	now := time.Now()
	if err := term.Detail(l.out, d, detailPairs(d, now)...); err != nil || l.out.Format() != term.Table {
		return err
	}
	for _, show := range []func() error{
		func() error { return part(l.out, "RUNS", d.Runs, runColumns()...) },
		func() error { return part(l.out, "ATTEMPTS", d.Tries, attemptColumns(now)...) },
		func() error { return l.printMessages(d.Tries) },
		func() error { return l.printContent(d.Content) },
	} {
		if err := show(); err != nil {
			return err
		}
	}
	for _, note := range d.Notes {
		fmt.Fprintln(l.cmd.ErrOrStderr(), "note: "+term.Clean(note))
	}
	return nil
}

func detailPairs(d jobs.Detail, now time.Time) []term.Pair {
	pairs := []term.Pair{
		{Name: "Job", Value: d.Name()},
		{Name: "Role", Value: string(d.Role)},
		{Name: "Status", Value: stateOf(d.Job), Color: statusColor(d.Status)},
		{Name: "Code", Value: codeOf(d.Job)},
		{Name: "Message", Value: d.Message},
		{Name: "Cause", Value: d.Cause},
		{Name: "Attempts", Value: number(d.Attempts)},
		{Name: "Next attempt", Value: until(d.NextAttemptAt, now)},
		{Name: "Model", Value: d.Model},
		{Name: "Tokens", Value: tokensInWords(d.Job)},
		{Name: "User", Value: d.UserID},
		{Name: "Project", Value: d.ProjectID},
		{Name: "Node", Value: d.NodeID},
		{Name: "Connection", Value: d.ConnectionID},
		{Name: "NodPT workflow", Value: d.NodptWorkflowID},
		{Name: "Enqueued", Value: moment(d.EnqueuedAt, now)},
		{Name: "Started", Value: moment(d.StartedAt, now)},
		{Name: "Finished", Value: moment(d.FinishedAt, now)},
		{Name: "Waited", Value: short(d.Waited())},
		{Name: "Took", Value: short(d.Took())},
		{Name: "Stream", Value: d.Stream},
		{Name: "Entry", Value: d.EntryID},
	}
	if d.LastEntryID != d.EntryID {
		pairs = append(pairs, term.Pair{Name: "Last entry", Value: d.LastEntryID})
	}
	pairs = append(
		pairs,
		term.Pair{Name: "Update", Value: d.MessageID},
		term.Pair{Name: "Last answer", Value: d.AnswerID},
	)
	for _, dead := range d.DeadLetters {
		state, color := "unresolved", term.Bad
		if dead.Resolved {
			state, color = "resolved", term.Faint
		}
		pairs = append(pairs, term.Pair{Name: "Dead letter", Value: dead.ID + " of " + dead.Stream + ", " + dead.Reason + ", " + state, Color: color})
	}
	return append(
		pairs,
		term.Pair{Name: "Workflow", Value: d.WorkflowID},
		term.Pair{Name: "Run", Value: d.RunID},
		term.Pair{Name: "Web UI", Value: d.UI},
	)
}

func tokensInWords(j jobs.Job) string {
	if tokens(j.PromptTokens, j.CompletionTokens) == "" {
		return ""
	}
	text := fmt.Sprintf("%d in, %d out", j.PromptTokens, j.CompletionTokens)
	if j.Truncated {
		text += ", cut off at the limit: raise MAX_TOKENS_" + strings.ToUpper(string(j.Role))
	}
	return text
}

// moment is a time and how long ago it was.
func moment(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05.000Z") + ", " + term.Ago(t, now) + " ago"
}

// part prints a table under a title, if it has lines.
func part[T any](p *term.Printer, title string, items []T, columns ...term.Column[T]) error {
	if len(items) == 0 {
		return nil
	}
	if err := term.Title(p, title); err != nil {
		return err
	}
	for i := range columns {
		if columns[i].Omit == nil {
			columns[i].Omit = emptyColumn(columns[i].Cell)
		}
	}
	return term.List(p, items, columns...)
}

func runColumns() []term.Column[jobs.Run] {
	return []term.Column[jobs.Run]{
		{Head: "speaks", Cell: func(r jobs.Run) string {
			if r.Speaks {
				return "yes"
			}
			return ""
		}},
		{Head: "run", Cell: func(r jobs.Run) string { return r.RunID }},
		{Head: "status", Cell: func(r jobs.Run) string { return r.Status }, Color: func(r jobs.Run) term.Color { return runColor(r.Status) }},
		{Head: "verdict", Cell: func(r jobs.Run) string { return string(r.Verdict) }},
		{Head: "attempts", Cell: func(r jobs.Run) string { return number(r.Attempts) }, Right: true},
		{Head: "code", Cell: func(r jobs.Run) string { return r.Code }, Wide: 40},
		{Head: "started", Cell: func(r jobs.Run) string { return clock(r.StartedAt) }},
		{Head: "closed", Cell: func(r jobs.Run) string { return clock(r.ClosedAt) }},
		{Head: "update", Cell: func(r jobs.Run) string { return r.MessageID }},
	}
}

func runColor(status string) term.Color {
	switch status {
	case "completed":
		return term.Good
	case "failed", "terminated", "timed_out":
		return term.Bad
	case "canceled":
		return term.Faint
	default:
		return term.Plain
	}
}

func attemptColumns(now time.Time) []term.Column[jobs.Attempt] {
	return []term.Column[jobs.Attempt]{
		{Head: "step", Cell: func(a jobs.Attempt) string { return string(a.Step) }},
		{Head: "attempt", Cell: func(a jobs.Attempt) string { return number(a.Attempt) }, Right: true},
		{Head: "status", Cell: attemptState, Color: func(a jobs.Attempt) term.Color { return runColor(a.Status) }},
		{Head: "code", Cell: func(a jobs.Attempt) string { return a.Code }, Wide: 40},
		{Head: "next", Cell: func(a jobs.Attempt) string { return until(a.NextAt, now) }},
		{Head: "started", Cell: func(a jobs.Attempt) string { return clock(a.StartedAt) }},
		{Head: "ended", Cell: func(a jobs.Attempt) string { return clock(a.EndedAt) }},
		{Head: "model", Cell: func(a jobs.Attempt) string { return a.Model }, Wide: 40},
		{Head: "endpoint", Cell: func(a jobs.Attempt) string { return a.Endpoint }, Wide: 60},
		{Head: "worker", Cell: func(a jobs.Attempt) string { return a.Worker }, Wide: 40},
	}
}

// printMessages prints what the errors of attempts tell operators, which is too long
// for a table.
func (l *lookout) printMessages(tries []jobs.Attempt) error {
	for _, a := range tries {
		why := cmp.Or(a.Cause, a.Message)
		if why == "" {
			continue
		}
		if err := term.Text(l.out, fmt.Sprintf("%s, attempt %d: %s", a.Step, a.Attempt, term.Clean(why))); err != nil {
			return err
		}
	}
	return nil
}

// attemptState is what an attempt does by its own account, or how it ended.
func attemptState(a jobs.Attempt) string { return cmp.Or(a.State, a.Status) }

// clock is a time without its year, for tables.
func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("01-02 15:04:05Z")
}

// printContent prints what the job asked and what was answered.
func (l *lookout) printContent(c *jobs.Content) error {
	if c == nil {
		return nil
	}
	for _, item := range []struct{ title, text string }{{"TASK", c.Task}, {"PAYLOAD", c.Payload}, {"ANSWER", c.Answer}} {
		if item.text == "" {
			continue
		}
		if err := term.Title(l.out, item.title); err != nil {
			return err
		}
		if err := term.Text(l.out, item.text); err != nil {
			return err
		}
	}
	return nil
}
