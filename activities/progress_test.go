package activities_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/llm"
)

// TestRunForgivesWorkersThatDiedWhileItWaited: a job that waits for a place does
// not kill its worker.
func TestRunForgivesWorkersThatDiedWhileItWaited(t *testing.T) {
	t.Parallel()
	left := func(state string, attempt, classified, returned, waited int) map[string]any {
		return map[string]any{"state": state, "attempt": attempt, "classified": classified, "returned": returned, "waited": waited}
	}
	tests := map[string]struct {
		before map[string]any // the test's attempt is the first
		want   map[string]any // what the next attempt finds
	}{
		"waited for a slot":    {left("waiting for a slot of this worker", 0, 1, 1, 0), map[string]any{"classified": 3.0, "returned": 2.0, "waited": 1.0}},
		"waited for MAX_TOTAL": {left("waiting for MAX_TOTAL", 0, 1, 1, 0), map[string]any{"classified": 3.0, "returned": 2.0, "waited": 1.0}},
		"called":               {left("calling the LLM", 0, 1, 1, 0), map[string]any{"classified": 2.0, "returned": 1.0}},
		"reported":             {left("failed with llm_timeout, waiting for the next attempt", 0, 1, 1, 0), map[string]any{"classified": 2.0, "returned": 1.0}},
		"reset by hand":        {left("waiting for MAX_TOTAL", 7, 1, 1, 0), map[string]any{"classified": 2.0, "returned": 1.0}},
		"for the fifth time":   {left("waiting for MAX_TOTAL", 0, 4, 4, 4), map[string]any{"classified": 6.0, "returned": 5.0, "waited": 5.0}},
		"too often":            {left("waiting for MAX_TOTAL", 0, 5, 5, 5), map[string]any{"classified": 6.0, "returned": 5.0, "waited": 5.0}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			b.env.SetHeartbeatDetails(tt.before)
			b.llm = func(context.Context, llm.Request) (llm.Answer, error) {
				return llm.Answer{}, &llm.Error{Kind: llm.Unreachable}
			}
			_, err := b.run(t)
			require.Error(t, err)
			delete(b.progress, "first_failure_at")
			require.Equal(t, tt.want, b.progress)
		})
	}
}
