package worker

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/testsuite"
	sdk "go.temporal.io/sdk/worker"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// roleStub answers with the task it was given.
type roleStub struct{ unreadable error }

func (*roleStub) Run(_ context.Context, call workflows.Call) (workflows.Answer, error) {
	return workflows.Answer{Text: call.Job.Task}, nil
}

func (s *roleStub) Unreadable(_ context.Context, err error) error {
	s.unreadable = err
	return errors.New("unreadable")
}

// activityRegistry registers in an activity environment.
type activityRegistry struct {
	sdk.Registry
	env *testsuite.TestActivityEnvironment
}

func (r activityRegistry) RegisterDynamicActivity(a any, options activity.DynamicRegisterOptions) {
	r.env.RegisterDynamicActivity(a, options)
}

func TestRoleActivityDecodesItsCall(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		activity string
		argument any
		want     string // part of the error
		asked    bool   // what to make of an argument that is no call
	}{
		"a call":           {"RunAgent", workflows.Call{Job: job.Job{Task: "t"}}, "", false},
		"not a call":       {"RunAgent", "a text", "unreadable", true},
		"another activity": {"RunChat", workflows.Call{}, "RunAgent only", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			suite := &testsuite.WorkflowTestSuite{}
			suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
			env := suite.NewTestActivityEnvironment()
			stub := &roleStub{}
			RoleComponent(Config{}, job.Agent, NewSlots(Config{}, job.Agent), stub).Register(activityRegistry{env: env})
			value, err := env.ExecuteActivity(tt.activity, tt.argument)
			if tt.asked {
				require.Error(t, stub.unreadable)
			} else {
				require.NoError(t, stub.unreadable)
			}
			if tt.want != "" {
				require.ErrorContains(t, err, tt.want)
				return
			}
			require.NoError(t, err)
			var answer workflows.Answer
			require.NoError(t, value.Get(&answer))
			require.Equal(t, "t", answer.Text)
		})
	}
}
