package contestant

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"golang.org/x/sync/errgroup"
)

// Names of the engine's workflow and activity. Its queue is named after the
// contestant.
const (
	EngineWorkflow = "EngineWorkflow"
	engineActivity = "Nothing"
)

// EngineQueue is the task queue of a contestant that is nothing but the engine.
func EngineQueue(name string) string { return "bench-" + name }

// Pollers and slots as the executor has them: worker/limits.go and
// worker/component.go of the root module, which this one must not import.
const (
	enginePollers         = 2
	engineWorkflowPollers = 4
	engineWorkflowSlots   = 200
)

// Load is a closed loop: so many jobs are outstanding all the time, and those
// that complete after the warm-up are counted.
type Load struct {
	Concurrency  int `json:"concurrency"`
	WarmupMS     int `json:"warmup_ms"`
	MeasureMS    int `json:"measure_ms"`
	TaskBytes    int `json:"task_bytes"`
	PayloadBytes int `json:"payload_bytes"`
}

// LoadResult is what a Load gave. All jobs have ended when it is known.
type LoadResult struct {
	Jobs    int     `json:"jobs"`    // completed while it was measured
	Seconds float64 `json:"seconds"` // for how long it was measured
	// Latencies of those jobs in microseconds, from before the start of the
	// workflow until its code had nothing left to do.
	Latencies []int64 `json:"latencies_us"`
	Sample    string  `json:"sample"` // the workflow id of one job, closed
}

// engine is the ceiling: what the engine alone does for a job of that size, one
// workflow with one activity that does nothing. As Engine the client waits for the
// result, as clients do: somebody has to learn the answer, and with the executor
// that is whoever reads its update.
//
// As Eager a workflow's first task comes with the reply to its start, as it does
// for the executor in one process: there client and worker have to be one program.
//
// As Floor nobody waits, and no answer is told outside of the process: less cannot
// be done with the engine. Where the executor's update leaves, within the last
// workflow task, it notes that the job is complete.
type engine struct {
	client  client.Client
	queue   string
	told    bool // the client waits for the result
	eager   bool // the first task comes with the reply to the start
	answer  string
	waiting sync.Map // workflow id → chan time.Time
}

func runEngine(ctx context.Context, cfg Config, s *site) error {
	c, err := dial(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	e := &engine{client: c, queue: EngineQueue(cfg.Name), told: cfg.Name != Floor, eager: cfg.Name == Eager, answer: strings.Repeat("x", max(cfg.AnswerBytes, 0))}
	options := worker.Options{
		MaxConcurrentWorkflowTaskPollers:       engineWorkflowPollers,
		MaxConcurrentWorkflowTaskExecutionSize: engineWorkflowSlots,
		MaxConcurrentActivityTaskPollers:       enginePollers,
		MaxConcurrentActivityExecutionSize:     cfg.Concurrency,
		DisableEagerActivities:                 true,
	}
	register := func(r worker.Registry) {
		r.RegisterWorkflowWithOptions(e.workflow, workflow.RegisterOptions{Name: EngineWorkflow})
		r.RegisterActivityWithOptions(e.nothing, activity.RegisterOptions{Name: engineActivity})
	}
	return withWorker(ctx, c, e.queue, options, register, func(ctx context.Context) error {
		s.mux.HandleFunc("POST /load", e.handle)
		s.ready()
		<-ctx.Done()
		return nil
	})
}

func (e *engine) workflow(ctx workflow.Context, j Job) (string, error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: time.Minute})
	var answer string
	if err := workflow.ExecuteActivity(ctx, engineActivity, j).Get(ctx, &answer); err != nil {
		return "", err
	}
	if e.told {
		return answer, nil
	}
	e.completed(workflow.GetInfo(ctx).WorkflowExecution.ID)
	return "", nil
}

func (e *engine) nothing(context.Context, Job) (string, error) { return e.answer, nil }

// completed tells the waiting load. A workflow task that is done again has
// nobody waiting any more.
func (e *engine) completed(workflowID string) {
	if done, waited := e.waiting.LoadAndDelete(workflowID); waited {
		done.(chan time.Time) <- time.Now()
	}
}

func (e *engine) handle(w http.ResponseWriter, r *http.Request) {
	var l Load
	if err := json.NewDecoder(r.Body).Decode(&l); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if l.Concurrency < 1 || l.MeasureMS < 1 || min(l.WarmupMS, l.TaskBytes, l.PayloadBytes) < 0 {
		http.Error(w, "concurrency and measure_ms are at least 1, nothing is negative", http.StatusBadRequest)
		return
	}
	result, err := e.load(r.Context(), l)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, result)
}

// load runs a load to its end.
func (e *engine) load(ctx context.Context, l Load) (LoadResult, error) {
	var jobs atomic.Int64
	prefix := e.queue + "-" + uuid.NewString()[:8] + "-"
	measured := time.Duration(l.MeasureMS) * time.Millisecond
	from := time.Now().Add(time.Duration(l.WarmupMS) * time.Millisecond)
	until := from.Add(measured)

	group, loop := errgroup.WithContext(ctx)
	counted := make([][]int64, l.Concurrency)
	for i := range counted {
		group.Go(func() error {
			for time.Now().Before(until) {
				j := NewJob(prefix+strconv.FormatInt(jobs.Add(1), 10), l.TaskBytes, l.PayloadBytes)
				began := time.Now()
				ended, err := e.run(loop, j)
				if err != nil {
					return err
				}
				if !ended.Before(from) && ended.Before(until) {
					counted[i] = append(counted[i], ended.Sub(began).Microseconds())
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return LoadResult{}, err
	}
	sample := prefix + "1"
	if err := e.client.GetWorkflow(ctx, sample, "").Get(ctx, nil); err != nil {
		return LoadResult{}, fmt.Errorf("sample: %w", err)
	}
	latencies := slices.Concat(counted...)
	return LoadResult{Jobs: len(latencies), Seconds: measured.Seconds(), Latencies: latencies, Sample: sample}, nil
}

// run does one job and returns when it was complete. The job's id is also the
// workflow's.
func (e *engine) run(ctx context.Context, j Job) (time.Time, error) {
	done := make(chan time.Time, 1)
	e.waiting.Store(j.ID, done)
	defer e.waiting.Delete(j.ID)
	options := client.StartWorkflowOptions{ID: j.ID, TaskQueue: e.queue, EnableEagerStart: e.eager}
	run, err := e.client.ExecuteWorkflow(ctx, options, EngineWorkflow, j)
	if err != nil {
		return time.Time{}, fmt.Errorf("start: %w", err)
	}
	if e.told {
		var answer string
		if err := run.Get(ctx, &answer); err != nil {
			return time.Time{}, fmt.Errorf("result: %w", err)
		}
		return time.Now(), nil
	}
	select {
	case at := <-done:
		return at, nil
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
}
