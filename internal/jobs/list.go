package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"golang.org/x/sync/errgroup"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/workflows"
)

// Query chooses jobs. Empty fields choose everything.
type Query struct {
	Roles    []job.Role
	Statuses []Status
	Codes    []string
	User     string
	Project  string
	// Since is the time after which a job must have ended. Open jobs always count.
	Since time.Time
	// Limit is the number of jobs; 0 is all of them.
	Limit int
}

// open reports whether open jobs can meet the query.
func (q Query) open() bool {
	return len(q.Statuses) == 0 || slices.ContainsFunc(q.Statuses, Status.Open)
}

// ended are the states of rows the query asks for, and whether it asks for any.
func (q Query) ended() ([]job.Status, bool) {
	var out []job.Status
	for _, s := range q.Statuses {
		if !s.Open() {
			out = append(out, job.Status(s))
		}
	}
	return out, len(q.Statuses) == 0 || len(out) > 0
}

// meets reports whether an open job is one of those asked for.
func (q Query) meets(j Job) bool {
	return (len(q.Roles) == 0 || slices.Contains(q.Roles, j.Role)) &&
		(len(q.Statuses) == 0 || slices.Contains(q.Statuses, j.Status)) &&
		(len(q.Codes) == 0 || slices.Contains(q.Codes, j.Code)) &&
		(q.User == "" || q.User == j.UserID) &&
		(q.Project == "" || q.Project == j.ProjectID)
}

const (
	listPage  = 200 // runs and rows of one look
	describes = 16  // descriptions asked for at once
	idsPage   = 50  // workflow ids in one query
)

// Open passes the open jobs of a query to yield, the one started last first, page
// by page, and returns how many there were. It asks Temporal alone what is open,
// and the rows, if there are any, how such a job had ended before.
func (v *View) Open(ctx context.Context, q Query, yield func([]Job) error) (int, error) {
	if !q.open() {
		return 0, nil
	}
	found := 0
	err := v.each(ctx, v.visibility(q), func(infos []*workflowpb.WorkflowExecutionInfo) error {
		page, err := v.describeAll(ctx, infos)
		if err != nil {
			return err
		}
		page = slices.DeleteFunc(page, func(j Job) bool { return !q.meets(j) })
		if q.Limit > 0 {
			page = page[:min(len(page), q.Limit-found)]
		}
		found += len(page)
		if len(page) > 0 {
			if err := yield(page); err != nil {
				return err
			}
		}
		if q.Limit > 0 && found >= q.Limit {
			return errEnough
		}
		return nil
	})
	return found, err
}

// errEnough ends a listing early.
var errEnough = errors.New("enough")

// each passes the runs that meet a list of conditions to yield, page by page.
func (v *View) each(ctx context.Context, c conditions, yield func([]*workflowpb.WorkflowExecutionInfo) error) error {
	query := c.all()
	var token []byte
	for {
		resp, err := v.runs.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			PageSize: listPage, NextPageToken: token, Query: query,
		})
		if isAttributeError(err) && query != c.plain {
			// A namespace without our search attributes: what they would have chosen is
			// chosen afterwards.
			query, token = c.plain, nil
			continue
		}
		if err != nil {
			return fmt.Errorf("list the runs of jobs: %w", err)
		}
		if err := yield(resp.GetExecutions()); err != nil {
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		}
		if token = resp.GetNextPageToken(); len(token) == 0 {
			return nil
		}
	}
}

// conditions is a visibility query: what any namespace understands, and what one
// with our search attributes does.
type conditions struct{ plain, attributes string }

func (c conditions) all() string { return c.plain + c.attributes }

// visibility is the query of open runs. It only narrows down: every run found is
// compared with q again.
func (v *View) visibility(q Query) conditions {
	c := conditions{plain: "WorkflowType = '" + workflows.WorkflowType + "' AND ExecutionStatus = 'Running'"}
	if len(q.Roles) > 0 {
		var names []string
		for _, role := range q.Roles {
			names = append(names, "WorkflowId STARTS_WITH 'job:"+string(role)+":'")
		}
		c.plain += " AND (" + strings.Join(names, " OR ") + ")"
	}
	for _, a := range []struct{ name, value string }{
		{workflows.AttributeUser, q.User},
		{workflows.AttributeProject, q.Project},
	} {
		if a.value != "" && quotable(a.value) {
			// Runs may have been started without attributes; those are looked at.
			c.attributes += " AND (" + a.name + " = '" + a.value + "' OR " + workflows.AttributeRole + " IS NULL)"
		}
	}
	return c
}

// quotable reports whether a value can stand between quotes in a visibility
// query. Servers do not agree on how quotes and backslashes are escaped (one cuts
// quotes off at the ends), so values with such are compared here instead; so are
// those the server has cut.
func quotable(s string) bool {
	return len(s) < attributeLimit && strings.IndexFunc(s, func(r rune) bool {
		return r == '\'' || r == '"' || r == '\\' || r == '`' || r == unicode.ReplacementChar || !unicode.IsPrint(r)
	}) < 0
}

// isAttributeError reports whether a query names a search attribute that the
// namespace does not have.
func isAttributeError(err error) bool {
	invalid, ok := errors.AsType[*serviceerror.InvalidArgument](err)
	return ok && strings.Contains(strings.ToLower(invalid.Error()), "search attribute")
}

// describeAll returns the jobs of those runs that are still open, in their order.
func (v *View) describeAll(ctx context.Context, infos []*workflowpb.WorkflowExecutionInfo) ([]Job, error) {
	runs := make([]run, len(infos))
	err := parallel(ctx, len(infos), func(ctx context.Context, i int) (err error) {
		e := infos[i].GetExecution()
		runs[i], err = v.describe(ctx, e.GetWorkflowId(), e.GetRunId())
		if errors.Is(err, errNoRun) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	runs = slices.DeleteFunc(runs, func(r run) bool { return r.DescribeWorkflowExecutionResponse == nil || !r.open() })
	ids := make([]identity, len(runs))
	err = parallel(ctx, len(runs), func(ctx context.Context, i int) error {
		ids[i] = v.identify(ctx, runs[i])
		return nil
	})
	if err != nil {
		return nil, err
	}
	rows := v.rowsOf(ctx, ids)
	jobs := make([]Job, len(runs))
	for i, r := range runs {
		jobs[i] = v.running(r, ids[i], rows[ids[i].Key])
	}
	return jobs, nil
}

// rowsOf are the rows of jobs, as far as their ids are known. A store that does
// not answer is no reason not to show what runs.
func (v *View) rowsOf(ctx context.Context, ids []identity) map[job.Key]*job.Row {
	out := map[job.Key]*job.Row{}
	if v.rows == nil {
		return out
	}
	var names []string
	for _, id := range ids {
		if id.JobID != "" {
			names = append(names, id.JobID)
		}
	}
	for chunk := range slices.Chunk(names, listPage) {
		rows, err := v.rows.List(ctx, store.Filter{JobIDs: chunk, Limit: len(chunk) * len(job.Roles())})
		if err != nil {
			return out
		}
		for i := range rows {
			out[rows[i].Key()] = &rows[i]
		}
	}
	return out
}

// ErrRuns is what an error of Temporal matches.
var ErrRuns = errors.New("the runs of jobs cannot be seen")

// Ended passes the jobs of a query that have ended to yield, the one that ended
// last first, page by page, and returns how many there were; those in except are
// left out. A job whose row says how it ended, but that runs again, has not ended.
// Where Temporal does not answer, such jobs are passed all the same, and the error
// matches ErrRuns.
func (v *View) Ended(ctx context.Context, q Query, except map[job.Key]bool, yield func([]Job) error) (int, error) {
	statuses, asked := q.ended()
	if !asked {
		return 0, nil
	}
	var blind error
	f := store.Filter{
		Roles: q.Roles, Statuses: statuses, Codes: q.Codes, UserID: q.User, ProjectID: q.Project, Since: q.Since,
		Limit: listPage,
	}
	found := 0
	again, err := v.runningAgain(ctx, q.Limit)
	if err != nil {
		blind = fmt.Errorf("%w: %w", ErrRuns, err)
	}
	for {
		rows, err := v.rows.List(ctx, f)
		if err != nil {
			return found, err
		}
		var running map[string]bool
		if blind == nil {
			if running, err = again(rows); err != nil {
				blind = fmt.Errorf("%w: %w", ErrRuns, err)
			}
		}
		var page []Job
		for _, row := range rows {
			if !running[job.WorkflowID(row.Role, row.JobID)] && !except[row.Key()] {
				page = append(page, v.ended(row))
			}
		}
		if q.Limit > 0 {
			page = page[:min(len(page), q.Limit-found)]
		}
		found += len(page)
		if len(page) > 0 {
			if err := yield(page); err != nil {
				return found, err
			}
		}
		if len(rows) < f.Limit || q.Limit > 0 && found >= q.Limit {
			return found, blind
		}
		f.After = &rows[len(rows)-1]
	}
}

// runningAgain returns what tells which of the rows' jobs have an open run, by
// workflow id. Where many rows are asked for, what is open is listed once.
func (v *View) runningAgain(ctx context.Context, limit int) (func([]job.Row) (map[string]bool, error), error) {
	if v.runs == nil {
		return func([]job.Row) (map[string]bool, error) { return nil, nil }, nil
	}
	if limit > 0 && limit <= manyRows {
		return func(rows []job.Row) (map[string]bool, error) { return v.openOf(ctx, rows) }, nil
	}
	open := map[string]*workflowpb.WorkflowExecutionInfo{}
	err := v.each(ctx, v.visibility(Query{}), func(page []*workflowpb.WorkflowExecutionInfo) error {
		for _, info := range page {
			open[info.GetExecution().GetWorkflowId()] = info
		}
		return nil
	})
	return func(rows []job.Row) (map[string]bool, error) {
		var infos []*workflowpb.WorkflowExecutionInfo
		for _, row := range rows {
			if info := open[job.WorkflowID(row.Role, row.JobID)]; info != nil {
				infos = append(infos, info)
			}
		}
		return v.reallyOpen(ctx, infos)
	}, err
}

// manyRows is from how many rows on it is cheaper to list all open runs.
const manyRows = 500

// openOf asks for the open runs of the rows' jobs alone.
func (v *View) openOf(ctx context.Context, rows []job.Row) (map[string]bool, error) {
	var infos []*workflowpb.WorkflowExecutionInfo
	for chunk := range slices.Chunk(rows, idsPage) {
		var ids []string
		for _, row := range chunk {
			if !strings.HasPrefix(row.JobID, job.RejectedID("")) {
				ids = append(ids, "'"+job.WorkflowID(row.Role, row.JobID)+"'")
			}
		}
		if len(ids) == 0 {
			continue
		}
		query := "ExecutionStatus = 'Running' AND WorkflowId IN (" + strings.Join(ids, ", ") + ")"
		err := v.each(ctx, conditions{plain: query}, func(page []*workflowpb.WorkflowExecutionInfo) error {
			infos = append(infos, page...)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return v.reallyOpen(ctx, infos)
}

// reallyOpen describes runs that were listed as open: visibility is written after
// the fact, and they may have ended.
func (v *View) reallyOpen(ctx context.Context, infos []*workflowpb.WorkflowExecutionInfo) (map[string]bool, error) {
	open := make([]bool, len(infos))
	err := parallel(ctx, len(infos), func(ctx context.Context, i int) error {
		e := infos[i].GetExecution()
		r, err := v.describe(ctx, e.GetWorkflowId(), e.GetRunId())
		if errors.Is(err, errNoRun) {
			return nil
		}
		open[i] = err == nil && r.open()
		return err
	})
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for i, info := range infos {
		if open[i] {
			out[info.GetExecution().GetWorkflowId()] = true
		}
	}
	return out, nil
}

// parallel calls do for 0 to n-1, some at once, until one fails.
func parallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(describes)
	for i := range n {
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}
