package activities_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdkpb "go.temporal.io/api/sdk/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/internal/telemetry"
	"github.com/nodpt/executor/workflows"
)

type completerFunc func(ctx context.Context, req llm.Request) (llm.Answer, error)

func (f completerFunc) Complete(ctx context.Context, req llm.Request) (llm.Answer, error) {
	return f(ctx, req)
}

func (completerFunc) Endpoint() string { return "http://llm:11434/v1/chat/completions" }

type gateFunc func(ctx context.Context, holder string) (func(), error)

func (f gateFunc) Acquire(ctx context.Context, holder string) (func(), error) { return f(ctx, holder) }

// answerStore is an AnswerStore in memory.
type answerStore struct {
	mu    sync.Mutex
	data  map[string][]byte
	err   error
	saved func() // called when an answer is kept, if set
}

func (s *answerStore) SaveAnswer(_ context.Context, effect string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.saved != nil {
		s.saved()
	}
	s.data[effect] = data
	return nil
}

func (s *answerStore) LoadAnswer(_ context.Context, effect string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.data[effect]
	return data, ok, s.err
}

// runBundle is one role activity in an activity environment.
type runBundle struct {
	env   *testsuite.TestActivityEnvironment
	cfg   activities.Config
	llm   completerFunc
	slots activities.Slots
	gate  activities.Gate
	store *answerStore
	cool  *activities.CoolDown
	call  workflows.Call
	asked []llm.Request
	// What the last heartbeat says: to operators, and to the next attempt.
	shown, progress map[string]any
}

func newRunBundle(t *testing.T) *runBundle {
	t.Helper()
	suite := &testsuite.WorkflowTestSuite{}
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.NewTextHandler(t.Output(), nil))))
	b := &runBundle{
		env: suite.NewTestActivityEnvironment(),
		cfg: activities.Config{
			Models:       map[job.Role]string{job.Manager: "mm", job.Inspector: "mi", job.Agent: "ma"},
			DefaultModel: "md",
			ChatModels:   []string{"*"},
			MaxTokens:    map[job.Role]int{job.Agent: 128},
			RetryFor:     24 * time.Hour,
			DrainTimeout: time.Minute,
		},
		llm: func(context.Context, llm.Request) (llm.Answer, error) {
			return llm.Answer{Text: "the answer", PromptTokens: 3, CompletionTokens: 5}, nil
		},
		store: &answerStore{data: map[string][]byte{}},
		cool:  activities.NewCoolDown("endpoint", nil),
		call:  workflows.Call{Job: job.Job{Role: job.Agent, ID: "j1", Task: "the task"}, Effect: "entry:jobs:agent/1-0"},
	}
	b.env.SetOnActivityHeartbeatListener(func(_ *activity.Info, details converter.EncodedValues) {
		b.shown, b.progress = map[string]any{}, map[string]any{}
		require.NoError(t, details.Get(&b.progress))
		for _, name := range []string{"state", "since", "attempt", "model", "endpoint"} {
			require.Contains(t, b.progress, name)
			b.shown[name] = b.progress[name]
			delete(b.progress, name)
		}
	})
	return b
}

func (b *runBundle) run(t *testing.T) (workflows.Answer, error) {
	t.Helper()
	metrics, err := telemetry.NewMetrics()
	require.NoError(t, err)
	runner := activities.NewRunner(job.Agent, b.cfg,
		completerFunc(func(ctx context.Context, req llm.Request) (llm.Answer, error) {
			b.asked = append(b.asked, req)
			return b.llm(ctx, req)
		}),
		b.slots, b.gate, activities.NewAnswers(b.store), b.cool, metrics)
	b.env.RegisterActivityWithOptions(runner.Run, activity.RegisterOptions{Name: "RunAgent"})
	value, err := b.env.ExecuteActivity("RunAgent", b.call)
	if err != nil {
		return workflows.Answer{}, err
	}
	var answer workflows.Answer
	require.NoError(t, value.Get(&answer))
	return answer, nil
}

func TestRunAnswers(t *testing.T) {
	t.Parallel()
	b := newRunBundle(t)
	answer, err := b.run(t)
	require.NoError(t, err)
	require.Equal(t, workflows.Answer{Text: "the answer", Model: "ma", PromptTokens: 3, CompletionTokens: 5, Attempts: 1}, answer)
	require.Equal(t, []llm.Request{{Model: "ma", Prompt: "the task", MaxTokens: 128}}, b.asked)
	require.Contains(t, b.store.data, "entry:jobs:agent/1-0", "a paid answer is kept")
	require.Nil(t, b.shown, "a short call costs no heartbeat")
}

func TestRunOverrides(t *testing.T) {
	t.Parallel()
	b := newRunBundle(t)
	b.call.Model, b.call.MaxTokens = "other", 7
	_, err := b.run(t)
	require.NoError(t, err)
	require.Equal(t, []llm.Request{{Model: "other", Prompt: "the task", MaxTokens: 7}}, b.asked)
}

func TestRunKeptAnswer(t *testing.T) {
	t.Parallel()
	kept, err := json.Marshal(workflows.Answer{Text: "kept", Model: "ma"})
	require.NoError(t, err)
	tests := map[string]struct {
		redelivered bool
		storeErr    error
		want        string
		calls       int
	}{
		"first delivery does not look":    {want: "the answer", calls: 1},
		"redelivered finds it":            {redelivered: true, want: "kept"},
		"redelivered while Redis is away": {redelivered: true, storeErr: errors.New("down"), want: "the answer", calls: 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			b.store.data[b.call.Effect] = kept
			b.store.err = tt.storeErr
			b.call.Redelivered = tt.redelivered
			answer, err := b.run(t)
			require.NoError(t, err)
			require.Equal(t, tt.want, answer.Text)
			require.Len(t, b.asked, tt.calls)
			require.Equal(t, 1, answer.Attempts)
		})
	}
}

// TestRunDecides has a row for every line of DESIGN.md's table of LLM answers.
func TestRunDecides(t *testing.T) {
	t.Parallel()
	yesterday := time.Now().Add(-25 * time.Hour).UTC()
	recent := time.Now().Add(-time.Minute).UTC()
	tests := map[string]struct {
		err      error
		before   map[string]any // progress of earlier attempts
		code     string
		advice   string
		final    bool
		minDelay time.Duration // 0: the retry policy's own
		maxDelay time.Duration
		benign   bool
		left     map[string]any // progress left, apart from first_failure_at
	}{
		"unreachable": {
			advice: "check that LLM_ENDPOINT is up",
			err:    &llm.Error{Kind: llm.Unreachable}, code: "llm_unreachable",
			left: map[string]any{"classified": 1.0},
		},
		"timeout": {
			advice: "raise LLM_TIMEOUT",
			err:    &llm.Error{Kind: llm.Timeout}, code: "llm_timeout",
			left: map[string]any{"classified": 1.0},
		},
		"server error": {
			advice: "see its log",
			err:    &llm.Error{Kind: llm.ServerError, Status: 500}, code: "llm_server_error",
			left: map[string]any{"classified": 1.0},
		},
		"retried for too long": {
			advice: "given up after RETRY_FOR (24h0m0s)",
			err:    &llm.Error{Kind: llm.Unreachable}, before: map[string]any{"first_failure_at": yesterday, "classified": 90},
			code: "llm_unreachable", final: true,
		},
		"retried for a while": {
			err: &llm.Error{Kind: llm.Unreachable}, before: map[string]any{"first_failure_at": recent, "classified": 4},
			code: "llm_unreachable", left: map[string]any{"classified": 5.0},
		},
		"429 with Retry-After": {
			advice: "MAX_AGENT",
			err:    &llm.Error{Kind: llm.RateLimited, Status: 429, RetryAfter: 7 * time.Second}, code: "llm_rate_limited",
			minDelay: 7 * time.Second, maxDelay: 9 * time.Second, benign: true, left: map[string]any{"classified": 1.0},
		},
		"429 without Retry-After": {
			err: &llm.Error{Kind: llm.RateLimited, Status: 429}, code: "llm_rate_limited",
			minDelay: 5 * time.Second, maxDelay: 6 * time.Second, benign: true, left: map[string]any{"classified": 1.0},
		},
		"503 with Retry-After": {
			advice: "see its log",
			err:    &llm.Error{Kind: llm.ServerError, Status: 503, RetryAfter: 3 * time.Second}, code: "llm_server_error",
			minDelay: 3 * time.Second, maxDelay: 4 * time.Second, benign: true, left: map[string]any{"classified": 1.0},
		},
		"quota": {
			advice: "check the account behind LLM_API_KEY",
			err:    &llm.Error{Kind: llm.Quota, Status: 429}, before: map[string]any{"first_failure_at": recent, "classified": 20},
			code: "llm_quota", minDelay: time.Minute, maxDelay: time.Minute, left: map[string]any{"classified": 21.0},
		},
		"misconfigured, at first": {
			advice: "check LLM_ENDPOINT and the model's name",
			err:    &llm.Error{Kind: llm.Misconfigured, Status: 404}, code: "llm_misconfigured",
			minDelay: time.Second, maxDelay: time.Second, left: map[string]any{"classified": 1.0},
		},
		"misconfigured, for long": {
			advice: "check LLM_API_KEY",
			err:    &llm.Error{Kind: llm.Misconfigured, Status: 401}, before: map[string]any{"first_failure_at": yesterday, "classified": 90},
			code: "llm_misconfigured", final: true,
		},
		"bad request": {
			advice: "the LLM server's log",
			err:    &llm.Error{Kind: llm.BadRequest, Status: 400}, code: "llm_bad_request", final: true,
		},
		"filtered":  {advice: "another model", err: &llm.Error{Kind: llm.Filtered}, code: "llm_content_filtered", final: true},
		"too large": {advice: "MAX_TOKENS_AGENT", err: &llm.Error{Kind: llm.TooLarge}, code: "llm_answer_too_large", final: true},
		"malformed, first": {
			advice: "check LLM_ENDPOINT",
			err:    &llm.Error{Kind: llm.Malformed}, code: "llm_malformed_answer",
			left: map[string]any{"classified": 1.0, "malformed": 1.0},
		},
		"malformed, third": {
			advice: "check LLM_ENDPOINT",
			err:    &llm.Error{Kind: llm.Malformed}, before: map[string]any{"first_failure_at": recent, "classified": 2, "malformed": 2},
			code: "llm_malformed_answer", final: true,
		},
		"malformed after other failures": {
			err: &llm.Error{Kind: llm.Malformed}, before: map[string]any{"first_failure_at": recent, "classified": 9},
			code: "llm_malformed_answer", left: map[string]any{"classified": 10.0, "malformed": 1.0},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			b.llm = func(context.Context, llm.Request) (llm.Answer, error) { return llm.Answer{}, tt.err }
			if tt.before != nil {
				b.env.SetHeartbeatDetails(tt.before)
			}
			_, err := b.run(t)
			var applicationErr *temporal.ApplicationError
			require.ErrorAs(t, err, &applicationErr)
			require.Equal(t, tt.code, applicationErr.Type())
			require.Equal(t, tt.final, applicationErr.NonRetryable())
			require.Equal(t, tt.benign, applicationErr.Category() == temporal.ApplicationErrorCategoryBenign)
			require.GreaterOrEqual(t, applicationErr.NextRetryDelay(), tt.minDelay)
			require.LessOrEqual(t, applicationErr.NextRetryDelay(), tt.maxDelay)
			var failure workflows.Failure
			require.NoError(t, applicationErr.Details(&failure))
			text := applicationErr.Message() // what the UI shows of a pending call
			if tt.final {
				require.NotContains(t, text, "llm_", "the message of a final failure is for users")
				text = failure.Cause
			}
			require.Contains(t, text, tt.err.Error())
			require.Contains(t, text, "(attempt 1, model ma, endpoint http://llm:11434/v1/chat/completions)")
			require.Contains(t, text, tt.advice, "what to do")
			require.Equal(t, tt.benign, strings.Contains(text, "retry-after until "), text)
			failure.Cause = ""
			require.Equal(t, workflows.Failure{Model: "ma", Attempts: 1}, failure)
			if tt.final {
				return
			}
			if tt.benign {
				require.Contains(t, b.shown["state"], "waiting: endpoint asks for patience until ")
			} else {
				require.Equal(t, "failed with "+tt.code+", waiting for the next attempt", b.shown["state"])
			}
			require.NotEmpty(t, b.progress["first_failure_at"])
			delete(b.progress, "first_failure_at")
			require.Equal(t, tt.left, b.progress)
		})
	}
}

// serverClock lets attempts begin at another time by the server's clock.
type serverClock struct {
	interceptor.WorkerInterceptorBase
	ahead time.Duration
}

func (c *serverClock) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &clockInbound{interceptor.ActivityInboundInterceptorBase{Next: next}, c.ahead}
}

type clockInbound struct {
	interceptor.ActivityInboundInterceptorBase
	ahead time.Duration
}

func (c *clockInbound) Init(outbound interceptor.ActivityOutboundInterceptor) error {
	return c.Next.Init(&clockOutbound{interceptor.ActivityOutboundInterceptorBase{Next: outbound}, c.ahead})
}

type clockOutbound struct {
	interceptor.ActivityOutboundInterceptorBase
	ahead time.Duration
}

func (c *clockOutbound) GetInfo(ctx context.Context) activity.Info {
	info := c.Next.GetInfo(ctx)
	info.StartedTime = info.StartedTime.Add(c.ahead)
	return info
}

// Fault F56: attempts of one job run on workers whose clocks differ by more than
// RETRY_FOR. The server's clock decides.
func TestRunRetriesByTheClockOfTheServer(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		ahead, failing time.Duration // of the server's clock; since the first failure
		final          bool
	}{
		"worker behind, retried for a while": {48 * time.Hour, time.Hour, false},
		"worker behind, retried too long":    {48 * time.Hour, 25 * time.Hour, true},
		"worker ahead, retried for a while":  {-48 * time.Hour, time.Hour, false},
		"worker ahead, retried too long":     {-48 * time.Hour, 25 * time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			b.llm = func(context.Context, llm.Request) (llm.Answer, error) {
				return llm.Answer{}, &llm.Error{Kind: llm.Unreachable}
			}
			b.env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{&serverClock{ahead: tt.ahead}}})
			first := time.Now().Add(tt.ahead - tt.failing)
			b.env.SetHeartbeatDetails(map[string]any{"first_failure_at": first, "classified": 1})
			_, err := b.run(t)
			var applicationErr *temporal.ApplicationError
			require.ErrorAs(t, err, &applicationErr)
			require.Equal(t, tt.final, applicationErr.NonRetryable())
		})
	}

	b := newRunBundle(t)
	b.llm = func(context.Context, llm.Request) (llm.Answer, error) {
		return llm.Answer{}, &llm.Error{Kind: llm.Unreachable}
	}
	b.env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{&serverClock{ahead: 48 * time.Hour}}})
	_, err := b.run(t)
	require.Error(t, err)
	noted, ok := b.progress["first_failure_at"].(string)
	require.True(t, ok)
	at, err := time.Parse(time.RFC3339Nano, noted)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(48*time.Hour), at, time.Hour)
}

func TestRunPanicIsRetriedThenFails(t *testing.T) {
	t.Parallel()
	b := newRunBundle(t)
	b.llm = func(context.Context, llm.Request) (llm.Answer, error) { panic("the task") }
	_, err := b.run(t)
	var applicationErr *temporal.ApplicationError
	require.ErrorAs(t, err, &applicationErr)
	require.Equal(t, activities.CodePanic, applicationErr.Type())
	require.False(t, applicationErr.NonRetryable())
	require.NotContains(t, err.Error(), "the task")
	require.EqualValues(t, 1, b.progress["malformed"])
	_, err = b.cool.Enter(t.Context())
	require.NoError(t, err)

	b = newRunBundle(t)
	b.llm = func(context.Context, llm.Request) (llm.Answer, error) { panic("the task") }
	b.env.SetHeartbeatDetails(map[string]any{"first_failure_at": time.Now(), "classified": 2, "malformed": 2})
	_, err = b.run(t)
	require.ErrorAs(t, err, &applicationErr)
	require.True(t, applicationErr.NonRetryable())
}

func TestRunGivesTheTaskBackWhileWaitingForTheTotalLimit(t *testing.T) {
	t.Parallel()
	b := newRunBundle(t)
	stop := make(chan struct{})
	b.env.SetWorkerStopChannel(stop)
	b.gate = gateFunc(func(ctx context.Context, _ string) (func(), error) {
		close(stop)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	_, err := b.run(t)
	var applicationErr *temporal.ApplicationError
	require.ErrorAs(t, err, &applicationErr)
	require.Equal(t, activities.CodeShutdown, applicationErr.Type())
	require.False(t, applicationErr.NonRetryable())
	require.Less(t, applicationErr.NextRetryDelay(), time.Second)
	require.Positive(t, applicationErr.NextRetryDelay())
	require.Equal(t, map[string]any{"classified": 1.0, "returned": 1.0}, b.progress,
		"a task given back is no failure of the job")
	require.Empty(t, b.asked)
}

func TestRunEndsTheCallWhenTheDrainIsOver(t *testing.T) {
	t.Parallel()
	b := newRunBundle(t)
	b.cfg.DrainTimeout = time.Millisecond
	stop := make(chan struct{})
	b.env.SetWorkerStopChannel(stop)
	b.llm = func(ctx context.Context, _ llm.Request) (llm.Answer, error) {
		close(stop)
		<-ctx.Done()
		return llm.Answer{}, &llm.Error{Kind: llm.Canceled}
	}
	_, err := b.run(t)
	var applicationErr *temporal.ApplicationError
	require.ErrorAs(t, err, &applicationErr)
	require.Equal(t, activities.CodeShutdown, applicationErr.Type())
	require.Positive(t, applicationErr.NextRetryDelay())
	require.Equal(t, map[string]any{"classified": 1.0, "returned": 1.0}, b.progress)
}

func TestRunWaitsOutACoolDown(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		before map[string]any
		final  bool
	}{
		"at first":           {},
		"tried for too long": {map[string]any{"first_failure_at": time.Now().Add(-25 * time.Hour), "classified": 3, "returned": 2}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			b.cool = activities.NewCoolDown("endpoint", nil)
			leave, err := b.cool.Enter(t.Context())
			require.NoError(t, err)
			leave(limited())
			if tt.before != nil {
				b.env.SetHeartbeatDetails(tt.before)
			}
			_, err = b.run(t)
			var applicationErr *temporal.ApplicationError
			require.ErrorAs(t, err, &applicationErr)
			require.Equal(t, activities.CodeCoolDown, applicationErr.Type())
			require.Equal(t, tt.final, applicationErr.NonRetryable())
			require.Empty(t, b.asked)
			if !tt.final {
				require.Equal(t, map[string]any{"classified": 1.0, "returned": 1.0}, b.progress, "waiting is no failure")
			}
		})
	}
}

// TestRunAfterAnActivityWasResetByHand starts at attempt 1 with the details of
// many attempts.
func TestRunAfterAnActivityWasResetByHand(t *testing.T) {
	t.Parallel()
	b := newRunBundle(t)
	b.env.SetHeartbeatDetails(map[string]any{"first_failure_at": time.Now(), "classified": 7, "returned": 5})
	b.store.data[b.call.Effect] = []byte(`{"text":"kept"}`)
	answer, err := b.run(t)
	require.NoError(t, err)
	require.Equal(t, "kept", answer.Text, "an answer paid for is looked for")
	require.Equal(t, 1, answer.Attempts)
}

func TestRunReleasesThePermit(t *testing.T) {
	t.Parallel()
	for name, callErr := range map[string]error{"answered": nil, "failed": &llm.Error{Kind: llm.Unreachable}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			var holders []string
			released := 0
			b.gate = gateFunc(func(_ context.Context, holder string) (func(), error) {
				holders = append(holders, holder)
				return func() { released++ }, nil
			})
			b.llm = func(context.Context, llm.Request) (llm.Answer, error) {
				require.Zero(t, released, "the permit is held during the call")
				return llm.Answer{Text: "x"}, callErr
			}
			_, err := b.run(t)
			require.Equal(t, callErr == nil, err == nil)
			require.Equal(t, 1, released)
			require.Len(t, holders, 1)
			require.Regexp(t, `^[^/]+/[^/]+/1$`, holders[0])
		})
	}
}

// TestRunEndsTheJobWhoseWorkersDie lets five attempts end without a report, as
// the death of their workers would.
func TestRunEndsTheJobWhoseWorkersDie(t *testing.T) {
	t.Parallel()
	suite := &testsuite.WorkflowTestSuite{}
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.NewTextHandler(t.Output(), nil))))
	env := suite.NewTestWorkflowEnvironment()
	env.SetWorkerOptions(worker.Options{DeadlockDetectionTimeout: time.Minute})
	metrics, err := telemetry.NewMetrics()
	require.NoError(t, err)
	asked := 0
	runner := activities.NewRunner(job.Agent, activities.Config{RetryFor: time.Hour},
		completerFunc(func(context.Context, llm.Request) (llm.Answer, error) { asked++; return llm.Answer{}, nil }),
		nil, nil, activities.NewAnswers(nil), activities.NewCoolDown("e", nil), metrics)
	env.RegisterActivityWithOptions(func(ctx context.Context, call workflows.Call) (workflows.Answer, error) {
		if activity.GetInfo(ctx).Attempt <= 5 {
			return workflows.Answer{}, errors.New("stands for a worker that died")
		}
		return runner.Run(ctx, call)
	}, activity.RegisterOptions{Name: "RunAgent"})
	var rows []job.Row
	env.RegisterActivityWithOptions(func(_ context.Context, row job.Row) (workflows.Stored, error) {
		rows = append(rows, row)
		return workflows.Stored{Verdict: job.Written}, nil
	}, activity.RegisterOptions{Name: workflows.ActivityPersist})
	for _, name := range []string{workflows.ActivityPublish, workflows.ActivityDeadLetter} {
		env.RegisterActivityWithOptions(func(context.Context, workflows.Settled) error { return nil }, activity.RegisterOptions{Name: name})
	}
	env.RegisterActivityWithOptions(func(context.Context, job.Origin) error { return nil }, activity.RegisterOptions{Name: workflows.ActivityAcknowledge})
	require.NoError(t, env.SetMemoOnStart(map[string]any{workflows.MemoEntryID: "1-0"}))
	env.ExecuteWorkflow(workflows.JobWorkflow, workflows.Input{Job: job.Job{Role: job.Agent, ID: "j"}, Origin: job.Origin{Stream: "jobs:agent", EntryID: "1-0"}})
	require.Error(t, env.GetWorkflowError())
	require.Len(t, rows, 1)
	require.Equal(t, activities.CodeWorkerDied, rows[0].ErrorCode)
	require.Equal(t, 5, rows[0].Attempts)
	require.Zero(t, asked)
	metadata, err := env.QueryWorkflow("__temporal_workflow_metadata")
	require.NoError(t, err)
	var told sdkpb.WorkflowMetadata
	require.NoError(t, metadata.Get(&told))
	require.Contains(t, told.GetCurrentDetails(), "5 attempts ended without a report: look for what ended their workers")
}

func TestPrompt(t *testing.T) {
	t.Parallel()
	require.Equal(t, "do it", activities.Prompt(job.Job{Role: job.Manager, Task: "do it", Payload: "ignored"}))
	//nolint:testifylint // byte for byte: the escaping is the point
	require.Equal(t, `{"code":"if a < b && c > d {\n\t\"é\"\n}","task":"review <this>"}`,
		activities.Prompt(job.Job{Role: job.Inspector, Task: "review <this>", Payload: "if a < b && c > d {\n\t\"é\"\n}"}))
	require.Equal(t, "hello", activities.Prompt(job.Job{Role: job.Chat, Task: "hello"}))
}

func TestModelFor(t *testing.T) {
	t.Parallel()
	models := map[job.Role]string{job.Manager: "mm", job.Inspector: "mi", job.Agent: "ma"}
	tests := map[string]struct {
		cfg  activities.Config
		job  job.Job
		want string
	}{
		"role":                       {activities.Config{Models: models, DefaultModel: "md"}, job.Job{Role: job.Inspector, Model: "x"}, "mi"},
		"chat names a model":         {activities.Config{Models: models, ChatModels: []string{"*"}}, job.Job{Role: job.Chat, Model: "x"}, "x"},
		"chat names one on the list": {activities.Config{Models: models, ChatModels: []string{"x", "y"}}, job.Job{Role: job.Chat, Model: "y"}, "y"},
		"chat names one it may not":  {activities.Config{Models: models, ChatModels: []string{"x"}, DefaultModel: "md"}, job.Job{Role: job.Chat, Model: "z"}, "md"},
		"chat by node level":         {activities.Config{Models: models, DefaultModel: "md"}, job.Job{Role: job.Chat, NodeLevel: "manager"}, "mm"},
		"chat by unknown level":      {activities.Config{Models: models, DefaultModel: "md"}, job.Job{Role: job.Chat, NodeLevel: "emperor"}, "md"},
		"chat, MODEL_CHAT":           {activities.Config{Models: map[job.Role]string{job.Chat: "mc"}, DefaultModel: "md"}, job.Job{Role: job.Chat}, "mc"},
		"chat, nothing set":          {activities.Config{Models: models}, job.Job{Role: job.Chat}, "ma"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, tt.cfg.ModelFor(tt.job))
		})
	}
}
