package main

import (
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
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/internal/term"
)

func newDLQ() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "Look at dead letters, send them again, delete them",
		Long: `Look at dead letters, send them again, delete them.

Every job that failed and every entry that could not be read leaves its entry in
<stream>:dead. A dead letter is resolved when its job has been completed, canceled,
or has failed once more since, which left another one. Of an entry that could not
be read it is resolved when the job it names is completed through a later entry.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }, // or cobra would take any word
	}
	cmd.AddCommand(newDLQList(), newDLQShow(), newDLQReplay(), newDLQPurge())
	return cmd
}

// letterFlags choose dead letters.
type letterFlags struct {
	roles      []string
	reasons    []string
	since      time.Duration
	unresolved bool
}

func (f *letterFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.roles, "role", nil, "only these roles: "+job.RoleNames())
	flags.StringSliceVar(&f.reasons, "reason-code", nil, "only these reasons, for example llm_bad_request")
	flags.DurationVar(&f.since, "since", 0, "only those of this long ago at most, for example 2h")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roleNames(), cobra.ShellCompDirectiveNoFileComp))
}

// streams are those of the chosen roles.
func (f *letterFlags) streams() ([]job.Role, error) {
	if f.since < 0 {
		return nil, &exitError{exitUsage, errors.New("--since must not be negative")}
	}
	if len(f.roles) == 0 {
		return job.Roles(), nil
	}
	var roles []job.Role
	for _, name := range f.roles {
		role, err := job.ParseRole(name)
		if err != nil {
			return nil, &exitError{exitUsage, fmt.Errorf("--role: %w", err)}
		}
		roles = append(roles, role)
	}
	return roles, nil
}

// letterSource is what reading dead letters needs of Redis.
type letterSource interface {
	DeadLetters(ctx context.Context, key string, r stream.DeadRange) ([]stream.Dead, error)
}

// lettersOf reads the chosen dead letters of a role, the newest first, without
// their fields, until take returns false.
func (f *letterFlags) lettersOf(
	ctx context.Context, c letterSource, rows retry.Rows, role job.Role, now time.Time, take func(retry.Letter) bool,
) error {
	r := stream.DeadRange{Limit: 100}
	if f.since > 0 {
		r.Since = now.Add(-f.since)
	}
	for {
		page, err := c.DeadLetters(ctx, role.Stream(), r)
		if err != nil {
			return err
		}
		full := len(page) == r.Limit
		if full {
			r.Before = page[len(page)-1].ID
		}
		if len(f.reasons) > 0 {
			page = slices.DeleteFunc(page, func(d stream.Dead) bool { return !slices.Contains(f.reasons, d.Reason) })
		}
		letters, err := retry.Letters(ctx, rows, page)
		if err != nil {
			return err
		}
		for _, l := range letters {
			if f.unresolved && l.Resolved {
				continue
			}
			l.Fields = nil // up to 64 KiB each
			if !take(l) {
				return nil
			}
		}
		if !full {
			return nil
		}
	}
}

// letterInfo is what is printed of a dead letter.
type letterInfo struct {
	ID              string     `json:"id"` // ROLE/ENTRY
	Role            job.Role   `json:"role"`
	Stream          string     `json:"stream"`
	EntryID         string     `json:"entryId"`
	JobID           string     `json:"jobId,omitempty"`
	UserID          string     `json:"userId,omitempty"`
	ProjectID       string     `json:"projectId,omitempty"`
	NodptWorkflowID string     `json:"nodptWorkflowId,omitempty"`
	OriginalID      string     `json:"originalId,omitempty"`
	Reason          string     `json:"reason,omitempty"`
	Error           string     `json:"error,omitempty"`
	Truncated       bool       `json:"truncated"`
	FailedAt        time.Time  `json:"failedAt,omitzero"`
	Resolved        bool       `json:"resolved"`
	JobStatus       job.Status `json:"jobStatus,omitempty"` // of the row, where there is one
	WorkflowID      string     `json:"temporalWorkflowId,omitempty"`
	RunID           string     `json:"runId,omitempty"`
}

func infoOf(l retry.Letter) letterInfo {
	info := letterInfo{
		ID: letterName(l), Role: l.Role, Stream: stream.DeadStream(l.Stream), EntryID: l.ID,
		JobID: l.Job.ID, UserID: l.Job.UserID, ProjectID: l.Job.ProjectID, NodptWorkflowID: l.Job.WorkflowID,
		OriginalID: l.EntryID, Reason: l.Reason, Error: l.Error, Truncated: l.Truncated, FailedAt: l.FailedAt, Resolved: l.Resolved,
	}
	if l.Row != nil {
		info.JobStatus, info.WorkflowID, info.RunID = l.Row.Status, l.Row.WorkflowID, l.Row.RunID
	}
	return info
}

func letterName(l retry.Letter) string { return string(l.Role) + "/" + l.ID }

// state is what has become of the job.
func (l letterInfo) state() string {
	switch {
	case !l.Resolved:
		return "unresolved"
	case l.JobStatus == job.Failed:
		return "failed again"
	default:
		return "resolved"
	}
}

func (l letterInfo) color() term.Color {
	if l.Resolved {
		return term.Faint
	}
	return term.Bad
}

func newDLQList() *cobra.Command {
	var f letterFlags
	var limit int
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List dead letters, the newest first",
		Example: `  executor dlq ls --unresolved
  executor dlq ls --role agent --reason-code llm_bad_request --since 24h -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			roles, err := f.streams()
			if err != nil {
				return err
			}
			if limit < 1 {
				return &exitError{exitUsage, errors.New("--limit must be above 0")}
			}
			return withLetters(cmd, func(o *operator, c *stream.Client, rows retry.Rows) error {
				return f.list(cmd.Context(), o, c, rows, roles, limit)
			})
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.unresolved, "unresolved", false, "only those whose job was not run again successfully")
	cmd.Flags().IntVar(&limit, "limit", 50, "at most this many")
	outputFlag(cmd)
	return cmd
}

// withLetters connects to Redis and the result store.
func withLetters(cmd *cobra.Command, do func(*operator, *stream.Client, retry.Rows) error) error {
	o, err := newOperator(cmd)
	if err != nil {
		return err
	}
	defer o.Close()
	c, err := o.redis(cmd.Context())
	if err != nil {
		return err
	}
	rows, err := o.rows(cmd.Context())
	if err != nil {
		return err
	}
	return unreachable(do(o, c, rows))
}

func (f *letterFlags) list(ctx context.Context, o *operator, c letterSource, rows retry.Rows, roles []job.Role, limit int) error {
	now := time.Now()
	var all []retry.Letter
	for _, role := range roles {
		left := limit
		err := f.lettersOf(ctx, c, rows, role, now, func(l retry.Letter) bool {
			all = append(all, l)
			left--
			return left > 0
		})
		if err != nil {
			return err
		}
	}
	slices.SortStableFunc(all, func(a, b retry.Letter) int { return job.CompareEntryIDs(b.ID, a.ID) })
	items := make([]letterInfo, 0, min(limit, len(all)))
	for _, l := range all[:min(limit, len(all))] {
		items = append(items, infoOf(l))
	}
	user := func(l letterInfo) string { return l.UserID }
	return term.List(o.out, items,
		term.Column[letterInfo]{Head: "id", Cell: func(l letterInfo) string { return l.ID }},
		term.Column[letterInfo]{Head: "job", Cell: func(l letterInfo) string { return l.JobID }, Wide: 40},
		term.Column[letterInfo]{Head: "user", Cell: user, Wide: 24, Omit: none(user)},
		term.Column[letterInfo]{Head: "state", Cell: letterInfo.state, Color: letterInfo.color},
		term.Column[letterInfo]{Head: "reason", Cell: func(l letterInfo) string { return l.Reason }},
		term.Column[letterInfo]{Head: "failed", Cell: func(l letterInfo) string { return ago(l.FailedAt, now) }, Right: true},
		term.Column[letterInfo]{Head: "error", Cell: func(l letterInfo) string { return l.Error }, Wide: 60},
	)
}

// letterDetail is letterInfo with the fields of the entry.
type letterDetail struct {
	letterInfo

	Fields []letterField `json:"fields"`
}

type letterField struct {
	Name  string  `json:"name"`
	Bytes int     `json:"bytes"`
	Value *string `json:"value,omitempty"` // with --content
}

func newDLQShow() *cobra.Command {
	var content bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a dead letter",
		Long: `Show a dead letter. ID is ROLE/ENTRY as "executor dlq ls" prints it, or
STREAM/ENTRY, for example jobs:agent:dead/1700000000000-0.

Tasks, payloads and messages are shown with --content only.`,
		Example: `  executor dlq show agent/1700000000000-0
  executor dlq show agent/1700000000000-0 --content`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := letterRefs(args)
			if err != nil {
				return err
			}
			return withLetters(cmd, func(o *operator, c *stream.Client, rows retry.Rows) error {
				letters, err := readLetters(cmd.Context(), c, rows, refs)
				if err != nil {
					return err
				}
				return showLetter(o, letters[0], content)
			})
		},
	}
	cmd.Flags().BoolVar(&content, "content", false, "show the entry's content too, which may be confidential")
	outputFlag(cmd)
	return cmd
}

// letterRef names a dead letter.
type letterRef struct {
	role job.Role
	id   string
}

func letterRefs(args []string) ([]letterRef, error) {
	var refs []letterRef
	for _, arg := range args {
		name, id, _ := strings.Cut(arg, "/")
		name = strings.TrimSuffix(strings.TrimPrefix(name, "jobs:"), ":dead")
		role, err := job.ParseRole(name)
		if err == nil {
			err = stream.CheckID(id)
		}
		if err != nil {
			return nil, &exitError{exitUsage, fmt.Errorf(
				"%q is no dead letter: write ROLE/ENTRY as \"executor dlq ls\" prints it, for example agent/1700000000000-0", arg)}
		}
		if ref := (letterRef{role, id}); !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	return refs, nil
}

func readLetters(ctx context.Context, c *stream.Client, rows retry.Rows, refs []letterRef) ([]retry.Letter, error) {
	var dead []stream.Dead
	for _, ref := range refs {
		d, found, err := c.ReadDead(ctx, ref.role.Stream(), ref.id)
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, &exitError{exitFailed, fmt.Errorf("there is no dead letter %s/%s", ref.role, ref.id)}
		}
		dead = append(dead, d)
	}
	return retry.Letters(ctx, rows, dead)
}

func showLetter(o *operator, l retry.Letter, content bool) error {
	d := letterDetail{letterInfo: infoOf(l), Fields: make([]letterField, 0, len(l.Fields))}
	for _, f := range l.Fields {
		field := letterField{Name: f.Name, Bytes: len(f.Value)}
		if content {
			field.Value = &f.Value
		}
		d.Fields = append(d.Fields, field)
	}
	now := time.Now()
	truncated := ""
	if d.Truncated {
		truncated = "yes: the entry was larger than 64 KiB, so that it cannot be sent again from here"
	}
	link := ""
	if options, err := o.cfg.Temporal(); err == nil && d.WorkflowID != "" {
		link = o.link(options.Namespace, d.WorkflowID, d.RunID)
	}
	status := string(d.JobStatus)
	if status == "" {
		status = "unknown: there is no row of it"
	}
	if err := term.Detail(o.out, d,
		term.Pair{Name: "Dead letter", Value: d.ID},
		term.Pair{Name: "State", Value: d.state(), Color: d.color()},
		term.Pair{Name: "Job", Value: d.JobID},
		term.Pair{Name: "Job is", Value: status},
		term.Pair{Name: "User", Value: d.UserID},
		term.Pair{Name: "Project", Value: d.ProjectID},
		term.Pair{Name: "NodPT workflow", Value: d.NodptWorkflowID},
		term.Pair{Name: "Original entry", Value: d.OriginalID},
		term.Pair{Name: "Failed", Value: ago(d.FailedAt, now)},
		term.Pair{Name: "Reason", Value: d.Reason},
		term.Pair{Name: "Error", Value: d.Error},
		term.Pair{Name: "Shortened", Value: truncated},
		term.Pair{Name: "Run", Value: link},
	); err != nil || o.out.Format() != term.Table {
		return err
	}
	if err := term.Title(o.out, "Fields"); err != nil {
		return err
	}
	columns := []term.Column[letterField]{
		{Head: "name", Cell: func(f letterField) string { return f.Name }},
		{Head: "bytes", Cell: func(f letterField) string { return strconv.Itoa(f.Bytes) }, Right: true},
	}
	if !content {
		return term.List(o.out, d.Fields, columns...)
	}
	for _, f := range d.Fields {
		if err := term.Title(o.out, f.Name); err != nil {
			return err
		}
		if err := term.Text(o.out, *f.Value); err != nil {
			return err
		}
	}
	return nil
}

// replayFlags are the flags of dlq replay.
type replayFlags struct {
	letterFlags

	dryRun, yes bool
	rate        float64
	limit       int
}

func newDLQReplay() *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:   "replay ID… | --unresolved [FLAGS]",
		Short: "Send dead letters again",
		Long: `Send dead letters again: their original entry is added to its stream once more,
under the same job id. The bridge takes that for a retry of a job that failed.

"executor retry" is the better choice where a job's history is still in Temporal:
it takes other models, and shows the job's runs side by side. Resolved dead letters
are left alone, and shortened ones (of entries above 64 KiB) cannot be sent.`,
		Example: `  executor dlq replay agent/1700000000000-0
  executor dlq replay --unresolved --role agent --since 2h --dry-run`,
		RunE: func(cmd *cobra.Command, args []string) error {
			roles, err := f.check(cmd, args)
			if err != nil {
				return err
			}
			refs, err := letterRefs(args)
			if err != nil {
				return err
			}
			return withLetters(cmd, func(o *operator, c *stream.Client, rows retry.Rows) error {
				if len(refs) == 0 {
					return f.selected(cmd, o, c, rows, roles)
				}
				letters, err := readLetters(cmd.Context(), c, rows, refs)
				if err != nil {
					return err
				}
				if f.dryRun {
					return printLetters(o.out, letters, len(letters))
				}
				return replay(cmd, o, c, letters, f.rate)
			})
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.unresolved, "unresolved", false, "select those whose job was not run again successfully")
	flags.IntVar(&f.limit, "limit", 0, "at most this many, the oldest first (0: all)")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what would be sent, and do nothing")
	flags.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	flags.Float64Var(&f.rate, "rate", 20, "dead letters a second")
	outputFlag(cmd)
	return cmd
}

// check finds mistakes on the command line before anything is connected to.
func (f *replayFlags) check(cmd *cobra.Command, args []string) ([]job.Role, error) {
	roles, err := f.streams()
	switch {
	case err != nil:
		return nil, err
	case !(f.rate > 0) || f.rate > 1000:
		return nil, &exitError{exitUsage, errors.New("--rate must be above 0, and 1000 at most")}
	case f.limit < 0:
		return nil, &exitError{exitUsage, errors.New("--limit must not be negative")}
	case len(args) == 0 && !f.unresolved:
		return nil, &exitError{exitUsage, errors.New("name the dead letters, or select them with --unresolved")}
	case len(args) == 0:
		return roles, nil
	}
	for _, name := range []string{"unresolved", "role", "reason-code", "since", "limit"} {
		if cmd.Flags().Changed(name) {
			return nil, &exitError{exitUsage, fmt.Errorf("--%s selects dead letters: leave it out, or the ids", name)}
		}
	}
	return roles, nil
}

// selected sends a selection, after it was shown and confirmed.
func (f *replayFlags) selected(cmd *cobra.Command, o *operator, c *stream.Client, rows retry.Rows, roles []job.Role) error {
	letters, err := f.oldestFirst(cmd.Context(), c, rows, roles, f.limit)
	switch {
	case err != nil:
		return err
	case f.dryRun:
		return printLetters(o.out, letters, len(letters))
	case len(letters) == 0:
		fmt.Fprintln(cmd.ErrOrStderr(), "no dead letter is selected")
		return printReplays(o, nil, nil)
	}
	if err := firstLetters(cmd, letters); err != nil {
		return err
	}
	if err := confirm(cmd, f.yes, "Send "+plural(len(letters), "dead letter")+" again?"); err != nil {
		return err
	}
	return replay(cmd, o, c, letters, f.rate)
}

// oldestFirst reads all chosen letters of the roles, limit of them at most.
func (f *letterFlags) oldestFirst(ctx context.Context, c letterSource, rows retry.Rows, roles []job.Role, limit int) ([]retry.Letter, error) {
	now := time.Now()
	var all []retry.Letter
	for _, role := range roles {
		err := f.lettersOf(ctx, c, rows, role, now, func(l retry.Letter) bool {
			all = append(all, l)
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all, func(a, b retry.Letter) int { return job.CompareEntryIDs(a.ID, b.ID) })
	if limit > 0 {
		all = all[:min(limit, len(all))]
	}
	return all, nil
}

// firstLetters shows a selection to the person who will be asked.
func firstLetters(cmd *cobra.Command, letters []retry.Letter) error {
	const shown = 10
	return printLetters(term.New(cmd.ErrOrStderr(), term.Table, config.Environ()["NO_COLOR"]), letters, shown)
}

// printLetters prints what is selected.
func printLetters(out *term.Printer, letters []retry.Letter, shown int) error {
	if out.Format() != term.Table {
		shown = len(letters)
	}
	now := time.Now()
	items := make([]letterInfo, 0, min(shown, len(letters)))
	for _, l := range letters[:min(shown, len(letters))] {
		items = append(items, infoOf(l))
	}
	if shown < len(letters) {
		if err := term.Title(out, fmt.Sprintf("the oldest %d of %d dead letters", shown, len(letters))); err != nil {
			return err
		}
	}
	return term.List(out, items,
		term.Column[letterInfo]{Head: "id", Cell: func(l letterInfo) string { return l.ID }},
		term.Column[letterInfo]{Head: "job", Cell: func(l letterInfo) string { return l.JobID }, Wide: 40},
		term.Column[letterInfo]{Head: "state", Cell: letterInfo.state, Color: letterInfo.color},
		term.Column[letterInfo]{Head: "reason", Cell: func(l letterInfo) string { return l.Reason }},
		term.Column[letterInfo]{Head: "failed", Cell: func(l letterInfo) string { return ago(l.FailedAt, now) }, Right: true},
	)
}

func replay(cmd *cobra.Command, o *operator, c *stream.Client, letters []retry.Letter, perSecond float64) error {
	ctx := cmd.Context()
	progress := newMeter(cmd, "sending again", len(letters))
	replayer := &retry.Replayer{Streams: c, Pace: retry.Pace{Rate: perSecond, Parallel: 1}}
	results, err := replayer.Do(ctx, letters, func(int, retry.Result) { progress.step() })
	progress.stop()
	if printErr := printReplays(o, letters, results); printErr != nil {
		return printErr
	}
	return retryError(ctx, results, err)
}

// replayResult is what is printed of a dead letter that was to be sent.
type replayResult struct {
	ID      string       `json:"id"`
	Role    job.Role     `json:"role"`
	JobID   string       `json:"jobId,omitempty"`
	Result  retry.Action `json:"result"`
	EntryID string       `json:"entryId,omitempty"`
	Reason  string       `json:"reason,omitempty"`
}

func printReplays(o *operator, letters []retry.Letter, results []retry.Result) error {
	items := make([]replayResult, 0, len(letters))
	for i, l := range letters {
		r := results[i]
		if r.Action == "" {
			r.Action = notTried
		}
		items = append(items, replayResult{
			ID: letterName(l), Role: l.Role, JobID: l.Job.ID, Result: r.Action, EntryID: r.EntryID, Reason: r.Reason,
		})
	}
	if len(items) == 0 && o.out.Format() == term.Table {
		return nil
	}
	reason := func(r replayResult) string { return r.Reason }
	return term.List(o.out, items,
		term.Column[replayResult]{Head: "id", Cell: func(r replayResult) string { return r.ID }},
		term.Column[replayResult]{Head: "job", Cell: func(r replayResult) string { return r.JobID }, Wide: 40},
		term.Column[replayResult]{Head: "result", Cell: func(r replayResult) string { return string(r.Result) }, Color: func(r replayResult) term.Color { return actionColor(r.Result) }},
		term.Column[replayResult]{Head: "new entry", Cell: func(r replayResult) string { return r.EntryID }},
		term.Column[replayResult]{Head: "reason", Cell: reason, Omit: none(reason)},
	)
}

// purgeFlags are the flags of dlq purge.
type purgeFlags struct {
	letterFlags

	resolved, unresolvedToo bool
	before                  time.Duration
	dryRun, yes             bool
}

// unresolvedAge is how old unresolved dead letters must be to be deleted.
const unresolvedAge = 24 * time.Hour

func newDLQPurge() *cobra.Command {
	var f purgeFlags
	cmd := &cobra.Command{
		Use:   "purge --resolved | --before AGE [FLAGS]",
		Short: "Delete dead letters for good",
		Long: `Delete dead letters for good. Unresolved ones are kept, whatever else is asked for:
they may be the only copy of a job. --unresolved-too deletes those as well, if they
are older than --before, which must then be a day at least.`,
		Example: `  executor dlq purge --resolved --dry-run
  executor dlq purge --before 720h --yes
  executor dlq purge --before 2160h --unresolved-too --role chat`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			roles, err := f.check()
			if err != nil {
				return err
			}
			return withLetters(cmd, func(o *operator, c *stream.Client, rows retry.Rows) error {
				return f.run(cmd, o, c, rows, roles)
			})
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.resolved, "resolved", false, "delete resolved ones of any age")
	flags.DurationVar(&f.before, "before", 0, "delete resolved ones older than this, for example 720h")
	flags.BoolVar(&f.unresolvedToo, "unresolved-too", false, "with --before: delete unresolved ones too")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what would be deleted, and do nothing")
	flags.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	outputFlag(cmd)
	return cmd
}

// check finds mistakes on the command line before anything is connected to.
func (f *purgeFlags) check() ([]job.Role, error) {
	roles, err := f.streams()
	switch {
	case err != nil:
		return nil, err
	case f.before < 0:
		return nil, &exitError{exitUsage, errors.New("--before must not be negative")}
	case f.unresolvedToo && f.before < unresolvedAge:
		return nil, &exitError{exitUsage, errors.New("--unresolved-too deletes jobs that nobody has looked after: it needs --before, with 24h at least")}
	case f.unresolvedToo && f.resolved:
		return nil, &exitError{exitUsage, errors.New("--resolved and --unresolved-too exclude each other")}
	case !f.resolved && f.before == 0:
		return nil, &exitError{exitUsage, errors.New("say which: --resolved, --before AGE, or both")}
	}
	return roles, nil
}

func (f *purgeFlags) run(cmd *cobra.Command, o *operator, c *stream.Client, rows retry.Rows, roles []job.Role) error {
	ctx := cmd.Context()
	latest := time.Now().Add(-f.before)
	all, err := f.oldestFirst(ctx, c, rows, roles, 0)
	if err != nil {
		return err
	}
	var chosen []retry.Letter
	var unresolved, kept int
	for _, l := range all {
		switch {
		case f.before > 0 && !job.EntryTime(l.ID).Before(latest):
		case l.Resolved:
			chosen = append(chosen, l)
		case f.unresolvedToo:
			unresolved++
			chosen = append(chosen, l)
		default:
			kept++
		}
	}
	if kept > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s kept\n", plural(kept, "unresolved dead letter"))
	}
	if f.dryRun {
		return printLetters(o.out, chosen, len(chosen))
	}
	if len(chosen) > 0 {
		if err := f.confirm(cmd, chosen, unresolved); err != nil {
			return err
		}
	}
	deleted, err := purge(ctx, c, chosen)
	if printErr := printPurged(o, deleted, kept); printErr != nil {
		return printErr
	}
	return err
}

func (f *purgeFlags) confirm(cmd *cobra.Command, chosen []retry.Letter, unresolved int) error {
	if err := firstLetters(cmd, chosen); err != nil {
		return err
	}
	question := "Delete " + plural(len(chosen), "dead letter") + " for good"
	if unresolved == 0 {
		return confirm(cmd, f.yes, question+"?")
	}
	return confirmTyped(cmd, f.yes, fmt.Sprintf("%s, %d of them unresolved.", question, unresolved), strconv.Itoa(len(chosen)))
}

// purge deletes letters, batch by batch, until ctx ends, and returns how many.
func purge(ctx context.Context, c *stream.Client, letters []retry.Letter) (deleted int, err error) {
	byStream := make(map[string][]string)
	for _, l := range letters {
		byStream[l.Stream] = append(byStream[l.Stream], l.ID)
	}
	for _, role := range job.Roles() {
		for batch := range slices.Chunk(byStream[role.Stream()], 100) {
			if ctx.Err() != nil {
				return deleted, &exitError{exitFailed, fmt.Errorf(
					"interrupted: %d of %d deleted; run the same command again for the rest", deleted, len(letters))}
			}
			n, err := c.DropDead(context.WithoutCancel(ctx), role.Stream(), batch...)
			deleted += int(n)
			if err != nil {
				return deleted, err
			}
		}
	}
	return deleted, nil
}

type purgeResult struct {
	Deleted        int `json:"deleted"`
	UnresolvedKept int `json:"unresolvedKept"`
}

func printPurged(o *operator, deleted, kept int) error {
	return term.Detail(o.out, purgeResult{Deleted: deleted, UnresolvedKept: kept},
		term.Pair{Name: "Deleted", Value: strconv.Itoa(deleted)})
}
