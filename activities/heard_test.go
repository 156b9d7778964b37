package activities_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/internal/telemetry"
	"github.com/nodpt/executor/workflows"
)

// oneTask stands for a server that hands out one activity task, at the edge
// where the SDK would send: no beat is delivered until the activity's context
// has ended, later ones get an answer.
type oneTask struct {
	task     *workflowservice.PollActivityTaskQueueResponse
	given    atomic.Bool
	ended    chan struct{} // the activity's context has ended
	answer   func(*workflowservice.RecordActivityTaskHeartbeatResponse) error
	reported chan proto.Message // what the worker says of the task in the end
}

func newOneTask(t *testing.T, b *runBundle, started time.Time, answer func(*workflowservice.RecordActivityTaskHeartbeatResponse) error) *oneTask {
	t.Helper()
	input, err := converter.GetDefaultDataConverter().ToPayloads(b.call)
	require.NoError(t, err)
	at := timestamppb.New(started)
	return &oneTask{
		task: &workflowservice.PollActivityTaskQueueResponse{
			TaskToken: []byte("token"), WorkflowNamespace: "ns", ActivityId: "1", Attempt: 1, Input: input,
			WorkflowExecution:           &commonpb.WorkflowExecution{WorkflowId: "w", RunId: "r"},
			ActivityType:                &commonpb.ActivityType{Name: "RunAgent"},
			WorkflowType:                &commonpb.WorkflowType{Name: "JobWorkflow"},
			ScheduledTime:               at,
			CurrentAttemptScheduledTime: at,
			StartedTime:                 at,
			StartToCloseTimeout:         durationpb.New(time.Hour),
			ScheduleToCloseTimeout:      durationpb.New(time.Hour),
			HeartbeatTimeout:            durationpb.New(workflows.HeartbeatTimeout),
		},
		ended:    make(chan struct{}),
		answer:   answer,
		reported: make(chan proto.Message, 1),
	}
}

// hand gives the task to a worker that asks this model, and tells when the
// activity's context ends. The worker stops with the test.
func (s *oneTask) hand(t *testing.T, b *runBundle, ended func(), model completerFunc) {
	t.Helper()
	c, err := client.NewLazyClient(client.Options{
		Namespace: "ns",
		HostPort:  "passthrough:///nowhere",
		Logger:    log.NewStructuredLogger(slog.New(slog.NewTextHandler(t.Output(), nil))),
		ConnectionOptions: client.ConnectionOptions{
			DialOptions: append(activities.DialOptions(), grpc.WithChainUnaryInterceptor(s.intercept)),
		},
	})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	metrics, err := telemetry.NewMetrics()
	require.NoError(t, err)
	w := worker.New(c, "jobs-agent", worker.Options{DisableWorkflowWorker: true, MaxHeartbeatThrottleInterval: workflows.HeartbeatEvery})
	runner := activities.NewRunner(job.Agent, b.cfg, model, nil, nil, activities.NewAnswers(b.store), b.cool, metrics)
	w.RegisterActivityWithOptions(func(ctx context.Context, call workflows.Call) (workflows.Answer, error) {
		context.AfterFunc(ctx, ended)
		return runner.Run(ctx, call)
	}, activity.RegisterOptions{Name: "RunAgent"})
	require.NoError(t, w.Start())
	t.Cleanup(w.Stop)
}

func (s *oneTask) intercept(ctx context.Context, _ string, req, reply any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
	switch req := req.(type) {
	case *workflowservice.PollActivityTaskQueueRequest:
		if s.given.CompareAndSwap(false, true) {
			proto.Merge(reply.(proto.Message), s.task)
			return nil
		}
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	case *workflowservice.RecordActivityTaskHeartbeatRequest:
		select {
		case <-s.ended:
			return s.answer(reply.(*workflowservice.RecordActivityTaskHeartbeatResponse))
		default:
			return status.Error(codes.Unavailable, "the connection is cut")
		}
	case *workflowservice.RespondActivityTaskCanceledRequest, *workflowservice.RespondActivityTaskFailedRequest,
		*workflowservice.RespondActivityTaskCompletedRequest:
		s.reported <- req.(proto.Message)
	}
	return nil
}

// A beat lost on the way ends the activity's context for good. What the server
// answers to a later one must still end the call.
func TestRunHearsTheServerAfterALostBeat(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		answer func(*workflowservice.RecordActivityTaskHeartbeatResponse) error
		want   func(*testing.T, proto.Message)
	}{
		"cancelled": {
			func(r *workflowservice.RecordActivityTaskHeartbeatResponse) error {
				r.CancelRequested = true
				return nil
			},
			func(t *testing.T, m proto.Message) {
				t.Helper()
				failed, ok := m.(*workflowservice.RespondActivityTaskFailedRequest)
				require.True(t, ok, "%T", m)
				failure := failed.GetFailure()
				require.Equal(t, workflows.CodeCanceled, failure.GetApplicationFailureInfo().GetType())
				require.True(t, failure.GetApplicationFailureInfo().GetNonRetryable())
				require.NotNil(t, failure.GetCause().GetCanceledFailureInfo(), "the workflow takes it for a cancellation")
			},
		},
		"reset by hand": {
			func(r *workflowservice.RecordActivityTaskHeartbeatResponse) error {
				r.ActivityReset = true
				return nil
			},
			givenBack,
		},
		"given to another": {
			func(*workflowservice.RecordActivityTaskHeartbeatResponse) error {
				return status.Error(codes.NotFound, "activity task not found")
			},
			givenBack,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			server := newOneTask(t, b, time.Now(), tt.answer)
			server.hand(t, b, func() { close(server.ended) }, func(ctx context.Context, _ llm.Request) (llm.Answer, error) {
				<-ctx.Done()
				return llm.Answer{}, &llm.Error{Kind: llm.Canceled}
			})
			select {
			case <-server.ended:
			case <-time.After(time.Minute):
				t.Fatal("no beat was lost")
			}
			// One of the next beats is answered, and what is left of the job is
			// reported with another: some 6 s. Without hearing of it, the call
			// would go on for as long as the LLM likes.
			select {
			case m := <-server.reported:
				tt.want(t, m)
			case <-time.After(workflows.HeartbeatTimeout + 7*time.Second):
				t.Fatal("the call goes on")
			}
		})
	}
}

func givenBack(t *testing.T, m proto.Message) {
	t.Helper()
	failed, ok := m.(*workflowservice.RespondActivityTaskFailedRequest)
	require.True(t, ok, "%T", m)
	require.Equal(t, activities.CodeTaskLost, failed.GetFailure().GetApplicationFailureInfo().GetType())
}

// A process that was frozen with a task on its way to it asks before it makes a
// call that another worker makes as well.
func TestRunAsksWhetherALateTaskIsStillItsOwn(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		late  time.Duration
		gone  bool
		calls int32
	}{
		"given to another":                {workflows.HeartbeatTimeout + time.Second, true, 0},
		"late by another clock":           {workflows.HeartbeatTimeout + time.Second, false, 1},
		"in time, so nobody needs to ask": {0, true, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			server := newOneTask(t, b, time.Now().Add(-tt.late), func(*workflowservice.RecordActivityTaskHeartbeatResponse) error {
				if tt.gone {
					return status.Error(codes.NotFound, "activity task not found")
				}
				return nil
			})
			close(server.ended) // every beat is answered
			var calls atomic.Int32
			server.hand(t, b, func() {}, func(context.Context, llm.Request) (llm.Answer, error) {
				calls.Add(1)
				return llm.Answer{Text: "answer"}, nil
			})
			select {
			case m := <-server.reported:
				if tt.calls == 0 {
					givenBack(t, m)
				}
			case <-time.After(time.Minute):
				t.Fatal("nothing was reported")
			}
			require.Equal(t, tt.calls, calls.Load())
		})
	}
}
