package retry

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	sdkpb "go.temporal.io/api/sdk/v1"
	"go.temporal.io/api/serviceerror"
	taskqueuepb "go.temporal.io/api/taskqueue/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/nodpt/executor/workflows"
)

// fakeService is a Temporal server that knows one run.
type fakeService struct {
	workflowservice.WorkflowServiceClient

	status   enumspb.WorkflowExecutionStatus
	event    *historypb.HistoryEvent
	err      error // of everything
	open     bool  // a run is open when SignalWithStart comes
	started  *workflowservice.StartWorkflowExecutionRequest
	signaled *workflowservice.SignalWithStartWorkflowExecutionRequest
}

func (f *fakeService) DescribeWorkflowExecution(
	context.Context, *workflowservice.DescribeWorkflowExecutionRequest, ...grpc.CallOption,
) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{
		Execution: &commonpb.WorkflowExecution{WorkflowId: "w", RunId: "r"}, Status: f.status,
	}}, f.err
}

func (f *fakeService) GetWorkflowExecutionHistory(
	_ context.Context, req *workflowservice.GetWorkflowExecutionHistoryRequest, _ ...grpc.CallOption,
) (*workflowservice.GetWorkflowExecutionHistoryResponse, error) {
	if f.err != nil {
		return nil, f.err
	}
	resp := &workflowservice.GetWorkflowExecutionHistoryResponse{History: &historypb.History{}}
	if f.event != nil && req.GetExecution().GetRunId() == "r" {
		resp.History.Events = []*historypb.HistoryEvent{f.event}
	}
	return resp, nil
}

func (f *fakeService) StartWorkflowExecution(
	_ context.Context, req *workflowservice.StartWorkflowExecutionRequest, _ ...grpc.CallOption,
) (*workflowservice.StartWorkflowExecutionResponse, error) {
	f.started = req
	return &workflowservice.StartWorkflowExecutionResponse{RunId: "next"}, nil
}

func (f *fakeService) SignalWithStartWorkflowExecution(
	_ context.Context, req *workflowservice.SignalWithStartWorkflowExecutionRequest, _ ...grpc.CallOption,
) (*workflowservice.SignalWithStartWorkflowExecutionResponse, error) {
	f.signaled = req
	return &workflowservice.SignalWithStartWorkflowExecutionResponse{RunId: "next", Started: !f.open}, nil
}

func payload(t *testing.T, v any) *commonpb.Payload {
	t.Helper()
	p, err := converter.GetDefaultDataConverter().ToPayload(v)
	require.NoError(t, err)
	return p
}

// firstEvent is how a run of ours begins.
func firstEvent(t *testing.T) *historypb.HistoryEvent {
	t.Helper()
	keyword := func(v string) *commonpb.Payload {
		p := payload(t, v)
		p.Metadata["type"] = []byte("Keyword")
		return p
	}
	return &historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
		UserMetadata: &sdkpb.UserMetadata{
			Summary: payload(t, "agent"), Details: payload(t, "- Job: `j1`\n"),
		},
		Attributes: &historypb.HistoryEvent_WorkflowExecutionStartedEventAttributes{
			WorkflowExecutionStartedEventAttributes: &historypb.WorkflowExecutionStartedEventAttributes{
				WorkflowType: &commonpb.WorkflowType{Name: workflows.WorkflowType},
				TaskQueue:    &taskqueuepb.TaskQueue{Name: workflows.QueueWorkflows},
				// Opaque, as if encrypted.
				Input: &commonpb.Payloads{Payloads: []*commonpb.Payload{{Data: []byte{1, 2, 3}}}},
				Memo: &commonpb.Memo{Fields: map[string]*commonpb.Payload{
					workflows.MemoEntryID: payload(t, "1-1"), workflows.MemoStream: payload(t, "jobs:agent"), "other": payload(t, "kept"),
				}},
				SearchAttributes: &commonpb.SearchAttributes{IndexedFields: map[string]*commonpb.Payload{
					workflows.AttributeRole: keyword("agent"), workflows.AttributeModel: keyword("small"),
				}},
				Header:   &commonpb.Header{Fields: map[string]*commonpb.Payload{"h": payload(t, "v")}},
				Priority: &commonpb.Priority{PriorityKey: 2},
			},
		},
	}
}

func TestAgainStartsTheSame(t *testing.T) {
	t.Parallel()
	f := &fakeService{event: firstEvent(t)}
	before := proto.CloneOf(f.event)
	runs := &Temporal{Service: f, Namespace: "ns", Identity: "me@here", Converter: converter.GetDefaultDataConverter()}
	id, err := runs.Again(t.Context(), Run{WorkflowID: "w", RunID: "r"}, Request{ID: "q", Reason: "the LLM\nis back `now`"})
	require.NoError(t, err)
	require.Equal(t, "next", id)
	require.Nil(t, f.signaled)
	require.True(t, proto.Equal(before, f.event), "what was read stays as it is")

	began := f.event.GetWorkflowExecutionStartedEventAttributes()
	want := &workflowservice.StartWorkflowExecutionRequest{
		Namespace: "ns", WorkflowId: "w", WorkflowType: began.GetWorkflowType(), TaskQueue: began.GetTaskQueue(), Input: began.GetInput(),
		Identity: "me@here", RequestId: "q",
		WorkflowIdReusePolicy:    enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		WorkflowIdConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		// Without entry and stream: the new run speaks for itself.
		Memo:             &commonpb.Memo{Fields: map[string]*commonpb.Payload{"other": payload(t, "kept")}},
		SearchAttributes: began.GetSearchAttributes(),
		Header:           began.GetHeader(),
		Priority:         began.GetPriority(),
		UserMetadata: &sdkpb.UserMetadata{
			Summary: payload(t, "agent"),
			Details: payload(t, "- Job: `j1`\n- Retry of run: `r`\n- Retried by: `me@here`\n- Reason: `the LLM_is back _now_`\n"),
		},
	}
	require.True(t, proto.Equal(want, f.started), f.started.String())
}

func TestAgainWithAnOverride(t *testing.T) {
	t.Parallel()
	f := &fakeService{event: firstEvent(t)}
	runs := &Temporal{Service: f, Namespace: "ns", Identity: "me@here", Converter: converter.GetDefaultDataConverter()}
	override := workflows.Override{Model: "large", MaxTokens: 7, Force: true}
	id, err := runs.Again(t.Context(), Run{WorkflowID: "w", RunID: "r"}, Request{ID: "q", Override: override})
	require.NoError(t, err)
	require.Equal(t, "next", id)
	require.Nil(t, f.started)
	require.Equal(t, workflows.OverrideSignal, f.signaled.GetSignalName())
	var got workflows.Override
	require.NoError(t, runs.Converter.FromPayloads(f.signaled.GetSignalInput(), &got))
	require.Equal(t, override, got)
	require.Equal(t, "q", f.signaled.GetRequestId())
	require.Equal(t, enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE, f.signaled.GetWorkflowIdReusePolicy())
	require.Equal(t, []byte{1, 2, 3}, f.signaled.GetInput().GetPayloads()[0].GetData())
	require.NotContains(t, f.signaled.GetMemo().GetFields(), workflows.MemoEntryID)
	model := f.signaled.GetSearchAttributes().GetIndexedFields()[workflows.AttributeModel]
	require.Equal(t, `"large"`, string(model.GetData()))
	require.Equal(t, "Keyword", string(model.GetMetadata()["type"]))
	old := f.event.GetWorkflowExecutionStartedEventAttributes().GetSearchAttributes().GetIndexedFields()[workflows.AttributeModel]
	require.Equal(t, `"small"`, string(old.GetData()))

	f.open = true
	_, err = runs.Again(t.Context(), Run{WorkflowID: "w", RunID: "r"}, Request{ID: "q", Override: override})
	require.Equal(t, &OpenError{"next"}, err)
}

// The details of a retry of a retry tell of the last one.
func TestDetailsDoNotGrow(t *testing.T) {
	t.Parallel()
	f := &fakeService{event: firstEvent(t)}
	runs := &Temporal{Service: f, Namespace: "ns", Identity: "me@here", Converter: converter.GetDefaultDataConverter()}
	for range 3 {
		_, err := runs.Again(t.Context(), Run{WorkflowID: "w", RunID: "r"}, Request{ID: "q", Reason: strings.Repeat("x", 1000)})
		require.NoError(t, err)
		f.event.UserMetadata = f.started.GetUserMetadata()
	}
	var details string
	require.NoError(t, runs.Converter.FromPayload(f.event.GetUserMetadata().GetDetails(), &details))
	require.Equal(t, 1, strings.Count(details, retryOf))
	require.Less(t, len(details), 700)

	require.Contains(t, details, "- Job: `j1`")

	// Without a reason.
	_, err := runs.Again(t.Context(), Run{WorkflowID: "w", RunID: "r"}, Request{ID: "q"})
	require.NoError(t, err)
	require.NoError(t, runs.Converter.FromPayload(f.started.GetUserMetadata().GetDetails(), &details))
	require.Contains(t, details, "Reason: `-`")

	// Details nobody here can read stay as they are.
	f.event.UserMetadata.Details = &commonpb.Payload{Metadata: map[string][]byte{"encoding": []byte("binary/encrypted")}}
	_, err = runs.Again(t.Context(), Run{WorkflowID: "w", RunID: "r"}, Request{ID: "q"})
	require.NoError(t, err)
	require.True(t, proto.Equal(f.event.GetUserMetadata(), f.started.GetUserMetadata()))
}

func TestCurrent(t *testing.T) {
	t.Parallel()
	for status, open := range map[enumspb.WorkflowExecutionStatus]bool{
		enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING:    true,
		enumspb.WORKFLOW_EXECUTION_STATUS_PAUSED:     true,
		enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED:  false,
		enumspb.WORKFLOW_EXECUTION_STATUS_FAILED:     false,
		enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:   false,
		enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED: false,
		enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT:  false,
	} {
		runs := &Temporal{Service: &fakeService{status: status}}
		run, err := runs.Current(t.Context(), "w")
		require.NoError(t, err)
		require.Equal(t, Run{WorkflowID: "w", RunID: "r", Open: open}, run, status)
	}
}

func TestErrorsOfTheServer(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		err  error
		want func(error) bool
	}{
		"not found":     {serviceerror.NewNotFound("x"), func(err error) bool { return errors.Is(err, ErrGone) }},
		"open":          {serviceerror.NewWorkflowExecutionAlreadyStarted("x", "q", "run"), is[*OpenError]},
		"invalid":       {serviceerror.NewInvalidArgument("x"), is[*RefusedError]},
		"precondition":  {serviceerror.NewFailedPrecondition("x"), is[*RefusedError]},
		"denied":        {serviceerror.NewPermissionDenied("x", "y"), is[*DeniedError]},
		"no namespace":  {serviceerror.NewNamespaceNotFound("x"), is[*DeniedError]},
		"unavailable":   {serviceerror.NewUnavailable("x"), transient},
		"busy":          {serviceerror.NewResourceExhausted(enumspb.RESOURCE_EXHAUSTED_CAUSE_RPS_LIMIT, "x"), transient},
		"too late":      {serviceerror.NewDeadlineExceeded("x"), transient},
		"anything else": {errors.New("x"), transient},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runs := &Temporal{Service: &fakeService{err: tt.err}, Converter: converter.GetDefaultDataConverter()}
			_, err := runs.Current(t.Context(), "w")
			require.True(t, tt.want(err), "%v", err)
			_, err = runs.Again(t.Context(), Run{WorkflowID: "w", RunID: "r"}, Request{})
			require.True(t, tt.want(err), "%v", err)
		})
	}

	t.Run("another workflow under a job's id", func(t *testing.T) {
		t.Parallel()
		event := firstEvent(t)
		event.GetWorkflowExecutionStartedEventAttributes().WorkflowType.Name = "Other"
		runs := &Temporal{Service: &fakeService{event: event}, Converter: converter.GetDefaultDataConverter()}
		_, err := runs.Again(t.Context(), Run{WorkflowID: "w", RunID: "r"}, Request{})
		require.True(t, is[*RefusedError](err), "%v", err)
	})
	t.Run("no history", func(t *testing.T) {
		t.Parallel()
		runs := &Temporal{Service: &fakeService{}, Converter: converter.GetDefaultDataConverter()}
		_, err := runs.Again(t.Context(), Run{WorkflowID: "w", RunID: "r"}, Request{})
		require.ErrorIs(t, err, ErrGone)
	})
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
