package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/redistest"
)

type reply string

func (r reply) Error() string { return string(r) }
func (reply) RedisError()     {}

func TestErrorsAreTypedAndHoldNoContent(t *testing.T) {
	t.Parallel()
	const secret = "GEHEIM"
	tests := []struct {
		err  error
		want error
	}{
		{reply("NOGROUP No such key 'GEHEIM' or consumer group"), ErrNoGroup},
		{reply("UNBLOCKED the stream key no longer exists GEHEIM"), ErrNoGroup},
		{reply("ERR no such key"), ErrNoGroup},
		{reply("ERR The XGROUP subcommand requires the key to exist."), ErrNoGroup},
		{reply("WRONGTYPE Operation against a key GEHEIM"), ErrWrongType},
		{reply("NOAUTH Authentication required. GEHEIM"), ErrDenied},
		{reply("WRONGPASS invalid GEHEIM"), ErrDenied},
		{reply("NOPERM this user has no permissions to run the 'xadd' command GEHEIM"), ErrDenied},
		{reply("NOPERM this user has no permissions to run the 'GEHEIM' command"), ErrDenied},
		{reply("ERR invalid password GEHEIM"), ErrDenied},
		{reply("ERR AUTH <password> called without GEHEIM"), ErrDenied},
		{reply("ERR The user executing the script can't run this command GEHEIM"), ErrDenied},
		{reply("LOADING GEHEIM"), ErrUnavailable},
		{reply("READONLY GEHEIM"), ErrUnavailable},
		{reply("MISCONF GEHEIM"), ErrUnavailable},
		{reply("OOM GEHEIM"), ErrUnavailable},
		{reply("ERR max number of clients reached"), ErrUnavailable},
		{reply("ERR DB index is out of range"), ErrRefused},
		{reply("ERR unknown command 'GEHEIM', with args beginning with: GEHEIM"), ErrRefused},
		{reply("CROSSSLOT GEHEIM"), ErrRefused},
		{reply("geheim GEHEIM"), ErrRefused},
		{reply("GEHEIM1"), ErrRefused},
		{reply(""), ErrRefused},
		{fmt.Errorf("redis: can't parse reply=%q: %w", secret, errors.New(secret)), ErrUnavailable},
		{io.EOF, ErrUnavailable},
		{context.DeadlineExceeded, ErrUnavailable}, // a dial timeout, not the caller's
		{redis.ErrPoolTimeout, ErrUnavailable},
		{redis.ErrClosed, ErrClosed},
		{replyError{"number"}, ErrUnavailable},
	}
	for _, tt := range tests {
		t.Run(tt.err.Error(), func(t *testing.T) {
			t.Parallel()
			got := fail(t.Context(), "try", tt.err)
			require.ErrorIs(t, got, tt.want)
			require.ErrorContains(t, got, "try: ")
			require.NotContains(t, got.Error(), secret)
			require.NotContains(t, fmt.Sprintf("%+v %#v", got, got), secret)
			require.Equal(t, got, fail(t.Context(), "again", got), "an error is typed once")
		})
	}
	require.NoError(t, fail(t.Context(), "try", nil))
	require.ErrorContains(t, fail(t.Context(), "try", tests[7].err), "NOPERM for xadd")
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	s, c := bundle(t)
	s.Kill()
	require.ErrorIs(t, c.Ping(t.Context()), ErrUnavailable)
	_, err := c.ReadNew(t.Context(), agents, 1, 0)
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "read jobs:agent")

	s.Restart(t)
	require.Eventually(t, func() bool { return c.Ping(t.Context()) == nil }, waitFor, tick)
}

func TestDeadlineOfTheCaller(t *testing.T) {
	t.Parallel()
	_, c := bundle(t)
	do(t, c, "CLIENT", "PAUSE", 60_000, "ALL")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Publish(ctx, update())
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestCredentialsStayOutOfErrorsAndLogs(t *testing.T) {
	t.Parallel()
	s := redistest.StartWith(t, "--requirepass", "right")
	var logged bytes.Buffer
	c, err := Open(Config{Connection: s.Addr() + ",password=GEHEIM,x=GEHEIM", Consumer: "one"},
		slog.New(slog.NewTextHandler(&logged, nil)))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	err = c.Ping(t.Context())
	require.ErrorIs(t, err, ErrDenied)
	require.ErrorContains(t, err, "REDIS_CONNECTION")
	require.NotContains(t, err.Error(), "GEHEIM")
	require.Contains(t, logged.String(), "unknown settings were ignored")
	require.NotContains(t, logged.String(), "GEHEIM")

	require.NoError(t, open(t, s.Addr()+",password=right", "two").Ping(t.Context()))
	require.NoError(t, open(t, "redis://:right@"+s.Addr()+"/2", "three").Ping(t.Context()))
	require.ErrorContains(t, open(t, "redis://:right@"+s.Addr()+"/99", "four").Ping(t.Context()), "database")
}

func TestLibraryLoggerDropsArguments(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	libraryLogger{slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))}.Printf(t.Context(), "cannot reach %s: %v", "GEHEIM", io.EOF)
	require.Contains(t, logged.String(), "cannot reach")
	require.NotContains(t, logged.String(), "GEHEIM")
}

func TestClosedClient(t *testing.T) {
	t.Parallel()
	c, err := Open(Config{Connection: "localhost"}, nil)
	require.NoError(t, err, "opening does not connect")
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.Ping(t.Context()), ErrClosed)
	require.ErrorIs(t, c.Close(), ErrClosed)
}

func TestMalformedReplies(t *testing.T) {
	t.Parallel()
	for _, r := range []any{
		nil, "text", int64(1),
		[]any{"x"},
		[]any{[]any{"s"}},
		[]any{[]any{"s", "x"}},
		[]any{[]any{"s", []any{"x"}}},
		[]any{[]any{"s", []any{[]any{int64(1), nil}}}},
		[]any{[]any{"s", []any{[]any{"1-1", "x"}}}},
		[]any{[]any{"s", []any{[]any{"1-1", []any{"odd"}}}}},
		[]any{[]any{"s", []any{[]any{"1-1", []any{"k", int64(1)}}}}},
	} {
		_, err := streamReply(agents, r)
		require.Error(t, err, "%v", r)
	}
	_, err := listReply([]any{1}, 2)
	require.Error(t, err)
	b, err := entriesReply(agents, []any{nil})
	require.NoError(t, err)
	require.Empty(t, b)
}
