package llmtest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// reply answers a call as the script says. When the client leaves or the server
// closes first it breaks the connection: an empty answer would be a lie.
func (s *Server) reply(w http.ResponseWriter, r *http.Request, c call) {
	b := c.behavior
	ctx := r.Context()
	switch {
	case c.unauthorized:
		c.fail(w, Behavior{Status: http.StatusUnauthorized})
		return
	case c.unknownModel:
		c.fail(w, Behavior{Status: http.StatusNotFound})
		return
	}
	if b.Hang && !s.hang(ctx, c.released) || !s.wait(ctx, c.latency) {
		panic(http.ErrAbortHandler)
	}
	switch {
	case b.Status != 0 && b.Status != http.StatusOK:
		c.fail(w, b)
	case b.Malformed == "endless":
		s.endless(ctx, w, c)
	case b.Malformed != "":
		writeMalformed(w, c)
	case c.stream:
		s.stream(ctx, w, c)
	default:
		s.answer(ctx, w, c)
	}
}

// hang returns true when the call was released.
func (s *Server) hang(ctx context.Context, released <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case <-s.done:
		return false
	case <-released:
		return true
	}
}

func (s *Server) wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-s.done:
		return false
	case <-timer.C:
		return true
	}
}

func (c call) fail(w http.ResponseWriter, b Behavior) {
	if b.RetryAfter > 0 {
		value := strconv.Itoa(b.RetryAfter)
		if b.RetryAfterDate {
			value = time.Now().Add(time.Duration(b.RetryAfter) * time.Second).UTC().Format(http.TimeFormat)
		}
		w.Header().Set("Retry-After", value)
	}
	if b.Status >= 300 && b.Status < 400 {
		w.Header().Set("Location", "/elsewhere")
	}
	code, message := defaultCode(b.Status)
	if b.Code != "" {
		code = b.Code
	}
	writeError(w, b.Status, code, c.quoted(message))
}

// quoted is an error message that repeats what it complains about.
func (c call) quoted(message string) string {
	if !c.quote {
		return message
	}
	return message + " The request was: " + c.prompt
}

type message struct {
	Role    string  `json:"role"`
	Content *string `json:"content"`
	Refusal *string `json:"refusal"`
}

type choice struct {
	Index        int     `json:"index"`
	Message      message `json:"message"`
	LogProbs     *string `json:"logprobs"`
	FinishReason string  `json:"finish_reason"`
}

type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
}

type completion struct {
	ID                string   `json:"id"`
	Object            string   `json:"object"`
	Created           int64    `json:"created"`
	Model             string   `json:"model"`
	Choices           []choice `json:"choices"`
	Usage             *usage   `json:"usage,omitempty"`
	SystemFingerprint string   `json:"system_fingerprint"`
}

func newCompletion(c call) completion {
	text := answerText(c)
	out := completion{
		ID:                completionID(c),
		Object:            "chat.completion",
		Created:           time.Now().Unix(),
		Model:             c.model,
		Choices:           []choice{{Message: message{Role: "assistant", Content: &text}, FinishReason: finish(c.behavior)}},
		SystemFingerprint: "fp_mock",
	}
	if c.usage {
		out.Usage = countTokens(c.prompt, text)
	}
	return out
}

func completionID(c call) string { return "chatcmpl-" + PromptHash(c.model + "\x00" + c.prompt)[:24] }

func finish(b Behavior) string {
	if b.FinishReason == "" {
		return "stop"
	}
	return b.FinishReason
}

// countTokens takes four bytes for a token, which is near enough for English.
func countTokens(prompt, answer string) *usage {
	u := usage{PromptTokens: (len(prompt) + 3) / 4, CompletionTokens: (len(answer) + 3) / 4}
	u.TotalTokens = u.PromptTokens + u.CompletionTokens
	return &u
}

// answerText depends on nothing but the prompt and the script, so that tests
// can compare answers.
func answerText(c call) string {
	text := c.behavior.Answer
	if text == "" {
		text = "Mock answer " + PromptHash(c.prompt)[:8] + "."
	}
	if n := c.behavior.AnswerLength; n > 0 {
		text = strings.Repeat(text+" ", n/(len(text)+1)+1)[:n]
	}
	return text
}

func (s *Server) answer(ctx context.Context, w http.ResponseWriter, c call) {
	body, err := json.Marshal(newCompletion(c))
	if err != nil {
		writeError(w, http.StatusInternalServerError, "server_error", "The answer could not be encoded.")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if c.behavior.Gzip {
		w.Header().Set("Content-Encoding", "gzip")
		body = compress(body)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	switch {
	case c.behavior.Cut:
		_, _ = w.Write(body[:len(body)/2])
		cut(w)
	case c.behavior.DripMS > 0:
		s.drip(ctx, w, body, time.Duration(c.behavior.DripMS)*time.Millisecond)
	default:
		_, _ = w.Write(body)
	}
}

func compress(body []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(body)
	_ = z.Close()
	return b.Bytes()
}

// cut sends what was written and breaks the connection. The panic is net/http's
// documented way to do that; the server does not log it.
func cut(w http.ResponseWriter) {
	flush(w)
	panic(http.ErrAbortHandler)
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

func (s *Server) drip(ctx context.Context, w http.ResponseWriter, body []byte, each time.Duration) {
	for i := range body {
		if _, err := w.Write(body[i : i+1]); err != nil {
			return
		}
		flush(w)
		if !s.wait(ctx, each) {
			cut(w)
		}
	}
}

// stream answers in server-sent events as OpenAI does: the role, the text in
// pieces, the finish reason, the usage if asked for, and [DONE].
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, c call) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	full := newCompletion(c)
	send := func(choices []chunkChoice, u *usage) bool {
		data, err := json.Marshal(chunk{
			ID: full.ID, Object: "chat.completion.chunk", Created: full.Created, Model: full.Model,
			SystemFingerprint: full.SystemFingerprint, Choices: choices, Usage: u,
		})
		if err != nil || ctx.Err() != nil {
			return false
		}
		_, err = io.WriteString(w, "data: "+string(data)+"\n\n")
		flush(w)
		return err == nil
	}
	delta := func(d chunkDelta) []chunkChoice { return []chunkChoice{{Delta: d}} }
	empty := ""
	if !send(delta(chunkDelta{Role: "assistant", Content: &empty}), nil) {
		return
	}
	pieces := strings.SplitAfter(answerText(c), " ")
	for i, piece := range pieces {
		if c.behavior.Cut && i == len(pieces)/2 {
			cut(w)
		}
		if !send(delta(chunkDelta{Content: &piece}), nil) {
			return
		}
		if each := time.Duration(c.behavior.DripMS) * time.Millisecond; each > 0 && !s.wait(ctx, each) {
			cut(w)
		}
	}
	reason := finish(c.behavior)
	if !send([]chunkChoice{{FinishReason: &reason}}, nil) {
		return
	}
	if c.usage && c.streamUsage && !send([]chunkChoice{}, full.Usage) {
		return
	}
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

type chunkDelta struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

type chunkChoice struct {
	Index        int        `json:"index"`
	Delta        chunkDelta `json:"delta"`
	LogProbs     *string    `json:"logprobs"`
	FinishReason *string    `json:"finish_reason"`
}

type chunk struct {
	ID                string        `json:"id"`
	Object            string        `json:"object"`
	Created           int64         `json:"created"`
	Model             string        `json:"model"`
	SystemFingerprint string        `json:"system_fingerprint"`
	Choices           []chunkChoice `json:"choices"`
	Usage             *usage        `json:"usage,omitempty"`
}

// endless answers with text that has no end, until the client leaves.
func (s *Server) endless(ctx context.Context, w http.ResponseWriter, c call) {
	text := answerText(c) + " "
	w.Header().Set("Content-Type", "application/json")
	_, err := io.WriteString(w, `{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"`)
	for chunk := strings.Repeat(text, 1+(64<<10)/len(text)); err == nil && ctx.Err() == nil; {
		select {
		case <-s.done:
			return
		default:
			_, err = io.WriteString(w, chunk)
		}
	}
}

// writeMalformed answers with status 200 and without an answer.
func writeMalformed(w http.ResponseWriter, c call) {
	w.Header().Set("Content-Type", "application/json")
	good := newCompletion(c)
	switch c.behavior.Malformed {
	case "empty":
		w.WriteHeader(http.StatusOK)
	case "null":
		_, _ = io.WriteString(w, "null")
	case "array":
		_, _ = io.WriteString(w, "[]")
	case "error":
		writeJSON(w, http.StatusOK, errorBody(http.StatusInternalServerError, "server_error", c.quoted("Something went wrong.")))
	case "truncated":
		body, _ := json.Marshal(good) // these types always encode
		_, _ = w.Write(body[:len(body)/2])
	case "nochoices":
		good.Choices = []choice{}
		writeJSON(w, http.StatusOK, good)
	case "nullcontent":
		good.Choices[0].Message.Content = nil
		writeJSON(w, http.StatusOK, good)
	case "emptycontent":
		empty := ""
		good.Choices[0].Message.Content = &empty
		writeJSON(w, http.StatusOK, good)
	case "invalidutf8":
		body, _ := json.Marshal(good)
		_, _ = w.Write(bytes.Replace(body, []byte(`"content":"`), []byte("\"content\":\"\xff\xc3("), 1))
	case "stream":
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"choices\":[]}\n\ndata: [DONE]\n\n")
	default:
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html><body><h1>Welcome to nginx!</h1></body></html>")
	}
}
