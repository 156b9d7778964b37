package contestant

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
)

func TestEngineRunsALoad(t *testing.T) {
	t.Parallel()
	for _, name := range []string{Engine, Eager, Floor} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testEngine(t, name)
		})
	}
}

func testEngine(t *testing.T, name string) {
	t.Helper()
	w := newWorld(t, name)
	w.startTemporal(t)
	w.start(t)

	var before, after Memory
	require.Equal(t, http.StatusOK, w.ask(t, http.MethodGet, "/memory", nil, &before))
	var result LoadResult
	load := Load{Concurrency: 4, WarmupMS: 200, MeasureMS: 3000, TaskBytes: 200, PayloadBytes: 1000}
	require.Equal(t, http.StatusOK, w.ask(t, http.MethodPost, "/load", load, &result))
	require.Positive(t, result.Jobs)
	require.Len(t, result.Latencies, result.Jobs)
	for _, latency := range result.Latencies {
		require.Positive(t, latency)
	}
	require.InDelta(t, 3, result.Seconds, 0)
	require.Equal(t, http.StatusOK, w.ask(t, http.MethodGet, "/memory", nil, &after))
	require.Positive(t, before.HeapBytes)
	require.Greater(t, after.Mallocs, before.Mallocs)
	require.Greater(t, after.AllocBytes, before.AllocBytes)

	c, err := client.Dial(client.Options{HostPort: w.cfg.Temporal})
	require.NoError(t, err)
	defer c.Close()
	events := map[enumspb.EventType]int{}
	history := c.GetWorkflowHistory(t.Context(), result.Sample, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for history.HasNext() {
		event, err := history.Next()
		require.NoError(t, err)
		events[event.GetEventType()]++
	}
	require.Equal(t, map[enumspb.EventType]int{
		enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:   1,
		enumspb.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED:      2,
		enumspb.EVENT_TYPE_WORKFLOW_TASK_STARTED:        2,
		enumspb.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:      2,
		enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:      1,
		enumspb.EVENT_TYPE_ACTIVITY_TASK_STARTED:        1,
		enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:      1,
		enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: 1,
	}, events)
	w.wait(t, "no job is left", func(ctx context.Context) error {
		open, err := c.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: `ExecutionStatus = "Running"`})
		if err == nil && open.GetCount() > 0 {
			err = context.DeadlineExceeded
		}
		return err
	})
}

func TestEngineRefusesImpossibleLoads(t *testing.T) {
	t.Parallel()
	e := new(engine)
	tests := map[string]string{
		"no JSON":        `x`,
		"no concurrency": `{"measure_ms":1}`,
		"no time":        `{"concurrency":1}`,
		"negative":       `{"concurrency":1,"measure_ms":1,"task_bytes":-1}`,
	}
	for name, body := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			recorded := httptest.NewRecorder()
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/load", strings.NewReader(body))
			require.NoError(t, err)
			e.handle(recorded, request)
			require.Equal(t, http.StatusBadRequest, recorded.Code)
		})
	}
}

func TestNaiveDoesItsJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Naive)
	w.startTemporal(t)
	w.start(t)
	jobs := someJobs(5)
	w.llm.refuse(jobs[2], 1)
	w.llm.gather(len(jobs))
	w.add(t, jobs...)
	w.requireAnswered(t, jobs)
	w.acknowledged(t, len(jobs))
	w.requireRows(t, jobs)
	require.Equal(t, 2, w.llm.callsFor(jobs[2]), "a call that failed is repeated")
}

func TestOldDoesItsJobsAndLosesThoseThatFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Old)
	w.start(t)
	jobs := someJobs(5)
	w.llm.refuse(jobs[0], 1)
	w.add(t, jobs...)
	w.acknowledged(t, len(jobs))
	w.requireAnswered(t, jobs[1:])
	require.Equal(t, 1, w.llm.mostAtOnce())
}

func TestQueueDoesItsJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Queue)
	w.start(t)
	c := asynq.NewClient(asynq.RedisClientOpt{Addr: w.cfg.Redis})
	defer func() { _ = c.Close() }()
	jobs := someJobs(5)
	w.llm.gather(len(jobs))
	for _, j := range jobs {
		require.NoError(t, Enqueue(t.Context(), c, j))
	}
	w.requireAnswered(t, jobs)
	w.requireRows(t, jobs)
}

func TestConfigMistakesAreToldAtOnce(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		cfg     Config
		missing []string
	}{
		"engine": {Config{Name: Engine}, []string{"http", "temporal"}},
		"eager":  {Config{Name: Eager}, []string{"http", "temporal"}},
		"floor":  {Config{Name: Floor}, []string{"http", "temporal"}},
		"naive":  {Config{Name: Naive}, []string{"http", "temporal", "redis", "llm", "database"}},
		"old":    {Config{Name: Old, Redis: "127.0.0.1:1"}, []string{"http", "llm"}},
		"queue":  {Config{Name: Queue, HTTP: "127.0.0.1:1"}, []string{"redis", "llm", "database"}},
	}
	require.Len(t, tests, len(Names()))
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var want []string
			for _, setting := range test.missing {
				want = append(want, "contestant "+name+": "+setting+" is not set")
			}
			require.EqualError(t, Run(t.Context(), test.cfg), strings.Join(want, "\n"))
		})
	}
	require.ErrorContains(t, Run(t.Context(), Config{Name: "other"}), `"other"`)
}

func TestRunTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Old)
	w.cfg.LLM = "http://127.0.0.1:1/api/chat"
	require.ErrorContains(t, Run(t.Context(), w.cfg), "does not end in /chat/completions")
	w.cfg.LLM = w.llm.url
	w.cfg.HTTP = strings.TrimPrefix(w.llm.url, "http://")
	w.cfg.HTTP, _, _ = strings.Cut(w.cfg.HTTP, "/")
	require.ErrorContains(t, Run(t.Context(), w.cfg), "in use")
}

func TestNewJobHasTheSizesAskedFor(t *testing.T) {
	t.Parallel()
	j := NewJob("job-1", 200, 1000)
	require.Len(t, j.Task, 200)
	require.True(t, strings.HasPrefix(j.Task, "job-1 "))
	require.Len(t, j.Payload, 1000)
	require.JSONEq(t, `{"code":"`+strings.Repeat("x", 1000-len(`{"code":""}`))+`"}`, j.Payload)
	require.Equal(t, "job", NewJob("job-1", 3, 0).Task)

	fields := map[string]any{}
	for i, names := 0, j.Fields(); i < len(names); i += 2 {
		fields[names[i]] = names[i+1]
	}
	require.Equal(t, j, jobOf(fields))
}
