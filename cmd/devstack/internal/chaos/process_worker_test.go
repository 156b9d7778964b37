//go:build chaos

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// Figures the executor promises.
const (
	idleStop  = 3 * time.Second  // from SIGTERM to the end of a process that has nothing to do
	handOn    = 3 * time.Second  // from the end of the drain until another worker calls
	elsewhere = 10 * time.Second // from a worker's death until another worker calls
)

// stopFaults are SIGTERM.
func stopFaults() []fault {
	return []fault{
		{
			id: "F09", name: "SIGTERM in the middle of LLM calls that end before the drain",
			run: func(w *world) {
				w.launchWithoutRoles()
				x := w.worker(roleQueues, map[string]string{"DRAIN_TIMEOUT": "60s"})
				w.LLM.Script(map[string]any{"hang": true})
				jobs := w.load(4)
				w.calling(4)
				x.signal(syscall.SIGTERM)
				x.logs(`"stopping"`)
				w.LLM.Script(map[string]any{"hang": false})
				w.LLM.Release()
				x.exits()
				w.await(jobs...)
				x.again()
				w.heal()
			},
		},
		{
			id: "F09a", name: "SIGTERM with nothing to do",
			run: func(w *world) {
				s := w.system()
				all := w.launch(w.bridgeRedis, nil, "run")
				w.Ready(all.Executor)
				w.await(w.load(4)...)
				for _, p := range []*process{s.bridge, s.workflows, s.roles, all} {
					p.signal(syscall.SIGTERM)
					took := p.exits()
					w.remark("%s: %.1f s", strings.Join(p.args, " "), took.Seconds())
					require.Less(w.T, took, idleStop)
				}
				w.system()
				w.heal()
				w.load(4)
			},
		},
		{
			id: "F10", name: "SIGTERM in the middle of LLM calls that last longer than the drain",
			run: func(w *world) { w.handsOn(2 * time.Second) },
		},
		{
			id: "F10a", name: "as F10, without time to drain",
			run: func(w *world) { w.handsOn(0) },
		},
	}
}

// handsOn stops a worker in the middle of calls that do not end.
func (w *world) handsOn(drain time.Duration) {
	w.T.Helper()
	w.launchWithoutRoles()
	x := w.worker(roleQueues, map[string]string{"DRAIN_TIMEOUT": drain.String()})
	w.LLM.Script(map[string]any{"hang": true})
	jobs := w.load(4)
	w.calling(4)
	w.worker(roleQueues, nil)
	x.signal(syscall.SIGTERM)
	took := w.calledAgain(jobs...)
	x.exits()
	w.remark("called elsewhere %.1f s after the signal, drain %s", took.Seconds(), drain)
	require.Less(w.T, took, drain+handOn)
	hit(jobs...)
	w.LLM.Script(map[string]any{"hang": false})
	w.LLM.Release()
	w.heal()
}

// launchWithoutRoles starts the usual processes but for the one that calls the
// LLM, which a case wants to start itself.
func (w *world) launchWithoutRoles() system {
	w.T.Helper()
	s := system{
		bridge:    w.launch(w.bridgeRedis, nil, "bridge"),
		workflows: w.launch(w.workerRedis, nil, "worker", "--queues", "workflows"),
	}
	w.Ready(s.bridge.Executor, s.workflows.Executor)
	return s
}

// calledAgain waits until the LLM was called a second time for each job, and
// returns how long that took.
func (w *world) calledAgain(jobs ...*jobRecord) time.Duration {
	w.T.Helper()
	began := time.Now()
	w.LLM.Await("second calls", func(s harness.Stats) bool {
		for _, j := range jobs {
			if s.ByPrompt[j.asked()] < 2 {
				return false
			}
		}
		return true
	})
	return time.Since(began)
}

// callFaults strike the worker that calls the LLM.
func callFaults() []fault {
	return []fault{
		{
			id: "F11", name: "kill -9 of the worker in the middle of LLM calls",
			run: func(w *world) {
				w.launchWithoutRoles()
				x := w.worker(roleQueues, nil)
				w.killMidCall(x)
			},
		},
		{
			id: "F11a", name: "kill -9 of a process that does everything, in the middle of LLM calls",
			run: func(w *world) {
				x := w.launch(w.bridgeRedis, nil, "run")
				w.Ready(x.Executor)
				w.killMidCall(x)
			},
		},
		{
			id: "F12", name: "worker killed with the LLM's answer in hand, before it is kept",
			run: func(w *world) {
				w.launchWithoutRoles()
				x := w.worker(roleQueues, failing("llm_done:1:kill"))
				j := w.submit("agent", "")
				x.died()
				hit(j)
				x.again()
				w.heal()
				w.load(4)
			},
		},
		{
			id: "F12a", name: "workers killed before the call, with the request sent, and with the answer kept",
			run: func(w *world) {
				w.launchWithoutRoles()
				struck := map[string]*process{}
				for role, point := range map[string]string{"manager": "leased", "inspector": "llm_sent", "agent": "answer_kept"} {
					struck[role] = w.launch(w.workerRedis, failing(point+":1:kill"), "worker", "--queues", role)
				}
				w.worker("chat", nil)
				for _, p := range struck {
					w.Ready(p.Executor)
				}
				for role, p := range struck {
					j := w.submit(role, "")
					if role == "inspector" {
						hit(j) // the others' calls had not begun or were over
					}
					p.died()
				}
				for _, p := range struck {
					p.again()
				}
				w.heal()
				w.load(4)
			},
		},
		{
			id: "F12b", name: "worker killed with the only permit of MAX_TOTAL",
			setup: setup{env: map[string]string{"MAX_TOTAL": "1"}},
			run: func(w *world) {
				w.launchWithoutRoles()
				x := w.worker("agent", failing("leased:1:kill"))
				j := w.submit("agent", "")
				x.died()
				w.worker(roleQueues, nil)
				w.heal()
				w.await(append(w.load(8), j)...)
				require.Equal(w.T, 1, w.LLM.Stats().MaxRunning)
			},
		},
		{
			id: "F16", name: "worker frozen in the middle of a call; another finishes the job; the first wakes up with an answer", first: true,
			run: func(w *world) {
				w.launchWithoutRoles()
				zombie := w.worker("agent", nil)
				j := w.draft("agent", "")
				w.LLM.Script(map[string]any{"rules": []map[string]any{
					{"contains": j.prompt, "times": 1, "hang": true, "answer": harness.Canary + "-late"},
					{"contains": j.prompt, "answer": harness.Canary + "-first"},
				}})
				require.NoError(w.T, w.add(w.T.Context(), j))
				w.calling(1)
				zombie.signal(syscall.SIGSTOP)
				frozen := time.Now()
				hit(j)
				w.worker(roleQueues, nil)
				w.await(j)
				w.LLM.Release() // its answer waits for it
				w.pass(outage(time.Minute, 12*time.Second) - time.Since(frozen))
				w.closed(j)
				before := w.Row(j.role, j.id)
				zombie.signal(syscall.SIGCONT)
				w.heal()
				zombie.logs(reportRefused)
				w.Wait("the first worker gives up", func(context.Context) error {
					if n := w.counted(zombie, "executor_jobs_running"); n != 0 {
						return fmt.Errorf("%v jobs run", n)
					}
					return nil
				})
				w.load(8)
				w.await(w.list()...)
				require.Equal(w.T, before, w.Row(j.role, j.id))
				told, err := w.UpdatesOf(w.T.Context(), j.id)
				require.NoError(w.T, err)
				require.Len(w.T, told, 1)
				require.Equal(w.T, harness.Canary+"-first", told[0]["Payload"])
			},
		},
	}
}

// killMidCall kills a worker in the middle of calls, while another process that
// can do everything is there.
func (w *world) killMidCall(x *process) {
	w.T.Helper()
	w.LLM.Script(map[string]any{"hang": true})
	jobs := w.load(4)
	w.calling(4)
	other := w.launch(w.bridgeRedis, nil, "run")
	w.Ready(other.Executor)
	x.kill()
	took := w.calledAgain(jobs...)
	w.remark("called elsewhere %.1f s after the kill", took.Seconds())
	require.Less(w.T, took, elsewhere)
	hit(jobs...)
	w.LLM.Script(map[string]any{"hang": false})
	w.LLM.Release()
	w.heal()
}

// bookFaults strike the worker that closes the books of a job.
func bookFaults() []fault {
	return []fault{
		{
			id: "F12c", name: "worker killed with the row written and not committed",
			run: func(w *world) { w.diesClosing("persist_tx:3:kill", "", "completed") },
		},
		{
			id: "F13", name: "worker killed after the row was committed",
			run: func(w *world) { w.diesClosing("persisted:3:kill", "", "completed") },
		},
		{
			id: "F14", name: "worker killed after publishing, before it reports",
			run: func(w *world) { w.diesClosing("published:3:kill", "", "completed") },
		},
		{
			id: "F14a", name: "worker killed after it wrote a dead letter, before the row says so",
			run: func(w *world) { w.diesClosing("dead_lettered:3:kill", "!fail 400", "failed") },
		},
		{
			id: "F15", name: "worker killed after it acknowledged",
			run: func(w *world) { w.diesClosing("acked:3:kill", "", "completed") },
		},
		{
			id: "F16a", name: "worker frozen between row and update; another closes the books; the first wakes up", first: true,
			run: func(w *world) { w.freezesClosing("persisted") },
		},
		{
			id: "F16b", name: "worker frozen between update and acknowledgement; another closes the books; the first wakes up", first: true,
			run: func(w *world) { w.freezesClosing("published") },
		},
		{
			id: "F16c", name: "worker frozen with the row written and not committed, which blocks an SQLite file", first: true,
			run: func(w *world) {
				s := w.system()
				s.workflows.kill()
				zombie := w.worker("workflows", failing("persist_tx:1:sleep=1900ms"))
				j := w.submit("agent", "")
				zombie.struck("persist_tx", 1, "sleep")
				zombie.signal(syscall.SIGSTOP)
				frozen := time.Now()
				require.Nil(w.T, w.Row(j.role, j.id), "it was frozen too late")
				w.worker("workflows", nil)
				w.load(4)
				w.pass(outage(time.Minute, 15*time.Second) - time.Since(frozen))
				zombie.signal(syscall.SIGCONT)
				w.heal()
				zombie.logs(reportRefused)
			},
		},
	}
}

// reportRefused is what the SDK logs when the server does not want a worker's
// report any more.
const reportRefused = "Task processing failed with error"

// diesClosing kills the workflows worker at one of the final steps of a job.
func (w *world) diesClosing(point, directive, status string) {
	w.T.Helper()
	s := system{
		bridge:    w.launch(w.bridgeRedis, nil, "bridge"),
		roles:     w.launch(w.workerRedis, nil, "worker", "--queues", roleQueues),
		workflows: w.launch(w.workerRedis, failing(point), "worker", "--queues", "workflows"),
	}
	w.Ready(s.bridge.Executor, s.roles.Executor, s.workflows.Executor)
	for i := range 8 {
		w.submit(roles[i%len(roles)], directive).status = status
	}
	s.workflows.died()
	s.workflows.again()
	w.heal()
}

// freezesClosing freezes the workflows worker at one of the final steps.
func (w *world) freezesClosing(point string) {
	w.T.Helper()
	s := w.system()
	s.workflows.kill()
	zombie := w.worker("workflows", failing(point+":1:sleep=1900ms"))
	j := w.submit("agent", "")
	zombie.struck(point, 1, "sleep")
	zombie.signal(syscall.SIGSTOP)
	frozen := time.Now()
	require.EqualValues(w.T, 1, w.inHand(), "it was frozen too late")
	w.worker("workflows", nil)
	w.closed(j)
	before := w.Row(j.role, j.id)
	w.pass(outage(time.Minute, 12*time.Second) - time.Since(frozen))
	zombie.signal(syscall.SIGCONT)
	w.heal()
	zombie.logs(reportRefused)
	w.await(w.load(8)...)
	require.Equal(w.T, before, w.Row(j.role, j.id))
}

// closed waits until the books of jobs are closed and so are their runs.
func (w *world) closed(jobs ...*jobRecord) {
	w.T.Helper()
	w.await(jobs...)
	for _, j := range jobs {
		w.Run(j.workflowID(), enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED.String())
	}
}

// struck waits until the process was hit at its failure point, and lives.
func (p *process) struck(point string, pass int, action string) {
	p.w.T.Helper()
	p.logs(fmt.Sprintf("failpoint %s pass %d: %s\n", point, pass, action))
}

// codeFaults are mistakes in our own program, or inputs that it cannot survive.
func codeFaults() []fault {
	const deaths = 5
	return []fault{
		{
			id: "F17", name: "job that kills the process of its worker every time", first: true,
			run: func(w *world) {
				w.launchWithoutRoles()
				w.worker("manager,inspector,chat", nil)
				poison := w.submit("agent", "")
				poison.status, poison.calls = "failed", deaths
				// A worker can also die, as far as the server knows, with a task that it has
				// never seen, so that the last of them may be spared.
				kills := 0
				var spared *process
				for spared == nil {
					x := w.launch(w.workerRedis, failing("llm_sent:1:kill"), "worker", "--queues", "agent")
					if w.survived(x, poison) {
						spared = x
						continue
					}
					kills++
					w.await(w.submit("manager", ""), w.submit("chat", ""))
				}
				w.remark("%d processes killed", kills)
				require.LessOrEqual(w.T, kills, deaths)
				require.GreaterOrEqual(w.T, kills, deaths-2)
				w.Settled("agent")
				row := w.Row(poison.role, poison.id)
				require.Equal(w.T, "worker_died", row["error_code"])
				require.EqualValues(w.T, deaths, row["attempts"])
				require.Len(w.T, w.DeadLetters("agent"), 1)
				require.EqualValues(w.T, 1, w.counted(spared, "executor_activity_errors_total", `kind="worker_died"`))
				spared.kill()
				spared.again()
				w.heal()
				w.load(4)
			},
		},
		{
			id: "F18", name: "panic in every attempt of a role, and one in a final step",
			run: func(w *world) {
				s := system{
					bridge:    w.launch(w.bridgeRedis, nil, "bridge"),
					roles:     w.launch(w.workerRedis, nil, "worker", "--queues", "manager,inspector,chat"),
					workflows: w.launch(w.workerRedis, failing("persisted:2:panic"), "worker", "--queues", "workflows"),
				}
				x := w.launch(w.workerRedis, failing("leased:1+:panic"), "worker", "--queues", "agent")
				w.Ready(s.bridge.Executor, s.roles.Executor, s.workflows.Executor, x.Executor)
				poison := []*jobRecord{w.submit("agent", ""), w.submit("agent", "")}
				for _, j := range poison {
					j.status, j.calls = "failed", 0
				}
				w.await(w.submit("manager", ""), w.submit("chat", ""), w.submit("inspector", ""))
				w.Settled("agent")
				s.workflows.struck("persisted", 2, "panic")
				x.struck("leased", 3*len(poison), "panic")
				for _, j := range poison {
					row := w.Row(j.role, j.id)
					require.Equal(w.T, "executor_panic", row["error_code"])
					require.EqualValues(w.T, 3, row["attempts"])
					told, err := w.UpdatesOf(w.T.Context(), j.id)
					require.NoError(w.T, err)
					require.Equal(w.T, map[string]string{"code": "executor_panic", "message": fmt.Sprint(row["error_message"])},
						harness.ErrorPayload(w.T, told[0]))
				}
				require.Len(w.T, w.DeadLetters("agent"), len(poison))
				for _, p := range []*process{x, s.workflows} {
					require.False(w.T, p.said("injected error"), "the value of a panic may hold content")
					require.False(w.T, p.said("goroutine "), "and so may its stack")
				}
				w.heal()
			},
		},
		{
			id: "F19", name: "deployment whose workflow code does not fit the open runs", long: true,
			run: func(w *world) {
				s := w.system()
				w.LLM.Script(map[string]any{"hang": true})
				jobs := w.load(4)
				w.calling(4)
				s.workflows.signal(syscall.SIGTERM)
				s.workflows.exits()

				misfits := w.misfit()
				out, err := misfits("test", "-run", "^TestReplay$", "./workflows")
				require.Error(w.T, err, "the replay of recorded histories must find the mistake before it is deployed")
				require.Contains(w.T, out, "TMPRL1100")
				right := w.Suite.Binary
				w.Suite.Binary = filepath.Join(w.Dir, "executor-misfit")
				// As harness.ExecutorBinary builds it, so that all but one package is there.
				out, err = misfits("build", "-race", "-buildvcs=false", "-tags", "failpoints", "-o", w.Suite.Binary, "./cmd/executor")
				require.NoError(w.T, err, out)
				misfit := w.worker("workflows", nil)
				w.Suite.Binary = right
				w.LLM.Script(map[string]any{"hang": false})
				w.LLM.Release()
				for _, j := range jobs {
					w.Wait("a workflow task of "+j.workflowID()+" fails", func(ctx context.Context) error { return w.blocked(ctx, j) })
				}
				w.pass(20 * time.Second)
				require.NotZero(w.T, w.counted(misfit, "temporal_workflow_task_execution_failed_total", `failure_reason="NonDeterminismError"`), "something to alert on")
				require.EqualValues(w.T, len(jobs), w.inHand(), "nothing is acknowledged")
				require.Empty(w.T, w.Rows("true"))
				require.Error(w.T, w.reached(w.T.Context(), 1))

				misfit.kill()
				s.workflows.again()
				w.heal()
				w.await(jobs...)
				w.load(4)
			},
		},
	}
}

// survived waits until an armed process died, or the job ended without it.
func (w *world) survived(x *process, j *jobRecord) bool {
	w.T.Helper()
	ended := false
	w.Wait("death of "+x.Name()+" or the end of "+j.key(), func(context.Context) error {
		select {
		case <-x.Done():
			x.died()
			return nil
		default:
		}
		if ended = w.Row(j.role, j.id) != nil; !ended {
			return errors.New("neither")
		}
		return nil
	})
	return ended
}

// misfit changes the workflow so that it begins with a timer that the histories of
// open runs do not have, and returns a way to run the go command on that source.
func (w *world) misfit() func(command string, args ...string) (output string, err error) {
	w.T.Helper()
	root, err := harness.RepositoryRoot()
	require.NoError(w.T, err)
	source := filepath.Join(root, "workflows", "job.go")
	text, err := os.ReadFile(source)
	require.NoError(w.T, err)
	const place = "\toutcome, cause := r.call(ctx, override)\n"
	require.Equal(w.T, 1, strings.Count(string(text), place), "the place where the timer goes")
	changed := filepath.Join(w.Dir, "job.go")
	require.NoError(w.T, os.WriteFile(changed,
		[]byte(strings.Replace(string(text), place, "\t_ = workflow.Sleep(ctx, time.Millisecond)\n"+place, 1)), 0o600))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{source: changed}})
	require.NoError(w.T, err)
	overlayFile := filepath.Join(w.Dir, "overlay.json")
	require.NoError(w.T, os.WriteFile(overlayFile, overlay, 0o600))
	return func(command string, args ...string) (string, error) {
		cmd := exec.CommandContext(w.T.Context(), "go", append([]string{command, "-overlay", overlayFile}, args...)...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// blocked returns an error unless a workflow task of the job's run failed
// because its code does not fit its history.
func (w *world) blocked(ctx context.Context, j *jobRecord) error {
	events := w.Temporal.GetWorkflowHistory(ctx, j.workflowID(), "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		e, err := events.Next()
		if err != nil {
			return err
		}
		failed := e.GetWorkflowTaskFailedEventAttributes()
		if failed.GetCause() == enumspb.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR {
			return nil
		}
	}
	return fmt.Errorf("its history shows no such failure")
}
