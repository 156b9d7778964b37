package deploy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// query is what a PromQL expression asks for. promtool checks the syntax; this
// finds names, which it takes as they come.
type query struct {
	metrics []selector
	groups  []string // labels of by, on, ignoring and group_left, sorted
	made    []string // labels that label_replace adds
}

// selector is a metric with the values its matchers name. Matchers of anything
// but words have no values.
type selector struct {
	name   string
	values map[string][]string
}

// A token is a string, a name with its dots and colons, a number with its unit,
// or one other character.
var token = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[a-zA-Z_:$][\w:$]*|[0-9][\w.]*|\S`)

// parseQuery reads an expression that promtool accepts.
func parseQuery(expr string) query {
	tokens := token.FindAllString(expr, -1)
	at := func(i int) string {
		if i < len(tokens) {
			return tokens[i]
		}
		return ""
	}
	var q query
	for i := 0; i < len(tokens); i++ {
		switch word := tokens[i]; {
		case word == "by", word == "without", word == "on", word == "ignoring", word == "group_left", word == "group_right":
			if at(i+1) != "(" {
				continue
			}
			for i += 2; at(i) != ")"; i++ {
				if tokens[i] != "," {
					q.groups = append(q.groups, tokens[i])
				}
			}
		case word == "label_replace":
			q.made = append(q.made, labelMade(tokens[i+1:]))
		case word == "[": // a range, with variables for names
			for at(i) != "]" {
				i++
			}
		case !isName(word), slices.Contains([]string{"and", "or", "unless", "offset", "bool"}, word):
		case slices.Contains([]string{"(", "by", "without"}, at(i+1)): // a function or an aggregation
		default:
			s := selector{name: word, values: map[string][]string{}}
			if at(i+1) == "{" {
				for i += 2; at(i) != "}"; i++ {
					if !isName(tokens[i]) {
						continue
					}
					label := tokens[i]
					for !isString(at(i)) {
						i++
					}
					s.values[label] = append(s.values[label], words(tokens[i][1:len(tokens[i])-1])...)
				}
			}
			q.metrics = append(q.metrics, s)
		}
	}
	slices.Sort(q.groups)
	q.groups = slices.Compact(q.groups)
	return q
}

// labelMade is the second argument of a call.
func labelMade(call []string) string {
	depth := 0
	for i, t := range call {
		switch t {
		case "(", "{", "[":
			depth++
		case ")", "}", "]":
			depth--
		case ",":
			if depth == 1 {
				return strings.Trim(call[i+1], `"`)
			}
		}
	}
	return ""
}

func isName(t string) bool { return regexp.MustCompile(`^[a-zA-Z_:][\w:]*$`).MatchString(t) }

func isString(t string) bool { return strings.HasPrefix(t, `"`) || strings.HasPrefix(t, "'") }

// words are the alternatives of a matcher, if they are plain words.
func words(value string) []string {
	all := strings.Split(value, "|")
	for _, w := range all {
		if !regexp.MustCompile(`^[\w-]+$`).MatchString(w) {
			return nil
		}
	}
	return all
}

// series is what the kit needs of a metric: labels, and of the Temporal SDK's
// also values.
type series map[string]map[string][]string // metric → label → values

// add takes what a query needs.
func (s series) add(q query) {
	for _, m := range q.metrics {
		if s[m.name] == nil {
			s[m.name] = map[string][]string{}
		}
		labels := s[m.name]
		for label, values := range m.values {
			labels[label] = append(labels[label], values...)
		}
		for _, label := range q.groups {
			// The SDK's metrics have no role; label_replace makes it of the queue.
			if !strings.HasPrefix(m.name, "temporal_") || !slices.Contains(q.made, label) {
				labels[label] = append(labels[label], nil...)
			}
		}
	}
}

// String is one line a metric: its name and its labels, each followed by
// =value|value where the SDK's values matter.
func (s series) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		b.WriteString(name)
		for _, label := range slices.Sorted(maps.Keys(s[name])) {
			if ofTarget(label) {
				continue
			}
			fmt.Fprintf(&b, " %s", label)
			if label != "worker_type" && label != "task_queue" {
				continue // not every value can be provoked
			}
			values := slices.Sorted(slices.Values(s[name][label]))
			if values = slices.Compact(values); len(values) > 0 {
				b.WriteString("=" + strings.Join(values, "|"))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// ofTarget: the label is not the program's but Prometheus'.
func ofTarget(label string) bool { return slices.Contains([]string{"job", "instance", "le"}, label) }

func TestParseQuery(t *testing.T) {
	t.Parallel()
	for expr, want := range map[string]struct {
		metrics      map[string]map[string][]string
		groups, made []string
	}{
		`up`: {metrics: map[string]map[string][]string{"up": {}}},
		`sum by (a, b) (rate(x_total{c="1|2",d=~".*",e!="f"}[5m])) / on (a) group_left sum without (g) (y_total offset 1h) > 0.5e3`: {
			metrics: map[string]map[string][]string{"x_total": {"c": {"1", "2"}, "d": nil, "e": {"f"}}, "y_total": {}},
			groups:  []string{"a", "b", "g"},
		},
		`delta((a{x='y'} - b)[5m:15s]) <= 0 and absent(c) or d unless max_over_time(e[1h] offset 5m) * 2^30 + 1e15`: {
			metrics: map[string]map[string][]string{"a": {"x": {"y"}}, "b": {}, "c": {}, "d": {}, "e": {}},
		},
		`sum by (role) (label_replace(m{q="a\"b}"} + n, "role", "$1", "queue", "executor-(.+)"))`: {
			metrics: map[string]map[string][]string{"m": {"q": nil}, "n": {}}, groups: []string{"role"}, made: []string{"role"},
		},
	} {
		t.Run(expr, func(t *testing.T) {
			t.Parallel()
			got := parseQuery(expr)
			metrics := map[string]map[string][]string{}
			for _, m := range got.metrics {
				metrics[m.name] = m.values
			}
			require.Equal(t, want.metrics, metrics)
			require.Equal(t, want.groups, got.groups)
			require.Equal(t, want.made, got.made)
		})
	}
}
