package job_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nodpt/executor/internal/job"
)

// requireDecoded decodes the entry and checks all that must hold of any entry.
func requireDecoded(t require.TestingT, role job.Role, e job.Entry) {
	got, err := job.Decode(role, e)
	again, errAgain := job.Decode(role, e)
	require.Equal(t, got, again, "the same entry gives the same job")
	require.Equal(t, err, errAgain)
	if err != nil {
		requireRejection(t, role, err)
		require.Equal(t, job.Decoded{}, got)
		return
	}
	j := got.Job
	require.Equal(t, role, j.Role)
	require.NotEmpty(t, j.ID)
	requireIdentifiers(t, j)
	require.LessOrEqual(t, job.EncodedSize(j), job.MaxEncoded)
	require.True(t, utf8.ValidString(j.Task) && utf8.ValidString(j.Payload))
	require.True(t, strings.TrimSpace(j.Task) != "" || role == job.Inspector && strings.TrimSpace(j.Payload) != "")
	require.Contains(t, []int{0, 1, 2, 3, 4, 5}, j.Priority)
	require.Contains(t, []string{"", job.SourceList}, j.Source)
	if role == job.Chat {
		require.Empty(t, j.Payload)
	} else {
		require.Empty(t, j.ChatID+j.NodeLevel+j.Model+j.Source)
	}
	for i, note := range got.Notes {
		require.Contains(t, job.Notes(), note)
		require.NotContains(t, got.Notes[:i], note)
	}
	requireWorkflowID(t, job.WorkflowID(role, j.ID))
	requireSameAgain(t, j)

	var travelled job.Job
	encoded, err := json.Marshal(j)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(encoded, &travelled))
	require.Equal(t, j, travelled, "nothing changes on the way through Temporal")
}

// requireSameAgain checks that an accepted job is accepted from its own fields,
// unchanged and with nothing left to normalise.
func requireSameAgain(t require.TestingT, j job.Job) {
	got, err := job.Decode(j.Role, job.Entry{ID: "1-1", Fields: j.Fields()})
	require.NoError(t, err)
	require.Equal(t, j, got.Job)
	got.Notes = slices.DeleteFunc(got.Notes, func(note string) bool { return note == job.NotePayloadNotJSON })
	require.Empty(t, got.Notes)
}

func requireRejection(t require.TestingT, role job.Role, err error) {
	var rejection *job.Rejection
	require.ErrorAs(t, err, &rejection)
	require.Contains(t, job.Reasons(), rejection.Reason)
	require.NotEqual(t, job.ReasonStartRefused, rejection.Reason, "only the bridge can say that")
	require.Contains(t, []string{
		"", "jobId", "workflowId", "userId", "projectId", "nodeId", "connectionId", "task", "payload", "priority",
		"message", "chatId", "nodeLevel", "model", "data", "job",
	}, rejection.Field)
	j := rejection.Job
	require.Equal(t, role, j.Role)
	require.Empty(t, j.Task+j.Payload+j.Model+j.NodeLevel)
	require.Zero(t, j.Priority)
	requireIdentifiers(t, j)
}

func requireIdentifiers(t require.TestingT, j job.Job) {
	require.LessOrEqual(t, len(j.ID), job.MaxJobID)
	require.Equal(t, strings.TrimSpace(j.ID), j.ID)
	require.False(t, strings.HasPrefix(j.ID, "entry:"))
	for _, id := range []string{j.ID, j.WorkflowID, j.UserID, j.ProjectID, j.NodeID, j.ConnectionID, j.ChatID, j.NodeLevel, j.Model} {
		require.LessOrEqual(t, len(id), job.MaxID)
		require.True(t, utf8.ValidString(id))
		require.True(t, id == "" || strings.TrimSpace(id) != "")
		require.Negative(t, strings.IndexFunc(id, func(r rune) bool {
			return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
		}), "%q", id)
	}
}

// names is mostly names that mean something, in any case.
func names() *rapid.Generator[string] {
	known := []string{
		"jobId", "workflowId", "userId", "projectId", "nodeId", "connectionId", "task", "payload", "priority",
		"message", "chatId", "nodeLevel", "model", "source", "role", "data", "job", "endpoint",
		"original_id", "failed_at", "reason", "error", "truncated",
	}
	return rapid.OneOf(
		rapid.SampledFrom(known),
		rapid.Map(rapid.SampledFrom(known), strings.ToUpper),
		rapid.String(),
	)
}

// values is text of all kinds, now and then hostile or JSON.
func values() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.SampledFrom([]string{
			"", " ", "j1", "2", "list", "agent", "Manager", "entry:1-0", "\x00", "\xff", "\u202e", "{}", "null",
			`{"jobId":"j1","task":"t","message":"m"}`, `{"message":"m","Message":"n"}`, `{"task":{"a":[1]}}`,
		}),
		rapid.String(),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 40), func(b []byte) string { return string(b) }),
		objects(),
	)
}

// objects is JSON objects whose members repeat and nest.
func objects() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		var b strings.Builder
		b.WriteByte('{')
		for i := range rapid.IntRange(0, 6).Draw(t, "members") {
			if i > 0 {
				b.WriteByte(',')
			}
			name, _ := json.Marshal(names().Draw(t, "member"))
			b.Write(name)
			b.WriteString(rapid.SampledFrom([]string{":", " : ", ":\n"}).Draw(t, "colon"))
			text, _ := json.Marshal(rapid.String().Draw(t, "text"))
			b.WriteString(rapid.SampledFrom([]string{
				string(text), "null", "true", "12", "1e400", `"\ud800"`, `"\ud83d\ude80"`, `{"a" : [1,{}]}`, "[]", `"j1"`,
			}).Draw(t, "value"))
		}
		b.WriteString(rapid.SampledFrom([]string{"}", "}", "}", " } ", "", "}}"}).Draw(t, "end"))
		return b.String()
	})
}

func TestDecodeHoldsForAnyEntry(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		role := rapid.SampledFrom(job.Roles()).Draw(rt, "role")
		e := job.Entry{ID: rapid.SampledFrom([]string{"", "1-0", "1700000000000-7"}).Draw(rt, "id")}
		for range rapid.IntRange(0, 12).Draw(rt, "fields") {
			e.Fields = append(e.Fields, job.Field{Name: names().Draw(rt, "name"), Value: values().Draw(rt, "value")})
		}
		requireDecoded(rt, role, e)
	})
}

// TestJSONFieldEqualsFlatFields checks that both ways of writing an entry mean
// the same.
func TestJSONFieldEqualsFlatFields(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		role := rapid.SampledFrom(job.Roles()).Draw(rt, "role")
		text := rapid.String().Filter(func(s string) bool { return strings.TrimSpace(s) != "" })
		id := rapid.StringMatching(`[a-zA-Z0-9 /:é日-]{0,40}x`)
		j := job.Job{
			Role: role, ID: "j" + id.Draw(rt, "jobId"), WorkflowID: id.Draw(rt, "workflowId"), UserID: id.Draw(rt, "userId"),
			ProjectID: id.Draw(rt, "projectId"), NodeID: id.Draw(rt, "nodeId"), ConnectionID: id.Draw(rt, "connectionId"),
			Task: text.Draw(rt, "task"), Priority: rapid.IntRange(0, 5).Draw(rt, "priority"),
		}
		if role == job.Chat {
			j.ChatID, j.NodeLevel, j.Model = id.Draw(rt, "chatId"), id.Draw(rt, "nodeLevel"), id.Draw(rt, "model")
		} else {
			j.Payload = text.Draw(rt, "payload")
		}
		requireSameAgain(rt, j)

		object := make(map[string]string)
		for _, f := range j.Fields() {
			object[f.Name] = f.Value
		}
		whole, err := json.Marshal(object)
		require.NoError(rt, err)
		got, err := job.Decode(role, entry("data", string(whole)))
		require.NoError(rt, err)
		require.Equal(rt, j, got.Job)
		require.Contains(rt, got.Notes, job.NoteJSONField)
	})
}

// TestSizeLimitIsExact checks the limit byte by byte for text that grows when it
// is encoded and text that does not.
func TestSizeLimitIsExact(t *testing.T) {
	t.Parallel()
	for _, unit := range []string{"a", "<", "\x00", "\"", "é", "\u2028", "a<"} {
		base := job.Job{Role: job.Agent, ID: "j1", Task: "do it", Payload: unit}
		grows := job.EncodedSize(job.Job{Role: job.Agent, ID: "j1", Task: "do it", Payload: unit + unit}) - job.EncodedSize(base)
		count := (job.MaxEncoded-job.EncodedSize(base))/grows + 1

		base.Payload = strings.Repeat(unit, count)
		size := job.EncodedSize(base)
		require.LessOrEqual(t, size, job.MaxEncoded)
		pad := strings.Repeat("a", job.MaxEncoded-size)
		got, err := job.Decode(job.Agent, agent("payload", base.Payload+pad))
		require.NoError(t, err)
		require.Equal(t, job.MaxEncoded, job.EncodedSize(got.Job))

		_, err = job.Decode(job.Agent, agent("payload", base.Payload+pad+"a"))
		require.EqualError(t, err, "entry rejected: too_large")
	}
}

func TestSafeTextHoldsForAnyText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		raw := string(rapid.SliceOf(rapid.Byte()).Draw(rt, "raw"))
		limit := rapid.IntRange(0, 50).Draw(rt, "limit")
		got := job.SafeText(raw, limit)
		require.LessOrEqual(rt, len(got), limit)
		require.True(rt, utf8.ValidString(got))
		require.NotContains(rt, got, "\x00")
		require.Equal(rt, got, job.SafeText(got, limit))
	})
}
