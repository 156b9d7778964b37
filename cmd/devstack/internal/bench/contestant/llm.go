package contestant

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sashabaranov/go-openai"
)

const (
	llmTimeout = 5 * time.Minute // of one call, as in the executor
	// chatPath is what the library appends to a base URL.
	chatPath = "/chat/completions"
)

// Answer is what the LLM said.
type Answer struct {
	Text             string `json:"text"`
	Model            string `json:"model"`
	PromptTokens     int    `json:"promptTokens"`
	CompletionTokens int    `json:"completionTokens"`
}

// llm asks the model.
type llm struct {
	http *http.Client
	api  *openai.Client
}

// newLLM returns a client for so many calls at once.
func newLLM(endpoint string, concurrency int) (*llm, error) {
	base, found := strings.CutSuffix(endpoint, chatPath)
	if !found {
		return nil, errors.New("llm: the URL does not end in " + chatPath)
	}
	// By default a transport keeps two connections to a host, and opens a new one
	// for each call above.
	transport := &http.Transport{MaxIdleConns: concurrency, MaxIdleConnsPerHost: concurrency}
	l := &llm{http: &http.Client{Transport: transport, Timeout: llmTimeout}}
	cfg := openai.DefaultConfig("")
	cfg.BaseURL, cfg.HTTPClient = base, l.http
	l.api = openai.NewClientWithConfig(cfg)
	return l, nil
}

func (l *llm) close() { l.http.CloseIdleConnections() }

// ask sends the job's prompt once. Its error holds no content.
func (l *llm) ask(ctx context.Context, j Job) (Answer, error) {
	response, err := l.api.CreateChatCompletion(ctx, openai.ChatCompletionRequest{
		Model:     model,
		Messages:  []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: j.Task}},
		MaxTokens: maxTokens, //nolint:staticcheck // deprecated by OpenAI, but the only limit most other servers know
	})
	var (
		body *openai.RequestError
		api  *openai.APIError
	)
	switch {
	case errors.As(err, &body):
		return Answer{}, fmt.Errorf("llm: status %d", body.HTTPStatusCode)
	case errors.As(err, &api):
		return Answer{}, fmt.Errorf("llm: status %d", api.HTTPStatusCode)
	case err != nil:
		return Answer{}, fmt.Errorf("llm: %w", err)
	case len(response.Choices) == 0:
		return Answer{}, errors.New("llm: no choice")
	}
	return Answer{
		Text:             response.Choices[0].Message.Content,
		Model:            response.Model,
		PromptTokens:     response.Usage.PromptTokens,
		CompletionTokens: response.Usage.CompletionTokens,
	}, nil
}
