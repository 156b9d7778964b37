package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	enumspb "go.temporal.io/api/enums/v1"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
)

// ErrNotFound says that neither a row, nor a run, nor a waiting entry has an id.
var ErrNotFound = errors.New("no such job")

// AmbiguousError says that several roles have a job of that id.
type AmbiguousError struct {
	ID    string
	Roles []job.Role
}

// Error implements error.
func (e *AmbiguousError) Error() string {
	names := make([]string, len(e.Roles))
	for i, r := range e.Roles {
		names[i] = string(r)
	}
	return fmt.Sprintf("%d jobs have the id %q, one of each of the roles %s: choose one with --role", len(names), e.ID, strings.Join(names, ", "))
}

// backlogLimit is how many waiting entries of a stream are looked through for
// one job.
const backlogLimit = 20_000

// Found is what there is of a job.
type Found struct {
	Job
	key        job.Key
	workflowID string
	row        *job.Row
	run        *run // the latest
	entry      *job.Entry
}

// Ended reports whether the job has ended, with its books finished as far as that
// is its run's business.
func (f Found) Ended() bool { return !f.Status.Open() }

// Find looks for the job of an id: a jobId, the id of a rejected entry's row, or a
// workflow id. roles narrows the search, none stands for all. Without a row and a
// run it looks into the streams. The error matches ErrNotFound where there is
// nothing, and is an *AmbiguousError where several roles have such a job.
func (v *View) Find(ctx context.Context, id string, roles []job.Role) (Found, error) {
	if role, jobID, ok := parseWorkflowID(id); ok && (len(roles) == 0 || slices.Contains(roles, role)) {
		f, found, err := v.look(ctx, job.Key{Role: role, JobID: jobID}, id)
		if err != nil || found {
			return f, err
		}
		// A jobId may look like a workflow id.
	}
	if id == "" { // what is waiting may have no id, either
		return Found{}, fmt.Errorf("%w: %q", ErrNotFound, id)
	}
	if len(roles) == 0 {
		roles = job.Roles()
	}
	all := make([]*Found, len(roles))
	err := parallel(ctx, len(roles), func(ctx context.Context, i int) error {
		f, found, err := v.look(ctx, job.Key{Role: roles[i], JobID: id}, job.WorkflowID(roles[i], id))
		if found {
			all[i] = &f
		}
		return err
	})
	if err != nil {
		return Found{}, err
	}
	if !slices.ContainsFunc(all, func(f *Found) bool { return f != nil }) {
		if all, err = v.waiting(ctx, id, roles); err != nil {
			return Found{}, err
		}
	}
	all = slices.DeleteFunc(all, func(f *Found) bool { return f == nil })
	switch len(all) {
	case 0:
		return Found{}, fmt.Errorf("%w: %q", ErrNotFound, id)
	case 1:
		return *all[0], nil
	}
	ambiguous := &AmbiguousError{ID: id}
	for _, f := range all {
		ambiguous.Roles = append(ambiguous.Roles, f.key.Role)
	}
	return Found{}, ambiguous
}

// Again looks at a job that was found before.
func (v *View) Again(ctx context.Context, f Found) (Found, error) {
	next, found, err := v.look(ctx, f.key, f.workflowID)
	switch {
	case err != nil:
		return f, err
	case found:
		return next, nil
	case f.entry == nil:
		return f, fmt.Errorf("%w any more: %q", ErrNotFound, f.Name())
	default:
		// It still waits in the stream. Should its entry be deleted there, nobody can
		// tell that from outside.
		return f, nil
	}
}

// look reads the run and the row of a job, in this order: a run that is closed
// has written its row before.
func (v *View) look(ctx context.Context, key job.Key, workflowID string) (Found, bool, error) {
	f := Found{key: key, workflowID: workflowID}
	if v.runs != nil && !strings.HasPrefix(key.JobID, job.RejectedID("")) {
		r, err := v.describe(ctx, workflowID, "")
		switch {
		case err == nil:
			f.run = &r
		case !errors.Is(err, errNoRun):
			return f, false, err
		}
	}
	var id identity
	if f.run != nil {
		if id = v.identify(ctx, *f.run); key.JobID == "" {
			f.key.JobID = id.JobID
		}
		id.JobID = f.key.JobID
	}
	if v.rows != nil && f.key.JobID != "" {
		rows, err := v.rows.List(ctx, store.Filter{Roles: []job.Role{key.Role}, JobIDs: []string{f.key.JobID}, Limit: 1})
		if err != nil {
			return f, false, err
		}
		if len(rows) > 0 {
			f.row = &rows[0]
		}
	}
	switch {
	case f.run != nil && f.run.open():
		f.Job = v.running(*f.run, id, f.row)
	case f.row != nil:
		f.Job = v.ended(*f.row)
	case f.run != nil:
		var err error
		if f.Job, err = v.unsettled(ctx, *f.run, id); err != nil {
			return f, false, err
		}
	default:
		return f, false, nil
	}
	return f, true, nil
}

// unsettled is the job of a run that was closed and has no row: it was terminated a
// moment ago and the bridge will write one, or the store has lost it.
func (v *View) unsettled(ctx context.Context, r run, id identity) (Job, error) {
	j := v.running(r, id, nil)
	s, err := v.tell(ctx, r.info())
	if err != nil && !errors.Is(err, errNoRun) {
		return j, err
	}
	j.Step, j.Canceling, j.Paused, j.NextAttemptAt = "", false, false, time.Time{}
	j.Attempts, j.Code, j.Message = s.called, s.code, s.message
	switch r.info().GetStatus() {
	case enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED:
		j.Status = Completed
	case enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:
		j.Status = Canceled
	default:
		j.Status = Failed
	}
	j.FinishedAt = timeOf(r.info().GetCloseTime())
	j.measure(j.FinishedAt)
	return j, nil
}

// waiting looks for an id among the entries that wait to be started.
func (v *View) waiting(ctx context.Context, id string, roles []job.Role) ([]*Found, error) {
	all := make([]*Found, len(roles))
	if v.streams == nil {
		return all, nil
	}
	var mu sync.Mutex
	var cut []string
	err := parallel(ctx, len(roles), func(ctx context.Context, i int) error {
		complete, err := v.streams.Backlog(ctx, roles[i].Stream(), backlogLimit, func(e job.Entry) bool {
			if j, mine := jobOf(roles[i], e); mine && j.ID == id {
				all[i] = v.notStarted(j, e)
				return false
			}
			return true
		})
		if err == nil && !complete {
			mu.Lock()
			defer mu.Unlock()
			cut = append(cut, roles[i].Stream())
		}
		return err
	})
	if err == nil && len(cut) > 0 && !slices.ContainsFunc(all, func(f *Found) bool { return f != nil }) {
		slices.Sort(cut)
		return nil, fmt.Errorf("%w: %q has no run and no row; only the first %d entries that wait in %s were looked through",
			ErrNotFound, id, backlogLimit, strings.Join(cut, ", "))
	}
	return all, err
}

// jobOf is the job of an entry, as far as its identifiers can be read.
func jobOf(role job.Role, e job.Entry) (job.Job, bool) {
	decoded, err := job.Decode(role, e)
	if err == nil {
		return decoded.Job, true
	}
	rejected, ok := errors.AsType[*job.Rejection](err)
	if !ok {
		return job.Job{}, false
	}
	return rejected.Job, true
}

// notStarted is the job of an entry that has no run yet.
func (v *View) notStarted(j job.Job, e job.Entry) *Found {
	f := &Found{key: job.Key{Role: j.Role, JobID: j.ID}, workflowID: job.WorkflowID(j.Role, j.ID), entry: &e}
	f.Job = Job{
		Role: j.Role, JobID: j.ID, Status: Queued, Step: StepEntry,
		UserID: j.UserID, ProjectID: j.ProjectID, NodptWorkflowID: j.WorkflowID, NodeID: j.NodeID, ConnectionID: j.ConnectionID,
		EnqueuedAt: plausible(e.ID), Stream: e.Stream, EntryID: e.ID, WorkflowID: f.workflowID,
	}
	return f
}
