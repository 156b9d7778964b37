// Package term prints what commands find: as a table for people, as JSON for
// programs. It exists so that every command looks and pipes the same: standard
// output carries only the result, colors appear only on a terminal and never
// where NO_COLOR is set, and a reader of JSON meets the same names everywhere.
package term

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	xterm "golang.org/x/term"
)

// Format is how results are printed.
type Format string

// The formats. JSON is one indented document, JSONL one object per line.
const (
	Table Format = "table"
	JSON  Format = "json"
	JSONL Format = "jsonl"
)

// ParseFormat returns the format of that name.
func ParseFormat(name string) (Format, error) {
	switch f := Format(name); f {
	case Table, JSON, JSONL:
		return f, nil
	}
	return "", fmt.Errorf("unknown output %.20q: use table, json or jsonl", name)
}

// Printer writes results in one format.
type Printer struct {
	out      io.Writer
	format   Format
	color    bool
	width    int // of the terminal, 0 if there is none
	terminal bool
}

// New returns a printer. It colors and fits tables to the width where out is a
// terminal; noColor, the content of NO_COLOR, switches colors off if not empty
// (https://no-color.org).
func New(out io.Writer, format Format, noColor string) *Printer {
	p := &Printer{out: out, format: format}
	f, ok := out.(*os.File)
	if !ok || !xterm.IsTerminal(int(f.Fd())) {
		return p
	}
	p.terminal = true
	p.color = noColor == "" && format == Table
	if width, _, err := xterm.GetSize(int(f.Fd())); err == nil {
		p.width = width
	}
	return p
}

// Format is the printer's format.
func (p *Printer) Format() Format { return p.format }

// Terminal reports whether a person is looking.
func (p *Printer) Terminal() bool { return p.terminal }

// Column is one column of a table of T.
type Column[T any] struct {
	Head  string
	Cell  func(T) string
	Right bool           // numbers
	Color func(T) Color  // nil: none
	Wide  int            // cells longer than this are cut, 0: never
	Omit  func([]T) bool // the column is left out where it says so, nil: never
}

// Color is the meaning of a color.
type Color int

// The meanings.
const (
	Plain Color = iota
	Good
	Bad
	Busy
	Faint
)

func (c Color) colors() text.Colors {
	switch c {
	case Good:
		return text.Colors{text.FgGreen}
	case Bad:
		return text.Colors{text.FgRed}
	case Busy:
		return text.Colors{text.FgYellow}
	case Faint:
		return text.Colors{text.Faint}
	case Plain:
	}
	return nil
}

// List prints items: as a table of columns, or as they are encoded.
func List[T any](p *Printer, items []T, columns ...Column[T]) error {
	switch p.format {
	case JSON:
		if items == nil {
			items = []T{}
		}
		return encode(p.out, items, "  ")
	case JSONL:
		for _, item := range items {
			if err := encode(p.out, item, ""); err != nil {
				return err
			}
		}
		return nil
	case Table:
	}
	t := p.table()
	head := table.Row{}
	var shown []Column[T]
	for _, c := range columns {
		if c.Omit != nil && c.Omit(items) {
			continue
		}
		shown = append(shown, c)
		head = append(head, c.Head)
	}
	t.AppendHeader(head)
	configs := make([]table.ColumnConfig, len(shown))
	for i, c := range shown {
		configs[i] = table.ColumnConfig{Number: i + 1}
		if c.Right {
			configs[i].Align, configs[i].AlignHeader = text.AlignRight, text.AlignRight
		}
	}
	t.SetColumnConfigs(configs)
	for _, item := range items {
		row := make(table.Row, len(shown))
		for i, c := range shown {
			cell := Clean(c.Cell(item))
			if c.Wide > 0 && text.StringWidth(cell) > c.Wide {
				cell = text.Trim(cell, c.Wide-1) + "…"
			}
			if p.color && c.Color != nil {
				cell = c.Color(item).colors().Sprint(cell)
			}
			row[i] = cell
		}
		t.AppendRow(row)
	}
	t.Render()
	return nil
}

// Pair is a line of a detailed view.
type Pair struct {
	Name, Value string
	Color       Color
}

// Detail prints one item: its pairs as lines, or the item as it is encoded.
// Pairs without a value are left out.
func Detail(p *Printer, item any, pairs ...Pair) error {
	if p.format != Table {
		indent := "  "
		if p.format == JSONL {
			indent = ""
		}
		return encode(p.out, item, indent)
	}
	width := 0
	for _, pair := range pairs {
		if pair.Value != "" {
			width = max(width, text.StringWidth(pair.Name))
		}
	}
	for _, pair := range pairs {
		if pair.Value == "" {
			continue
		}
		value := Clean(pair.Value)
		if p.color {
			value = pair.Color.colors().Sprint(value)
		}
		if _, err := fmt.Fprintf(p.out, "%s  %s\n", text.Pad(pair.Name, width, ' '), value); err != nil {
			return err
		}
	}
	return nil
}

func (p *Printer) table() table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(p.out)
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	if p.width > 0 {
		style.Size.WidthMax = p.width
	}
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	return t
}

func encode(w io.Writer, v any, indent string) error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetIndent("", indent)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := io.WriteString(w, escape(b.String()))
	return err
}

// escape spells out in JSON what Clean takes out of tables: JSON allows most of it
// as it is, and a person may look at it on a terminal.
func escape(doc string) string {
	if strings.IndexFunc(doc, func(r rune) bool { return r != '\n' && hostile(r) }) < 0 {
		return doc
	}
	var b strings.Builder
	for _, r := range doc {
		switch {
		case r == '\n' || !hostile(r): // line breaks of texts are escaped before
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// Clean makes a text from elsewhere harmless for a terminal: an id or an error
// with control characters in it could otherwise move the cursor, set the title or
// hide a line.
func Clean(s string) string {
	if strings.IndexFunc(s, hostile) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == '\t' {
			return ' '
		}
		if hostile(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// hostile are control characters, and the marks that turn the direction of text.
func hostile(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }

// Ago is a short age, for example "12s", "3m", "5h" or "2d".
func Ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return Short(now.Sub(t))
}

// Short is a duration to about two digits. Durations below zero, which skewed
// clocks make, are "0s".
func Short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}
