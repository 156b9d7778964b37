package stream

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/redistest"
)

func TestLease(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	one, two := open(t, s.Addr(), "one"), open(t, s.Addr(), "two")
	ctx := t.Context()
	take := func(c *Client, ttl time.Duration) bool {
		t.Helper()
		ok, err := c.Lease(ctx, "reconciler", ttl)
		require.NoError(t, err)
		return ok
	}

	require.True(t, take(one, time.Hour))
	require.False(t, take(two, time.Hour))
	require.NoError(t, two.Unlease(ctx, "reconciler"), "giving up what one does not hold does nothing")
	require.True(t, take(one, time.Hour), "renewed")
	other, err := two.Lease(ctx, "another", time.Hour)
	require.NoError(t, err)
	require.True(t, other, "leases of other names are free")

	require.NoError(t, one.Unlease(ctx, "reconciler"))
	require.Eventually(t, func() bool { return take(two, 50*time.Millisecond) }, waitFor, tick)
	require.Eventually(t, func() bool { return take(one, time.Hour) }, waitFor, tick, "an unrenewed lease ends")
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	ctx := t.Context()
	_, found, err := c.LoadAnswer(ctx, "entry:jobs:agent/1-1")
	require.NoError(t, err)
	require.False(t, found)

	for _, data := range [][]byte{[]byte("an answer \x00\xff"), {}} {
		require.NoError(t, c.SaveAnswer(ctx, "entry:jobs:agent/1-1", data))
		got, found, err := c.LoadAnswer(ctx, "entry:jobs:agent/1-1")
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, data, got)
	}
	ttl := do(t, c, "TTL", "{executor}:answer:entry:jobs:agent/1-1").(int64)
	require.InDelta(t, answerTTL.Seconds(), float64(ttl), 60)
}

func TestCooldownIsNeverShortened(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	one, two := open(t, s.Addr(), "one"), open(t, s.Addr(), "two")
	ctx := t.Context()
	left := func() time.Duration {
		t.Helper()
		d, err := two.Cooldown(ctx, "endpoint")
		require.NoError(t, err)
		return d
	}
	require.Zero(t, left())
	require.NoError(t, one.SetCooldown(ctx, "endpoint", time.Hour))
	require.NoError(t, two.SetCooldown(ctx, "endpoint", time.Second))
	require.Greater(t, left(), 50*time.Minute)
	require.LessOrEqual(t, left(), time.Hour)
	require.NoError(t, two.SetCooldown(ctx, "endpoint", 2*time.Hour))
	require.Greater(t, left(), time.Hour)

	d, err := two.Cooldown(ctx, "another")
	require.NoError(t, err)
	require.Zero(t, d)

	require.NoError(t, one.SetCooldown(ctx, "short", time.Nanosecond))
	require.Eventually(t, func() bool {
		d, err := two.Cooldown(ctx, "short")
		return err == nil && d == 0
	}, waitFor, tick)
}

func TestAnnounceStore(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	one, two := open(t, s.Addr(), "one"), open(t, s.Addr(), "two")
	ctx := t.Context()
	for _, tt := range []struct {
		c           *Client
		store, want string
	}{{one, "a", ""}, {two, "a", ""}, {two, "b", "a"}, {one, "a", ""}} {
		other, err := tt.c.AnnounceStore(ctx, tt.store)
		require.NoError(t, err)
		require.Equal(t, tt.want, other)
	}
	ttl := do(t, one, "PTTL", "{executor}:store").(int64)
	require.Positive(t, ttl)
	require.LessOrEqual(t, ttl, storeTTL.Milliseconds())

	do(t, one, "DEL", "{executor}:store") // as after 30 s
	other, err := two.AnnounceStore(ctx, "b")
	require.NoError(t, err)
	require.Empty(t, other)
}

func TestServerWarnings(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"as it should be", []string{"--appendonly", "yes"}, nil},
		{"no append-only file", nil, []string{"appendonly"}},
		{"eviction", []string{"--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"}, []string{"maxmemory-policy"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := open(t, redistest.StartWith(t, tt.args...).Addr(), "one")
			got := c.ServerWarnings(t.Context())
			require.Len(t, got, len(tt.want))
			for i := range got {
				require.Contains(t, got[i], tt.want[i])
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		c := open(t, redistest.Start(t).Addr(), "one")
		do(t, c, "ACL", "SETUSER", "default", "-info")
		require.Empty(t, c.ServerWarnings(t.Context()))
	})
}
