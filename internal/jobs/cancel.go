package jobs

import (
	"context"
	"errors"
	"fmt"

	"go.temporal.io/api/serviceerror"

	"github.com/nodpt/executor/internal/job"
)

// Result is what came of asking to cancel a job.
type Result string

// The results.
const (
	// Requested: the run was told. A call that is running hears of it with its next
	// heartbeat.
	Requested Result = "requested"
	// WouldCancel is Requested of a dry run.
	WouldCancel Result = "would_cancel"
	// AlreadyEnded: there is nothing to cancel any more.
	AlreadyEnded Result = "already_ended"
	// NotStarted: its entry waits in the stream, and has no run that could be told.
	NotStarted Result = "not_started"
	// NotFound: nothing is known of such a job.
	NotFound Result = "not_found"
	// NotCanceled: Temporal did not accept the request.
	NotCanceled Result = "error"
)

// Cancellation is the result for one job.
type Cancellation struct {
	Role       job.Role `json:"role,omitempty"`
	JobID      string   `json:"jobId"`
	Result     Result   `json:"result"`
	Status     Status   `json:"status,omitempty"` // of the job, as it was seen last
	Code       string   `json:"code,omitempty"`
	Message    string   `json:"message,omitempty"`
	WorkflowID string   `json:"temporalWorkflowId,omitempty"`
	RunID      string   `json:"runId,omitempty"`
}

// Cancel asks the run of a job to end. With dry it only says what it would do.
func (v *View) Cancel(ctx context.Context, f Found, dry bool) Cancellation {
	c := Cancellation{Role: f.Role, JobID: f.Name(), Status: f.Status, Code: f.Code, WorkflowID: f.WorkflowID, RunID: f.RunID}
	switch {
	case f.Ended():
		c.Result, c.Message = AlreadyEnded, "it is "+string(f.Status)
		return c
	case f.run == nil:
		c.Result = NotStarted
		c.Message = fmt.Sprintf("entry %s of %s was not started yet; cancel the job when it was", f.EntryID, f.Stream)
		return c
	case dry:
		c.Result = WouldCancel
		return c
	}
	err := v.runs.CancelWorkflow(ctx, f.WorkflowID, f.RunID)
	if _, missing := errors.AsType[*serviceerror.NotFound](err); missing {
		c.Result, c.Message = AlreadyEnded, "it ended a moment ago"
		if again, err := v.Again(ctx, f); err == nil {
			c.Status, c.Code = again.Status, again.Code
		}
		return c
	}
	if err != nil {
		c.Result, c.Message = NotCanceled, err.Error()
		return c
	}
	c.Result = Requested
	return c
}

// CancelAll cancels jobs, some at once, and returns the results in their order.
func (v *View) CancelAll(ctx context.Context, all []Found, dry bool) []Cancellation {
	results := make([]Cancellation, len(all))
	_ = parallel(ctx, len(all), func(ctx context.Context, i int) error {
		results[i] = v.Cancel(ctx, all[i], dry)
		return nil
	})
	return results
}

// Seen finds again the jobs of a listing, so that they can be canceled. Those that
// are gone meanwhile are left out.
func (v *View) Seen(ctx context.Context, listed []Job) ([]Found, error) {
	all := make([]*Found, len(listed))
	err := parallel(ctx, len(listed), func(ctx context.Context, i int) error {
		j := listed[i]
		f, found, err := v.look(ctx, job.Key{Role: j.Role, JobID: j.JobID}, j.WorkflowID)
		if found {
			all[i] = &f
		}
		return err
	})
	var out []Found
	for _, f := range all {
		if f != nil {
			out = append(out, *f)
		}
	}
	return out, err
}
