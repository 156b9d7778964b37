package activities

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/nodpt/executor/workflows"
)

// AnswerStore keeps answers outside the process for an hour.
type AnswerStore interface {
	SaveAnswer(ctx context.Context, effect string, data []byte) error
	LoadAnswer(ctx context.Context, effect string) ([]byte, bool, error)
}

const (
	// answersInMemory bounds the memory of Answers, in bytes; answerOverhead is
	// what an entry takes beside its texts.
	answersInMemory = 32 << 20
	answerOverhead  = 512
	answersBudget   = 2 * time.Second
)

// Answers remembers answers that arrived until their runs have surely ended, so
// that a report the server did not take, or a worker that died after the call,
// does not make us pay for the call again. It keeps them in memory, for when
// Redis is the thing that is down, and in Redis, for when this process is.
type Answers struct {
	store AnswerStore // may be nil

	mu    sync.Mutex
	kept  map[string]workflows.Answer
	order []string
	size  int
}

// NewAnswers returns an empty memory in front of a store.
func NewAnswers(store AnswerStore) *Answers {
	return &Answers{store: store, kept: map[string]workflows.Answer{}}
}

// Save keeps an answer. It is best effort: what fails here costs money only if
// something else fails too.
func (k *Answers) Save(ctx context.Context, effect string, answer workflows.Answer) {
	k.remember(effect, answer)
	if k.store == nil {
		return
	}
	data, err := json.Marshal(answer)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answersBudget)
	defer cancel()
	_ = k.store.SaveAnswer(ctx, effect, data)
}

// Load returns the answer kept for an effect, if there is one to be found.
func (k *Answers) Load(ctx context.Context, effect string) (workflows.Answer, bool) {
	k.mu.Lock()
	answer, ok := k.kept[effect]
	k.mu.Unlock()
	if ok || k.store == nil {
		return answer, ok
	}
	ctx, cancel := context.WithTimeout(ctx, answersBudget)
	defer cancel()
	data, ok, err := k.store.LoadAnswer(ctx, effect)
	if err != nil || !ok || json.Unmarshal(data, &answer) != nil {
		return workflows.Answer{}, false
	}
	return answer, true
}

func (k *Answers) remember(effect string, answer workflows.Answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.kept[effect]; ok {
		return
	}
	k.kept[effect] = answer
	k.order = append(k.order, effect)
	k.size += sizeOf(effect, answer)
	for k.size > answersInMemory && len(k.order) > 1 {
		oldest := k.order[0]
		k.order = k.order[1:]
		k.size -= sizeOf(oldest, k.kept[oldest])
		delete(k.kept, oldest)
	}
}

func sizeOf(effect string, answer workflows.Answer) int {
	return len(effect) + len(answer.Text) + answerOverhead
}
