package stream

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/redistest"
)

func TestBacklog(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := open(t, s.Addr(), "one")
	backlog := func(limit int, until string) (found []string, complete bool) {
		complete, err := c.Backlog(t.Context(), agents, limit, func(e job.Entry) bool {
			found = append(found, e.ID)
			return e.ID != until
		})
		require.NoError(t, err)
		return found, complete
	}

	found, complete := backlog(10, "")
	require.Empty(t, found, "no stream")
	require.True(t, complete)

	var all []string
	for i := range 250 {
		all = append(all, add(t, c, agents, "n", strconv.Itoa(i)))
	}
	found, complete = backlog(1000, "")
	require.Equal(t, all, found, "without a group nothing is acknowledged")
	require.True(t, complete)

	require.NoError(t, c.EnsureGroup(t.Context(), agents))
	require.Len(t, readNew(t, c, agents, 100), 100)
	_, err := c.Ack(t.Context(), agents, "", all[:40]...)
	require.NoError(t, err)
	_, err = c.Ack(t.Context(), agents, "", all[50])
	require.NoError(t, err)
	found, complete = backlog(1000, "")
	require.Equal(t, all[40:], found, "from the oldest pending one, acknowledged or not")
	require.True(t, complete)

	found, complete = backlog(1000, all[45])
	require.Equal(t, all[40:46], found, "as far as wanted")
	require.True(t, complete)
	found, complete = backlog(150, "")
	require.Equal(t, all[40:190], found, "as far as allowed")
	require.False(t, complete)

	_, err = c.Ack(t.Context(), agents, "", all[:100]...)
	require.NoError(t, err)
	found, _ = backlog(1000, "")
	require.Equal(t, all[100:], found, "with nothing pending, what is unread")
	require.Len(t, readNew(t, c, agents, 200), 150)
	_, err = c.Ack(t.Context(), agents, "", all...)
	require.NoError(t, err)
	found, complete = backlog(1000, "")
	require.Empty(t, found)
	require.True(t, complete)
}

func TestBefore(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		"5-3":    "5-2",
		"5-0":    "4-18446744073709551615",
		"0-1":    "0-0",
		"0-0":    "0",
		"x":      "0",
		"5-x":    "0",
		"1700-1": "1700-0",
	} {
		require.Equal(t, want, before(id), id)
	}
}
