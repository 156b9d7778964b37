package stream

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nodpt/executor/internal/job"
)

func update() Update {
	return Update{
		Effect:  job.EntryEffect(agents, "1-1"),
		Stream:  Updates,
		Type:    TypeResult,
		Payload: "an answer with <b> & \"quotes\"",
		Job: job.Job{
			Role: job.Agent, ID: "j", WorkflowID: "w", UserID: "u", ProjectID: "p", NodeID: "n", ConnectionID: "c",
			Task: "never copied", Payload: "never copied",
		},
		At: time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.FixedZone("", 3600)),
	}
}

func TestFieldsAreExactlyTheContract(t *testing.T) {
	t.Parallel()
	u := update()
	want := fields(
		"MessageId", MessageID(u.Effect), "NodeId", "n", "ProjectId", "p", "UserId", "u", "ClientConnectionId", "c",
		"WorkflowGroup", "w", "Type", "result", "Payload", u.Payload, "Timestamp", "2026-03-04T04:06:07.1234567Z",
		"JobId", "j", "Role", "agent")
	require.Equal(t, want, Fields(u))

	u.Job.Role, u.Job.ChatID = job.Chat, "chat-1"
	want[len(want)-1].Value = "chat"
	require.Equal(t, append(want, fields("chatId", "chat-1", "connectionId", "c")...), Fields(u))

	require.Len(t, Fields(Update{}), 11, "absent values are empty, not missing")
}

func TestTimestampHasSevenDigits(t *testing.T) {
	t.Parallel()
	require.Equal(t, "2026-01-02T03:04:05.0000000Z", Timestamp(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)))
	require.Equal(t, "2026-01-02T03:04:05.9999999Z", Timestamp(time.Date(2026, 1, 2, 3, 4, 5, 999999999, time.UTC)))
}

func TestMessageIDIsStable(t *testing.T) {
	t.Parallel()
	// A change of this value would publish again what was published before.
	require.Equal(t, "4f935d87-a414-5321-9e5d-52fef374a4f2", MessageID("entry:jobs:agent/1-1"))
	id, err := uuid.Parse(MessageID("run:x"))
	require.NoError(t, err)
	require.EqualValues(t, 5, id.Version())
	require.NotEqual(t, MessageID("run:x"), MessageID("run:y"))
}

func TestErrorPayload(t *testing.T) {
	t.Parallel()
	got := ErrorPayload("c", "a <b> & \"d\" \n ü")
	require.JSONEq(t, `{"code":"c","message":"a <b> & \"d\" \n ü"}`, got)
	require.Contains(t, got, "a <b> & ", "readers show the text as it is")
	require.True(t, json.Valid([]byte(ErrorPayload("c", "\x00\xff"))))
}

func TestPublishOnce(t *testing.T) {
	t.Parallel()
	s, c := bundle(t)
	other := open(t, s.Addr(), "other")
	var now atomic.Int64
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			done, err := []*Client{c, other}[i%2].Publish(t.Context(), update())
			if err == nil && done {
				now.Add(1)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 1, now.Load())
	entries, err := c.TailUpdates(t.Context(), Updates, "0", 0)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, Fields(update()), entries[0].Fields)

	u := update()
	u.Effect, u.Stream = job.RunEffect("r"), "" // the default is Updates
	done, err := c.Publish(t.Context(), u)
	require.NoError(t, err)
	require.True(t, done, "another effect is another update")

	marker := "{" + Updates + "}:pub:" + MessageID(u.Effect)
	ttl := do(t, c, "TTL", marker).(int64)
	require.InDelta(t, PublishTTL.Seconds(), float64(ttl), 60)
}

// Fault F14: the reply is lost after the update was added.
func TestPublishAfterALostReplyDoesNotDouble(t *testing.T) {
	t.Parallel()
	s, direct := bundle(t)
	p := startProxy(t, s.Addr())
	c := open(t, p.addr(), "publisher")
	first := update()
	first.Effect = "run:loads the script"
	_, err := direct.Publish(t.Context(), first)
	require.NoError(t, err)

	p.loseReplyTo("EVALSHA")
	_, err = c.Publish(t.Context(), update())
	require.ErrorIs(t, err, ErrUnavailable)
	require.Equal(t, 1, p.lost())
	require.EqualValues(t, 2, length(t, direct, Updates), "it was added")

	done, err := c.Publish(t.Context(), update())
	require.NoError(t, err)
	require.False(t, done)
	require.EqualValues(t, 2, length(t, direct, Updates))
}

func TestAddIsNotRepeated(t *testing.T) {
	t.Parallel()
	s, direct := bundle(t)
	p := startProxy(t, s.Addr())
	c := open(t, p.addr(), "producer")
	p.loseReplyTo("XADD")
	_, err := c.Add(t.Context(), agents, fields("k", "v"))
	require.ErrorIs(t, err, ErrUnavailable)
	require.EqualValues(t, 1, length(t, direct, agents))
}

// What fails half way is not taken for done.
func TestPublishCanBeRepeatedAfterAFailure(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		harm, heal []any
		kind       error
	}{
		"the stream is a string": {[]any{"SET", Updates, "x"}, []any{"DEL", Updates}, ErrWrongType},
		"no memory": {
			[]any{"CONFIG", "SET", "maxmemory", "1"}, []any{"CONFIG", "SET", "maxmemory", "0"}, ErrUnavailable,
		},
		"channel not allowed": {
			[]any{"ACL", "SETUSER", "default", "resetchannels"}, []any{"ACL", "SETUSER", "default", "allchannels"}, ErrDenied,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, c := bundle(t)
			u := update()
			u.Channel, u.ChannelText = ChatChannel, "text"
			do(t, c, tt.harm...)
			for range 2 {
				_, err := c.Publish(t.Context(), u)
				require.ErrorIs(t, err, tt.kind)
			}
			do(t, c, tt.heal...)
			require.Zero(t, length(t, c, Updates))
			done, err := c.Publish(t.Context(), u)
			require.NoError(t, err)
			require.True(t, done)
			require.EqualValues(t, 1, length(t, c, Updates))
		})
	}
}

func TestPublishToTheOldChannel(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	sub := c.commands.Subscribe(t.Context(), ChatChannel)
	t.Cleanup(func() { require.NoError(t, sub.Close()) })
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)

	u := update()
	u.Job.Role, u.Job.Source = job.Chat, job.SourceList
	u.Channel, u.ChannelText = ChatChannel, "<b>hello</b> & more"
	for range 2 {
		_, err := c.Publish(t.Context(), u)
		require.NoError(t, err)
	}
	m, err := sub.ReceiveMessage(t.Context())
	require.NoError(t, err)
	require.JSONEq(t, `{"ConnectionId":"c","Content":"<b>hello</b> & more"}`, m.Payload)
	require.Contains(t, m.Payload, "<b>hello</b> & more")
	_, err = sub.ReceiveTimeout(t.Context(), 50*time.Millisecond)
	require.Error(t, err, "the second call publishes nothing")
}

func letter() DeadLetter {
	return DeadLetter{
		Effect: job.EntryEffect(agents, "1-1"), Stream: agents, EntryID: "1-1", Reason: "llm_bad_request",
		Error: "the model refused", Fields: fields("jobId", "j", "task", "t", "task", "again"),
		FailedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func TestDeadLetterOnce(t *testing.T) {
	t.Parallel()
	s, direct := bundle(t)
	p := startProxy(t, s.Addr())
	c := open(t, p.addr(), "one")
	ctx := t.Context()
	first := letter()
	first.Effect = "run:loads the script"
	_, err := c.DeadLetter(ctx, first)
	require.NoError(t, err)

	p.loseReplyTo("EVALSHA")
	_, err = c.DeadLetter(ctx, letter())
	require.ErrorIs(t, err, ErrUnavailable)
	var got []string
	for range 3 {
		id, err := c.DeadLetter(ctx, letter())
		require.NoError(t, err)
		got = append(got, id)
	}
	require.Equal(t, []string{got[0], got[0], got[0]}, got)
	require.EqualValues(t, 2, length(t, direct, DeadStream(agents)))

	e, found, err := c.Entry(ctx, DeadStream(agents), got[0])
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, append(letter().Fields, fields("original_id", "1-1", "failed_at", "2026-01-02T03:04:05.0000000Z",
		"reason", "llm_bad_request", "error", "the model refused")...), e.Fields)
}

func TestDeadLetterKeepsItsOwnNames(t *testing.T) {
	t.Parallel()
	d := letter()
	d.Fields = fields("Reason", "old", "error", "old", "original_id", "0-1", "truncated", "1", "task", "t")
	got := d.fields()
	require.Equal(t, fields("orig_Reason", "old", "orig_error", "old", "orig_original_id", "0-1",
		"orig_truncated", "1", "task", "t"), got[:5])
	require.Equal(t, fields("original_id", "1-1"), got[5:6])
}

func TestDeadLetterIsCapped(t *testing.T) {
	t.Parallel()
	d := letter()
	d.Error = strings.Repeat("e", 3000)
	d.Fields = fields(
		"task", strings.Repeat("ü", 1<<20), "payload", strings.Repeat("x", 1<<20), strings.Repeat("n", 1<<20), "v",
		"jobId", "behind the large ones")
	for range 10_000 {
		d.Fields = append(d.Fields, job.Field{Name: "k", Value: "v"})
	}
	got := d.fields()
	require.Len(t, got, maxDeadFields+5)
	require.Equal(t, fields("jobId", "behind the large ones"), got[3:4])
	require.Equal(t, fields("truncated", "1"), got[maxDeadFields:maxDeadFields+1])
	require.Len(t, got[2].Name, maxDeadName)
	require.Len(t, got[len(got)-1].Value, maxDeadError)
	require.True(t, utf8.ValidString(got[0].Value))
	values := 0
	for _, f := range got[:maxDeadFields] {
		values += len(f.Value)
	}
	require.LessOrEqual(t, values, maxDeadValues)
	require.Greater(t, values, maxDeadValues-1000, "the room is used")

	_, c := bundle(t)
	_, err := c.DeadLetter(t.Context(), d)
	require.NoError(t, err)
}

func TestFairLimit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		lengths := rapid.SliceOf(rapid.IntRange(0, 1000)).Draw(t, "lengths")
		budget := rapid.IntRange(0, 5000).Draw(t, "budget")
		sum := func(limit int) (n int) {
			for _, l := range lengths {
				n += min(l, limit)
			}
			return n
		}
		limit := fairLimit(append([]int(nil), lengths...), budget)
		require.LessOrEqual(t, sum(limit), budget)
		if sum(1000) > budget {
			require.Greater(t, sum(limit+1), budget, "a larger limit does not fit")
		} else {
			require.Equal(t, sum(1000), sum(limit), "nothing is cut without need")
		}
	})
}

func TestCutKeepsCharactersWhole(t *testing.T) {
	t.Parallel()
	for n := range 12 {
		got := cut("aüb😀c", n)
		require.True(t, utf8.ValidString(got), "%d: %q", n, got)
		require.LessOrEqual(t, len(got), n)
	}
	require.Len(t, cut(strings.Repeat("\x80", 100), 50), 46, "bytes that are no text are cut somewhere near")
}

func TestMoveChat(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	ctx := t.Context()
	stream := job.Chat.Stream()
	n, err := c.MoveChat(ctx, "chat.jobs", 10)
	require.NoError(t, err)
	require.Zero(t, n)

	items := []string{`{"UserId":"u","ConnectionId":"c","Message":"hi"}`, "", "not JSON", "\x00\xff", `{"Message":"five"}`}
	for _, item := range items {
		do(t, c, "RPUSH", "chat.jobs", item)
	}
	for _, want := range []int{3, 2, 0} {
		n, err := c.MoveChat(ctx, "chat.jobs", 3)
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	entries, err := c.TailUpdates(ctx, stream, "0", 0)
	require.NoError(t, err)
	require.Len(t, entries, len(items))
	for i, e := range entries {
		require.Equal(t, fields("source", "list", "data", items[i]), e.Fields)
	}
	decoded, err := job.Decode(job.Chat, entries[0])
	require.NoError(t, err)
	require.Equal(t, "hi", decoded.Job.Task)
	require.Equal(t, job.SourceList, decoded.Job.Source)
}

// LPOP works without free memory, XADD does not.
func TestMoveChatLosesNothing(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		harm, heal []any
		kind       error
	}{
		"no memory": {
			[]any{"CONFIG", "SET", "maxmemory", "1"}, []any{"CONFIG", "SET", "maxmemory", "0"}, ErrUnavailable,
		},
		"the stream is a string": {[]any{"SET", "jobs:chat", "x"}, []any{"DEL", "jobs:chat"}, ErrWrongType},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, c := bundle(t)
			do(t, c, "RPUSH", "chat.jobs", "a", "b")
			do(t, c, tt.harm...)
			_, err := c.MoveChat(t.Context(), "chat.jobs", 10)
			require.ErrorIs(t, err, tt.kind)
			require.EqualValues(t, 2, do(t, c, "LLEN", "chat.jobs"))
			do(t, c, tt.heal...)
			n, err := c.MoveChat(t.Context(), "chat.jobs", 10)
			require.NoError(t, err)
			require.Equal(t, 2, n)
		})
	}
	_, c := bundle(t)
	do(t, c, "SET", "chat.jobs", "a string")
	_, err := c.MoveChat(t.Context(), "chat.jobs", 10)
	require.ErrorIs(t, err, ErrWrongType)
}

func TestScriptsSurviveAForgetfulServer(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	for i := range 2 {
		do(t, c, "SCRIPT", "FLUSH")
		u := update()
		u.Effect = fmt.Sprint(i)
		done, err := c.Publish(t.Context(), u)
		require.NoError(t, err)
		require.True(t, done)
	}
}
