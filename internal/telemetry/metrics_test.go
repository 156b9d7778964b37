package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/telemetry"
)

func newMetrics(t *testing.T, models ...string) *telemetry.Metrics {
	t.Helper()
	m, err := telemetry.NewMetrics(models...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Shutdown(context.WithoutCancel(t.Context()))) })
	return m
}

// scrape returns the series, one per element, without comments.
func scrape(t *testing.T, m *telemetry.Metrics) []string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	require.Equal(t, 200, w.Code)
	return slices.DeleteFunc(strings.Split(w.Body.String(), "\n"), func(line string) bool {
		return line == "" || strings.HasPrefix(line, "#")
	})
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	m := newMetrics(t, "trt-llm-agent")
	m.JobStarted(job.Agent)
	m.Running(job.Agent, 1)
	m.Running(job.Agent, 1)
	m.Running(job.Agent, -1)
	m.TotalWaiting(job.Chat, 2)
	m.JobFinished(job.Agent, job.Completed, "", 2*time.Second)
	m.JobFinished(job.Agent, job.Failed, "llm_timeout", -time.Hour)
	m.EntryRejected(job.Chat, "task_missing")
	m.EntryDuplicate(job.Manager, "reask")
	m.EntryNormalised(job.Inspector, "field_case")
	m.EntriesLost(job.Agent, 3)
	m.EntriesLost(job.Agent, 0)
	m.EntriesUnaccounted(job.Agent, "restored", 2)
	m.BridgeError(job.Agent, "redis_unavailable")
	m.ActivityError(job.Agent, "llm_quota")
	m.LLMCall(job.Agent, "trt-llm-agent", 1500*time.Millisecond, 10, 20, "")
	m.LLMCall(job.Agent, "trt-llm-agent", time.Second, 0, 0, "llm_timeout")
	m.LLMFinished(job.Agent, "length")
	m.LLMFinished(job.Agent, "tired")
	m.ObserveStreams(func(context.Context) (map[job.Role]telemetry.StreamStats, error) {
		return map[job.Role]telemetry.StreamStats{
			job.Agent: {Length: 100, Pending: 7, DeadLength: 2, Lag: 5, OldestPending: 90 * time.Second},
		}, nil
	})

	series := scrape(t, m)
	for _, want := range []string{
		`executor_jobs_started_total{role="agent"} 1`,
		`executor_jobs_running{role="agent"} 1`,
		`executor_total_waiting{role="chat"} 2`,
		`executor_jobs_finished_total{code="none",role="agent",status="completed"} 1`,
		`executor_jobs_finished_total{code="llm_timeout",role="agent",status="failed"} 1`,
		`executor_job_duration_seconds_sum{role="agent",status="completed"} 2`,
		`executor_entries_rejected_total{reason="task_missing",role="chat"} 1`,
		`executor_entries_duplicate_total{kind="reask",role="manager"} 1`,
		`executor_entries_normalised_total{note="field_case",role="inspector"} 1`,
		`executor_entries_lost_total{role="agent"} 3`,
		`executor_entries_unaccounted_total{kind="restored",role="agent"} 2`,
		`executor_llm_answers_total{finish_reason="length",role="agent"} 1`,
		`executor_llm_answers_total{finish_reason="other",role="agent"} 1`,
		`executor_bridge_errors_total{kind="redis_unavailable",role="agent"} 1`,
		`executor_activity_errors_total{kind="llm_quota",role="agent"} 1`,
		`executor_streams_up 1`,
		`executor_stream_length{role="agent"} 100`,
		`executor_stream_pending{role="agent"} 7`,
		`executor_stream_lag{role="agent"} 5`,
		`executor_stream_oldest_pending_age_seconds{role="agent"} 90`,
		`executor_dead_letter_length{role="agent"} 2`,
		`gen_ai_client_operation_duration_seconds_sum{gen_ai_operation_name="chat",gen_ai_provider_name="openai-compatible",gen_ai_request_model="trt-llm-agent",role="agent"} 1.5`,
		`gen_ai_client_operation_duration_seconds_count{error_type="llm_timeout",gen_ai_operation_name="chat",gen_ai_provider_name="openai-compatible",gen_ai_request_model="trt-llm-agent",role="agent"} 1`,
		`gen_ai_client_token_usage_sum{gen_ai_operation_name="chat",gen_ai_provider_name="openai-compatible",gen_ai_request_model="trt-llm-agent",gen_ai_token_type="input",role="agent"} 10`,
		`gen_ai_client_token_usage_sum{gen_ai_operation_name="chat",gen_ai_provider_name="openai-compatible",gen_ai_request_model="trt-llm-agent",gen_ai_token_type="output",role="agent"} 20`,
	} {
		require.Contains(t, series, want)
	}
	for _, prefix := range []string{"go_memstats_alloc_bytes ", "process_resident_memory_bytes ", "go_goroutines "} {
		require.True(t, slices.ContainsFunc(series, func(s string) bool { return strings.HasPrefix(s, prefix) }), prefix)
	}
	require.False(t, slices.ContainsFunc(series, func(s string) bool {
		return strings.HasPrefix(s, "executor_job_duration") && strings.Contains(s, `status="failed"`)
	}), "a negative age is not measured")
}

func TestTheSDKsMetrics(t *testing.T) {
	t.Parallel()
	m := newMetrics(t)
	h := m.TemporalHandler().WithTags(map[string]string{"task_queue": "executor-agent"})
	h.Counter("temporal_activity_execution_failed").Inc(2)
	h.Gauge("temporal_worker_task_slots_available").Update(3)
	h.Timer("temporal_activity_execution_latency").Record(20 * time.Millisecond)

	series := scrape(t, m)
	require.Contains(t, series, `temporal_activity_execution_failed_total{task_queue="executor-agent"} 2`)
	require.Contains(t, series, `temporal_worker_task_slots_available{task_queue="executor-agent"} 3`)
	require.Contains(t, series, `temporal_activity_execution_latency_seconds_bucket{task_queue="executor-agent",le="0.025"} 1`)
}

// Whatever callers hand over, the number of series stays small and no label
// carries it.
func TestLabelsAreBounded(t *testing.T) {
	t.Parallel()
	m := newMetrics(t, "known-model")
	hostile := []string{canary, "", "a b", `"}`, "日本", strings.Repeat("x", 500), "with\nbreak", "UPPER"}
	for i := range 2000 {
		hostile = append(hostile, fmt.Sprintf("code_%d", i))
	}
	for _, s := range hostile {
		role := job.Role(s)
		m.JobStarted(role)
		m.JobFinished(role, job.Status(s), s, time.Second)
		m.EntryRejected(role, s)
		m.EntryDuplicate(role, s)
		m.EntryNormalised(role, s)
		m.EntriesLost(role, 1)
		m.EntriesUnaccounted(role, s, 1)
		m.BridgeError(role, s)
		m.ActivityError(role, s)
		m.Running(role, 1)
		m.TotalWaiting(role, 1)
		m.LLMCall(role, s, time.Second, 1, 1, s)
		m.LLMCall(role, s, time.Second, 1, 1, "")
		m.LLMFinished(role, s)
	}
	m.ObserveStreams(func(context.Context) (map[job.Role]telemetry.StreamStats, error) {
		return map[job.Role]telemetry.StreamStats{job.Role(canary): {Length: 1}}, nil
	})

	series := scrape(t, m)
	require.Less(t, len(series), 2500)
	byMetric := make(map[string]int)
	for _, s := range series {
		require.NotContains(t, s, canary)
		require.NotContains(t, s, "UPPER")
		name, _, _ := strings.Cut(s, "{")
		if strings.HasPrefix(name, "executor_") && strings.HasSuffix(name, "_total") {
			byMetric[name]++
		}
	}
	require.NotEmpty(t, byMetric)
	for name, n := range byMetric {
		require.LessOrEqual(t, n, 70, name)
	}
	allowed := regexp.MustCompile(`^(le|role|status|code|reason|finish_reason|kind|note|quantile|version|error_type|gen_ai_(operation_name|provider_name|request_model|token_type))$`)
	label := regexp.MustCompile(`[{,]([a-z_]+)="`)
	for _, s := range series {
		for _, found := range label.FindAllStringSubmatch(s, -1) {
			require.Regexp(t, allowed, found[1], s)
		}
	}
}

func TestStreamsThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	m := newMetrics(t)
	require.NotContains(t, strings.Join(scrape(t, m), "\n"), "executor_stream", "a process without a bridge has none")

	m.ObserveStreams(func(ctx context.Context) (map[job.Role]telemetry.StreamStats, error) {
		deadline, ok := ctx.Deadline()
		require.True(t, ok)
		require.LessOrEqual(t, time.Until(deadline), 2*time.Second)
		return nil, errors.New(canary)
	})
	series := scrape(t, m)
	require.Contains(t, series, "executor_streams_up 0")
	require.NotContains(t, strings.Join(series, "\n"), "executor_stream_length")
	require.NotContains(t, strings.Join(series, "\n"), canary)
}

func TestMetricsAreSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	m := newMetrics(t)
	done := make(chan struct{})
	for i := range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			for j := range 50 {
				m.EntryRejected(job.Agent, fmt.Sprintf("reason_%d", i*j))
				m.Running(job.Agent, 1)
				m.Running(job.Agent, -1)
			}
		}()
	}
	for range 8 {
		<-done
	}
	require.Contains(t, scrape(t, m), `executor_jobs_running{role="agent"} 0`)
}
