//go:build chaos

package chaos

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
)

// result is one line of the table.
type result struct {
	id, name string
	cannot   string // why the row was not run; the rest is empty then
	broken   []string
	excepted []exception
	jobs     int
	calls    int
	maxCalls int
	recovery time.Duration
	note     string
	version  string // of the executor that was tried
	failed   bool
	partial  bool // its jobs are not done at the end, so that nothing is said of I1
	seed     bool // a random schedule
}

// exception is a guarantee that did not hold for some jobs of a row, because the
// fault left nothing to keep it with.
type exception struct {
	guarantee string
	jobs      int
	why       string
}

// report collects results and writes them down.
type report struct {
	mu      sync.Mutex
	results []result

	took     time.Duration
	promised time.Duration // 0: nothing was
}

// duration says how long the rows took, all in all. It warns where that is more than
// was promised: no failure, for the machine may have been busy.
func (r *report) duration() string {
	text := "it took " + r.took.Round(time.Second).String()
	if r.promised != 0 && r.took > r.promised {
		text += fmt.Sprintf(": WARNING: more than the %s it promises; if the machine was not busy, mark the slowest rows as long", r.promised)
	}
	return text
}

func (r *report) add(res result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, res)
}

func (res result) cells() []string {
	if res.cannot != "" {
		return []string{res.id, res.name, "not run", "", "", res.cannot, ""}
	}
	notes := make([]string, 0, len(res.excepted)+2)
	if res.note != "" {
		notes = append(notes, res.note)
	}
	if res.partial {
		notes = append(notes, "most jobs are not done at the end, and nothing is said of I1")
	}
	except := make([]string, 0, len(res.excepted))
	for _, e := range res.excepted {
		except = append(except, fmt.Sprintf("%s for %d jobs", e.guarantee, e.jobs))
		notes = append(notes, e.guarantee+": "+e.why)
	}
	held := "I1–I7 hold"
	switch {
	case len(res.broken) > 0:
		held = "BROKEN: " + strings.Join(res.broken, ", ")
	case res.failed:
		held = "FAILED"
	case res.partial:
		held = "I2–I7 hold"
	case len(except) > 0:
		held = "hold, except " + strings.Join(except, ", ")
	}
	calls := fmt.Sprintf("%d for %d jobs", res.calls, res.jobs)
	if res.maxCalls > 1 {
		calls += fmt.Sprintf(" (at most %d for one)", res.maxCalls)
	}
	rest := fmt.Sprintf("%.1f s", res.recovery.Seconds())
	if res.partial {
		rest = ""
	}
	return []string{res.id, res.name, held, calls, rest, strings.Join(notes, "; "), res.version}
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

var head = []string{"case", "fault", "guarantees", "LLM calls", "at rest after", "notes", "version"} //nolint:gochecknoglobals // constant

var errNonePlayed = errors.New("no case was played: is there a row of that name? docs/chaos.md lists them")

// finish prints the table and brings the document's up to date, if there is one
// and nothing failed.
func (r *report) finish(out io.Writer, doc string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortFunc(r.results, func(a, b result) int { return strings.Compare(a.id, b.id) })
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 2, WidthMax: 44}, {Number: 6, WidthMax: 60}})
	t.AppendHeader(row(head))
	passed, failed := 0, 0
	for _, res := range r.results {
		t.AppendRow(row(res.cells()))
		switch {
		case res.cannot != "":
		case res.failed:
			failed++
		default:
			passed++
		}
	}
	t.Render()
	var err error
	switch {
	case passed+failed == 0:
		err = errNonePlayed
	case doc != "" && failed == 0:
		err = r.write(doc)
	}
	_, _ = fmt.Fprintf(out, "%s\n%d passed, %d failed\n", r.duration(), passed, failed)
	return err
}

// blame counts as a failure what is no row's: a test beside them, or a goroutine
// that outlives them all.
func (r *report) blame(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.results, func(res result) bool { return res.failed }) {
		r.results = append(r.results, result{id: "suite", name: why, failed: true})
	}
}

func row(cells []string) table.Row {
	out := make(table.Row, len(cells))
	for i, c := range cells {
		out[i] = c
	}
	return out
}

// Marks around the tables of the document. Lines between them belong to this
// program, one for each case or seed; those of cases that were not run stay.
const (
	casesMark = "<!-- cases -->"
	seedsMark = "<!-- seeds -->"
)

func (r *report) write(doc string) error {
	text, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	page := string(text)
	for mark, seeds := range map[string]bool{casesMark: false, seedsMark: true} {
		before, rest, ok := strings.Cut(page, mark)
		old, after, closed := strings.Cut(rest, mark)
		if !ok || !closed {
			return fmt.Errorf("%s: it needs %s twice, around a table", doc, mark)
		}
		page = before + mark + r.merge(old, seeds) + mark + after
	}
	return os.WriteFile(doc, []byte(page), 0o644)
}

// merge returns a table with the lines of this run in place of the old ones.
func (r *report) merge(old string, seeds bool) string {
	lines := map[string]string{}
	for line := range strings.Lines(old) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) > 2 && !strings.HasPrefix(cells[1], "-") {
			if id := strings.TrimSpace(cells[1]); id != head[0] {
				// A line that was written when the table had fewer columns.
				missing := max(0, len(head)-(len(cells)-2))
				lines[id] = strings.TrimSpace(line) + strings.Repeat("  |", missing)
			}
		}
	}
	for _, res := range r.results {
		if res.seed == seeds {
			lines[res.id] = "| " + strings.Join(res.cells(), " | ") + " |"
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, id := range slices.Sorted(keys(lines)) {
		b.WriteString(lines[id] + "\n")
	}
	return b.String()
}
