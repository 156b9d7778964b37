//go:build chaos

package chaos

import (
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
	id, name   string
	cannot     string // why the row was not run; the rest is empty then
	broken     []string
	excepted   map[string]string
	jobs       int
	calls      int
	maxCalls   int
	recovery   time.Duration
	note       string
	failed     bool
	partial    bool // it has checks of its own instead of the guarantees'
	seed       bool // a random schedule
	duration   time.Duration
	injections int
}

// report collects results and writes them down.
type report struct {
	mu      sync.Mutex
	results []result
}

func (r *report) add(res result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, res)
}

func (res result) cells() []string {
	if res.cannot != "" {
		return []string{res.id, res.name, "not run", "", "", res.cannot}
	}
	held := "I1–I7 hold"
	switch {
	case len(res.broken) > 0:
		held = "BROKEN: " + strings.Join(res.broken, ", ")
	case res.failed:
		held = "FAILED"
	case res.partial:
		return []string{res.id, res.name, "see notes", "", "", res.note}
	case len(res.excepted) > 0:
		held = "hold, except " + strings.Join(slices.Sorted(keys(res.excepted)), ", ")
	}
	calls := fmt.Sprintf("%d for %d jobs", res.calls, res.jobs)
	if res.maxCalls > 1 {
		calls += fmt.Sprintf(" (at most %d for one)", res.maxCalls)
	}
	notes := make([]string, 0, len(res.excepted)+1)
	if res.note != "" {
		notes = append(notes, res.note)
	}
	for _, g := range slices.Sorted(keys(res.excepted)) {
		notes = append(notes, g+": "+res.excepted[g])
	}
	return []string{res.id, res.name, held, calls, fmt.Sprintf("%.1f s", res.recovery.Seconds()), strings.Join(notes, "; ")}
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

var head = []string{"case", "fault", "guarantees", "LLM calls", "at rest after", "notes"} //nolint:gochecknoglobals // constant

// finish prints the table and brings the document's up to date, if there is one.
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
	if doc != "" && failed == 0 {
		err = r.write(doc)
	}
	_, _ = fmt.Fprintf(out, "%d passed, %d failed\n", passed, failed)
	return err
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
		cells := strings.Split(line, "|")
		if len(cells) > 2 && !strings.HasPrefix(cells[1], "-") {
			if id := strings.TrimSpace(cells[1]); id != head[0] {
				lines[id] = strings.TrimSpace(line)
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
