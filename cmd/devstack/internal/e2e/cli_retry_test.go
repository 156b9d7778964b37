package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	batchpb "go.temporal.io/api/batch/v1"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// The ways to run a failed job again: by our commands, in the scripts of
// testdata/script, and by the calls the Temporal UI and CLI make.

// TestRetryCommands runs the scripts of retry, dlq and streams, each with a stack
// of its own, as the user "operator" of Redis.
func TestRetryCommands(t *testing.T) {
	t.Parallel()
	var files []string
	for _, pattern := range []string{"retry-*", "dlq-*", "streams-*"} {
		found, err := filepath.Glob(filepath.Join("testdata", "script", pattern+".txtar"))
		require.NoError(t, err)
		require.NotEmpty(t, found, pattern)
		files = append(files, found...)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			s := &retryScript{newBundle(t)}
			testscript.RunT(inline{t}, testscript.Params{Files: []string{file}, Setup: s.setup, Cmds: s.commands()})
		})
	}
}

// inline runs a script as the test itself: what its commands require must fail
// the test that owns the bundle.
type inline struct{ *testing.T }

func (t inline) Parallel()                              {}
func (t inline) Run(_ string, run func(t testscript.T)) { run(t) }
func (t inline) Verbose() bool                          { return testing.Verbose() }

type retryScript struct{ *bundle }

func (s *retryScript) setup(env *testscript.Env) error {
	bin := filepath.Join(s.Dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		return err
	}
	if err := os.Symlink(shared.binary, filepath.Join(bin, "executor")); err != nil {
		return err
	}
	env.Vars = append(env.Vars, s.Env(map[string]string{"REDIS_CONNECTION": s.OperatorConnection()})...)
	env.Vars = append(env.Vars,
		"PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"),
		"EXECUTOR_CONNECTION="+s.RedisConnection(s.RedisServer.Address()))
	return nil
}

// commands are what a script can do beside running the executor. Each waits for
// what it expects.
func (s *retryScript) commands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	commands := make(map[string]func(ts *testscript.TestScript, neg bool, args []string))
	add := func(name string, least int, usage string, do func(ts *testscript.TestScript, args []string)) {
		commands[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) < least {
				ts.Fatalf("usage: %s %s", name, usage)
			}
			do(ts, args)
		}
	}
	number := func(ts *testscript.TestScript, text string) int {
		n, err := strconv.Atoi(text)
		ts.Check(err)
		return n
	}
	add("exits", 2, "CODE COMMAND…", func(ts *testscript.TestScript, args []string) {
		err := ts.Exec(args[1], args[2:]...)
		got := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			got = exit.ExitCode()
		} else {
			ts.Check(err)
		}
		if want := number(ts, args[0]); got != want {
			ts.Fatalf("exit code %d, want %d", got, want)
		}
	})
	// Processes of the executor, which log in as the user "executor".
	add("start", 1, "ARGS…", func(_ *testscript.TestScript, args []string) { s.Start(nil, args...) })
	add("submit", 3, "ROLE JOB TASK [NAME VALUE]…", func(_ *testscript.TestScript, args []string) {
		field := "task"
		if args[0] == "chat" {
			field = "message"
		}
		s.Submit(args[0], append([]string{"jobId", args[1], field, args[2]}, args[3:]...)...)
	})
	add("entry", 3, "ROLE NAME VALUE…", func(ts *testscript.TestScript, args []string) {
		ts.Setenv("ENTRY", s.Submit(args[0], args[1:]...))
	})
	add("row", 3, "ROLE JOB STATUS [CODE]", func(_ *testscript.TestScript, args []string) {
		s.Wait("row of "+args[1], func(ctx context.Context) error {
			rows, err := s.QueryRows(ctx, "SELECT status, error_code FROM executor_jobs WHERE role = ? AND job_id = ?", args[0], args[1])
			switch {
			case err != nil:
				return err
			case len(rows) == 0:
				return errors.New("no row")
			case rows[0]["status"] != args[2], len(args) > 3 && rows[0]["error_code"] != args[3]:
				return fmt.Errorf("it is %v %v", rows[0]["status"], rows[0]["error_code"])
			}
			return nil
		})
	})
	// A role's entries are all acknowledged; what a run publishes comes before that.
	add("settled", 1, "ROLE…", func(_ *testscript.TestScript, args []string) {
		for _, role := range args {
			s.Settled(role)
		}
	})
	add("updates", 2, "JOB N [TYPE of the last one]", func(ts *testscript.TestScript, args []string) {
		n := number(ts, args[1])
		last := s.Update(args[0], n)
		found, err := s.UpdatesOf(s.T.Context(), args[0])
		ts.Check(err)
		require.Len(s.T, found, n)
		if len(args) > 2 {
			require.Equal(s.T, args[2], last["Type"])
		}
	})
	add("llm", 1, "JSON", func(ts *testscript.TestScript, args []string) {
		settings, err := jsonObject(args[0])
		ts.Check(err)
		s.LLM.Script(settings)
	})
	add("calls", 1, "N", func(ts *testscript.TestScript, args []string) {
		require.Equal(s.T, number(ts, args[0]), s.LLM.Stats().Calls, "calls of the LLM")
	})
	add("asked", 3, "model|tokens VALUE N", func(ts *testscript.TestScript, args []string) {
		stats := s.LLM.Stats()
		got := stats.ByModel[args[1]]
		if args[0] == "tokens" {
			got = stats.ByMaxTokens[number(ts, args[1])]
		}
		require.Equal(s.T, number(ts, args[2]), got, "%+v", stats)
	})
	add("running", 1, "N", func(ts *testscript.TestScript, args []string) {
		n := number(ts, args[0])
		s.LLM.Await("calls run", func(st harness.Stats) bool { return st.Running == n })
	})
	add("release", 0, "", func(*testscript.TestScript, []string) { s.LLM.Release() })
	add("run", 2, "WORKFLOW STATUS", func(_ *testscript.TestScript, args []string) { s.Run(args[0], args[1]) })
	add("runs", 2, "WORKFLOW N", func(ts *testscript.TestScript, args []string) {
		s.Visible(int64(number(ts, args[1])), fmt.Sprintf("WorkflowId = %q", args[0]))
	})
	add("details", 2, "WORKFLOW TEXT", func(ts *testscript.TestScript, args []string) {
		d, err := s.Temporal.DescribeWorkflowExecution(s.T.Context(), args[0], "")
		ts.Check(err)
		var details string
		ts.Check(converter.GetDefaultDataConverter().FromPayload(d.GetExecutionConfig().GetUserMetadata().GetDetails(), &details))
		require.Contains(s.T, details, args[1])
	})
	add("cancel", 1, "WORKFLOW", func(ts *testscript.TestScript, args []string) {
		ts.Check(s.Temporal.CancelWorkflow(s.T.Context(), args[0], ""))
	})
	add("terminate", 1, "WORKFLOW", func(ts *testscript.TestScript, args []string) {
		ts.Check(s.Temporal.TerminateWorkflow(s.T.Context(), args[0], "", "test"))
	})
	add("forget", 1, "WORKFLOW", func(_ *testscript.TestScript, args []string) { s.forget(args[0]) })
	add("reset", 1, "WORKFLOW", func(_ *testscript.TestScript, args []string) { s.resetFirst(args[0]) })
	add("dead", 3, "ROLE NAME VALUE…", func(ts *testscript.TestScript, args []string) {
		id, err := s.Redis.XAdd(s.T.Context(), &redis.XAddArgs{Stream: "jobs:" + args[0] + ":dead", Values: args[1:]}).Result()
		ts.Check(err)
		ts.Setenv("DEAD", id)
	})
	// A dead letter of long ago.
	add("old", 4, "ROLE ID NAME VALUE…", func(ts *testscript.TestScript, args []string) {
		ts.Check(s.Redis.XAdd(s.T.Context(), &redis.XAddArgs{Stream: "jobs:" + args[0] + ":dead", ID: args[1], Values: args[2:]}).Err())
	})
	add("trim", 1, "STREAM…", func(ts *testscript.TestScript, args []string) {
		for _, key := range args {
			ts.Check(s.Redis.XTrimMaxLen(s.T.Context(), key, 0).Err())
		}
	})
	// A stream of which Redis cannot tell how much of it is unread.
	add("lose", 1, "STREAM", func(ts *testscript.TestScript, args []string) {
		var ids []string
		for range 3 {
			id, err := s.Redis.XAdd(s.T.Context(), &redis.XAddArgs{Stream: args[0], Values: []string{"k", "v"}}).Result()
			ts.Check(err)
			ids = append(ids, id)
		}
		ts.Check(s.Redis.XGroupCreate(s.T.Context(), args[0], harness.Group, ids[0]).Err())
		ts.Check(s.Redis.XDel(s.T.Context(), args[0], ids[1]).Err())
	})
	// What the user "executor" was refused so far was meant to be.
	add("pardon", 0, "", func(ts *testscript.TestScript, _ []string) { ts.Check(s.Redis.ACLLogReset(s.T.Context()).Err()) })
	add("drop", 1, "KEY", func(ts *testscript.TestScript, args []string) { ts.Check(s.Redis.Del(s.T.Context(), args[0]).Err()) })
	// The id of a role's n-th dead letter, from 1, once it is there.
	add("deadid", 3, "VARIABLE ROLE N", func(ts *testscript.TestScript, args []string) {
		n := number(ts, args[2])
		s.Wait("dead letter", func(context.Context) error {
			if len(s.DeadLetters(args[1])) < n {
				return errors.New("not there")
			}
			return nil
		})
		ts.Setenv(args[0], s.DeadLetters(args[1])[n-1].ID)
	})
	return commands
}

func jsonObject(text string) (map[string]any, error) {
	var out map[string]any
	err := json.Unmarshal([]byte(text), &out)
	return out, err
}

// forget deletes a workflow with all its runs, as the end of its retention does.
func (b *bundle) forget(workflowID string) {
	b.T.Helper()
	b.Wait("no history of "+workflowID, func(ctx context.Context) error {
		d, err := b.Temporal.DescribeWorkflowExecution(ctx, workflowID, "")
		if _, gone := errors.AsType[*serviceerror.NotFound](err); gone {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = b.Temporal.WorkflowService().DeleteWorkflowExecution(ctx, &workflowservice.DeleteWorkflowExecutionRequest{
			Namespace:         b.Options.Namespace,
			WorkflowExecution: d.GetWorkflowExecutionInfo().GetExecution(),
		})
		if err != nil {
			return err
		}
		return errors.New("still there")
	})
}

// resetFirst resets the latest run of a workflow to its first workflow task, as
// the UI's "reset" does, and returns the new run.
func (b *bundle) resetFirst(workflowID string) string {
	b.T.Helper()
	events := b.Temporal.GetWorkflowHistory(b.T.Context(), workflowID, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		e, err := events.Next()
		require.NoError(b.T, err)
		if e.GetEventType() != enumspb.EVENT_TYPE_WORKFLOW_TASK_COMPLETED {
			continue
		}
		resp, err := b.Temporal.ResetWorkflowExecution(b.T.Context(), &workflowservice.ResetWorkflowExecutionRequest{
			Namespace:         b.Options.Namespace,
			WorkflowExecution: &commonpb.WorkflowExecution{WorkflowId: workflowID},
			Reason:            "reset from the UI", RequestId: uuid.NewString(), WorkflowTaskFinishEventId: e.GetEventId(),
		})
		require.NoError(b.T, err)
		return resp.GetRunId()
	}
	b.T.Fatal("no workflow task of " + workflowID + " was completed")
	return ""
}

// resetAll resets the n runs that a query finds to their first workflow task, as
// the UI's bulk action and the CLI do, and waits until that is done.
func (b *bundle) resetAll(query string, n int64) {
	b.T.Helper()
	b.Visible(n, query)
	id := uuid.NewString()
	_, err := b.Temporal.WorkflowService().StartBatchOperation(b.T.Context(), &workflowservice.StartBatchOperationRequest{
		Namespace: b.Options.Namespace, JobId: id, Reason: "bulk reset", VisibilityQuery: query,
		Operation: &workflowservice.StartBatchOperationRequest_ResetOperation{ResetOperation: &batchpb.BatchOperationReset{
			Options: &commonpb.ResetOptions{Target: &commonpb.ResetOptions_FirstWorkflowTask{FirstWorkflowTask: &emptypb.Empty{}}},
		}},
	})
	require.NoError(b.T, err)
	b.Wait("bulk reset", func(ctx context.Context) error {
		state, err := b.Temporal.WorkflowService().DescribeBatchOperation(ctx, &workflowservice.DescribeBatchOperationRequest{
			Namespace: b.Options.Namespace, JobId: id,
		})
		if err != nil {
			return err
		}
		if state.GetState() != enumspb.BATCH_OPERATION_STATE_COMPLETED || state.GetCompleteOperationCount() != n {
			return fmt.Errorf("%s: %d of %d, %d failed", state.GetState(), state.GetCompleteOperationCount(), n, state.GetFailureOperationCount())
		}
		return nil
	})
}

// TestABulkRetryThatIsCutOff ends `executor retry` in the middle, by Ctrl-C and by
// a kill. The same command again does the rest, and no job runs twice.
func TestABulkRetryThatIsCutOff(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]os.Signal{"interrupt": os.Interrupt, "kill": os.Kill} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.Start(nil, "run")
			const n = 12
			var jobs []string
			for i := range n {
				jobs = append(jobs, fmt.Sprintf("j%d", i))
				b.Submit("agent", "jobId", jobs[i], "userId", "u1", "task", "!fail 400 x1 "+harness.Text("task"))
			}
			for _, j := range jobs {
				b.Update(j, 1)
			}
			b.Settled("agent")
			operator := map[string]string{"REDIS_CONNECTION": b.OperatorConnection()}

			ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
			defer cancel()
			var out, errs bytes.Buffer
			cmd := exec.CommandContext(ctx, shared.binary, "retry", "--failed", "--rate", "4", "--yes", "-o", "jsonl") //nolint:gosec // G204: the binary under test
			cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = b.Dir, b.Env(operator), &out, &errs
			require.NoError(t, cmd.Start())
			b.LLM.Await("some are retried", func(s harness.Stats) bool { return s.Calls >= n+2 })
			require.NoError(t, cmd.Process.Signal(cut))
			require.Error(t, cmd.Wait())
			if cut == os.Interrupt {
				require.Equal(t, 1, cmd.ProcessState.ExitCode(), errs.String())
				require.Regexp(t, `interrupted: \d+ of 12 done; run the same command again for the rest`, errs.String())
				require.Equal(t, n, strings.Count(out.String(), "\n"))
				require.Contains(t, out.String(), `"result":"retried"`)
				require.Contains(t, out.String(), `"result":"not tried"`)
			}

			again := b.command(operator, "retry", "--failed", "--rate", "100", "--yes", "--wait")
			require.Equal(t, 0, again.code, again.stderr)
			for _, j := range jobs {
				b.healed("agent", j, 2)
			}
			require.Equal(t, 2*n, b.LLM.Stats().Calls)
		})
	}
}

// TestWatchStreams lets the command print a few times, and interrupts it.
func TestWatchStreams(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.binary, "streams", "--watch", "--interval", "100ms", "-o", "jsonl") //nolint:gosec // G204: the binary under test
	cmd.Dir, cmd.Env = b.Dir, b.Env(map[string]string{"REDIS_CONNECTION": b.OperatorConnection()})
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for i := range 3 * 4 {
		require.True(t, lines.Scan())
		require.Contains(t, lines.Text(), `"role":"`+[]string{"manager", "inspector", "agent", "chat"}[i%4]+`"`)
	}
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	for lines.Scan() { //nolint:revive // until it has ended
	}
	require.NoError(t, cmd.Wait(), "an interrupt is how it ends")
}

// healed expects that a job that had failed is completed, with one update for each
// of its n outcomes, and that nobody needs to look at its dead letter any more.
func (b *bundle) healed(role, jobID string, n int) {
	b.T.Helper()
	require.Equal(b.T, "result", b.Update(jobID, n)["Type"], jobID)
	b.Run("job:"+role+":"+jobID, "Completed")
	found, err := b.UpdatesOf(b.T.Context(), jobID)
	require.NoError(b.T, err)
	require.Len(b.T, found, n, jobID)
	row := b.Row(role, jobID)
	require.Equal(b.T, "completed", row["status"], jobID)
	require.Empty(b.T, row["dead_id"], jobID)
	out := b.command(map[string]string{"REDIS_CONNECTION": b.OperatorConnection()}, "dlq", "ls", "--unresolved", "-o", "json")
	require.Equal(b.T, 0, out.code, out.stderr)
	require.NotContains(b.T, out.stdout, `"`+jobID+`"`)
}

// TestResetOneAsTheUIDoes resets single runs to their first workflow task.
func TestResetOneAsTheUIDoes(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	b.Submit("agent", "jobId", "failed", "userId", "u1", "task", "!fail 400 x1 "+harness.Text("task"))
	b.Submit("agent", "jobId", "canceled", "userId", "u1", "task", "!hang x1 "+harness.Text("task"))
	b.LLM.Await("the call runs", func(s harness.Stats) bool { return s.Running == 1 })
	require.NoError(t, b.Temporal.CancelWorkflow(t.Context(), "job:agent:canceled", ""))
	b.Update("failed", 1)
	b.Update("canceled", 1)
	b.Settled("agent")
	b.Run("job:agent:failed", "Failed")
	b.Run("job:agent:canceled", "Canceled")

	for _, jobID := range []string{"failed", "canceled"} {
		run := b.resetFirst("job:agent:" + jobID)
		b.healed("agent", jobID, 2)
		require.Equal(t, "run:"+run, b.Row("agent", jobID)["effect"])
	}
	require.Equal(t, 4, b.LLM.Stats().Calls)
	require.Len(t, b.DeadLetters("agent"), 1)

	// A job that is completed costs nothing.
	b.resetFirst("job:agent:failed")
	b.healed("agent", "failed", 2)
	require.Equal(t, 4, b.LLM.Stats().Calls)
}

// TestResetManyAsTheUIDoes resets what a query finds, twice.
func TestResetManyAsTheUIDoes(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	const n = 8
	var jobs []string
	for i := range n {
		jobs = append(jobs, fmt.Sprintf("j%d", i))
		b.Submit("agent", "jobId", jobs[i], "userId", "u1", "task", "!fail 400 x1 "+harness.Text("task"))
	}
	b.Submit("manager", "jobId", "other", "userId", "u1", "task", "!fail 400 "+harness.Text("task"))
	for _, j := range append(jobs, "other") {
		require.Equal(t, "error", b.Update(j, 1)["Type"])
	}
	b.Settled("agent")
	b.Settled("manager")

	const query = "WorkflowType='JobWorkflow' AND ExecutionStatus='Failed' AND JobRole='agent'"
	b.resetAll(query, n)
	for _, j := range jobs {
		b.healed("agent", j, 2)
	}
	require.Equal(t, 2*n+1, b.LLM.Stats().Calls)
	require.Equal(t, "failed", b.Row("manager", "other")["status"])

	// The runs that failed stay Failed, so the same query finds the same again. The
	// new runs find their job completed.
	b.resetAll(query, n)
	b.Visible(2*n, "WorkflowType='JobWorkflow' AND ExecutionStatus='Completed' AND JobRole='agent'")
	for _, j := range jobs {
		b.healed("agent", j, 2)
	}
	require.Equal(t, 2*n+1, b.LLM.Stats().Calls, "a second bulk reset costs no call")
	all, err := b.Redis.XLen(t.Context(), harness.Updates).Result()
	require.NoError(t, err)
	require.EqualValues(t, 2*n+1, all)
}

// TestAResetIsNotRepeatable shows why `executor retry` starts runs instead of
// resetting them: the server does not know a request again, and ends the run that
// the first one has started.
func TestAResetIsNotRepeatable(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	b.Submit("agent", "jobId", "j1", "userId", "u1", "task", "!fail 400 x1 "+harness.Text("task"))
	b.Update("j1", 1)
	failed := b.Run("job:agent:j1", "Failed").GetExecution()
	b.LLM.Script(map[string]any{"hang": true})
	var runs [2]string
	for i := range runs {
		resp, err := b.Temporal.ResetWorkflowExecution(t.Context(), &workflowservice.ResetWorkflowExecutionRequest{
			Namespace: b.Options.Namespace, WorkflowExecution: failed, Reason: "test", RequestId: "the same", WorkflowTaskFinishEventId: 4,
		})
		require.NoError(t, err)
		runs[i] = resp.GetRunId()
	}
	require.NotEqual(t, runs[0], runs[1])
	first, err := b.Temporal.DescribeWorkflowExecution(t.Context(), "job:agent:j1", runs[0])
	require.NoError(t, err)
	require.Equal(t, enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED, first.GetWorkflowExecutionInfo().GetStatus())

	b.LLM.Script(map[string]any{"hang": false})
	b.LLM.Release()
	b.healed("agent", "j1", 2)
}
