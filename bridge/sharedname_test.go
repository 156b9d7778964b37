package bridge

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// sharedNameWarning is what an operator finds in the log.
const sharedNameWarning = "two bridges share a consumer name"

// Fault F06: nothing is lost or doubled, and somebody is told what to change.
func TestBridgesOfOneConsumerName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var logs [2]safeBuffer
	for i := range logs {
		w.run(w.bridge("same", func(b *Bridge) { b.log = slog.New(slog.NewTextHandler(&logs[i], nil)) }))
	}
	w.eventually("both notice", func() bool {
		return strings.Contains(logs[0].String(), sharedNameWarning) && strings.Contains(logs[1].String(), sharedNameWarning)
	})

	const jobs = 30
	ids := make([]string, jobs)
	for i := range ids {
		ids[i] = "shared-" + string(rune('a'+i))
		w.agentJob(ids[i])
	}
	for _, id := range ids {
		w.finish(w.started(job.Agent, id), good("done"))
	}
	w.settled(job.Agent)
	require.ElementsMatch(t, ids, w.temporal.startedIDs(), "one run each")
	require.Len(t, w.updates(), jobs)

	noticed := w.metrics.get("error  " + consumerShared)
	w.eventually("it lasts", func() bool { return w.metrics.get("error  "+consumerShared) > noticed+5 })
	for i := range logs {
		require.Equal(t, 1, strings.Count(logs[i].String(), sharedNameWarning), "once a minute:\n%s", logs[i].String())
		require.Contains(t, logs[i].String(), "CONSUMER_NAME")
		require.Contains(t, logs[i].String(), "consumer=same")
	}
}

// A bridge that takes the place of another under its name says nothing.
func TestBridgeInPlaceOfAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log safeBuffer
	listen := func(b *Bridge) { b.log = slog.New(slog.NewTextHandler(&log, nil)) }
	for range 3 {
		b := w.bridge("same", listen)
		stop := w.run(b)
		w.eventually("it leads", b.leader.Load)
		stop()
	}
	require.NotContains(t, log.String(), sharedNameWarning)
	require.Zero(t, w.metrics.get("error  "+consumerShared))
}
