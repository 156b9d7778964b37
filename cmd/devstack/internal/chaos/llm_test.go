//go:build chaos

package chaos

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
)

// llmFaults are those of the LLM and of the way to it. Its error messages quote
// the prompt in all of them, as some servers' do.
func llmFaults() []fault {
	return slices.Concat(llmOutages(), llmRefusals(), llmAnswers())
}

const (
	failedAttempts = "executor_activity_errors_total"
	runningJobs    = "executor_jobs_running"
	answersTotal   = "executor_llm_answers_total"
	usedSlots      = "temporal_worker_task_slots_used"
)

// llmOutages are those in which the LLM says nothing, or asks to be left alone.
func llmOutages() []fault {
	return []fault{
		{
			id: "F46", name: "LLM away for 10 minutes",
			run: func(w *world) {
				s := w.system()
				w.LLM.Script(map[string]any{"quote": true, "hang": true})
				calling := w.load(4)
				w.calling(4)
				w.toLLM.cut()
				hit(calling...)
				w.LLM.Script(map[string]any{"hang": false})
				waiting := w.load(12)
				away := outage(10*time.Minute, 15*time.Second)
				w.pass(away)
				require.GreaterOrEqual(w.T, w.counted(s.roles, failedAttempts, `kind="llm_unreachable"`), 16.0)
				w.toLLM.join()
				w.heal()
				w.await(slices.Concat(calling, waiting)...)
				// At first the delays double up to 15 s.
				most := int64(away/(15*time.Second)) + 10
				attempts := w.attemptsOfAll()
				for key, n := range attempts {
					require.LessOrEqual(w.T, n, most, key)
				}
				w.nobodyBuried()
				w.remark("at most %d attempts for one job", maxOf(attempts))
			},
		},
		{
			id: "F47", name: "429 with Retry-After: 7 for a minute, two worker processes, two slots each",
			setup: setup{env: map[string]string{"MAX_AGENT": "2"}},
			run: func(w *world) {
				s := w.system()
				workers := []*process{s.roles, w.worker("agent", nil)}
				w.LLM.Script(map[string]any{"quote": true, "status": 429, "retry_after": 7})
				began := time.Now()
				// What a process may call without having heard of the refusal, and one
				// probe for each window that has passed.
				allowed := func() int {
					return len(workers)*2 + len(workers)*int(time.Since(began)/(7*time.Second))
				}
				jobs := []*jobRecord{w.submit("agent", "")}
				w.pendingCall(jobs[0], waits)
				for range 11 {
					jobs = append(jobs, w.submit("agent", ""))
				}
				w.spread(jobs)
				require.LessOrEqual(w.T, w.LLM.Stats().Calls, allowed())
				w.slotsFree(workers...)

				storm := outage(time.Minute, 16*time.Second)
				w.pass(storm - time.Since(began))
				calls := w.LLM.Stats().Calls
				require.LessOrEqual(w.T, calls, allowed())
				require.Greater(w.T, calls, 1, "somebody asks again after the window")
				w.LLM.Script(map[string]any{"status": 0})
				for _, j := range jobs {
					// A job that was refused waits for the window to end, whoever else probes.
					j.calls = 1 + int(time.Since(began)/(7*time.Second)) + 1
				}
				most := allowed() + len(jobs)
				w.heal()
				w.await(jobs...)
				stats := w.LLM.Stats()
				require.LessOrEqual(w.T, stats.Calls, most, "all jobs together")
				var worked int64
				for _, n := range w.attemptsOfAll() {
					worked += n
				}
				require.EqualValues(w.T, stats.Calls, worked, "an attempt that only waited does not count as one")
				w.remark("%d calls of 12 jobs in a storm of %.0f s", calls, storm.Seconds())
			},
		},
		{
			id: "F52", name: "no answer, an answer byte by byte, half an answer",
			setup: setup{env: map[string]string{"LLM_TIMEOUT": "3s"}},
			run: func(w *world) {
				s := w.system()
				w.LLM.Script(map[string]any{"quote": true})
				var slow, cut []*jobRecord
				for _, role := range roles {
					slow = append(slow, w.submit(role, "!hang x1"), w.submit(role, "!drip 100ms x1"))
					cut = append(cut, w.submit(role, "!cut x1"))
				}
				hit(slow...)
				hit(cut...)
				w.await(slices.Concat(slow, cut)...)
				w.heal()
				require.EqualValues(w.T, len(slow), w.counted(s.roles, failedAttempts, `kind="llm_timeout"`))
				require.EqualValues(w.T, len(cut), w.counted(s.roles, failedAttempts, `kind="llm_unreachable"`))
			},
		},
		{
			id: "F54", name: "stream cut before [DONE]",
			cannot: "answers are not streamed; F52 cuts a whole one in half",
		},
		{
			id: "F55", name: "answers that arrive when the call's time is over",
			setup: setup{env: map[string]string{"LLM_TIMEOUT": "2s"}},
			run: func(w *world) {
				s := w.system()
				w.toLLM.toxic("latency", down, map[string]any{"latency": 3000})
				began := time.Now()
				jobs := w.load(4)
				w.Wait("each call timed out", func(context.Context) error {
					if n := w.counted(s.roles, failedAttempts, `kind="llm_timeout"`); n < 4 {
						return fmt.Errorf("%.0f have", n)
					}
					return nil
				})
				require.GreaterOrEqual(w.T, w.LLM.Stats().ByStatus[200], 4, "they were answered")
				w.toLLM.heal()
				for _, j := range jobs {
					// Each lost its answer but for the last.
					j.calls = callsWithin(time.Since(began), 2*time.Second, 15*time.Second) + 1
				}
				w.heal()
				w.await(jobs...)
				attempts := w.attemptsOfAll()
				for _, j := range jobs {
					require.Greater(w.T, attempts[j.key()], int64(1))
				}
			},
		},
	}
}

// llmRefusals are those in which the LLM answers that it will not.
func llmRefusals() []fault {
	return []fault{
		{
			id: "F48", name: "429 because the account is exhausted",
			run: func(w *world) {
				s := w.system()
				codes := []string{"insufficient_quota", "credit_balance_exhausted", "project_spend_limit_exceeded"}
				var rules []map[string]any
				for i, code := range codes {
					// A Retry-After would be obeyed if this were a rate limit.
					rules = append(rules, map[string]any{"contains": codeMark(i), "status": 429, "code": code, "retry_after": 1})
				}
				w.LLM.Script(map[string]any{"quote": true, "rules": rules})
				began := time.Now()
				jobs := make([]*jobRecord, 0, len(codes))
				for i := range codes {
					jobs = append(jobs, w.submit(roles[i], codeMark(i)))
				}
				for _, j := range jobs {
					// The delay doubles with every attempt, up to a minute.
					w.pendingCall(j, func(p *workflowpb.PendingActivityInfo) error {
						delay := p.GetCurrentRetryInterval().AsDuration().Round(time.Second)
						if p.GetAttempt() < 4 || delay != time.Second<<(p.GetAttempt()-2) {
							return fmt.Errorf("attempt %d, %s, waits %s", p.GetAttempt(), p.GetState(), delay)
						}
						require.Contains(w.T, p.GetLastFailure().GetMessage(), "llm_quota")
						return nil
					})
				}
				// No endpoint asked for patience: others are not held up.
				other := w.submit("chat", "")
				w.await(other)
				w.LLM.Script(map[string]any{"rules": []any{}})
				for _, j := range jobs {
					j.calls = callsWithin(time.Since(began), 0, time.Minute) + 1
				}
				w.heal()
				w.await(jobs...)
				stats := w.LLM.Stats()
				require.EqualValues(w.T, stats.ByStatus[429], w.counted(s.roles, failedAttempts, `kind="llm_quota"`), "loud in the metrics")
				w.nobodyBuried()
			},
		},
		{
			id: "F49", name: "401, 403, 404 of our settings, 400, 413, 422 of single jobs",
			run: func(w *world) {
				s := w.system()
				w.LLM.Script(map[string]any{"quote": true})
				var ours, theirs []*jobRecord
				for i, status := range []int{401, 403, 404} {
					ours = append(ours, w.submit(roles[i], "!fail "+strconv.Itoa(status)+" x3"))
				}
				for i, status := range []int{400, 413, 422} {
					theirs = append(theirs, w.submit(roles[i], "!fail "+strconv.Itoa(status)))
				}
				for _, j := range ours {
					j.calls = 4
				}
				for _, j := range theirs {
					j.status = "failed"
				}
				w.await(slices.Concat(ours, theirs)...)
				w.heal()
				require.EqualValues(w.T, 9, w.counted(s.roles, failedAttempts, `kind="llm_misconfigured"`))
				require.EqualValues(w.T, 3, w.counted(s.roles, failedAttempts, `kind="llm_bad_request"`))
				for _, j := range theirs {
					row := w.Row(j.role, j.id)
					require.Equal(w.T, "llm_bad_request", row["error_code"])
					require.EqualValues(w.T, 1, row["attempts"])
				}
				for _, j := range ours {
					require.EqualValues(w.T, 4, w.Row(j.role, j.id)["attempts"])
				}
			},
		},
	}
}

// llmAnswers are answers that are none, or too much.
func llmAnswers() []fault {
	return []fault{
		{
			id: "F50", name: "200 with HTML, nothing, null, a list, an error, half of it, no choice, no content",
			run: func(w *world) {
				s := w.system()
				w.LLM.Script(map[string]any{"quote": true})
				kinds := []string{
					"html", "empty", "null", "array", "error", "truncated", "nochoices", "nullcontent", "emptycontent", "stream",
				}
				var hopeless, better []*jobRecord
				for i, kind := range kinds {
					hopeless = append(hopeless, w.submit(roles[i%len(roles)], "!malformed "+kind))
					better = append(better, w.submit(roles[i%len(roles)], "!malformed "+kind+" x2"))
				}
				for _, j := range slices.Concat(hopeless, better) {
					j.calls = 3
				}
				for _, j := range hopeless {
					j.status = "failed"
				}
				w.await(slices.Concat(hopeless, better)...)
				w.heal()
				for _, j := range hopeless {
					row := w.Row(j.role, j.id)
					require.Equal(w.T, "llm_malformed_answer", row["error_code"])
					require.EqualValues(w.T, 3, row["attempts"])
					require.Equal(w.T, 3, w.LLM.Stats().Asked(j.asked()))
				}
				require.EqualValues(w.T, 5*len(kinds), w.counted(s.roles, failedAttempts, `kind="llm_malformed_answer"`))
			},
		},
		{
			id: "F51", name: "finish_reason length, content_filter, and one that nobody knows",
			run: func(w *world) {
				s := w.system()
				w.LLM.Script(map[string]any{"quote": true})
				long, filtered, odd := w.submit("agent", "!finish length"), w.submit("manager", "!finish content_filter"), w.submit("chat", "!finish tired")
				filtered.status = "failed"
				w.await(long, filtered, odd)
				w.heal()
				require.EqualValues(w.T, 1, w.Row("agent", long.id)["truncated"])
				require.EqualValues(w.T, 0, w.Row("chat", odd.id)["truncated"])
				require.EqualValues(w.T, 1, w.counted(s.roles, answersTotal, `finish_reason="length"`))
				require.EqualValues(w.T, 1, w.counted(s.roles, answersTotal, `finish_reason="other"`))
				require.Equal(w.T, "llm_content_filtered", w.Row("manager", filtered.id)["error_code"])
				for _, n := range w.attemptsOfAll() {
					require.EqualValues(w.T, 1, n, "none of them is asked again")
				}
			},
		},
		{
			id: "F53", name: "answers of 50 MB and without end, and 20 kB that unpack to 20 MB",
			setup: setup{plain: true},
			run: func(w *world) {
				s := w.system()
				w.LLM.Script(map[string]any{"quote": true, "rules": []map[string]any{
					{"contains": "bomb", "gzip": true, "answer_length": 20_000_000},
				}})
				var jobs []*jobRecord
				for _, directive := range []string{"!length 50000000", "!malformed endless", "bomb"} {
					for range 4 {
						j := w.submit("agent", directive)
						j.status = "failed"
						jobs = append(jobs, j)
					}
				}
				w.await(jobs...)
				w.heal()
				for _, j := range jobs {
					require.Equal(w.T, "llm_answer_too_large", w.Row(j.role, j.id)["error_code"])
				}
				most := w.memory(s.roles)
				require.Less(w.T, most, 256<<10, "kB")
				w.remark("%d MB at most for twelve at once, of the program as it is shipped", most>>10)
			},
		},
	}
}

// callsWithin is how many calls of a job can begin within a time, if each lasts so
// long and the pauses between them double from a second up to a longest one.
func callsWithin(d, call, longest time.Duration) int {
	n := 0
	for at, pause := time.Duration(0), time.Second; at <= d; pause = min(2*pause, longest) {
		n++
		at += call + pause
	}
	return n
}

// codeMark is a word by which rules tell jobs apart.
func codeMark(i int) string { return "account-" + strconv.Itoa(i) }

// attemptsOfAll are the rows' attempts by role/jobId.
func (w *world) attemptsOfAll() map[string]int64 {
	w.T.Helper()
	out := map[string]int64{}
	for _, row := range w.Rows("1 = 1") {
		out[fmt.Sprint(row["role"], "/", row["job_id"])] = row["attempts"].(int64)
	}
	return out
}

func maxOf(m map[string]int64) int64 {
	var most int64
	for _, n := range m {
		most = max(most, n)
	}
	return most
}

// nobodyBuried expects no dead letter of any role.
func (w *world) nobodyBuried() {
	w.T.Helper()
	for _, role := range roles {
		require.Empty(w.T, w.DeadLetters(role))
	}
}

// pendingCall waits until the role activity of a job is as it should be.
func (w *world) pendingCall(j *jobRecord, check func(*workflowpb.PendingActivityInfo) error) {
	w.T.Helper()
	w.Wait("the pending call of "+j.key(), func(ctx context.Context) error {
		d, err := w.Temporal.DescribeWorkflowExecution(ctx, j.workflowID(), "")
		if err != nil {
			return err
		}
		if len(d.GetPendingActivities()) != 1 {
			return fmt.Errorf("%d activities are pending", len(d.GetPendingActivities()))
		}
		return check(d.GetPendingActivities()[0])
	})
}

// waits says whether an attempt has ended and the next is not due yet.
func waits(p *workflowpb.PendingActivityInfo) error {
	if p.GetAttempt() < 2 || p.GetState() != enumspb.PENDING_ACTIVITY_STATE_SCHEDULED {
		return fmt.Errorf("attempt %d is %s", p.GetAttempt(), p.GetState())
	}
	return nil
}

// spread expects that jobs wait as long as the endpoint has asked for, a fifth
// longer at most, and not all of them to the same moment.
func (w *world) spread(jobs []*jobRecord) {
	w.T.Helper()
	delays := map[time.Duration]bool{}
	for _, j := range jobs {
		w.pendingCall(j, func(p *workflowpb.PendingActivityInfo) error {
			if err := waits(p); err != nil {
				return err
			}
			delay := p.GetCurrentRetryInterval().AsDuration()
			require.GreaterOrEqual(w.T, delay, time.Second)
			require.LessOrEqual(w.T, delay, 8400*time.Millisecond)
			delays[delay] = true
			return nil
		})
	}
	require.Greater(w.T, len(delays), len(jobs)/2, "jitter")
}

// slotsFree waits until jobs that wait for the endpoint hold nothing that another
// could use.
func (w *world) slotsFree(workers ...*process) {
	w.T.Helper()
	w.Wait("free slots", func(context.Context) error {
		for _, p := range workers {
			running := w.counted(p, runningJobs)
			used := w.counted(p, usedSlots, `worker_type="ActivityWorker"`)
			if running != 0 || used != 0 {
				return fmt.Errorf("%s: %.0f jobs run in %.0f slots", p.Name(), running, used)
			}
		}
		return nil
	})
}
