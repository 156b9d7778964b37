package telemetry

import (
	"slices"
	"sync"

	"go.opentelemetry.io/otel/attribute"

	"github.com/nodpt/executor/internal/job"
)

const (
	other    = "other"
	none     = "none"
	maxCodes = 64 // different values of one label
	maxCode  = 48 // bytes
)

// bounds keeps labels small. Roles, statuses, models and finish reasons are closed sets. Codes
// are fixed sets too, but those of other packages, so they are held to their
// form (snake_case) and their number.
type bounds struct {
	models []string

	mu   sync.Mutex
	seen map[string]map[string]struct{} // label → codes
}

func newBounds(models []string) *bounds {
	return &bounds{models: slices.Clone(models), seen: make(map[string]map[string]struct{})}
}

func (b *bounds) role(role job.Role) attribute.KeyValue {
	if !slices.Contains(job.Roles(), role) {
		role = other
	}
	return attribute.String("role", string(role))
}

func (b *bounds) status(status job.Status) attribute.KeyValue {
	switch status {
	case job.Completed, job.Failed, job.Rejected, job.Canceled:
	default:
		status = other
	}
	return attribute.String("status", string(status))
}

func (b *bounds) model(model string) string {
	if slices.Contains(b.models, model) {
		return model
	}
	return other
}

// finishReason takes the words of OpenAI, and those that servers compatible with
// it are known to say instead. Any other could be a word of the prompt.
func (b *bounds) finishReason(reason string) attribute.KeyValue {
	switch reason {
	case "stop", "length", "content_filter", "tool_calls", "function_call", "end_turn", "max_tokens", "eos", "unknown":
	default:
		reason = other
	}
	return attribute.String("finish_reason", reason)
}

func (b *bounds) code(label, code string) attribute.KeyValue {
	return attribute.String(label, b.bounded(label, code))
}

func (b *bounds) bounded(label, code string) string {
	if code == "" {
		return none
	}
	if !snakeCase(code) {
		return other
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	codes := b.seen[label]
	if codes == nil {
		codes = make(map[string]struct{})
		b.seen[label] = codes
	}
	if _, ok := codes[code]; !ok {
		if len(codes) >= maxCodes {
			return other
		}
		codes[code] = struct{}{}
	}
	return code
}

func snakeCase(s string) bool {
	if s == "" || len(s) > maxCode {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', i > 0 && (c == '_' || c >= '0' && c <= '9'):
		default:
			return false
		}
	}
	return true
}
