package term

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"
)

type fruit struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
	Note  string `json:"note,omitempty"`
}

func fruits() []fruit {
	return []fruit{{"apple", 3, ""}, {"<kiwi>", 12, ""}}
}

func columns() []Column[fruit] {
	return []Column[fruit]{
		{Head: "name", Cell: func(f fruit) string { return f.Name }, Color: func(f fruit) Color {
			if f.Count > 10 {
				return Bad
			}
			return Good
		}},
		{Head: "count", Cell: func(f fruit) string { return strings.Repeat("x", f.Count) }, Right: true, Wide: 6},
		{Head: "note", Cell: func(f fruit) string { return f.Note }, Omit: func(all []fruit) bool {
			for _, f := range all {
				if f.Note != "" {
					return false
				}
			}
			return true
		}},
	}
}

func TestParseFormat(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"table", "json", "jsonl"} {
		f, err := ParseFormat(name)
		require.NoError(t, err)
		require.Equal(t, Format(name), f)
	}
	for _, name := range []string{"", "yaml", "JSON"} {
		_, err := ParseFormat(name)
		require.ErrorContains(t, err, "use table, json or jsonl")
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	noted := []fruit{{"fig", 1, "ripe"}}
	tests := map[string]struct {
		format Format
		items  []fruit
		want   string
	}{
		"table": {
			Table, fruits(),
			"NAME     COUNT\napple      xxx\n<kiwi>  xxxxx…\n",
		},
		"a column with something in it": {Table, noted, "NAME  COUNT  NOTE\nfig       x  ripe\n"},
		"json": {
			JSON, fruits(),
			"[\n  {\n    \"name\": \"apple\",\n    \"count\": 3\n  },\n  {\n    \"name\": \"<kiwi>\",\n    \"count\": 12\n  }\n]\n",
		},
		"no json":  {JSON, nil, "[]\n"},
		"jsonl":    {JSONL, fruits(), "{\"name\":\"apple\",\"count\":3}\n{\"name\":\"<kiwi>\",\"count\":12}\n"},
		"no jsonl": {JSONL, nil, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			require.NoError(t, List(New(&out, tt.format, ""), tt.items, columns()...))
			require.Equal(t, tt.want, out.String())
		})
	}
}

func TestCellsAreMadeHarmless(t *testing.T) {
	t.Parallel()
	hostile := []fruit{{Name: "\x1b]0;title\x07\x1b[2K\ra\u202eb\u200b\u009bc\nd\te", Count: 1}}
	const clean = "�]0;title��[2K a�b��c d e"
	var out bytes.Buffer
	require.NoError(t, List(New(&out, Table, ""), hostile, columns()...))
	require.Equal(t, clean, strings.TrimSuffix(strings.Split(out.String(), "\n")[1], "      x"))

	out.Reset()
	p := New(&out, Table, "")
	require.NoError(t, Detail(p, nil, Pair{Name: "Name", Value: hostile[0].Name}))
	require.NoError(t, Event(p, nil, Cell{Value: hostile[0].Name}))
	require.NoError(t, Text(p, "one\x1b\r\ntwo\x00\n\nthree"))
	require.Equal(t, "Name  "+clean+"\n"+clean+"\n  one�\n  two�\n  \n  three\n", out.String())

	hostile[0].Name += "\U000e0001<日本>"
	for _, format := range []Format{JSON, JSONL} {
		out.Reset()
		require.NoError(t, List(New(&out, format, ""), hostile))
		require.Equal(t, -1, strings.IndexFunc(strings.ReplaceAll(out.String(), "\n", ""), func(r rune) bool {
			return unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
		}), "%q", out.String())
		var read []fruit
		text := out.String()
		if format == JSONL {
			text = "[" + text + "]"
		}
		require.NoError(t, json.Unmarshal([]byte(text), &read))
		require.Equal(t, hostile, read, "a program reads what there was")
		require.Contains(t, out.String(), "<日本>")
	}
}

func TestWideCharacters(t *testing.T) {
	t.Parallel()
	items := []fruit{{Name: "日本語の仕事", Count: 1}, {Name: "e\u0301clair", Count: 1}, {Name: "plain", Count: 1}}
	name := columns()[0]
	name.Wide = 7
	var out bytes.Buffer
	require.NoError(t, List(New(&out, Table, ""), items, name, columns()[1]))
	require.Equal(t, []string{
		"NAME     COUNT",
		"日本語…      x", // seven columns: three wide characters and the mark
		"e\u0301clair       x",
		"plain        x",
	}, strings.Split(strings.TrimSpace(out.String()), "\n"))
}

func TestColors(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := New(&out, Table, "")
	require.False(t, p.Terminal())
	require.Equal(t, Table, p.Format())
	require.NoError(t, List(p, fruits(), columns()...))
	require.NoError(t, Detail(p, nil, Pair{Name: "Status", Value: "failed", Color: Bad}))
	require.NoError(t, Event(p, nil, Cell{Value: "failed", Color: Bad}))
	require.NoError(t, Title(p, "RUNS"))
	require.NotContains(t, out.String(), "\x1b", "no terminal, no colors")

	out.Reset()
	p.color = true
	require.NoError(t, List(p, fruits(), columns()...))
	require.Contains(t, out.String(), "\x1b[32mapple\x1b[0m")
	require.Contains(t, out.String(), "\x1b[31m<kiwi>\x1b[0m")
	out.Reset()
	require.NoError(t, Detail(p, nil, Pair{Name: "Status", Value: "retrying", Color: Busy}, Pair{Name: "None"}))
	require.NoError(t, Event(p, nil, Cell{Value: "x", Width: 3}, Cell{Value: "faint", Color: Faint}, Cell{}, Cell{Value: "end"}))
	require.NoError(t, Title(p, "RUNS"))
	require.Equal(t, "Status  \x1b[33mretrying\x1b[0m\nx    \x1b[2mfaint\x1b[0m  end\n\n\x1b[1mRUNS\x1b[0m\n", out.String())
}

func TestFormatsForPrograms(t *testing.T) {
	t.Parallel()
	item := fruits()[0]
	for format, want := range map[Format]string{
		JSON:  "{\n  \"name\": \"apple\",\n  \"count\": 3\n}\n{\"name\":\"apple\",\"count\":3}\n",
		JSONL: "{\"name\":\"apple\",\"count\":3}\n{\"name\":\"apple\",\"count\":3}\n",
	} {
		var out bytes.Buffer
		p := New(&out, format, "")
		require.NoError(t, Detail(p, item, Pair{Name: "Name", Value: "x"}))
		require.NoError(t, Event(p, item, Cell{Value: "x"}))
		require.NoError(t, Title(p, "RUNS"))
		require.Equal(t, want, out.String())
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Hour:               "0s",
		0:                        "0ms",
		1500 * time.Microsecond:  "1ms",
		999 * time.Millisecond:   "999ms",
		1250 * time.Millisecond:  "1.2s",
		9999 * time.Millisecond:  "10.0s",
		10 * time.Second:         "10s",
		119 * time.Second:        "119s",
		2 * time.Minute:          "2m",
		119 * time.Minute:        "119m",
		2 * time.Hour:            "2h",
		47*time.Hour + time.Hour: "2d",
		100 * 24 * time.Hour:     "100d",
	} {
		require.Equal(t, want, Short(d), d)
	}
	now := time.Now()
	require.Empty(t, Ago(time.Time{}, now))
	require.Equal(t, "3m", Ago(now.Add(-200*time.Second), now))
	require.Equal(t, "0s", Ago(now.Add(time.Second), now))
}

func TestAsk(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]bool{"y\n": true, " YES \n": true, "y": true, "n\n": false, "\n": false, "": false, "yep\n": false} {
		var out bytes.Buffer
		require.Equal(t, want, Ask(t.Context(), strings.NewReader(answer), &out, "Go on?"), answer)
		require.Equal(t, "Go on? [y/N] ", out.String())
	}
	require.False(t, Interactive(strings.NewReader("y")))
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, null.Close()) })
	require.False(t, Interactive(null))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in, answer := io.Pipe()
	require.False(t, Ask(ctx, in, io.Discard, "Go on?"), "an interrupt is a no")
	require.NoError(t, answer.Close())
}
