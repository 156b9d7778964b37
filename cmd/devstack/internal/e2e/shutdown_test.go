package e2e

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSIGTERMFinishesTheRunningCall(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil, "run")
	answer := text("answer")
	b.llm.script(map[string]any{"hang": true, "answer": answer})
	b.submit("agent", "jobId", "j1", "userId", "u1", "task", text("task"))
	b.llm.await("the call runs", func(s stubStats) bool { return s.Running == 1 })

	require.NoError(t, p.Signal(syscall.SIGTERM))
	b.llm.release()
	code, err := p.ExitCode(t.Context())
	require.NoError(t, err)
	require.Zero(t, code)

	// What was left to do, if anything, the next process does, without a call.
	b.start(nil, "run")
	require.Equal(t, answer, b.update("j1", 1)["Payload"])
	b.settled("agent")
	require.Equal(t, 1, b.llm.stats().Calls)
}

func TestRestartFinishesPendingJobs(t *testing.T) {
	t.Parallel()
	const jobs = 6
	b := newBundle(t)
	env := map[string]string{"MAX_AGENT": "2"}
	p := b.start(env, "run")
	b.llm.script(map[string]any{"hang": true})
	for i := range jobs {
		b.submit("agent", "jobId", fmt.Sprintf("j%d", i), "userId", "u1", "task", text("task"))
	}
	b.llm.await("two calls run", func(s stubStats) bool { return s.Running == 2 })

	p.Kill()
	b.llm.await("the calls died with the process", func(s stubStats) bool { return s.Running == 0 })
	b.llm.script(map[string]any{"hang": false})
	late := b.submit("agent", "jobId", "late", "userId", "u1", "task", text("task"))

	b.start(env, "run")
	for i := range jobs {
		require.Equal(t, "result", b.update(fmt.Sprintf("j%d", i), 1)["Type"])
	}
	require.Equal(t, messageID("entry:jobs:agent/"+late), b.update("late", 1)["MessageId"])
	b.settled("agent")
	require.Len(t, b.rows("status = 'completed'"), jobs+1)
	published, err := b.redis.XLen(t.Context(), updates).Result()
	require.NoError(t, err)
	require.EqualValues(t, jobs+1, published, "one update each")
	// One call each, and one more for each that the crash hit.
	require.LessOrEqual(t, b.llm.stats().Calls, jobs+1+2)
}
