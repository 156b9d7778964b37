package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// badEntry is an entry of the catalogue of bad input and what must become of it
// in the running system: a job that completes, one that fails, or a rejection.
type badEntry struct {
	name   string
	role   string   // agent where not given
	id     string   // of the entry; Redis chooses where not given
	fields []string // names and values, as raw as Redis takes them
	notes  []string // what is counted as normalised

	reason string // rejected for it
	failed string // failed with this code
	// jobID is the job's: by default the field's value; "*" stands for the entry's
	// id, and "-" for none, where a rejected entry has no usable one.
	jobID  string
	prompt string            // what the LLM is asked: by default the value of task or message
	output string            // the answer: by default the stand-in's usual one
	update map[string]string // fields of the update that are not what the entry's say
	untold bool              // rejected, with nobody to tell
}

// usualAnswer is what the stand-in answers without a directive.
const usualAnswer = harness.Canary + "-answer"

// catalogue returns the rows of the catalogue that are a matter of single
// entries. What a row means is decided in docs/DESIGN.md section 2.1 and, one
// level deeper, in the decoder's own tests: the numbers are the same there.
func catalogue() map[string][]badEntry {
	n := 0
	// own is a jobId that no other row has.
	own := func() string { n++; return "j" + strconv.Itoa(n) }
	task := func() string { return harness.Text("task") }
	withID := func(id string) []string { return []string{"jobId", id, "userId", "u1", "task", task()} }
	with := func(more ...string) []string { return append(withID(own()), more...) }
	raw := func(pairs ...string) []string { return append([]string{"userId", "u1"}, pairs...) }
	numbered := func(fields int) []string {
		pairs := with()
		for i := len(pairs) / 2; i < fields; i++ {
			pairs = append(pairs, "f"+strconv.Itoa(i), "x")
		}
		return pairs
	}
	repeat := strings.Repeat
	payload := func(role, value string, notes ...string) badEntry {
		e := badEntry{role: role, fields: with("payload", value), notes: notes}
		if role == "inspector" {
			e.prompt = inspectorPrompt(value, e.fields[5])
		}
		return e
	}
	wholeJob := func(name, id, text string) badEntry {
		return badEntry{
			fields: []string{name, `{"jobId":"` + id + `","userId":"u2","task":"` + text + `","payload":"{}"}`},
			jobID:  id, prompt: text, notes: []string{"json_field"}, update: map[string]string{"UserId": "u2"},
		}
	}
	nfc, nfd := withID("caf\u00e9"), withID("cafe\u0301")

	return map[string][]badEntry{
		"B01": {{fields: []string{
			"jobId", own(), "workflowId", "w1", "userId", "u1", "projectId", "p1", "connectionId", "c1", "nodeId", "n1",
			"task", task(), "payload", `{"k":1}`, "priority", "2",
		}}},
		"B02": {{fields: raw("task", task()), jobID: "*", notes: []string{"job_id_from_entry"}}},
		"B03": {{fields: withID(""), jobID: "*", notes: []string{"job_id_from_entry"}}},
		"B04": {{fields: withID("   "), jobID: "*", notes: []string{"job_id_from_entry"}}},
		"B05": {{fields: withID("a/b")}, {fields: withID("..")}, {fields: withID("a/b/../c")}},
		"B06": {
			{fields: withID("a b")},
			{fields: withID(" j"), reason: "job_id_spaces", jobID: "-"},
			{fields: withID("j "), reason: "job_id_spaces", jobID: "-"},
			{name: "no-break space", fields: withID("j\u00a0"), reason: "job_id_spaces", jobID: "-"},
		},
		"B07": {
			{name: "line feed", fields: withID("a\n{\"level\":\"ERROR\",\"msg\":\"forged\"}"), reason: "control_chars", jobID: "-"},
			{name: "carriage return", fields: withID("a\rb"), reason: "control_chars", jobID: "-"},
			{name: "tab", fields: withID("a\tb"), reason: "control_chars", jobID: "-"},
			{name: "escape", fields: withID("a\x1b[31m"), reason: "control_chars", jobID: "-"},
			{name: "at the end", fields: withID("a\n"), reason: "control_chars", jobID: "-"},
			{name: "C1", fields: withID("a\u0085b"), reason: "control_chars", jobID: "-"},
			{name: "line separator", fields: withID("a\u2028b"), reason: "control_chars", jobID: "-"},
		},
		"B08": {{fields: withID("a\x00b"), reason: "control_chars", jobID: "-"}},
		"B09": {{fields: withID("a\xffb"), reason: "not_utf8", jobID: "-"}},
		"B10": {{fields: withID("日本語")}, {name: "emoji", fields: withID("🚀")}},
		"B11": {
			{name: "right to left", fields: withID("a\u202eb"), reason: "format_chars", jobID: "-"},
			{name: "zero width", fields: withID("a\u200bb"), reason: "format_chars", jobID: "-"},
			{name: "byte order mark", fields: withID("\ufeffa"), reason: "format_chars", jobID: "-"},
			{name: "isolate", fields: withID("a\u2066b"), reason: "format_chars", jobID: "-"},
			{name: "homoglyph", fields: withID("\u0430bc")},
		},
		"B12": {{name: "NFC", fields: nfc}, {name: "NFD is another job", fields: nfd}},
		"B13": {
			{name: "256", fields: withID(repeat("x", 256))},
			{name: "257", fields: withID(repeat("x", 257)), reason: "job_id_too_long", jobID: "-"},
			{name: "10 kB", fields: withID(repeat("x", 10_000)), reason: "job_id_too_long", jobID: "-"},
			{name: "bytes, not letters", fields: withID(repeat("é", 129)), reason: "job_id_too_long", jobID: "-"},
		},
		"B14": {{fields: withID("__temporal_x")}},
		"B15": {{name: "upper", fields: withID("CASE")}, {name: "lower is another job", fields: withID("case")}},
		"B19": {{fields: twice(with(), 0), notes: []string{"field_repeated"}}},
		"B20": {
			{name: "jobId", fields: with("jobId", "other"), reason: "ambiguous_field", jobID: "-"},
			{name: "one of them empty", fields: with("jobId", ""), reason: "ambiguous_field", jobID: "-"},
			{name: "task", fields: with("task", "else"), reason: "ambiguous_field"},
			{
				name: "user", fields: with("userId", "u2", "connectionId", "c1"),
				reason: "ambiguous_field", update: map[string]string{"UserId": ""},
			},
		},
		"B21": {
			{name: "JobId", fields: raw("JobId", own(), "task", task()), notes: []string{"field_case"}},
			{name: "jobid", fields: raw("jobid", own(), "task", task()), notes: []string{"field_case"}},
			{name: "JOBID", fields: raw("JOBID", own(), "TASK", task()), notes: []string{"field_case"}},
			{name: "letters outside ASCII are others", fields: with("ta\u017f\u212a", "x"), notes: []string{"unknown_field"}},
		},
		"B22": {
			{fields: with("JobId", "other"), reason: "ambiguous_field", jobID: "-"},
			{name: "the same value", fields: respelled(with()), notes: []string{"field_case", "field_repeated"}},
		},
		"B23": {
			{fields: with("traceparent", "00-1", "x", harness.Canary+"\xff\x00"), notes: []string{"unknown_field"}},
			{name: "a JSON job beside fields", fields: with("data", `{"task":"x"}`), notes: []string{"unknown_field"}},
			{name: "large", fields: with("x", repeat("x", 1<<20)), notes: []string{"unknown_field"}},
		},
		"B24": {{fields: with("", "x"), notes: []string{"unknown_field"}}},
		"B25": {
			{name: "64", fields: numbered(64), notes: []string{"unknown_field"}},
			{name: "65", fields: numbered(65), reason: "too_many_fields"},
			{name: "10000", fields: numbered(10_000), reason: "too_many_fields"},
		},
		"B26": {
			{name: "128", fields: with(repeat("n", 128), "x"), notes: []string{"unknown_field"}},
			{name: "129", fields: with(repeat("n", 129), "x"), reason: "field_name_too_long"},
			{name: "1 MB", fields: with(repeat("n", 1<<20), "x"), reason: "field_name_too_long"},
		},
		"B27": {
			wholeJob("data", own(), task()), wholeJob("job", own(), task()), wholeJob("message", own(), task()),
			{name: "not JSON", fields: []string{"data", harness.Text("data")}, reason: "json_invalid", jobID: "*", untold: true},
		},
		"B28": {
			{name: "missing", fields: raw("jobId", own()), reason: "task_missing"},
			{name: "empty", fields: raw("jobId", own(), "task", ""), reason: "task_missing"},
			{name: "blank", fields: raw("jobId", own(), "task", " \n"), reason: "task_missing"},
			{name: "only a payload", role: "manager", fields: raw("jobId", own(), "payload", harness.Text("payload")), reason: "task_missing"},
			{
				name: "the inspector takes a payload", role: "inspector", fields: raw("jobId", own(), "payload", `"only"`),
				prompt: inspectorPrompt(`"only"`, ""),
			},
			{name: "the inspector without both", role: "inspector", fields: raw("jobId", own(), "payload", " "), reason: "task_missing"},
			{name: "chat with only a chatId", role: "chat", fields: raw("jobId", own(), "chatId", "7"), reason: "chat_message_missing"},
		},
		"B29": {{fields: raw("jobId", own(), "task", harness.Canary+repeat("x", 5<<20)), reason: "too_large"}},
		"B30": {{fields: with()}},
		"B31": {payload("", "")},
		"B32": {payload("", "hello", "payload_not_json"), payload("inspector", "hello", "payload_not_json")},
		"B33": {
			payload("inspector", "[1]"), payload("inspector", "12"), payload("inspector", "null"),
			payload("inspector", `"x"`), payload("inspector", " {} \n"),
		},
		"B34": {payload("inspector", `{"k":`, "payload_not_json")},
		"B35": {payload("inspector", repeat("[", 100_000)+repeat("]", 100_000))},
		"B36": {payload("inspector", "1e400"), payload("inspector", repeat("9", 10_000))},
		"B37": {payload("inspector", `{"a":1,"a":2,"__proto__":{"a":{}}}`)},
		"B38": {
			// The limit is on the whole job as it is encoded.
			{name: "just below 1 MiB", fields: with("payload", repeat("1", 1<<20-1024))},
			{name: "1 MiB", fields: with("payload", repeat("1", 1<<20)), reason: "too_large"},
			{name: "5 MiB", fields: with("payload", repeat("1", 5<<20)), reason: "too_large"},
		},
		"B39": {
			{name: "NUL", fields: with("payload", repeat("\x00", 400_000)), reason: "too_large"},
			{name: "what JSON escapes", fields: with("payload", repeat("<", 600_000)), reason: "too_large"},
			payload("inspector", "\"\x00\x01\"", "payload_not_json"),
		},
		"B40": {
			{name: "payload", fields: with("payload", "\xc3("), reason: "not_utf8"},
			{name: "task", fields: raw("jobId", own(), "task", harness.Canary+"\xff"), reason: "not_utf8"},
			{name: "whole job", fields: []string{"data", "{\"jobId\":\"j\",\"task\":\"\xff\"}"}, reason: "not_utf8", jobID: "*", untold: true},
			{
				name: "half a surrogate pair", fields: []string{"data", `{"jobId":"half","userId":"u2","task":"\ud83d!"}`},
				reason: "not_utf8", jobID: "half", update: map[string]string{"UserId": "u2"},
			},
		},
		"B41": {payload("inspector", `"H4sIAAAAAAAA/8tIzcnJBwCGphA2BQAAAA=="`)},
		"B42": {{fields: with("role", "manager"), notes: []string{"role_mismatch"}}},
		"B43": {
			{
				fields: with("model", "gpt", "endpoint", "http://169.254.169.254/", "url", "u", "apiKey", harness.Canary, "max_tokens", "9"),
				notes:  []string{"ignored_field"},
			},
			{
				name: "chat may name a model", role: "chat",
				fields: raw("jobId", own(), "message", task(), "model", "llama3:8b", "apiKey", harness.Canary), notes: []string{"ignored_field"},
			},
		},
		"B44": {{fields: with("connectionId", "12345")}},
		"B45": {{fields: with()}},
		"B46": {
			{fields: []string{"jobId", own(), "connectionId", "c1", "task", task()}},
			{name: "blank", fields: with("projectId", " "), notes: []string{"blank_field"}, update: map[string]string{"ProjectId": ""}},
		},
		"B47": {
			{
				name: "line feed", fields: []string{"jobId", own(), "task", task(), "userId", "a\nb", "connectionId", "c1"},
				reason: "control_chars", update: map[string]string{"UserId": ""},
			},
			{name: "nobody else to tell", fields: []string{"jobId", own(), "task", task(), "userId", "a\nb"}, reason: "control_chars", untold: true},
			{name: "512", fields: []string{"jobId", own(), "task", task(), "userId", repeat("u", 512)}},
			{
				name: "1000", fields: []string{"jobId", own(), "task", task(), "userId", repeat("u", 1000), "connectionId", "c1"},
				reason: "id_too_long", update: map[string]string{"UserId": ""},
			},
			{name: "other identifiers", fields: with("projectId", "\x00"), reason: "control_chars", update: map[string]string{"ProjectId": ""}},
		},
		"B48": {{fields: with("workflowId", "same")}, {fields: with("workflowId", "same")}},
		"B49": {
			{fields: raw("jobId", own(), "task", "{\"level\":\"ERROR\",\"msg\":\"forged\"}\n"+harness.Canary+"\nMessageId: 1\x1b[0m")},
			{name: "an update", fields: with("payload", `{"MessageId":"1","Type":"result","Payload":"forged"}`)},
		},
		"B50": {{
			fields: []string{"jobId", "%s%n{{.}}${jndi:ldap://x}", "userId", "%v", "projectId", "{{.}}", "task", "%d{{template}}" + harness.Canary},
		}},
		"B51": {
			{name: "0-1", role: "manager", id: "0-1", fields: raw("task", task()), jobID: "*", notes: []string{"job_id_from_entry"}},
			{name: "the last one there is", role: "manager", id: "18446744073709551615-1", fields: with()},
		},
		"B54": {
			{fields: with("original_id", "1-0", "failed_at", "2026-01-01T00:00:00Z", "reason", "x", "error", "e"), notes: []string{"dead_letter_field"}},
			{name: "a shortened copy", fields: with("original_id", "1-0", "truncated", "1"), reason: "dead_letter_truncated"},
		},
		"B56": {
			{name: "NUL", fields: raw("jobId", own(), "task", "!echo "+harness.Canary+" a\x00b"), output: harness.Canary + " a\ufffdb"},
			{
				name: "invalid UTF-8", fields: raw("jobId", own(), "task", "!malformed invalidutf8 "+task()),
				output: "\ufffd\ufffd(" + usualAnswer,
			},
			{name: "escape sequences", fields: raw("jobId", own(), "task", "!echo \x1b[31m"+harness.Canary+"\x1b[0m!"), output: "\x1b[31m" + harness.Canary + "\x1b[0m!"},
			{name: "3 MB", fields: raw("jobId", own(), "task", "!length 3000000 "+task()), failed: "llm_answer_too_large"},
			{
				name: "1 MB", fields: raw("jobId", own(), "task", "!length 1000000 "+task()),
				output: repeat(usualAnswer+" ", 1_000_000)[:1_000_000],
			},
		},
	}
}

// inspectorPrompt is the JSON object the inspector asks with: text as it came,
// escaped only where JSON demands it.
func inspectorPrompt(payload, task string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(struct {
		Code string `json:"code"`
		Task string `json:"task"`
	}{payload, task}) // two strings
	return strings.TrimSuffix(b.String(), "\n")
}

// twice repeats the pair at i.
func twice(pairs []string, i int) []string { return append(pairs, pairs[i], pairs[i+1]) }

// respelled repeats the jobId as JobId.
func respelled(pairs []string) []string { return append(pairs, "JobId", pairs[1]) }

// sent is an entry that was submitted.
type sent struct {
	badEntry
	entry string // its id
}

func (s sent) stream() string { return "jobs:" + s.role }

// field is the first value under a name, in any case.
func (s sent) field(name string) string {
	for i := 0; i+1 < len(s.fields); i += 2 {
		if strings.EqualFold(s.fields[i], name) {
			return s.fields[i+1]
		}
	}
	return ""
}

func (s sent) job() string {
	switch s.jobID {
	case "":
		return s.field("jobId")
	case "*":
		return s.entry
	case "-":
		return "entry:" + s.entry
	default:
		return s.jobID
	}
}

func (s sent) asked() string {
	switch {
	case s.prompt != "":
		return s.prompt
	case s.role == "chat":
		return s.field("message")
	case s.role == "inspector":
		return inspectorPrompt("", s.field("task"))
	default:
		return s.field("task")
	}
}

// send adds an entry whose fields may be anything, also twice the same name.
func (b *bundle) send(e badEntry) sent {
	b.T.Helper()
	s := sent{badEntry: e}
	if s.role == "" {
		s.role = "agent"
	}
	id := s.id
	if id == "" {
		id = "*"
	}
	args := []any{"XADD", s.stream(), id}
	for _, f := range s.fields {
		args = append(args, f)
	}
	var err error
	s.entry, err = b.Redis.Do(b.T.Context(), args...).Text()
	require.NoError(b.T, err, s.name)
	return s
}

// state is what the outside shows of a bundle at one moment.
type state struct {
	rows    map[string]map[string]any // by role/jobId
	updates map[string][]map[string]any
	dead    map[string][]string // the fields of dead letters in order, by role/original entry
	stats   harness.Stats
}

func (b *bundle) state() state {
	b.T.Helper()
	s := state{
		rows: map[string]map[string]any{}, updates: map[string][]map[string]any{}, dead: map[string][]string{}, stats: b.LLM.Stats(),
	}
	for _, row := range b.Rows("1 = 1") {
		s.rows[fmt.Sprint(row["role"], "/", row["job_id"])] = row
	}
	all, err := b.Redis.XRange(b.T.Context(), harness.Updates, "-", "+").Result()
	require.NoError(b.T, err)
	for _, m := range all {
		id := m.Values["MessageId"].(string)
		s.updates[id] = append(s.updates[id], m.Values)
	}
	for _, role := range allRoles() {
		reply, err := b.Redis.Do(b.T.Context(), "XRANGE", "jobs:"+role+":dead", "-", "+").Slice()
		require.NoError(b.T, err)
		for _, item := range reply {
			var pairs []string
			for _, text := range item.([]any)[1].([]any) {
				pairs = append(pairs, text.(string))
			}
			key := role + "/" + last(pairs, "original_id")
			require.NotContains(b.T, s.dead, key, "two dead letters for one entry")
			s.dead[key] = pairs
		}
	}
	return s
}

func allRoles() []string { return []string{"manager", "inspector", "agent", "chat"} }

// last is the last value under a name: what our own fields have.
func last(pairs []string, name string) string {
	value := ""
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i] == name {
			value = pairs[i+1]
		}
	}
	return value
}

// check compares an entry with what became of it.
func (s sent) check(t *testing.T, b *bundle, now state) {
	t.Helper()
	id := harness.MessageID("entry:" + s.stream() + "/" + s.entry)
	dead, hasDead := now.dead[s.role+"/"+s.entry]
	key, status, code := s.job(), "completed", ""
	switch {
	case s.reason != "":
		key, status, code = "entry:"+s.entry, "rejected", s.reason
		require.NotContains(t, now.rows, s.role+"/"+s.field("jobId"), "a rejected entry does not take its jobId")
		require.Zero(t, now.stats.Asked(s.asked()), "a rejected entry costs no call")
	default:
		require.Equal(t, 1, now.stats.Asked(s.asked()), "calls with exactly this prompt")
		if s.failed != "" {
			status, code = "failed", s.failed
		}
	}

	row := now.rows[s.role+"/"+key]
	require.NotNil(t, row, "row %q", key)
	require.Equal(t, status, row["status"])
	require.Equal(t, code, row["error_code"])
	require.Equal(t, s.entry, row["entry_id"])
	require.NotContains(t, row["error_message"], harness.Canary)
	answer := s.output
	if status == "completed" {
		if answer == "" {
			answer = usualAnswer
		}
		require.Equal(t, answer, row["output"])
		b.Run(workflowID(s.role, key), "Completed")
	} else {
		require.NotEmpty(t, row["error_message"])
	}

	if s.untold {
		require.Empty(t, now.updates[id])
	} else {
		require.Len(t, now.updates[id], 1)
		update := now.updates[id][0]
		for name, from := range map[string]string{
			"UserId": "userId", "ProjectId": "projectId", "ClientConnectionId": "connectionId", "WorkflowGroup": "workflowId", "NodeId": "nodeId",
		} {
			want, given := s.update[name]
			if !given {
				want = s.field(from)
			}
			require.Equal(t, want, update[name], name)
		}
		require.Equal(t, s.job(), update["JobId"])
		require.Equal(t, s.role, update["Role"])
		if status == "completed" {
			require.Equal(t, "result", update["Type"])
			require.Equal(t, answer, update["Payload"])
		} else {
			require.Equal(t, "error", update["Type"])
			require.Equal(t, map[string]string{"code": code, "message": row["error_message"].(string)}, harness.ErrorPayload(t, update))
		}
	}

	if status == "completed" {
		require.False(t, hasDead, "a completed job has no dead letter")
		return
	}
	require.True(t, hasDead, "dead letter")
	s.checkDeadLetter(t, dead, row)
}

// checkDeadLetter expects the entry as it was, and our fields behind it; what is
// too large is shortened and marked.
func (s sent) checkDeadLetter(t *testing.T, dead []string, row map[string]any) {
	t.Helper()
	require.NotEmpty(t, row["dead_id"])
	require.Equal(t, row["error_code"], last(dead, "reason"))
	require.Equal(t, row["error_message"], last(dead, "error"))
	require.Equal(t, s.entry, last(dead, "original_id"))
	require.NotEmpty(t, last(dead, "failed_at"))
	const ours = 2 * 4
	size := 0
	for _, text := range dead {
		size += len(text)
	}
	require.Less(t, size, 90<<10)
	if cut := dead[:len(dead)-ours]; len(cut) > 1 && cut[len(cut)-2] == "truncated" {
		require.Equal(t, "1", cut[len(cut)-1])
		require.LessOrEqual(t, len(cut), 2*64+2)
		require.NotEqual(t, s.fields, cut[:len(cut)-2])
		return
	}
	want := slices.Clone(s.fields)
	for i := 0; i < len(want); i += 2 {
		switch want[i] {
		case "original_id", "failed_at", "reason", "error", "truncated":
			want[i] = "orig_" + want[i] // of a dead letter that was added again
		}
	}
	require.Equal(t, want, dead[:len(dead)-ours])
}

// workflowID is the documented id of a job's run.
func workflowID(role, jobID string) string {
	if regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`).MatchString(jobID) {
		return "job:" + role + ":" + jobID
	}
	return "job:" + role + ":h:" + fmt.Sprintf("%x", sha256.Sum256([]byte(jobID)))[:32]
}

// counters are the values of an executor's metrics that begin with one of the
// names, by name and labels.
func (b *bundle) counters(e harness.Executor, names ...string) map[string]int {
	b.T.Helper()
	found := map[string]int{}
	lines := bufio.NewScanner(strings.NewReader(b.get(e.Health + "/metrics")))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "} ")
		for _, name := range names {
			if strings.HasPrefix(key, name+"{") {
				n, err := strconv.ParseFloat(value, 64)
				require.NoError(b.T, err)
				found[key+"}"] = int(n)
			}
		}
	}
	require.NoError(b.T, lines.Err())
	return found
}

func (b *bundle) get(url string) string {
	b.T.Helper()
	req, err := http.NewRequestWithContext(b.T.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(b.T, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(b.T, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(b.T, err)
	return string(text)
}

const (
	rejectedTotal   = "executor_entries_rejected_total"
	normalisedTotal = "executor_entries_normalised_total"
	duplicateTotal  = "executor_entries_duplicate_total"
	lostTotal       = "executor_entries_lost_total"
)

func labelled(name, label, value, role string) string {
	return fmt.Sprintf(`%s{%s="%s",role="%s"}`, name, label, value, role)
}

// TestBadInput plays the whole catalogue against one running system, and the part
// of it that a database could choke on against PostgreSQL.
func TestBadInput(t *testing.T) {
	t.Parallel()
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		playCatalogue(t, harness.Options{}, slices.Sorted(maps.Keys(catalogue()))...)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		playCatalogue(t, harness.Options{Postgres: true}, "B07", "B08", "B09", "B10", "B11", "B12", "B13", "B15", "B25", "B40", "B47", "B49", "B56")
	})
}

func playCatalogue(t *testing.T, opts harness.Options, rows ...string) {
	t.Helper()
	// Not every Redis refuses large values at the door.
	opts.RedisArgs = []string{"--proto-max-bulk-len", "512mb"}
	b := newBundleWith(t, opts)
	b.LLM.Script(map[string]any{"quote": true})
	b.loseEntry("chat")
	e := b.Launch(nil, "run")
	b.Ready(e)

	all := catalogue()
	byRow := map[string][]sent{}
	counted := map[string]int{lostTotal + `{role="chat"}`: 1}
	accepted := 0
	for _, id := range rows {
		for i, entry := range all[id] {
			if id == "B51" && i == 0 {
				continue // only an empty stream takes it
			}
			byRow[id] = append(byRow[id], b.send(entry))
		}
		if id == rows[0] && slices.Contains(rows, "B51") {
			byRow["B51"] = append(byRow["B51"], b.send(all["B51"][0]))
		}
	}
	// Jobs that are sent again below, once the first entry is settled.
	again := b.sendFirst()
	for _, role := range allRoles() {
		b.Settled(role)
	}
	now := b.state()

	for _, id := range rows {
		t.Run(id, func(t *testing.T) {
			for i, s := range byRow[id] {
				t.Run(fmt.Sprint(i, s.name), func(t *testing.T) { s.check(t, b, now) })
			}
		})
		for _, s := range byRow[id] {
			for _, note := range s.notes {
				counted[labelled(normalisedTotal, "note", note, s.role)]++
			}
			if s.reason != "" {
				counted[labelled(rejectedTotal, "reason", s.reason, s.role)]++
				continue
			}
			accepted++
		}
	}
	t.Run("B52", func(t *testing.T) {
		require.Equal(t, 1, b.counters(e, lostTotal)[lostTotal+`{role="chat"}`])
		require.NotContains(t, now.dead, "chat/1-1", "nothing is left of it to keep")
	})
	calls := accepted + b.sendAgain(t, again, counted)

	t.Run("numbers", func(t *testing.T) {
		require.Equal(t, calls, b.LLM.Stats().Calls, "no call but those for accepted entries")
		// One run of each, and one more of B18 and B54 each.
		b.Visible(int64(accepted+6), "")
		require.Equal(t, counted, b.counters(e, rejectedTotal, normalisedTotal, duplicateTotal, lostTotal))
		require.NotContains(t, b.get(e.Health+"/metrics"), harness.Canary)
	})
	t.Run("log", func(t *testing.T) {
		b.Stop(e.Process)
		for line := range strings.Lines(e.Log()) {
			require.True(t, json.Valid([]byte(line)), "one event is one line: %q", line)
			require.NotContains(t, line, "forged")
		}
	})
}

// loseEntry leaves a pending entry of a dead consumer, whose content is gone.
func (b *bundle) loseEntry(role string) {
	b.T.Helper()
	stream := "jobs:" + role
	b.readByGhost(stream, "message")
	b.do("XDEL", stream, "1-1")
}

// strandEntry makes an entry that was read, and is pending nowhere any more.
func (b *bundle) strandEntry(role string) {
	b.T.Helper()
	stream := "jobs:" + role
	b.readByGhost(stream, "task")
	b.do("XGROUP", "DELCONSUMER", stream, harness.Group, "ghost")
}

// readByGhost lets a consumer that is no bridge read the stream's first entry, whose
// text is in this field.
func (b *bundle) readByGhost(stream, field string) {
	b.T.Helper()
	b.do("XGROUP", "CREATE", stream, harness.Group, "0", "MKSTREAM")
	b.do("XADD", stream, "1-1", "jobId", "lost", "userId", "u1", field, harness.Text(field))
	b.do("XREADGROUP", "GROUP", harness.Group, "ghost", "STREAMS", stream, ">")
}

func (b *bundle) do(command ...any) {
	b.T.Helper()
	require.NoError(b.T, b.Redis.Do(b.T.Context(), command...).Err())
}

// resent are entries of jobs that are sent twice.
type resent struct{ same, other, failing, dead sent }

func (b *bundle) sendFirst() resent {
	b.T.Helper()
	with := func(id, directive string) badEntry {
		return badEntry{fields: []string{"jobId", id, "userId", "u1", "task", directive + harness.Text("task")}}
	}
	return resent{
		same: b.send(with("B16", "")), other: b.send(with("B17", "")),
		failing: b.send(with("B18", "!fail 400 x1 ")), dead: b.send(with("B54", "!fail 400 x1 ")),
	}
}

// sendAgain plays the rows that are about a second entry, adds what they count,
// and returns the number of calls of both entries.
func (b *bundle) sendAgain(t *testing.T, first resent, counted map[string]int) (calls int) {
	t.Helper()
	t.Run("B16", func(t *testing.T) {
		again := b.send(first.same.badEntry)
		update := b.Update("B16", 2)
		require.Equal(t, harness.MessageID("answer:jobs:agent/"+again.entry), update["MessageId"])
		require.Equal(t, usualAnswer, update["Payload"])
	})
	t.Run("B17", func(t *testing.T) {
		changed := first.other.badEntry
		changed.fields = append(slices.Clone(changed.fields[:4]), "task", harness.Text("task"), "payload", "{}")
		again := b.send(changed)
		require.Equal(t, usualAnswer, b.Update("B17", 2)["Payload"], "the first wins")
		require.Zero(t, b.LLM.Stats().Asked(again.asked()))
	})
	t.Run("B18", func(t *testing.T) {
		require.Equal(t, "error", b.Update("B18", 1)["Type"])
		b.Run("job:agent:B18", "Failed")
		b.send(first.failing.badEntry)
		require.Equal(t, "result", b.Update("B18", 2)["Type"], "a failed job sent again is a retry")
	})
	t.Run("B54 by hand", func(t *testing.T) {
		dead := b.state().dead["agent/"+first.dead.entry]
		require.NotNil(t, dead)
		b.Run("job:agent:B54", "Failed")
		b.send(badEntry{fields: dead})
		require.Equal(t, "result", b.Update("B54", 2)["Type"], "a dead letter added again is a new entry")
	})
	b.Settled("agent")
	for _, id := range []string{"B16", "B17", "B18", "B54"} {
		require.Equal(t, "completed", b.Row("agent", id)["status"])
	}
	stats := b.LLM.Stats()
	for _, s := range []sent{first.same, first.other, first.failing, first.dead} {
		calls += stats.Asked(s.asked())
	}
	require.Equal(t, 1+1+2+2, calls)
	counted[labelled(duplicateTotal, "kind", "answer", "agent")] = 2
	counted[labelled(normalisedTotal, "note", "dead_letter_field", "agent")]++
	return calls
}

// TestStreamKeyOfAnotherType is B53: one stream cannot be read until a person
// removes what is there, the others do not care, and readiness says which.
func TestStreamKeyOfAnotherType(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	require.NoError(t, b.Redis.Set(t.Context(), "jobs:chat", "not a stream", 0).Err())
	e := b.Launch(nil, "run")
	for _, role := range []string{"manager", "inspector", "agent"} {
		b.Submit(role, "jobId", role, "userId", "u1", "task", harness.Text("task"))
		require.Equal(t, "result", b.Update(role, 1)["Type"])
	}
	b.Wait("readiness names the stream", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.Health+"/readyz", http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		var report struct{ Checks map[string]string }
		if err := json.NewDecoder(resp.Body).Decode(&report); err != nil {
			return err
		}
		check := report.Checks["bridge"]
		if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(check, "jobs:chat: wrong_type") {
			return fmt.Errorf("%s: %v", resp.Status, report.Checks)
		}
		require.NotContains(t, check, "jobs:agent")
		return nil
	})
	require.Contains(t, e.Log(), "holds something else")

	require.NoError(t, b.Redis.Del(t.Context(), "jobs:chat").Err())
	b.Submit("chat", "jobId", "chat", "userId", "u1", "message", harness.Text("message"))
	require.Equal(t, "result", b.Update("chat", 1)["Type"], "without a restart")
	require.NoError(t, e.WaitReady(t.Context(), proc.HTTPReady(e.Health+"/readyz")))
}

// TestPoisonFlood is B55: entries that are no jobs do not hold up those behind
// them, in their own stream or another. How fast that goes is row B55 of the fault
// suite, which has the machine for itself and holds it to the bound of five
// seconds.
func TestPoisonFlood(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	const poison = 1000
	pipe := b.Redis.Pipeline()
	for i := range poison {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: "jobs:agent", Values: []string{
			"jobId", "p" + strconv.Itoa(i), "userId", "u1", "connectionId", "c1", "payload", harness.Text("payload"),
		}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	healthy := []string{"manager", "agent"}
	for _, role := range healthy {
		b.Submit(role, "jobId", "healthy-"+role, "userId", "u1", "task", harness.Text(role))
	}
	b.LLM.Await("the healthy jobs behind have started", func(s harness.Stats) bool { return s.Calls == len(healthy) })
	b.Settled("agent")

	require.Len(t, b.Rows("status = 'rejected' AND error_code = 'task_missing'"), poison)
	require.Len(t, b.DeadLetters("agent"), poison)
	updates, err := b.Redis.XLen(t.Context(), harness.Updates).Result()
	require.NoError(t, err)
	require.EqualValues(t, poison+len(healthy), updates)
}
