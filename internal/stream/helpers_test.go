package stream

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/redistest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	agents = "jobs:agent"
	// waitFor bounds waiting for something that should happen soon; tests do not
	// measure how soon.
	waitFor = 20 * time.Second
	tick    = 5 * time.Millisecond
)

// open connects a consumer to the server and closes it with the test.
func open(t testing.TB, addr, consumer string) *Client {
	t.Helper()
	c, err := Open(Config{Connection: addr, Consumer: consumer}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// bundle is a fresh server with one consumer and a group on jobs:agent.
func bundle(t testing.TB) (*redistest.Server, *Client) {
	t.Helper()
	s := redistest.Start(t)
	c := open(t, s.Addr(), "one")
	require.NoError(t, c.EnsureGroup(t.Context(), agents))
	return s, c
}

func add(t *testing.T, c *Client, stream string, pairs ...string) string {
	t.Helper()
	id, err := c.Add(t.Context(), stream, fields(pairs...))
	require.NoError(t, err)
	return id
}

func fields(pairs ...string) []job.Field {
	var out []job.Field
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, job.Field{Name: pairs[i], Value: pairs[i+1]})
	}
	return out
}

// do sends any command, for what the package itself never does.
func do(t testing.TB, c *Client, args ...any) any {
	t.Helper()
	reply, err := c.commands.Do(t.Context(), args...).Result()
	require.NoError(t, err)
	return reply
}

func readNew(t *testing.T, c *Client, stream string, count int) []job.Entry {
	t.Helper()
	entries, err := c.ReadNew(t.Context(), stream, count, 0)
	require.NoError(t, err)
	return entries
}

func ids(entries []job.Entry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.ID)
	}
	return out
}

func length(t *testing.T, c *Client, stream string) int64 {
	t.Helper()
	n, err := c.commands.XLen(t.Context(), stream).Result()
	require.NoError(t, err)
	return n
}

func contextWithCancel(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}

func infoHas(info, line string) bool {
	for l := range strings.Lines(info) {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}

// receive waits for a value, but not for ever.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	timer := time.NewTimer(waitFor)
	defer timer.Stop()
	select {
	case v := <-from:
		return v
	case <-timer.C:
		t.Fatal("nothing came")
	}
	panic("unreachable")
}
