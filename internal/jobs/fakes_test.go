package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

const (
	openStatus   = enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING
	doneStatus   = enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED
	failedStatus = enumspb.WORKFLOW_EXECUTION_STATUS_FAILED

	canary = "CANARY of a job"
)

// noon is when everything begins.
func noon() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }

func at(seconds int) time.Time { return noon().Add(time.Duration(seconds) * time.Second) }

func stamp(seconds int) *timestamppb.Timestamp { return timestamppb.New(at(seconds)) }

// world is a fake of all three servers.
type world struct {
	mu   sync.Mutex
	runs []*fakeRun // the latest first
	rows []job.Row  // the newest first

	backlog map[string][]job.Entry
	dead    []stream.Dead // the newest first
	updates []job.Entry

	// failing makes every call to a server fail.
	failTemporal, failRows, failRedis error
	// bare is a namespace without search attributes.
	bare bool

	queries  []string
	canceled []string
	asked    []job.Key // rows that were read with their answer
	step     func(w *world)
}

type fakeRun struct {
	info    *workflowpb.WorkflowExecutionInfo
	pending *workflowpb.PendingActivityInfo
	task    *workflowpb.PendingWorkflowTaskInfo
	cancel  bool
	events  []*historypb.HistoryEvent
	// hidden: visibility still calls it open
	listed enumspb.WorkflowExecutionStatus
}

func newView(t *testing.T, w *world) *View {
	t.Helper()
	v := New(Config{
		Rows: fakeRows{w}, Runs: fakeRuns{w}, Streams: fakeStreams{w},
		Link: func(workflowID, runID string) string { return "ui/" + workflowID + "/" + runID },
		Now:  func() time.Time { return at(60) },
	})
	v.every = time.Millisecond
	return v
}

func payloads(t *testing.T, values ...any) *commonpb.Payloads {
	t.Helper()
	p, err := converter.GetDefaultDataConverter().ToPayloads(values...)
	require.NoError(t, err)
	return p
}

func payload(t *testing.T, value any) *commonpb.Payload {
	t.Helper()
	return payloads(t, value).GetPayloads()[0]
}

// started is a run of a job as the bridge starts it, ten seconds after its entry.
func started(t *testing.T, j job.Job, runID string, status enumspb.WorkflowExecutionStatus) *fakeRun {
	t.Helper()
	entry := fmt.Sprintf("%d-0", noon().UnixMilli())
	attributes := map[string]*commonpb.Payload{}
	for name, value := range map[string]string{
		workflows.AttributeRole: string(j.Role), workflows.AttributeUser: j.UserID, workflows.AttributeProject: j.ProjectID,
	} {
		if value != "" {
			attributes[name] = payload(t, value)
		}
	}
	r := &fakeRun{
		info: &workflowpb.WorkflowExecutionInfo{
			Execution:        &commonpb.WorkflowExecution{WorkflowId: job.WorkflowID(j.Role, j.ID), RunId: runID},
			FirstRunId:       runID,
			Type:             &commonpb.WorkflowType{Name: workflows.WorkflowType},
			Status:           status,
			StartTime:        stamp(10),
			SearchAttributes: &commonpb.SearchAttributes{IndexedFields: attributes},
			Memo: &commonpb.Memo{Fields: map[string]*commonpb.Payload{
				workflows.MemoEntryID: payload(t, entry), workflows.MemoStream: payload(t, j.Role.Stream()),
			}},
		},
		events: []*historypb.HistoryEvent{{
			EventId: 1, EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
			Attributes: &historypb.HistoryEvent_WorkflowExecutionStartedEventAttributes{
				WorkflowExecutionStartedEventAttributes: &historypb.WorkflowExecutionStartedEventAttributes{
					Input: payloads(t, workflows.Input{Job: j, Origin: job.Origin{Stream: j.Role.Stream(), EntryID: entry}}),
				},
			},
		}},
	}
	if status != openStatus {
		r.info.CloseTime = stamp(40)
	}
	return r
}

func agentJob(id string) job.Job {
	return job.Job{Role: job.Agent, ID: id, UserID: "u1", ProjectID: "p1", Task: canary, Payload: canary + " payload"}
}

// row is the row of a run.
func (r *fakeRun) row(t *testing.T, status job.Status, code string) job.Row {
	t.Helper()
	role, id, _ := parseWorkflowID(r.info.GetExecution().GetWorkflowId())
	entry := fmt.Sprintf("%d-0", noon().UnixMilli())
	row := job.Row{
		Role: role, JobID: id, Outcome: job.Outcome{
			Status: status, ErrorCode: code, Model: "m", PromptTokens: 3, CompletionTokens: 4, Attempts: 2,
			StartedAt: at(10), FinishedAt: at(40), Output: canary + " answer",
		},
		WorkflowID: r.info.GetExecution().GetWorkflowId(), RunID: r.info.GetExecution().GetRunId(),
		Effect: job.EntryEffect(role.Stream(), entry), Stream: role.Stream(), EntryID: entry, LastEntryID: entry,
		UserID: "u1", ProjectID: "p1", NodeID: "n1", ConnectionID: "c1", EnqueuedAt: noon(),
	}
	if status != job.Completed {
		row.Output = ""
	}
	return row
}

func failure(code, message string) *failurepb.Failure {
	return &failurepb.Failure{
		Message:     message,
		FailureInfo: &failurepb.Failure_ApplicationFailureInfo{ApplicationFailureInfo: &failurepb.ApplicationFailureInfo{Type: code}},
	}
}

type fakeRuns struct{ *world }

func (f fakeRuns) ListWorkflow(_ context.Context, req *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queries = append(f.queries, req.GetQuery())
	if f.failTemporal != nil {
		return nil, f.failTemporal
	}
	if f.bare && strings.Contains(req.GetQuery(), "JobRole") {
		return nil, serviceerror.NewInvalidArgument("invalid query: column name 'JobRole' is not a valid search attribute")
	}
	// The parts of a query that this package makes; the rest is for a real server.
	resp := &workflowservice.ListWorkflowExecutionsResponse{}
	var found []*workflowpb.WorkflowExecutionInfo
	for _, r := range f.runs {
		id, status := r.info.GetExecution().GetWorkflowId(), r.info.GetStatus()
		if r.listed != 0 {
			status = r.listed
		}
		if strings.Contains(req.GetQuery(), "'Running'") && status != openStatus ||
			strings.Contains(req.GetQuery(), "WorkflowId IN") && !strings.Contains(req.GetQuery(), "'"+id+"'") ||
			strings.Contains(req.GetQuery(), "WorkflowId = ") && !strings.Contains(req.GetQuery(), "'"+id+"'") {
			continue
		}
		found = append(found, r.info)
	}
	begin := len(req.GetNextPageToken())
	end := min(begin+2, len(found)) // pages are small, whatever was asked for
	if resp.Executions = found[begin:end]; end < len(found) {
		resp.NextPageToken = []byte(strings.Repeat("x", end))
	}
	return resp, nil
}

func (f fakeRuns) find(workflowID, runID string) *fakeRun {
	for _, r := range f.runs {
		if e := r.info.GetExecution(); e.GetWorkflowId() == workflowID && (runID == "" || e.GetRunId() == runID) {
			return r
		}
	}
	return nil
}

func (f fakeRuns) DescribeWorkflowExecution(_ context.Context, workflowID, runID string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.step != nil {
		f.step(f.world)
	}
	if f.failTemporal != nil {
		return nil, f.failTemporal
	}
	r := f.find(workflowID, runID)
	if r == nil {
		return nil, serviceerror.NewNotFound("no such workflow")
	}
	resp := &workflowservice.DescribeWorkflowExecutionResponse{
		WorkflowExecutionInfo: r.info, PendingWorkflowTask: r.task,
		WorkflowExtendedInfo: &workflowpb.WorkflowExecutionExtendedInfo{CancelRequested: r.cancel},
	}
	if r.pending != nil {
		resp.PendingActivities = []*workflowpb.PendingActivityInfo{r.pending}
	}
	return resp, nil
}

func (f fakeRuns) GetWorkflowHistory(_ context.Context, workflowID, runID string, _ bool, _ enumspb.HistoryEventFilterType) client.HistoryEventIterator {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.find(workflowID, runID)
	if r == nil || r.events == nil {
		return &fakeEvents{err: serviceerror.NewNotFound("no such history")}
	}
	return &fakeEvents{events: r.events}
}

func (f fakeRuns) CancelWorkflow(_ context.Context, workflowID, runID string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failTemporal != nil {
		return f.failTemporal
	}
	r := f.find(workflowID, runID)
	if r == nil || r.info.GetStatus() != openStatus {
		return serviceerror.NewNotFound("workflow execution already completed")
	}
	r.cancel = true
	f.canceled = append(f.canceled, workflowID+" "+runID)
	return nil
}

type fakeEvents struct {
	events []*historypb.HistoryEvent
	err    error
}

func (f *fakeEvents) HasNext() bool { return f.err != nil || len(f.events) > 0 }

func (f *fakeEvents) Next() (*historypb.HistoryEvent, error) {
	if f.err != nil {
		err := f.err
		f.err = nil
		return nil, err
	}
	e := f.events[0]
	f.events = f.events[1:]
	return e, nil
}

type fakeRows struct{ *world }

func (f fakeRows) List(_ context.Context, filter store.Filter) ([]job.Row, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failRows != nil {
		return nil, f.failRows
	}
	has := func(all int, contains bool) bool { return all == 0 || contains }
	var out []job.Row
	behind := filter.After == nil
	for _, row := range f.rows {
		if !behind {
			behind = row.Key() == filter.After.Key()
			continue
		}
		if has(len(filter.Roles), slices.Contains(filter.Roles, row.Role)) && has(len(filter.Statuses), slices.Contains(filter.Statuses, row.Status)) &&
			has(len(filter.Codes), slices.Contains(filter.Codes, row.ErrorCode)) && has(len(filter.JobIDs), slices.Contains(filter.JobIDs, row.JobID)) &&
			(filter.UserID == "" || filter.UserID == row.UserID) && (filter.Since.IsZero() || !row.FinishedAt.Before(filter.Since)) &&
			len(out) < filter.Limit {
			row.Output = ""
			out = append(out, row)
		}
	}
	return out, nil
}

func (f fakeRows) Row(_ context.Context, key job.Key) (job.Row, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, key)
	for _, row := range f.rows {
		if row.Key() == key {
			return row, true, nil
		}
	}
	return job.Row{}, false, nil
}

type fakeStreams struct{ *world }

func (f fakeStreams) Backlog(_ context.Context, key string, limit int, more func(job.Entry) bool) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, e := range f.backlog[key] {
		if i == limit {
			return false, nil
		}
		if !more(e) {
			return true, nil
		}
	}
	return true, f.failRedis
}

// TailUpdates returns one entry at a time, and an error at the end.
func (f fakeStreams) TailUpdates(_ context.Context, _, after string, _ time.Duration) ([]job.Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failRedis != nil {
		return nil, f.failRedis
	}
	for _, e := range f.updates {
		if job.CompareEntryIDs(e.ID, after) > 0 {
			return []job.Entry{e}, nil
		}
	}
	return nil, errNoMore
}

// DeadLetters returns two at a time.
func (f fakeStreams) DeadLetters(_ context.Context, key string, r stream.DeadRange) ([]stream.Dead, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []stream.Dead
	for _, d := range f.dead {
		if d.Stream == key && !job.EntryTime(d.ID).Before(r.Since) && (r.Before == "" || job.CompareEntryIDs(d.ID, r.Before) < 0) && len(found) < 2 {
			found = append(found, d)
		}
	}
	return found, f.failRedis
}

var errNoMore = errors.New("no more updates")

func (f fakeStreams) Entry(_ context.Context, key, id string) (job.Entry, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.backlog[key] {
		if e.ID == id {
			return e, true, nil
		}
	}
	return job.Entry{}, false, f.failRedis
}

func (f fakeStreams) LastID(context.Context, string) (string, error) { return "0-0", f.failRedis }

func entry(role job.Role, id string, pairs ...string) job.Entry {
	e := job.Entry{Stream: role.Stream(), ID: id}
	for i := 0; i < len(pairs); i += 2 {
		e.Fields = append(e.Fields, job.Field{Name: pairs[i], Value: pairs[i+1]})
	}
	return e
}
