// Package page makes the generated parts of docs/benchmarks.md and its pictures
// out of what a run has measured. It exists apart from the measuring, so that the
// same results always give the same page, and a table can be changed without an
// hour of measuring. It reads and writes no files.
package page

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nodpt/executor/cmd/devstack/internal/bench"
	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// Part is a generated part of the page. It stands between two marks with its name.
type Part struct {
	Name, Text string
}

// Parts are all parts, from the results of a run with Temporal's state in SQLite
// and, unless it is nil, of one with it in PostgreSQL.
func Parts(r bench.Report, postgres *bench.Report) []Part {
	return []Part{
		{"promises", promisesPart(r)},
		{"throughput", throughputPart(r)},
		{"latency", latencyPart(r)},
		{"cost", costPart(r)},
		{"history", historyPart(r)},
		{"memory", memoryPart(r)},
		{"slots", slotsPart(r)},
		{"backlog", backlogPart(r)},
		{"postgres", postgresPart(r, postgres)},
		{"machine", machinePart(r, postgres)},
	}
}

// MarkError says that a page has no place for a part.
type MarkError struct{ Mark string }

func (e *MarkError) Error() string { return fmt.Sprintf("the page needs %s twice", e.Mark) }

// Update returns a page with its generated parts replaced. What is written by hand
// around them stays.
func Update(page string, parts []Part) (string, error) {
	for _, p := range parts {
		mark := "<!-- " + p.Name + " -->"
		before, rest, opened := strings.Cut(page, mark)
		_, after, closed := strings.Cut(rest, mark)
		if !opened || !closed {
			return "", &MarkError{Mark: mark}
		}
		page = before + mark + "\n" + p.Text + mark + after
	}
	return page, nil
}

// loaded is the concurrency that one figure stands for where a table has no room
// for all: 32, or the highest there is.
func loaded(r bench.Report) int {
	all := concurrencies(r)
	if slices.Contains(all, 32) || len(all) == 0 {
		return 32
	}
	return slices.Max(all)
}

func concurrencies(r bench.Report) []int {
	seen := map[int]bool{}
	for _, c := range r.Cells {
		seen[c.Concurrency] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// designs are the measured ones, in the order of the page.
func designs(r bench.Report) []string {
	all := []string{bench.Executor, contestant.Engine, contestant.Eager, contestant.Floor, contestant.Naive, contestant.Queue, contestant.Old}
	return slices.DeleteFunc(all, func(name string) bool {
		return !slices.ContainsFunc(r.Cells, func(c bench.Cell) bool { return c.Contestant == name })
	})
}

// others are the measured designs without the executor.
func others(r bench.Report) []string {
	return slices.DeleteFunc(designs(r), func(name string) bool { return name == bench.Executor })
}

// The measures of a cell.
func rate(c bench.Cell) float64       { return c.Rate }
func p50(c bench.Cell) float64        { return c.P50 }
func p95(c bench.Cell) float64        { return c.P95 }
func p99(c bench.Cell) float64        { return c.P99 }
func tail(c bench.Cell) float64       { return c.P99 / c.P50 }
func allocs(c bench.Cell) float64     { return c.Allocs }
func kilobytes(c bench.Cell) float64  { return c.AllocBytes / 1e3 }
func commands(c bench.Cell) float64   { return c.Commands }
func roundTrips(c bench.Cell) float64 { return c.RoundTrips }

// cpu is the time of one part; own stands for the design's process itself.
func cpu(part string) func(bench.Cell) float64 {
	return func(c bench.Cell) float64 {
		if part == own {
			return c.CPU[c.Contestant]
		}
		return c.CPU[part]
	}
}

const own = "own process"

// cpuParts are the parts that use a processor for a job, in the order of the page.
func cpuParts(r bench.Report) []string {
	parts := []string{own, bench.Temporal, bench.Database, bench.Redis, bench.LLM}
	return slices.DeleteFunc(parts, func(part string) bool {
		return part != own && !slices.ContainsFunc(r.Cells, func(c bench.Cell) bool { _, is := c.CPU[part]; return is })
	})
}

// over is the median and interval of a measure over the rounds.
func over(r bench.Report, name string, concurrency int, of func(bench.Cell) float64) bench.Estimate {
	return bench.Estimated(r.Values(name, concurrency, of))
}

// names are the keys of a map of parts: contestants first, then the rest.
func names[V any](parts map[string]V) []string {
	order := []string{bench.Executor, contestant.Engine, contestant.Eager, contestant.Floor, contestant.Naive, contestant.Queue, contestant.Old}
	rank := func(name string) int {
		if i := slices.Index(order, name); i >= 0 {
			return i
		}
		return len(order)
	}
	return slices.SortedFunc(maps.Keys(parts), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b))
	})
}
