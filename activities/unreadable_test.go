package activities_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/telemetry"
)

// Five attempts without a report end a job whose workers keep dying. Attempts
// that only lacked a key must not be among them.
func TestUnreadableJobsWait(t *testing.T) {
	t.Parallel()
	suite := &testsuite.WorkflowTestSuite{}
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestActivityEnvironment()
	left := map[string]any{} // what the next attempt finds
	env.SetOnActivityHeartbeatListener(func(_ *activity.Info, details converter.EncodedValues) {
		require.NoError(t, details.Get(&left))
	})
	metrics, err := telemetry.NewMetrics()
	require.NoError(t, err)
	runner := activities.NewRunner(job.Agent, activities.Config{}, nil, nil, nil, nil, nil, metrics)
	env.RegisterActivityWithOptions(func(ctx context.Context) error {
		return runner.Unreadable(ctx, errors.New("no key"))
	}, activity.RegisterOptions{Name: "RunAgent"})
	env.SetHeartbeatDetails(map[string]any{"classified": 6, "returned": 2, "malformed": 1, "first_failure_at": time.Unix(100, 0).UTC()})

	_, err = env.ExecuteActivity("RunAgent")
	var applicationErr *temporal.ApplicationError
	require.ErrorAs(t, err, &applicationErr)
	require.Equal(t, activities.CodeUnreadable, applicationErr.Type())
	require.Contains(t, applicationErr.Message(), "no key")
	require.False(t, applicationErr.NonRetryable())
	require.Equal(t, 4*time.Second, applicationErr.NextRetryDelay(), "slower from time to time, up to a minute")
	require.EqualValues(t, 7, left["classified"])
	require.EqualValues(t, 3, left["returned"])
	require.EqualValues(t, 1, left["malformed"], "the rest is kept")
	require.Equal(t, "1970-01-01T00:01:40Z", left["first_failure_at"])
}
