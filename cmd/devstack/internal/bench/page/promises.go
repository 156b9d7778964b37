package page

import (
	"fmt"
	"math"
	"strings"

	"github.com/nodpt/executor/cmd/devstack/internal/bench"
	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// promise is a bound on a measure.
type promise struct {
	what     string
	bound    float64 // NaN: nothing is promised, it is there to compare
	atLeast  bool    // else at most
	measured bench.Estimate
	unit     unit
	note     string // to what was measured
}

// verdict says whether the median is within the bound.
func (p promise) verdict() string {
	m := p.measured.Median
	switch {
	case !known(p.bound):
		return none
	case !known(m):
		return "not measured"
	case p.atLeast && m >= p.bound, !p.atLeast && m <= p.bound:
		return "held"
	default:
		return "**missed by " + p.unit.difference(m-p.bound) + "**"
	}
}

func (p promise) promised() string {
	if !known(p.bound) {
		return none
	}
	sign := "≤"
	if p.atLeast {
		sign = "≥"
	}
	return sign + " " + p.unit.exact(p.bound)
}

func promisesPart(r bench.Report) string {
	var rows [][]string
	for _, p := range promises(r) {
		rows = append(rows, []string{p.what, p.promised(), p.unit.estimate(p.measured) + p.note, p.verdict()})
	}
	return table([]string{"what", "promised", "measured", "verdict"}, rows)
}

// promises are all that is promised, in the order in which the page explains them.
func promises(r bench.Report) []promise {
	var (
		plain     = unit{}
		share     = unit{factor: 100, suffix: " %", gap: " points"}
		out       []promise
		underLoad = []int{32, 128}
	)
	for _, c := range underLoad {
		out = append(out, promise{
			what: fmt.Sprintf("jobs/s, executor ÷ engine, %d outstanding", c), bound: 0.9, atLeast: true,
			measured: r.Against(contestant.Engine, c, rate), unit: plain,
		})
	}
	for _, c := range underLoad {
		out = append(out, promise{
			what: fmt.Sprintf("jobs/s, executor ÷ eager, %d outstanding", c), bound: math.NaN(),
			measured: r.Against(contestant.Eager, c, rate), unit: plain,
		})
	}
	for _, c := range underLoad {
		out = append(out, promise{
			what: fmt.Sprintf("jobs/s, executor ÷ naive, %d outstanding", c), bound: 1.5, atLeast: true,
			measured: r.Against(contestant.Naive, c, rate), unit: plain,
		})
	}
	out = append(out, promise{
		what: "p50, executor ÷ engine, 1 outstanding", bound: 1.4,
		measured: r.Against(contestant.Engine, 1, p50), unit: plain,
	})
	for _, c := range underLoad {
		out = append(out, promise{
			what: fmt.Sprintf("p99 ÷ p50 of the executor, %d outstanding", c), bound: 2,
			measured: over(r, bench.Executor, c, tail), unit: plain,
		})
	}
	for _, name := range []string{bench.PlainSlots, bench.TotalSlots, bench.ProcessSlots, bench.ProcessTotalSlots} {
		out = append(out, promise{
			what: "slots in use, calls of 1 s: " + name, bound: 0.97, atLeast: true,
			measured: once(r.Slots(name).Share), unit: share,
		})
	}
	out = append(out, promise{
		what: "jobs/s, executor ÷ old, calls of 1 s, 5/10/20 slots", bound: 20, atLeast: true,
		measured: once(r.Slots(bench.PlainSlots).Rate / r.OldRate), unit: plain,
	})
	out = append(out, backlogPromises(r)...)
	events := math.NaN()
	if runs, measured := r.Runs[bench.Executor]; measured {
		events = float64(runs.Events)
	}
	trips := mostRoundTrips(r)
	return append(out,
		promise{what: "history events of a job that succeeds", bound: 14, measured: once(events), unit: unit{whole: true}},
		trips,
		promise{
			what: "from nothing to the first finished job", bound: 5,
			measured: bench.Estimated(r.StartUp), unit: unit{suffix: " s"},
		},
	)
}

func backlogPromises(r bench.Report) []promise {
	b := bench.Backlog{Small: math.NaN()}
	peak := math.NaN()
	if r.Backlog != nil {
		b = *r.Backlog
		peak = max(b.PeakMB, b.DrainMB, megabytes(r.Memory[bench.Executor].Peak))
		for _, u := range r.Utilisation {
			for name, m := range u.Memory {
				if strings.HasPrefix(name, bench.Executor) {
					peak = max(peak, megabytes(m.Peak))
				}
			}
		}
	}
	return []promise{
		{what: "jobs/s at the beginning of a backlog of 100,000 ÷ at one of 1,000", bound: 0.9, atLeast: true, measured: once(b.First.Ended / b.Small)},
		{what: "jobs/s in the middle of a backlog of 100,000 ÷ at one of 1,000", bound: 0.9, atLeast: true, measured: once(b.Middle.Ended / b.Small)},
		{what: "memory of the executor, at its highest in all of it", bound: 200, measured: once(peak), unit: unit{suffix: " MB"}},
	}
}

// mostRoundTrips is the promise for Redis, at the concurrency where it needs most.
func mostRoundTrips(r bench.Report) promise {
	p := promise{what: "Redis round trips for each job", bound: 6, measured: once(math.NaN())}
	for _, c := range concurrencies(r) {
		if e := over(r, bench.Executor, c, roundTrips); known(e.Median) && !(e.Median <= p.measured.Median) {
			p.measured, p.note = e, fmt.Sprintf(", with %d outstanding", c)
		}
	}
	return p
}
