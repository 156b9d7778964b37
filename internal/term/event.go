package term

import (
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
)

// Cell is a part of a line.
type Cell struct {
	Value string
	Width int // to which it is padded, 0: not; longer values stay as they are
	Color Color
}

// Event prints one item of a stream of them as it comes: as a line of cells, or as
// one line of JSON in both other formats. Cells without value and width are left
// out.
func Event(p *Printer, item any, cells ...Cell) error {
	if p.format != Table {
		return encode(p.out, item, "")
	}
	var parts []string
	for _, c := range cells {
		if c.Value == "" && c.Width == 0 {
			continue
		}
		value := text.Pad(Clean(c.Value), c.Width, ' ')
		if p.color && c.Value != "" {
			value = c.Color.colors().Sprint(value)
		}
		parts = append(parts, value)
	}
	_, err := fmt.Fprintln(p.out, strings.TrimRight(strings.Join(parts, "  "), " "))
	return err
}

// Title prints the heading of a part of a detailed view. Formats for programs
// have none.
func Title(p *Printer, title string) error {
	if p.format != Table {
		return nil
	}
	if p.color {
		title = text.Bold.Sprint(title)
	}
	_, err := fmt.Fprintln(p.out, "\n"+title)
	return err
}

// Text prints a text of several lines, each of them cleaned.
func Text(p *Printer, s string) error {
	for line := range strings.Lines(s) {
		if _, err := fmt.Fprintln(p.out, "  "+Clean(strings.TrimRight(line, "\r\n"))); err != nil {
			return err
		}
	}
	return nil
}
