package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/hibiken/asynq"

	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// Executor is the name of the executor among the contestants.
const Executor = "executor"

// The executor's own streams and group.
const (
	updates      = "signalr:updates"
	group        = "executor-group"
	agentStream  = "jobs:agent"
	jobWorkflows = "job:agent:"
)

// Cell is one contestant at one concurrency in one round.
type Cell struct {
	Contestant  string             `json:"contestant"`
	Concurrency int                `json:"concurrency"`
	Round       int                `json:"round"`
	Jobs        int                `json:"jobs"`
	Rate        float64            `json:"jobs_per_second"`
	P50         float64            `json:"p50_ms"`
	P95         float64            `json:"p95_ms"`
	P99         float64            `json:"p99_ms"`
	CPU         map[string]float64 `json:"cpu_ms_per_job"` // by part
	Allocs      float64            `json:"allocs_per_job"` // of the contestant's process
	AllocBytes  float64            `json:"alloc_bytes_per_job"`
	Commands    float64            `json:"redis_commands_per_job"`   // the driver's included
	RoundTrips  float64            `json:"redis_roundtrips_per_job"` // without the driver's
}

// Runs is what Temporal keeps of one job.
type Runs struct {
	Events int64 `json:"events"`
	Bytes  int64 `json:"bytes"`
}

// field is the contestants that are up at the same time, and how to load each.
type field struct {
	w       *world
	members map[string]*member
	asynq   *asynq.Client
	runs    map[string][]Runs
}

// newField starts contestants.
func newField(ctx context.Context, w *world, names []string) (*field, error) {
	f := &field{w: w, members: map[string]*member{}, runs: map[string][]Runs{}}
	for _, name := range names {
		var err error
		if name == Executor {
			f.members[name], err = w.executor(ctx, Executor, nil, "run")
		} else {
			f.members[name], err = w.play(ctx, name)
		}
		if err != nil {
			return nil, err
		}
	}
	if slices.Contains(names, contestant.Queue) {
		f.asynq = asynq.NewClient(asynq.RedisClientOpt{Addr: w.server.Address()})
		return f, f.freeze(contestant.Queue)
	}
	return f, nil
}

// freeze stops the process of a contestant while others are measured. The queue
// needs it: it asks Redis some two hundred times a second whether there is
// something to do, and that would count as the work of whoever has its turn. The
// others wait for an answer.
func (f *field) freeze(name string) error { return f.members[name].Signal(syscall.SIGSTOP) }

func (f *field) thaw(name string) error { return f.members[name].Signal(syscall.SIGCONT) }

// cell measures one contestant.
func (f *field) cell(ctx context.Context, name string, concurrency, round int, win window) (c Cell, err error) {
	if err := f.w.llm.script(ctx, 0, 0); err != nil {
		return Cell{}, err
	}
	if name == contestant.Queue {
		if err := f.thaw(name); err != nil {
			return Cell{}, err
		}
		defer func() { err = errors.Join(err, f.freeze(name)) }()
	}
	m := f.members[name]
	run := func() (load, error) { return f.load(ctx, name, concurrency, win) }
	got, before, after, err := f.w.sampled(ctx, m, win, run)
	if err != nil {
		return Cell{}, fmt.Errorf("%s at concurrency %d: %w", name, concurrency, err)
	}
	jobs := float64(got.Jobs)
	c = Cell{
		Contestant: name, Concurrency: concurrency, Round: round, Jobs: got.Jobs, Rate: got.rate(),
		P50: ms(quantile(got.Latencies, 0.5)), P95: ms(quantile(got.Latencies, 0.95)), P99: ms(quantile(got.Latencies, 0.99)),
		CPU:        map[string]float64{},
		Allocs:     (after.heap[name].Mallocs - before.heap[name].Mallocs) / jobs,
		AllocBytes: (after.heap[name].AllocBytes - before.heap[name].AllocBytes) / jobs,
		Commands:   (after.redis.commands - before.redis.commands) / jobs,
		RoundTrips: (after.redis.reads - before.redis.reads - float64(after.trips-before.trips)) / jobs,
	}
	parts := append([]string{name}, f.w.servers()...)
	for _, part := range append(parts, Driver) {
		c.CPU[part] = 1000 * (after.cpu[part] - before.cpu[part]) / jobs
	}
	f.w.say("round %d  %-8s  concurrency %3d  %7.1f jobs/s  p50 %7.1f ms  p99 %7.1f ms  CPU %5.1f ms/job", round, name, concurrency, c.Rate, c.P50, c.P99, c.TotalCPU())
	return c, f.rest(ctx, name, got.Last)
}

// TotalCPU is the time of all parts but the driver.
func (c Cell) TotalCPU() float64 {
	var sum float64
	// In one order: floating-point sums depend on it.
	for _, part := range slices.Sorted(maps.Keys(c.CPU)) {
		if part != Driver {
			sum += c.CPU[part]
		}
	}
	return sum
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// load runs the loop of a contestant.
func (f *field) load(ctx context.Context, name string, concurrency int, win window) (load, error) {
	l := loop{w: f.w, updates: contestant.UpdatesStream(name), lanes: []lane{{stream: contestant.JobsStream(name), outstanding: concurrency}}}
	switch name {
	case contestant.Engine, contestant.Eager, contestant.Floor:
		return f.w.engineLoad(ctx, f.members[name], concurrency, win)
	case Executor:
		l.updates, l.lanes[0].stream = updates, agentStream
	case contestant.Queue:
		l.submit = func(ctx context.Context, _ lane, job contestant.Job) error {
			return contestant.Enqueue(ctx, f.asynq, job)
		}
	}
	return l.run(ctx, win)
}

// rest waits until a contestant is done with its jobs, and looks at what Temporal
// keeps of one.
func (f *field) rest(ctx context.Context, name, last string) error {
	var streams []string
	readers, workflow := name, last
	switch name {
	case Executor:
		streams, readers, workflow = []string{agentStream}, group, jobWorkflows+last
	case contestant.Naive:
		streams, workflow = []string{contestant.JobsStream(name)}, contestant.Naive+"-"+last
	case contestant.Old:
		streams = []string{contestant.JobsStream(name)}
	}
	if err := f.w.settle(ctx, readers, streams...); err != nil {
		return err
	}
	if name == contestant.Old || name == contestant.Queue {
		return nil
	}
	info, err := f.w.temporal.DescribeWorkflowExecution(ctx, workflow, "")
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f.runs[name] = append(f.runs[name], Runs{
		Events: info.GetWorkflowExecutionInfo().GetHistoryLength(), Bytes: info.GetWorkflowExecutionInfo().GetHistorySizeBytes(),
	})
	return nil
}

// close stops the contestants.
func (f *field) close(ctx context.Context) error {
	if f.asynq != nil {
		_ = f.asynq.Close() // it holds a connection, nothing else
	}
	members := make([]*member, 0, len(f.members))
	for _, m := range f.members {
		members = append(members, m)
	}
	return f.w.stop(ctx, members...)
}

// entrant is a contestant and the concurrencies it is measured at.
type entrant struct {
	name          string
	concurrencies []int
}

// rounds measures all entrants at all their concurrencies, in a new order each
// round, so that neither the order nor what else the machine does favours any.
func (f *field) rounds(ctx context.Context, n int, entrants []entrant, win window, done func(round []Cell) error) error {
	random := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // an order is no secret
	for round := 1; round <= n; round++ {
		var cells []Cell
		// All at one concurrency follow each other: what is compared is measured
		// within seconds.
		byConcurrency := map[int][]string{}
		var order []int
		for _, e := range entrants {
			for _, c := range e.concurrencies {
				if byConcurrency[c] == nil {
					order = append(order, c)
				}
				byConcurrency[c] = append(byConcurrency[c], e.name)
			}
		}
		random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, c := range order {
			names := byConcurrency[c]
			random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			for _, name := range names {
				cell, err := f.cell(ctx, name, c, round, win)
				if err != nil {
					return err
				}
				cells = append(cells, cell)
			}
		}
		if err := done(cells); err != nil {
			return err
		}
	}
	return nil
}
