package e2e

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

const (
	jobsUnderLimits = 200
	agentModel      = "trt-llm-agent"
)

// flood submits 200 jobs, mostly for the agent, and waits for all of them.
func (b *bundle) flood() {
	b.T.Helper()
	roles := []string{"agent", "manager", "agent", "inspector", "agent"}
	for i := range jobsUnderLimits {
		b.Submit(roles[i%len(roles)], "jobId", fmt.Sprintf("flood-%d", i), "userId", "u1", "task", harness.Text("task"))
	}
	for _, role := range []string{"agent", "manager", "inspector"} {
		b.Settled(role)
	}
	rows := b.Rows("status = 'completed'")
	require.Len(b.T, rows, jobsUnderLimits)
	published, err := b.Redis.XLen(b.T.Context(), harness.Updates).Result()
	require.NoError(b.T, err)
	require.EqualValues(b.T, jobsUnderLimits, published)
	// On a starved machine a worker may miss its heartbeats, and the job gets
	// another attempt; no attempt calls twice.
	var attempts int64
	for _, row := range rows {
		attempts += row["attempts"].(int64)
	}
	calls := b.LLM.Stats().Calls
	require.GreaterOrEqual(b.T, calls, jobsUnderLimits)
	require.LessOrEqual(b.T, int64(calls), attempts)
	b.T.Logf("%d jobs, %d attempts, %d calls", jobsUnderLimits, attempts, calls)
}

func limits() map[string]string { return map[string]string{"MAX_AGENT": "5", "MAX_TOTAL": "7"} }

func TestLimitsInOneProcess(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.LLM.Script(map[string]any{"latency_ms": 50})
	b.Start(limits(), "run")
	b.flood()
	stats := b.LLM.Stats()
	require.LessOrEqual(t, stats.MaxRunningByModel[agentModel], 5)
	require.LessOrEqual(t, stats.MaxRunning, 7)
}

func TestLimitsAcrossProcesses(t *testing.T) {
	t.Parallel()
	for name, agents := range map[string]int{"a worker per queue": 1, "two agent workers": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.LLM.Script(map[string]any{"latency_ms": 50})
			executors := []harness.Executor{
				b.Launch(limits(), "bridge"),
				b.Launch(limits(), "worker", "--queues", "workflows"),
				b.Launch(limits(), "worker", "--queues", "manager"),
				b.Launch(limits(), "worker", "--queues", "inspector,chat"),
			}
			for range agents {
				executors = append(executors, b.Launch(limits(), "worker", "--queues", "agent"))
			}
			b.Ready(executors...)
			b.flood()
			stats := b.LLM.Stats()
			// A role's limit counts per process, the total over all of them.
			require.LessOrEqual(t, stats.MaxRunningByModel[agentModel], agents*5)
			require.LessOrEqual(t, stats.MaxRunning, 7)
		})
	}
}
