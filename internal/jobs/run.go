package jobs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// errInput means that a run's input cannot be read. It never carries the
// converter's own error, which may quote the input.
var (
	errInput = errors.New("the input of the run cannot be read")
	errNoRun = errors.New("no such run")
)

// codeWorkflow stands for a workflow task that fails again and again: the code
// of the workflow does, or its payloads cannot be decrypted.
const codeWorkflow = "workflow_task_failing"

// Codes the bridge gives to jobs whose run was closed from outside.
const (
	codeTerminated = "terminated"
	codeTimedOut   = "timed_out"
)

// run is a described run.
type run struct {
	*workflowservice.DescribeWorkflowExecutionResponse
}

func (r run) info() *workflowpb.WorkflowExecutionInfo { return r.GetWorkflowExecutionInfo() }
func (r run) id() string                              { return r.info().GetExecution().GetRunId() }
func (r run) workflowID() string                      { return r.info().GetExecution().GetWorkflowId() }
func (r run) open() bool                              { return isOpen(r.info().GetStatus()) }

func isOpen(s enumspb.WorkflowExecutionStatus) bool {
	return s == enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING || s == enumspb.WORKFLOW_EXECUTION_STATUS_PAUSED
}

// describe returns a run; without a run id the latest one. It returns errNoRun
// where there is none, or none of ours.
func (v *View) describe(ctx context.Context, workflowID, runID string) (run, error) {
	resp, err := v.runs.DescribeWorkflowExecution(ctx, workflowID, runID)
	if _, missing := errors.AsType[*serviceerror.NotFound](err); missing {
		return run{}, errNoRun
	}
	if err != nil {
		return run{}, fmt.Errorf("describe the run of a job: %w", err)
	}
	if resp.GetWorkflowExecutionInfo().GetType().GetName() != workflows.WorkflowType {
		return run{}, errNoRun
	}
	return run{resp}, nil
}

// parseWorkflowID takes a workflow id apart. jobID is empty for the hashed form.
func parseWorkflowID(id string) (role job.Role, jobID string, ok bool) {
	prefix, rest, ok := strings.Cut(id, ":")
	if !ok || prefix != "job" {
		return "", "", false
	}
	name, rest, ok := strings.Cut(rest, ":")
	role, err := job.ParseRole(name)
	if !ok || err != nil {
		return "", "", false
	}
	if hash, hashed := strings.CutPrefix(rest, "h:"); hashed {
		return role, "", len(hash) == 32 && strings.Trim(hash, "0123456789abcdef") == ""
	}
	return role, rest, job.WorkflowID(role, rest) == id
}

// identity is whose job a run is, and which entry it was started for.
type identity struct {
	job.Key // without a JobID where only a hash of it can be read
	user    string
	project string
	entryID string
	stream  string
	input   *job.Job // where it had to be read
}

// identify reads identifiers from what Temporal shows of a run: the workflow id,
// the search attributes, the memo. Where they are not enough it reads the input;
// if that cannot be done, the rest has to do.
func (v *View) identify(ctx context.Context, r run) identity {
	info := r.info()
	role, jobID, _ := parseWorkflowID(r.workflowID())
	id := identity{
		Key:     job.Key{Role: role, JobID: jobID},
		user:    attribute(info, workflows.AttributeUser),
		project: attribute(info, workflows.AttributeProject),
		entryID: v.memo(info.GetMemo(), workflows.MemoEntryID),
		stream:  v.memo(info.GetMemo(), workflows.MemoStream),
	}
	// A run may have been started without attributes, and long values are cut.
	if jobID == "" || attribute(info, workflows.AttributeRole) == "" ||
		len(id.user) >= attributeLimit || len(id.project) >= attributeLimit {
		if in, err := v.input(ctx, r.workflowID(), r.id()); err == nil {
			id.input = &in.Job
			id.JobID, id.user, id.project = in.Job.ID, in.Job.UserID, in.Job.ProjectID
		}
	}
	return id
}

// attributeLimit is what the server keeps of a search attribute, in characters,
// and so the least length in bytes of one that may have been cut.
const attributeLimit = 255

// attribute is the value of a search attribute, which is never encrypted.
func attribute(info *workflowpb.WorkflowExecutionInfo, name string) string {
	return text(converter.GetDefaultDataConverter(), info.GetSearchAttributes().GetIndexedFields()[name])
}

func (v *View) memo(m *commonpb.Memo, name string) string {
	return text(v.payloads, m.GetFields()[name])
}

func text(c converter.DataConverter, p *commonpb.Payload) string {
	var s string
	if p == nil || c.FromPayload(p, &s) != nil {
		return ""
	}
	return s
}

// input reads what a run was started with. It holds content.
func (v *View) input(ctx context.Context, workflowID, runID string) (workflows.Input, error) {
	events := v.runs.GetWorkflowHistory(ctx, workflowID, runID, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	if !events.HasNext() {
		return workflows.Input{}, errNoRun
	}
	event, err := events.Next()
	if _, missing := errors.AsType[*serviceerror.NotFound](err); missing {
		return workflows.Input{}, errNoRun
	}
	if err != nil {
		return workflows.Input{}, fmt.Errorf("read the history of a job: %w", err)
	}
	return v.decodeInput(event.GetWorkflowExecutionStartedEventAttributes().GetInput())
}

func (v *View) decodeInput(payloads *commonpb.Payloads) (workflows.Input, error) {
	var in workflows.Input
	if v.payloads.FromPayloads(payloads, &in) != nil || in.Job.ID == "" {
		return workflows.Input{}, errInput
	}
	return in, nil
}

// running is the job of an open run, as the server describes it. row may be nil.
func (v *View) running(r run, id identity, row *job.Row) Job {
	j := Job{Role: id.Role, JobID: id.JobID}
	switch {
	case row != nil:
		j.fill(*row)
		if row.RunID == r.id() {
			j.outcome(*row) // its books are being finished
		} else {
			j.Was = Status(row.Status)
		}
	case id.input != nil:
		j.NodptWorkflowID, j.NodeID, j.ConnectionID = id.input.WorkflowID, id.input.NodeID, id.input.ConnectionID
	}
	if row == nil || id.input != nil {
		j.UserID, j.ProjectID = id.user, id.project
	}
	if id.entryID != "" {
		j.Stream, j.EntryID, j.EnqueuedAt = id.stream, id.entryID, plausible(id.entryID)
	}
	j.WorkflowID, j.RunID = r.workflowID(), r.id()
	j.StartedAt = timeOf(r.info().GetStartTime())
	j.UI = v.link(j.WorkflowID, j.RunID)
	j.measure(v.now())
	v.progress(&j, r)
	return j
}

// plausible is the time in an entry id, if it is one: producers may choose ids.
func plausible(entryID string) time.Time {
	at := job.EntryTime(entryID)
	if at.Year() < 2000 {
		return time.Time{}
	}
	return at
}

// progress reads from a described run what it is at.
func (v *View) progress(j *Job, r run) {
	j.Canceling = r.GetWorkflowExtendedInfo().GetCancelRequested()
	if r.info().GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_PAUSED {
		j.Paused = true
	}
	j.Status = Running
	p := r.pending()
	if p == nil {
		if task := r.GetPendingWorkflowTask(); task != nil {
			switch {
			case task.GetAttempt() > 1:
				j.Status, j.Step, j.Code, j.Attempts = Retrying, StepWorkflow, codeWorkflow, int(task.GetAttempt())
			case task.GetState() == enumspb.PENDING_WORKFLOW_TASK_STATE_SCHEDULED:
				j.Status, j.Step = Queued, StepWorkflow
			}
		}
		return
	}
	j.Step = stepOf(p.GetActivityType().GetName())
	j.Attempts = int(p.GetAttempt())
	j.NextAttemptAt = timeOf(p.GetNextAttemptScheduleTime())
	if f := p.GetLastFailure(); f != nil {
		j.Code, j.Message, _ = v.failure(f)
	}
	switch p.GetState() {
	case enumspb.PENDING_ACTIVITY_STATE_SCHEDULED:
		j.Status = Queued
	case enumspb.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED:
		j.Canceling = true
	case enumspb.PENDING_ACTIVITY_STATE_PAUSED, enumspb.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED:
		j.Paused = true
	case enumspb.PENDING_ACTIVITY_STATE_STARTED, enumspb.PENDING_ACTIVITY_STATE_UNSPECIFIED:
	}
	if p.GetAttempt() > 1 || p.GetLastFailure() != nil {
		j.Status = Retrying
	}
	if j.Step == StepCalling {
		if report := v.report(p); report.Model != "" {
			j.Model = report.Model
		}
	}
}

// pending is the activity an open run waits for, nil if there is none.
func (r run) pending() *workflowpb.PendingActivityInfo {
	if all := r.GetPendingActivities(); len(all) > 0 {
		return all[0] // a job does one thing after the other
	}
	return nil
}

// stepOf is the step an activity does.
func stepOf(activity string) Step {
	switch activity {
	case workflows.ActivityReadRow:
		return StepReading
	case workflows.ActivityPersist:
		return StepStoring
	case workflows.ActivityPublish:
		return StepPublishing
	case workflows.ActivityDeadLetter:
		return StepBurying
	case workflows.ActivityAcknowledge:
		return StepAcknowledge
	default:
		return StepCalling
	}
}

// report is what a role activity says of itself with its heartbeats, as far as
// it is shown.
type report struct {
	Attempt  int       `json:"attempt"`
	State    string    `json:"state"`
	Since    time.Time `json:"since"`
	Model    string    `json:"model"`
	Endpoint string    `json:"endpoint"`
}

// report is empty where there was no heartbeat, or one of another version.
func (v *View) report(p *workflowpb.PendingActivityInfo) report {
	var r report
	if p.GetHeartbeatDetails() == nil || v.payloads.FromPayloads(p.GetHeartbeatDetails(), &r) != nil {
		return report{}
	}
	return r
}

// failure is the code and the message of a failure as the executor makes them, and,
// where the message is for users, what it tells operators besides: none of them
// holds content. Failures the server makes have a code here, too.
func (v *View) failure(f *failurepb.Failure) (code, message, cause string) {
	for f.GetActivityFailureInfo() != nil && f.GetCause() != nil {
		f = f.GetCause()
	}
	if f.GetEncodedAttributes() != nil {
		clone := proto.CloneOf(f)
		converter.DecodeCommonFailureAttributes(v.payloads, clone)
		f = clone
	}
	message = f.GetMessage()
	switch {
	case f.GetApplicationFailureInfo() != nil:
		return f.GetApplicationFailureInfo().GetType(), message, v.cause(f)
	case f.GetTimeoutFailureInfo() != nil:
		if f.GetTimeoutFailureInfo().GetTimeoutType() == enumspb.TIMEOUT_TYPE_HEARTBEAT {
			return "worker_lost", "the worker stopped giving signs of life", ""
		}
		return "activity_timeout", message, ""
	case f.GetCanceledFailureInfo() != nil:
		return workflows.CodeCanceled, message, ""
	case f.GetTerminatedFailureInfo() != nil:
		return codeTerminated, message, ""
	default:
		return "failure", message, ""
	}
}

// cause is what a role activity's error tells operators. It is empty where there is
// nothing, where it was encrypted with another key, or is of another version.
func (v *View) cause(f *failurepb.Failure) string {
	var detail workflows.Failure
	details := f.GetApplicationFailureInfo().GetDetails()
	if len(details.GetPayloads()) == 0 || v.payloads.FromPayloads(details, &detail) != nil {
		return ""
	}
	return detail.Cause
}

// timeOf is zero where there is no time: AsTime would make it 1970.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime().UTC()
}
