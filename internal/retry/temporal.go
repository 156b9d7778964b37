package retry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"unicode"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	sdkpb "go.temporal.io/api/sdk/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/proto"

	"github.com/nodpt/executor/workflows"
)

// Temporal is the Runs of a namespace of a Temporal server.
//
// A run is started again like the UI's "start workflow like this one" does, and
// not by a reset. The server takes no signal together with a reset, so that an
// override would come too late; it ends a run that is open in favour of the reset
// one; and it does not recognise the repeated request after a lost reply. Starting
// has none of that: it is refused while a run is open, and remembers the request.
type Temporal struct {
	Service   workflowservice.WorkflowServiceClient
	Namespace string
	Identity  string // who asks, as user@host
	Converter converter.DataConverter
}

// Current implements Runs.
func (t *Temporal) Current(ctx context.Context, workflowID string) (Run, error) {
	resp, err := t.Service.DescribeWorkflowExecution(ctx, &workflowservice.DescribeWorkflowExecutionRequest{
		Namespace: t.Namespace,
		Execution: &commonpb.WorkflowExecution{WorkflowId: workflowID},
	})
	if err != nil {
		return Run{}, typed("look at the run", err)
	}
	info := resp.GetWorkflowExecutionInfo()
	open := false
	switch info.GetStatus() {
	case enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, enumspb.WORKFLOW_EXECUTION_STATUS_PAUSED, enumspb.WORKFLOW_EXECUTION_STATUS_UNSPECIFIED:
		open = true
	default:
	}
	return Run{WorkflowID: workflowID, RunID: info.GetExecution().GetRunId(), Open: open}, nil
}

// Again implements Runs.
func (t *Temporal) Again(ctx context.Context, run Run, req Request) (string, error) {
	began, metadata, err := t.beginning(ctx, run)
	if err != nil {
		return "", err
	}
	if began.GetWorkflowType().GetName() != workflows.WorkflowType {
		return "", &RefusedError{"its run is of type " + began.GetWorkflowType().GetName() + ", which is none of ours"}
	}
	start := &workflowservice.StartWorkflowExecutionRequest{
		Namespace:                t.Namespace,
		WorkflowId:               run.WorkflowID,
		WorkflowType:             began.GetWorkflowType(),
		TaskQueue:                began.GetTaskQueue(),
		Input:                    began.GetInput(),
		Identity:                 t.Identity,
		RequestId:                req.ID,
		WorkflowIdReusePolicy:    enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		WorkflowIdConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		Memo:                     memo(began.GetMemo()),
		SearchAttributes:         attributes(began.GetSearchAttributes(), req.Override.Model),
		Header:                   began.GetHeader(),
		UserMetadata:             t.metadata(metadata, run, req),
		Priority:                 began.GetPriority(),
		WorkflowTaskTimeout:      began.GetWorkflowTaskTimeout(),
	}
	if req.Override == (workflows.Override{}) {
		resp, err := t.Service.StartWorkflowExecution(ctx, start)
		if err != nil {
			return "", typed("start the run", err)
		}
		return resp.GetRunId(), nil
	}
	return t.signalWithStart(ctx, start, req.Override)
}

// signalWithStart starts a run to which the signal is history when it begins.
func (t *Temporal) signalWithStart(ctx context.Context, start *workflowservice.StartWorkflowExecutionRequest, o workflows.Override) (string, error) {
	signal, err := t.Converter.ToPayloads(o)
	if err != nil {
		return "", &RefusedError{"the override cannot be encoded"}
	}
	resp, err := t.Service.SignalWithStartWorkflowExecution(ctx, &workflowservice.SignalWithStartWorkflowExecutionRequest{
		Namespace:             start.GetNamespace(),
		WorkflowId:            start.GetWorkflowId(),
		WorkflowType:          start.GetWorkflowType(),
		TaskQueue:             start.GetTaskQueue(),
		Input:                 start.GetInput(),
		Identity:              start.GetIdentity(),
		RequestId:             start.GetRequestId(),
		WorkflowIdReusePolicy: start.GetWorkflowIdReusePolicy(),
		Memo:                  start.GetMemo(),
		SearchAttributes:      start.GetSearchAttributes(),
		Header:                start.GetHeader(),
		UserMetadata:          start.GetUserMetadata(),
		Priority:              start.GetPriority(),
		WorkflowTaskTimeout:   start.GetWorkflowTaskTimeout(),
		SignalName:            workflows.OverrideSignal,
		SignalInput:           signal,
	})
	if err != nil {
		return "", typed("start the run", err)
	}
	if !resp.GetStarted() {
		// There is no other policy for this call. The run that is open has read its
		// signals at its beginning and does not look at this one.
		return "", &OpenError{resp.GetRunId()}
	}
	return resp.GetRunId(), nil
}

// beginning is the first event of a run.
func (t *Temporal) beginning(ctx context.Context, run Run) (*historypb.WorkflowExecutionStartedEventAttributes, *sdkpb.UserMetadata, error) {
	resp, err := t.Service.GetWorkflowExecutionHistory(ctx, &workflowservice.GetWorkflowExecutionHistoryRequest{
		Namespace:       t.Namespace,
		Execution:       &commonpb.WorkflowExecution{WorkflowId: run.WorkflowID, RunId: run.RunID},
		MaximumPageSize: 1,
	})
	if err != nil {
		return nil, nil, typed("read the run's input", err)
	}
	events := resp.GetHistory().GetEvents()
	if len(events) == 0 || events[0].GetWorkflowExecutionStartedEventAttributes() == nil {
		return nil, nil, ErrGone
	}
	return events[0].GetWorkflowExecutionStartedEventAttributes(), events[0].GetUserMetadata(), nil
}

// memo leaves out what would make the run speak for the entry: that one has been
// spoken for.
func memo(m *commonpb.Memo) *commonpb.Memo {
	fields := maps.Clone(m.GetFields())
	delete(fields, workflows.MemoEntryID)
	delete(fields, workflows.MemoStream)
	if len(fields) == 0 {
		return nil
	}
	return &commonpb.Memo{Fields: fields}
}

// attributes are those of the run, with the model that will be asked.
func attributes(a *commonpb.SearchAttributes, model string) *commonpb.SearchAttributes {
	old, ok := a.GetIndexedFields()[workflows.AttributeModel]
	if model == "" || !ok {
		return a
	}
	name, err := json.Marshal(model)
	if err != nil {
		return a
	}
	a = proto.CloneOf(a)
	a.IndexedFields[workflows.AttributeModel] = &commonpb.Payload{Metadata: old.GetMetadata(), Data: name}
	return a
}

// metadata adds to the details, which the UI shows above a run, where it came from.
func (t *Temporal) metadata(m *sdkpb.UserMetadata, run Run, req Request) *sdkpb.UserMetadata {
	var details string
	if d := m.GetDetails(); d != nil {
		if t.Converter.FromPayload(d, &details) != nil {
			return m // encrypted, with a key that is not here
		}
	}
	// A retry of a retry tells of the last one only.
	details, _, _ = strings.Cut(details, retryOf)
	details += fmt.Sprintf("%s%s\n- Retried by: %s\n- Reason: %s\n", retryOf, span(run.RunID), span(t.Identity), span(req.Reason))
	payload, err := t.Converter.ToPayload(details)
	if err != nil {
		return m
	}
	return &sdkpb.UserMetadata{Summary: m.GetSummary(), Details: payload}
}

const retryOf = "- Retry of run: "

// span is a text as a Markdown code span of one line.
func span(s string) string {
	const limit = 400
	n := 0
	s = strings.Map(func(r rune) rune {
		if n++; n > limit {
			return -1
		}
		if r == '`' || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, s)
	if strings.TrimSpace(s) == "" {
		s = "-"
	}
	return "`" + s + "`"
}

// typed turns an error of the server into one of Runs.
func typed(op string, err error) error {
	var (
		already  *serviceerror.WorkflowExecutionAlreadyStarted
		missing  *serviceerror.NotFound
		invalid  *serviceerror.InvalidArgument
		precond  *serviceerror.FailedPrecondition
		denied   *serviceerror.PermissionDenied
		nowhere  *serviceerror.NamespaceNotFound
		inactive *serviceerror.NamespaceInvalidState
	)
	switch {
	case errors.As(err, &already):
		return &OpenError{already.RunId}
	case errors.As(err, &nowhere):
		return &DeniedError{"the Temporal namespace does not exist: set TEMPORAL_NAMESPACE"}
	case errors.As(err, &denied), errors.As(err, &inactive):
		return &DeniedError{op + ": " + err.Error()}
	case errors.As(err, &missing):
		return ErrGone
	case errors.As(err, &invalid), errors.As(err, &precond):
		return &RefusedError{"Temporal refuses to " + op + ": " + err.Error()}
	default:
		return fmt.Errorf("%s: %w", op, err)
	}
}
