package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/retry"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/term"
	"github.com/nodpt/executor/workflows"
)

// retryFlags are the flags of retry.
type retryFlags struct {
	selection

	failed, canceled bool
	codes            []string
	limit            int

	reason    string
	model     string
	maxTokens int
	force     bool

	dryRun  bool
	yes     bool
	rate    float64
	wait    bool
	timeout time.Duration
}

// parallel is how many jobs are in hand at a time: enough for 20 a second on a
// server some milliseconds away.
const parallel = 4

func newRetry() *cobra.Command {
	var f retryFlags
	cmd := &cobra.Command{
		Use:   "retry ID… | --failed [FLAGS]",
		Short: "Run jobs again that failed or were canceled",
		Long: `Run jobs again that failed or were canceled, by their ids or by a selection.
Each gets a new run with the same input. A job that runs or is completed is left
alone, and costs no LLM call. One whose history is gone from Temporal is sent
again from its dead letter.

A selection is shown and confirmed first. What was interrupted goes on by calling
the same command again: jobs that are completed by then are no longer selected.
--dry-run shows the selection only; of jobs named by id it says what would be done.

ID is a job id or a Temporal workflow id; where several roles have a job of that
id, --role chooses one.`,
		Example: `  executor retry 4f1c9e --wait
  executor retry --failed --role agent --since 2h --reason "the LLM is back"
  executor retry --failed --code llm_bad_request --model llama3.1 --max-tokens 1024 --limit 1 --wait
  executor retry --failed --dry-run -o json`,
		ValidArgsFunction: completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			filter, err := f.check(cmd, args)
			if err != nil {
				return err
			}
			o, err := newOperator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			return f.run(cmd, o, args, filter)
		},
	}
	flags := cmd.Flags()
	selectionFlags(cmd, &f.selection)
	flags.BoolVar(&f.failed, "failed", false, "select jobs that failed")
	flags.BoolVar(&f.canceled, "canceled", false, "select jobs that were canceled")
	flags.StringSliceVar(&f.codes, "code", nil, "only jobs with these error codes, for example llm_unreachable")
	flags.IntVar(&f.limit, "limit", 0, "at most this many, the oldest first (0: all)")
	flags.StringVar(&f.reason, "reason", "executor retry", "why, for those who read the history")
	flags.StringVar(&f.model, "model", "", "ask this model instead")
	flags.IntVar(&f.maxTokens, "max-tokens", 0, "ask for at most this many tokens instead")
	flags.BoolVar(&f.force, "force", false, "run jobs again that are completed; each costs an LLM call")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what would be retried, and do nothing")
	flags.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	flags.Float64Var(&f.rate, "rate", 20, "jobs a second")
	flags.BoolVar(&f.wait, "wait", false, "wait for the new outcomes")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long to wait")
	outputFlag(cmd)
	return cmd
}

// check finds mistakes on the command line before anything is connected to.
func (f *retryFlags) check(cmd *cobra.Command, args []string) (store.Filter, error) {
	usage := func(format string, args ...any) (store.Filter, error) {
		return store.Filter{}, &exitError{exitUsage, fmt.Errorf(format, args...)}
	}
	filter, err := f.filter(time.Now())
	if err != nil {
		return store.Filter{}, err
	}
	filter.Codes = f.codes
	if f.failed {
		filter.Statuses = append(filter.Statuses, job.Failed)
	}
	if f.canceled {
		filter.Statuses = append(filter.Statuses, job.Canceled)
	}
	switch {
	case !(f.rate > 0) || f.rate > 1000:
		return usage("--rate must be above 0, and 1000 at most")
	case f.maxTokens < 0:
		return usage("--max-tokens must not be negative")
	case f.limit < 0:
		return usage("--limit must not be negative")
	case len(args) == 0 && len(filter.Statuses) == 0:
		return usage("name the jobs, or select them with --failed or --canceled")
	case len(args) == 0:
		return filter, nil
	}
	for _, name := range []string{"failed", "canceled", "user", "project", "since", "code", "limit"} {
		if cmd.Flags().Changed(name) {
			return usage("--%s selects jobs: leave it out, or the ids", name)
		}
	}
	return filter, nil
}

func (f *retryFlags) run(cmd *cobra.Command, o *operator, args []string, filter store.Filter) error {
	ctx := cmd.Context()
	rows, err := o.rows(ctx)
	if err != nil {
		return err
	}
	var jobs []job.Row
	var of []int // the argument that named the job
	if len(args) > 0 {
		jobs, of, err = named(ctx, rows, args, filter.Roles)
	} else if jobs, err = retry.Select(ctx, rows, filter); f.limit > 0 {
		jobs = jobs[:min(f.limit, len(jobs))]
	}
	if err != nil {
		return unreachable(err)
	}
	if len(args) == 0 && f.dryRun {
		return preview(o.out, jobs, len(jobs))
	}
	if len(args) == 0 {
		if len(jobs) == 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "no job is selected")
			return f.print(o, "", nil)
		}
		if err := f.confirm(cmd, jobs); err != nil {
			return err
		}
	}
	c, namespace, err := o.temporal(ctx)
	if err != nil {
		return err
	}
	retrier := &retry.Retrier{
		Runs:    &retry.Temporal{Service: c.WorkflowService(), Namespace: namespace, Identity: whoami(), Converter: o.converter()},
		Streams: connectOnce(o),
		Options: retry.Options{
			Reason:   f.reason,
			Override: workflows.Override{Model: f.model, MaxTokens: f.maxTokens, Force: f.force},
			Pace:     retry.Pace{Rate: f.rate, Parallel: parallel},
			DryRun:   f.dryRun,
		},
	}
	doing := "retrying"
	if f.dryRun {
		doing = "looking at jobs"
	}
	progress := newMeter(cmd, doing, len(jobs))
	results, err := retrier.Do(ctx, jobs, func(retry.Result) { progress.step() })
	progress.stop()
	if len(args) > 0 {
		results = known(results, of)
	}
	if err == nil && f.awaits() {
		err = f.await(cmd, rows, results)
	}
	if printErr := f.print(o, namespace, results); printErr != nil {
		return printErr
	}
	return retryError(ctx, results, err)
}

// confirm shows a selection and asks.
func (f *retryFlags) confirm(cmd *cobra.Command, jobs []job.Row) error {
	const shown = 10
	errOut := term.New(cmd.ErrOrStderr(), term.Table, config.Environ()["NO_COLOR"])
	if err := preview(errOut, jobs, shown); err != nil {
		return err
	}
	question := "Retry " + plural(len(jobs), "job")
	if takes := time.Duration(float64(len(jobs)) / f.rate * float64(time.Second)); takes >= 10*time.Second {
		question += ", which takes " + term.Short(takes) + " or more"
	}
	return confirm(cmd, f.yes, question+"?")
}

// group is jobs that ended in the same way.
type group struct {
	role   job.Role
	status job.Status
	code   string
	count  int
}

// preview prints what is selected: for people how many of which kind, and the
// first jobs.
func preview(out *term.Printer, jobs []job.Row, shown int) error {
	if out.Format() == term.Table {
		var groups []*group
		byKind := make(map[group]*group)
		for _, row := range jobs {
			kind := group{role: row.Role, status: row.Status, code: row.ErrorCode}
			g, ok := byKind[kind]
			if !ok {
				g = &kind
				byKind[kind] = g
				groups = append(groups, g)
			}
			g.count++
		}
		slices.SortStableFunc(groups, func(a, b *group) int { return cmp.Compare(b.count, a.count) })
		if err := term.List(out, groups,
			term.Column[*group]{Head: "jobs", Cell: func(g *group) string { return strconv.Itoa(g.count) }, Right: true},
			term.Column[*group]{Head: "role", Cell: func(g *group) string { return string(g.role) }},
			term.Column[*group]{Head: "status", Cell: func(g *group) string { return string(g.status) }},
			term.Column[*group]{Head: "code", Cell: func(g *group) string { return g.code }},
		); err != nil {
			return err
		}
		title := "jobs, the oldest first"
		if shown < len(jobs) {
			title = fmt.Sprintf("the oldest %d of %d jobs", shown, len(jobs))
		}
		if err := term.Title(out, title); err != nil {
			return err
		}
	} else {
		shown = len(jobs)
	}
	type selected struct {
		Role       job.Role   `json:"role"`
		JobID      string     `json:"jobId"`
		Status     job.Status `json:"status,omitempty"`
		ErrorCode  string     `json:"errorCode,omitempty"`
		UserID     string     `json:"userId,omitempty"`
		ProjectID  string     `json:"projectId,omitempty"`
		FinishedAt time.Time  `json:"finishedAt,omitzero"`
	}
	now := time.Now()
	items := make([]selected, 0, min(shown, len(jobs)))
	for _, row := range jobs[:min(shown, len(jobs))] {
		items = append(items, selected{
			Role: row.Role, JobID: row.JobID, Status: row.Status, ErrorCode: row.ErrorCode,
			UserID: row.UserID, ProjectID: row.ProjectID, FinishedAt: row.FinishedAt,
		})
	}
	return term.List(out, items,
		term.Column[selected]{Head: "role", Cell: func(s selected) string { return string(s.Role) }},
		term.Column[selected]{Head: "job", Cell: func(s selected) string { return s.JobID }},
		term.Column[selected]{Head: "status", Cell: func(s selected) string { return string(s.Status) }},
		term.Column[selected]{Head: "code", Cell: func(s selected) string { return s.ErrorCode }},
		term.Column[selected]{Head: "user", Cell: func(s selected) string { return s.UserID }, Omit: none(func(s selected) string { return s.UserID })},
		term.Column[selected]{Head: "ended", Cell: func(s selected) string { return ago(s.FinishedAt, now) }, Right: true},
	)
}

// none leaves a column out that is empty for all items.
func none[T any](cell func(T) string) func([]T) bool {
	return func(items []T) bool {
		return !slices.ContainsFunc(items, func(item T) bool { return cell(item) != "" })
	}
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return term.Ago(t, now) + " ago"
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// named finds the jobs of ids, and says for each which id it is of. Where no role
// has a row of an id, the job may be running: then it is returned without a status
// for each role it could have.
func named(ctx context.Context, rows retry.Rows, args []string, roles []job.Role) (jobs []job.Row, of []int, err error) {
	if len(roles) == 0 {
		roles = job.Roles()
	}
	keys := make([][]job.Key, len(args))
	var all []job.Key
	for i, arg := range args {
		keys[i] = jobKeys(arg, roles)
		all = append(all, keys[i]...)
	}
	found, err := retry.ByKey(ctx, rows, all)
	if err != nil {
		return nil, nil, err
	}
	seen := make(map[job.Key]struct{})
	for i, arg := range args {
		var mine []job.Row
		for _, key := range keys[i] {
			if row, ok := found[key]; ok {
				mine = append(mine, row)
			}
		}
		if len(mine) > 1 {
			var names []string
			for _, row := range mine {
				names = append(names, string(row.Role))
			}
			return nil, nil, &exitError{exitUsage, fmt.Errorf("%d jobs have the id %q, one of each of the roles %s: choose one with --role",
				len(mine), arg, strings.Join(names, ", "))}
		}
		if len(mine) == 0 {
			for _, key := range keys[i] {
				mine = append(mine, job.Row{Role: key.Role, JobID: key.JobID})
			}
		}
		for _, row := range mine {
			if _, again := seen[row.Key()]; !again {
				seen[row.Key()] = struct{}{}
				jobs, of = append(jobs, row), append(of, i)
			}
		}
	}
	return jobs, of, nil
}

// known leaves out the roles of which there is no such job, as long as the id is
// that of a job of another role.
func known(results []retry.Result, of []int) []retry.Result {
	var kept []retry.Result
	for first := 0; first < len(results); {
		end := first
		for end < len(results) && of[end] == of[first] {
			end++
		}
		some := slices.DeleteFunc(slices.Clone(results[first:end]), func(r retry.Result) bool { return r.Unknown })
		if len(some) == 0 {
			some = results[first : first+1]
			if end > first+1 {
				some[0].Row.Role = ""
			}
		}
		kept = append(kept, some...)
		first = end
	}
	return kept
}

// jobKeys are the jobs an id may mean: one of each role, or the one of a Temporal
// workflow id.
func jobKeys(arg string, roles []job.Role) []job.Key {
	var keys []job.Key
	for _, role := range roles {
		if id, ok := strings.CutPrefix(arg, "job:"+string(role)+":"); ok && job.WorkflowID(role, id) == arg {
			return []job.Key{{Role: role, JobID: id}}
		}
		keys = append(keys, job.Key{Role: role, JobID: arg})
	}
	return keys
}

// connectOnce connects to Redis at the first call.
func connectOnce(o *operator) func(context.Context) (retry.Streams, error) {
	turn := make(chan struct{}, 1)
	var streams retry.Streams
	var failed error
	return func(ctx context.Context) (retry.Streams, error) {
		turn <- struct{}{}
		defer func() { <-turn }()
		if streams == nil && failed == nil {
			c, err := o.redis(ctx)
			if err != nil {
				failed = err
			} else {
				streams = c
			}
		}
		return streams, failed
	}
}

// awaits reports whether outcomes are waited for: of a dry run there are none.
func (f *retryFlags) awaits() bool { return f.wait && !f.dryRun }

// await waits for the outcomes of what was retried.
func (f *retryFlags) await(cmd *cobra.Command, rows retry.Rows, results []retry.Result) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	progress := newMeter(cmd, "waiting for outcomes", len(results))
	missing, err := retry.Await(ctx, rows, results, time.Second/2, func(retry.Result) { progress.step() })
	progress.stop()
	switch {
	case err == nil:
		return nil
	case cmd.Context().Err() != nil:
		return &exitError{exitFailed, fmt.Errorf("interrupted; %s without an outcome yet, which go on", plural(missing, "job"))}
	case errors.Is(err, context.DeadlineExceeded):
		return &exitError{exitTimeout, fmt.Errorf("no outcome of %s within %s; they go on", plural(missing, "job"), f.timeout)}
	default:
		return unreachable(err)
	}
}

// retryResult is what is printed of a job.
type retryResult struct {
	Role       job.Role     `json:"role,omitempty"`
	JobID      string       `json:"jobId"`
	WorkflowID string       `json:"temporalWorkflowId,omitempty"`
	Result     retry.Action `json:"result"`
	RunID      string       `json:"runId,omitempty"`
	EntryID    string       `json:"entryId,omitempty"`
	Reason     string       `json:"reason,omitempty"`
	Link       string       `json:"link,omitempty"`
	Outcome    *newOutcome  `json:"outcome,omitempty"`
}

type newOutcome struct {
	Status           job.Status `json:"status"`
	ErrorCode        string     `json:"errorCode,omitempty"`
	ErrorMessage     string     `json:"errorMessage,omitempty"`
	Model            string     `json:"model,omitempty"`
	PromptTokens     int64      `json:"promptTokens,omitempty"`
	CompletionTokens int64      `json:"completionTokens,omitempty"`
	Attempts         int        `json:"attempts,omitempty"`
	FinishedAt       time.Time  `json:"finishedAt"`
}

const notTried retry.Action = "not tried"

func (f *retryFlags) print(o *operator, namespace string, results []retry.Result) error {
	items := make([]retryResult, 0, len(results))
	for _, r := range results {
		item := retryResult{
			Role: r.Row.Role, JobID: r.Row.JobID, Result: cmp.Or(r.Action, notTried), RunID: r.RunID, EntryID: r.EntryID, Reason: r.Reason,
		}
		if r.RunID != "" {
			item.WorkflowID = cmp.Or(r.Row.WorkflowID, job.WorkflowID(r.Row.Role, r.Row.JobID))
			item.Link = o.link(namespace, item.WorkflowID, r.RunID)
		}
		if row := r.Outcome; row != nil {
			item.Outcome = &newOutcome{
				Status: row.Status, ErrorCode: row.ErrorCode, ErrorMessage: row.ErrorMessage, Model: row.Model,
				PromptTokens: row.PromptTokens, CompletionTokens: row.CompletionTokens, Attempts: row.Attempts, FinishedAt: row.FinishedAt,
			}
		}
		items = append(items, item)
	}
	target := func(r retryResult) string { return r.RunID + r.EntryID }
	columns := []term.Column[retryResult]{
		{Head: "role", Cell: func(r retryResult) string { return string(r.Role) }},
		{Head: "job", Cell: func(r retryResult) string { return r.JobID }},
		{Head: "result", Cell: func(r retryResult) string { return actionText(r.Result) }, Color: func(r retryResult) term.Color { return actionColor(r.Result) }},
		{Head: "run or entry", Cell: target, Omit: none(target)},
	}
	if f.awaits() {
		columns = append(columns,
			term.Column[retryResult]{Head: "outcome", Cell: func(r retryResult) string { return r.outcome() }, Color: func(r retryResult) term.Color { return r.color() }},
			term.Column[retryResult]{Head: "model", Cell: func(r retryResult) string {
				if r.Outcome == nil {
					return ""
				}
				return r.Outcome.Model
			}},
		)
	}
	reason := func(r retryResult) string { return r.Reason }
	columns = append(columns, term.Column[retryResult]{Head: "reason", Cell: reason, Omit: none(reason)})
	if len(items) == 0 && o.out.Format() == term.Table {
		return nil
	}
	return term.List(o.out, items, columns...)
}

func (r retryResult) outcome() string {
	switch {
	case r.Outcome == nil:
		return ""
	case r.Outcome.ErrorCode == "" || r.Outcome.ErrorCode == string(r.Outcome.Status):
		return string(r.Outcome.Status)
	default:
		return string(r.Outcome.Status) + ": " + r.Outcome.ErrorCode
	}
}

func (r retryResult) color() term.Color {
	switch {
	case r.Outcome == nil:
		return term.Plain
	case r.Outcome.Status == job.Completed:
		return term.Good
	default:
		return term.Bad
	}
}

// actionText is an action for people. "completed" beside a job that was to be retried
// reads as if that had just been done.
func actionText(a retry.Action) string {
	if a == retry.Completed {
		return "already completed"
	}
	return string(a)
}

func actionColor(a retry.Action) term.Color {
	switch a {
	case retry.Retried, retry.Resent, retry.WouldRetry, retry.WouldResend:
		return term.Good
	case retry.Running:
		return term.Busy
	case retry.Cannot, notTried:
		return term.Bad
	case retry.Completed, retry.Resolved:
		return term.Faint
	}
	return term.Plain
}

// retryError says how the command ends.
func retryError(ctx context.Context, results []retry.Result, err error) error {
	var tried, cannot, failed int
	for _, r := range results {
		if r.Action != "" {
			tried++
		}
		if r.Action == retry.Cannot {
			cannot++
		}
		if r.Outcome != nil && r.Outcome.Status != job.Completed {
			failed++
		}
	}
	left := fmt.Sprintf("%d of %d done; run the same command again for the rest", tried, len(results))
	var outage *retry.OutageError
	var denied *retry.DeniedError
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		return err
	case err != nil && ctx.Err() != nil:
		return &exitError{exitFailed, fmt.Errorf("interrupted: %s", left)}
	case errors.As(err, &denied):
		return &exitError{exitFailed, fmt.Errorf("%w: %s", err, left)}
	case errors.As(err, &outage):
		return &exitError{exitUnreachable, fmt.Errorf("%w: %s", err, left)}
	case err != nil:
		return &exitError{exitFailed, err}
	case failed > 0:
		return &exitError{exitFailed, fmt.Errorf("%s not completed", plural(failed, "job"))}
	case cannot > 0:
		return &exitError{exitFailed, fmt.Errorf("%s could not be retried", plural(cannot, "job"))}
	}
	return nil
}

// unreachable is the error of a server in the middle of a command, unless it has
// an exit code already.
func unreachable(err error) error {
	if _, ok := errors.AsType[*exitError](err); ok || err == nil {
		return err
	}
	return &exitError{exitUnreachable, err}
}
