package bridge

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	namespacepb "go.temporal.io/api/namespace/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	sdklog "go.temporal.io/sdk/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// frontend is a workflow service on a pipe: it records what the SDK sends and
// answers as it is told.
type frontend struct {
	workflowservice.UnimplementedWorkflowServiceServer
	operatorservice.UnimplementedOperatorServiceServer

	mu         sync.Mutex
	starts     []*workflowservice.StartWorkflowExecutionRequest
	queries    []string
	registered []*operatorservice.AddSearchAttributesRequest

	start     func(n int, req *workflowservice.StartWorkflowExecutionRequest) error
	register  error
	describe  func() (*workflowservice.DescribeWorkflowExecutionResponse, error)
	lists     []*workflowservice.ListWorkflowExecutionsResponse
	history   []*historypb.HistoryEvent
	namespace string
}

func (f *frontend) GetSystemInfo(context.Context, *workflowservice.GetSystemInfoRequest) (*workflowservice.GetSystemInfoResponse, error) {
	return &workflowservice.GetSystemInfoResponse{Capabilities: &workflowservice.GetSystemInfoResponse_Capabilities{InternalErrorDifferentiation: true}}, nil
}

func (f *frontend) StartWorkflowExecution(_ context.Context, req *workflowservice.StartWorkflowExecutionRequest) (*workflowservice.StartWorkflowExecutionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts = append(f.starts, req)
	if f.start != nil {
		if err := f.start(len(f.starts), req); err != nil {
			return nil, serviceerror.ToStatus(err).Err()
		}
	}
	return &workflowservice.StartWorkflowExecutionResponse{RunId: "run-1", Started: true}, nil
}

func (f *frontend) AddSearchAttributes(_ context.Context, req *operatorservice.AddSearchAttributesRequest) (*operatorservice.AddSearchAttributesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.registered = append(f.registered, req)
	if f.register != nil {
		return nil, serviceerror.ToStatus(f.register).Err()
	}
	return &operatorservice.AddSearchAttributesResponse{}, nil
}

func (f *frontend) DescribeWorkflowExecution(context.Context, *workflowservice.DescribeWorkflowExecutionRequest) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	resp, err := f.describe()
	if err != nil {
		return nil, serviceerror.ToStatus(err).Err()
	}
	return resp, nil
}

func (f *frontend) ListWorkflowExecutions(_ context.Context, req *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queries = append(f.queries, req.GetQuery())
	next := f.lists[0]
	f.lists = f.lists[1:]
	return next, nil
}

func (f *frontend) GetWorkflowExecutionHistory(context.Context, *workflowservice.GetWorkflowExecutionHistoryRequest) (*workflowservice.GetWorkflowExecutionHistoryResponse, error) {
	return &workflowservice.GetWorkflowExecutionHistoryResponse{History: &historypb.History{Events: f.history}}, nil
}

func (f *frontend) DescribeNamespace(context.Context, *workflowservice.DescribeNamespaceRequest) (*workflowservice.DescribeNamespaceResponse, error) {
	if f.namespace == "" {
		return nil, serviceerror.ToStatus(serviceerror.NewNamespaceNotFound("ns")).Err()
	}
	return &workflowservice.DescribeNamespaceResponse{NamespaceInfo: &namespacepb.NamespaceInfo{Id: f.namespace}}, nil
}

func (f *frontend) sent() []*workflowservice.StartWorkflowExecutionRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts
}

// connect serves the frontend and returns the real client side of it.
func connect(t *testing.T, f *frontend) (Temporal, client.Client) {
	t.Helper()
	pipe := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	workflowservice.RegisterWorkflowServiceServer(server, f)
	operatorservice.RegisterOperatorServiceServer(server, f)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(pipe)
	}()
	c, err := client.NewLazyClient(client.Options{
		HostPort:  "passthrough:///frontend",
		Namespace: "ns",
		Logger:    sdklog.NewStructuredLogger(quiet()),
		ConnectionOptions: client.ConnectionOptions{DialOptions: append(DialOptions(),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Close()
		server.Stop()
		<-served
	})
	return Connect(c, TemporalConfig{Namespace: "ns", Model: func(job.Job) string { return "a-model" }}, quiet()), c
}

func request() StartRequest {
	return StartRequest{
		Input: workflows.Input{
			Job: job.Job{
				Role: job.Agent, ID: "日本", UserID: strings.Repeat("ü", 300), ProjectID: "p1",
				WorkflowID: "w1", Task: "SECRET TASK", Priority: 2,
			},
			Origin: job.Origin{Stream: "jobs:agent", EntryID: "5-0", Group: "executor-group", Updates: "signalr:updates"},
		},
		RequestID: RequestID("jobs:agent", "5-0"),
	}
}

func TestStartSendsWhatTheRunNeeds(t *testing.T) {
	t.Parallel()
	f := &frontend{}
	service, _ := connect(t, f)
	res, err := service.Start(t.Context(), request())
	require.NoError(t, err)
	require.Equal(t, StartResult{Verdict: Started, RunID: "run-1"}, res)

	require.Len(t, f.sent(), 1)
	req := f.sent()[0]
	require.Equal(t, request().RequestID, req.GetRequestId())
	require.Equal(t, job.WorkflowID(job.Agent, "日本"), req.GetWorkflowId())
	require.Equal(t, "JobWorkflow", req.GetWorkflowType().GetName())
	require.Equal(t, "executor-workflows", req.GetTaskQueue().GetName())
	require.Equal(t, enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE, req.GetWorkflowIdReusePolicy())
	require.Equal(t, enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL, req.GetWorkflowIdConflictPolicy())
	require.Zero(t, req.GetWorkflowExecutionTimeout().AsDuration())
	require.Zero(t, req.GetWorkflowRunTimeout().AsDuration())
	require.False(t, req.GetRequestEagerExecution(), "there is no worker in this process")
	require.EqualValues(t, 2, req.GetPriority().GetPriorityKey())

	text := func(p *commonpb.Payload) string {
		var s string
		require.NoError(t, converter.GetDefaultDataConverter().FromPayload(p, &s))
		return s
	}
	require.Equal(t, "agent", text(req.GetUserMetadata().GetSummary()), "no content in what the UI lists")
	require.Equal(t, workflows.StartDetails(request().Input), text(req.GetUserMetadata().GetDetails()))
	require.Contains(t, text(req.GetUserMetadata().GetDetails()), "- Job: `日本`\n", "which the workflow id does not tell")
	require.NotContains(t, text(req.GetUserMetadata().GetDetails()), "SECRET")
	require.Equal(t, "5-0", text(req.GetMemo().GetFields()["entryId"]))
	require.Equal(t, "jobs:agent", text(req.GetMemo().GetFields()["stream"]))
	attributes := map[string]string{}
	for name, p := range req.GetSearchAttributes().GetIndexedFields() {
		attributes[name] = text(p)
	}
	require.Equal(t, map[string]string{
		"JobRole": "agent", "JobUser": strings.Repeat("ü", 255), "JobProject": "p1", "JobNodptWorkflow": "w1", "JobModel": "a-model",
	}, attributes)
	var in workflows.Input
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(req.GetInput(), &in))
	require.Equal(t, request().Input, in)
}

func TestReusePolicies(t *testing.T) {
	t.Parallel()
	for reuse, want := range map[Reuse]enumspb.WorkflowIdReusePolicy{
		ReuseNever:        enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		ReuseUnsuccessful: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY,
		ReuseAny:          enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
	} {
		f := &frontend{}
		service, _ := connect(t, f)
		req := request()
		req.Reuse = reuse
		_, err := service.Start(t.Context(), req)
		require.NoError(t, err)
		require.Equal(t, want, f.sent()[0].GetWorkflowIdReusePolicy())
	}
}

func TestStartAnswers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err  error
		want StartResult
	}{
		"the id belongs to another run": {
			serviceerror.NewWorkflowExecutionAlreadyStarted("already running", "other request", "run-9"),
			StartResult{Verdict: AlreadyStarted, RunID: "run-9"},
		},
		"an argument the server will never take": {
			serviceerror.NewInvalidArgument("Blob data size exceeds limit."),
			StartResult{Verdict: Refused},
		},
		"a message too large": {
			status.Error(codes.ResourceExhausted, "grpc: received message larger than max (5000000 vs. 4194304)"),
			StartResult{Verdict: Refused},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &frontend{start: func(int, *workflowservice.StartWorkflowExecutionRequest) error { return tc.err }}
			service, _ := connect(t, f)
			res, err := service.Start(t.Context(), request())
			require.NoError(t, err)
			require.Equal(t, tc.want, res)
		})
	}
}

func TestStartErrorsThatMayPassAreErrors(t *testing.T) {
	t.Parallel()
	for name, cause := range map[string]error{
		"rate limit":       serviceerror.NewResourceExhausted(enumspb.RESOURCE_EXHAUSTED_CAUSE_RPS_LIMIT, "slow down"),
		"unavailable":      serviceerror.NewUnavailable("no"),
		"internal":         serviceerror.NewInternal("no"),
		"no rights":        serviceerror.NewPermissionDenied("no", ""),
		"missing, perhaps": serviceerror.NewNamespaceNotFound("ns"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &frontend{start: func(int, *workflowservice.StartWorkflowExecutionRequest) error { return cause }}
			service, _ := connect(t, f)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // the SDK retries until then
			defer cancel()
			_, err := service.Start(ctx, request())
			require.Error(t, err)
			require.NotContains(t, err.Error(), "SECRET")
		})
	}
}

func TestRetriesOfTheSDKKeepTheRequestID(t *testing.T) {
	t.Parallel()
	f := &frontend{start: func(n int, _ *workflowservice.StartWorkflowExecutionRequest) error {
		if n < 3 {
			return serviceerror.NewUnavailable("not yet")
		}
		return nil
	}}
	service, _ := connect(t, f)
	_, err := service.Start(t.Context(), request())
	require.NoError(t, err)
	require.Len(t, f.sent(), 3)
	for _, req := range f.sent() {
		require.Equal(t, request().RequestID, req.GetRequestId())
	}
}

func TestSearchAttributes(t *testing.T) {
	t.Parallel()
	noMapping := serviceerror.NewInvalidArgument("Namespace ns has no mapping defined for search attribute JobRole")

	t.Run("unknown ones are registered again", func(t *testing.T) {
		t.Parallel()
		f := &frontend{start: func(n int, _ *workflowservice.StartWorkflowExecutionRequest) error {
			if n == 1 {
				return noMapping
			}
			return nil
		}}
		service, _ := connect(t, f)
		res, err := service.Start(t.Context(), request())
		require.NoError(t, err)
		require.Equal(t, Started, res.Verdict)
		require.Len(t, f.registered, 1)
		require.Equal(t, "ns", f.registered[0].GetNamespace())
		require.Len(t, f.registered[0].GetSearchAttributes(), len(workflows.AttributeNames()))
		require.NotEmpty(t, f.sent()[1].GetSearchAttributes().GetIndexedFields())
	})

	t.Run("new ones are waited for", func(t *testing.T) {
		t.Parallel()
		f := &frontend{start: func(n int, _ *workflowservice.StartWorkflowExecutionRequest) error {
			if n <= 2 {
				return noMapping
			}
			return nil
		}}
		service, _ := connect(t, f)
		_, err := service.Start(t.Context(), request())
		require.ErrorIs(t, err, errSettling, "the entry stays pending")
		res, err := service.Start(t.Context(), request())
		require.NoError(t, err)
		require.Equal(t, Started, res.Verdict)
		require.NotEmpty(t, f.sent()[2].GetSearchAttributes().GetIndexedFields())
	})

	t.Run("refused ones are done without", func(t *testing.T) {
		t.Parallel()
		f := &frontend{
			register: serviceerror.NewPermissionDenied("no", ""),
			start: func(_ int, req *workflowservice.StartWorkflowExecutionRequest) error {
				if len(req.GetSearchAttributes().GetIndexedFields()) > 0 {
					return noMapping
				}
				return nil
			},
		}
		service, _ := connect(t, f)
		for range 2 {
			res, err := service.Start(t.Context(), request())
			require.NoError(t, err)
			require.Equal(t, Started, res.Verdict)
		}
		require.Len(t, f.registered, 1, "not asked for at every start")
		require.Len(t, f.sent(), 3)
	})

	t.Run("existing ones are fine", func(t *testing.T) {
		t.Parallel()
		f := &frontend{register: serviceerror.NewAlreadyExists("there")}
		_, c := connect(t, f)
		require.NoError(t, EnsureSearchAttributes(t.Context(), c, "ns"))
	})

	t.Run("a refusal is reported", func(t *testing.T) {
		t.Parallel()
		f := &frontend{register: serviceerror.NewPermissionDenied("no", "")}
		_, c := connect(t, f)
		require.ErrorContains(t, EnsureSearchAttributes(t.Context(), c, "ns"), "ns")
	})
}

func execution(t *testing.T, run string, st enumspb.WorkflowExecutionStatus) *workflowpb.WorkflowExecutionInfo {
	t.Helper()
	memo := map[string]*commonpb.Payload{}
	for key, value := range map[string]string{"entryId": "5-0", "stream": "jobs:agent"} {
		p, err := converter.GetDefaultDataConverter().ToPayload(value)
		require.NoError(t, err)
		memo[key] = p
	}
	return &workflowpb.WorkflowExecutionInfo{
		Execution:  &commonpb.WorkflowExecution{WorkflowId: "job:agent:j1", RunId: run},
		FirstRunId: "run-0",
		StartTime:  timestamppb.New(time.Unix(100, 0)),
		CloseTime:  timestamppb.New(time.Unix(200, 0)),
		Status:     st,
		Memo:       &commonpb.Memo{Fields: memo},
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	for st, want := range map[enumspb.WorkflowExecutionStatus]RunState{
		enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING:    RunOpen,
		enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED:  RunEnded,
		enumspb.WORKFLOW_EXECUTION_STATUS_FAILED:     RunEnded,
		enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:   RunEnded,
		enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED: RunTerminated,
		enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT:  RunTimedOut,
	} {
		t.Run(st.String(), func(t *testing.T) {
			t.Parallel()
			f := &frontend{describe: func() (*workflowservice.DescribeWorkflowExecutionResponse, error) {
				return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: execution(t, "run-1", st)}, nil
			}}
			service, _ := connect(t, f)
			run, err := service.Describe(t.Context(), "job:agent:j1")
			require.NoError(t, err)
			require.Equal(t, Run{
				WorkflowID: "job:agent:j1", RunID: "run-1", FirstRunID: "run-0",
				State: want, Stream: "jobs:agent", EntryID: "5-0",
				StartedAt: time.Unix(100, 0).UTC(), ClosedAt: time.Unix(200, 0).UTC(),
			}, run)
			require.Equal(t, want == RunTerminated || want == RunTimedOut, run.State.Killed())
		})
	}

	t.Run("unknown", func(t *testing.T) {
		t.Parallel()
		f := &frontend{describe: func() (*workflowservice.DescribeWorkflowExecutionResponse, error) {
			return nil, serviceerror.NewNotFound("no such workflow")
		}}
		service, _ := connect(t, f)
		_, err := service.Describe(t.Context(), "job:agent:j1")
		require.ErrorIs(t, err, ErrRunNotFound)
	})
}

func TestVisibility(t *testing.T) {
	t.Parallel()
	f := &frontend{namespace: "id-7"}
	f.lists = []*workflowservice.ListWorkflowExecutionsResponse{
		{Executions: []*workflowpb.WorkflowExecutionInfo{execution(t, "run-1", enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING)}, NextPageToken: []byte("more")},
		{Executions: []*workflowpb.WorkflowExecutionInfo{execution(t, "run-2", enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING)}},
		{Executions: []*workflowpb.WorkflowExecutionInfo{execution(t, "run-3", enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT)}},
	}
	service, _ := connect(t, f)
	open, err := service.Open(t.Context())
	require.NoError(t, err)
	require.Len(t, open, 2)
	require.Equal(t, "5-0", open[0].EntryID)
	killed, err := service.Killed(t.Context(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	require.NoError(t, err)
	require.Equal(t, RunTimedOut, killed[0].State)
	require.Equal(t, []string{
		"WorkflowType = 'JobWorkflow' AND ExecutionStatus = 'Running'",
		"WorkflowType = 'JobWorkflow' AND ExecutionStatus = 'Running'",
		"WorkflowType = 'JobWorkflow' AND ExecutionStatus IN ('Terminated', 'TimedOut') AND CloseTime >= '2026-01-02T03:04:05Z'",
	}, f.queries)
	id, err := service.Namespace(t.Context())
	require.NoError(t, err)
	require.Equal(t, "id-7", id)
	f.namespace = ""
	_, err = service.Namespace(t.Context())
	require.ErrorIs(t, err, ErrNoNamespace)
}

func TestInput(t *testing.T) {
	t.Parallel()
	event := func(args ...any) []*historypb.HistoryEvent {
		payloads, err := converter.GetDefaultDataConverter().ToPayloads(args...)
		require.NoError(t, err)
		return []*historypb.HistoryEvent{{
			EventId: 1, EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
			Attributes: &historypb.HistoryEvent_WorkflowExecutionStartedEventAttributes{
				WorkflowExecutionStartedEventAttributes: &historypb.WorkflowExecutionStartedEventAttributes{Input: payloads},
			},
		}}
	}
	service, _ := connect(t, &frontend{history: event(request().Input)})
	in, err := service.Input(t.Context(), Run{WorkflowID: "w", RunID: "r"})
	require.NoError(t, err)
	require.Equal(t, request().Input, in)

	service, _ = connect(t, &frontend{history: event("SECRET text")})
	_, err = service.Input(t.Context(), Run{WorkflowID: "w", RunID: "r"})
	require.ErrorIs(t, err, ErrInputUnreadable)
	require.NotContains(t, err.Error(), "SECRET")
}
