package activities

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/workflows"
)

// report is the details of a heartbeat: what the UI shows of the pending call,
// and the progress. The next attempt reads only the latter.
type report struct {
	// State says in words for operators what the attempt is doing, or what the job
	// waits for after it.
	State string `json:"state"`
	// Since is when that began, by the server's clock.
	Since time.Time `json:"since"`
	// Attempt is the attempt that says so: the last one that had something to say.
	Attempt  int32  `json:"attempt"`
	Model    string `json:"model"`
	Endpoint string `json:"endpoint"`
	progress
}

// States of an attempt under way.
const (
	stateStarting = "starting"
	stateSlot     = "waiting for a slot of this worker"
	stateTotal    = "waiting for MAX_TOTAL"
	stateCalling  = "calling the LLM"
	stateKeeping  = "keeping the answer"
)

// Bounds of what operators are shown, in bytes. A chat entry may ask for any
// model.
const (
	maxModel    = 160
	maxEndpoint = 256
	maxText     = 1024
)

// report is the attempt's first.
func (a *attempt) report() report {
	return report{
		State: stateStarting, Since: a.serverNow().UTC().Truncate(time.Second), Attempt: a.info.Attempt,
		Model: workflows.Plain(a.model, maxModel), Endpoint: workflows.Plain(a.llm.Endpoint(), maxEndpoint),
		progress: a.progress,
	}
}

// say changes what the UI shows of the attempt from the next beat on.
func (a *attempt) say(state string) { a.beats.say(state, a.serverNow()) }

// waitingFor is the state between this attempt and the next.
func waitingFor(err error, code string, until time.Time) string {
	var cooling coolDownError
	switch {
	case errors.As(err, &cooling) && cooling.probed:
		return "waiting: another call finds out whether the endpoint accepts again"
	case !until.IsZero():
		return "waiting: endpoint asks for patience until " + stamp(until)
	case errors.Is(err, errShutdown), errors.Is(err, errTaskLost), errors.Is(err, ErrNoSlot):
		return "given back: " + err.Error()
	default:
		return "failed with " + code + ", waiting for the next attempt"
	}
}

// explain is what operators read of an attempt that failed: what happened, what
// to do about it, and which attempt, model and endpoint it was. It holds nothing
// of the job's content, like the error itself.
func (a *attempt) explain(err error, code string, until time.Time) string {
	text := err.Error()
	if advice := a.advice(code); advice != "" {
		text += ": " + advice
	}
	if !until.IsZero() {
		text += "; retry-after until " + stamp(until)
	}
	return a.signed(text)
}

// signed adds to a text whose it is.
func (a *attempt) signed(text string) string {
	r := a.report()
	return workflows.Plain(fmt.Sprintf("%s (attempt %d, model %s, endpoint %s)", text, r.Attempt, r.Model, r.Endpoint), maxText)
}

// advice says what an operator can do, where the error's own text does not.
func (a *attempt) advice(code string) string {
	role := strings.ToUpper(string(a.role))
	switch code {
	case string(llm.ServerError):
		return "a fault of the LLM server, see its log; tried again until RETRY_FOR is over"
	case string(llm.Timeout):
		return "see why the LLM server is slow, or raise LLM_TIMEOUT"
	case string(llm.RateLimited):
		return "nothing to do, unless it lasts: then lower MAX_TOTAL or MAX_" + role
	case string(llm.BadRequest):
		return "see the LLM server's log for what it refuses"
	case string(llm.Malformed):
		return "what came is no chat completion, check LLM_ENDPOINT and the LLM server; the third time ends the job"
	case string(llm.Filtered):
		return "another model may answer"
	case string(llm.TooLarge):
		return "lower MAX_TOKENS_" + role
	case CodeCoolDown:
		return "nothing was sent"
	case CodeShutdown:
		return "another worker takes the job over"
	case CodeNoSlot:
		return "the next worker with a free slot takes the job"
	case CodePanic:
		return "a defect of the executor, please report it; the third time ends the job"
	case CodeGate:
		return "the limit MAX_TOTAL is kept in Redis, check REDIS_CONNECTION"
	default: // the error says it
		return ""
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
