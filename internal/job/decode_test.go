package job_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

const entryID = "1700000000000-7"

// entry makes an entry of alternating names and values.
func entry(pairs ...string) job.Entry {
	e := job.Entry{ID: entryID}
	for i := 0; i < len(pairs); i += 2 {
		e.Fields = append(e.Fields, job.Field{Name: pairs[i], Value: pairs[i+1]})
	}
	return e
}

// agent is an entry that is fine but for what the pairs add.
func agent(pairs ...string) job.Entry {
	return entry(append([]string{"jobId", "j1", "task", "do it"}, pairs...)...)
}

// withID is an entry that is fine if its jobId is.
func withID(id string) job.Entry { return entry("jobId", id, "task", "do it") }

// catalogued is one entry and what must become of it: a job or a reason.
type catalogued struct {
	name   string
	role   job.Role // Agent where not given
	entry  job.Entry
	want   job.Job // Role, and ID "j1" and Task "do it" where not given
	notes  []string
	reason string
	field  string
	known  job.Job // identifiers of the rejection, besides the role
}

func (c catalogued) check(t *testing.T) {
	t.Helper()
	role := c.role
	if role == "" {
		role = job.Agent
	}
	got, err := job.Decode(role, c.entry)
	if c.reason != "" {
		var rejection *job.Rejection
		require.ErrorAs(t, err, &rejection)
		require.Equal(t, c.reason, rejection.Reason)
		require.Equal(t, c.field, rejection.Field)
		c.known.Role = role
		require.Equal(t, c.known, rejection.Job)
		require.Equal(t, job.Decoded{}, got)
		return
	}
	require.NoError(t, err)
	c.want.Role = role
	if c.want.ID == "" {
		c.want.ID = "j1"
	}
	if c.want.Task == "" {
		c.want.Task = "do it"
	}
	require.Equal(t, c.want, got.Job)
	require.Equal(t, c.notes, got.Notes)
}

// TestCatalogue has a row for each row of the catalogue of bad input that says
// something about decoding. What B16 to B18, B52 and B53 demand beyond it is up
// to the bridge and the stream.
func TestCatalogue(t *testing.T) {
	t.Parallel()
	j1 := job.Job{ID: "j1"}
	for id, rows := range map[string][]catalogued{
		"B01": {{
			entry: entry("jobId", "j1", "workflowId", "w1", "userId", "u1", "projectId", "p1", "connectionId", "c1",
				"task", "do it", "payload", `{"k":1}`, "nodeId", "n1", "priority", "2"),
			want: job.Job{
				WorkflowID: "w1", UserID: "u1", ProjectID: "p1", ConnectionID: "c1",
				Payload: `{"k":1}`, NodeID: "n1", Priority: 2,
			},
		}},
		"B02": {{
			entry: entry("task", "do it"),
			want:  job.Job{ID: entryID}, notes: []string{job.NoteJobIDFromEntry},
		}, {
			name:   "and no entry id",
			entry:  job.Entry{Fields: entry("task", "do it", "userId", "u1").Fields},
			reason: job.ReasonJobIDMissing, field: "jobId", known: job.Job{UserID: "u1"},
		}},
		"B03": {{entry: withID(""), want: job.Job{ID: entryID}, notes: []string{job.NoteJobIDFromEntry}}},
		"B04": {{entry: withID("   "), want: job.Job{ID: entryID}, notes: []string{job.NoteJobIDFromEntry}}},
		"B05": {
			{entry: withID("a/b"), want: job.Job{ID: "a/b"}},
			{entry: withID(".."), want: job.Job{ID: ".."}},
			{entry: withID("a/b/../c"), want: job.Job{ID: "a/b/../c"}},
		},
		"B06": {
			{entry: withID("a b"), want: job.Job{ID: "a b"}},
			{entry: withID(" j1"), reason: job.ReasonJobIDSpaces, field: "jobId"},
			{entry: withID("j1 "), reason: job.ReasonJobIDSpaces, field: "jobId"},
			{name: "no-break space", entry: withID("j1\u00a0"), reason: job.ReasonJobIDSpaces, field: "jobId"},
		},
		"B07": {
			{entry: withID("a\nb"), reason: job.ReasonControlChars, field: "jobId"},
			{entry: withID("a\rb"), reason: job.ReasonControlChars, field: "jobId"},
			{entry: withID("a\tb"), reason: job.ReasonControlChars, field: "jobId"},
			{entry: withID("a\x1b[31m"), reason: job.ReasonControlChars, field: "jobId"},
			{name: "at the end", entry: withID("a\n"), reason: job.ReasonControlChars, field: "jobId"},
			{name: "C1", entry: withID("a\u0085b"), reason: job.ReasonControlChars, field: "jobId"},
			{name: "line separator", entry: withID("a\u2028b"), reason: job.ReasonControlChars, field: "jobId"},
		},
		"B08": {{entry: withID("a\x00b"), reason: job.ReasonControlChars, field: "jobId"}},
		"B09": {{entry: withID("a\xffb"), reason: job.ReasonNotUTF8, field: "jobId"}},
		"B10": {
			{entry: withID("日本語"), want: job.Job{ID: "日本語"}},
			{entry: withID("🚀"), want: job.Job{ID: "🚀"}},
		},
		"B11": {
			{name: "right to left", entry: withID("a\u202eb"), reason: job.ReasonFormatChars, field: "jobId"},
			{name: "zero width space", entry: withID("a\u200bb"), reason: job.ReasonFormatChars, field: "jobId"},
			{name: "byte order mark", entry: withID("\ufeffa"), reason: job.ReasonFormatChars, field: "jobId"},
			{name: "isolate", entry: withID("a\u2066b"), reason: job.ReasonFormatChars, field: "jobId"},
			{name: "homoglyph", entry: withID("\u0430bc"), want: job.Job{ID: "\u0430bc"}},
		},
		"B12": {
			{name: "NFC", entry: withID("\u00e9"), want: job.Job{ID: "\u00e9"}},
			{name: "NFD", entry: withID("e\u0301"), want: job.Job{ID: "e\u0301"}},
		},
		"B13": {
			{entry: withID(strings.Repeat("x", 256)), want: job.Job{ID: strings.Repeat("x", 256)}},
			{entry: withID(strings.Repeat("x", 257)), reason: job.ReasonJobIDTooLong, field: "jobId"},
			{entry: withID(strings.Repeat("x", 10_000)), reason: job.ReasonJobIDTooLong, field: "jobId"},
			{name: "bytes, not letters", entry: withID(strings.Repeat("é", 129)), reason: job.ReasonJobIDTooLong, field: "jobId"},
		},
		"B14": {{entry: withID("__temporal_x"), want: job.Job{ID: "__temporal_x"}}},
		"B15": {
			{entry: withID("ABC"), want: job.Job{ID: "ABC"}},
			{entry: withID("abc"), want: job.Job{ID: "abc"}},
		},
		"B16": {{name: "an entry sent again is the same job", entry: agent("payload", "{}"), want: job.Job{Payload: "{}"}}},
		"B17": {{name: "with other content it has the same id", entry: agent("payload", "[]"), want: job.Job{Payload: "[]"}}},
		"B18": {{name: "the entry id does not matter", entry: job.Entry{ID: "9-9", Fields: agent().Fields}}},
		"B19": {{entry: agent("jobId", "j1"), notes: []string{job.NoteFieldRepeated}}},
		"B20": {
			{entry: agent("jobId", "j2", "userId", "u1"), reason: job.ReasonAmbiguousField, field: "jobId", known: job.Job{UserID: "u1"}},
			{name: "third time", entry: agent("jobId", "j2", "jobId", "j1"), reason: job.ReasonAmbiguousField, field: "jobId"},
			{name: "empty and not", entry: agent("jobId", ""), reason: job.ReasonAmbiguousField, field: "jobId"},
			{name: "task", entry: agent("task", "else"), reason: job.ReasonAmbiguousField, field: "task", known: j1},
			{
				name: "user", entry: agent("userId", "u1", "userId", "u2", "connectionId", "c1"),
				reason: job.ReasonAmbiguousField, field: "userId", known: job.Job{ID: "j1", ConnectionID: "c1"},
			},
		},
		"B21": {
			{entry: entry("JobId", "j1", "task", "do it"), notes: []string{job.NoteFieldCase}},
			{entry: entry("jobid", "j1", "task", "do it"), notes: []string{job.NoteFieldCase}},
			{entry: entry("JOBID", "j1", "TASK", "do it"), notes: []string{job.NoteFieldCase}},
			{
				name: "letters outside ASCII are others", entry: agent("ta\u017f\u212a", "other"),
				notes: []string{job.NoteUnknownField},
			},
		},
		"B22": {
			{entry: entry("jobId", "j1", "JobId", "j2", "task", "x"), reason: job.ReasonAmbiguousField, field: "jobId"},
			{
				name: "same value", entry: entry("jobId", "j1", "JobId", "j1", "task", "do it"),
				notes: []string{job.NoteFieldCase, job.NoteFieldRepeated},
			},
		},
		"B23": {
			{entry: agent("traceparent", "00-1", "x", "\xff\x00"), notes: []string{job.NoteUnknownField}},
			{name: "chat's own", entry: agent("chatId", "1", "nodeLevel", "x", "source", "list"), notes: []string{job.NoteUnknownField}},
			{name: "unlike twice", entry: agent("x", "1", "x", "2"), notes: []string{job.NoteUnknownField}},
			{name: "large", entry: agent("x", strings.Repeat("x", 2<<20)), notes: []string{job.NoteUnknownField}},
			{name: "JSON beside job fields", entry: agent("data", `{"task":"x"}`, "job", "y"), notes: []string{job.NoteUnknownField}},
		},
		"B24": {{entry: agent("", "x"), notes: []string{job.NoteUnknownField}}},
		"B25": {
			{entry: numbered(64), notes: []string{job.NoteUnknownField}},
			{entry: numbered(65), reason: job.ReasonTooManyFields, known: j1},
			{entry: numbered(10_000), reason: job.ReasonTooManyFields, known: j1},
		},
		"B26": {
			{entry: agent(strings.Repeat("n", 128), "x"), notes: []string{job.NoteUnknownField}},
			{entry: agent(strings.Repeat("n", 129), "x"), reason: job.ReasonFieldNameTooLong, known: j1},
			{entry: agent(strings.Repeat("n", 1<<20), "x"), reason: job.ReasonFieldNameTooLong, known: j1},
		},
		"B27": {
			{entry: entry("data", `{"jobId":"j1","task":"do it","payload":"{}"}`), want: job.Job{Payload: "{}"}, notes: []string{job.NoteJSONField}},
			{entry: entry("job", `{"jobId":"j1","task":"do it"}`), notes: []string{job.NoteJSONField}},
			{entry: entry("message", `{"jobId":"j1","task":"do it"}`), notes: []string{job.NoteJSONField}},
		},
		"B28": {
			{entry: entry("jobId", "j1"), reason: job.ReasonTaskMissing, field: "task", known: j1},
			{entry: entry("jobId", "j1", "task", ""), reason: job.ReasonTaskMissing, field: "task", known: j1},
			{entry: entry("jobId", "j1", "task", " \n"), reason: job.ReasonTaskMissing, field: "task", known: j1},
			{name: "agent with payload", entry: entry("jobId", "j1", "payload", "{}"), reason: job.ReasonTaskMissing, field: "task", known: j1},
			{name: "manager", role: job.Manager, entry: entry("jobId", "j1", "payload", "{}"), reason: job.ReasonTaskMissing, field: "task", known: j1},
			{name: "inspector without both", role: job.Inspector, entry: entry("jobId", "j1", "payload", " "), reason: job.ReasonTaskMissing, field: "task", known: j1},
		},
		"B29": {{entry: entry("jobId", "j1", "userId", "u1", "task", strings.Repeat("x", 5<<20)), reason: job.ReasonTooLarge, known: job.Job{ID: "j1", UserID: "u1"}}},
		"B30": {{entry: agent()}},
		"B31": {{entry: agent("payload", "")}},
		"B32": {
			{entry: agent("payload", "hello"), want: job.Job{Payload: "hello"}, notes: []string{job.NotePayloadNotJSON}},
			{name: "inspector", role: job.Inspector, entry: agent("payload", "hello"), want: job.Job{Payload: "hello"}, notes: []string{job.NotePayloadNotJSON}},
		},
		"B33": {
			{entry: agent("payload", "[1]"), want: job.Job{Payload: "[1]"}},
			{entry: agent("payload", "12"), want: job.Job{Payload: "12"}},
			{entry: agent("payload", "null"), want: job.Job{Payload: "null"}},
			{entry: agent("payload", `"x"`), want: job.Job{Payload: `"x"`}},
			{entry: agent("payload", " {} \n"), want: job.Job{Payload: " {} \n"}},
		},
		"B34": {{entry: agent("payload", `{"k":`), want: job.Job{Payload: `{"k":`}, notes: []string{job.NotePayloadNotJSON}}},
		"B35": {{
			entry: agent("payload", strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)),
			want:  job.Job{Payload: strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)},
		}},
		"B36": {
			{entry: agent("payload", "1e400"), want: job.Job{Payload: "1e400"}},
			{entry: agent("payload", strings.Repeat("9", 10_000)), want: job.Job{Payload: strings.Repeat("9", 10_000)}},
			{
				name: "in one JSON field", entry: entry("data", `{"jobId":"j1","task":"do it","payload":{"n": 1e400}}`),
				want: job.Job{Payload: `{"n": 1e400}`}, notes: []string{job.NoteJSONField},
			},
		},
		"B37": {
			{entry: agent("payload", `{"a":1,"a":2,"__proto__":{}}`), want: job.Job{Payload: `{"a":1,"a":2,"__proto__":{}}`}},
			{
				name: "in one JSON field", entry: entry("data", `{"jobId":"j1","task":"do it","payload":{"a":1,"a":2}}`),
				want: job.Job{Payload: `{"a":1,"a":2}`}, notes: []string{job.NoteJSONField},
			},
		},
		"B38": {
			// The catalogue's limit is the payload's, DESIGN.md's the encoded job's: it holds.
			{entry: agent("payload", fullPayload()), want: job.Job{Payload: fullPayload()}},
			{entry: agent("payload", fullPayload()+"1"), reason: job.ReasonTooLarge, known: j1},
			{entry: agent("payload", strings.Repeat("1", 1<<20)), reason: job.ReasonTooLarge, known: j1},
			{entry: agent("payload", strings.Repeat("1", 5<<20)), reason: job.ReasonTooLarge, known: j1},
		},
		"B39": {
			{entry: agent("payload", strings.Repeat("\x00", 400_000)), reason: job.ReasonTooLarge, known: j1},
			{entry: agent("payload", strings.Repeat("<", 600_000)), reason: job.ReasonTooLarge, known: j1},
			{name: "few", entry: agent("payload", "\"\x01\""), want: job.Job{Payload: "\"\x01\""}, notes: []string{job.NotePayloadNotJSON}},
		},
		"B40": {
			{entry: agent("payload", "\xc3("), reason: job.ReasonNotUTF8, field: "payload", known: j1},
			{entry: entry("jobId", "j1", "task", "\xff"), reason: job.ReasonNotUTF8, field: "task", known: j1},
			{entry: entry("data", "{\"jobId\":\"j1\",\"task\":\"\xff\"}"), reason: job.ReasonNotUTF8, field: "data", known: job.Job{ID: entryID}},
			{name: "half a surrogate pair", entry: entry("data", `{"jobId":"j1","task":"\ud83d!"}`), reason: job.ReasonNotUTF8, field: "task", known: j1},
		},
		"B41": {{entry: agent("payload", `"H4sIAAAAAAAA/8tIzcnJBwCGphA2BQAAAA=="`), want: job.Job{Payload: `"H4sIAAAAAAAA/8tIzcnJBwCGphA2BQAAAA=="`}}},
		"B42": {
			{entry: agent("role", "manager"), notes: []string{job.NoteRoleMismatch}},
			{entry: agent("role", "AGENT")},
			{entry: agent("role", "")},
			{name: "in JSON", entry: entry("data", `{"jobId":"j1","task":"do it","role":"chat"}`), notes: []string{job.NoteJSONField, job.NoteRoleMismatch}},
		},
		"B43": {
			{entry: agent("model", "gpt", "endpoint", "http://169.254.169.254", "url", "u", "apiKey", "k", "max_tokens", "9"), notes: []string{job.NoteIgnoredField}},
			{
				name: "chat may name a model", role: job.Chat, entry: entry("jobId", "j1", "message", "do it", "model", "llama3:8b", "apikey", "k"),
				want: job.Job{Model: "llama3:8b"}, notes: []string{job.NoteIgnoredField},
			},
		},
		"B44": {
			{entry: agent("connectionId", "12345"), want: job.Job{ConnectionID: "12345"}},
			{
				name: "JSON number", entry: entry("data", `{"jobId":12345678901234567890,"task":"do it","connectionId":1.50}`),
				want: job.Job{ID: "12345678901234567890", ConnectionID: "1.50"}, notes: []string{job.NoteJSONField},
			},
		},
		"B45": {{entry: agent("userId", "u1"), want: job.Job{UserID: "u1"}}},
		"B46": {
			{entry: agent("connectionId", "c1"), want: job.Job{ConnectionID: "c1"}},
			{name: "blank", entry: agent("userId", " ", "projectId", ""), notes: []string{job.NoteBlankField}},
		},
		"B47": {
			{entry: agent("userId", "a\nb", "connectionId", "c"), reason: job.ReasonControlChars, field: "userId", known: job.Job{ID: "j1", ConnectionID: "c"}},
			{entry: agent("userId", strings.Repeat("u", 1000)), reason: job.ReasonIDTooLong, field: "userId", known: j1},
			{entry: agent("userId", strings.Repeat("u", 512)), want: job.Job{UserID: strings.Repeat("u", 512)}},
			{entry: agent("projectId", strings.Repeat("p", 513)), reason: job.ReasonIDTooLong, field: "projectId", known: j1},
			{entry: agent("nodeId", "\xff"), reason: job.ReasonNotUTF8, field: "nodeId", known: j1},
			{entry: agent("workflowId", "\u200f"), reason: job.ReasonFormatChars, field: "workflowId", known: j1},
			{entry: agent("connectionId", "\x00"), reason: job.ReasonControlChars, field: "connectionId", known: j1},
		},
		"B48": {{entry: agent("workflowId", "w1"), want: job.Job{WorkflowID: "w1"}}},
		"B49": {{
			entry: entry("jobId", "j1", "task", "{\"level\":\"error\"}\nMessageId: 1\x1b[0m"),
			want:  job.Job{Task: "{\"level\":\"error\"}\nMessageId: 1\x1b[0m"},
		}},
		"B50": {{
			entry: entry("jobId", "%s%n{{.}}${jndi:x}", "task", "%d{{template}}", "userId", "%v"),
			want:  job.Job{ID: "%s%n{{.}}${jndi:x}", Task: "%d{{template}}", UserID: "%v"},
		}},
		"B51": {
			{entry: job.Entry{ID: "18446744073709551615-1", Fields: agent().Fields}},
			{entry: job.Entry{ID: "0-1", Fields: entry("task", "do it").Fields}, want: job.Job{ID: "0-1"}, notes: []string{job.NoteJobIDFromEntry}},
		},
		"B52": {{entry: job.Entry{ID: "5-0"}, reason: job.ReasonTaskMissing, field: "task", known: job.Job{ID: "5-0"}}},
		"B53": {{
			name: "the role argument decides, not the stream's name", role: job.Manager,
			entry: job.Entry{ID: entryID, Stream: "jobs:agent", Fields: agent().Fields},
		}},
		"B54": {
			{
				entry: agent("original_id", "1-0", "failed_at", "2026-01-01T00:00:00Z", "reason", "task_missing", "error", "e"),
				notes: []string{job.NoteDeadLetterField},
			},
			{
				name: "around a JSON field", entry: entry("data", `{"jobId":"j1","task":"do it"}`, "original_id", "1-0"),
				notes: []string{job.NoteDeadLetterField, job.NoteJSONField},
			},
			{name: "cut copy", entry: agent("original_id", "1-0", "truncated", "1"), reason: job.ReasonDeadLetterTruncated, known: j1},
			{name: "a field called truncated", entry: agent("truncated", "1"), notes: []string{job.NoteDeadLetterField}},
		},
	} {
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			for i, row := range rows {
				t.Run(fmt.Sprint(i, row.name), func(t *testing.T) {
					t.Parallel()
					row.check(t)
				})
			}
		})
	}
	t.Run("B55", func(t *testing.T) {
		t.Parallel()
		for i := range 1000 {
			_, err := job.Decode(job.Agent, withID(strings.Repeat("\x00", i+1)))
			require.Error(t, err)
			got, err := job.Decode(job.Agent, agent())
			require.NoError(t, err, "an entry behind poison")
			require.Equal(t, "j1", got.Job.ID)
		}
	})
	t.Run("B56", func(t *testing.T) {
		t.Parallel()
		require.Equal(t, "a\ufffdb\ufffd\x1b[1m", job.SafeText("a\x00b\xff\xfe\x1b[1m", 100))
	})
}

// numbered is an agent entry with that many fields in all.
func numbered(fields int) job.Entry {
	e := agent()
	for i := len(e.Fields); i < fields; i++ {
		e.Fields = append(e.Fields, job.Field{Name: fmt.Sprint("f", i), Value: "x"})
	}
	return e
}

// fullPayload is a payload of digits with which agent's job encodes to exactly
// MaxEncoded bytes.
func fullPayload() string {
	empty := job.EncodedSize(job.Job{Role: job.Agent, ID: "j1", Task: "do it"})
	return strings.Repeat("1", job.MaxEncoded-empty-len(`,"payload":""`))
}

func TestDecodeJSONField(t *testing.T) {
	t.Parallel()
	onlyEntryID := job.Job{ID: entryID}
	j1 := job.Job{ID: "j1"}
	jsonNotes := func(more ...string) []string { return append([]string{job.NoteJSONField}, more...) }
	deep := func(n int) string { return strings.Repeat(`[`, n) + strings.Repeat(`]`, n) }
	for _, row := range []catalogued{
		{
			name:  "payload object keeps its bytes",
			entry: entry("data", `{ "jobId":"j1", "task":"do it", "payload": {"b" : [1, 2],"a":"<&>"} }`),
			want:  job.Job{Payload: `{"b" : [1, 2],"a":"<&>"}`}, notes: jsonNotes(),
		},
		{
			name: "payload array, number, bool", entry: entry("data", `{"jobId":"j1","task":"do it","payload":[ 1 ]}`),
			want: job.Job{Payload: "[ 1 ]"}, notes: jsonNotes(),
		},
		{name: "payload number", entry: entry("data", `{"jobId":"j1","task":"do it","payload":1.0}`), want: job.Job{Payload: "1.0"}, notes: jsonNotes()},
		{name: "payload bool", entry: entry("data", `{"jobId":"j1","task":"do it","payload":false}`), want: job.Job{Payload: "false"}, notes: jsonNotes()},
		{
			name: "payload text", entry: entry("data", `{"jobId":"j1","task":"do it","payload":"a\"\u00e9\ud83d\ude80\\ud83d"}`),
			want: job.Job{Payload: `a"é🚀\ud83d`}, notes: jsonNotes(job.NotePayloadNotJSON),
		},
		{
			name: "null is absent", entry: entry("data", `{"jobId":null,"task":"do it","userId":null,"payload":null,"priority":null,"role":null}`),
			want: job.Job{ID: entryID}, notes: jsonNotes(job.NoteJobIDFromEntry),
		},
		{name: "null beside a value", entry: entry("data", `{"jobId":null,"JobId":"j1","task":"do it"}`), notes: jsonNotes(job.NoteFieldCase)},
		{name: "repeated", entry: entry("data", `{"jobId":"j1","jobId":"j1","task":"do it"}`), notes: jsonNotes(job.NoteFieldRepeated)},
		{
			name: "ambiguous", entry: entry("data", `{"jobId":"j1","task":"do it","userId":"a","UserId":"b","nodeId":"n"}`),
			reason: job.ReasonAmbiguousField, field: "userId", known: job.Job{ID: "j1", NodeID: "n"},
		},
		{name: "unknown and refused members", entry: entry("data", `{"jobId":"j1","task":"do it","x":{},"data":"y","source":"list","model":"m"}`), notes: jsonNotes(job.NoteUnknownField, job.NoteIgnoredField)},
		{name: "priority number", entry: entry("data", `{"jobId":"j1","task":"do it","priority":5}`), want: job.Job{Priority: 5}, notes: jsonNotes()},
		{name: "priority of a wrong type", entry: entry("data", `{"jobId":"j1","task":"do it","priority":[1]}`), notes: jsonNotes(job.NotePriorityInvalid)},
		{name: "id of a wrong type", entry: entry("data", `{"jobId":"j1","task":"do it","userId":{"a":1}}`), reason: job.ReasonWrongType, field: "userId", known: j1},
		{name: "jobId of a wrong type", entry: entry("data", `{"jobId":true,"task":"do it"}`), reason: job.ReasonWrongType, field: "jobId"},
		{name: "task of a wrong type", entry: entry("data", `{"jobId":"j1","task":["do it"]}`), reason: job.ReasonWrongType, field: "task", known: j1},
		{name: "wrong and right type", entry: entry("data", `{"jobId":"j1","task":["x"],"task":"do it"}`), reason: job.ReasonWrongType, field: "task", known: j1},
		{name: "beside bookkeeping and unknown fields", entry: entry("role", "agent", "Data", `{"jobId":"j1","task":"do it"}`, "x", "y", "userId", ""), notes: []string{job.NoteFieldCase, job.NoteUnknownField, job.NoteJSONField}},
		{name: "twice the same", entry: entry("data", `{"jobId":"j1","task":"do it"}`, "data", `{"jobId":"j1","task":"do it"}`), notes: []string{job.NoteFieldRepeated, job.NoteJSONField}},
		{name: "twice unlike", entry: entry("data", `{"jobId":"j1","task":"do it"}`, "data", `{}`), reason: job.ReasonAmbiguousField, field: "data", known: onlyEntryID},
		{name: "two of them", entry: entry("data", `{"jobId":"j1","task":"do it"}`, "job", `{"jobId":"j1","task":"do it"}`), reason: job.ReasonAmbiguousField, field: "job", known: onlyEntryID},
		{name: "one empty", entry: entry("data", "", "job", `{"jobId":"j1","task":"do it"}`), notes: jsonNotes()},
		{name: "empty", entry: entry("data", ""), reason: job.ReasonTaskMissing, field: "task", known: onlyEntryID},
		{name: "empty object", entry: entry("data", "{}"), reason: job.ReasonTaskMissing, field: "task", known: onlyEntryID},
		{name: "text", entry: entry("message", "hello"), reason: job.ReasonJSONInvalid, field: "message", known: onlyEntryID},
		{name: "array", entry: entry("data", "[]"), reason: job.ReasonJSONInvalid, field: "data", known: onlyEntryID},
		{name: "string", entry: entry("data", `"{}"`), reason: job.ReasonJSONInvalid, field: "data", known: onlyEntryID},
		{name: "null", entry: entry("data", "null"), reason: job.ReasonJSONInvalid, field: "data", known: onlyEntryID},
		{name: "cut", entry: entry("data", `{"jobId":"j1","task":"do`), reason: job.ReasonJSONInvalid, field: "data", known: onlyEntryID},
		{name: "trailing text", entry: entry("data", `{"jobId":"j1","task":"do it"} {}`), reason: job.ReasonJSONInvalid, field: "data", known: onlyEntryID},
		{name: "trailing comma", entry: entry("data", `{"jobId":"j1","task":"do it",}`), reason: job.ReasonJSONInvalid, field: "data", known: onlyEntryID},
		{name: "deep enough", entry: entry("data", `{"jobId":"j1","task":"do it","payload":`+deep(63)+`}`), want: job.Job{Payload: deep(63)}, notes: jsonNotes()},
		{name: "too deep", entry: entry("data", `{"jobId":"j1","task":"do it","payload":`+deep(64)+`}`), reason: job.ReasonJSONTooDeep, field: "data", known: onlyEntryID},
		{name: "brackets in text are not deep", entry: entry("data", `{"jobId":"j1","task":"do it","payload":"\"`+strings.Repeat(`[`, 1000)+`\""}`), want: job.Job{Payload: `"` + strings.Repeat(`[`, 1000) + `"`}, notes: jsonNotes()},
		{name: "too many members", entry: entry("data", `{"jobId":"j1","task":"do it"`+strings.Repeat(`,"x":1`, 63)+`}`), reason: job.ReasonTooManyFields, field: "data", known: j1},
		{name: "long member name", entry: entry("data", `{"jobId":"j1","task":"do it","`+strings.Repeat("x", 129)+`":1}`), reason: job.ReasonFieldNameTooLong, known: j1},
		{name: "escaped to the limit", entry: entry("data", `{"jobId":"j1","task":"do it","payload":"`+strings.Repeat(`\u0031`, len(fullPayload()))+`"}`), want: job.Job{Payload: fullPayload()}, notes: jsonNotes()},
		{name: "huge", entry: entry("data", `{"jobId":"j1","task":"do it"`+strings.Repeat(" ", 6<<20)+`}`), reason: job.ReasonTooLarge, field: "data", known: onlyEntryID},
		{name: "half pair at the end", entry: entry("data", `{"jobId":"\ud83d","task":"do it"}`), reason: job.ReasonNotUTF8, field: "jobId"},
		{name: "half pair before another escape", entry: entry("data", `{"jobId":"\ud83d\u0041","task":"do it"}`), reason: job.ReasonNotUTF8, field: "jobId"},
		{name: "second half first", entry: entry("data", `{"jobId":"\ude80\ud83d","task":"do it"}`), reason: job.ReasonNotUTF8, field: "jobId"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.check(t)
		})
	}
}

func TestDecodeChat(t *testing.T) {
	t.Parallel()
	onlyEntryID := job.Job{ID: entryID}
	for _, row := range []catalogued{
		{
			name: "all fields",
			entry: entry("jobId", "j1", "userId", "u", "connectionId", "c", "message", "do it", "projectId", "p", "nodeId", "n",
				"nodeLevel", "manager", "model", "m", "chatId", "7", "workflowId", "w", "priority", "1"),
			want: job.Job{
				UserID: "u", ConnectionID: "c", ProjectID: "p", NodeID: "n", NodeLevel: "manager",
				Model: "m", ChatID: "7", WorkflowID: "w", Priority: 1,
			},
		},
		{
			name: "item of the legacy list",
			entry: entry("data", `{"UserId":"u","ConnectionId":"c","Message":"do it","ProjectId":"p","NodeLevel":"Inspector","Model":null}`,
				"source", "list"),
			want: job.Job{
				ID: entryID, UserID: "u", ConnectionID: "c", ProjectID: "p", NodeLevel: "inspector", Source: job.SourceList,
			},
			notes: []string{job.NoteJSONField, job.NoteFieldCase, job.NoteJobIDFromEntry, job.NoteNodeLevelCase},
		},
		{
			name: "list item that is no JSON", entry: entry("data", "hello", "source", "list"),
			reason: job.ReasonJSONInvalid, field: "data", known: job.Job{ID: entryID, Source: job.SourceList},
		},
		{
			name: "list item without text", entry: entry("data", `{"UserId":"u","ConnectionId":"c","Message":null}`, "source", "list"),
			reason: job.ReasonChatMessageMissing, field: "message",
			known: job.Job{ID: entryID, UserID: "u", ConnectionID: "c", Source: job.SourceList},
		},
		{name: "other source", entry: entry("jobId", "j1", "message", "do it", "source", "List"), notes: []string{job.NoteUnknownField}},
		{name: "source inside of the object", entry: entry("data", `{"jobId":"j1","message":"do it","source":"list"}`), notes: []string{job.NoteJSONField, job.NoteUnknownField}},
		{name: "only a chatId", entry: entry("chatId", "7"), reason: job.ReasonChatMessageMissing, field: "message", known: job.Job{ID: entryID, ChatID: "7"}},
		{name: "blank message", entry: entry("message", " ", "userId", "u"), reason: job.ReasonChatMessageMissing, field: "message", known: job.Job{ID: entryID, UserID: "u"}},
		{name: "task is not the message", entry: entry("task", "do it"), reason: job.ReasonChatMessageMissing, field: "message", known: onlyEntryID},
		{name: "payload means nothing", entry: entry("jobId", "j1", "message", "do it", "payload", "{"), notes: []string{job.NoteUnknownField}},
		{name: "node level in other case", entry: entry("jobId", "j1", "message", "do it", "nodeLevel", "AGENT"), want: job.Job{NodeLevel: "agent"}, notes: []string{job.NoteNodeLevelCase}},
		{name: "unknown node level", entry: entry("jobId", "j1", "message", "do it", "nodeLevel", "Director"), want: job.Job{NodeLevel: "Director"}},
		{name: "node level as a number", entry: entry("data", `{"jobId":"j1","message":"do it","nodeLevel":2}`), want: job.Job{NodeLevel: "2"}, notes: []string{job.NoteJSONField}},
		{name: "bad model", entry: entry("jobId", "j1", "message", "do it", "model", "a\nb"), reason: job.ReasonControlChars, field: "model", known: job.Job{ID: "j1"}},

		// message: the text, or the whole job
		{name: "plain text alone", entry: entry("message", "do it"), want: job.Job{ID: entryID}, notes: []string{job.NoteJobIDFromEntry}},
		{
			name: "whole job alone", entry: entry("message", `{"jobId":"j1","message":"do it","userId":"u"}`),
			want: job.Job{UserID: "u"}, notes: []string{job.NoteJSONField},
		},
		{
			name: "whole job with a source", entry: entry("message", ` {"jobId":"j1","Message":"do it"}`, "source", "list"),
			want: job.Job{Source: job.SourceList}, notes: []string{job.NoteJSONField, job.NoteFieldCase},
		},
		{
			name: "JSON typed by a user", entry: entry("jobId", "j1", "message", `{"message":"x","userId":"root"}`),
			want: job.Job{Task: `{"message":"x","userId":"root"}`},
		},
		{
			name: "also where the only other field is faulty", entry: entry("message", `{"message":"x"}`, "userId", "a", "userId", "b"),
			reason: job.ReasonAmbiguousField, field: "userId", known: onlyEntryID,
		},
		{
			name: "object without a message", entry: entry("message", `{"text":"x"}`),
			want: job.Job{ID: entryID, Task: `{"text":"x"}`}, notes: []string{job.NoteJobIDFromEntry},
		},
		{
			name: "object whose message is no text", entry: entry("message", `{"message":{"a":1}}`),
			want: job.Job{ID: entryID, Task: `{"message":{"a":1}}`}, notes: []string{job.NoteJobIDFromEntry},
		},
		{
			name: "broken JSON", entry: entry("message", `{"message":"x"`),
			want: job.Job{ID: entryID, Task: `{"message":"x"`}, notes: []string{job.NoteJobIDFromEntry},
		},
		{
			name: "with data beside it it is text", entry: entry("message", `{"message":"x"}`, "data", "y"),
			want: job.Job{ID: entryID, Task: `{"message":"x"}`}, notes: []string{job.NoteUnknownField, job.NoteJobIDFromEntry},
		},
		{
			name: "a faulty whole job is not text", entry: entry("message", `{"message":"x","message":"y"}`),
			reason: job.ReasonAmbiguousField, field: "message", known: onlyEntryID,
		},
	} {
		row.role = job.Chat
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.check(t)
		})
	}
}

func TestDecodePriority(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]int{
		"": 0, "1": 1, "5": 5, " 3 ": 3,
		"0": -1, "6": -1, "-1": -1, "1.0": -1, "+2": -1, "02": -1, "high": -1, "\xff": -1, "１": -1,
	} {
		got, err := job.Decode(job.Agent, agent("priority", value))
		require.NoError(t, err)
		if want < 0 {
			require.Zero(t, got.Job.Priority, "%q", value)
			require.Equal(t, []string{job.NotePriorityInvalid}, got.Notes, "%q", value)
			continue
		}
		require.Equal(t, want, got.Job.Priority, "%q", value)
		require.Empty(t, got.Notes, "%q", value)
	}
}

func TestInspectorNeedsOnlyPayload(t *testing.T) {
	t.Parallel()
	got, err := job.Decode(job.Inspector, entry("jobId", "j1", "payload", "{}"))
	require.NoError(t, err)
	require.Equal(t, job.Job{Role: job.Inspector, ID: "j1", Payload: "{}"}, got.Job)
}

// TestRejectionShowsNoContent puts a mark into every value and every unknown
// name: neither the error nor the message may repeat it.
func TestRejectionShowsNoContent(t *testing.T) {
	t.Parallel()
	const mark = "CANARY"
	for _, e := range []job.Entry{
		entry("jobId", mark+"\n", "task", mark, "userId", mark+"\x00"),
		entry("jobId", mark, "payload", mark),
		entry("task", mark, "task", mark+mark),
		entry("data", mark),
		entry(strings.Repeat(mark, 100), mark, "task", mark),
		entry("task", mark+strings.Repeat("x", 2<<20), "payload", mark),
		entry("data", `{"task":{"`+mark+`":1}}`),
	} {
		_, err := job.Decode(job.Agent, e)
		var rejection *job.Rejection
		require.ErrorAs(t, err, &rejection)
		require.NotContains(t, rejection.Error(), mark)
		require.NotContains(t, rejection.Message(), mark)
		require.NotContains(t, rejection.Field, mark)
		require.Empty(t, rejection.Job.Task+rejection.Job.Payload+rejection.Job.Model)
		require.Contains(t, rejection.Error(), rejection.Reason)
	}
	require.Equal(t, "entry rejected: task_missing (field task)", (&job.Rejection{Reason: job.ReasonTaskMissing, Field: "task"}).Error())
	require.Equal(t, "entry rejected: too_large", (&job.Rejection{Reason: job.ReasonTooLarge}).Error())
}

func TestCodes(t *testing.T) {
	t.Parallel()
	for _, codes := range [][]string{job.Reasons(), job.Notes()} {
		require.True(t, slices.IsSorted(codes))
		require.Len(t, slices.Compact(slices.Clone(codes)), len(codes))
		for _, code := range codes {
			require.Regexp(t, `^[a-z][a-z0-9_]{1,39}$`, code)
		}
	}
	messages := make(map[string]string)
	for _, reason := range job.Reasons() {
		message := (&job.Rejection{Reason: reason}).Message()
		require.Regexp(t, `^The (job|message) was not .+\.$`, message)
		require.Empty(t, messages[message], "%s has the sentence of another reason", reason)
		messages[message] = reason
	}
}

func TestFieldsNames(t *testing.T) {
	t.Parallel()
	full := job.Job{
		Role: job.Agent, ID: "j", WorkflowID: "w", UserID: "u", ProjectID: "p", NodeID: "n", ConnectionID: "c",
		Task: "t", Payload: "{}", Priority: 3,
	}
	require.Equal(t, []job.Field{
		{Name: "jobId", Value: "j"},
		{Name: "workflowId", Value: "w"},
		{Name: "userId", Value: "u"},
		{Name: "projectId", Value: "p"},
		{Name: "nodeId", Value: "n"},
		{Name: "connectionId", Value: "c"},
		{Name: "task", Value: "t"},
		{Name: "payload", Value: "{}"},
		{Name: "priority", Value: "3"},
	}, full.Fields())
	require.Equal(t, []job.Field{
		{Name: "jobId", Value: "j"},
		{Name: "message", Value: "t"},
		{Name: "chatId", Value: "7"},
		{Name: "nodeLevel", Value: "agent"},
		{Name: "model", Value: "m"},
		{Name: "source", Value: "list"},
	}, job.Job{Role: job.Chat, ID: "j", Task: "t", ChatID: "7", NodeLevel: "agent", Model: "m", Source: job.SourceList}.Fields())
	require.Empty(t, job.Job{}.Fields())
}

func TestEncodedSize(t *testing.T) {
	t.Parallel()
	j := job.Job{Role: job.Agent, ID: "j", Task: "<\x01\u2028é"}
	require.Equal(t, len(`{"role":"agent","jobId":"j","task":"\u003c\u0001\u2028é"}`), job.EncodedSize(j))
	encoded, err := json.Marshal(j)
	require.NoError(t, err)
	require.Len(t, encoded, job.EncodedSize(j))
}

func TestSafeText(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		text  string
		limit int
		want  string
	}{
		"fits":                     {"héllo", 6, "héllo"},
		"cut":                      {"hello", 4, "hell"},
		"cut inside a character":   {"héllo", 2, "h"},
		"cut inside a four-byte":   {"🚀", 3, ""},
		"NUL":                      {"a\x00\x00", 10, "a\ufffd\ufffd"},
		"not UTF-8":                {"\xffa", 10, "\ufffda"},
		"replacement does not fit": {"ab\x00", 4, "ab"},
		"escape sequences stay":    {"\x1b[31m\n", 10, "\x1b[31m\n"},
		"nothing":                  {"abc", 0, ""},
		"less than nothing":        {"abc", -1, ""},
		"empty":                    {"", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, job.SafeText(tt.text, tt.limit))
		})
	}
}
