package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

func TestAnEntryBecomesARunAndIsAcknowledgedByIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	id := w.add(job.Inspector, "jobId", "j1", "userId", "u1", "payload", "x := 1", "task", "look", "priority", "2")
	run := w.started(job.Inspector, "j1")
	require.Equal(t, job.Job{Role: job.Inspector, ID: "j1", UserID: "u1", Task: "look", Payload: "x := 1", Priority: 2}, run.input.Job)
	require.Equal(t, job.Origin{
		Stream: "jobs:inspector", EntryID: id, Group: "executor-group", Updates: stream.Updates, EnqueuedAt: job.EntryTime(id),
	}, run.input.Origin)
	require.Equal(t, RequestID("jobs:inspector", id), run.requestID)
	require.EqualValues(t, 1, w.pending(job.Inspector), "pending until the job has ended")
	w.finish(run, good("fine"))
	w.settled(job.Inspector)
	require.Len(t, w.updates(), 1)
}

func TestTheSameJobIDInTwoStreamsIsTwoJobs(t *testing.T) { // F08
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1"))
	w.add(job.Manager, "jobId", "j1", "task", "a")
	w.add(job.Agent, "jobId", "j1", "task", "b")
	require.Equal(t, "a", w.started(job.Manager, "j1").input.Job.Task)
	require.Equal(t, "b", w.started(job.Agent, "j1").input.Job.Task)
}

func TestStartsFollowTheOrderOfEntries(t *testing.T) { // F59
	t.Parallel()
	w := newWorld(t)
	const jobs = 100
	for i := range jobs {
		w.agentJob("j" + strconv.Itoa(i))
	}
	b := w.bridge("b1", func(b *Bridge) { b.cfg.MaxInFlight = 1 })
	w.run(b)
	for i := range jobs {
		w.finish(w.started(job.Agent, "j"+strconv.Itoa(i)), good("ok"))
	}
	w.settled(job.Agent)
	want := make([]string, jobs)
	for i := range want {
		want[i] = "j" + strconv.Itoa(i)
	}
	require.Equal(t, want, w.temporal.startedIDs())
}

func TestIntakeStopsAtTheLimitOfPendingEntries(t *testing.T) { // F20, F59
	t.Parallel()
	w := newWorld(t)
	for i := range 60 {
		w.agentJob("j" + strconv.Itoa(i))
	}
	// Two bridges share the limit: what counts is what the group has pending.
	limit := func(b *Bridge) { b.cfg.MaxInFlight = 20 }
	w.run(w.bridge("b1", limit))
	w.eventually("the limit is reached", func() bool { return w.pending(job.Agent) == 20 })
	w.run(w.bridge("b2", limit))
	for i := range 60 {
		run := w.started(job.Agent, "j"+strconv.Itoa(i))
		// Each bridge counts before it reads, so both may fill the same gap.
		require.LessOrEqual(t, w.pending(job.Agent), int64(20+batchSize))
		w.finish(run, good("ok"))
	}
	w.settled(job.Agent)
	require.Len(t, w.temporal.startedIDs(), 60)
}

func TestDuplicates(t *testing.T) { // F07, B16 to B18
	t.Parallel()

	t.Run("in one batch the first entry wins", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		first := w.agentJob("j1")
		for range 9 {
			w.agentJob("j1")
		}
		w.run(w.bridge("b1"))
		run := w.started(job.Agent, "j1")
		require.Equal(t, first, run.input.Origin.EntryID)
		w.eventually("duplicates are acknowledged at once", func() bool { return w.pending(job.Agent) == 1 })
		w.finish(run, good("once"))
		w.settled(job.Agent)
		require.Len(t, w.updates(), 1)
		require.Equal(t, []string{"j1"}, w.temporal.startedIDs())
		require.Equal(t, 9, w.metrics.get("duplicate agent running"))
	})

	t.Run("while the run is open", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		stop := w.run(w.bridge("b1"))
		w.agentJob("j1")
		run := w.started(job.Agent, "j1")
		w.agentJob("j1")
		w.eventually("the duplicate is counted", func() bool { return w.metrics.get("duplicate agent running") == 1 })
		w.eventually("the duplicate is acknowledged", func() bool { return w.pending(job.Agent) == 1 })
		stop()                                      // nobody remembers the duplicate
		run.StartedAt = run.input.Origin.EnqueuedAt // its entry did not have to wait
		w.finish(run, bad())
		w.redis("XGROUP", "DESTROY", "jobs:agent", "executor-group")
		w.run(w.bridge("b2"))
		w.eventually("the replay is dealt with", func() bool { return w.metrics.get("duplicate agent old") == 1 })
		w.settled(job.Agent)
		require.Equal(t, []string{"j1"}, w.temporal.startedIDs())
		require.Len(t, w.updates(), 1)
		require.Len(t, w.dead(job.Agent), 1)
	})

	t.Run("after completion the answer is repeated to the new connection", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		w.agentJob("j1")
		w.finish(w.started(job.Agent, "j1"), good("the answer"))
		w.settled(job.Agent)
		again := w.add(job.Agent, "jobId", "j1", "connectionId", "another", "task", "something else")
		w.eventually("a second update", func() bool { return len(w.updates()) == 2 })
		w.settled(job.Agent)
		update := w.updates()[1]
		require.Equal(t, "the answer", update["Payload"])
		require.Equal(t, "result", update["Type"])
		require.Equal(t, "another", update["ClientConnectionId"])
		require.Equal(t, stream.MessageID(job.AnswerEffect("jobs:agent", again)), update["MessageId"])
		row, _ := w.row("j1")
		require.Equal(t, again, row.LastEntryID)
		require.NotEqual(t, again, row.EntryID)
		require.Equal(t, []string{"j1"}, w.temporal.startedIDs())
	})

	t.Run("every entry that asks again is answered, in whatever order", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		stop := w.run(w.bridge("b1"))
		w.agentJob("j1")
		w.finish(w.started(job.Agent, "j1"), good("the answer"))
		w.settled(job.Agent)
		stop()
		// One is in the hands of a bridge that dies while another answers the next.
		slow := w.agentJob("j1")
		_, err := w.open("b0").ReadNew(t.Context(), "jobs:agent", 1, time.Millisecond)
		require.NoError(t, err)
		w.redis("SET", "{executor}:alive:executor-group:b0", "1")
		var batch []string // of which the first cannot be answered at once
		for range 3 {
			batch = append(batch, w.agentJob("j1"))
		}
		var want, got []string
		for _, id := range append(batch, slow) {
			want = append(want, stream.MessageID(job.AnswerEffect("jobs:agent", id)))
		}
		flaky := &publishRecorder{Redis: w.open("b2"), failures: 1}
		w.run(w.bridge("b2", func(b *Bridge) { b.redis = flaky }))
		w.eventually("three are answered", func() bool { return len(w.updates()) == 4 })
		w.die("b0")
		w.settled(job.Agent)
		updates := w.updates()
		require.Len(t, updates, 5)
		for _, u := range updates[1:] {
			got = append(got, u["MessageId"])
		}
		require.ElementsMatch(t, want, got)

		w.redis("XGROUP", "DESTROY", "jobs:agent", "executor-group")
		w.eventually("the replay", func() bool { return w.metrics.get("duplicate agent old") == 4 })
		w.settled(job.Agent)
		require.Len(t, w.updates(), 5, "each of them once")
		require.Equal(t, 4, w.metrics.get("duplicate agent answer"))
	})

	t.Run("after failure a new entry is a retry", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		w.agentJob("j1")
		w.finish(w.started(job.Agent, "j1"), bad())
		w.settled(job.Agent)
		retry := w.agentJob("j1")
		run := w.started(job.Agent, "j1")
		require.Equal(t, retry, run.input.Origin.EntryID)
		w.agentJob("j1") // a duplicate of the retry
		w.eventually("the third is a duplicate", func() bool { return w.metrics.get("duplicate agent running") == 1 })
		w.finish(run, good("at last"))
		w.settled(job.Agent)
		row, _ := w.row("j1")
		require.Equal(t, job.Completed, row.Status)
		require.Equal(t, retry, row.EntryID)
		require.Equal(t, []string{"j1", "j1"}, w.temporal.startedIDs())
		require.Len(t, w.updates(), 2)
	})

	t.Run("a retry waits for the old run to close", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		w.agentJob("j1")
		old := w.started(job.Agent, "j1")
		w.publish(old, w.persist(old, bad())) // its row is there, its last steps are not
		retry := w.agentJob("j1")
		calls := w.temporal.startCalls()
		w.eventually("the retry is tried again and again", func() bool { return w.temporal.startCalls() >= calls+3 })
		require.Equal(t, []string{"j1"}, w.temporal.startedIDs())
		w.ack(old)
		w.temporal.close(old.WorkflowID, RunEnded, job.Failed)
		w.eventually("the retry runs", func() bool {
			run, _ := w.temporal.current(old.WorkflowID)
			return run.input.Origin.EntryID == retry
		})
		require.Zero(t, w.metrics.get("duplicate agent running"))
	})

	t.Run("an entry older than the last one is acknowledged only", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.redis("XADD", "jobs:agent", "1-1", "jobId", "j1", "task", "old")
		w.redis("XADD", "jobs:agent", "1-2", "jobId", "j2", "task", "other")
		row := job.Row{
			Role: job.Agent, JobID: "j1", Effect: job.EntryEffect("jobs:agent", "2-0"), Fence: time.Now(),
			Stream: "jobs:agent", EntryID: "2-0", LastEntryID: "2-0",
			Outcome: job.Outcome{Status: job.Failed, ErrorCode: "x", FinishedAt: time.Now()},
		}
		_, err := w.store.Persist(t.Context(), row)
		require.NoError(t, err)
		w.run(w.bridge("b1"))
		w.finish(w.started(job.Agent, "j2"), good("ok"))
		w.settled(job.Agent)
		require.Equal(t, 1, w.metrics.get("duplicate agent old"))
		require.Equal(t, []string{"j2"}, w.temporal.startedIDs())
	})
}

// Each case stops a bridge somewhere between the steps of an entry and starts
// another one. F01, F03, F04, F14, F15.
func TestRedelivery(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		// before does what the dead bridge and the run had done, given the entry
		// was read by the consumer "b1".
		before func(w *world, id string)
		runs   int // in all, of which the last is finished by the test if it is open
	}{
		"read, not started": {before: func(*world, string) {}, runs: 1},
		"started, the reply was lost": {before: func(w *world, id string) {
			w.startAs(id)
		}, runs: 1},
		"the run has written its row": {before: func(w *world, id string) {
			w.persist(w.startAs(id), bad())
		}, runs: 1},
		"the run has published": {before: func(w *world, id string) {
			run := w.startAs(id)
			w.publish(run, w.persist(run, bad()))
		}, runs: 1},
		"the run has ended, its acknowledgement was lost": {before: func(w *world, id string) { // F38
			run := w.startAs(id)
			w.publish(run, w.persist(run, bad()))
			w.temporal.close(run.WorkflowID, RunEnded, job.Failed)
		}, runs: 1},
	} {
		for _, consumer := range []string{"b1", "b2"} {
			t.Run(name+", then "+consumer, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				require.NoError(t, w.client.EnsureGroup(t.Context(), "jobs:agent"))
				id := w.agentJob("j1")
				read, err := w.open("b1").ReadNew(t.Context(), "jobs:agent", 1, time.Millisecond)
				require.NoError(t, err)
				require.Len(t, read, 1)
				tc.before(w, id)

				w.run(w.bridge(consumer))
				if _, ok := w.row("j1"); !ok {
					w.finish(w.started(job.Agent, "j1"), bad())
				}
				w.settled(job.Agent)
				require.Len(t, w.updates(), 1)
				require.Len(t, w.dead(job.Agent), 1)
				require.Len(t, w.temporal.startedIDs(), tc.runs)
				row, ok := w.row("j1")
				require.True(t, ok)
				require.Equal(t, job.Failed, row.Status)
			})
		}
	}
}

// startAs starts the run of an entry as a bridge would.
func (w *world) startAs(id string) fakeRun {
	w.t.Helper()
	b := w.bridge("ghost")
	l := b.lane(job.Agent)
	entry, ok, err := w.client.Entry(w.t.Context(), "jobs:agent", id)
	require.NoError(w.t, err)
	require.True(w.t, ok)
	items := l.decode([]job.Entry{entry}, false)
	_, err = l.request(w.t.Context(), items[0], RequestID("jobs:agent", id), ReuseNever)
	require.NoError(w.t, err)
	return w.started(job.Agent, items[0].decoded.Job.ID)
}

func TestAStoppedBridgeLeavesItsEntriesToTheNext(t *testing.T) { // F05
	t.Parallel()
	w := newWorld(t)
	stop := w.run(w.bridge("b1"))
	w.run(w.bridge("b2"))
	const jobs = 120
	for i := range jobs {
		w.agentJob("j" + strconv.Itoa(i))
	}
	w.eventually("all runs", func() bool { return len(w.temporal.startedIDs()) == jobs })
	stop()
	w.die("b1")
	w.eventually("the other takes over", func() bool {
		summary, err := w.client.Pending(t.Context(), "jobs:agent")
		return err == nil && summary.Count == jobs && summary.Consumers["b2"] == jobs
	})
	for i := range jobs {
		w.finish(w.started(job.Agent, "j"+strconv.Itoa(i)), good("ok"))
	}
	w.settled(job.Agent)
	require.Len(t, w.temporal.startedIDs(), jobs, "taking over starts nothing twice")
	require.Len(t, w.updates(), jobs)
}

func TestTwoBridgesWithOneNameDoNoHarm(t *testing.T) { // F06
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("same"))
	w.run(w.bridge("same"))
	for i := range 40 {
		w.agentJob("j" + strconv.Itoa(i))
	}
	for i := range 40 {
		w.finish(w.started(job.Agent, "j"+strconv.Itoa(i)), good("ok"))
	}
	w.settled(job.Agent)
	require.Len(t, w.temporal.startedIDs(), 40)
	require.Len(t, w.updates(), 40)
}

func TestEntriesOfAConsumerThatDoesNotWorkAreTakenInTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.NoError(t, w.client.EnsureGroup(t.Context(), "jobs:agent"))
	w.agentJob("j1")
	lazy := w.open("lazy")
	require.NoError(t, lazy.Beat(t.Context())) // alive for ten seconds
	_, err := lazy.ReadNew(t.Context(), "jobs:agent", 1, time.Millisecond)
	require.NoError(t, err)
	w.run(w.bridge("b1", func(b *Bridge) {
		b.cfg.ClaimMinIdle = 100 * time.Millisecond
		b.timing.sweep = time.Hour
		b.timing.survey = time.Hour
	}))
	w.finish(w.started(job.Agent, "j1"), good("ok"))
	w.settled(job.Agent)
}

func TestRejectedEntries(t *testing.T) {
	t.Parallel()

	t.Run("row, error update, dead letter, acknowledgement", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		id := w.add(job.Agent, "jobId", "j1", "userId", "u1", "connectionId", "c1") // no task
		w.settled(job.Agent)
		row, ok := w.row(job.RejectedID(id))
		require.True(t, ok)
		require.Equal(t, job.Rejected, row.Status)
		require.Equal(t, job.ReasonTaskMissing, row.ErrorCode)
		_, ok = w.row("j1")
		require.False(t, ok, "a rejected entry says nothing about the job")
		updates := w.updates()
		require.Len(t, updates, 1)
		require.Equal(t, "error", updates[0]["Type"])
		require.Equal(t, "c1", updates[0]["ClientConnectionId"])
		require.Equal(t, "j1", updates[0]["JobId"])
		var payload struct{ Code, Message string }
		require.NoError(t, json.Unmarshal([]byte(updates[0]["Payload"]), &payload))
		require.Equal(t, job.ReasonTaskMissing, payload.Code)
		require.NotEmpty(t, payload.Message)
		dead := w.dead(job.Agent)
		require.Len(t, dead, 1)
		require.Equal(t, id, dead[0]["original_id"])
		require.Equal(t, job.ReasonTaskMissing, dead[0]["reason"])
		require.Equal(t, "c1", dead[0]["connectionId"])
		require.Equal(t, row.DeadID, strings.Fields(w.redis("XRANGE", "jobs:agent:dead", "-", "+"))[0])
		require.Equal(t, 1, w.metrics.get("rejected agent task_missing"))
		require.Equal(t, 1, w.metrics.get("finished agent rejected task_missing"))
		require.Empty(t, w.temporal.startedIDs())
	})

	t.Run("a replay changes nothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		w.add(job.Agent, "userId", "u1")
		w.add(job.Agent, "jobId", " j1 ", "connectionId", "c1", "task", "x")
		w.settled(job.Agent)
		updates, dead := w.updates(), w.dead(job.Agent)
		w.redis("XGROUP", "DESTROY", "jobs:agent", "executor-group")
		w.eventually("the replay", func() bool { return w.pending(job.Agent) == 0 && w.metrics.get("error agent group_lost") > 0 })
		w.settled(job.Agent)
		require.Equal(t, updates, w.updates())
		require.Equal(t, dead, w.dead(job.Agent))
		require.Len(t, updates, 2)
		require.Len(t, dead, 2)
		require.Equal(t, 1, w.metrics.get("rejected agent task_missing"))
	})

	t.Run("with nobody to tell there is no update", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		w.add(job.Agent, "nonsense", "x")
		w.settled(job.Agent)
		require.Empty(t, w.updates())
		require.Len(t, w.dead(job.Agent), 1)
	})

	t.Run("what the workflow service refuses for good", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.temporal.refuse = func(StartRequest) bool { return true }
		w.run(w.bridge("b1"))
		id := w.agentJob("j1")
		w.settled(job.Agent)
		row, ok := w.row(job.RejectedID(id))
		require.True(t, ok)
		require.Equal(t, job.ReasonStartRefused, row.ErrorCode)
		require.Len(t, w.updates(), 1)
		require.Equal(t, "do it", w.dead(job.Agent)[0]["task"])

		// It stays refused, whatever the service would say now.
		w.temporal.set(func(f *fakeTemporal) { f.refuse = nil })
		w.redis("XGROUP", "DESTROY", "jobs:agent", "executor-group")
		w.agentJob("j2")
		w.finish(w.started(job.Agent, "j2"), good("ok"))
		w.settled(job.Agent)
		require.Equal(t, []string{"j2"}, w.temporal.startedIDs())
		require.Len(t, w.updates(), 2)
		require.Len(t, w.dead(job.Agent), 1)
	})

	t.Run("unless it accepted the entry before", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		stop := w.run(w.bridge("b1"))
		id := w.agentJob("j1")
		run := w.started(job.Agent, "j1")
		stop()
		w.die("b1")
		calls := w.temporal.startCalls()
		w.temporal.set(func(f *fakeTemporal) { f.refuse = func(StartRequest) bool { return true } })
		w.run(w.bridge("b2"))
		w.eventually("the redelivered entry is refused", func() bool { return w.temporal.startCalls() > calls })
		w.agentJob("j2") // is refused behind it
		w.eventually("the other one is settled", func() bool { return len(w.dead(job.Agent)) == 1 })
		w.finish(run, good("ok"))
		w.settled(job.Agent)
		_, rejected := w.row(job.RejectedID(id))
		require.False(t, rejected)
		updates := w.updates()
		require.Len(t, updates, 2)
		require.Equal(t, "ok", updates[1]["Payload"])
	})

	t.Run("also where another run was in the way", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.temporal.refuse = func(req StartRequest) bool { return req.Reuse == ReuseAny }
		w.run(w.bridge("b1", func(b *Bridge) {
			seldom := b.timing
			seldom.survey = time.Hour // or the first run is buried before the retry comes to it
			b.setTiming(seldom)
		}))
		first := w.agentJob("j1")
		run := w.started(job.Agent, "j1")
		w.redis("XACK", "jobs:agent", "executor-group", first)
		w.temporal.close(run.WorkflowID, RunTerminated, "")
		retry := w.agentJob("j1")
		w.settled(job.Agent)
		row, rejected := w.row(job.RejectedID(retry))
		require.True(t, rejected)
		require.Equal(t, job.ReasonStartRefused, row.ErrorCode)
		require.Len(t, w.updates(), 2)
	})

	t.Run("a corrected job under the same id runs", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		w.add(job.Agent, "jobId", "j1", "userId", "u1")
		w.agentJob("j1")
		w.finish(w.started(job.Agent, "j1"), good("ok"))
		w.settled(job.Agent)
		require.Len(t, w.updates(), 2)
	})
}

// B55 with a thousand entries is a row of the fault suite; each costs a row on disk.
func TestPoisonEntriesDoNotHoldUpTheRest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const poison = 300
	for i := range poison {
		w.add(job.Agent, "userId", "u"+strconv.Itoa(i))
	}
	for i := range 10 {
		w.agentJob("j" + strconv.Itoa(i))
	}
	w.run(w.bridge("b1"))
	for i := range 10 {
		w.finish(w.started(job.Agent, "j"+strconv.Itoa(i)), good("ok"))
	}
	w.settled(job.Agent)
	require.Len(t, w.updates(), poison+10)
	require.Len(t, w.dead(job.Agent), poison)
	require.Equal(t, poison, w.metrics.get("rejected agent task_missing"))
}

func TestLegacyChatList(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(w.bridge("b1", func(b *Bridge) { b.cfg.ChatList = "chat.jobs" }))
	w.redis("RPUSH", "chat.jobs", `{"UserId":"u1","ConnectionId":"c1","Message":"hello","ProjectId":"p1","NodeLevel":"Manager","Model":"m"}`)
	w.redis("RPUSH", "chat.jobs", `not json`)
	var id string
	w.eventually("the chat runs", func() bool {
		ids := w.temporal.startedIDs()
		if len(ids) == 1 {
			id = ids[0]
		}
		return len(ids) == 1
	})
	run := w.started(job.Chat, id)
	require.Equal(t, "hello", run.input.Job.Task)
	require.Equal(t, "c1", run.input.Job.ConnectionID)
	require.Equal(t, job.SourceList, run.input.Job.Source)
	w.finish(run, good("hi"))
	w.eventually("what cannot be decoded is not lost", func() bool { return len(w.dead(job.Chat)) == 1 })
	w.settled(job.Chat)
	require.Equal(t, "0", w.redis("LLEN", "chat.jobs"))
}

func TestARejectedChatOfTheListIsAnsweredOnTheChannel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	recorder := &publishRecorder{Redis: w.open("b1")}
	w.run(w.bridge("b1", func(b *Bridge) { b.redis, b.cfg.ChatList = recorder, "chat.jobs" }))
	w.redis("RPUSH", "chat.jobs", `{"UserId":"u1","ConnectionId":"c1","Message":""}`)
	w.eventually("the update", func() bool { return len(w.updates()) == 1 })
	w.settled(job.Chat)
	update := recorder.last()
	require.Equal(t, "AI.RESPONSE", update.Channel)
	require.Contains(t, update.ChannelText, "error")
	require.Contains(t, update.ChannelText, job.ReasonChatMessageMissing)
	require.Contains(t, update.ChannelText, update.Job.ID)
	require.Equal(t, "c1", update.Job.ConnectionID)
}

func TestRedisFaults(t *testing.T) {
	t.Parallel()

	t.Run("FLUSHALL: jobs sent afterwards run", func(t *testing.T) { // F34
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		w.agentJob("j1")
		run := w.started(job.Agent, "j1")
		w.redis("FLUSHALL")
		w.agentJob("j2")
		w.finish(w.started(job.Agent, "j2"), good("ok"))
		w.finish(run, good("still told"))
		w.settled(job.Agent)
		require.Len(t, w.updates(), 2)
	})

	t.Run("XGROUP DESTROY: rows answer the replay", func(t *testing.T) { // F35
		t.Parallel()
		w := newWorld(t)
		w.run(w.bridge("b1"))
		for i := range 30 {
			w.agentJob("j" + strconv.Itoa(i))
			w.finish(w.started(job.Agent, "j"+strconv.Itoa(i)), good("ok"))
		}
		w.agentJob("open")
		run := w.started(job.Agent, "open")
		w.settledButOne()
		w.redis("XGROUP", "DESTROY", "jobs:agent", "executor-group")
		w.settledButOne()
		w.finish(run, good("ok"))
		w.settled(job.Agent)
		require.Len(t, w.temporal.startedIDs(), 31)
		require.Len(t, w.updates(), 31)
	})

	t.Run("a deleted pending entry is acknowledged and counted", func(t *testing.T) { // F36, B52
		t.Parallel()
		w := newWorld(t)
		require.NoError(t, w.client.EnsureGroup(t.Context(), "jobs:agent"))
		lost := w.agentJob("lost")
		gone := w.agentJob("gone")
		_, err := w.open("b1").ReadNew(t.Context(), "jobs:agent", 1, time.Millisecond)
		require.NoError(t, err)
		_, err = w.open("b0").ReadNew(t.Context(), "jobs:agent", 1, time.Millisecond)
		require.NoError(t, err)
		w.redis("XDEL", "jobs:agent", lost, gone)
		// One is its own, one a dead consumer's. The reconciler must not be faster.
		w.run(w.bridge("b1", func(b *Bridge) { b.timing.suspectIdle = time.Hour }))
		w.settled(job.Agent)
		w.eventually("both are counted", func() bool { return w.metrics.get("lost agent") == 2 })
		require.Empty(t, w.temporal.startedIDs())
	})

	t.Run("a key that is no stream stops only its own role", func(t *testing.T) { // B53
		t.Parallel()
		w := newWorld(t)
		w.redis("SET", "jobs:manager", "a string")
		b := w.bridge("b1")
		w.run(b)
		w.agentJob("j1")
		w.finish(w.started(job.Agent, "j1"), good("ok"))
		w.eventually("readiness names the stream", func() bool {
			err := b.Ready(t.Context())
			return err != nil && strings.Contains(err.Error(), "jobs:manager")
		})
		require.NotContains(t, b.Ready(t.Context()).Error(), "jobs:agent")
		w.redis("DEL", "jobs:manager")
		w.eventually("it heals", func() bool { return b.Ready(t.Context()) == nil })
		w.add(job.Manager, "jobId", "m1", "task", "x")
		w.started(job.Manager, "m1")
	})

	t.Run("Redis is killed and comes back", func(t *testing.T) { // F30
		t.Parallel()
		w := newWorld(t)
		b := w.bridge("b1")
		w.run(b)
		w.agentJob("j1")
		w.started(job.Agent, "j1")
		w.server.Kill()
		w.eventually("not ready", func() bool { return b.Ready(t.Context()) != nil })
		w.server.Restart(t)
		w.agentJob("j2")
		w.finish(w.started(job.Agent, "j2"), good("ok"))
		w.eventually("ready", func() bool { return b.Ready(t.Context()) == nil })
	})
}

// settledButOne waits until all but one of the agent's entries are acknowledged.
func (w *world) settledButOne() {
	w.t.Helper()
	w.eventually("all but one are settled", func() bool {
		stats, err := w.client.Stats(w.t.Context(), job.Agent.Stream())
		return err == nil && stats.Pending == 1 && stats.Lag == 0 && w.pending(job.Agent) == 1
	})
}

func TestPublishingIsRetriedUntilRedisTakesIt(t *testing.T) { // F39, F40
	t.Parallel()
	w := newWorld(t)
	flaky := &publishRecorder{Redis: w.open("b1"), failures: 3}
	w.run(w.bridge("b1", func(b *Bridge) { b.redis = flaky }))
	w.add(job.Agent, "userId", "u1")
	w.settled(job.Agent)
	require.Len(t, w.updates(), 1)
	require.Equal(t, 3, w.metrics.get("error agent publish"))
	require.Equal(t, 1, w.metrics.get("rejected agent task_missing"))
}

func TestStoreDownPausesIntake(t *testing.T) { // F43
	t.Parallel()
	w := newWorld(t)
	b := w.bridge("b1")
	w.run(b)
	w.agentJob("before")
	run := w.started(job.Agent, "before")
	w.rows.set(true)
	for i := range 100 {
		w.agentJob("j" + strconv.Itoa(i))
	}
	w.eventually("trouble is known", func() bool { return b.Ready(t.Context()) != nil })
	require.ErrorContains(t, b.Ready(t.Context()), "store_read")
	w.ack(run) // acknowledgements go on
	errorsSeen := w.metrics.get("error agent store_read")
	w.eventually("it is tried again", func() bool { return w.metrics.get("error agent store_read") >= errorsSeen+5 })
	require.LessOrEqual(t, w.pending(job.Agent), int64(batchSize), "at most one batch was taken into flight")
	require.Equal(t, []string{"before"}, w.temporal.startedIDs())
	w.rows.set(false)
	for i := range 100 {
		w.started(job.Agent, "j"+strconv.Itoa(i))
	}
	w.eventually("ready", func() bool { return b.Ready(t.Context()) == nil })
}

func TestAStoreThatOnlyReadsPausesIntakeQuietly(t *testing.T) { // F45
	t.Parallel()
	w := newWorld(t)
	var log safeBuffer
	b := w.bridge("b1", func(b *Bridge) {
		for _, l := range b.lanes {
			l.log = slog.New(slog.NewTextHandler(&log, nil))
		}
	})
	w.rows.setReadOnly(true)
	w.run(b)
	w.add(job.Agent, "userId", "u1") // no task: its rejection has to be written
	w.eventually("trouble is known", func() bool { return b.Ready(t.Context()) != nil })
	require.ErrorContains(t, b.Ready(t.Context()), "store_write")
	for i := range 50 {
		w.agentJob("j" + strconv.Itoa(i))
	}
	seen := w.metrics.get("error agent store_write")
	w.eventually("it is tried again", func() bool { return w.metrics.get("error agent store_write") >= seen+10 })
	require.Empty(t, w.temporal.startedIDs())
	require.EqualValues(t, 1, w.pending(job.Agent))
	require.Equal(t, 1, strings.Count(log.String(), "intake has to wait"))
	require.NotContains(t, log.String(), "trouble is over")

	w.rows.setReadOnly(false)
	for i := range 50 {
		w.started(job.Agent, "j"+strconv.Itoa(i))
	}
	w.eventually("ready", func() bool { return b.Ready(t.Context()) == nil })
	require.Equal(t, 1, strings.Count(log.String(), "trouble is over"))
	require.Len(t, w.updates(), 1)
}

func TestTemporalDown(t *testing.T) { // F20, F25
	t.Parallel()

	t.Run("intake slows down and everything runs afterwards, in order", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.temporal.fault = func(StartRequest) error { return errors.New("unavailable") }
		b := w.bridge("b1", func(b *Bridge) { b.cfg.MaxInFlight = 40 })
		w.run(b)
		var want []string
		for i := range 60 {
			want = append(want, fmt.Sprintf("j%02d", i))
			w.agentJob(want[i])
		}
		w.eventually("trouble is known", func() bool { return b.Ready(t.Context()) != nil })
		w.eventually("it is tried again", func() bool { return w.metrics.get("error agent temporal") > 50 })
		require.LessOrEqual(t, w.pending(job.Agent), int64(40))
		w.temporal.set(func(f *fakeTemporal) { f.fault = nil })
		for _, id := range want {
			w.finish(w.started(job.Agent, id), good("ok"))
		}
		w.settled(job.Agent)
		require.ElementsMatch(t, want, w.temporal.startedIDs())
		w.eventually("ready", func() bool { return b.Ready(t.Context()) == nil })
	})

	t.Run("one entry that never starts does not hold up the others", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.temporal.fault = func(r StartRequest) error {
			if strings.HasPrefix(r.Input.Job.ID, "odd") {
				return errors.New("internal error")
			}
			return nil
		}
		w.run(w.bridge("b1"))
		for i := range 20 {
			w.agentJob("odd" + strconv.Itoa(i))
		}
		for i := range 30 {
			w.agentJob("j" + strconv.Itoa(i))
		}
		for i := range 30 {
			w.finish(w.started(job.Agent, "j"+strconv.Itoa(i)), good("ok"))
		}
		require.EqualValues(t, 20, w.pending(job.Agent), "kept, not dropped")
		require.Empty(t, w.dead(job.Agent))
	})
}

func TestABridgeRunsOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.bridge("b1")
	require.Error(t, b.Ready(t.Context()), "not running yet")
	w.run(b)()
	require.ErrorContains(t, b.Run(t.Context()), "run before")
}
