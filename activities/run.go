// Package activities holds what JobWorkflow calls by name: the role activity,
// which asks the LLM, and the final activities, which write down, publish and
// acknowledge what came of it. It exists so that everything with a side effect
// stands outside the workflow, behind the one- and two-method interfaces declared
// here, and so that one file (errors.go) decides what is tried again.
package activities

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/activity"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/workflows"
)

// Completer asks the LLM. Its errors are *llm.Error. Endpoint is where it asks,
// without credentials and query.
type Completer interface {
	Complete(ctx context.Context, req llm.Request) (llm.Answer, error)
	Endpoint() string
}

// Slots hold the limit of a role in this process. Acquire waits for one, but not
// long: then its error is ErrNoSlot. The returned function gives the slot back and
// must be told the call's error.
type Slots interface {
	Acquire(ctx context.Context) (free func(error), err error)
}

// Gate holds the limit over all roles and processes. Acquire waits for a permit
// until ctx ends; the returned function gives it back.
type Gate interface {
	Acquire(ctx context.Context, holder string) (release func(), err error)
}

// RunMetrics is what a role activity reports. Model names are bounded by the
// receiver: a chat entry may name any.
type RunMetrics interface {
	JobStarted(role job.Role)
	Running(role job.Role, delta int)
	TotalWaiting(role job.Role, delta int)
	LLMCall(role job.Role, model string, d time.Duration, promptTokens, completionTokens int64, errKind string)
	LLMFinished(role job.Role, reason string)
	ActivityError(role job.Role, kind string)
}

// Runner is the activity of one role. It is built once per worker process and
// safe for concurrent use.
type Runner struct {
	role    job.Role
	cfg     Config
	llm     Completer
	slots   Slots // nil: as many calls as tasks
	gate    Gate  // nil: no limit over all roles
	answers *Answers
	cool    *CoolDown
	metrics RunMetrics
}

// NewRunner returns the activity of a role. slots and gate may be nil; answers
// and cool are shared by the runners of a process.
func NewRunner(role job.Role, cfg Config, c Completer, slots Slots, gate Gate, answers *Answers, cool *CoolDown, m RunMetrics) *Runner {
	return &Runner{role: role, cfg: cfg, llm: c, slots: slots, gate: gate, answers: answers, cool: cool, metrics: m}
}

// Run is one attempt at a job. Its error, if any, is an application error whose
// type is a stable code, or the cancellation a user asked for.
func (r *Runner) Run(ctx context.Context, call workflows.Call) (answer workflows.Answer, err error) {
	a := r.begin(ctx, call)
	defer a.beats.stop()
	defer func() {
		if p := recover(); p != nil {
			err = a.end(errPanic)
		}
	}()
	if err := a.afterDeaths(); err != nil {
		return workflows.Answer{}, err
	}
	answer, err = a.work(ctx)
	if err != nil {
		return workflows.Answer{}, a.end(err)
	}
	answer.Attempts = a.counted()
	return answer, nil
}

// attempt is the state of one attempt at a job.
type attempt struct {
	*Runner
	workflows.Call
	info      activity.Info
	began     time.Time
	progress  progress // from the attempts before this one
	beats     *beats
	model     string
	maxTokens int
}

func (r *Runner) begin(ctx context.Context, call workflows.Call) *attempt {
	a := &attempt{Runner: r, Call: call, info: activity.GetInfo(ctx), began: time.Now()}
	a.progress = readProgress(ctx, a.info.Attempt)
	a.model = call.Model
	if a.model == "" {
		a.model = r.cfg.ModelFor(call.Job)
	}
	a.maxTokens = call.MaxTokens
	if a.maxTokens == 0 {
		a.maxTokens = r.cfg.MaxTokens[r.role]
	}
	a.beats = startBeats(ctx, a.report())
	return a
}

// serverNow is the time by the server's clock. What one attempt notes by its
// worker's own clock would mislead the next, which another worker may make.
func (a *attempt) serverNow() time.Time { return a.info.StartedTime.Add(time.Since(a.began)) }

// work returns the answer, from an earlier attempt if there is one.
func (a *attempt) work(ctx context.Context) (workflows.Answer, error) {
	if a.info.Attempt > 1 || a.Redelivered || a.progress != (progress{}) {
		if kept, ok := a.answers.Load(ctx, a.Effect); ok {
			return kept, nil
		}
	}
	calling, stop := a.callContext(ctx)
	defer stop()

	got, err := a.call(calling)
	if err != nil {
		return workflows.Answer{}, cmp.Or(context.Cause(calling), err)
	}
	answer := workflows.Answer{
		Text:             got.Text,
		Model:            a.model,
		PromptTokens:     got.PromptTokens,
		CompletionTokens: got.CompletionTokens,
		Truncated:        got.Truncated,
	}
	// The call is paid for: whatever happens to this attempt's report, the answer
	// is found again. The attempt's own context may have ended just now.
	a.say(stateKeeping)
	a.answers.Save(context.WithoutCancel(ctx), a.Effect, answer)
	if err := failpoint.Hit(calling, failpoint.AnswerKept); err != nil {
		return workflows.Answer{}, cmp.Or(context.Cause(calling), err)
	}
	return answer, nil
}

// call asks the LLM, within the limits. The places are free for others as soon as
// it has answered: while the answer is kept and reported, the next call runs.
func (a *attempt) call(ctx context.Context) (got llm.Answer, err error) {
	free, err := a.slot(ctx)
	if err != nil {
		return llm.Answer{}, err
	}
	defer func() { free(err) }()
	release, err := a.permit(ctx)
	if err != nil {
		return llm.Answer{}, err
	}
	defer release()
	if err := a.ours(); err != nil {
		return llm.Answer{}, err
	}
	a.say(stateCalling)
	if err := failpoint.Hit(ctx, failpoint.Leased); err != nil {
		return llm.Answer{}, err
	}
	leave, err := a.cool.Enter(ctx)
	if err != nil {
		return llm.Answer{}, err
	}
	err = errPanic // unless the call returns
	defer func() { leave(err) }()
	return a.ask(ctx)
}

// slot waits for a slot of this worker, which may fetch more tasks than it has
// slots for.
func (a *attempt) slot(ctx context.Context) (func(error), error) {
	if a.slots == nil {
		return func(error) {}, nil
	}
	a.say(stateSlot)
	waiting, stop := untilStop(ctx)
	defer stop()
	free, err := a.slots.Acquire(waiting)
	if err != nil {
		return nil, cmp.Or(context.Cause(waiting), err)
	}
	return free, nil
}

// permit waits for a place under MAX_TOTAL.
func (a *attempt) permit(ctx context.Context) (func(), error) {
	if a.gate == nil {
		return func() {}, nil
	}
	a.say(stateTotal)
	a.metrics.TotalWaiting(a.role, 1)
	defer a.metrics.TotalWaiting(a.role, -1)
	waiting, stop := untilStop(ctx)
	defer stop()
	holder := fmt.Sprintf("%s/%s/%d", a.info.WorkflowExecution.RunID, a.info.ActivityID, a.info.Attempt)
	release, err := a.gate.Acquire(waiting, holder)
	if err != nil {
		return nil, cmp.Or(context.Cause(waiting), err)
	}
	return release, nil
}

// untilStop is a context to wait in before the call. A stop asked for meanwhile
// ends it: the task is given back at once, so that another worker can take it.
func untilStop(ctx context.Context) (context.Context, func()) {
	waiting, stop := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-activity.GetWorkerStopChannel(ctx):
			stop(errShutdown)
		case <-waiting.Done():
		}
	}()
	return waiting, func() { stop(nil) }
}

func (a *attempt) ask(ctx context.Context) (llm.Answer, error) {
	a.metrics.JobStarted(a.role)
	a.metrics.Running(a.role, 1)
	defer a.metrics.Running(a.role, -1)
	begin := time.Now()
	got, err := a.llm.Complete(ctx, llm.Request{Model: a.model, Prompt: Prompt(a.Job), MaxTokens: a.maxTokens})
	a.metrics.LLMCall(a.role, a.model, time.Since(begin), got.PromptTokens, got.CompletionTokens, kindOf(err))
	if err == nil {
		a.metrics.LLMFinished(a.role, got.FinishReason)
	}
	return got, err
}

// Prompt is the text sent to the LLM for a job (DESIGN.md section 2.1): the task,
// for the inspector the JSON object {"code": payload, "task": task} with both as
// they came, without HTML escaping.
func Prompt(j job.Job) string {
	switch j.Role {
	case job.Inspector:
		return inspectorPrompt(j)
	default:
		return j.Task
	}
}

func inspectorPrompt(j job.Job) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	// Two strings always encode.
	_ = enc.Encode(struct {
		Code string `json:"code"`
		Task string `json:"task"`
	}{j.Payload, j.Task})
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// ModelFor is the model a job is sent to. For chat: the model the entry names, if
// it may; else that of the node level's role; else MODEL_CHAT; else DEFAULT_MODEL;
// else the agent's.
func (c Config) ModelFor(j job.Job) string {
	if j.Role != job.Chat {
		return c.Models[j.Role]
	}
	if j.Model != "" && (slices.Contains(c.ChatModels, "*") || slices.Contains(c.ChatModels, j.Model)) {
		return j.Model
	}
	if level, err := job.ParseRole(j.NodeLevel); err == nil && level != job.Chat {
		return c.Models[level]
	}
	for _, m := range []string{c.Models[job.Chat], c.DefaultModel} {
		if m != "" {
			return m
		}
	}
	return c.Models[job.Agent]
}
