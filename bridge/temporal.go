package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodpt/executor/internal/codec"
	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// TemporalConfig holds what Connect needs beside a client.
type TemporalConfig struct {
	// Namespace is the one the client was created for.
	Namespace string
	// Model names the model that the settings give a job, for the search attribute
	// JobModel. It may be nil.
	Model func(job.Job) string
	// Eager says whether a start may ask for the first workflow task along with the
	// reply: while this process's own workers run. It may be nil: never.
	Eager func() bool
	// Converter is the client's data converter; nil is the SDK's default.
	Converter converter.DataConverter
}

// service is Temporal on a real client.
type service struct {
	client    client.Client
	cfg       TemporalConfig
	log       *slog.Logger
	plainTill atomic.Int64 // Unix nanoseconds; until then runs start without search attributes
	warned    atomic.Bool
	addedAt   atomic.Int64           // Unix nanoseconds; 0 unless the server still has to notice new search attributes
	seen      atomic.Pointer[string] // the namespace's id when it was last looked at
}

// Connect returns the workflow service behind a client. The client must have
// been created with DialOptions, or a redelivered entry would look like a
// duplicate of itself. It does no I/O.
func Connect(c client.Client, cfg TemporalConfig, log *slog.Logger) Temporal {
	if cfg.Model == nil {
		cfg.Model = func(job.Job) string { return "" }
	}
	if cfg.Eager == nil {
		cfg.Eager = func() bool { return false }
	}
	if cfg.Converter == nil {
		cfg.Converter = converter.GetDefaultDataConverter()
	}
	return &service{client: c, cfg: cfg, log: log.With(slog.String("component", "bridge"))}
}

// DialOptions are the gRPC options that a client used by the bridge needs, for
// client.Options.ConnectionOptions.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(RequestIDInterceptor())}
}

type requestIDKey struct{}

// RequestIDInterceptor gives a start request the request id its context carries.
// The SDK chooses a random one and has no option for it.
func RequestIDInterceptor() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if start, ok := req.(*workflowservice.StartWorkflowExecutionRequest); ok {
			if id, ok := ctx.Value(requestIDKey{}).(string); ok && id != "" {
				start.RequestId = id
			}
		}
		err := invoke(ctx, method, req, reply, cc, opts...)
		if _, ok := req.(*workflowservice.StartWorkflowExecutionRequest); ok && err == nil {
			if lost := failpoint.Hit(ctx, failpoint.StartSent); lost != nil {
				return status.Error(codes.Unavailable, lost.Error())
			}
		}
		return err
	}
}

// plainFor is how long runs start without search attributes after the server
// refused them, before they are tried again.
const plainFor = time.Minute

// settleFor is how long the server may take to know search attributes it has
// accepted: it reads its namespaces again every few seconds.
const settleFor = 15 * time.Second

// errSettling keeps an entry pending until the server knows its attributes.
var errSettling = errors.New("start workflow: the server does not know its new search attributes yet")

// Start implements Starter.
func (s *service) Start(ctx context.Context, req StartRequest) (StartResult, error) {
	ctx = context.WithValue(ctx, requestIDKey{}, req.RequestID)
	attributes := time.Now().UnixNano() >= s.plainTill.Load()
	run, err := s.execute(ctx, req, attributes)
	if attributes && isAttributeError(err) {
		// A new namespace, or the server lost its state.
		if added := EnsureSearchAttributes(ctx, s.client, s.cfg.Namespace); added == nil {
			run, err = s.execute(ctx, req, true)
			if isAttributeError(err) && s.settling() {
				return StartResult{}, errSettling
			}
		}
		if isAttributeError(err) {
			s.plainTill.Store(time.Now().Add(plainFor).UnixNano())
			if !s.warned.Swap(true) {
				s.log.WarnContext(ctx, "runs are started without search attributes, because the server does not accept them",
					slog.Any("error", err),
					slog.String("hint", "register "+strings.Join(workflows.AttributeNames(), ", ")+" as Keyword in the namespace"))
			}
			run, err = s.execute(ctx, req, false)
		}
	}
	var already *serviceerror.WorkflowExecutionAlreadyStarted
	switch {
	case err == nil:
		if attributes {
			s.addedAt.Store(0)
		}
		return StartResult{Verdict: Started, RunID: run.GetRunID()}, nil
	case errors.As(err, &already):
		return StartResult{Verdict: AlreadyStarted, RunID: already.RunId}, nil
	case isRefusal(err):
		s.log.WarnContext(ctx, "the workflow service refused a job for good",
			slog.String("entry", req.Input.Origin.EntryID), slog.Any("error", err))
		return StartResult{Verdict: Refused}, nil
	default:
		return StartResult{}, fmt.Errorf("start workflow: %w", err)
	}
}

// settling reports whether search attributes were registered so recently that
// the server need not know them yet.
func (s *service) settling() bool {
	now := time.Now()
	s.addedAt.CompareAndSwap(0, now.UnixNano())
	return now.Sub(time.Unix(0, s.addedAt.Load())) < settleFor
}

func (s *service) execute(ctx context.Context, req StartRequest, attributes bool) (client.WorkflowRun, error) {
	in := req.Input
	options := client.StartWorkflowOptions{
		ID:                    job.WorkflowID(in.Job.Role, in.Job.ID),
		TaskQueue:             workflows.QueueWorkflows,
		WorkflowIDReusePolicy: reusePolicy(req.Reuse),
		// Not USE_EXISTING: it would hand out another entry's run as if it were this
		// entry's. The entry's own run is found by the request id in either case.
		WorkflowIDConflictPolicy:                 enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		WorkflowExecutionErrorWhenAlreadyStarted: true,
		// The first task comes with the reply, if this process works on workflows and
		// has a slot free. One that dies with the process is given out again after its
		// timeout of 10 s. Not before the workers run: the SDK reads without a lock what
		// their start has written.
		EnableEagerStart: s.cfg.Eager(),
		Memo: map[string]any{
			workflows.MemoEntryID: in.Origin.EntryID,
			workflows.MemoStream:  in.Origin.Stream,
		},
		StaticSummary: string(in.Job.Role),
		StaticDetails: workflows.StartDetails(in),
		Priority:      temporal.Priority{PriorityKey: in.Job.Priority},
	}
	if attributes {
		options.TypedSearchAttributes = workflows.Attributes(in.Job, s.cfg.Model(in.Job))
	}
	return s.client.ExecuteWorkflow(ctx, options, workflows.WorkflowType, in)
}

func reusePolicy(r Reuse) enumspb.WorkflowIdReusePolicy {
	switch r {
	case ReuseUnsuccessful:
		return enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY
	case ReuseAny:
		return enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
	case ReuseNever:
		return enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
	default:
		return enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
	}
}

// isAttributeError reports whether a start failed for its search attributes:
// "Namespace … has no mapping defined for search attribute …", "search attribute
// … is not defined". The server has no code of its own for that.
func isAttributeError(err error) bool {
	invalid, ok := errors.AsType[*serviceerror.InvalidArgument](err)
	return ok && strings.Contains(strings.ToLower(invalid.Error()), "search attribute")
}

// isRefusal reports whether the server, or gRPC on the way to it, will never
// accept the request.
func isRefusal(err error) bool {
	if _, ok := errors.AsType[*serviceerror.InvalidArgument](err); ok {
		return true
	}
	// The SDK's type for it is internal. Other errors of that code are rate limits.
	st := status.Convert(err)
	return st.Code() == codes.ResourceExhausted &&
		(strings.Contains(st.Message(), "larger than max") || strings.Contains(st.Message(), "message too large"))
}

// EnsureSearchAttributes registers the search attributes of runs in a namespace.
// Those that exist are left alone. The error says why the server refused; runs
// can do without them.
func EnsureSearchAttributes(ctx context.Context, c client.Client, namespace string) error {
	types := make(map[string]enumspb.IndexedValueType)
	for _, name := range workflows.AttributeNames() {
		types[name] = enumspb.INDEXED_VALUE_TYPE_KEYWORD
	}
	_, err := c.OperatorService().AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
		Namespace:        namespace,
		SearchAttributes: types,
	})
	var exists *serviceerror.AlreadyExists
	if err != nil && !errors.As(err, &exists) {
		return fmt.Errorf("register search attributes in namespace %q: %w", namespace, err)
	}
	return nil
}

// Describe implements Runs.
func (s *service) Describe(ctx context.Context, workflowID string) (Run, error) {
	resp, err := s.client.DescribeWorkflowExecution(ctx, workflowID, "")
	var missing *serviceerror.NotFound
	switch {
	case errors.As(err, &missing):
		return Run{}, ErrRunNotFound
	case err != nil:
		return Run{}, fmt.Errorf("describe workflow: %w", err)
	}
	run, err := s.run(resp.GetWorkflowExecutionInfo())
	if err != nil {
		// Not knowing whose run it is must not be taken for knowing that it is another's.
		return Run{}, fmt.Errorf("describe workflow: %w", err)
	}
	return run, nil
}

// Input implements Runs.
func (s *service) Input(ctx context.Context, run Run) (workflows.Input, error) {
	events := s.client.GetWorkflowHistory(ctx, run.WorkflowID, run.RunID, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	if !events.HasNext() {
		return workflows.Input{}, fmt.Errorf("read the input of a run: %w", ErrRunNotFound)
	}
	event, err := events.Next()
	var missing *serviceerror.NotFound
	switch {
	case errors.As(err, &missing):
		return workflows.Input{}, fmt.Errorf("read the input of a run: %w", ErrRunNotFound)
	case err != nil:
		return workflows.Input{}, fmt.Errorf("read the input of a run: %w", err)
	}
	var in workflows.Input
	err = s.cfg.Converter.FromPayloads(event.GetWorkflowExecutionStartedEventAttributes().GetInput(), &in)
	if locked := lockedBy(err); locked != nil {
		return workflows.Input{}, fmt.Errorf("read the input of a run: %w", locked) // until the key is there
	}
	if err != nil || in.Job.ID == "" || in.Origin.EntryID == "" {
		// The converter's error is dropped: it may quote the input.
		return workflows.Input{}, ErrInputUnreadable
	}
	return in, nil
}

// Open implements Visibility.
func (s *service) Open(ctx context.Context) ([]Run, error) {
	return s.list(ctx, fmt.Sprintf("WorkflowType = '%s' AND ExecutionStatus = 'Running'", workflows.WorkflowType))
}

// Killed implements Visibility.
func (s *service) Killed(ctx context.Context, since time.Time) ([]Run, error) {
	return s.list(ctx, fmt.Sprintf(
		"WorkflowType = '%s' AND ExecutionStatus IN ('Terminated', 'TimedOut') AND CloseTime >= '%s'",
		workflows.WorkflowType, since.UTC().Format(time.RFC3339),
	))
}

func (s *service) list(ctx context.Context, query string) ([]Run, error) {
	var runs []Run
	var page []byte
	for {
		resp, err := s.client.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Namespace:     s.cfg.Namespace,
			PageSize:      listPage,
			NextPageToken: page,
			Query:         query,
		})
		if err != nil {
			return nil, fmt.Errorf("list workflows: %w", err)
		}
		for _, info := range resp.GetExecutions() {
			// Of a run whose memo cannot be read the rest is known; what depends on it
			// asks Describe first.
			run, _ := s.run(info)
			runs = append(runs, run)
		}
		if page = resp.GetNextPageToken(); len(page) == 0 {
			return runs, nil
		}
	}
}

const listPage = 1000

// Namespace implements Visibility. It registers the search attributes of runs
// in a namespace it sees for the first time, so that the first job need not wait
// for them.
func (s *service) Namespace(ctx context.Context) (string, error) {
	resp, err := s.client.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: s.cfg.Namespace})
	if _, missing := errors.AsType[*serviceerror.NamespaceNotFound](err); missing {
		return "", fmt.Errorf("describe namespace %q: %w", s.cfg.Namespace, ErrNoNamespace)
	}
	if err != nil {
		return "", fmt.Errorf("describe namespace %q: %w", s.cfg.Namespace, err)
	}
	id := resp.GetNamespaceInfo().GetId()
	if seen := s.seen.Swap(&id); seen == nil || *seen != id {
		if err := EnsureSearchAttributes(ctx, s.client, s.cfg.Namespace); err != nil {
			// Without the right to register them they may be there all the same:
			// the first start tells.
			s.log.InfoContext(ctx, "search attributes were not registered", slog.Any("error", err))
		}
	}
	return id, nil
}

// run describes a run. The error is about its memo alone, see memo.
func (s *service) run(info *workflowpb.WorkflowExecutionInfo) (Run, error) {
	entryStream, streamErr := s.memo(info.GetMemo(), workflows.MemoStream)
	entryID, idErr := s.memo(info.GetMemo(), workflows.MemoEntryID)
	return Run{
		WorkflowID: info.GetExecution().GetWorkflowId(),
		RunID:      info.GetExecution().GetRunId(),
		FirstRunID: info.GetFirstRunId(),
		State:      stateOf(info.GetStatus()),
		Stream:     entryStream,
		EntryID:    entryID,
		StartedAt:  timeOf(info.GetStartTime()),
		ClosedAt:   timeOf(info.GetCloseTime()),
	}, cmp.Or(streamErr, idErr)
}

// timeOf is zero where there is no time: AsTime would make it 1970.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// memo returns a text of a run's memo, or nothing where there is none. The error
// is a *codec.Error: the memo is encrypted with a key that is not at hand.
func (s *service) memo(m *commonpb.Memo, key string) (string, error) {
	payload, ok := m.GetFields()[key]
	if !ok {
		return "", nil
	}
	var text string
	if err := s.cfg.Converter.FromPayload(payload, &text); err != nil {
		return "", lockedBy(err) // or somebody else's memo
	}
	return text, nil
}

// lockedBy finds out of a converter's error that a key is missing. Such an error
// quotes nothing; others may.
func lockedBy(err error) error {
	if locked, ok := errors.AsType[*codec.Error](err); ok {
		return locked
	}
	return nil
}

func stateOf(st enumspb.WorkflowExecutionStatus) RunState {
	switch st {
	case enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED:
		return RunTerminated
	case enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT:
		return RunTimedOut
	case enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED,
		enumspb.WORKFLOW_EXECUTION_STATUS_FAILED,
		enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:
		return RunEnded
	case enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING,
		enumspb.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW,
		enumspb.WORKFLOW_EXECUTION_STATUS_PAUSED,
		enumspb.WORKFLOW_EXECUTION_STATUS_UNSPECIFIED:
		return RunOpen
	default:
		return RunOpen
	}
}
