package stream

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

func TestReadKeepsRepeatedFieldsAndOrder(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	want := fields("task", "a", "Task", "b", "task", "c", "", "empty name", "bytes", "\x00\xff")
	id, err := c.Add(t.Context(), agents, want)
	require.NoError(t, err)

	require.Equal(t, []job.Entry{{Stream: agents, ID: id, Fields: want}}, readNew(t, c, agents, 10))

	own, err := c.ReadOwn(t.Context(), agents, "0", 10)
	require.NoError(t, err)
	require.Equal(t, Batch{Entries: []job.Entry{{Stream: agents, ID: id, Fields: want}}}, own)

	e, found, err := c.Entry(t.Context(), agents, id)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, want, e.Fields)
}

func TestReadNewWaitsAndCounts(t *testing.T) {
	t.Parallel()
	s, c := bundle(t)
	require.Empty(t, readNew(t, c, agents, 1), "without a block it returns at once")

	type answer struct {
		entries []job.Entry
		err     error
	}
	answers := make(chan answer, 1)
	go func() {
		entries, err := c.ReadNew(t.Context(), agents, 1, maxBlock)
		answers <- answer{entries, err}
	}()
	other := open(t, s.Addr(), "other")
	blocked(t, other)
	first := add(t, other, agents, "n", "1")
	second := add(t, other, agents, "n", "2")

	a := receive(t, answers)
	require.NoError(t, a.err)
	require.Equal(t, []string{first}, ids(a.entries))
	require.Equal(t, []string{second}, ids(readNew(t, c, agents, 1)))
	require.Empty(t, readNew(t, c, agents, 1))
}

func TestReadNewGivesUpAfterItsBlock(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	entries, err := c.ReadNew(t.Context(), agents, 1, 20*time.Millisecond)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestReadOwnGoesOnBehindAnID(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	var want []string
	for range 5 {
		want = append(want, add(t, c, agents, "k", "v"))
	}
	readNew(t, c, agents, 4) // the fifth stays unread

	var got []string
	for after := "0"; ; {
		b, err := c.ReadOwn(t.Context(), agents, after, 3)
		require.NoError(t, err)
		if len(b.Entries) == 0 {
			break
		}
		got = append(got, ids(b.Entries)...)
		after = got[len(got)-1]
	}
	require.Equal(t, want[:4], got)
	list, err := c.PendingList(t.Context(), agents, "", 1)
	require.NoError(t, err)
	require.EqualValues(t, 2, list[0].Deliveries, "reading counts as a delivery; see ReadOwn")
}

// The library would repeat the cut read, return the next entry and
// hide the first.
func TestLostReplyOfAReadHidesNoEntry(t *testing.T) {
	t.Parallel()
	s, direct := bundle(t)
	p := startProxy(t, s.Addr())
	c := open(t, p.addr(), "reader")
	first := add(t, direct, agents, "jobId", "first")
	second := add(t, direct, agents, "jobId", "second")

	p.loseReplyTo("XREADGROUP")
	_, err := c.ReadNew(t.Context(), agents, 1, 0)
	require.ErrorIs(t, err, ErrUnavailable)
	require.Equal(t, 1, p.lost())

	own, err := c.ReadOwn(t.Context(), agents, "0", 10)
	require.NoError(t, err)
	require.Equal(t, []string{first}, ids(own.Entries))
	require.Equal(t, []string{second}, ids(readNew(t, c, agents, 10)))
}

func TestLostReplyOfAClaimHidesNoEntry(t *testing.T) {
	t.Parallel()
	s, dead := bundle(t)
	p := startProxy(t, s.Addr())
	c := open(t, p.addr(), "survivor")
	id := add(t, dead, agents, "jobId", "j")
	readNew(t, dead, agents, 1)

	p.loseReplyTo("XAUTOCLAIM")
	_, _, err := c.AutoClaim(t.Context(), agents, 0, "0-0", 10)
	require.ErrorIs(t, err, ErrUnavailable)

	own, err := c.ReadOwn(t.Context(), agents, "0", 10)
	require.NoError(t, err)
	require.Equal(t, []string{id}, ids(own.Entries))
}

func TestReadingWithoutGroup(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	ctx := t.Context()

	_, err := c.ReadNew(ctx, "jobs:chat", 1, 0)
	require.ErrorIs(t, err, ErrNoGroup, "no stream")
	add(t, c, "jobs:manager", "k", "v")
	_, err = c.ReadNew(ctx, "jobs:manager", 1, 0)
	require.ErrorIs(t, err, ErrNoGroup, "no group")
	_, err = c.ReadOwn(ctx, "jobs:manager", "0", 1)
	require.ErrorIs(t, err, ErrNoGroup)
	_, _, err = c.AutoClaim(ctx, "jobs:manager", 0, "0-0", 1)
	require.ErrorIs(t, err, ErrNoGroup)
	_, err = c.ClaimDead(ctx, "jobs:chat", 1)
	require.ErrorIs(t, err, ErrNoGroup)
	_, err = c.ClaimDead(ctx, "jobs:manager", 1)
	require.ErrorIs(t, err, ErrNoGroup)
	_, err = c.Pending(ctx, "jobs:manager")
	require.ErrorIs(t, err, ErrNoGroup)
	_, err = c.PendingList(ctx, "jobs:manager", "", 1)
	require.ErrorIs(t, err, ErrNoGroup)
	require.ErrorIs(t, c.Refresh(ctx, "jobs:manager", "one", "1-1"), ErrNoGroup)
	_, err = c.DropIdleConsumers(ctx, "jobs:chat", 0)
	require.ErrorIs(t, err, ErrNoGroup)
	_, err = c.DropIdleConsumers(ctx, "jobs:manager", 0)
	require.ErrorIs(t, err, ErrNoGroup)

	n, err := c.Ack(ctx, "jobs:manager", "", "1-1")
	require.NoError(t, err, "Redis does not tell a missing group from an acknowledged entry")
	require.Zero(t, n)
}

// Fault F34: the group is re-created from the beginning of the stream.
func TestStreamVanishesWhileReadIsBlocked(t *testing.T) {
	t.Parallel()
	for name, vanish := range map[string][]any{
		"FLUSHALL":       {"FLUSHALL"},
		"DEL":            {"DEL", agents},
		"XGROUP DESTROY": {"XGROUP", "DESTROY", agents, DefaultGroup},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, c := bundle(t)
			failed := make(chan error, 1)
			go func() {
				_, err := c.ReadNew(t.Context(), agents, 1, maxBlock)
				failed <- err
			}()
			other := open(t, s.Addr(), "other")
			blocked(t, other)
			do(t, other, vanish...)
			require.ErrorIs(t, receive(t, failed), ErrNoGroup)

			id := add(t, other, agents, "jobId", "later")
			require.NoError(t, c.EnsureGroup(t.Context(), agents))
			require.Equal(t, []string{id}, ids(readNew(t, c, agents, 10)))
		})
	}
}

func TestWrongType(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	ctx := t.Context()
	do(t, c, "SET", "jobs:chat", "a string")
	do(t, c, "SET", DeadStream(agents), "a string")

	calls := map[string]func() error{
		"group":  func() error { return c.EnsureGroup(ctx, "jobs:chat") },
		"read":   func() error { _, err := c.ReadNew(ctx, "jobs:chat", 1, 0); return err },
		"own":    func() error { _, err := c.ReadOwn(ctx, "jobs:chat", "0", 1); return err },
		"claim":  func() error { _, _, err := c.AutoClaim(ctx, "jobs:chat", 0, "0-0", 1); return err },
		"dead":   func() error { _, err := c.ClaimDead(ctx, "jobs:chat", 1); return err },
		"ack":    func() error { _, err := c.Ack(ctx, "jobs:chat", "", "1-1"); return err },
		"entry":  func() error { _, _, err := c.Entry(ctx, "jobs:chat", "1-1"); return err },
		"add":    func() error { _, err := c.Add(ctx, "jobs:chat", fields("k", "v")); return err },
		"stats":  func() error { _, err := c.Stats(ctx, "jobs:chat"); return err },
		"stats2": func() error { _, err := c.Stats(ctx, agents); return err },
		"last":   func() error { _, err := c.LastID(ctx, "jobs:chat"); return err },
		"tail":   func() error { _, err := c.TailUpdates(ctx, "jobs:chat", "0", 0); return err },
		"drop":   func() error { _, err := c.DropIdleConsumers(ctx, "jobs:chat", 0); return err },
		"update": func() error { _, err := c.Publish(ctx, Update{Effect: "e", Stream: "jobs:chat"}); return err },
		"letter": func() error { _, err := c.DeadLetter(ctx, DeadLetter{Effect: "e", Stream: agents}); return err },
	}
	for name, call := range calls {
		require.ErrorIs(t, call(), ErrWrongType, name)
	}
}

// Fault F36: what was deleted while it was pending is reported, not hidden.
func TestDeletedPendingEntriesAreReported(t *testing.T) {
	t.Parallel()
	s, c := bundle(t)
	ctx := t.Context()
	gone := add(t, c, agents, "n", "1")
	kept := add(t, c, agents, "n", "2")
	readNew(t, c, agents, 10)
	do(t, c, "XDEL", agents, gone)

	own, err := c.ReadOwn(ctx, agents, "0", 10)
	require.NoError(t, err)
	require.Equal(t, []string{kept}, ids(own.Entries))
	require.Equal(t, []string{gone}, own.Deleted)

	_, found, err := c.Entry(ctx, agents, gone)
	require.NoError(t, err)
	require.False(t, found)

	other := open(t, s.Addr(), "other")
	claimed, next, err := other.AutoClaim(ctx, agents, 0, "0-0", 10)
	require.NoError(t, err)
	require.Equal(t, "0-0", next)
	require.Equal(t, []string{kept}, ids(claimed.Entries))
	require.Equal(t, []string{gone}, claimed.Deleted)
}

func TestAutoClaimTakesOnlyWhatIsIdleAndReportsWhereToGoOn(t *testing.T) {
	t.Parallel()
	s, c := bundle(t)
	ctx := t.Context()
	var all []string
	for range 5 {
		all = append(all, add(t, c, agents, "k", "v"))
	}
	readNew(t, c, agents, 10)
	other := open(t, s.Addr(), "other")

	b, next, err := other.AutoClaim(ctx, agents, time.Hour, "0-0", 10)
	require.NoError(t, err)
	require.Empty(t, b.Entries, "nothing has been idle for an hour")
	require.Equal(t, "0-0", next)

	b, next, err = other.AutoClaim(ctx, agents, 0, "0-0", 3)
	require.NoError(t, err)
	require.Equal(t, all[:3], ids(b.Entries))
	b, next, err = other.AutoClaim(ctx, agents, 0, next, 3)
	require.NoError(t, err)
	require.Equal(t, all[3:], ids(b.Entries))
	require.Equal(t, "0-0", next)
}

func TestTailReadsOutsideOfTheGroup(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	ctx := t.Context()
	last, err := c.LastID(ctx, Updates)
	require.NoError(t, err)
	require.Equal(t, "0-0", last)

	first := add(t, c, Updates, "k", "1")
	entries, err := c.TailUpdates(ctx, Updates, last, time.Second)
	require.NoError(t, err)
	require.Equal(t, []string{first}, ids(entries))

	last, err = c.LastID(ctx, Updates)
	require.NoError(t, err)
	require.Equal(t, first, last)
	entries, err = c.TailUpdates(ctx, Updates, last, time.Millisecond)
	require.NoError(t, err)
	require.Empty(t, entries)

	do(t, c, "XDEL", Updates, first)
	last, err = c.LastID(ctx, Updates)
	require.NoError(t, err)
	require.Equal(t, first, last, "of all entries there ever were")
}

func TestContextEndsARead(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	ctx, cancel := contextWithCancel(t)
	cancel()
	_, err := c.ReadNew(ctx, agents, 1, time.Second)
	require.ErrorIs(t, err, ctx.Err())
}

// blocked waits until some client is blocked on the server.
func blocked(t *testing.T, c *Client) {
	t.Helper()
	require.Eventually(t, func() bool {
		info, err := c.commands.Info(t.Context(), "clients").Result()
		return err == nil && infoHas(info, "blocked_clients:1")
	}, waitFor, tick)
}
