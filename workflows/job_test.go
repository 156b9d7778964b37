package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// bundle is one workflow environment with recording activities.
type bundle struct {
	*testsuite.TestWorkflowEnvironment
	in workflows.Input

	mu    sync.Mutex
	steps []string // names of the activities in order of their completion
	told  []string // the current details while each of them ran

	calls     []workflows.Call
	persisted []job.Row
	published []workflows.Settled
	dead      []workflows.Settled
	acked     []job.Origin

	// Behaviour; the zero value answers every call and stores every row.
	run     func(ctx context.Context, call workflows.Call) (workflows.Answer, error)
	persist func(row job.Row) (workflows.Stored, error)
	publish func(attempt int, local bool) error
	stored  workflows.Stored // what ReadRow finds
}

func newBundle(t *testing.T, role job.Role) *bundle {
	t.Helper()
	suite := &testsuite.WorkflowTestSuite{}
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.NewTextHandler(t.Output(), nil))))
	b := &bundle{
		TestWorkflowEnvironment: suite.NewTestWorkflowEnvironment(),
		in: workflows.Input{
			Job: job.Job{Role: role, ID: "j1", WorkflowID: "w1", UserID: "u1", ProjectID: "p1", NodeID: "n1", ConnectionID: "c1", Task: "the task", Payload: "the payload"},
			Origin: job.Origin{
				Stream: role.Stream(), EntryID: "1700000000000-0", Group: "executor-group", Updates: "signalr:updates",
				EnqueuedAt: time.UnixMilli(1700000000000).UTC(),
			},
			Plan: workflows.CurrentPlan,
		},
	}
	// One second, the default, is short for a starved machine.
	b.SetWorkerOptions(worker.Options{DeadlockDetectionTimeout: time.Minute})
	register := func(name string, fn any) {
		b.RegisterActivityWithOptions(fn, activity.RegisterOptions{Name: name})
	}
	for _, r := range job.Roles() {
		register(workflows.RoleActivity(r), func(ctx context.Context, call workflows.Call) (workflows.Answer, error) {
			b.note(workflows.RoleActivity(r), func() { b.calls = append(b.calls, call) })
			if b.run != nil {
				return b.run(ctx, call)
			}
			return workflows.Answer{Text: "the answer", Model: "m", PromptTokens: 3, CompletionTokens: 5, Attempts: 1}, nil
		})
	}
	register(workflows.ActivityReadRow, func(context.Context, job.Key) (workflows.Stored, error) {
		b.note("ReadRow", func() {})
		return b.stored, nil
	})
	persist := func(_ context.Context, row job.Row) (workflows.Stored, error) {
		b.note("Persist", func() { b.persisted = append(b.persisted, row) })
		if b.persist != nil {
			return b.persist(row)
		}
		return workflows.Stored{Verdict: job.Written}, nil
	}
	attempts := 0
	publish := func(ctx context.Context, s workflows.Settled) (bool, error) {
		if b.publish != nil {
			attempts++
			if err := b.publish(attempts, activity.GetInfo(ctx).IsLocalActivity); err != nil {
				return false, err
			}
		}
		b.note("Publish", func() { b.published = append(b.published, s) })
		return true, nil
	}
	deadLetter := func(s workflows.Settled) { b.note("DeadLetter", func() { b.dead = append(b.dead, s) }) }
	acknowledge := func(o job.Origin) { b.note("Acknowledge", func() { b.acked = append(b.acked, o) }) }
	register(workflows.ActivityPersist, persist)
	register(workflows.ActivityPublish, publish)
	register(workflows.ActivityDeadLetter, func(_ context.Context, s workflows.Settled) (string, error) {
		deadLetter(s)
		return "1-0", nil
	})
	register(workflows.ActivityAcknowledge, func(_ context.Context, o job.Origin) error {
		acknowledge(o)
		return nil
	})
	// The real one is tested where it is; here it is what the workflow relies on.
	register(workflows.ActivityFinish, func(ctx context.Context, s workflows.Settled) (workflows.Stored, error) {
		stored, err := persist(ctx, s.Row)
		if err != nil {
			return stored, err
		}
		if stored.Row != nil {
			s.Row = *stored.Row
		}
		if stored.Verdict != job.Superseded {
			if _, err := publish(ctx, s); err != nil {
				return stored, err
			}
			if s.Row.Status == job.Failed {
				deadLetter(s)
			}
		}
		acknowledge(s.Origin)
		return stored, nil
	})
	return b
}

func (b *bundle) note(step string, record func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.steps = append(b.steps, step)
	b.told = append(b.told, b.currentDetails())
	record()
}

// fromEntry makes the run one that the bridge started.
func (b *bundle) fromEntry(t *testing.T) *bundle {
	t.Helper()
	require.NoError(t, b.SetMemoOnStart(map[string]any{
		workflows.MemoEntryID: b.in.Origin.EntryID, workflows.MemoStream: b.in.Origin.Stream,
	}))
	return b
}

func (b *bundle) execute(t *testing.T) (workflows.Result, error) {
	t.Helper()
	b.ExecuteWorkflow(workflows.JobWorkflow, b.in)
	require.True(t, b.IsWorkflowCompleted())
	if err := b.GetWorkflowError(); err != nil {
		return workflows.Result{}, err
	}
	var result workflows.Result
	require.NoError(t, b.GetWorkflowResult(&result))
	return result, nil
}

func TestJobWorkflowCompletesEveryRole(t *testing.T) {
	t.Parallel()
	for _, role := range job.Roles() {
		t.Run(string(role), func(t *testing.T) {
			t.Parallel()
			b := newBundle(t, role).fromEntry(t)
			locals := b.locals()
			result, err := b.execute(t)
			require.NoError(t, err)
			effect := "entry:jobs:" + string(role) + "/1700000000000-0"
			require.Equal(t, workflows.Result{
				Status: job.Completed, Verdict: job.Written, Effect: effect,
				Model: "m", PromptTokens: 3, CompletionTokens: 5, Attempts: 1,
			}, result)
			require.Equal(t, []string{workflows.RoleActivity(role), "Persist", "Publish", "Acknowledge"}, b.steps)
			require.Equal(t, effect, b.calls[0].Effect)
			require.Equal(t, b.in.Job, b.calls[0].Job)

			row := b.persisted[0]
			require.Equal(t, job.Key{Role: role, JobID: "j1"}, row.Key())
			require.Equal(t, "the answer", row.Output)
			require.Equal(t, effect, row.Effect)
			require.Equal(t, row.Fence, row.FinishedAt)
			require.Equal(t, "1700000000000-0", row.EntryID)
			require.Equal(t, "1700000000000-0", row.LastEntryID)
			require.Equal(t, []string{"w1", "u1", "p1", "n1", "c1"},
				[]string{row.NodptWorkflowID, row.UserID, row.ProjectID, row.NodeID, row.ConnectionID})
			require.Equal(t, row, b.published[0].Row)
			require.Equal(t, b.in.Origin, b.acked[0])
			require.Equal(t, []string{workflows.ActivityFinish}, *locals, "the final steps are one")
		})
	}
}

// Runs that were started before the final steps became one go on as they began.
func TestJobWorkflowOfPlanZero(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.in.Plan = 0
	locals := b.locals()
	result, err := b.execute(t)
	require.NoError(t, err)
	require.Equal(t, job.Completed, result.Status)
	require.Equal(t, []string{"RunAgent", "Persist", "Publish", "Acknowledge"}, b.steps)
	require.Equal(t, b.steps[1:], *locals)
}

// A worker that is older than the bridge leaves the run to one that is not.
func TestJobWorkflowOfAnUnknownPlan(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.in.Plan = workflows.CurrentPlan + 1
	_, err := b.execute(t)
	require.ErrorContains(t, err, "this worker is older")
	require.Empty(t, b.steps)
}

// What the store keeps is what the workflow knows, so that it need not come back.
func TestJobWorkflowRowIsAsPreciseAsTheStores(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.SetStartTime(time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.UTC))
	_, err := b.execute(t)
	require.NoError(t, err)
	for _, at := range []time.Time{b.persisted[0].StartedAt, b.persisted[0].FinishedAt} {
		require.Equal(t, at.Truncate(time.Microsecond), at)
		require.NotZero(t, at.Nanosecond()%1_000_000)
	}
}

// locals lists the local activities of the run.
func (b *bundle) locals() *[]string {
	names := new([]string)
	b.SetOnLocalActivityStartedListener(func(info *activity.Info, _ context.Context, _ []any) {
		*names = append(*names, info.ActivityType.Name)
	})
	return names
}

func TestJobWorkflowFailureLeavesDeadLetter(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.run = func(context.Context, workflows.Call) (workflows.Answer, error) {
		return workflows.Answer{}, temporal.NewNonRetryableApplicationError("safe message", "llm_bad_request", nil,
			workflows.Failure{Model: "m", Attempts: 2})
	}
	_, err := b.execute(t)
	var applicationErr *temporal.ApplicationError
	require.ErrorAs(t, err, &applicationErr)
	require.Equal(t, "llm_bad_request", applicationErr.Type())
	require.True(t, applicationErr.NonRetryable())
	require.Equal(t, []string{"RunAgent", "Persist", "Publish", "DeadLetter", "Acknowledge"}, b.steps)
	row := b.persisted[0]
	require.Equal(t, job.Failed, row.Status)
	require.Equal(t, []any{"llm_bad_request", "safe message", "m", 2}, []any{row.ErrorCode, row.ErrorMessage, row.Model, row.Attempts})
	require.Equal(t, b.in.Job, b.dead[0].Job, "the dead letter needs the content in case the entry is gone")
}

func TestJobWorkflowRetriesTheCall(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.run = func(ctx context.Context, _ workflows.Call) (workflows.Answer, error) {
		if attempt := activity.GetInfo(ctx).Attempt; attempt < 3 {
			return workflows.Answer{}, temporal.NewApplicationError("down", "llm_unreachable")
		}
		return workflows.Answer{Text: "late", Attempts: 3}, nil
	}
	result, err := b.execute(t)
	require.NoError(t, err)
	require.Equal(t, 3, result.Attempts)
	require.Len(t, b.calls, 3)
	require.Len(t, b.published, 1)
}

func TestJobWorkflowCanceledDuringTheCall(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.run = func(context.Context, workflows.Call) (workflows.Answer, error) {
		b.CancelWorkflow()
		return workflows.Answer{}, temporal.NewCanceledError()
	}
	_, err := b.execute(t)
	var canceledErr *temporal.CanceledError
	require.ErrorAs(t, err, &canceledErr)
	require.Equal(t, job.Canceled, b.persisted[0].Status)
	require.Equal(t, workflows.CodeCanceled, b.persisted[0].ErrorCode)
	require.Equal(t, []string{"RunAgent", "Persist", "Publish", "Acknowledge"}, b.steps, "a cancellation is no fault: no dead letter")
}

func TestJobWorkflowCanceledAfterTheAnswerIsCompleted(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.persist = func(job.Row) (workflows.Stored, error) {
		b.CancelWorkflow()
		return workflows.Stored{Verdict: job.Written}, nil
	}
	result, err := b.execute(t)
	require.NoError(t, err)
	require.Equal(t, job.Completed, result.Status)
	require.Equal(t, []string{"RunAgent", "Persist", "Publish", "Acknowledge"}, b.steps)
}

func TestJobWorkflowPublishesWhatWasStoredFirst(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	first := job.Row{
		Role: job.Agent, JobID: "j1", Effect: "entry:jobs:agent/1700000000000-0",
		Outcome: job.Outcome{Status: job.Failed, ErrorCode: "llm_timeout", ErrorMessage: "first"},
	}
	b.persist = func(job.Row) (workflows.Stored, error) {
		return workflows.Stored{Verdict: job.Kept, Row: &first}, nil
	}
	_, err := b.execute(t)
	var applicationErr *temporal.ApplicationError
	require.ErrorAs(t, err, &applicationErr, "the run ends as the stored outcome says")
	require.Equal(t, "llm_timeout", applicationErr.Type())
	require.Equal(t, "first", b.published[0].Row.ErrorMessage)
	require.Len(t, b.dead, 1)
}

func TestJobWorkflowSupersededOnlyAcknowledges(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.persist = func(row job.Row) (workflows.Stored, error) {
		other := row
		other.Effect, other.Output = "run:newer", ""
		return workflows.Stored{Verdict: job.Superseded, Row: &other}, nil
	}
	result, err := b.execute(t)
	require.NoError(t, err)
	require.Equal(t, job.Superseded, result.Verdict)
	require.Equal(t, []string{"RunAgent", "Persist", "Acknowledge"}, b.steps)
}

func TestJobWorkflowStartedByHand(t *testing.T) {
	t.Parallel()
	elsewhere := job.Row{Effect: "entry:jobs:agent/1-0", Outcome: job.Outcome{Status: job.Completed, Model: "m", Attempts: 4}}
	failed := job.Row{Effect: "entry:jobs:agent/1-0", Outcome: job.Outcome{Status: job.Failed}}
	tests := map[string]struct {
		stored   workflows.Stored
		override *workflows.Override
		steps    []string
		model    string
	}{
		"no row yet": {
			steps: []string{"ReadRow", "RunAgent", "Persist", "Publish", "Acknowledge"},
		},
		"failed before": {
			stored: workflows.Stored{Found: true, Row: &failed},
			steps:  []string{"ReadRow", "RunAgent", "Persist", "Publish", "Acknowledge"},
		},
		"completed before": {
			stored: workflows.Stored{Found: true, Row: &elsewhere},
			steps:  []string{"ReadRow"},
		},
		"completed before, forced with another model": {
			stored:   workflows.Stored{Found: true, Row: &elsewhere},
			override: &workflows.Override{Force: true, Model: "other"},
			steps:    []string{"RunAgent", "Persist", "Publish", "Acknowledge"},
			model:    "other",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t, job.Agent) // no memo: not the bridge's run
			b.stored = tt.stored
			if tt.override != nil {
				b.RegisterDelayedCallback(func() { b.SignalWorkflow(workflows.OverrideSignal, *tt.override) }, 0)
			}
			result, err := b.execute(t)
			require.NoError(t, err)
			require.Equal(t, tt.steps, b.steps)
			if len(b.calls) > 0 {
				require.Equal(t, tt.model, b.calls[0].Model)
				require.True(t, strings.HasPrefix(b.calls[0].Effect, "run:"), b.calls[0].Effect)
			} else {
				require.Equal(t, job.Superseded, result.Verdict)
				require.Equal(t, 4, result.Attempts)
			}
		})
	}
}

func TestJobWorkflowFinalStepFallsBackToRegularActivity(t *testing.T) {
	t.Parallel()
	for plan := range workflows.CurrentPlan + 1 {
		t.Run(fmt.Sprintf("plan %d", plan), func(t *testing.T) {
			t.Parallel()
			testFallBack(t, plan)
		})
	}
}

func testFallBack(t *testing.T, plan int) {
	t.Helper()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.in.Plan = plan
	var locals, regulars int
	b.publish = func(_ int, local bool) error {
		if local {
			locals++
			return errors.New("redis is down")
		}
		if regulars++; regulars < 4 {
			return errors.New("redis is still down")
		}
		return nil
	}
	result, err := b.execute(t)
	require.NoError(t, err)
	require.Equal(t, job.Completed, result.Status)
	require.GreaterOrEqual(t, locals, 2, "the local budget allows for a blip")
	require.Equal(t, 4, regulars)
	require.Len(t, b.calls, 1, "an outage of Redis pays for no second call")
	require.Len(t, b.acked, 1)
	last := b.published[len(b.published)-1]
	require.Empty(t, last.Job.Task+last.Job.Payload, "content is not carried into the history where it is not needed")
}

func TestJobWorkflowUnknownRole(t *testing.T) {
	t.Parallel()
	b := newBundle(t, job.Agent).fromEntry(t)
	b.in.Job.Role = "nobody"
	_, err := b.execute(t)
	var applicationErr *temporal.ApplicationError
	require.ErrorAs(t, err, &applicationErr)
	require.Equal(t, workflows.CodeUnknownRole, applicationErr.Type())
	require.Empty(t, b.calls)
	require.Equal(t, []string{"Persist", "Publish", "DeadLetter", "Acknowledge"}, b.steps)
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	attributes := workflows.Attributes(job.Job{Role: job.Chat, UserID: strings.Repeat("ü", 300), ProjectID: "p"}, "m")
	user, ok := attributes.GetKeyword(temporal.NewSearchAttributeKeyKeyword(workflows.AttributeUser))
	require.True(t, ok)
	require.Equal(t, strings.Repeat("ü", 255), user)
	require.Equal(t, 4, attributes.Size(), "role, user, project, model; the empty NodPT workflow is left out")
}
