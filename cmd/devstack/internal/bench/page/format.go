package page

import (
	"math"
	"strconv"
	"strings"

	"github.com/nodpt/executor/cmd/devstack/internal/bench"
)

// none stands where nothing was measured.
const none = "–"

func known(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// number shows three digits that mean something, and all of a larger number.
func number(v float64) string { return digits(v, 3) }

// digits shows at least so many digits that mean something, and a whole number
// with a comma at each thousand.
func digits(v float64, n int) string {
	if !known(v) {
		return none
	}
	if v == 0 {
		return "0"
	}
	decimals := max(0, n-1-int(math.Floor(math.Log10(math.Abs(v)))))
	text := strconv.FormatFloat(v, 'f', decimals, 64)
	if decimals > 0 {
		return text
	}
	sign, text := strings.HasPrefix(text, "-"), strings.TrimPrefix(text, "-")
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	if sign {
		return "-" + text
	}
	return text
}

// estimate shows the median, and the interval where there is one.
func estimate(e bench.Estimate) string { return unit{}.estimate(e) }

// once is what was measured a single time.
func once(v float64) bench.Estimate {
	return bench.Estimate{Median: v, Low: math.NaN(), High: math.NaN()}
}

// unit is how a measure is shown.
type unit struct {
	factor float64 // from the measure to what is shown; 0: 1
	suffix string  // of a value
	gap    string  // of a difference between two; empty: as suffix
	whole  bool    // counted, not measured
}

func (u unit) scaled(v float64) float64 {
	if u.factor == 0 {
		return v
	}
	return u.factor * v
}

func (u unit) value(v float64) string {
	if !known(v) {
		return none
	}
	if u.whole {
		return u.exact(v)
	}
	return number(u.scaled(v)) + u.suffix
}

// exact shows a value as it is, such as a bound.
func (u unit) exact(v float64) string {
	return strconv.FormatFloat(u.scaled(v), 'f', -1, 64) + u.suffix
}

func (u unit) estimate(e bench.Estimate) string {
	if !known(e.Median) || !known(e.Low) || !known(e.High) || len(e.Values) < 2 {
		return u.value(e.Median)
	}
	return number(u.scaled(e.Median)) + " [" + number(u.scaled(e.Low)) + ", " + number(u.scaled(e.High)) + "]" + u.suffix
}

// difference shows by how much two values differ.
func (u unit) difference(v float64) string {
	suffix := u.gap
	if suffix == "" {
		suffix = u.suffix
	}
	if u.whole {
		return unit{factor: u.factor, suffix: suffix}.exact(math.Abs(v))
	}
	return digits(u.scaled(math.Abs(v)), 2) + suffix
}

// table writes a table in Markdown. Without rows it writes nothing.
func table(head []string, rows [][]string) string {
	if len(rows) == 0 {
		return ""
	}
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(head)
	b.WriteString("|" + strings.Repeat("---|", len(head)) + "\n")
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

// paragraphs joins those parts of a text that are not empty.
func paragraphs(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		if p == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		b.WriteString(strings.TrimRight(p, "\n") + "\n")
	}
	return b.String()
}

func count(n int) string { return digits(float64(n), 1) }
