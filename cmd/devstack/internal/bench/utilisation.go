package bench

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// Slots of the roles, as in the README of the predecessor.
type slots struct{ manager, inspector, agent int }

func (s slots) sum() int { return s.manager + s.inspector + s.agent }

func (s slots) env(total int) map[string]string {
	return map[string]string{
		"MAX_MANAGER": strconv.Itoa(s.manager), "MAX_INSPECTOR": strconv.Itoa(s.inspector), "MAX_AGENT": strconv.Itoa(s.agent),
		"MAX_TOTAL": strconv.Itoa(total),
	}
}

// Utilisation is how much of the time the slots for LLM calls were in use.
type Utilisation struct {
	Name    string  `json:"name"`
	Slots   int     `json:"slots"` // the limit that binds
	Share   float64 `json:"share"` // of the slots' time that calls were running in
	Rate    float64 `json:"jobs_per_second"`
	Highest int     `json:"highest"` // calls at the same time; never above slots
	// What each process used for it.
	CPU    map[string]float64 `json:"cpu_ms_per_job"`
	Memory map[string]Memory  `json:"memory"`
}

// scenario is one measurement of the slots.
type scenario struct {
	name      string
	slots     slots
	total     int     // MAX_TOTAL; 0: none
	processes int     // worker processes with these slots each, and one each for the rest; 0: one process does all
	sigma     float64 // of the logarithm of the calls' durations, whose median is a second
}

// limit is how many calls may run at once.
func (s scenario) limit() int {
	n := s.slots.sum() * max(1, s.processes)
	if s.total > 0 {
		n = min(n, s.total)
	}
	return n
}

// backlog is how many jobs are outstanding for each slot: enough that there is
// always one waiting, and intake goes on as fast as jobs end.
const backlog = 6

// utilisation measures one scenario.
func (w *world) utilisation(ctx context.Context, s scenario, win window) (u Utilisation, err error) {
	if err := w.llm.script(ctx, 1000, s.sigma); err != nil {
		return u, err
	}
	members, err := w.startScenario(ctx, s)
	defer func() {
		if stopErr := w.stop(context.WithoutCancel(ctx), members...); err == nil {
			err = stopErr
		}
	}()
	if err != nil {
		return u, err
	}
	times := backlog * max(1, s.processes)
	l := loop{w: w, updates: updates, lanes: []lane{
		{stream: "jobs:manager", outstanding: s.slots.manager * times},
		{stream: "jobs:inspector", outstanding: s.slots.inspector * times},
		{stream: agentStream, outstanding: s.slots.agent * times},
	}}
	got, before, after, err := w.sampled(ctx, nil, win, func() (load, error) { return l.run(ctx, win) })
	if err != nil {
		return u, fmt.Errorf("%s: %w", s.name, err)
	}
	u = Utilisation{
		Name: s.name, Slots: s.limit(), Rate: got.rate(), Highest: after.llm.MaxRunning,
		CPU:   map[string]float64{},
		Share: (after.llm.BusySeconds - before.llm.BusySeconds) / (float64(s.limit()) * after.at.Sub(before.at).Seconds()),
	}
	for part := range after.cpu {
		u.CPU[part] = 1000 * (after.cpu[part] - before.cpu[part]) / float64(got.Jobs)
	}
	if u.Memory, err = w.memories(); err != nil {
		return u, err
	}
	if u.Highest > u.Slots {
		return u, fmt.Errorf("%s: %d calls ran at once, the limit is %d", s.name, u.Highest, u.Slots)
	}
	w.say("slots  %-40s %3d slots  in use %5.1f %%  %5.1f jobs/s  highest %d", u.Name, u.Slots, 100*u.Share, u.Rate, u.Highest)
	return u, w.settle(ctx, group, "jobs:manager", "jobs:inspector", agentStream)
}

func (w *world) startScenario(ctx context.Context, s scenario) (members []*member, err error) {
	env := s.slots.env(s.total)
	start := func(name string, args ...string) {
		if err != nil {
			return
		}
		var m *member
		m, err = w.executor(ctx, name, env, args...)
		if m != nil {
			members = append(members, m)
		}
	}
	if s.processes == 0 {
		start(Executor, "run")
		return members, err
	}
	start(Executor+"-bridge", "bridge")
	start(Executor+"-workflows", "worker", "--queues", "workflows")
	for i := range s.processes {
		start(Executor+"-roles-"+strconv.Itoa(i+1), "worker", "--queues", "manager,inspector,agent,chat")
	}
	return members, err
}

// oldRate is how many jobs a second the predecessor does while each call takes a
// second.
func (w *world) oldRate(ctx context.Context, measure time.Duration) (_ float64, err error) {
	if err := w.llm.script(ctx, 1000, 0); err != nil {
		return 0, err
	}
	m, err := w.play(ctx, contestant.Old)
	defer func() {
		if stopErr := w.stop(context.WithoutCancel(ctx), m); err == nil {
			err = stopErr
		}
	}()
	if err != nil {
		return 0, err
	}
	l := loop{w: w, updates: contestant.UpdatesStream(contestant.Old), lanes: []lane{{stream: contestant.JobsStream(contestant.Old), outstanding: 2}}}
	// Two are outstanding, so that it never waits for the next; those count that
	// end within whole seconds.
	got, err := l.run(ctx, window{warmup: 500 * time.Millisecond, measure: measure})
	if err != nil {
		return 0, fmt.Errorf("old: %w", err)
	}
	w.say("old    one call of 1 s after the other              %5.2f jobs/s", got.rate())
	return got.rate(), nil
}
