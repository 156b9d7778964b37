package doctor

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	namespacepb "go.temporal.io/api/namespace/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	taskqueuepb "go.temporal.io/api/taskqueue/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodpt/executor/bridge"
	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/internal/llm/llmtest"
	"github.com/nodpt/executor/internal/redistest"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is everything an executor talks to, in the best of health, with one
// executor that runs.
type world struct {
	t        *testing.T
	redis    *redistest.Server
	consumer *stream.Client
	temporal *fakeTemporal
	store    string // its identity
	llm      *llmtest.Running
	ready    *httptest.Server
	cfg      Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, redis: redistest.StartWith(t, "--appendonly", "yes"), temporal: startTemporal(t)}
	w.llm = llmtest.Start(t, llmtest.Options{Models: []string{"small", "large"}, APIKey: "key"})
	w.ready = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"status":"ready","checks":{"redis":"ok"}}`)
	}))
	t.Cleanup(w.ready.Close)
	w.cfg = Config{
		Settings: []Setting{{Name: "MAX_AGENT", Value: "2"}},
		Redis:    stream.Config{Connection: w.redis.Addr(), Consumer: "doctor"},
		Store:    store.Config{URL: "sqlite://" + filepath.Join(t.TempDir(), "executor.db")},
		LLM:      llm.Config{Endpoint: w.llm.Endpoint(), APIKey: "key"},
		Temporal: client.Options{HostPort: w.temporal.address, Namespace: "jobs"},
		Variables: Variables{
			Redis: "REDIS_URL", LLMKey: "LLM_API_KEY_FILE",
			DatabaseHost: "DATABASE_URL", DatabaseLogin: "DATABASE_URL", DatabaseName: "DATABASE_URL",
		},
		Models: []Model{
			{Name: "small", Variables: []string{"MODEL_AGENT", "DEFAULT_MODEL"}}, {Name: "large", Variables: []string{"CHAT_MODELS"}, Optional: true},
		},
		ChatList: "chat.jobs", MaxInFlight: 10,
		HTTPAddr: w.ready.Listener.Addr().String(),
	}

	var err error
	w.consumer, err = stream.Open(stream.Config{Connection: w.redis.Addr(), Consumer: "bridge"}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.consumer.Close()) })
	for _, name := range streams() {
		require.NoError(t, w.consumer.EnsureGroup(t.Context(), name))
	}
	// For longer than any test takes: nobody renews them here.
	held, err := w.consumer.Lease(t.Context(), bridge.LeaseName, time.Hour)
	require.NoError(t, err)
	require.True(t, held)
	opened, err := store.Open(t.Context(), w.cfg.Store, nil)
	require.NoError(t, err)
	w.store = opened.UUID()
	require.NoError(t, opened.Close())
	admin(t, w, "SET", "{executor}:store", w.store)
	return w
}

// run runs the doctor. All it may say is checked for the canary.
func (w *world) run() []Result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	return Run(ctx, w.cfg)
}

// find returns the results of one check.
func find(results []Result, check string) []Result {
	var all []Result
	for _, r := range results {
		if r.Check == check {
			all = append(all, r)
		}
	}
	return all
}

// bad returns the checks that are neither ok nor skipped.
func bad(results []Result) []string {
	var names []string
	for _, r := range results {
		if r.State == Warning || r.State == Problem {
			names = append(names, fmt.Sprintf("%s %s: %s (%s)", r.Check, r.State, r.Found, r.Cause))
		}
	}
	return names
}

// fakeTemporal answers what the doctor asks. Its fields are changed before it is
// asked.
type fakeTemporal struct {
	workflowservice.UnimplementedWorkflowServiceServer
	operatorservice.UnimplementedOperatorServiceServer
	address string

	mu         sync.Mutex
	namespaces map[string]time.Duration // retention
	state      enumspb.NamespaceState
	attributes map[string]enumspb.IndexedValueType
	// unserved queues have no poller; those of lastSeen were served that long ago.
	unserved map[string]bool
	lastSeen time.Duration
	backlog  map[string]time.Duration // age of the oldest task
	// unknown is how many calls do not know the namespace that was registered last.
	unknown int
	// errors by method.
	errors map[string]error
}

func startTemporal(t *testing.T) *fakeTemporal {
	t.Helper()
	f := &fakeTemporal{
		namespaces: map[string]time.Duration{"jobs": recommendedRetention}, state: enumspb.NAMESPACE_STATE_REGISTERED,
		attributes: map[string]enumspb.IndexedValueType{}, unserved: map[string]bool{}, backlog: map[string]time.Duration{},
		errors: map[string]error{},
	}
	for _, name := range workflows.AttributeNames() {
		f.attributes[name] = enumspb.INDEXED_VALUE_TYPE_KEYWORD
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f.address = l.Addr().String()
	// Errors cross the network as Temporal's server sends them.
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		resp, err := handle(ctx, req)
		if err != nil {
			return nil, serviceerror.ToStatus(err).Err()
		}
		return resp, nil
	}))
	workflowservice.RegisterWorkflowServiceServer(server, f)
	operatorservice.RegisterOperatorServiceServer(server, f)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	return f
}

func (f *fakeTemporal) GetSystemInfo(context.Context, *workflowservice.GetSystemInfoRequest) (*workflowservice.GetSystemInfoResponse, error) {
	return &workflowservice.GetSystemInfoResponse{ServerVersion: "1.2.3"}, f.errors["GetSystemInfo"]
}

func (f *fakeTemporal) DescribeNamespace(_ context.Context, r *workflowservice.DescribeNamespaceRequest) (*workflowservice.DescribeNamespaceResponse, error) {
	kept, found := f.namespaces[r.GetNamespace()]
	if !found {
		return nil, serviceerror.NewNamespaceNotFound(r.GetNamespace())
	}
	return &workflowservice.DescribeNamespaceResponse{
		NamespaceInfo: &namespacepb.NamespaceInfo{Name: r.GetNamespace(), State: f.state},
		Config:        &namespacepb.NamespaceConfig{WorkflowExecutionRetentionTtl: durationpb.New(kept)},
	}, f.errors["DescribeNamespace"]
}

func (f *fakeTemporal) RegisterNamespace(_ context.Context, r *workflowservice.RegisterNamespaceRequest) (*workflowservice.RegisterNamespaceResponse, error) {
	if err := f.errors["RegisterNamespace"]; err != nil {
		return nil, err
	}
	f.namespaces[r.GetNamespace()] = r.GetWorkflowExecutionRetentionPeriod().AsDuration()
	f.unknown = 3
	return &workflowservice.RegisterNamespaceResponse{}, nil
}

func (f *fakeTemporal) UpdateNamespace(_ context.Context, r *workflowservice.UpdateNamespaceRequest) (*workflowservice.UpdateNamespaceResponse, error) {
	if err := f.errors["UpdateNamespace"]; err != nil {
		return nil, err
	}
	f.namespaces[r.GetNamespace()] = r.GetConfig().GetWorkflowExecutionRetentionTtl().AsDuration()
	return &workflowservice.UpdateNamespaceResponse{}, nil
}

func (f *fakeTemporal) ListSearchAttributes(_ context.Context, r *operatorservice.ListSearchAttributesRequest) (*operatorservice.ListSearchAttributesResponse, error) {
	if f.unknown > 0 {
		f.unknown--
		return nil, serviceerror.NewNamespaceNotFound(r.GetNamespace())
	}
	return &operatorservice.ListSearchAttributesResponse{CustomAttributes: f.attributes}, f.errors["ListSearchAttributes"]
}

func (f *fakeTemporal) AddSearchAttributes(_ context.Context, r *operatorservice.AddSearchAttributesRequest) (*operatorservice.AddSearchAttributesResponse, error) {
	if err := f.errors["AddSearchAttributes"]; err != nil {
		return nil, err
	}
	f.attributes = r.GetSearchAttributes()
	return &operatorservice.AddSearchAttributesResponse{}, nil
}

func (f *fakeTemporal) DescribeTaskQueue(_ context.Context, r *workflowservice.DescribeTaskQueueRequest) (*workflowservice.DescribeTaskQueueResponse, error) {
	name := r.GetTaskQueue().GetName()
	resp := &workflowservice.DescribeTaskQueueResponse{Stats: &taskqueuepb.TaskQueueStats{}}
	seen := time.Second
	if f.unserved[name] {
		seen = f.lastSeen
	}
	if seen > 0 {
		resp.Pollers = []*taskqueuepb.PollerInfo{{Identity: "1@host", LastAccessTime: timestamppb.New(time.Now().Add(-seen))}}
	}
	if age, found := f.backlog[name]; found {
		resp.Stats.ApproximateBacklogCount = 3
		resp.Stats.ApproximateBacklogAge = durationpb.New(age)
	}
	return resp, f.errors["DescribeTaskQueue"]
}
