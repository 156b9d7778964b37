package stream

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/redistest"
)

// Fault C02: everything a bridge or a worker does works with the rights of the
// user "executor" in deploy/redis/users.acl.
func TestTheShippedRightsAreEnough(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	control := open(t, s.Login("admin"), "control")
	do(t, control, "RPUSH", "chat.jobs", "{}")
	do(t, control, "XADD", agents, "1-1", "k", "v")

	c := open(t, s.Login("executor"), "one")
	ctx := t.Context()
	id := "1-1"
	calls := []struct {
		name string
		call func() error
	}{
		{"Ping", func() error { return c.Ping(ctx) }},
		{"EnsureGroup", func() error { return c.EnsureGroup(ctx, agents) }},
		{"Beat", func() error { return c.Beat(ctx) }},
		{"ReadNew", func() error { _, err := c.ReadNew(ctx, agents, 1, time.Millisecond); return err }},
		{"ReadOwn", func() error { _, err := c.ReadOwn(ctx, agents, "0", 1); return err }},
		{"AutoClaim", func() error { _, _, err := c.AutoClaim(ctx, agents, 0, "0-0", 1); return err }},
		{"Refresh", func() error { return c.Refresh(ctx, agents, "one", id) }},
		{"Restore", func() error { return c.Restore(ctx, agents, id) }},
		{"ServerRun", func() error { _, err := c.ServerRun(ctx); return err }},
		{"Pending", func() error { _, err := c.Pending(ctx, agents); return err }},
		{"PendingList", func() error { _, err := c.PendingList(ctx, agents, "", 1); return err }},
		{"Entry", func() error { _, _, err := c.Entry(ctx, agents, id); return err }},
		{"Range", func() error { _, err := c.Range(ctx, agents, "("+id, "2-0", 1); return err }},
		{"Delivered", func() error { _, err := c.Delivered(ctx, agents); return err }},
		{"Audited", func() error { _, err := c.Audited(ctx, agents); return err }},
		{"SetAudited", func() error { return c.SetAudited(ctx, agents, id) }},
		{"Stats", func() error { _, err := c.Stats(ctx, agents); return err }},
		{"LastID", func() error { _, err := c.LastID(ctx, agents); return err }},
		{"Publish", func() error {
			u := update()
			u.Channel = ChatChannel
			_, err := c.Publish(ctx, u)
			return err
		}},
		{"DeadLetter", func() error { _, err := c.DeadLetter(ctx, letter()); return err }},
		{"MoveChat", func() error { _, err := c.MoveChat(ctx, "chat.jobs", 1); return err }},
		{"Lease", func() error { _, err := c.Lease(ctx, "l", time.Second); return err }},
		{"Unlease", func() error { return c.Unlease(ctx, "l") }},
		{"SaveAnswer", func() error { return c.SaveAnswer(ctx, "e", nil) }},
		{"LoadAnswer", func() error { _, _, err := c.LoadAnswer(ctx, "e"); return err }},
		{"SetCooldown", func() error { return c.SetCooldown(ctx, "e", time.Second) }},
		{"Cooldown", func() error { _, err := c.Cooldown(ctx, "e"); return err }},
		{"AnnounceStore", func() error { _, err := c.AnnounceStore(ctx, "u"); return err }},
		{"Ack", func() error { _, err := c.Ack(ctx, agents, "", id); return err }},
	}
	for _, tt := range calls {
		require.NoError(t, tt.call(), tt.name)
	}
	for _, role := range job.Roles() {
		require.NoError(t, c.EnsureGroup(ctx, role.Stream()), role)
		d := letter()
		d.Stream = role.Stream()
		_, err := c.DeadLetter(ctx, d)
		require.NoError(t, err, role)
	}
	require.Empty(t, c.ServerWarnings(ctx), "the shipped configuration loses nothing")

	dead := open(t, s.Login("executor"), "dead")
	do(t, control, "XADD", agents, "*", "k", "v")
	require.Len(t, readNew(t, dead, agents, 10), 1)
	b, err := c.ClaimDead(ctx, agents, 10)
	require.NoError(t, err)
	require.Len(t, b.Entries, 1)
	n, err := c.DropIdleConsumers(ctx, agents, 0)
	require.NoError(t, err)
	require.Equal(t, 1, n)

	l := total(t, c, 1, slowPoll())
	release, err := l.Acquire(ctx, "a")
	require.NoError(t, err)
	subscribed(t, control, 1)
	granted := acquire(t, l, "b")
	queued(t, control, 1)
	release()
	permit(t, granted)()

	require.Empty(t, denied(t, control), "nothing was refused in passing")

	// What only submit does is for another user, and says so.
	_, err = c.TailUpdates(ctx, Updates, "0", 0)
	require.ErrorIs(t, err, ErrDenied)
	require.ErrorContains(t, err, "xread")
	require.ErrorContains(t, err, "REDIS_CONNECTION")
	_, err = c.Add(ctx, agents, fields("k", "v"))
	require.ErrorIs(t, err, ErrDenied)
}

// Fault F30 with the shipped users: what was published by a script is in the
// append-only file as a transaction, and Redis checks those against the rights
// of the user "default" when it reads the file again.
func TestTheShippedUsersLoseNothingInACrash(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	c := open(t, s.Login("executor"), "one")
	published, err := c.Publish(t.Context(), update())
	require.NoError(t, err)
	require.True(t, published)
	_, err = c.DeadLetter(t.Context(), letter())
	require.NoError(t, err)
	// Redis writes before it replies, unless the disk is still busy with the last
	// second (appendfsync everysec).
	control := open(t, s.Login("admin"), "control")
	require.Eventually(t, func() bool {
		state, err := control.commands.Info(t.Context(), "persistence").Result()
		return err == nil && strings.Contains(state, "aof_buffer_length:0\r\n")
	}, waitFor, tick)

	s.Kill()
	s.Restart(t)
	control = open(t, s.Login("admin"), "control")
	for _, key := range []string{Updates, letter().Stream + ":dead"} {
		n, err := control.commands.XLen(t.Context(), key).Result()
		require.NoError(t, err)
		require.EqualValues(t, 1, n, key)
	}
	published, err = open(t, s.Login("executor"), "two").Publish(t.Context(), update())
	require.NoError(t, err)
	require.False(t, published, "it is remembered what was published")
}

// denied lists what the server refused anybody.
func denied(t *testing.T, admin *Client) []string {
	t.Helper()
	entries, err := admin.commands.ACLLog(t.Context(), 128).Result()
	require.NoError(t, err)
	var found []string
	for _, e := range entries {
		found = append(found, e.Username+": "+e.Reason+" "+e.Object+" "+e.Context)
	}
	return found
}

// The operator's rights are those of `executor submit --wait`.
func TestTheShippedOperatorCanSubmit(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	c := open(t, s.Login("operator"), "me")
	after, err := c.LastID(t.Context(), Updates)
	require.NoError(t, err)
	for _, role := range job.Roles() {
		add(t, c, role.Stream(), "k", "v")
	}
	_, err = open(t, s.Login("executor"), "one").Publish(t.Context(), update())
	require.NoError(t, err)
	entries, err := c.TailUpdates(t.Context(), Updates, after, time.Second)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

// And those of `executor retry`, `dlq` and `streams`.
func TestTheShippedOperatorCanOperate(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	bridge := open(t, s.Login("executor"), "one")
	require.NoError(t, bridge.Beat(t.Context()))
	operator := open(t, s.Login("operator"), "me")
	for _, role := range job.Roles() {
		require.NoError(t, bridge.EnsureGroup(t.Context(), role.Stream()))
		d := letter()
		d.Stream = role.Stream()
		id, err := bridge.DeadLetter(t.Context(), d)
		require.NoError(t, err)

		entry := add(t, operator, role.Stream(), "k", "v")
		require.Len(t, readNew(t, bridge, role.Stream(), 1), 1)
		_, found, err := operator.Entry(t.Context(), role.Stream(), entry)
		require.NoError(t, err)
		require.True(t, found)
		letters, err := operator.DeadLetters(t.Context(), role.Stream(), DeadRange{})
		require.NoError(t, err)
		require.Len(t, letters, 1)
		_, found, err = operator.ReadDead(t.Context(), role.Stream(), id)
		require.NoError(t, err)
		require.True(t, found)
		_, err = operator.Stats(t.Context(), role.Stream())
		require.NoError(t, err)
		consumers, err := operator.Consumers(t.Context(), role.Stream())
		require.NoError(t, err)
		require.Len(t, consumers, 1)
		require.True(t, consumers[0].Alive)
		n, err := operator.DropDead(t.Context(), role.Stream(), id)
		require.NoError(t, err)
		require.EqualValues(t, 1, n)
	}
	require.Empty(t, denied(t, open(t, s.Login("admin"), "control")), "nothing was refused in passing")
}

// Fault C02: what each user may not do. A command that is refused for any other
// reason than NOPERM would prove nothing.
func TestTheShippedRightsEndThere(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	control := open(t, s.Login("admin"), "control")
	do(t, control, "XADD", agents, "1-1", "k", "v")
	do(t, control, "XGROUP", "CREATE", agents, DefaultGroup, "0")
	do(t, control, "SET", "other", "v")

	everyone := []string{
		"FLUSHALL", "FLUSHDB", "DEL jobs:agent", "UNLINK jobs:agent", "EXPIRE jobs:agent 1", "RENAME jobs:agent x", "KEYS *", "SCAN 0",
		"CONFIG GET appendonly", "CONFIG SET maxmemory 1", "XTRIM jobs:agent MAXLEN 0", "XDEL jobs:agent 1-1",
		"XGROUP DESTROY jobs:agent executor-group", "XGROUP SETID jobs:agent executor-group 0", "XSETID jobs:agent 9-9",
		"SET jobs:agent gone", "GET other", "SET other x", "XADD other * k v", "XRANGE other - +", "DUMP jobs:agent",
		"SHUTDOWN NOSAVE", "REPLICAOF 127.0.0.1 1", "ACL LIST", "ACL SETUSER executor +@all", "ACL SAVE",
		"CLIENT LIST", "CLIENT KILL TYPE normal", "MONITOR", "MODULE LIST", "SLOWLOG GET", "SCRIPT FLUSH", "FUNCTION LIST",
		"EVAL 'return' 1 other", "SUBSCRIBE other", "PUBLISH other x", "PSUBSCRIBE *", "SAVE", "MIGRATE h 1 k 0 1", "SELECT 1",
	}
	tests := map[string][]string{
		"executor": {
			"XADD jobs:agent * k v", "XADD jobs:manager * k v", "XREAD STREAMS signalr:updates 0", "XRANGE signalr:updates - +",
			"SET signalr:updates gone", "GET jobs:agent", "LPOP other", "RPUSH chat.jobs x", "LRANGE chat.jobs 0 -1",
			"XDEL jobs:agent:dead 1-1", "ZADD {executor}:x 1 m", "SUBSCRIBE AI.RESPONSE", "EVAL return 1 {other}:x", "CLIENT NO-EVICT on",
		},
		"web": {
			"XADD signalr:updates * k v", "XADD jobs:agent:dead * k v", "XRANGE jobs:agent - +", "XACK jobs:agent executor-group 1-1",
			"XREADGROUP GROUP executor-group x STREAMS jobs:agent >", "LPOP chat.jobs", "LRANGE chat.jobs 0 -1", "PUBLISH AI.RESPONSE x",
			"GET {executor}:store", "EVAL return 0", "XDEL jobs:agent:dead 1-1", "GET {executor}:alive:x",
		},
		"signalr": {
			"XADD signalr:updates * k v", "XREAD STREAMS jobs:agent 0", "XRANGE jobs:agent - +", "XADD jobs:agent * k v",
			"RPUSH chat.jobs x", "SUBSCRIBE AI.RESPONSE", "EVAL return 0",
		},
		"operator": {
			"XADD signalr:updates * k v", "XADD jobs:agent:dead * k v", "XACK jobs:agent executor-group 1-1",
			"XREADGROUP GROUP executor-group x STREAMS jobs:agent >", "XAUTOCLAIM jobs:agent executor-group x 0 0",
			"XGROUP DELCONSUMER jobs:agent executor-group x", "GET {executor}:store", "PUBLISH AI.RESPONSE x", "EVAL return 0",
			"XDEL signalr:updates 1-1", "XTRIM jobs:agent:dead MAXLEN 0", "DEL jobs:agent:dead", "SET {executor}:alive:x y",
		},
	}
	for user, own := range tests {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			c := open(t, s.Login(user), "one")
			for _, command := range append(everyone, own...) {
				requireNoPerm(t, c, command)
			}
		})
	}
	t.Run("what the rights guard is still there", func(t *testing.T) {
		require.EqualValues(t, 1, length(t, control, agents))
	})
}

func requireNoPerm(t *testing.T, c *Client, command string) {
	t.Helper()
	words := strings.Fields(command)
	args := make([]any, len(words))
	for i, w := range words {
		args[i] = strings.Trim(w, "'")
	}
	err := c.commands.Do(t.Context(), args...).Err()
	require.Error(t, err, command)
	require.True(t, strings.HasPrefix(err.Error(), "NOPERM"), "%s: %v", command, err)
	require.ErrorIs(t, fail(t.Context(), "x", err), ErrDenied)
}

// What a user may do through a script is checked command by command.
func TestScriptsHaveNoMoreRights(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	c := open(t, s.Login("executor"), "one")
	for _, command := range []string{"'DEL', KEYS[1]", "'XTRIM', KEYS[1], 'MAXLEN', 0", "'SET', KEYS[1], 'x'", "'XADD', 'other', '*', 'k', 'v'"} {
		_, err := run(t.Context(), redis.NewScript("return redis.call("+command+")"), c.commands, "x", []string{agents})
		require.ErrorIs(t, err, ErrDenied, command)
	}
}

func TestNobodyGetsInWithoutAPassword(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	for _, connection := range []string{
		s.Addr(), s.Addr() + ",password=x", s.Addr() + ",user=executor", s.Addr() + ",user=executor,password=wrong",
		s.Addr() + ",user=default,password=x", s.Addr() + ",user=nobody,password=x",
	} {
		c := open(t, connection, "one")
		err := c.Ping(t.Context())
		require.ErrorIs(t, err, ErrDenied, connection)
		require.ErrorContains(t, err, "check user and password in REDIS_CONNECTION")
		_, err = c.ReadNew(t.Context(), agents, 1, time.Millisecond)
		require.ErrorIs(t, err, ErrDenied, connection)
	}
}

// Fault C03.
func TestTheShippedConfigurationIsInForce(t *testing.T) {
	t.Parallel()
	s := redistest.StartShipped(t)
	c := open(t, s.Login("admin"), "control")
	for name, want := range map[string]string{
		"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "proto-max-bulk-len": "2097152",
		"protected-mode": "yes", "save": "", "enable-debug-command": "no", "enable-module-command": "no", "enable-protected-configs": "no",
	} {
		got, err := c.commands.ConfigGet(t.Context(), name).Result()
		require.NoError(t, err)
		require.Equal(t, map[string]string{name: want}, got)
	}

	// A string beyond the limit is refused, and what is there stays.
	add(t, c, agents, "k", strings.Repeat("x", 2<<20))
	ctx, cancel := context.WithTimeout(t.Context(), waitFor)
	defer cancel()
	_, err := c.Add(ctx, agents, fields("k", strings.Repeat("x", 2<<20+1)))
	require.Error(t, err)
	require.EqualValues(t, 1, length(t, c, agents))

	s.Restart(t)
	require.Eventually(t, func() bool { return c.Ping(t.Context()) == nil }, waitFor, tick)
	require.EqualValues(t, 1, length(t, c, agents), "kept over a crash")
}
