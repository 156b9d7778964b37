//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// processFaults are those of our own processes: killed, stopped or frozen at
// each step of a job. F02, a fault of the network, is among those of Redis.
func processFaults() []fault {
	return slices.Concat(bridgeFaults(), stopFaults(), callFaults(), bookFaults(), codeFaults())
}

// bridgeFaults strike between the stream and the run.
func bridgeFaults() []fault {
	return []fault{
		{
			id: "F01", name: "bridge killed after it read entries, before it started anything; another takes over",
			run: func(w *world) {
				w.workers()
				jobs := w.load(16)
				w.bridgeDies(failing("read:3:kill"))
				require.Empty(w.T, w.allRuns(), "nothing was started yet")
				require.NotZero(w.T, w.inHand(), "entries were read")
				peer := w.bridge(nil)
				w.heal()
				w.await(jobs...)
				require.True(w.T, peer.said(tookOver))
			},
		},
		{
			id: "F01a", name: "as F01, and the same consumer comes back: it reads its own pending entries",
			run: func(w *world) {
				w.workers()
				jobs := w.load(16)
				name := map[string]string{"CONSUMER_NAME": "bridge-1"}
				w.bridgeDies(name, failing("read:3:kill"))
				require.Empty(w.T, w.allRuns(), "nothing was started yet")
				require.NotZero(w.T, w.inHand(), "entries were read")
				back := w.bridge(name)
				w.heal()
				w.await(jobs...)
				require.False(w.T, back.said(tookOver))
			},
		},
		{
			id: "F01b", name: "bridge killed before it decodes; the one that takes over is killed when it has claimed",
			run: func(w *world) {
				w.workers()
				jobs := w.load(16)
				w.bridgeDies(failing("decode:3:kill"))
				require.Empty(w.T, w.allRuns(), "nothing was started yet")
				require.NotZero(w.T, w.inHand(), "entries were read")
				w.bridgeDies(failing("claimed:2:kill"))
				w.bridge(nil)
				w.heal()
				w.await(jobs...)
			},
		},
		{
			id: "F03", name: "bridge killed with StartWorkflow sent and unanswered",
			run: func(w *world) { w.bridgeDiesStarting("start_sent:3:kill") },
		},
		{
			id: "F03a", name: "as F03, a process that does everything: it gets the first workflow task with the reply",
			run: func(w *world) { w.allDiesStarting("start_sent:3:kill") },
		},
		{
			id: "F03b", name: "as F03a, the reply is lost and the process lives: its next try gets the same task",
			run: func(w *world) {
				w.launchReady(failing("start_sent:3:error"), "run")
				jobs := w.load(16)
				w.await(jobs...)
				w.heal()
				for _, j := range jobs {
					for _, e := range w.history(j) {
						require.NotEqual(w.T, enumspb.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT, e.GetEventType(), j.key())
					}
				}
			},
		},
		{
			id: "F04", name: "bridge killed after it started runs",
			run: func(w *world) { w.bridgeDiesStarting("started:3:kill") },
		},
		{
			id: "F04a", name: "as F04, a process that does everything",
			run: func(w *world) { w.allDiesStarting("started:3:kill") },
		},
		{
			id: "F05", name: "one of two bridges killed under load",
			// Three quarters of the load are still to be done when the fault is over.
			drains: outage(30*time.Minute, time.Minute),
			// As many at a time as the server with its database of one file can take:
			// beats that come late would cost calls.
			setup: setup{env: map[string]string{"BRIDGE_MAX_IN_FLIGHT": "16"}},
			run: func(w *world) {
				n := 10_000
				if shared.short {
					n = 200
				}
				w.workers()
				victim, survivor := w.launch(w.bridgeRedis, nil, "bridge"), w.launch(w.bridgeRedis, nil, "bridge")
				w.Ready(victim.Executor, survivor.Executor)
				w.load(n / 4)
				w.WaitFor(w.patience(), "a quarter of the jobs is done", func(ctx context.Context) error {
					return w.reached(ctx, n/4)
				})
				// These run all the time: taking them over must not start them again.
				const long = 8
				for i := range long {
					w.submit(roles[i%len(roles)], "!hang")
				}
				w.calling(long)
				w.load(n - n/4)
				w.WaitFor(w.patience(), "more jobs are done", func(ctx context.Context) error {
					return w.reached(ctx, n/4+n/100)
				})
				victim.kill()
				w.heal()
				survivor.logs(tookOver)
				w.LLM.Release()
			},
		},
		{
			id: "F06", name: "two bridges with one consumer name",
			run: func(w *world) {
				w.workers()
				name := map[string]string{"CONSUMER_NAME": "bridge-1"}
				one, two := w.launch(w.bridgeRedis, name, "bridge"), w.launch(w.bridgeRedis, name, "bridge")
				w.Ready(one.Executor, two.Executor)
				w.load(40)
				one.logs("two bridges share a consumer name")
				two.logs("two bridges share a consumer name")
				require.NotZero(w.T, w.counted(one, "executor_bridge_errors_total", `kind="consumer_shared"`))
				w.load(40)
				w.heal()
			},
		},
		{
			id: "F06a", name: "one of two bridges with one consumer name killed after it read; the other hides its death",
			run: func(w *world) {
				w.workers()
				// What the dead one had read is pending for a consumer that lives and
				// knows nothing of it. Only the idle time of the entries tells.
				env := map[string]string{"CONSUMER_NAME": "bridge-1", "CLAIM_MIN_IDLE": "5s"}
				w.bridge(env)
				maps.Copy(env, failing("read:10:kill"))
				victim := w.bridge(env)
				w.load(100)
				victim.died()
				w.heal()
			},
		},
		{
			id: "F07", name: "a jobId sent again before, during and after its job",
			run: func(w *world) {
				w.workers()
				w.LLM.Script(map[string]any{"hang": true})
				before := w.submit("agent", "")
				w.resubmit(before)
				b := w.bridge(nil)
				during := w.submit("manager", "")
				w.calling(2)
				w.resubmit(during)
				w.Wait("duplicates are acknowledged while their jobs run", func(context.Context) error {
					if n := w.counted(b, duplicates, `kind="running"`); n != 2 || w.inHand() != 2 {
						return fmt.Errorf("%v duplicates, %d pending", n, w.inHand())
					}
					return nil
				})
				w.LLM.Script(map[string]any{"hang": false})
				w.LLM.Release()
				w.await(before, during)

				// After: a completed one is answered again, a failed one is tried again.
				before.updates = 2
				w.resubmit(before)
				failed := w.submit("chat", "!fail 400 x1")
				w.await(before, failed)
				require.EqualValues(w.T, 1, w.counted(b, duplicates, `kind="answer"`))
				w.Settled("chat")
				require.Equal(w.T, "failed", w.Row(failed.role, failed.id)["status"])
				failed.updates, failed.runs, failed.calls = 2, 2, 2
				w.resubmit(failed)
				w.heal()
			},
		},
		{
			id: "F08", name: "one jobId in two streams",
			run: func(w *world) {
				w.system()
				jobs := make([]*jobRecord, 0, len(roles))
				for _, role := range roles {
					j := w.draft(role, "")
					w.rename(j, "the-same")
					require.NoError(w.T, w.add(w.T.Context(), j))
					jobs = append(jobs, j)
				}
				w.await(jobs...)
				require.Len(w.T, w.allRuns(), len(roles))
				w.heal()
			},
		},
		{
			id: "F15a", name: "bridge killed at each step at which it closes books itself: rejected entries, repeated answers",
			run: func(w *world) {
				w.workers()
				name := map[string]string{"CONSUMER_NAME": "bridge-1"} // comes back at once each time
				first := w.bridge(name)
				asked := w.submit("agent", "")
				w.await(asked)
				w.Settled("agent")
				first.kill()

				asked.updates = 2
				w.resubmit(asked)
				w.bridgeDies(name, failing("published:1:kill"))
				w.bridgeDies(name, failing("acked:1:kill"))

				poison := []string{"userId", "u1", "connectionId", "c1"} // no task
				rejected := []string{w.Submit("agent", poison...)}
				w.reject("agent", rejected[0])
				for _, point := range []string{"persisted", "published", "dead_lettered", "acked"} {
					w.bridgeDies(name, failing(point+":1:kill"))
				}
				rejected = append(rejected, w.Submit("agent", poison...))
				w.reject("agent", rejected[1])
				w.bridgeDies(name, failing("settled:1:kill"))
				w.bridge(name)
				w.heal()
				w.Settled("agent")

				letters := w.DeadLetters("agent")
				require.Len(w.T, letters, len(rejected))
				for i, id := range rejected {
					require.Equal(w.T, id, letters[i].Values["original_id"])
					require.Equal(w.T, "rejected", w.Row("agent", "entry:"+id)["status"])
					require.Equal(w.T, letters[i].ID, w.Row("agent", "entry:"+id)["dead_id"])
				}
				w.await(asked)
				all, err := w.updates(w.T.Context())
				require.NoError(w.T, err)
				require.Len(w.T, all, 2+len(rejected), "each was told once")
			},
		},
	}
}

const (
	tookOver   = "took over entries of a consumer that is gone"
	duplicates = "executor_entries_duplicate_total"
)

// workers starts the usual processes without a bridge.
func (w *world) workers() system {
	w.T.Helper()
	s := system{
		workflows: w.launch(w.workerRedis, nil, "worker", "--queues", "workflows"),
		roles:     w.launch(w.workerRedis, nil, "worker", "--queues", roleQueues),
	}
	w.Ready(s.workflows.Executor, s.roles.Executor)
	return s
}

// bridgeDies runs a bridge until its failure point kills it. Entries that were
// in the streams before are read in whole batches.
func (w *world) bridgeDies(settings ...map[string]string) {
	w.T.Helper()
	env := map[string]string{}
	for _, s := range settings {
		maps.Copy(env, s)
	}
	w.launch(w.bridgeRedis, env, "bridge").died()
}

// bridgeDiesStarting kills a bridge while it starts runs. Their calls outlive it,
// and a second bridge must find the runs that exist.
func (w *world) bridgeDiesStarting(point string) {
	w.T.Helper()
	w.workers()
	w.LLM.Script(map[string]any{"hang": true})
	jobs := w.load(16)
	w.bridgeDies(failing(point))
	peer := w.bridge(nil)
	w.heal()
	peer.logs(tookOver)
	w.calling(len(jobs))
	require.EqualValues(w.T, len(jobs), w.inHand(), "an entry is pending until its run acknowledges it")
	w.LLM.Script(map[string]any{"hang": false})
	w.LLM.Release()
}

// allDiesStarting kills a process that does everything while it starts runs. The
// workflow tasks that die with it come again, and so do the calls.
func (w *world) allDiesStarting(point string) {
	w.T.Helper()
	victim := w.launchReady(failing(point), "run") // its workers run: all starts are eager
	jobs := w.load(16)
	victim.died()
	hit(jobs...)
	w.launchReady(nil, "run")
	w.heal()
	w.await(jobs...)
	eager := 0
	for _, j := range jobs {
		if w.history(j)[0].GetWorkflowExecutionStartedEventAttributes().GetEagerExecutionAccepted() {
			eager++
		}
	}
	require.GreaterOrEqual(w.T, eager, 3)
}

// resubmit adds another entry for a job.
func (w *world) resubmit(j *jobRecord) {
	w.T.Helper()
	require.NoError(w.T, w.add(w.T.Context(), j))
}

// rename gives a job that was not submitted yet another jobId.
func (w *world) rename(j *jobRecord, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	j.id = id
}

// inHand is the number of entries that were read and not acknowledged.
func (w *world) inHand() int64 {
	w.T.Helper()
	var n int64
	for _, role := range roles {
		groups, err := w.Redis.XInfoGroups(w.T.Context(), "jobs:"+role).Result()
		require.NoError(w.T, err)
		for _, g := range groups {
			n += g.Pending
		}
	}
	return n
}

// reached returns an error while there are fewer updates.
func (w *world) reached(ctx context.Context, n int) error {
	there, err := w.Redis.XLen(ctx, harness.Updates).Result()
	if err == nil && there < int64(n) {
		err = fmt.Errorf("%d updates", there)
	}
	return err
}

// allRuns are the workflow ids of all runs.
func (w *world) allRuns() []string {
	w.T.Helper()
	found, err := w.runs(w.T.Context())
	require.NoError(w.T, err)
	ids := make([]string, 0, len(found))
	for _, r := range found {
		ids = append(ids, r.GetExecution().GetWorkflowId())
	}
	return ids
}

// signal sends a signal to the process.
func (p *process) signal(s syscall.Signal) {
	p.w.T.Helper()
	require.NoError(p.w.T, p.Signal(s))
}

// logs waits until the process has written a text to its log.
func (p *process) logs(text string) {
	p.w.T.Helper()
	p.w.Wait(fmt.Sprintf("%s logs %q", p.Name(), text), func(context.Context) error {
		if !p.said(text) {
			return errors.New("not yet")
		}
		return nil
	})
}

// said reports whether the process has written a text to its log.
func (p *process) said(text string) bool { return strings.Contains(p.Log(), text) }

// exits waits until the process has ended by itself, which it must do well, and
// returns how long that took.
func (p *process) exits() time.Duration {
	p.w.T.Helper()
	p.gone = true
	began := time.Now()
	ctx, cancel := context.WithTimeout(p.w.T.Context(), harness.Patience)
	defer cancel()
	code, err := p.ExitCode(ctx)
	require.NoError(p.w.T, err)
	require.Zero(p.w.T, code, "exit code of %s:\n%s", p.Name(), p.LogTail(30))
	return time.Since(began)
}
