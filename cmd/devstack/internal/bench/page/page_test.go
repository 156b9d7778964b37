package page

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/bench"
	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// speed is how a design does in a made-up report: jobs a second and milliseconds,
// at each concurrency.
type speed struct{ rate, p50 float64 }

// full is a report as bench full makes one: the machine becomes slower from round
// to round, which ratios must not show.
func full() bench.Report {
	r := bench.Report{
		Began: time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC), Minutes: 61.4, Machine: "2 cores", Store: "SQLite", Version: "v1.2.3", Rounds: 9,
		StartUp: []float64{3, 3.5, 2.5},
		Runs:    map[string]bench.Runs{bench.Executor: {Events: 14, Bytes: 7010}, contestant.Engine: {Events: 11, Bytes: 4863}},
		Memory:  map[string]bench.Memory{bench.Executor: {Now: 65e6, Peak: 71e6}, bench.Temporal: {Now: 300e6, Peak: 320e6}, contestant.Old: {Now: 20e6, Peak: 21e6}},
		OldRate: 1,
		Utilisation: []bench.Utilisation{
			{Name: bench.PlainSlots, Slots: 35, Share: 0.985, Rate: 34.5, Highest: 35},
			{Name: bench.TotalSlots, Slots: 20, Share: 0.952, Rate: 19, Highest: 20},
			{Name: bench.ProcessSlots, Slots: 70, Share: 0.9704, Rate: 68, Highest: 70, CPU: map[string]float64{"executor-bridge": 1.25, bench.Driver: 1}, Memory: map[string]bench.Memory{"executor-bridge": {Now: 40e6, Peak: 41e6}}},
			{Name: bench.ProcessTotalSlots, Slots: 40, Share: 0.98, Rate: 39, Highest: 40},
		},
		Backlog: &bench.Backlog{
			SmallEntries: 1000, Small: 150, Drain: 10_000, DrainRate: 145, DrainMB: 105,
			Entries: 100_000, First: bench.Window{Ended: 148, Started: 151, MB: 107}, Middle: bench.Window{Ended: 120, Started: 120, MB: 109}, Skipped: 4100, PeakMB: 110,
			Size: bench.Size{Entry: 2100, Kept: 1900, Temporal: 15_000, Row: 1800},
		},
	}
	speeds := map[string]map[int]speed{
		bench.Executor:    {1: {60, 14}, 8: {150, 50}, 32: {190, 160}, 128: {160, 800}},
		contestant.Engine: {1: {70, 12}, 8: {160, 45}, 32: {200, 150}, 128: {200, 600}},
		contestant.Naive:  {1: {25, 38}, 8: {60, 130}, 32: {100, 320}, 128: {90, 1400}},
		contestant.Queue:  {1: {250, 4}, 8: {700, 11}, 32: {1000, 30}, 128: {1200, 100}},
		contestant.Old:    {1: {400, 2}, 8: {420, 19}, 32: {430, 74}, 128: {430, 300}},
	}
	for round := 1; round <= r.Rounds; round++ {
		slow := 1 + 0.1*float64(round)
		for name, byConcurrency := range speeds {
			for concurrency, s := range byConcurrency {
				r.Cells = append(r.Cells, bench.Cell{
					Contestant: name, Concurrency: concurrency, Round: round, Jobs: 100,
					Rate: s.rate / slow, P50: s.p50 * slow, P95: 1.5 * s.p50 * slow, P99: 1.75 * s.p50 * slow,
					CPU:    map[string]float64{name: 5, bench.Temporal: 10, bench.Redis: 0.5, bench.LLM: 0.25, bench.Driver: 0.125},
					Allocs: 4873, AllocBytes: 385_332, Commands: 12.5, RoundTrips: 5 + 0.5/float64(concurrency),
				})
			}
		}
	}
	return r
}

// onPostgres is a report as bench postgres makes one: all is half as fast.
func onPostgres() bench.Report {
	r := full()
	r.Store, r.StartUp, r.Backlog = "PostgreSQL", nil, nil
	cells := r.Cells
	r.Cells = nil
	for _, c := range cells {
		if c.Contestant == contestant.Old || c.Contestant == contestant.Queue {
			continue
		}
		c.Rate, c.P50 = c.Rate/2, 2*c.P50
		c.CPU = map[string]float64{c.Contestant: 5, bench.Temporal: 10, bench.Database: 8, bench.Redis: 0.5, bench.LLM: 0.25, bench.Driver: 0.125}
		r.Cells = append(r.Cells, c)
	}
	return r
}

func part(t *testing.T, name string, r bench.Report, postgres *bench.Report) string {
	t.Helper()
	for _, p := range Parts(r, postgres) {
		if p.Name == name {
			return p.Text
		}
	}
	require.Fail(t, "no such part", name)
	return ""
}

func TestWhatIsOnlyComparedHasNoVerdict(t *testing.T) {
	t.Parallel()
	r := full()
	for _, c := range r.Cells {
		if c.Contestant == bench.Executor {
			c.Contestant, c.Rate = contestant.Eager, c.Rate*1.25
			r.Cells = append(r.Cells, c)
		}
	}
	require.Contains(t, part(t, "promises", r, nil), "| jobs/s, executor ÷ eager, 32 outstanding | – | 0.800 [0.800, 0.800] | – |")
}

func TestParts(t *testing.T) {
	t.Parallel()
	postgres := onPostgres()
	for name, lines := range map[string][]string{
		"promises": {
			"| jobs/s, executor ÷ engine, 32 outstanding | ≥ 0.9 | 0.950 [0.950, 0.950] | held |",
			"| jobs/s, executor ÷ engine, 128 outstanding | ≥ 0.9 | 0.800 [0.800, 0.800] | **missed by 0.10** |",
			"| jobs/s, executor ÷ eager, 32 outstanding | – | – | – |",
			"| jobs/s, executor ÷ naive, 32 outstanding | ≥ 1.5 | 1.90 [1.90, 1.90] | held |",
			"| p50, executor ÷ engine, 1 outstanding | ≤ 1.4 | 1.17 [1.17, 1.17] | held |",
			"| p99 ÷ p50 of the executor, 128 outstanding | ≤ 2 | 1.75 [1.75, 1.75] | held |",
			"| slots in use, calls of 1 s: intake running | ≥ 97 % | 98.5 % | held |",
			"| slots in use, calls of 1 s: intake running, MAX_TOTAL binds | ≥ 97 % | 95.2 % | **missed by 1.8 points** |",
			"| slots in use, calls of 1 s: two worker processes | ≥ 97 % | 97.0 % | held |",
			"| jobs/s, executor ÷ old, calls of 1 s, 5/10/20 slots | ≥ 20 | 34.5 | held |",
			"| jobs/s at the beginning of a backlog of 100,000 ÷ at one of 1,000 | ≥ 0.9 | 0.987 | held |",
			"| jobs/s in the middle of a backlog of 100,000 ÷ at one of 1,000 | ≥ 0.9 | 0.800 | **missed by 0.10** |",
			"| memory of the executor, at its highest in all of it | ≤ 200 MB | 110 MB | held |",
			"| history events of a job that succeeds | ≤ 14 | 14 | held |",
			"| Redis round trips for each job | ≤ 6 | 5.50 [5.50, 5.50], with 1 outstanding | held |",
			"| from nothing to the first finished job | ≤ 5 s | 3.00 [2.50, 3.50] s | held |",
		},
		"throughput": {
			"| jobs outstanding | executor ÷ engine | executor ÷ naive | executor ÷ queue | executor ÷ old |",
			"| 32 | 0.950 [0.950, 0.950] | 1.90 [1.90, 1.90] | 0.190 [0.190, 0.190] | 0.442 [0.442, 0.442] |",
			"| jobs outstanding | executor | engine | naive | queue | old |",
			// The fifth of nine rounds is 1.5 times as slow, the eighth and the second limit it.
			"| 128 | 107 [88.9, 133] | 133 [111, 167] | 60.0 [50.0, 75.0] | 800 [667, 1,000] | 287 [239, 358] |",
			"](images/bench-rate.svg)",
		},
		"latency": {
			"| 1 | 1.17 [1.17, 1.17] | 1.75 [1.75, 1.75] | 1.75 [1.75, 1.75] |",
			"| 1 | 21.0 / 31.5 / 36.8 | 18.0 / 27.0 / 31.5 | 57.0 / 85.5 / 99.8 | 6.00 / 9.00 / 10.5 | 3.00 / 4.50 / 5.25 |",
			"](images/bench-latency.svg)",
		},
		"cost": {
			"| design | all but the driver | own process | temporal | redis | llm | driver | allocations | kB allocated |",
			"| executor | 15.8 [15.8, 15.8] | 5.00 | 10.0 | 0.500 | 0.250 | 0.125 | 4,873 | 385 |",
			"](images/bench-cpu.svg)",
		},
		"history": {
			"| design | history events | history bytes | Redis commands, 32 outstanding | round trips, 1 outstanding | round trips, 8 outstanding |",
			"| executor | 14 | 7,010 | 12.5 | 5.50 | 5.06 | 5.02 | 5.00 |",
			"| queue | – | – | 12.5 |",
		},
		"memory": {"| executor | 65.0 | 71.0 |\n| old | 20.0 | 21.0 |\n| temporal | 300 | 320 |"},
		"slots": {
			"| intake running, MAX_TOTAL binds | 20 | 95.2 % | 19.0 | 20 |",
			"](images/bench-slots.svg)",
			"|---|---|---|\n| executor-bridge | 1.25 | 41.0 at its highest |",
		},
		"backlog": {
			"| from the first to the last of 10,000 | 145 | 0.967 | – | 105 at its highest |",
			"| in the middle of 100,000 | 120 | 0.800 | 120 | 109 |",
			"until its retention is over; an SQLite file does not shrink | 15.0 |",
			"From nothing to the first finished job: 3.00 s, 3.50 s, 2.50 s.",
		},
		"postgres": {
			"| jobs outstanding | executor ÷ engine | executor ÷ naive |",
			"| jobs outstanding | jobs/s, executor | jobs/s, engine | jobs/s, naive |\n|---|---|---|---|\n| 1 | 0.500 | 0.500 | 0.500 |",
			"| jobs outstanding | p50, executor | p50, engine | p50, naive |\n|---|---|---|---|\n| 1 | 2.00 | 2.00 | 2.00 |",
			"| design | all but the driver | own process | temporal | postgres | redis | llm | driver | allocations | kB allocated |",
			"| executor | 23.8 [23.8, 23.8] | 5.00 | 10.0 | 8.00 |",
		},
		"machine": {
			"|  | Temporal on SQLite | Temporal on PostgreSQL |",
			"| began | 2026-03-01 12:30 UTC | 2026-03-01 12:30 UTC |",
			"| took | 61 minutes |", "| rounds | 9 |", "| executor | v1.2.3 |", "| machine | 2 cores |",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := part(t, name, full(), &postgres)
			for _, line := range lines {
				require.Contains(t, text, line)
			}
		})
	}
}

func TestPartsAreTables(t *testing.T) {
	t.Parallel()
	postgres := onPostgres()
	for _, p := range Parts(full(), &postgres) {
		require.NotContains(t, p.Text, "NaN", p.Name)
		require.NotContains(t, p.Text, "Inf", p.Name)
		require.True(t, strings.HasSuffix(p.Text, "\n"), p.Name)
		columns := 0
		for line := range strings.Lines(p.Text) {
			if !strings.HasPrefix(line, "|") {
				columns = 0
				continue
			}
			if n := strings.Count(line, "|"); columns > 0 {
				require.Equal(t, columns, n, "%s: %s", p.Name, line)
			} else {
				columns = n
			}
		}
	}
}

func TestWithoutPostgres(t *testing.T) {
	t.Parallel()
	require.Empty(t, part(t, "postgres", full(), nil))
	require.Contains(t, part(t, "machine", full(), nil), "|  | Temporal on SQLite |\n")
}

// TestNothingMeasured makes a page of runs that have stopped somewhere.
func TestNothingMeasured(t *testing.T) {
	t.Parallel()
	nan := bench.Cell{Contestant: bench.Executor, Concurrency: 32, Round: 1, Rate: math.NaN(), P99: 1}
	for name, r := range map[string]bench.Report{
		"nothing":           {},
		"one cell":          {Cells: []bench.Cell{{Contestant: bench.Executor, Concurrency: 8, Rate: 1, P50: 1, P99: 1}}},
		"no number":         {Cells: []bench.Cell{nan}, Utilisation: []bench.Utilisation{{Name: bench.PlainSlots, Share: math.NaN()}}},
		"the engine stands": {Cells: []bench.Cell{{Contestant: bench.Executor, Concurrency: 32, Rate: 1}, {Contestant: contestant.Engine, Concurrency: 32}}},
		"no backlog rate":   {Backlog: &bench.Backlog{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, p := range Parts(r, &r) {
				require.NotContains(t, p.Text, "NaN", p.Name)
				require.NotContains(t, p.Text, "Inf", p.Name)
			}
			promised := part(t, "promises", r, nil)
			require.Contains(t, promised, "| jobs/s, executor ÷ engine, 32 outstanding | ≥ 0.9 | – | not measured |")
			require.Contains(t, promised, "| from nothing to the first finished job | ≤ 5 s | – | not measured |")
			_, err := Images(r)
			require.NoError(t, err)
		})
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		promise promise
		want    string
	}{
		{"at least, exactly", promise{bound: 0.9, atLeast: true, measured: once(0.9)}, "held"},
		{"at least, hardly missed", promise{bound: 0.9, atLeast: true, measured: once(0.8996)}, "**missed by 0.00040**"},
		{"at most, exactly", promise{bound: 6, measured: once(6)}, "held"},
		{"at most, missed", promise{bound: 14, measured: once(15), unit: unit{whole: true}}, "**missed by 1**"},
		{"a unit", promise{bound: 5, measured: once(7.52), unit: unit{suffix: " s"}}, "**missed by 2.5 s**"},
		{"points", promise{bound: 0.97, atLeast: true, measured: once(0.9), unit: unit{factor: 100, suffix: " %", gap: " points"}}, "**missed by 7.0 points**"},
		{"the median decides", promise{bound: 1, measured: bench.Estimated([]float64{0.9, 0.95, 3})}, "held"},
		{"nothing", promise{bound: 1, measured: once(math.NaN())}, "not measured"},
		{"divided by nothing", promise{bound: 1, atLeast: true, measured: once(math.Inf(1))}, "not measured"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, test.promise.verdict())
		})
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{
		0: "0", 0.00123: "0.00123", 0.19: "0.190", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234.5: "1,234", 1_234_567: "1,234,567",
		-0.5: "-0.500", -1234: "-1,234", math.Inf(1): none, math.Inf(-1): none,
	} {
		require.Equal(t, want, number(v))
	}
	require.Equal(t, none, number(math.NaN()))
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	const page = "# Title\nby hand\n<!-- a -->\nold\n<!-- a -->\nmore\n<!-- b -->\n<!-- b -->\nend\n"
	updated, err := Update(page, []Part{{"a", "| new |\n"}, {"b", ""}})
	require.NoError(t, err)
	require.Equal(t, "# Title\nby hand\n<!-- a -->\n| new |\n<!-- a -->\nmore\n<!-- b -->\n<!-- b -->\nend\n", updated)
	again, err := Update(updated, []Part{{"a", "| new |\n"}, {"b", ""}})
	require.NoError(t, err)
	require.Equal(t, updated, again)

	for name, page := range map[string]string{"no mark": "text", "one mark": "<!-- a -->\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Update(page, []Part{{"a", "x"}})
			var mark *MarkError
			require.ErrorAs(t, err, &mark)
			require.Equal(t, "<!-- a -->", mark.Mark)
		})
	}
}

// TestThePageTakesAllParts checks the marks of the real page, and that what is
// written by hand around them stays.
func TestThePageTakesAllParts(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../../../docs/benchmarks.md")
	require.NoError(t, err)
	r := full()
	updated, err := Update(string(text), Parts(r, &r))
	require.NoError(t, err)
	empty := make([]Part, 0, len(Parts(r, nil)))
	for _, p := range Parts(r, nil) {
		empty = append(empty, Part{Name: p.Name})
	}
	before, err := Update(string(text), empty)
	require.NoError(t, err)
	after, err := Update(updated, empty)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestImages(t *testing.T) {
	t.Parallel()
	images, err := Images(full())
	require.NoError(t, err)
	require.Len(t, images, 4)
	again, err := Images(full())
	require.NoError(t, err)
	for name, svg := range images {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, string(svg), string(again[name]), "the same results, the same picture")
			require.Contains(t, string(svg), "font-family:Liberation Sans,Arial,")
			require.Contains(t, string(svg), "fill:#FFFFFF", "a white background")
			require.Equal(t, "svg", root(t, svg))
		})
	}
	for _, name := range []string{bench.Executor, contestant.Engine, contestant.Naive, contestant.Queue, contestant.Old} {
		require.Contains(t, string(images[rateImage]), ">"+name+"<")
		require.Contains(t, string(images[cpuImage]), ">"+name+"<")
	}
	require.Contains(t, string(images[slotsImage]), ">intake running, MAX_TOTAL binds: 95.2 % of 20 slots<")

	none, err := Images(bench.Report{})
	require.NoError(t, err)
	require.Empty(t, none)
}

// root reads all of an XML document and returns the name of its outermost element.
func root(t *testing.T, document []byte) string {
	t.Helper()
	decoder := xml.NewDecoder(bytes.NewReader(document))
	name := ""
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return name
		}
		require.NoError(t, err)
		if start, is := token.(xml.StartElement); is && name == "" {
			name = start.Name.Local
		}
	}
}

// TestResultsSurviveTheirFile checks that a page made from kept results is that of
// the run.
func TestResultsSurviveTheirFile(t *testing.T) {
	t.Parallel()
	r := full()
	var file bytes.Buffer
	require.NoError(t, r.Write(&file))
	var read bench.Report
	require.NoError(t, json.Unmarshal(file.Bytes(), &read))
	require.Equal(t, Parts(r, nil), Parts(read, nil))
}
