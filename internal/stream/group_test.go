package stream

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEnsureGroupStartsAtTheBeginning(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	id := add(t, c, "jobs:chat", "k", "v")
	for range 2 {
		require.NoError(t, c.EnsureGroup(t.Context(), "jobs:chat"), "twice is fine")
	}
	require.Equal(t, []string{id}, ids(readNew(t, c, "jobs:chat", 10)))
	require.NoError(t, c.EnsureGroup(t.Context(), "jobs:chat"))
	require.Empty(t, readNew(t, c, "jobs:chat", 10), "an existing group keeps its position")
}

func TestAck(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	a, b := add(t, c, agents, "k", "v"), add(t, c, agents, "k", "v")
	readNew(t, c, agents, 10)
	for _, want := range []int64{2, 0} {
		n, err := c.Ack(t.Context(), agents, "", a, b)
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	n, err := c.Ack(t.Context(), agents, "")
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestPending(t *testing.T) {
	t.Parallel()
	s, one := bundle(t)
	two := open(t, s.Addr(), "two")
	ctx := t.Context()

	p, err := one.Pending(ctx, agents)
	require.NoError(t, err)
	require.Zero(t, p.Count)
	require.Empty(t, p.OldestID)

	var all []string
	for range 5 {
		all = append(all, add(t, one, agents, "k", "v"))
	}
	readNew(t, one, agents, 2)
	readNew(t, two, agents, 3)
	p, err = one.Pending(ctx, agents)
	require.NoError(t, err)
	require.Equal(t, PendingSummary{
		Count: 5, OldestID: all[0], Consumers: map[string]int64{"one": 2, "two": 3},
	}, p)

	var listed []PendingEntry
	for after := ""; ; after = listed[len(listed)-1].ID {
		page, err := two.PendingList(ctx, agents, after, 2)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		listed = append(listed, page...)
	}
	require.Len(t, listed, 5)
	for i, e := range listed {
		require.Equal(t, all[i], e.ID)
		require.EqualValues(t, 1, e.Deliveries)
		require.Equal(t, map[bool]string{true: "one", false: "two"}[i < 2], e.Consumer)
	}
	fromZero, err := two.PendingList(ctx, agents, "0", 1)
	require.NoError(t, err)
	require.Equal(t, all[0], fromZero[0].ID)
}

// A long call must neither look idle nor like a poison entry.
func TestAckIsForTheGroupTheEntryWasReadThrough(t *testing.T) {
	t.Parallel()
	s, reader := bundle(t)
	id := add(t, reader, agents, "k", "v")
	readNew(t, reader, agents, 1)
	other, err := Open(Config{Connection: s.Addr(), Group: "another-group"}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	n, err := other.Ack(t.Context(), agents, "", id)
	require.NoError(t, err)
	require.Zero(t, n, "nothing is pending in its own")
	n, err = other.Ack(t.Context(), agents, reader.Group(), id)
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}

func TestRefreshKeepsOwnerAndDeliveries(t *testing.T) {
	t.Parallel()
	s, one := bundle(t)
	two := open(t, s.Addr(), "two")
	ctx := t.Context()
	held := add(t, one, agents, "k", "v")
	done := add(t, one, agents, "k", "v")
	readNew(t, one, agents, 10)
	_, err := one.Ack(ctx, agents, "", done)
	require.NoError(t, err)
	// Make it idle for an hour without waiting for one.
	do(t, one, "XCLAIM", agents, DefaultGroup, "one", 0, held, "IDLE", time.Hour.Milliseconds(), "JUSTID")

	require.NoError(t, two.Refresh(ctx, agents, "one", held, done))

	list, err := two.PendingList(ctx, agents, "", 10)
	require.NoError(t, err)
	require.Len(t, list, 1, "an acknowledged entry does not come back")
	require.Equal(t, held, list[0].ID)
	require.Equal(t, "one", list[0].Consumer)
	require.EqualValues(t, 1, list[0].Deliveries)
	require.Less(t, list[0].Idle, time.Hour)
	require.NoError(t, two.Refresh(ctx, agents, "one"), "nothing to refresh")
}

func TestClaimDeadTakesOnlyFromTheDead(t *testing.T) {
	t.Parallel()
	s, me := bundle(t)
	ctx := t.Context()
	alive, dead, dying := open(t, s.Addr(), "alive"), open(t, s.Addr(), "dead"), open(t, s.Addr(), "dying")
	for _, c := range []*Client{alive, dying} {
		require.NoError(t, c.Beat(ctx))
	}
	owned := map[string]string{}
	for _, c := range []*Client{me, alive, dead, dying} {
		owned[c.Consumer()] = add(t, me, agents, "of", c.Consumer())
		readNew(t, c, agents, 1)
	}
	gone := add(t, me, agents, "of", "dead")
	readNew(t, dead, agents, 1)
	do(t, me, "XDEL", agents, gone)

	// me never beat, and is not dead to itself.
	b, err := me.ClaimDead(ctx, agents, 10)
	require.NoError(t, err)
	require.Equal(t, []string{owned["dead"]}, ids(b.Entries))
	require.Equal(t, fields("of", "dead"), b.Entries[0].Fields)
	require.Equal(t, []string{gone}, b.Deleted)

	do(t, me, "DEL", dying.aliveKey("dying")) // as after 10 s
	b, err = me.ClaimDead(ctx, agents, 10)
	require.NoError(t, err)
	require.Equal(t, []string{owned["dying"]}, ids(b.Entries))

	b, err = me.ClaimDead(ctx, agents, 10)
	require.NoError(t, err)
	require.Empty(t, b.Entries)
	p, err := me.Pending(ctx, agents)
	require.NoError(t, err)
	require.Equal(t, map[string]int64{"one": 3, "alive": 1}, p.Consumers)
}

func TestClaimDeadTakesAsManyAsAsked(t *testing.T) {
	t.Parallel()
	s, me := bundle(t)
	var all []string
	for d := range 3 {
		c := open(t, s.Addr(), fmt.Sprintf("dead%d", d))
		for range 3 {
			all = append(all, add(t, me, agents, "k", "v"))
		}
		readNew(t, c, agents, 3)
	}
	var got []string
	for want := range slices.Values([]int{4, 4, 1, 0}) {
		b, err := me.ClaimDead(t.Context(), agents, 4)
		require.NoError(t, err)
		require.Len(t, b.Entries, want)
		got = append(got, ids(b.Entries)...)
	}
	require.Equal(t, all, got)
}

func TestAliveKeyEnds(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	require.NoError(t, c.Beat(t.Context()))
	ttl := do(t, c, "PTTL", "{executor}:alive:"+DefaultGroup+":one")
	require.Positive(t, ttl)
	require.LessOrEqual(t, ttl, aliveTTL.Milliseconds())
}

// Fault F37: deleting a consumer that owns entries would lose them.
func TestDropIdleConsumersKeepsThoseWithPendingEntries(t *testing.T) {
	t.Parallel()
	s, me := bundle(t)
	ctx := t.Context()
	owner, idle := open(t, s.Addr(), "owner"), open(t, s.Addr(), "idle")
	id := add(t, me, agents, "k", "v")
	require.Len(t, readNew(t, owner, agents, 1), 1)
	for _, c := range []*Client{idle, me} {
		done := add(t, me, agents, "k", "v")
		require.Len(t, readNew(t, c, agents, 1), 1)
		_, err := c.Ack(ctx, agents, "", done)
		require.NoError(t, err)
	}

	n, err := me.DropIdleConsumers(ctx, agents, time.Hour)
	require.NoError(t, err)
	require.Zero(t, n, "nobody has been idle for an hour")

	n, err = me.DropIdleConsumers(ctx, agents, 0)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	found, err := me.commands.XInfoConsumers(ctx, agents, DefaultGroup).Result()
	require.NoError(t, err)
	names := []string{}
	for _, c := range found {
		names = append(names, c.Name)
	}
	require.ElementsMatch(t, []string{"one", "owner"}, names)

	_, err = owner.Ack(ctx, agents, "", id)
	require.NoError(t, err)
	n, err = me.DropIdleConsumers(ctx, agents, 0)
	require.NoError(t, err)
	require.Equal(t, 1, n, "the owner, now that nothing is pending")
}

func TestStats(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	ctx := t.Context()

	s, err := c.Stats(ctx, "jobs:chat")
	require.NoError(t, err)
	require.Zero(t, s, "no stream")
	add(t, c, "jobs:chat", "k", "v")
	s, err = c.Stats(ctx, "jobs:chat")
	require.NoError(t, err)
	require.Equal(t, Stats{Length: 1, Lag: 1}, s, "no group")

	now := do(t, c, "TIME").([]any)[0].(string)
	tests := []struct {
		name, id string
		aged     bool
	}{
		{"an hour old", fmt.Sprintf("%s000-1", mustSub(t, now, 3600)), true},
		{"from the future", "9999999999999-1", false},
		{"no time", "0-1", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, c := bundle(t)
			do(t, c, "XADD", agents, tt.id, "k", "v")
			do(t, c, "XADD", agents, "9999999999999-2", "k", "v")
			do(t, c, "XADD", agents, "9999999999999-3", "k", "v")
			readNew(t, c, agents, 2)
			add(t, c, DeadStream(agents), "k", "v")
			s, err := c.Stats(t.Context(), agents)
			require.NoError(t, err)
			if tt.aged {
				require.GreaterOrEqual(t, s.OldestPending, time.Hour)
				require.Less(t, s.OldestPending, 2*time.Hour)
			} else {
				require.Zero(t, s.OldestPending)
			}
			s.OldestPending = 0
			require.Equal(t, Stats{Length: 3, Pending: 2, DeadLength: 1, Lag: 1}, s)
		})
	}
}

func mustSub(t *testing.T, seconds string, less int64) string {
	t.Helper()
	var n int64
	_, err := fmt.Sscan(seconds, &n)
	require.NoError(t, err)
	return fmt.Sprint(n - less)
}

func TestRestore(t *testing.T) {
	t.Parallel()
	s, one := bundle(t)
	two := open(t, s.Addr(), "two")
	ctx := t.Context()
	a, b, gone := add(t, one, agents, "k", "a"), add(t, one, agents, "k", "b"), add(t, one, agents, "k", "c")
	readNew(t, two, agents, 3)
	do(t, one, "XGROUP", "DELCONSUMER", agents, DefaultGroup, "two")
	do(t, one, "XDEL", agents, gone)
	p, err := one.Pending(ctx, agents)
	require.NoError(t, err)
	require.Zero(t, p.Count)

	for range 2 {
		require.NoError(t, one.Restore(ctx, agents, a, b, gone), "twice is fine")
	}
	own, err := one.ReadOwn(ctx, agents, "0", 10)
	require.NoError(t, err)
	require.Equal(t, []string{a, b}, ids(own.Entries))
	require.Empty(t, own.Deleted)
	require.NoError(t, one.Restore(ctx, agents), "nothing to restore")
	require.ErrorIs(t, one.Restore(ctx, "jobs:manager", "1-1"), ErrNoGroup)
}

func TestServerRunChangesWithTheServer(t *testing.T) {
	t.Parallel()
	s, one := bundle(t)
	run, err := one.ServerRun(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, run)
	again, err := open(t, s.Addr(), "two").ServerRun(t.Context())
	require.NoError(t, err)
	require.Equal(t, run, again)
	_, other := bundle(t)
	different, err := other.ServerRun(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, run, different)
}
