package llm

import (
	"encoding/json"
	"errors"
	"math"
	"strings"

	"github.com/sashabaranov/go-openai"

	"github.com/nodpt/executor/internal/job"
)

// decodedInPart reports whether err only says that some field of a complete
// JSON response had an unexpected type. The decoder fills in all others, and a
// server that writes a fraction into "created" has still answered.
func (x *exchange) decodedInPart(err error) bool {
	var wrongType *json.UnmarshalTypeError
	return x.status >= 200 && x.status < 300 && errors.As(err, &wrongType)
}

// answer judges a decoded response. A choice is usable if it has text. An empty
// text is not an answer (go-openai shows null as empty, and a user cannot tell
// it from a fault), with one exception: at the token limit it is the truth,
// because reasoning used the limit up, and asking again would only cost more.
func (x *exchange) answer(asked string, resp openai.ChatCompletionResponse) (Answer, error) {
	if len(resp.Choices) == 0 {
		return Answer{}, x.malformed("no_choice")
	}
	choice := resp.Choices[0]
	finish := finishReason(choice.FinishReason)
	truncated := finish == "length" || finish == "max_tokens"
	text := messageText(choice.Message)
	switch {
	case finish == "content_filter":
		return Answer{}, &Error{Kind: Filtered, Status: x.status, Code: finish}
	case text != "" || truncated:
	case choice.Message.Refusal != "":
		return Answer{}, &Error{Kind: Filtered, Status: x.status, Code: "refusal"}
	default:
		return Answer{}, x.malformed("empty_content")
	}
	text = job.SafeText(text, math.MaxInt)
	if exceeds(text, MaxAnswer) {
		return Answer{}, &Error{Kind: TooLarge, Status: x.status, Code: "answer_too_large"}
	}
	return Answer{
		Text:             text,
		Model:            modelName(resp.Model, asked),
		FinishReason:     finish,
		PromptTokens:     int64(max(resp.Usage.PromptTokens, 0)),
		CompletionTokens: int64(max(resp.Usage.CompletionTokens, 0)),
		Truncated:        truncated,
	}, nil
}

// malformed is a response without a usable answer. If it is an error object in
// disguise, its code says more than ours.
func (x *exchange) malformed(code string) *Error {
	var disguised struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(x.body, &disguised) == nil && len(disguised.Error) > 0 && string(disguised.Error) != "null" {
		code = x.publicCode(providerCodes(x.body), "error_as_answer")
	}
	return &Error{Kind: Malformed, Status: x.status, Code: code}
}

// messageText is the message's text, whether it came as a string or in parts.
func messageText(m openai.ChatCompletionMessage) string {
	if m.Content != "" {
		return m.Content
	}
	var b strings.Builder
	for _, part := range m.MultiContent {
		b.WriteString(part.Text)
	}
	return b.String()
}

func finishReason(r openai.FinishReason) string {
	if shortWord(string(r)) {
		return string(r)
	}
	return "unknown"
}

// modelName is the server's name for the model unless it is empty or too long
// for a row, where the name asked for is kept.
func modelName(answered, asked string) string {
	if answered == "" || len(answered) > 256 {
		return asked
	}
	return job.SafeText(answered, math.MaxInt)
}

// exceeds reports whether the text is larger than limit as JSON with HTML
// escaping.
func exceeds(text string, limit int) bool {
	if 6*len(text)+2 <= limit { // no byte grows more than sixfold
		return false
	}
	encoded, err := json.Marshal(text)
	return err != nil || len(encoded) > limit
}
