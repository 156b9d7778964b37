//go:build chaos

package chaos

import (
	"bytes"
	"context"
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

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/redisd"
)

// redisFaults are those of Redis and of the way to it.
func redisFaults() []fault {
	return slices.Concat(redisConnectionFaults(), redisMemoryFaults(), redisEntryFaults(), redisServiceFaults())
}

// redisConnectionFaults are those of the network between us and a healthy Redis.
func redisConnectionFaults() []fault {
	return []fault{
		{
			id: "F02", name: "connection cut while the reply to a read travels",
			run: func(w *world) {
				w.system()
				const times = 4
				w.bridgeRedis.cutAt(down, "jobId", times)
				// One by one, so that each cut hides one entry and not all of them.
				for range times {
					w.await(w.submit("agent", ""))
				}
				require.Equal(w.T, times, w.bridgeRedis.wasCut(down), "replies with entries that were lost")
				w.bridgeRedis.heal()
				w.heal()
				w.await(w.load(4)...)
			},
		},
		{
			id: "F30b", name: "Redis cannot be reached when the executors start",
			run: func(w *world) {
				w.bridgeRedis.cut()
				w.workerRedis.cut()
				jobs := w.load(8)
				s := w.launchSystem()
				w.Wait("the bridge says that Redis is away", func(ctx context.Context) error {
					if s.bridge.ready(ctx) == nil || !strings.Contains(s.bridge.Log(), "intake has to wait") {
						return errors.New("it does not")
					}
					return nil
				})
				w.pass(outage(time.Minute, 5*time.Second))
				w.bridgeRedis.join()
				w.workerRedis.join()
				w.heal()
				w.await(jobs...)
			},
		},
		{
			id: "F41", name: "Redis answers nobody for a while (CLIENT PAUSE ALL)",
			run: func(w *world) {
				w.system()
				jobs := w.hanging(8)
				d := outage(20*time.Second, 8*time.Second)
				began := time.Now()
				require.NoError(w.T, w.Redis.Do(w.T.Context(), "CLIENT", "PAUSE", d.Milliseconds(), "ALL").Err())
				w.answerAll()
				w.rows(jobs...)
				require.Less(w.T, time.Since(began), d, "the answers were to arrive while Redis pauses")
				w.pass(d - time.Since(began))
				w.heal()
				w.await(jobs...)
			},
		},
		{
			id: "F41b", name: "every reply of Redis takes 2.5 s, longer than the first try of a final step",
			run: func(w *world) {
				s := w.system()
				w.bridgeRedis.toxic("latency", down, map[string]any{"latency": 2500})
				w.workerRedis.toxic("latency", down, map[string]any{"latency": 2500})
				jobs := w.load(8)
				w.await(jobs...)
				require.NotContains(w.T, s.bridge.Log(), "took over entries", "the bridge is slow, not dead")
				w.bridgeRedis.heal()
				w.workerRedis.heal()
				w.heal()
			},
		},
		{
			id: "F42", name: "half-open connections to Redis: requests arrive, replies do not",
			run: func(w *world) {
				s := w.system()
				w.bridgeRedis.toxic("timeout", down, map[string]any{"timeout": 0})
				w.workerRedis.toxic("timeout", down, map[string]any{"timeout": 0})
				jobs := w.load(8)
				w.Wait("the bridge notices", func(ctx context.Context) error {
					require.NoError(w.T, proc.HTTPReady(s.bridge.Health+"/healthz")(ctx), "nothing is wrong with the process itself")
					if s.bridge.ready(ctx) == nil {
						return errors.New("it is ready")
					}
					return nil
				})
				// Not of every stream: a reader may have been asking for something else.
				var hidden int64
				for _, role := range roles {
					p, err := w.Redis.XPending(w.T.Context(), "jobs:"+role, harness.Group).Result()
					require.NoError(w.T, err)
					hidden += p.Count
				}
				require.Positive(w.T, hidden, "entries that were hidden in a lost reply")
				w.pass(outage(time.Minute, 0))
				w.bridgeRedis.heal()
				w.workerRedis.heal()
				w.heal()
				w.await(jobs...)
			},
		},
		{
			id: "F42b", name: "connection cut while updates travel, then while replies to publishing and acknowledging do",
			run: func(w *world) {
				w.system()
				const times = 6
				w.workerRedis.cutAt(up, "MessageId", times) // row committed, update not there
				w.await(w.load(8)...)
				require.Equal(w.T, times, w.workerRedis.wasCut(up))
				w.workerRedis.heal()
				w.workerRedis.cutAt(down, ":1\r\n", times) // what it asked for was done
				w.await(w.load(8)...)
				w.Wait("replies are lost", func(context.Context) error {
					if n := w.workerRedis.wasCut(down); n < times {
						return fmt.Errorf("%d so far", n)
					}
					return nil
				})
				w.workerRedis.heal()
				w.heal()
			},
		},
	}
}

// redisMemoryFaults are those after which Redis does not know any more what it
// has confirmed.
func redisMemoryFaults() []fault {
	return []fault{
		{
			id: "F30", name: "Redis killed, append-only file synced each second",
			setup: setup{env: map[string]string{"BRIDGE_MAX_IN_FLIGHT": "4"}},
			run: func(w *world) {
				w.system()
				w.await(w.load(4)...)
				jobs := w.hangingOf("agent", 4)
				for range 6 {
					jobs = append(jobs, w.submit("agent", "")) // no room for them: unread
				}
				_ = w.aofSize() // a slow disk may hold it up, which is F33
				w.RedisServer.Process().Kill()
				w.answerAll()
				w.pass(outage(time.Minute, 4*time.Second))
				w.restartRedis()
				w.heal()
				require.EqualValues(w.T, 11, w.Redis.XLen(w.T.Context(), "jobs:agent").Val(), "every entry survives")
				w.await(jobs...)
			},
		},
		{
			id: "F30c", name: "Redis killed and emptied while jobs hold and wait for permits of MAX_TOTAL",
			setup: setup{volatile: true, env: map[string]string{"MAX_TOTAL": "2"}},
			run: func(w *world) {
				w.system()
				w.LLM.Script(map[string]any{"hang": true})
				jobs := w.load(8)
				w.calling(2)
				w.Wait("all jobs are started", func(ctx context.Context) error { return w.openRuns(ctx, len(jobs)) })
				w.unwatched(func() {
					w.RedisServer.Process().Kill()
					w.pass(outage(time.Minute, 4*time.Second))
					w.restartRedis()
				})
				w.heal()
				w.answerAll()
				w.await(jobs...)
				require.LessOrEqual(w.T, w.LLM.Stats().MaxRunning, 2, "MAX_TOTAL")
			},
		},
		{
			id: "F31", name: "Redis killed that has no append-only file",
			setup: setup{volatile: true, env: map[string]string{"BRIDGE_MAX_IN_FLIGHT": "4"}},
			note:  "the executor warns of such a Redis when it starts",
			run: func(w *world) {
				w.emptied(func() { w.RedisServer.Process().Kill() })
			},
		},
		{
			id: "F32", name: "Redis stopped that keeps nothing on disk (save \"\")",
			setup: setup{volatile: true, env: map[string]string{"BRIDGE_MAX_IN_FLIGHT": "4"}},
			note:  "as F31",
			run: func(w *world) {
				w.emptied(func() { require.NoError(w.T, w.RedisServer.Process().Stop(w.T.Context(), harness.Patience)) })
			},
		},
		{
			id: "F33", name: "power fails: updates and acknowledgements of the last second are lost",
			note: "simulated: killed, and the end of the append-only file cut off in the middle of a command",
			run: func(w *world) {
				w.system()
				w.await(w.load(4)...)
				jobs := w.hanging(8)
				w.bridgeRedis.cut() // the next entries are to survive, but not their reads
				for range 2 {
					j := w.submit("agent", "!fail 400")
					j.status = "failed"
					jobs = append(jobs, j)
				}
				mark := w.aofSize()
				w.bridgeRedis.join()
				w.answerAll()
				w.settled(jobs...)
				w.powerLoss(func(all []aofCommand) int64 { return all[first(all, mark)].at + 7 })
				require.Empty(w.T, w.withUpdate(jobs), "updates that survived")
				require.Zero(w.T, w.Redis.XLen(w.T.Context(), "jobs:agent:dead").Val(), "dead letters that survived")
				w.heal()
				w.settled(jobs...)
				dead := w.DeadLetters("agent")
				require.Len(w.T, dead, 2)
				for _, letter := range dead {
					require.Len(w.T, w.Rows("dead_id = ?", letter.ID), 1)
				}
			},
		},
		{
			id: "F33b", name: "power fails: half of the last updates and acknowledgements are lost",
			note: "as F33, between two commands",
			run: func(w *world) {
				w.system()
				jobs := w.hanging(12)
				mark := w.aofSize()
				w.answerAll()
				w.settled(jobs...)
				w.powerLoss(func(all []aofCommand) int64 {
					var updates []int
					for i := first(all, mark); i < len(all); i++ {
						if all[i].is("XADD", harness.Updates) {
							updates = append(updates, i)
						}
					}
					return all[updates[len(updates)/2]].at
				})
				left := w.withUpdate(jobs)
				require.NotEmpty(w.T, left)
				require.Less(w.T, len(left), len(jobs), "updates that survived")
				w.heal()
				w.settled(jobs...)
			},
		},
		{
			id: "F33c", name: "power fails: the group, its reads and all that came after are lost",
			note: "as F33; every entry is delivered again and answered from its row",
			run: func(w *world) {
				jobs := w.load(8)
				mark := w.aofSize()
				s := w.system()
				w.settled(jobs...)
				w.powerLoss(func(all []aofCommand) int64 { return all[first(all, mark)].at })
				_, err := w.Redis.XPending(w.T.Context(), "jobs:agent", harness.Group).Result()
				require.ErrorContains(w.T, err, "NOGROUP")
				w.heal()
				w.settled(jobs...)
				require.Positive(w.T, w.counted(s.bridge, "executor_bridge_errors_total", `kind="group_lost"`))
			},
		},
		{
			id: "F33d", name: "power fails: entries just submitted are lost",
			setup: setup{env: map[string]string{"BRIDGE_MAX_IN_FLIGHT": "4"}},
			note:  "what had begun is finished, and what is submitted again is answered from its row",
			run: func(w *world) {
				w.system()
				kept := w.hangingOf("manager", 2)
				mark := w.aofSize()
				ended := []*jobRecord{w.submit("chat", ""), w.submit("inspector", "")}
				w.calling(4)
				w.answerAll()
				w.settled(append(ended, kept...)...)
				begun := w.hangingOf("agent", 4)
				unread := []*jobRecord{w.submit("agent", ""), w.submit("agent", "")}
				lose("Redis confirmed their entries and lost them before anybody read them: no copy is left, and only the producer can know", unread...)
				untell("Redis lost their updates together with their entries: nothing is left to deliver again", ended...)
				w.powerLoss(func(all []aofCommand) int64 {
					return all[slices.IndexFunc(all, func(c aofCommand) bool { return c.at >= mark && c.is("XADD", "jobs:") })].at
				})
				for _, j := range slices.Concat(ended, begun, unread) {
					require.Empty(w.T, w.Redis.XRange(w.T.Context(), j.stream(), j.entries[0], j.entries[0]).Val())
				}
				w.answerAll()
				w.heal()
				w.await(slices.Concat(kept, begun)...)
				// The only one who can know is the producer.
				w.resend(slices.Concat(ended, unread)...)
				w.await(slices.Concat(ended, unread)...)
			},
		},
		{
			id: "F33e", name: "power fails: who holds the permits of MAX_TOTAL is lost",
			setup: setup{env: map[string]string{"MAX_TOTAL": "2"}},
			run: func(w *world) {
				w.bridge(nil)
				w.worker("workflows", nil)
				holder := w.worker("agent", nil)
				jobs := w.hangingOf("agent", 2)
				w.worker("manager", nil)
				jobs = append(jobs, w.submit("manager", ""), w.submit("manager", ""))
				w.Wait("two jobs wait for permits", w.waiting)
				holder.signal(syscall.SIGSTOP) // the others come first
				w.powerLoss(func(all []aofCommand) int64 {
					return all[slices.IndexFunc(all, func(c aofCommand) bool { return c.is("ZADD", "{executor:total}:held") })].at
				})
				require.EqualValues(w.T, 1, w.Redis.Exists(w.T.Context(), "{executor:total}:epoch").Val(), "Redis has not lost everything")
				w.Wait("they ask again", func(ctx context.Context) error {
					if w.LLM.Stats().Running > 2 {
						return nil // and are granted; the limit is looked at below
					}
					return w.waiting(ctx)
				})
				holder.signal(syscall.SIGCONT)
				w.heal()
				w.pass(outage(20*time.Second, 5*time.Second))
				w.answerAll()
				w.await(jobs...)
				require.LessOrEqual(w.T, w.LLM.Stats().MaxRunning, 2, "MAX_TOTAL")
			},
		},
		{
			id: "F34", name: "FLUSHALL while a read blocks",
			setup: setup{env: map[string]string{"BRIDGE_MAX_IN_FLIGHT": "4"}},
			run: func(w *world) {
				w.emptied(nil)
			},
		},
		{
			id: "F34b", name: "streams deleted while entries wait to be started",
			note: "the bridge counts the lost ones",
			run: func(w *world) {
				s := w.system()
				w.await(w.load(4)...)
				lost := w.unstarted("agent", 3, "their stream was deleted before they were started: the entry is all there is of a job until then")
				w.unwatched(func() {
					require.NoError(w.T, w.Redis.Del(w.T.Context(), "jobs:agent", "jobs:chat").Err())
				})
				chat := w.submit("chat", "")
				w.Wait("the other stream is read again", func(ctx context.Context) error { return w.pendingOf(ctx, "chat", 1) })
				w.lost(s.bridge, lost)
				w.toTemporal.join()
				w.heal()
				w.await(append(w.load(4), chat)...)
			},
		},
		{
			id: "F38", name: "failover to a replica that lags behind",
			note: "the replica was cut off before the last updates, acknowledgements and entries",
			run:  failover,
		},
		{
			id: "F38b", name: "failover while the workers go on talking to the old master",
			note: "what they told the old master is told again to the new one",
			run:  splitBrain,
		},
	}
}

// redisEntryFaults are those of operators who are not careful.
func redisEntryFaults() []fault {
	return []fault{
		{
			id: "F35", name: "XGROUP DESTROY with jobs done and jobs running",
			note: "the whole stream is delivered again and answered from the rows",
			run: func(w *world) {
				s := w.system()
				done := w.load(12)
				w.settled(done...)
				running := w.hanging(4)
				for _, role := range roles {
					require.NoError(w.T, w.Redis.XGroupDestroy(w.T.Context(), "jobs:"+role, harness.Group).Err())
				}
				for _, role := range roles {
					w.Wait("jobs:"+role+" is read again", func(ctx context.Context) error {
						groups, err := w.Redis.XInfoGroups(ctx, "jobs:"+role).Result()
						if err != nil || len(groups) != 1 || groups[0].EntriesRead != 4 {
							return fmt.Errorf("groups are %+v, %w", groups, err)
						}
						return nil
					})
				}
				w.answerAll()
				w.heal()
				w.settled(slices.Concat(done, running)...)
				require.Positive(w.T, w.counted(s.bridge, "executor_bridge_errors_total", `kind="group_lost"`))
			},
		},
		{
			id: "F36", name: "pending entries deleted (XDEL, XTRIM), started or not",
			note: "the bridge counts the lost ones",
			run: func(w *world) {
				s := w.system()
				running := w.hangingOf("agent", 3)
				for _, j := range running {
					require.EqualValues(w.T, 1, w.Redis.XDel(w.T.Context(), j.stream(), j.entries[0]).Val())
				}
				w.answerAll()
				w.settled(running...)

				lost := w.unstarted("agent", 3, "their entries were deleted before they were started: the entry is all there is of a job until then")
				require.EqualValues(w.T, 3, w.Redis.XTrimMaxLen(w.T.Context(), "jobs:agent", 0).Val())
				w.lost(s.bridge, lost)
				w.toTemporal.join()
				w.heal()
				w.await(w.load(4)...)
			},
		},
		{
			id: "F37", name: "XGROUP DELCONSUMER of a consumer with pending entries, started or not",
			note: "the bridge takes those that it knows of back",
			run: func(w *world) {
				s := w.system()
				running := w.hangingOf("manager", 3)
				// What is not pending any more looks acknowledged to the watcher.
				w.unwatched(func() {
					w.deleteConsumer("manager", 3)
					w.answerAll()
					w.settled(running...)
				})
				waiting := w.unstarted("agent", 3, "")
				w.unwatched(func() {
					w.deleteConsumer("agent", 3)
					w.toTemporal.join()
					w.heal()
					w.settled(waiting...)
				})
				require.Zero(w.T, w.counted(s.bridge, "executor_entries_lost_total"))
			},
		},
		{
			id: "F37b", name: "XGROUP DELCONSUMER of a consumer that is no bridge, before any bridge runs and while one does",
			setup: setup{env: map[string]string{"CLAIM_MIN_IDLE": "9s"}},
			note:  "the bridge reports those it has never seen pending and takes the others back",
			run: func(w *world) {
				require.NoError(w.T, w.Redis.XGroupCreateMkStream(w.T.Context(), "jobs:chat", harness.Group, "0").Err())
				unseen := []*jobRecord{w.submit("chat", ""), w.submit("chat", "")}
				lose("a consumer that had read their entries was deleted before any bridge ran; such entries look like those that another program has done", unseen...)
				w.ghostReads("chat", len(unseen))
				w.deleteGhost("chat", len(unseen))

				s := w.system()
				w.unaccounted(s.bridge, "chat", "reported", len(unseen))
				running := w.hangingOf("agent", 1)
				w.bridgeRedis.cut()
				w.Wait("the bridge reads no more", func(ctx context.Context) error {
					if info := w.Redis.Info(ctx, "clients").Val(); !strings.Contains(info, "blocked_clients:0\r") {
						return errors.New("somebody does")
					}
					return nil
				})
				seen := []*jobRecord{w.submit("manager", ""), w.submit("manager", ""), w.submit("manager", "")}
				w.ghostReads("manager", len(seen))
				w.bridgeRedis.join()
				w.surveyed(running[0], func(ctx context.Context) error {
					return w.Redis.XClaimJustID(ctx, &redis.XClaimArgs{
						Stream: "jobs:manager", Group: harness.Group, Consumer: ghost,
						Messages: []string{seen[0].entries[0], seen[1].entries[0], seen[2].entries[0]},
					}).Err()
				})
				w.unwatched(func() {
					w.deleteGhost("manager", len(seen))
					w.answerAll()
					w.heal()
					w.settled(append(seen, running...)...)
				})
				w.unaccounted(s.bridge, "manager", "restored", len(seen))
			},
		},
	}
}

// ghost is a consumer of the group that is no bridge and counts as alive.
const ghost = "ghost"

// ghostReads lets the ghost read entries that nobody has read.
func (w *world) ghostReads(role string, n int) {
	w.T.Helper()
	ctx := w.T.Context()
	require.NoError(w.T, w.Redis.Set(ctx, "{executor}:alive:"+harness.Group+":"+ghost, "x", time.Hour).Err())
	read, err := w.Redis.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: harness.Group, Consumer: ghost, Streams: []string{"jobs:" + role, ">"}, Count: 100, Block: -1,
	}).Result()
	require.NoError(w.T, err)
	require.Len(w.T, read, 1)
	require.Len(w.T, read[0].Messages, n)
}

func (w *world) deleteGhost(role string, pending int) {
	w.T.Helper()
	n, err := w.Redis.XGroupDelConsumer(w.T.Context(), "jobs:"+role, harness.Group, ghost).Result()
	require.NoError(w.T, err)
	require.EqualValues(w.T, pending, n)
}

// surveyed waits until the reconciler has looked at what is pending. It refreshes the
// entry of an open run then, which is no delivery. Each time before it asks, it does
// something else.
func (w *world) surveyed(running *jobRecord, meanwhile func(context.Context) error) {
	w.T.Helper()
	var before redis.XPendingExt
	w.Wait("the reconciler has looked", func(ctx context.Context) error {
		if err := meanwhile(ctx); err != nil {
			return err
		}
		id := running.entries[0]
		pending, err := w.Redis.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: running.stream(), Group: harness.Group, Start: id, End: id, Count: 1,
		}).Result()
		if err != nil || len(pending) != 1 {
			return fmt.Errorf("%d pending: %w", len(pending), err)
		}
		last := before
		before = pending[0]
		if before.RetryCount != last.RetryCount || before.Idle >= last.Idle {
			return fmt.Errorf("not for %s", before.Idle)
		}
		return nil
	})
}

// unaccounted waits until the bridge has counted entries without row and run.
func (w *world) unaccounted(bridge *process, role, kind string, n int) {
	w.T.Helper()
	w.Wait("entries without row and run are counted", func(context.Context) error {
		got := w.counted(bridge, "executor_entries_unaccounted_total", `role="`+role+`"`, `kind="`+kind+`"`)
		if got != float64(n) {
			return fmt.Errorf("%v are, not %d", got, n)
		}
		return nil
	})
}

// redisServiceFaults are those of a Redis that is there and refuses.
func redisServiceFaults() []fault {
	return []fault{
		{
			id: "F39", name: "Redis out of memory",
			run: func(w *world) {
				w.system()
				jobs := w.hanging(8)
				require.NoError(w.T, w.Redis.ConfigSet(w.T.Context(), "maxmemory", "1").Err())
				w.refused("OOM", func() {
					w.answerAll()
					w.rows(jobs...)
				}, jobs)
				require.NoError(w.T, w.Redis.ConfigSet(w.T.Context(), "maxmemory", "0").Err())
				w.heal()
				w.settled(jobs...)
			},
		},
		{
			id: "F40", name: "Redis has no disk left, append-only file synced each second",
			run: func(w *world) {
				w.system()
				jobs := w.hanging(8)
				w.limitFiles(w.RedisServer.Process(), w.aofSize())
				w.refused("MISCONF", func() {
					w.answerAll()
					w.rows(jobs...)
				}, jobs)
				w.limitFiles(w.RedisServer.Process(), unlimited)
				w.heal()
				w.settled(jobs...)
			},
		},
		{
			id: "F40b", name: "Redis has no disk left, every write synced: it exits",
			setup: setup{redisArgs: []string{"--appendfsync", "always"}},
			run: func(w *world) {
				w.system()
				jobs := w.hanging(8)
				w.limitFiles(w.RedisServer.Process(), w.aofSize())
				w.answerAll()
				select {
				case <-w.RedisServer.Process().Done():
				case <-time.After(harness.Patience):
					require.Fail(w.T, "Redis goes on without a disk")
				}
				w.pass(outage(time.Minute, 2*time.Second))
				w.restartRedis()
				w.heal()
				w.settled(jobs...)
			},
		},
	}
}

// hanging submits ordinary jobs of all roles and waits until the LLM calls of all
// of them hang. answerAll ends that.
func (w *world) hanging(n int) []*jobRecord {
	w.T.Helper()
	w.LLM.Script(map[string]any{"hang": true})
	jobs := w.load(n)
	w.calling(n)
	return jobs
}

// hangingOf is hanging for one role.
func (w *world) hangingOf(role string, n int) []*jobRecord {
	w.T.Helper()
	w.LLM.Script(map[string]any{"hang": true})
	jobs := make([]*jobRecord, 0, n)
	for range n {
		jobs = append(jobs, w.submit(role, ""))
	}
	w.calling(n)
	return jobs
}

// answerAll lets the LLM answer everything from now on.
func (w *world) answerAll() {
	w.T.Helper()
	w.LLM.Script(map[string]any{"hang": false})
	w.LLM.Release()
}

// settled waits until jobs have their updates and their entries are acknowledged.
func (w *world) settled(jobs ...*jobRecord) {
	w.T.Helper()
	w.await(jobs...)
	w.WaitFor(restPatience, "entries are acknowledged", func(ctx context.Context) error {
		for _, role := range roles {
			if err := w.pendingOf(ctx, role, 0); err != nil {
				return err
			}
		}
		return nil
	})
}

func (w *world) pendingOf(ctx context.Context, role string, want int64) error {
	p, err := w.Redis.XPending(ctx, "jobs:"+role, harness.Group).Result()
	if err != nil {
		return err
	}
	if p.Count != want {
		return fmt.Errorf("jobs:%s: %d pending, not %d", role, p.Count, want)
	}
	return nil
}

// rows waits until jobs have their rows.
func (w *world) rows(jobs ...*jobRecord) {
	w.T.Helper()
	w.Wait("rows are written", func(ctx context.Context) error {
		rows, err := w.statuses(ctx)
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if rows[j.key()] == "" {
				return fmt.Errorf("%s has none", j.key())
			}
		}
		return nil
	})
}

// withUpdate are those of jobs that have an update.
func (w *world) withUpdate(jobs []*jobRecord) []*jobRecord {
	w.T.Helper()
	counts, err := w.updateCounts(w.T.Context())
	require.NoError(w.T, err)
	return slices.DeleteFunc(slices.Clone(jobs), func(j *jobRecord) bool { return counts[j.key()] == 0 })
}

// ready asks an executor whether it is.
func (p *process) ready(ctx context.Context) error { return proc.HTTPReady(p.Health + "/readyz")(ctx) }

func (w *world) restartRedis() {
	w.T.Helper()
	require.NoError(w.T, w.RedisServer.Restart(w.T.Context()))
}

func (w *world) openRuns(ctx context.Context, want int) error {
	runs, err := w.runs(ctx)
	if err != nil {
		return err
	}
	open := 0
	for _, r := range runs {
		if r.GetCloseTime() == nil {
			open++
		}
	}
	if open != want {
		return fmt.Errorf("%d runs are open, not %d", open, want)
	}
	return nil
}

// waiting expects two jobs in the queue of MAX_TOTAL.
func (w *world) waiting(ctx context.Context) error {
	n, err := w.Redis.ZCard(ctx, "{executor:total}:queue").Result()
	if err == nil && n != 2 {
		err = fmt.Errorf("%d wait", n)
	}
	return err
}

// emptied takes everything from Redis while jobs are done, running and unread:
// by ending a Redis that keeps nothing, or by FLUSHALL where end is nil.
func (w *world) emptied(end func()) {
	w.T.Helper()
	s := w.system()
	w.settled(w.load(8)...)
	untell("their updates were told and went with the stream that held them; the answers are in the rows", w.list()...)
	running := w.hangingOf("agent", 4)
	for range 6 {
		lose("Redis confirmed their entries and lost them before anybody read them: no copy is left", w.submit("agent", ""))
	}
	const warning = "appendonly is off"
	w.unwatched(func() {
		if end == nil {
			require.NotContains(w.T, s.bridge.Log(), warning)
			require.NoError(w.T, w.Redis.FlushAll(w.T.Context()).Err())
			return
		}
		require.Contains(w.T, s.bridge.Log(), warning)
		end()
		w.pass(outage(time.Minute, 2*time.Second))
		w.restartRedis()
	})
	w.heal()
	w.answerAll()
	w.await(running...)
	w.await(w.load(8)...)
	require.Positive(w.T, w.counted(s.bridge, "executor_bridge_errors_total", `kind="group_lost"`))
}

// unstarted submits jobs while Temporal is away and waits until all are pending.
// Somebody else joins Temporal again.
func (w *world) unstarted(role string, n int, lost string) []*jobRecord {
	w.T.Helper()
	w.toTemporal.cut()
	jobs := make([]*jobRecord, 0, n)
	for range n {
		j := w.submit(role, "")
		if lost != "" {
			lose(lost, j)
		}
		jobs = append(jobs, j)
	}
	w.Wait("entries are read", func(ctx context.Context) error { return w.pendingOf(ctx, role, int64(n)) })
	return jobs
}

// lost waits until the bridge has counted the lost entries of some jobs. While
// Temporal is away it can start none of those it has in hand.
func (w *world) lost(bridge *process, jobs []*jobRecord) {
	w.T.Helper()
	w.Wait("lost entries are counted", func(context.Context) error {
		n := w.counted(bridge, "executor_entries_lost_total", `role="`+jobs[0].role+`"`)
		if n != float64(len(jobs)) {
			return fmt.Errorf("%v are, not %d", n, len(jobs))
		}
		return nil
	})
}

// deleteConsumer deletes the bridge's consumer with all it has pending.
func (w *world) deleteConsumer(role string, pending int64) {
	w.T.Helper()
	consumers, err := w.Redis.XInfoConsumers(w.T.Context(), "jobs:"+role, harness.Group).Result()
	require.NoError(w.T, err)
	require.Len(w.T, consumers, 1)
	n, err := w.Redis.XGroupDelConsumer(w.T.Context(), "jobs:"+role, harness.Group, consumers[0].Name).Result()
	require.NoError(w.T, err)
	require.Equal(w.T, pending, n)
}

// refused lets jobs end while Redis refuses to write for this reason, and sees
// that nothing is told or acknowledged meanwhile.
func (w *world) refused(reason string, end func(), jobs []*jobRecord) {
	w.T.Helper()
	w.Wait("Redis refuses", func(ctx context.Context) error {
		err := w.Redis.XAdd(ctx, &redis.XAddArgs{Stream: "probe", Values: []string{"a", "b"}}).Err()
		if err == nil || !strings.Contains(err.Error(), reason) {
			return fmt.Errorf("it says %w", err)
		}
		return nil
	})
	end()
	w.pass(outage(time.Minute, 4*time.Second))
	require.Empty(w.T, w.withUpdate(jobs))
	for _, role := range roles {
		require.NoError(w.T, w.pendingOf(w.T.Context(), role, int64(len(jobs)/len(roles))))
	}
}

const unlimited = -1

// limitFiles is a full disk for one process: no file of its may grow beyond a
// size.
func (w *world) limitFiles(p *proc.Process, size int64) {
	w.T.Helper()
	limit := strconv.FormatInt(size, 10)
	if size == unlimited {
		limit = "unlimited"
	}
	out, err := exec.CommandContext(w.T.Context(), "prlimit", //nolint:gosec // G204: a fixed program
		"--pid", strconv.Itoa(p.Pid()), "--fsize="+limit+":").CombinedOutput()
	require.NoError(w.T, err, "%s", out)
}

// aofFile is the append-only file that Redis writes at present.
func (w *world) aofFile() string {
	w.T.Helper()
	found, err := filepath.Glob(filepath.Join(w.Dir, "redis", "appendonlydir", "*.incr.aof"))
	require.NoError(w.T, err)
	require.Len(w.T, found, 1)
	return found[0]
}

// aofSize is how much Redis has written, when that is all it has confirmed. It
// writes before it replies, unless the disk is still busy with the last second.
func (w *world) aofSize() int64 {
	w.T.Helper()
	w.Wait("what Redis has confirmed is written", func(ctx context.Context) error {
		state, err := w.Redis.Info(ctx, "persistence").Result()
		if err == nil && !strings.Contains(state, "aof_buffer_length:0\r\n") {
			err = errors.New("some of it is not")
		}
		return err
	})
	info, err := os.Stat(w.aofFile())
	require.NoError(w.T, err)
	return info.Size()
}

// aofCommand is a command in the append-only file.
type aofCommand struct {
	at   int64 // its first byte
	args []string
}

// is reports whether it is that command on a key that begins so.
func (c aofCommand) is(name, key string) bool {
	return len(c.args) > 1 && strings.EqualFold(c.args[0], name) && strings.HasPrefix(c.args[1], key)
}

// first is the index of the first command at or behind that byte.
func first(all []aofCommand, at int64) int {
	return slices.IndexFunc(all, func(c aofCommand) bool { return c.at >= at })
}

func parseAOF(text []byte) ([]aofCommand, error) {
	var all []aofCommand
	pos := 0
	number := func(prefix byte) (int, error) {
		end := bytes.Index(text[pos:], []byte("\r\n"))
		if end < 1 || text[pos] != prefix {
			return 0, fmt.Errorf("no %c at byte %d", prefix, pos)
		}
		n, err := strconv.Atoi(string(text[pos+1 : pos+end]))
		pos += end + 2
		return n, err
	}
	for pos < len(text) {
		c := aofCommand{at: int64(pos)}
		n, err := number('*')
		if err != nil {
			return nil, err
		}
		for range n {
			size, err := number('$')
			if err != nil {
				return nil, err
			}
			c.args = append(c.args, string(text[pos:pos+size]))
			pos += size + 2
		}
		all = append(all, c)
	}
	return all, nil
}

// powerLoss kills Redis and starts it with what had reached the disk: its
// append-only file up to a byte.
func (w *world) powerLoss(upTo func([]aofCommand) int64) {
	w.T.Helper()
	w.unwatched(func() {
		w.RedisServer.Process().Kill()
		file := w.aofFile()
		text, err := os.ReadFile(file)
		require.NoError(w.T, err)
		all, err := parseAOF(text)
		require.NoError(w.T, err)
		size := upTo(all)
		require.Positive(w.T, size)
		require.Less(w.T, size, int64(len(text)), "nothing would be lost")
		require.NoError(w.T, os.Truncate(file, size))
		w.restartRedis()
	})
}

// replicated gives Redis a replica, and the way on which it follows.
func (w *world) replicated() (*redisd.Server, *edge) {
	w.T.Helper()
	require.NoError(w.T, w.Redis.ConfigSet(w.T.Context(), "repl-diskless-sync-delay", "0").Err())
	replication := newEdge(w.T, "replication", w.Port(), w.RedisServer.Address())
	return w.RedisReplica(replication.address()), replication
}

// upToDate waits until the replica knows everything. A write comes first: WAIT is
// about those of its own connection.
func (w *world) upToDate() {
	w.T.Helper()
	w.Wait("the replica is up to date", func(ctx context.Context) error {
		pipe := w.Redis.Pipeline()
		pipe.Set(ctx, "probe", "1", time.Minute)
		n := pipe.Do(ctx, "WAIT", 1, 1000)
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
		if n.Val() != int64(1) {
			return errors.New("it is not")
		}
		return nil
	})
}

// splitBrain is F38b.
func splitBrain(w *world) {
	replica, replication := w.replicated()
	w.system()
	w.settled(w.load(4)...)
	jobs := w.hanging(8)
	w.upToDate()
	replication.cut()
	w.unwatched(func() {
		w.bridgeRedis.retarget(replica.Address())
		w.UseRedis(replica)
		require.NoError(w.T, w.Redis.ReplicaOf(w.T.Context(), "NO", "ONE").Err())
	})
	w.answerAll()
	w.rows(jobs...)
	// They have told the old master, and hear from nobody that it is not one.
	w.Wait("the runs have ended", func(ctx context.Context) error { return w.openRuns(ctx, 0) })
	w.RedisServer.Process().Kill()
	w.workerRedis.retarget(replica.Address())
	w.heal()
	w.settled(jobs...)
}

// failover is F38.
func failover(w *world) {
	ctx := w.T.Context()
	replica, replication := w.replicated()
	s := w.system()
	w.settled(w.load(4)...)
	ending := w.hanging(8)
	w.upToDate()

	// The replica falls behind: of these it will know the entries and nothing else.
	replication.cut()
	w.answerAll()
	w.settled(ending...)
	// Of these it will know nothing.
	ended := w.load(4)
	w.settled(ended...)
	running := w.hanging(4)
	untell("only the old master had their entries and updates, because Redis replicates after it has confirmed; the answers are in the rows", ended...)

	// Clients are led to the replica before it is a master.
	w.unwatched(func() {
		w.bridgeRedis.retarget(replica.Address())
		w.workerRedis.retarget(replica.Address())
		w.RedisServer.Process().Kill()
		w.UseRedis(replica)
	})
	w.answerAll()
	w.Wait("writing to a replica is refused", func(context.Context) error {
		if !strings.Contains(s.bridge.Log(), "READONLY") {
			return errors.New("not yet")
		}
		return nil
	})
	require.Empty(w.T, w.withUpdate(slices.Concat(ending, ended, running)))
	require.NoError(w.T, w.Redis.ReplicaOf(ctx, "NO", "ONE").Err())
	w.heal()
	w.settled(slices.Concat(ending, running)...)
}
