package activities

import (
	"time"

	"github.com/nodpt/executor/internal/job"
)

// Config holds what a role activity looks up at each attempt. It is the
// worker's, not the workflow's, so that a corrected setting heals jobs that are
// waiting for their next attempt.
type Config struct {
	// Models names the model per role (MODEL_<ROLE>). For chat it is what an entry
	// gets that names neither a model nor a node level; empty falls through to
	// DefaultModel.
	Models       map[job.Role]string
	DefaultModel string           // DEFAULT_MODEL
	ChatModels   []string         // models a chat entry may name (CHAT_MODELS); "*" is any
	MaxTokens    map[job.Role]int // MAX_TOKENS_<ROLE>
	LLMTimeout   time.Duration    // one call (LLM_TIMEOUT)
	// DrainTimeout is how long a call may go on after a stop was asked for
	// (DRAIN_TIMEOUT).
	DrainTimeout time.Duration
	RetryFor     time.Duration // from a job's first failure until it fails for good (RETRY_FOR)
}
