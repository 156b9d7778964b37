package page

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/nodpt/executor/cmd/devstack/internal/bench"
	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

const outstanding = "jobs outstanding"

func machinePart(r bench.Report, postgres *bench.Report) string {
	head := []string{"", "Temporal on " + r.Store}
	reports := []bench.Report{r}
	if postgres != nil {
		head, reports = append(head, "Temporal on "+postgres.Store), append(reports, *postgres)
	}
	line := func(name string, of func(bench.Report) string) []string {
		cells := []string{name}
		for _, r := range reports {
			cells = append(cells, of(r))
		}
		return cells
	}
	return table(head, [][]string{
		line("machine", func(r bench.Report) string { return r.Machine }),
		line("began", func(r bench.Report) string { return r.Began.UTC().Format("2006-01-02 15:04 UTC") }),
		line("took", func(r bench.Report) string { return fmt.Sprintf("%.0f minutes", r.Minutes) }),
		line("rounds", func(r bench.Report) string { return strconv.Itoa(r.Rounds) }),
		line("executor", func(r bench.Report) string {
			if r.Version == "" {
				return "version unknown"
			}
			return r.Version
		}),
	})
}

// byConcurrency is a table with a line for each concurrency and a column for each
// of some names.
func byConcurrency(r bench.Report, columns, heads []string, cell func(name string, concurrency int) string) string {
	if len(columns) == 0 {
		return ""
	}
	var rows [][]string
	for _, c := range concurrencies(r) {
		row := []string{strconv.Itoa(c)}
		for _, name := range columns {
			row = append(row, cell(name, c))
		}
		rows = append(rows, row)
	}
	return table(append([]string{outstanding}, heads...), rows)
}

func prefixed(prefix string, names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = prefix + name
	}
	return out
}

func throughputPart(r bench.Report) string {
	if len(r.Cells) == 0 {
		return ""
	}
	return paragraphs(
		"Jobs a second of the executor, divided by those of the others in the same round:",
		byConcurrency(r, others(r), prefixed("executor ÷ ", others(r)), func(name string, c int) string {
			return estimate(r.Against(name, c, rate))
		}),
		image("Jobs a second over jobs outstanding, one line for each design, both axes logarithmic", rateImage),
		"Jobs a second, as of that machine:",
		byConcurrency(r, designs(r), designs(r), func(name string, c int) string { return estimate(over(r, name, c, rate)) }),
	)
}

func latencyPart(r bench.Report) string {
	if len(r.Cells) == 0 {
		return ""
	}
	columns := designs(r)
	return paragraphs(
		"The median time of a job divided by the engine's, and how far the slowest hundredth lies above the median:",
		byConcurrency(r, []string{"against", bench.Executor, contestant.Engine},
			[]string{"p50, executor ÷ engine", "p99 ÷ p50, executor", "p99 ÷ p50, engine"},
			func(name string, c int) string {
				if name == "against" {
					return estimate(r.Against(contestant.Engine, c, p50))
				}
				return estimate(over(r, name, c, tail))
			}),
		image("Median time of a job over jobs outstanding, one line for each design, both axes logarithmic", latencyImage),
		"p50 / p95 / p99 in milliseconds, medians over the rounds, as of that machine:",
		byConcurrency(r, columns, columns, func(name string, c int) string {
			var cells []string
			for _, of := range []func(bench.Cell) float64{p50, p95, p99} {
				cells = append(cells, number(over(r, name, c, of).Median))
			}
			if cells[0] == none {
				return none
			}
			return strings.Join(cells, " / ")
		}),
	)
}

func costPart(r bench.Report) string {
	if len(r.Cells) == 0 {
		return ""
	}
	c, columns := loaded(r), designs(r)
	return paragraphs(
		fmt.Sprintf("Milliseconds of processor time for each job, by who used it, and what the design's own process allocates, with %d outstanding:", c),
		costTable(r, c),
		image(fmt.Sprintf("Processor time of a job by part, one bar for each design, with %d jobs outstanding", c), cpuImage),
		"All parts but the driver together, in milliseconds for each job:",
		byConcurrency(r, columns, columns, func(name string, c int) string { return estimate(over(r, name, c, bench.Cell.TotalCPU)) }),
	)
}

func costTable(r bench.Report, concurrency int) string {
	parts := append(cpuParts(r), bench.Driver)
	var rows [][]string
	for _, name := range designs(r) {
		row := []string{name, estimate(over(r, name, concurrency, bench.Cell.TotalCPU))}
		for _, part := range parts {
			row = append(row, number(over(r, name, concurrency, cpu(part)).Median))
		}
		rows = append(rows, append(row,
			number(over(r, name, concurrency, allocs).Median), number(over(r, name, concurrency, kilobytes).Median)))
	}
	head := append([]string{"design", "all but the driver"}, parts...)
	return table(append(head, "allocations", "kB allocated"), rows)
}

func historyPart(r bench.Report) string {
	if len(r.Cells) == 0 {
		return ""
	}
	all := concurrencies(r)
	head := []string{"design", "history events", "history bytes", fmt.Sprintf("Redis commands, %d outstanding", loaded(r))}
	for _, c := range all {
		head = append(head, fmt.Sprintf("round trips, %d outstanding", c))
	}
	var rows [][]string
	for _, name := range designs(r) {
		row := []string{name, none, none}
		if runs, measured := r.Runs[name]; measured {
			row = []string{name, strconv.FormatInt(runs.Events, 10), number(float64(runs.Bytes))}
		}
		row = append(row, number(over(r, name, loaded(r), commands).Median))
		for _, c := range all {
			row = append(row, number(over(r, name, c, roundTrips).Median))
		}
		rows = append(rows, row)
	}
	return table(head, rows)
}

func megabytes(bytes uint64) float64 { return float64(bytes) / 1e6 }

func memoryPart(r bench.Report) string {
	var rows [][]string
	for _, name := range names(r.Memory) {
		peak := none
		if m := r.Memory[name]; m.Peak > 0 {
			peak = number(megabytes(m.Peak))
		}
		rows = append(rows, []string{name, number(megabytes(r.Memory[name].Now)), peak})
	}
	return table([]string{"process", "MB after all rounds", "MB at its highest"}, rows)
}

func slotsPart(r bench.Report) string {
	if len(r.Utilisation) == 0 {
		return ""
	}
	return paragraphs(
		slotsTable(r.Utilisation),
		image("Share of the slots in use, one bar for each scenario, with a line at the promised 97 %", slotsImage),
		processesTable(r.Slots(bench.ProcessSlots)),
	)
}

// processesTable is what each process uses where bridge and workers are processes
// of their own.
func processesTable(u bench.Utilisation) string {
	if len(u.CPU) == 0 {
		return ""
	}
	var rows [][]string
	for _, name := range names(u.CPU) {
		if name != bench.Driver {
			memory := number(megabytes(u.Memory[name].Now))
			if strings.HasPrefix(name, bench.Executor) { // the others have been there before
				memory = number(megabytes(u.Memory[name].Peak)) + " at its highest"
			}
			rows = append(rows, []string{name, number(u.CPU[name]), memory})
		}
	}
	return paragraphs(
		"With "+u.Name+", what each process uses, as of that machine:",
		table([]string{"process", "processor, ms for each job", "MB"}, rows),
	)
}

func slotsTable(all []bench.Utilisation) string {
	var rows [][]string
	for _, u := range all {
		rows = append(rows, []string{
			u.Name, strconv.Itoa(u.Slots), unit{factor: 100, suffix: " %"}.value(u.Share), number(u.Rate), strconv.Itoa(u.Highest),
		})
	}
	return table([]string{"scenario", "slots", "in use", "jobs/s", "calls at the same time, at most"}, rows)
}

func backlogPart(r bench.Report) string {
	var rows [][]string
	if b := r.Backlog; b != nil {
		ratio := func(v float64) string { return number(v / b.Small) }
		rows = [][]string{
			{"from the first to the last of " + count(b.SmallEntries), number(b.Small), "1", none, none},
			{"from the first to the last of " + count(b.Drain), number(b.DrainRate), ratio(b.DrainRate), none, number(b.DrainMB) + " at its highest"},
			{"at the beginning of " + count(b.Entries), number(b.First.Ended), ratio(b.First.Ended), number(b.First.Started), number(b.First.MB)},
			{"in the middle of " + count(b.Entries), number(b.Middle.Ended), ratio(b.Middle.Ended), number(b.Middle.Started), number(b.Middle.MB)},
			{"entries of " + count(b.Entries) + " whose jobs were done before", number(b.Skipped), none, none, number(b.PeakMB) + " at its highest"},
		}
	}
	startUp := ""
	if len(r.StartUp) > 0 {
		var each []string
		for _, s := range r.StartUp {
			each = append(each, number(s)+" s")
		}
		startUp = "From nothing to the first finished job: " + strings.Join(each, ", ") + "."
	}
	return paragraphs(table([]string{"backlog", "jobs ended a second", "÷ the first line", "runs started a second", "MB of the executor"}, rows), sizeTable(r.Backlog), startUp)
}

// sizeTable is what a job takes up.
func sizeTable(b *bench.Backlog) string {
	if b == nil || b.Size == (bench.Size{}) {
		return ""
	}
	kilobytes := func(bytes float64) string { return number(bytes / 1e3) }
	return paragraphs(
		"What a job takes up:",
		table([]string{"where", "kB for each job"}, [][]string{
			{"Redis's memory, from XADD until the stream is trimmed", kilobytes(b.Size.Entry)},
			{"Redis's memory, its update until that stream is trimmed, and for 7 days the key that keeps it from being told twice", kilobytes(b.Size.Kept)},
			{"Temporal's disk, from its start until its retention is over; an SQLite file does not shrink", kilobytes(b.Size.Temporal)},
			{"the result store's disk, until it is purged", kilobytes(b.Size.Row)},
		}),
	)
}

func postgresPart(r bench.Report, postgres *bench.Report) string {
	if postgres == nil {
		return ""
	}
	p := *postgres
	change := func(name string, c int, of func(bench.Cell) float64) string {
		return number(over(p, name, c, of).Median / over(r, name, c, of).Median)
	}
	all := designs(p)
	return paragraphs(
		fmt.Sprintf("Jobs a second of the executor, divided by those of the others in the same round, on %s:", p.Store),
		byConcurrency(p, others(p), prefixed("executor ÷ ", others(p)), func(name string, c int) string {
			return estimate(p.Against(name, c, rate))
		}),
		fmt.Sprintf("What was measured on %s divided by what was measured on %s. These are medians of two runs, not pairs of the same round:", p.Store, r.Store),
		byConcurrency(p, all, prefixed("jobs/s, ", all), func(name string, c int) string { return change(name, c, rate) }),
		byConcurrency(p, all, prefixed("p50, ", all), func(name string, c int) string { return change(name, c, p50) }),
		fmt.Sprintf("Milliseconds of processor time for each job on %s, with %d outstanding:", p.Store, loaded(p)),
		costTable(p, loaded(p)),
		slotsIntro(p), slotsTable(p.Utilisation),
	)
}

func slotsIntro(r bench.Report) string {
	if len(r.Utilisation) == 0 {
		return ""
	}
	return fmt.Sprintf("Slots for calls of 1 s on %s:", r.Store)
}

func image(alt, name string) string { return "![" + alt + "](images/" + name + ")" }
