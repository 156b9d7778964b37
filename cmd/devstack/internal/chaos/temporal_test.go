//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	batchpb "go.temporal.io/api/batch/v1"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/temporald"
)

// temporalFaults are those of the workflow service and of the way to it.
func temporalFaults() []fault {
	return slices.Concat(temporalOutages(), temporalOperators())
}

// temporalOutages: the workflow service is away, slow, wrong or has forgotten.
func temporalOutages() []fault {
	const inFlight = 3
	return []fault{
		{
			id: "F20", name: "Temporal away at the start, and for 5 minutes",
			setup: setup{env: map[string]string{"BRIDGE_MAX_IN_FLIGHT": fmt.Sprint(inFlight)}},
			run: func(w *world) {
				w.toTemporal.cut()
				s := w.launchSystem()
				w.load(40)
				w.pendingIs(inFlight)
				for _, p := range []*process{s.bridge, s.workflows, s.roles} {
					w.unready(p, "emporal")
				}
				w.pass(outage(5*time.Minute, 10*time.Second))
				w.pendingIs(inFlight) // and not one more than the cap
				require.Zero(w.T, w.LLM.Stats().Calls)
				w.toTemporal.join()
				w.heal()
			},
		},
		{
			id: "F21", name: "Temporal cut for 5 s around the completion of LLM calls",
			run: func(w *world) { cutAroundCompletion(w, 5*time.Second) },
		},
		{
			id: "F22", name: "Temporal cut for 20 s around the completion of LLM calls",
			run: func(w *world) { cutAroundCompletion(w, 20*time.Second) },
			after: func(w *world) {
				// A report may take ten seconds in all: these were lost.
				for _, j := range w.list() {
					require.GreaterOrEqual(w.T, w.attempts(j), int32(2), "%s was not reported in vain", j.key())
				}
				w.remark("every report was lost, every answer was found again")
			},
		},
		{
			id: "F23", name: "kill -9 of Temporal, started again on the same database",
			run: func(w *world) {
				w.system()
				w.await(w.load(6)...)
				var answered []*jobRecord
				for i := range 8 {
					answered = append(answered, w.submit(roles[i%len(roles)], "!hang"))
				}
				w.calling(len(answered))
				w.load(6) // in all stages when it dies
				w.server.Kill()
				w.answer()
				w.load(6)
				w.server.Restart(w.T)
				w.heal()
			},
		},
		{
			id: "F24", name: "Temporal loses all its state (kill -9, in memory)",
			setup: setup{forgetful: true},
			run: func(w *world) {
				s := w.system()
				done := w.load(5)
				w.await(done...)

				// Jobs whose answer arrives while nobody can be told of it.
				var answered []*jobRecord
				for i := range 5 {
					answered = append(answered, w.submit(roles[i%len(roles)], "!hang"))
				}
				w.calling(len(answered))

				// Jobs whose row is written, but which are neither told nor acknowledged.
				s.workflows.kill()
				broken := w.worker("workflows", failing("persisted:1+:error"))
				written := w.load(5)
				w.Wait("rows", func(ctx context.Context) error {
					rows, err := w.statuses(ctx)
					for _, j := range written {
						if rows[j.key()] != j.status {
							err = errors.Join(err, fmt.Errorf("%s has no row", j.key()))
						}
					}
					return err
				})

				// Jobs in the middle of their call.
				var calling []*jobRecord
				for i := range 5 {
					calling = append(calling, w.submit(roles[i%len(roles)], "!slow 60s x1"))
				}
				w.calling(len(answered) + len(calling))

				w.server.Kill()
				broken.kill()
				w.LLM.Release()
				w.LLM.Await("answers", func(s harness.Stats) bool { return s.Running == len(calling) })
				hit(calling...)
				for _, j := range slices.Concat(done, written) {
					j.runs = 0 // the new server never hears of them
				}
				w.server.Restart(w.T)
				broken.again()
				w.heal()
			},
			after: func(w *world) {
				runs, err := w.runs(w.T.Context())
				require.NoError(w.T, err)
				require.Len(w.T, runs, 10, "runs of the jobs without a row, and no others")
				w.remark("10 runs of 20 rebuilt: those without a row")
			},
		},
		{
			id: "F25", name: "Temporal refuses with RESOURCE_EXHAUSTED, then is slow (2 s)",
			setup: setup{temporalRPS: 5},
			run: func(w *world) {
				s := w.system()
				w.await(w.load(12)...)
				var refused float64
				for _, p := range []*process{s.bridge, s.workflows, s.roles} {
					for _, kind := range []string{"request", "long_request"} {
						refused += w.counted(p, "temporal_"+kind+"_resource_exhausted_total")
					}
				}
				require.Positive(w.T, refused, "the limit was never met")
				w.remark("%.0f requests refused", refused)
				w.server.Kill()
				w.server.Reconfigure(func(c *temporald.Config) { c.NamespaceRPS = 0 })
				w.server.Restart(w.T)
				w.toTemporal.toxic("latency", down, map[string]any{"latency": 2000})
				began := time.Now()
				w.await(w.load(8)...)
				require.Greater(w.T, time.Since(began), 4*time.Second, "the way to Temporal was not slow")
				w.toTemporal.heal()
				w.heal()
			},
		},
		{
			id: "F26", name: "the namespace does not exist",
			setup: setup{forgetful: true},
			run: func(w *world) {
				s := w.system()
				nowhere := map[string]string{"TEMPORAL_NAMESPACE": "nowhere"}
				w.launch(w.workerRedis, nowhere, "worker", "--queues", roleQueues).gaveUp("set TEMPORAL_NAMESPACE")
				// A bridge there takes entries that it cannot start. They are not lost.
				lost := w.launch(w.bridgeRedis, nowhere, "bridge")
				w.unready(lost, "TEMPORAL_NAMESPACE")
				jobs := w.load(12)
				w.Wait("an entry for the bridge in the wrong namespace", func(context.Context) error {
					if !strings.Contains(lost.Log(), "intake has to wait") {
						return errors.New("it got none yet")
					}
					return nil
				})
				lost.kill()
				w.await(jobs...)
				if shared.short {
					w.remark("the namespace is missing from the start; in the full run it vanishes as well, which workers bear for two minutes")
					w.heal()
					return
				}
				w.server.Kill()
				w.server.Reconfigure(func(c *temporald.Config) { c.Namespaces = []string{"other"} })
				w.server.Restart(w.T)
				for _, j := range w.list() {
					j.runs = 0
				}
				later := w.load(4)
				s.workflows.gaveUp("amespace")
				s.roles.gaveUp("amespace")
				w.unready(s.bridge, "amespace")
				w.server.Kill()
				w.server.Reconfigure(func(c *temporald.Config) { c.Namespaces = nil })
				w.server.Restart(w.T)
				s.workflows.again()
				s.roles.again()
				w.heal()
				w.await(later...)
			},
		},
	}
}

// cutAroundCompletion lets answers arrive while nobody can be told of them.
func cutAroundCompletion(w *world, d time.Duration) {
	w.system()
	jobs := make([]*jobRecord, 0, len(roles))
	for _, role := range roles {
		jobs = append(jobs, w.submit(role, "!hang"))
	}
	w.calling(len(jobs))
	w.toTemporal.cut()
	w.answer()
	w.pass(d)
	updates, err := w.updates(w.T.Context())
	require.NoError(w.T, err)
	require.Empty(w.T, updates, "the cut came too late")
	w.toTemporal.join()
	w.heal()
}

// answer lets the LLM answer what it was asked, and waits until it did.
func (w *world) answer() {
	w.T.Helper()
	w.LLM.Release()
	w.calling(0)
}

// temporalOperators: what people do to runs.
func temporalOperators() []fault {
	return []fault{
		{
			id: "F27", name: "an operator terminates a run; a run exceeds its time limit",
			run: func(w *world) {
				s := w.system()
				killed, timedOut := w.submit("agent", "!hang"), w.submit("manager", "!hang")
				w.calling(2)
				require.NoError(w.T, w.Temporal.TerminateWorkflow(w.T.Context(), killed.workflowID(), "", "chaos"))

				// Ours have no time limit. A person can give one to a copy, and the job has
				// no outcome yet if no bridge has seen the end of the first run.
				s.bridge.kill()
				require.NoError(w.T, w.Temporal.TerminateWorkflow(w.T.Context(), timedOut.workflowID(), "", "chaos"))
				w.copyRun(timedOut, 5*time.Second)
				timedOut.runs, timedOut.calls = 2, 2
				w.Run(timedOut.workflowID(), "TimedOut")
				killed.status, timedOut.status = "failed", "failed"
				s.bridge.again()
				w.heal()
			},
			after: func(w *world) {
				for i, code := range []string{"terminated", "timed_out"} {
					j := w.list()[i]
					require.Equal(w.T, code, w.Row(j.role, j.id)["error_code"])
					require.Equal(w.T, code, harness.ErrorPayload(w.T, w.Update(j.id, 1))["code"])
					dead := w.DeadLetters(j.role)
					require.Len(w.T, dead, 1)
					require.Equal(w.T, code, dead[0].Values["reason"])
					require.Equal(w.T, j.entries[0], dead[0].Values["original_id"])
				}
				w.calling(0) // a worker that hears of the end gives its call up
			},
		},
		{
			id: "F28", name: "an operator cancels runs",
			run: func(w *world) {
				w.system()
				for _, role := range roles {
					w.submit(role, "!hang").status = "canceled"
				}
				w.calling(len(roles))
				for _, j := range w.list() {
					require.NoError(w.T, w.Temporal.CancelWorkflow(w.T.Context(), j.workflowID(), ""))
				}
				w.heal()
			},
			after: func(w *world) {
				for _, j := range w.list() {
					w.Run(j.workflowID(), "Canceled")
					require.Equal(w.T, "canceled", harness.ErrorPayload(w.T, w.Update(j.id, 1))["code"])
					require.Empty(w.T, w.DeadLetters(j.role))
				}
				w.calling(0)
			},
		},
		{
			id: "F28a", name: "Temporal cut until heartbeats are lost; then an operator cancels the runs",
			run: func(w *world) {
				s := w.system()
				for _, role := range roles {
					w.submit(role, "!hang").status = "canceled"
				}
				w.calling(len(roles))
				w.toTemporal.cut()
				s.roles.logs("RecordActivityHeartbeat with error")
				w.toTemporal.join()
				for _, j := range w.list() {
					require.NoError(w.T, w.Temporal.CancelWorkflow(w.T.Context(), j.workflowID(), ""))
				}
				w.calling(0) // none is called again
				w.heal()
			},
		},
		{
			id: "F29", name: "failed runs are reset after the LLM healed, twice and in bulk",
			run: func(w *world) {
				w.system()
				var bulk []*jobRecord
				for range 6 {
					bulk = append(bulk, w.submit("agent", "!fail 400 x1"))
				}
				late := w.submit("manager", "!fail 400 x1")
				failed := append(slices.Clone(bulk), late)
				w.await(failed...)
				for _, j := range failed {
					w.Run(j.workflowID(), "Failed")
					require.Equal(w.T, "failed", w.Row(j.role, j.id)["status"])
				}
				w.LLM.Await("one call each", func(s harness.Stats) bool { return s.Calls == len(failed) })

				// To the last task: the failure is remembered, the LLM not asked.
				w.reset(late, -1)
				late.runs, late.updates = 2, 2
				w.await(late)
				w.Run(late.workflowID(), "Failed")
				require.Equal(w.T, "failed", w.Row(late.role, late.id)["status"])
				w.LLM.Await("no call", func(s harness.Stats) bool { return s.Calls == len(failed) })

				// To the first task: everything again.
				w.reset(late, 0)
				w.resetAll(`JobRole = "agent" AND ExecutionStatus = "Failed"`, len(bulk))
				late.runs, late.updates, late.calls = 3, 3, 2
				for _, j := range bulk {
					j.runs, j.updates, j.calls = 2, 2, 2
				}
				w.await(failed...)
				for _, j := range failed {
					w.Run(j.workflowID(), "Completed")
				}

				// The first runs are still called failed, so that a second click resets
				// what is healed. It must not be paid for again: calls stays at 2, and
				// updates too.
				w.resetAll(`JobRole = "agent" AND ExecutionStatus = "Failed"`, len(bulk))
				for _, j := range bulk {
					j.runs = 3
				}
				w.Visible(int64(2*len(bulk)), `JobRole = "agent" AND ExecutionStatus = "Completed"`)
				w.heal()
			},
			after: func(w *world) {
				for _, j := range w.list() {
					updates, err := w.UpdatesOf(w.T.Context(), j.id)
					require.NoError(w.T, err)
					require.Equal(w.T, "error", updates[0]["Type"])
					require.Equal(w.T, "result", updates[len(updates)-1]["Type"])
				}
				require.Equal(w.T, 14, w.LLM.Stats().Calls, "two for each job")
			},
		},
	}
}

// pendingIs waits until so many entries of each stream are pending.
func (w *world) pendingIs(n int64) {
	w.T.Helper()
	w.Wait(fmt.Sprintf("%d pending of each stream", n), func(ctx context.Context) error {
		for _, role := range roles {
			pending, err := w.Redis.XPending(ctx, "jobs:"+role, harness.Group).Result()
			if err != nil {
				return err
			}
			if pending.Count != n {
				return fmt.Errorf("jobs:%s: %d", role, pending.Count)
			}
		}
		return nil
	})
}

// unready waits until a process that is alive says that it is not ready, and
// why.
func (w *world) unready(p *process, why string) {
	w.T.Helper()
	w.Wait(p.Name()+" is not ready", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Health+"/readyz", http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(text), why) {
			return fmt.Errorf("%s: %s", resp.Status, text)
		}
		return nil
	})
}

// gaveUp waits until the process has ended by itself, with an error that says
// what is wrong.
func (p *process) gaveUp(why string) {
	p.w.T.Helper()
	p.gone = true
	// The SDK bears a missing namespace for two minutes.
	ctx, cancel := context.WithTimeout(p.w.T.Context(), 2*time.Minute+harness.Patience)
	defer cancel()
	code, err := p.ExitCode(ctx)
	require.NoError(p.w.T, err)
	require.Equal(p.w.T, 1, code, p.LogTail(20))
	require.Contains(p.w.T, p.LogTail(3), why)
}

// history of the latest run of a job.
func (w *world) history(j *jobRecord) []*historypb.HistoryEvent {
	w.T.Helper()
	events := w.Temporal.GetWorkflowHistory(w.T.Context(), j.workflowID(), "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	var all []*historypb.HistoryEvent
	for events.HasNext() {
		e, err := events.Next()
		require.NoError(w.T, err)
		all = append(all, e)
	}
	return all
}

// attempts is how often the job's role activity was begun in its latest run.
func (w *world) attempts(j *jobRecord) int32 {
	w.T.Helper()
	var most int32
	for _, e := range w.history(j) {
		most = max(most, e.GetActivityTaskStartedEventAttributes().GetAttempt())
	}
	return most
}

// reset resets the latest run of a job to the workflow task of that index; -1 is
// the last one.
func (w *world) reset(j *jobRecord, index int) {
	w.T.Helper()
	var tasks []int64
	for _, e := range w.history(j) {
		if e.GetEventType() == enumspb.EVENT_TYPE_WORKFLOW_TASK_COMPLETED {
			tasks = append(tasks, e.GetEventId())
		}
	}
	require.Greater(w.T, len(tasks), 1)
	if index < 0 {
		index += len(tasks)
	}
	_, err := w.Temporal.ResetWorkflowExecution(w.T.Context(), &workflowservice.ResetWorkflowExecutionRequest{
		Namespace:         temporald.DefaultNamespace,
		WorkflowExecution: &commonpb.WorkflowExecution{WorkflowId: j.workflowID(), RunId: w.Run(j.workflowID(), "Failed").GetExecution().GetRunId()},
		Reason:            "chaos", RequestId: uuid.NewString(), WorkflowTaskFinishEventId: tasks[index],
	})
	require.NoError(w.T, err)
}

// resetAll resets the n runs that a query finds to their first task, as the UI's
// bulk operation does, and waits until that is done.
func (w *world) resetAll(query string, n int) {
	w.T.Helper()
	w.Visible(int64(n), query)
	job := uuid.NewString()
	_, err := w.Temporal.WorkflowService().StartBatchOperation(w.T.Context(), &workflowservice.StartBatchOperationRequest{
		Namespace: temporald.DefaultNamespace, JobId: job, Reason: "chaos", VisibilityQuery: query,
		Operation: &workflowservice.StartBatchOperationRequest_ResetOperation{ResetOperation: &batchpb.BatchOperationReset{
			Options: &commonpb.ResetOptions{Target: &commonpb.ResetOptions_FirstWorkflowTask{FirstWorkflowTask: &emptypb.Empty{}}},
		}},
	})
	require.NoError(w.T, err)
	w.Wait("bulk reset", func(ctx context.Context) error {
		state, err := w.Temporal.WorkflowService().DescribeBatchOperation(ctx, &workflowservice.DescribeBatchOperationRequest{
			Namespace: temporald.DefaultNamespace, JobId: job,
		})
		if err != nil {
			return err
		}
		if state.GetCompleteOperationCount() != int64(n) {
			return fmt.Errorf("%s: %d of %d, %d failed", state.GetState(), state.GetCompleteOperationCount(), n, state.GetFailureOperationCount())
		}
		return nil
	})
}

// copyRun starts a copy of a job's latest run, as the UI's "start workflow like
// this one" does, with a time limit.
func (w *world) copyRun(j *jobRecord, limit time.Duration) {
	w.T.Helper()
	began := w.history(j)[0].GetWorkflowExecutionStartedEventAttributes()
	_, err := w.Temporal.WorkflowService().StartWorkflowExecution(w.T.Context(), &workflowservice.StartWorkflowExecutionRequest{
		Namespace: temporald.DefaultNamespace, RequestId: uuid.NewString(), WorkflowId: j.workflowID(),
		WorkflowType: began.GetWorkflowType(), TaskQueue: began.GetTaskQueue(), Input: began.GetInput(),
		WorkflowRunTimeout:    durationpb.New(limit),
		WorkflowIdReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
	})
	require.NoError(w.T, err)
}
