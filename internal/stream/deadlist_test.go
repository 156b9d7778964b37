package stream

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/redistest"
)

// A dead letter is read as what it was made of, whatever the entry's own fields
// were called.
func TestReadDead(t *testing.T) {
	t.Parallel()
	failedAt := time.Date(2026, 3, 4, 5, 6, 7, 890_000_000, time.UTC)
	tests := map[string]struct {
		letter DeadLetter
		want   Dead
	}{
		"plain": {
			DeadLetter{EntryID: "1-1", Reason: "llm_timeout", Error: "too slow", Fields: fields("jobId", "j1", "task", "t"), FailedAt: failedAt},
			Dead{EntryID: "1-1", Reason: "llm_timeout", Error: "too slow", Fields: fields("jobId", "j1", "task", "t"), FailedAt: failedAt},
		},
		"repeated fields, which only a list keeps": {
			DeadLetter{EntryID: "1-1", Fields: fields("task", "a", "task", "b"), FailedAt: failedAt},
			Dead{EntryID: "1-1", Fields: fields("task", "a", "task", "b"), FailedAt: failedAt},
		},
		"fields that have the dead letter's names": {
			DeadLetter{
				EntryID: "2-2", Reason: "r", FailedAt: failedAt,
				Fields: fields("jobId", "j1", "reason", "mine", "Error", "mine", "original_id", "1-1", "failed_at", "x", "orig_x", "y"),
			},
			Dead{
				EntryID: "2-2", Reason: "r", FailedAt: failedAt,
				Fields: fields("jobId", "j1", "reason", "mine", "Error", "mine", "original_id", "1-1", "failed_at", "x", "orig_x", "y"),
			},
		},
		"too large": {
			DeadLetter{EntryID: "1-1", Fields: fields("jobId", "j1", "task", strings.Repeat("x", maxDeadValues)), FailedAt: failedAt},
			Dead{
				EntryID: "1-1", Truncated: true, FailedAt: failedAt,
				Fields: fields("jobId", "j1", "task", strings.Repeat("x", maxDeadValues-2)),
			},
		},
		"no fields": {
			DeadLetter{EntryID: "1-1", FailedAt: failedAt},
			Dead{EntryID: "1-1", FailedAt: failedAt},
		},
	}
	_, c := bundle(t)
	for name, tt := range tests {
		tt.letter.Stream, tt.letter.Effect = agents, "entry:"+name
		id, err := c.DeadLetter(t.Context(), tt.letter)
		require.NoError(t, err, name)
		got, found, err := c.ReadDead(t.Context(), agents, id)
		require.NoError(t, err, name)
		require.True(t, found, name)
		tt.want.ID, tt.want.Stream = id, agents
		require.Equal(t, tt.want, got, name)
	}
	_, found, err := c.ReadDead(t.Context(), agents, "1-1")
	require.NoError(t, err)
	require.False(t, found)
}

// What a person put into the stream by hand is read as far as it goes.
func TestReadDeadWrittenByHand(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	id := add(t, c, agents+":dead", "jobId", "j1", "FAILED_AT", "yesterday", "Reason", "r", "truncated", "")
	got, found, err := c.ReadDead(t.Context(), agents, id)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, Dead{Stream: agents, ID: id, Reason: "r", Fields: fields("jobId", "j1")}, got)
}

func TestDeadLettersByPage(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	none, err := c.DeadLetters(t.Context(), agents, DeadRange{})
	require.NoError(t, err)
	require.Empty(t, none)

	for i := 1; i <= 5; i++ {
		do(t, c, "XADD", agents+":dead", strconv.Itoa(i*1000)+"-0", "original_id", strconv.Itoa(i)+"-0")
	}
	page := func(r DeadRange) []string {
		letters, err := c.DeadLetters(t.Context(), agents, r)
		require.NoError(t, err)
		var ids []string
		for _, d := range letters {
			require.Equal(t, agents, d.Stream)
			ids = append(ids, d.ID)
		}
		return ids
	}
	require.Equal(t, []string{"5000-0", "4000-0", "3000-0", "2000-0", "1000-0"}, page(DeadRange{}))
	require.Equal(t, []string{"5000-0", "4000-0"}, page(DeadRange{Limit: 2}))
	require.Equal(t, []string{"3000-0", "2000-0"}, page(DeadRange{Limit: 2, Before: "4000-0"}))
	require.Equal(t, []string{"5000-0", "4000-0"}, page(DeadRange{Since: time.UnixMilli(4000)}), "inclusive")
	require.Empty(t, page(DeadRange{Since: time.UnixMilli(4000), Before: "4000-0"}))

	n, err := c.DropDead(t.Context(), agents, "1000-0", "3000-0", "9000-0")
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	require.Equal(t, []string{"5000-0", "4000-0", "2000-0"}, page(DeadRange{}))
	n, err = c.DropDead(t.Context(), agents)
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestDropDeadInBatches(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	var ids []string
	for range 2*maxDeadPage + 1 {
		ids = append(ids, add(t, c, agents+":dead", "k", "v"))
	}
	letters, err := c.DeadLetters(t.Context(), agents, DeadRange{Limit: 1000})
	require.NoError(t, err)
	require.Len(t, letters, maxDeadPage)
	n, err := c.DropDead(t.Context(), agents, ids...)
	require.NoError(t, err)
	require.EqualValues(t, len(ids), n)
	require.Zero(t, length(t, c, agents+":dead"))
}

func TestCheckID(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"0-1", "1700000000000-0", "18446744073709551615-18446744073709551615"} {
		require.NoError(t, CheckID(id), id)
	}
	for _, id := range []string{"", "1", "-", "1-", "-1", "1-*", "a-1", "1-1-1", "1--1", "+1-1", "(1-1", " 1-1", "18446744073709551616-0"} {
		require.ErrorIs(t, CheckID(id), ErrBadID, id)
	}
}

func TestConsumers(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := open(t, s.Addr(), "watcher")
	list, err := c.Consumers(t.Context(), agents)
	require.NoError(t, err)
	require.Empty(t, list, "no stream")
	require.NoError(t, c.EnsureGroup(t.Context(), agents))
	list, err = c.Consumers(t.Context(), agents)
	require.NoError(t, err)
	require.Empty(t, list, "nobody has read")

	add(t, c, agents, "k", "v")
	done := add(t, c, agents, "k", "v")
	two, one := open(t, s.Addr(), "two"), open(t, s.Addr(), "one")
	require.Len(t, readNew(t, two, agents, 1), 1)
	require.Len(t, readNew(t, one, agents, 1), 1)
	_, err = one.Ack(t.Context(), agents, "", done)
	require.NoError(t, err)
	require.NoError(t, one.Beat(t.Context()))
	list, err = c.Consumers(t.Context(), agents)
	require.NoError(t, err)
	for i := range list {
		require.GreaterOrEqual(t, list[i].Idle, time.Duration(0))
		list[i].Idle = 0
	}
	require.Equal(t, []Consumer{{Name: "one", Alive: true}, {Name: "two", Pending: 1}}, list)
}
