package stream

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// filled is how many entries a benchmark adds at a time, outside of what it
// measures.
const filled = 512

// fill adds entries like those of a producer, all in one round trip.
func fill(b *testing.B, c *Client, n int) {
	b.Helper()
	entry := flat(job.Job{
		Role: job.Agent, ID: "3f2b8f1e-6f0e-4a53-9d3b-5d0a8f6d2c11", WorkflowID: "w1", UserID: "u1", ProjectID: "p1",
		ConnectionID: "c1", Task: strings.Repeat("do it ", 50), Payload: `{"k":1}`,
	}.Fields())
	pipe := c.commands.Pipeline()
	for range n {
		pipe.Do(b.Context(), append([]any{"XADD", agents, "*"}, entry...)...)
	}
	_, err := pipe.Exec(b.Context())
	require.NoError(b, err)
}

// BenchmarkPublish is the last step but one of each job, and what a repeated
// attempt at it costs.
func BenchmarkPublish(b *testing.B) {
	publish := func(b *testing.B, c *Client, u Update, want bool) {
		b.Helper()
		done, err := c.Publish(b.Context(), u)
		require.NoError(b, err)
		require.Equal(b, want, done)
	}
	answer := update()
	answer.Payload = strings.Repeat("an answer ", 100)
	b.Run("first", func(b *testing.B) {
		_, c := bundle(b)
		u, n := answer, 0
		b.ReportAllocs()
		for b.Loop() {
			n++
			u.Effect = job.EntryEffect(agents, strconv.Itoa(n)+"-0")
			publish(b, c, u, true)
		}
	})
	b.Run("again", func(b *testing.B) {
		_, c := bundle(b)
		publish(b, c, answer, true)
		b.ReportAllocs()
		for b.Loop() {
			publish(b, c, answer, false)
		}
	})
}

// BenchmarkReadNew reads batches as large as the bridge does.
func BenchmarkReadNew(b *testing.B) {
	const batch = 16
	_, c := bundle(b)
	left := 0
	b.ReportAllocs()
	for b.Loop() {
		if left == 0 {
			b.StopTimer()
			do(b, c, "XTRIM", agents, "MAXLEN", 0)
			fill(b, c, filled)
			left = filled
			b.StartTimer()
		}
		entries, err := c.ReadNew(b.Context(), agents, batch, 0)
		require.NoError(b, err)
		require.Len(b, entries, batch)
		left -= batch
	}
}

func BenchmarkAck(b *testing.B) {
	_, c := bundle(b)
	var pending []job.Entry
	b.ReportAllocs()
	for b.Loop() {
		if len(pending) == 0 {
			b.StopTimer()
			fill(b, c, filled)
			var err error
			pending, err = c.ReadNew(b.Context(), agents, filled, 0)
			require.NoError(b, err)
			b.StartTimer()
		}
		n, err := c.Ack(b.Context(), agents, "", pending[0].ID)
		require.NoError(b, err)
		require.EqualValues(b, 1, n)
		pending = pending[1:]
	}
}
