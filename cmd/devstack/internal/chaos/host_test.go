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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	workflowpb "go.temporal.io/api/workflow/v1"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// hostFaults are those of the machine the executor runs on, and of sheer numbers.
func hostFaults() []fault {
	return []fault{
		{
			id: "F56", name: "entry ids a day ahead and 0-1; clocks a day ahead and a day behind", first: true,
			setup: setup{env: map[string]string{"MAX_TOTAL": "6"}},
			run: func(w *world) {
				const day = 24 * time.Hour
				w.worker("workflows,"+roleQueues, w.clock(-day))
				ahead := w.worker("workflows,"+roleQueues, w.clock(day))
				bridge := w.bridge(w.clock(day))

				// The time in an entry's id is the producer's, or none at all.
				first := w.submitAs("agent", "", "0-1")
				future := w.submitAs("manager", "", fmt.Sprintf("%d-0", time.Now().Add(day).UnixMilli()))
				w.await(first, future)
				w.await(w.load(8)...)

				// Attempts of one job on both sides of two days, which is more than RETRY_FOR.
				var flaky []*jobRecord
				for range 6 {
					j := w.submit("agent", "!fail 500 x3")
					j.calls = 4
					flaky = append(flaky, j)
				}
				// A retry of a failed job, and an answer that is asked for again.
				retried := w.submit("inspector", "!fail 400 x1")
				asked := w.submit("chat", "")
				w.await(retried, asked)
				for _, j := range []*jobRecord{retried, asked} {
					j.updates = 2
					w.settle(j)
					require.NoError(w.T, w.add(w.T.Context(), j))
				}
				retried.runs, retried.calls = 2, 2
				w.await(append(flaky, retried, asked)...)

				// A call that has to begin again elsewhere, and one that was asked for twice.
				running := []*jobRecord{w.submit("agent", "!hang x1"), w.submit("chat", "!hang x1"), w.submit("manager", "!hang x1")}
				w.calling(len(running))
				require.NoError(w.T, w.add(w.T.Context(), running[1]))
				w.Wait("the duplicate is noticed", func(context.Context) error {
					if n := w.counted(bridge, "executor_entries_duplicate_total", `kind="running"`); n != 1 {
						return fmt.Errorf("%.0f duplicates", n)
					}
					return nil
				})
				ahead.kill()
				hit(running...)
				w.answer()

				for p, offset := range map[*process]time.Duration{w.processes[0]: -day, ahead: day, bridge: day} {
					date := time.Now().Add(offset).UTC().Format(time.DateOnly)
					require.Contains(w.T, p.Log(), `"time":"`+date, "its clock is right")
				}
				w.heal()
			},
			after: func(w *world) {
				w.remark("a library preloaded into the executors changes their clocks, the program is not built for it")
			},
		},
		{
			id: "F57", name: "the log's disk is full, or its pipe has no reader",
			run: func(w *world) {
				full, pipe := filepath.Join(w.Dir, "full.log"), filepath.Join(w.Dir, "log.pipe")
				require.NoError(w.T, syscall.Mkfifo(pipe, 0o600))
				restore := w.wrapped(`head -n 3 <"`+pipe+`" >/dev/null &`, `exec 2>"`+pipe+`"`)
				bridge := w.bridge(nil)
				restore()
				restore = w.wrapped(`exec 2>/dev/full`)
				workflows := w.worker("workflows", nil)
				restore()
				restore = w.wrapped(`head -c 1M /dev/zero >"`+full+`"`, `ulimit -f 1024`, `exec 2>>"`+full+`"`)
				agents := w.worker(roleQueues, nil)
				restore()

				_, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0)
				require.ErrorIs(w.T, err, syscall.ENXIO, "the pipe still has a reader")
				target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", workflows.Pid()))
				require.NoError(w.T, err)
				require.Equal(w.T, "/dev/full", target)

				w.await(w.load(20)...)
				w.submit("agent", "!fail 503 x2").calls = 3 // errors, which are what is logged
				info, err := os.Stat(full)
				require.NoError(w.T, err)
				require.EqualValues(w.T, 1<<20, info.Size(), "something was logged")
				for _, p := range []*process{bridge, workflows, agents} {
					select {
					case <-p.Done():
						w.T.Fatalf("%s has ended", p.Name())
					default:
					}
				}
				w.heal()
			},
		},
		{
			id: "F58", name: "no more than 64 file descriptors",
			run: func(w *world) {
				restore := w.wrapped(`ulimit -n 64`)
				s := w.system()
				restore()
				w.LLM.Script(map[string]any{"hang": true})
				w.load(100) // a connection for each, if there were as many
				w.Wait("calls find no descriptor", func(context.Context) error {
					open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.roles.Pid()))
					if err == nil && !strings.Contains(s.roles.Log(), "llm_unreachable") {
						err = fmt.Errorf("%d are open", len(open))
					}
					return err
				})
				w.LLM.Script(map[string]any{"hang": false})
				w.LLM.Release()
				w.heal()
			},
			after: func(w *world) {
				roles := w.processes[2]
				failed := w.counted(roles, "executor_activity_errors_total", `kind="llm_unreachable"`)
				require.Positive(w.T, failed, "no call had to wait for a descriptor")
				w.remark("%.0f calls found no descriptor and were repeated, at most %d in parallel", failed, w.LLM.Stats().MaxRunning)
			},
		},
		{
			id: "F59", name: "a backlog of 100,000 entries while nothing runs jobs",
			partial: true,
			run:     backlog,
		},
	}
}

// maxBridgeMemory is what issue and design allow the bridge, in kB.
const maxBridgeMemory = 150 << 10

// backlog loads more than the bridge may take in, looks at it while nothing is
// done, and then at the order in which the first twentieth is started.
func backlog(w *world) {
	const inFlight = 1000 // BRIDGE_MAX_IN_FLIGHT's default
	// It would read the streams all the time.
	require.Empty(w.T, w.watcher.stop())
	entries, streams := 100_000, roles
	w.remark("the bridge is the program as it is shipped")
	if shared.short {
		entries, streams = 20_000, []string{"agent"}
		w.remark("20,000 entries in one stream")
	}
	each := entries / len(streams)
	order := map[string][]string{}
	for _, role := range streams {
		order[role] = w.preload(role, each)
	}

	// The figure is that of the binary that is shipped.
	tested := w.Suite.Binary
	w.Suite.Binary = shared.plain
	bridge := w.bridge(nil)
	w.Suite.Binary = tested
	w.WaitFor(5*time.Minute, "the bridge takes in what it may", func(ctx context.Context) error {
		for _, role := range streams {
			if n := w.pending(ctx, role); n != inFlight {
				return fmt.Errorf("%s: %d pending", role, n)
			}
		}
		return nil
	})
	w.Visible(int64(inFlight*len(streams)), `ExecutionStatus = "Running"`)
	w.pass(outage(time.Minute, 3*time.Second)) // it compares, refreshes and waits
	w.Visible(int64(inFlight*len(streams)), `ExecutionStatus = "Running"`)
	idle := w.memory(bridge)

	// A few more than a twentieth, so that not only the first thousand are seen.
	part := each/20 + 100
	w.worker("workflows", nil)
	w.worker(roleQueues, nil)
	w.WaitFor(5*time.Minute, "a twentieth is read", func(ctx context.Context) error {
		for _, role := range streams {
			if begun := len(order[role]) - w.unread(ctx, role); begun < part {
				return fmt.Errorf("%s: %d of %d", role, begun, part)
			}
		}
		return nil
	})
	// Pages of a listing that changes leave runs out: several make it complete.
	started := map[string]*workflowpb.WorkflowExecutionInfo{}
	w.Wait("all of them were started", func(ctx context.Context) error {
		runs, err := w.runs(ctx)
		for _, run := range runs {
			started[memo(run, "stream")+"/"+memo(run, "entryId")] = run
		}
		for _, role := range streams {
			for _, id := range order[role][:part] {
				if started["jobs:"+role+"/"+id] == nil {
					return errors.Join(err, fmt.Errorf("%s: %s was not", role, id))
				}
			}
		}
		return err
	})
	displaced := 0
	for _, role := range streams {
		runs := make([]*workflowpb.WorkflowExecutionInfo, 0, part)
		for _, id := range order[role][:part] {
			runs = append(runs, started["jobs:"+role+"/"+id])
		}
		displaced = max(displaced, displacement(runs))
	}
	peak := w.memory(bridge)
	failed := w.counted(bridge, "executor_bridge_errors_total", `kind="temporal"`)
	w.T.Logf("bridge: %d kB with %d in flight, %d kB at most; greatest displacement %d, %.0f starts failed", idle, inFlight*len(streams), peak, displaced, failed)
	w.remark("the bridge took %d MB at most; no start was more than %d places out of turn", peak>>10, displaced)
	require.Less(w.T, peak, maxBridgeMemory, "kB of the bridge")
	// Sixteen starts of a stream are under way at once, so that any two of them may
	// change places. One that failed, because the server did not answer for five
	// seconds, is tried again a second later, and the others go on meanwhile: how many
	// that are depends on the server.
	most := 16
	if failed > 0 {
		w.remark("the server did not answer %.0f starts in time, so that 160 places are allowed: others go on until a start is repeated", failed)
		most *= 10
	}
	require.Less(w.T, displaced, most, "places by which a start was out of turn")
	for _, role := range streams {
		require.LessOrEqual(w.T, w.pending(w.T.Context(), role), int64(inFlight))
	}
	w.heal()
}

// displacement is by how many places at most a run was started too early or too
// late. The runs are in the order of their entries.
func displacement(runs []*workflowpb.WorkflowExecutionInfo) int {
	place := make([]int, len(runs))
	for i := range place {
		place[i] = i
	}
	slices.SortStableFunc(place, func(a, b int) int {
		return runs[a].GetStartTime().AsTime().Compare(runs[b].GetStartTime().AsTime())
	})
	most := 0
	for i, was := range place {
		most = max(most, was-i, i-was)
	}
	return most
}

func memo(run *workflowpb.WorkflowExecutionInfo, key string) string {
	var text string
	_ = json.Unmarshal(run.GetMemo().GetFields()[key].GetData(), &text)
	return text
}

// preload adds n entries to a stream and returns their ids.
func (w *world) preload(role string, n int) []string {
	w.T.Helper()
	padding := strings.Repeat("x", 500)
	ids, jobs := make([]string, 0, n), make([]*jobRecord, 0, n)
	for batch := range slices.Chunk(slices.Collect(numbers(n)), 2000) {
		pipe := w.Redis.Pipeline()
		added := make([]*redis.StringCmd, 0, len(batch))
		for _, i := range batch {
			j := &jobRecord{
				role: role, id: fmt.Sprintf("b%06d", i), status: "completed", runs: 1,
				// Done or not when the row ends. A server this busy may miss the beats of a call.
				calls: 2, more: 1,
			}
			j.prompt = harness.Canary + "-" + role + "-" + j.id + "-" + padding
			jobs = append(jobs, j)
			added = append(added, pipe.XAdd(w.T.Context(), &redis.XAddArgs{Stream: j.stream(), Values: j.fields()}))
		}
		_, err := pipe.Exec(w.T.Context())
		require.NoError(w.T, err)
		for _, cmd := range added {
			jobs[len(ids)].entries = []string{cmd.Val()}
			ids = append(ids, cmd.Val())
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs = append(w.jobs, jobs...)
	return ids
}

func numbers(n int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := range n {
			if !yield(i) {
				return
			}
		}
	}
}

// pending is how many entries of a role's stream are pending.
func (w *world) pending(ctx context.Context, role string) int64 {
	w.T.Helper()
	p, err := w.Redis.XPending(ctx, "jobs:"+role, harness.Group).Result()
	require.NoError(w.T, err)
	return p.Count
}

// unread is how many entries of a role's stream were not delivered yet.
func (w *world) unread(ctx context.Context, role string) int {
	w.T.Helper()
	groups, err := w.Redis.XInfoGroups(ctx, "jobs:"+role).Result()
	require.NoError(w.T, err)
	require.Len(w.T, groups, 1)
	return int(groups[0].Lag)
}

// memory is the most that a process ever had in memory, in kB.
func (w *world) memory(p *process) int {
	w.T.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	require.NoError(w.T, err)
	_, rest, ok := strings.Cut(string(status), "VmHWM:")
	require.True(w.T, ok)
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(w.T, err)
	return n
}

// wrapped lets executors be started through a shell that runs these lines first,
// until restore is called. The process stays the same, with other limits and
// files.
func (w *world) wrapped(lines ...string) (restore func()) {
	w.T.Helper()
	script, err := os.CreateTemp(w.Dir, "wrapper-*.sh")
	require.NoError(w.T, err)
	tested := w.Suite.Binary
	_, err = fmt.Fprintf(script, "#!/usr/bin/env bash\nset -eu\n%s\nexec %q \"$@\"\n", strings.Join(lines, "\n"), tested)
	require.NoError(w.T, err)
	require.NoError(w.T, script.Chmod(0o700))
	require.NoError(w.T, script.Close())
	w.Suite.Binary = script.Name()
	return func() { w.Suite.Binary = tested }
}

// clock is the environment of an executor whose clock is wrong.
func (w *world) clock(offset time.Duration) map[string]string {
	w.T.Helper()
	library := filepath.Join(w.Dir, "clock.so")
	if _, err := os.Stat(library); err != nil {
		out, err := exec.CommandContext(w.T.Context(), "cc", "-O2", "-shared", "-fPIC", "-o", library, "testdata/clock.c").CombinedOutput()
		require.NoError(w.T, err, string(out))
	}
	return map[string]string{"LD_PRELOAD": library, "CLOCK_OFFSET": strconv.Itoa(int(offset.Seconds()))}
}

// submitAs is submit with an entry id of the producer's choice.
func (w *world) submitAs(role, directive, id string) *jobRecord {
	w.T.Helper()
	j := w.draft(role, directive)
	require.NoError(w.T, w.Redis.XAdd(w.T.Context(), &redis.XAddArgs{Stream: j.stream(), ID: id, Values: j.fields()}).Err())
	w.mu.Lock()
	defer w.mu.Unlock()
	j.entries = append(j.entries, id)
	return j
}

// settle waits until the run of a job is closed: an entry that comes before is a
// duplicate of the one it is for.
func (w *world) settle(j *jobRecord) {
	w.T.Helper()
	w.Wait("the run of "+j.key()+" is closed", func(ctx context.Context) error {
		d, err := w.Temporal.DescribeWorkflowExecution(ctx, j.workflowID(), "")
		if err != nil {
			return err
		}
		if d.GetWorkflowExecutionInfo().GetCloseTime() == nil {
			return fmt.Errorf("it is %s", d.GetWorkflowExecutionInfo().GetStatus())
		}
		return nil
	})
}
