package e2e

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

func TestSIGTERMFinishesTheRunningCall(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.Start(nil, "run")
	answer := harness.Text("answer")
	b.LLM.Script(map[string]any{"hang": true, "answer": answer})
	b.Submit("agent", "jobId", "j1", "userId", "u1", "task", harness.Text("task"))
	b.LLM.Await("the call runs", func(s harness.Stats) bool { return s.Running == 1 })

	require.NoError(t, p.Signal(syscall.SIGTERM))
	b.LLM.Release()
	code, err := p.ExitCode(t.Context())
	require.NoError(t, err)
	require.Zero(t, code)

	// What was left to do, if anything, the next process does, without a call.
	b.Start(nil, "run")
	require.Equal(t, answer, b.Update("j1", 1)["Payload"])
	b.Settled("agent")
	require.Equal(t, 1, b.LLM.Stats().Calls)
}

func TestRestartFinishesPendingJobs(t *testing.T) {
	t.Parallel()
	const jobs = 6
	b := newBundle(t)
	env := map[string]string{"MAX_AGENT": "2"}
	p := b.Start(env, "run")
	b.LLM.Script(map[string]any{"hang": true})
	for i := range jobs {
		b.Submit("agent", "jobId", fmt.Sprintf("j%d", i), "userId", "u1", "task", harness.Text("task"))
	}
	b.LLM.Await("two calls run", func(s harness.Stats) bool { return s.Running == 2 })

	p.Kill()
	b.LLM.Await("the calls died with the process", func(s harness.Stats) bool { return s.Running == 0 })
	b.LLM.Script(map[string]any{"hang": false})
	late := b.Submit("agent", "jobId", "late", "userId", "u1", "task", harness.Text("task"))

	b.Start(env, "run")
	for i := range jobs {
		require.Equal(t, "result", b.Update(fmt.Sprintf("j%d", i), 1)["Type"])
	}
	require.Equal(t, harness.MessageID("entry:jobs:agent/"+late), b.Update("late", 1)["MessageId"])
	b.Settled("agent")
	require.Len(t, b.Rows("status = 'completed'"), jobs+1)
	published, err := b.Redis.XLen(t.Context(), harness.Updates).Result()
	require.NoError(t, err)
	require.EqualValues(t, jobs+1, published, "one update each")
	// One call each, and one more for each that the crash hit.
	require.LessOrEqual(t, b.LLM.Stats().Calls, jobs+1+2)
}
