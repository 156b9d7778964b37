package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// Report is everything that a run has measured.
type Report struct {
	Began       time.Time         `json:"began"`
	Minutes     float64           `json:"minutes"`
	Machine     string            `json:"machine"`
	Store       string            `json:"store"`            // where Temporal keeps its state
	Shards      int               `json:"shards,omitempty"` // of Temporal's history; 0 is the devstack's default
	Version     string            `json:"executor_version,omitempty"`
	Rounds      int               `json:"rounds"`
	StartUp     []float64         `json:"startup_seconds"` // from nothing to the first finished job
	Cells       []Cell            `json:"cells"`
	Runs        map[string]Runs   `json:"runs"` // what Temporal keeps of a job, median
	Memory      map[string]Memory `json:"memory"`
	Utilisation []Utilisation     `json:"utilisation"`
	OldRate     float64           `json:"old_jobs_per_second"` // with calls of a second
	Backlog     *Backlog          `json:"backlog,omitempty"`
}

// Figures are the results that are promised, as the last line of a quick run.
type Figures struct {
	ExecutorVsEngine float64 `json:"executor_vs_engine_c32"`
	ExecutorVsNaive  float64 `json:"executor_vs_naive_c32"`
	P50VsEngine      float64 `json:"p50_vs_engine_c1"`
	Slots            float64 `json:"slot_utilisation"`
	SlotsTotal       float64 `json:"slot_utilisation_total_limit"`
	VsOld            float64 `json:"vs_old"`
	Events           int64   `json:"events_per_job"`
	RoundTrips       float64 `json:"redis_roundtrips_per_job"`
}

// Names of scenarios that something is promised of.
const (
	PlainSlots        = "intake running"
	TotalSlots        = "intake running, MAX_TOTAL binds"
	ProcessSlots      = "two worker processes"
	ProcessTotalSlots = "two worker processes, MAX_TOTAL binds"
)

// demoSlots are the limits of the demo, and of the predecessor's README.
func demoSlots() slots { return slots{manager: 5, inspector: 10, agent: 20} }

// halfSlots are those of each of two processes: as many calls together as one has
// alone, because a measurement of slots must not be one of the processor.
func halfSlots() slots { return slots{manager: 3, inspector: 5, agent: 10} }

const demoTotal = 20

// Quick measures what Figures holds, in a few minutes.
func Quick(ctx context.Context, opts Options) (Report, error) {
	return measure(ctx, opts, plan{
		rounds: 5,
		window: window{warmup: time.Second, measure: 4 * time.Second},
		entrants: []entrant{
			{Executor, []int{1, 32}},
			{contestant.Engine, []int{1, 32}},
			{contestant.Naive, []int{32}},
		},
		scenarios: []scenario{
			{name: PlainSlots, slots: demoSlots()},
			{name: TotalSlots, slots: demoSlots(), total: demoTotal},
		},
		slotWindow: window{warmup: 6 * time.Second, measure: 15 * time.Second},
	})
}

// One measures one contestant at one concurrency, for a profile of it.
func One(ctx context.Context, opts Options, name string, concurrency int, measure time.Duration) (err error) {
	w, err := newWorld(ctx, opts, "world")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(context.WithoutCancel(ctx))) }()
	f, err := newField(ctx, w, []string{name})
	if err != nil {
		return err
	}
	cell, err := f.cell(ctx, name, concurrency, 1, window{warmup: 3 * time.Second, measure: measure})
	if err != nil {
		return errors.Join(err, f.close(context.WithoutCancel(ctx)))
	}
	w.say("CPU by part, in ms for each job: %v; its own process allocated %.0f objects, %.0f kB for each", cell.CPU, cell.Allocs, cell.AllocBytes/1000)
	return f.close(context.WithoutCancel(ctx))
}

// Full measures everything.
func Full(ctx context.Context, opts Options) (Report, error) {
	all := []int{1, 8, 32, 128}
	return measure(ctx, opts, plan{
		rounds: 9, startUps: 3,
		window: window{warmup: 1500 * time.Millisecond, measure: 5 * time.Second},
		entrants: []entrant{
			{Executor, all},
			{contestant.Engine, all},
			{contestant.Eager, all},
			{contestant.Floor, all},
			{contestant.Naive, all},
			{contestant.Old, all},
			{contestant.Queue, all},
		},
		scenarios: []scenario{
			{name: PlainSlots, slots: demoSlots()},
			{name: TotalSlots, slots: demoSlots(), total: demoTotal},
			{name: "durations scattered (sigma 0.6)", slots: demoSlots(), sigma: 0.6},
			{name: ProcessSlots, slots: halfSlots(), processes: 2},
			{name: ProcessTotalSlots, slots: halfSlots(), processes: 2, total: demoTotal},
			{name: "two worker processes, durations scattered", slots: halfSlots(), processes: 2, sigma: 0.6},
		},
		slotWindow: window{warmup: 8 * time.Second, measure: 30 * time.Second},
		backlog:    true,
	})
}

// Postgres measures what changes when Temporal keeps its state in a PostgreSQL
// server.
func Postgres(ctx context.Context, opts Options) (Report, error) {
	opts.Postgres = true
	all := []int{1, 8, 32, 128}
	return measure(ctx, opts, plan{
		rounds:   5,
		window:   window{warmup: 1500 * time.Millisecond, measure: 5 * time.Second},
		entrants: []entrant{{Executor, all}, {contestant.Engine, all}, {contestant.Eager, all}, {contestant.Floor, all}, {contestant.Naive, all}},
		scenarios: []scenario{
			{name: PlainSlots, slots: demoSlots()},
			{name: TotalSlots, slots: demoSlots(), total: demoTotal},
		},
		slotWindow: window{warmup: 8 * time.Second, measure: 30 * time.Second},
	})
}

// plan is what a run measures.
type plan struct {
	rounds     int
	startUps   int
	window     window
	entrants   []entrant
	scenarios  []scenario
	slotWindow window
	backlog    bool
}

func measure(ctx context.Context, opts Options, p plan) (r Report, err error) {
	r = Report{Began: time.Now().UTC().Truncate(time.Second), Machine: machine(), Store: "SQLite", Rounds: p.rounds}
	if opts.Postgres {
		r.Store, r.Shards = "PostgreSQL", opts.Shards
	}
	if r.Version, err = version(ctx, opts.Executor); err != nil {
		return r, err
	}
	keep := func() error {
		r.Minutes = time.Since(r.Began).Minutes()
		if opts.Keep == nil {
			return nil
		}
		return opts.Keep(r)
	}
	for i := range p.startUps {
		seconds, err := startUp(ctx, opts, i)
		if err != nil {
			return r, fmt.Errorf("start-up: %w", err)
		}
		r.StartUp = append(r.StartUp, seconds)
	}

	w, err := newWorld(ctx, opts, "world")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.close(context.WithoutCancel(ctx))) }()
	if err := contest(ctx, w, p, &r, keep); err != nil {
		return r, err
	}
	for _, s := range p.scenarios {
		u, err := w.utilisation(ctx, s, p.slotWindow)
		if err != nil {
			return r, err
		}
		r.Utilisation = append(r.Utilisation, u)
		if err := keep(); err != nil {
			return r, err
		}
	}
	if r.OldRate, err = w.oldRate(ctx, 6*time.Second); err != nil {
		return r, err
	}
	if err := keep(); err != nil {
		return r, err
	}
	if p.backlog {
		b, err := measureBacklog(ctx, opts)
		if err != nil {
			return r, fmt.Errorf("backlog: %w", err)
		}
		r.Backlog = &b
	}
	err = keep()
	return r, err
}

// contest measures the rounds, and calls keep after each.
func contest(ctx context.Context, w *world, p plan, r *Report, keep func() error) (err error) {
	var names []string
	for _, e := range p.entrants {
		names = append(names, e.name)
	}
	f, err := newField(ctx, w, names)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close(context.WithoutCancel(ctx))) }()
	err = f.rounds(ctx, p.rounds, p.entrants, p.window, func(round []Cell) error {
		r.Cells = append(r.Cells, round...)
		return keep()
	})
	if err != nil {
		return err
	}
	r.Runs = map[string]Runs{}
	for name, runs := range f.runs {
		slices.SortFunc(runs, func(a, b Runs) int { return int(a.Events - b.Events) })
		r.Runs[name] = runs[len(runs)/2]
	}
	r.Memory, err = w.memories()
	return err
}

// Values are one measure of a contestant at a concurrency, by rounds.
func (r Report) Values(name string, concurrency int, of func(Cell) float64) []float64 {
	var out []float64
	for _, c := range r.Cells {
		if c.Contestant == name && c.Concurrency == concurrency {
			out = append(out, of(c))
		}
	}
	return out
}

func rate(c Cell) float64 { return c.Rate }
func p50(c Cell) float64  { return c.P50 }

// Against is a measure of the executor divided by that of another, round by round.
func (r Report) Against(name string, concurrency int, of func(Cell) float64) Estimate {
	return Estimated(Ratios(r.Values(Executor, concurrency, of), r.Values(name, concurrency, of)))
}

// Slots is the measurement of a scenario, NaN if there was none.
func (r Report) Slots(name string) Utilisation {
	for _, u := range r.Utilisation {
		if u.Name == name {
			return u
		}
	}
	return Utilisation{Share: math.NaN(), Rate: math.NaN()}
}

// Figures are the results that are promised.
func (r Report) Figures() Figures {
	return Figures{
		ExecutorVsEngine: round(r.Against(contestant.Engine, 32, rate).Median),
		ExecutorVsNaive:  round(r.Against(contestant.Naive, 32, rate).Median),
		P50VsEngine:      round(r.Against(contestant.Engine, 1, p50).Median),
		Slots:            round(r.Slots(PlainSlots).Share),
		SlotsTotal:       round(r.Slots(TotalSlots).Share),
		VsOld:            round(r.Slots(PlainSlots).Rate / r.OldRate),
		Events:           r.Runs[Executor].Events,
		RoundTrips:       round(median(r.Values(Executor, 32, func(c Cell) float64 { return c.RoundTrips }))),
	}
}

func round(v float64) float64 { return math.Round(1000*v) / 1000 }

// Write writes the report as JSON.
func (r Report) Write(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", " ")
	return enc.Encode(r)
}

// version is what the measured executor says it is, without the compiler's.
func version(ctx context.Context, executor string) (string, error) {
	out, err := exec.CommandContext(ctx, executor, "version").Output() //nolint:gosec // G204: named on the command line
	if err != nil {
		return "", fmt.Errorf("%s version: %w", executor, err)
	}
	words := strings.Fields(string(out))
	if len(words) < 2 {
		return "", fmt.Errorf("%s version: unexpected answer %q", executor, out)
	}
	return words[1], nil
}

// machine describes the processor and the memory, as far as can be found out.
func machine() string {
	parts := []string{fmt.Sprintf("%d cores", runtime.NumCPU())}
	if fs, err := procfs.NewDefaultFS(); err == nil {
		if info, err := fs.CPUInfo(); err == nil && len(info) > 0 {
			parts = append(parts, info[0].ModelName)
		}
		if mem, err := fs.Meminfo(); err == nil && mem.MemTotal != nil {
			parts = append(parts, fmt.Sprintf("%.0f GiB", float64(*mem.MemTotal)/(1<<20)))
		}
	}
	return strings.Join(append(parts, runtime.GOOS, runtime.Version()), ", ")
}
