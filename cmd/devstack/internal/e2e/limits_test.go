package e2e

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	jobsUnderLimits = 200
	agentModel      = "trt-llm-agent"
)

// flood submits 200 jobs, mostly for the agent, and waits for all of them.
func (b *bundle) flood() {
	b.t.Helper()
	roles := []string{"agent", "manager", "agent", "inspector", "agent"}
	for i := range jobsUnderLimits {
		b.submit(roles[i%len(roles)], "jobId", fmt.Sprintf("flood-%d", i), "userId", "u1", "task", text("task"))
	}
	for _, role := range []string{"agent", "manager", "inspector"} {
		b.settled(role)
	}
	rows := b.rows("status = 'completed'")
	require.Len(b.t, rows, jobsUnderLimits)
	published, err := b.redis.XLen(b.t.Context(), updates).Result()
	require.NoError(b.t, err)
	require.EqualValues(b.t, jobsUnderLimits, published)
	// On a starved machine a worker may miss its heartbeats, and the job gets
	// another attempt; no attempt calls twice.
	var attempts int64
	for _, row := range rows {
		attempts += row["attempts"].(int64)
	}
	calls := b.llm.stats().Calls
	require.GreaterOrEqual(b.t, calls, jobsUnderLimits)
	require.LessOrEqual(b.t, int64(calls), attempts)
	b.t.Logf("%d jobs, %d attempts, %d calls", jobsUnderLimits, attempts, calls)
}

func limits() map[string]string { return map[string]string{"MAX_AGENT": "5", "MAX_TOTAL": "7"} }

func TestLimitsInOneProcess(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.llm.script(map[string]any{"latency_ms": 50})
	b.start(limits(), "run")
	b.flood()
	stats := b.llm.stats()
	require.LessOrEqual(t, stats.MaxRunningByModel[agentModel], 5)
	require.LessOrEqual(t, stats.MaxRunning, 7)
}

func TestLimitsAcrossProcesses(t *testing.T) {
	t.Parallel()
	for name, agents := range map[string]int{"a worker per queue": 1, "two agent workers": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.llm.script(map[string]any{"latency_ms": 50})
			executors := []executor{
				b.launch(limits(), "bridge"),
				b.launch(limits(), "worker", "--queues", "workflows"),
				b.launch(limits(), "worker", "--queues", "manager"),
				b.launch(limits(), "worker", "--queues", "inspector,chat"),
			}
			for range agents {
				executors = append(executors, b.launch(limits(), "worker", "--queues", "agent"))
			}
			b.ready(executors...)
			b.flood()
			stats := b.llm.stats()
			// A role's limit counts per process, the total over all of them.
			require.LessOrEqual(t, stats.MaxRunningByModel[agentModel], agents*5)
			require.LessOrEqual(t, stats.MaxRunning, 7)
		})
	}
}
