package llm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/nodpt/executor/internal/llm/llmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a client that is closed when the test ends.
func open(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// serve runs a handler and returns a client of it.
func serve(t *testing.T, handler http.HandlerFunc, change ...func(*Config)) *Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	cfg := Config{Endpoint: server.URL + "/v1/chat/completions", Timeout: 30 * time.Second}
	for _, f := range change {
		f(&cfg)
	}
	return open(t, cfg)
}

// respond is a handler that always sends the same.
func respond(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// says is a handler that answers with a text.
func says(text string) http.HandlerFunc {
	encoded, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return respond(http.StatusOK, `{"choices":[{"message":{"role":"assistant","content":`+string(encoded)+`},"finish_reason":"stop"}]}`)
}

func requireError(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Contains(t, Kinds(), e.Kind)
	return e
}

func ask(ctx context.Context, c *Client) (Answer, error) {
	return c.Complete(ctx, Request{Model: "m", Prompt: "hello"})
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	stub := llmtest.Start(t, llmtest.Options{APIKey: "secret"})
	c := open(t, Config{Endpoint: stub.Endpoint(), APIKey: "secret"})
	answer, err := c.Complete(t.Context(), Request{Model: "trt-llm-agent", Prompt: "!echo four", MaxTokens: 9})
	require.NoError(t, err)
	require.Equal(t, Answer{
		Text: "four", Model: "trt-llm-agent", FinishReason: "stop", PromptTokens: 3, CompletionTokens: 1,
	}, answer)
	require.Equal(t, 1, stub.Calls("!echo four"))
}

func TestRequestAsSent(t *testing.T) {
	t.Parallel()
	const prompt = "say <b>\"hi\"</b> & leave\u2028\x01"
	tests := map[string]struct {
		request Request
		want    string
	}{
		"plain": {
			Request{Model: "trt-llm-agent", Prompt: prompt, MaxTokens: 128},
			`{"model":"trt-llm-agent","max_tokens":128}`,
		},
		"no limit": {Request{Model: "m", Prompt: prompt}, `{"model":"m"}`},
		"negative limit": {
			Request{Model: "m", Prompt: prompt, MaxTokens: -1}, `{"model":"m"}`,
		},
		"reasoning model": {
			Request{Model: "gpt-5-mini", Prompt: prompt, MaxTokens: 64},
			`{"model":"gpt-5-mini","max_completion_tokens":64}`,
		},
		"local model of a reasoning model's name": {
			Request{Model: "o1-local", Prompt: prompt, MaxTokens: 64},
			`{"model":"o1-local","max_completion_tokens":64}`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			type seen struct {
				header http.Header
				body   map[string]any
			}
			got := make(chan seen, 1)
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				s := seen{header: r.Header.Clone()}
				_ = json.NewDecoder(r.Body).Decode(&s.body)
				got <- s
				says("ok")(w, r)
			}, func(cfg *Config) { cfg.APIKey = "sk-test" })
			_, err := c.Complete(t.Context(), test.request)
			require.NoError(t, err)

			s := <-got
			require.Equal(t, "Bearer sk-test", s.header.Get("Authorization"))
			require.Equal(t, "application/json", s.header.Get("Content-Type"))
			require.Empty(t, s.header.Get("Accept-Encoding"), "compression must not be asked for")
			require.Equal(t, []any{map[string]any{"role": "user", "content": prompt}}, s.body["messages"])
			delete(s.body, "messages")
			require.Equal(t, false, s.body["stream"])
			delete(s.body, "stream")
			rest, err := json.Marshal(s.body)
			require.NoError(t, err)
			require.JSONEq(t, test.want, string(rest))
		})
	}
}

func TestNoKeyNoHeader(t *testing.T) {
	t.Parallel()
	got := make(chan http.Header, 1)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Clone()
		says("ok")(w, r)
	})
	_, err := ask(t.Context(), c)
	require.NoError(t, err)
	require.NotContains(t, <-got, "Authorization")
}

// Some models are refused by go-openai itself, before anything is sent.
func TestRefusedByClient(t *testing.T) {
	t.Parallel()
	stub := llmtest.Start(t)
	c := open(t, Config{Endpoint: stub.Endpoint()})
	_, err := c.Complete(t.Context(), Request{Model: "text-davinci-003", Prompt: "hello"})
	require.Equal(t, &Error{Kind: BadRequest, Code: "refused_by_client"}, requireError(t, err))
	require.Zero(t, stub.Stats().Calls)
}

func TestUsableAnswers(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		body string
		want Answer
	}{
		"as OpenAI": {
			`{"id":"1","object":"chat.completion","created":1,"model":"gpt-x-2","choices":[{"index":0,"message":{"role":"assistant","content":"hi","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}`,
			Answer{Text: "hi", Model: "gpt-x-2", FinishReason: "stop", PromptTokens: 7, CompletionTokens: 3},
		},
		"bare minimum": {
			`{"choices":[{"message":{"content":"hi"}}]}`,
			Answer{Text: "hi", Model: "m", FinishReason: "unknown"},
		},
		"content in parts": {
			`{"choices":[{"message":{"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},"finish_reason":"stop"}]}`,
			Answer{Text: "ab", Model: "m", FinishReason: "stop"},
		},
		"finish_reason length": {
			`{"choices":[{"message":{"content":"cut"},"finish_reason":"length"}]}`,
			Answer{Text: "cut", Model: "m", FinishReason: "length", Truncated: true},
		},
		"all tokens spent on reasoning": {
			`{"choices":[{"message":{"content":"","reasoning_content":"hm"},"finish_reason":"length"}]}`,
			Answer{Model: "m", FinishReason: "length", Truncated: true},
		},
		"unknown finish_reason": {
			`{"choices":[{"message":{"content":"hi"},"finish_reason":"eos_token"}]}`,
			Answer{Text: "hi", Model: "m", FinishReason: "eos_token"},
		},
		"finish_reason that is no word": {
			`{"choices":[{"message":{"content":"hi"},"finish_reason":"Stopped, because <b>"}]}`,
			Answer{Text: "hi", Model: "m", FinishReason: "unknown"},
		},
		"ill-typed fields beside the answer": {
			`{"id":5,"created":1.5,"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":"7","completion_tokens":3}}`,
			Answer{Text: "hi", Model: "m", FinishReason: "stop", CompletionTokens: 3},
		},
		"negative usage": {
			`{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":-1,"completion_tokens":-1}}`,
			Answer{Text: "hi", Model: "m", FinishReason: "stop"},
		},
		"NUL, invalid UTF-8 and an escape sequence": {
			"{\"choices\":[{\"message\":{\"content\":\"a\\u0000b\xff\\u001b[31mc\"},\"finish_reason\":\"stop\"}]}",
			Answer{Text: "a\ufffdb\ufffd\x1b[31mc", Model: "m", FinishReason: "stop"},
		},
		"NUL in the model": {
			`{"model":"x\u0000y","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}`,
			Answer{Text: "hi", Model: "x\ufffdy", FinishReason: "stop"},
		},
		"model too long for a row": {
			`{"model":"` + strings.Repeat("x", 257) + `","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}`,
			Answer{Text: "hi", Model: "m", FinishReason: "stop"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answer, err := ask(t.Context(), serve(t, respond(http.StatusOK, test.body)))
			require.NoError(t, err)
			require.Equal(t, test.want, answer)
		})
	}
}

// The limit counts the answer as it travels: 200 kB of "<" are 1.2 MB of JSON.
func TestAnswerSize(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text string
		fits bool
	}{
		"one byte to spare":  {strings.Repeat("a", MaxAnswer-2), true},
		"one byte too many":  {strings.Repeat("a", MaxAnswer-1), false},
		"escaped, fits":      {strings.Repeat("<", MaxAnswer/6-1), true},
		"escaped, too large": {strings.Repeat("<", MaxAnswer/6+1), false},
		"3 MB":               {strings.Repeat("a", 3_000_000), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answer, err := ask(t.Context(), serve(t, says(test.text)))
			if test.fits {
				require.NoError(t, err)
				require.Len(t, answer.Text, len(test.text))
				return
			}
			require.Equal(t, &Error{Kind: TooLarge, Status: 200, Code: "answer_too_large"}, requireError(t, err))
		})
	}
}

// Fault F50 and F51, by the stub's own misbehaviours.
func TestUnusableAnswers(t *testing.T) {
	t.Parallel()
	stub := llmtest.Start(t)
	c := open(t, Config{Endpoint: stub.Endpoint()})
	for prompt, want := range map[string]*Error{
		"!malformed html":         {Kind: Malformed, Status: 200, Code: "invalid_json"},
		"!malformed empty":        {Kind: Malformed, Status: 200, Code: "invalid_json"},
		"!malformed null":         {Kind: Malformed, Status: 200, Code: "no_choice"},
		"!malformed array":        {Kind: Malformed, Status: 200, Code: "no_choice"},
		"!malformed error":        {Kind: Malformed, Status: 200, Code: "server_error"},
		"!malformed truncated":    {Kind: Malformed, Status: 200, Code: "invalid_json"},
		"!malformed nochoices":    {Kind: Malformed, Status: 200, Code: "no_choice"},
		"!malformed nullcontent":  {Kind: Malformed, Status: 200, Code: "empty_content"},
		"!malformed emptycontent": {Kind: Malformed, Status: 200, Code: "empty_content"},
		"!malformed stream":       {Kind: Malformed, Status: 200, Code: "invalid_json"},
		"!finish content_filter":  {Kind: Filtered, Status: 200, Code: "content_filter"},
		"!cut":                    {Kind: Unreachable, Status: 200, Code: "cut_body"},
	} {
		t.Run(prompt, func(t *testing.T) {
			t.Parallel()
			_, err := c.Complete(t.Context(), Request{Model: "m", Prompt: prompt})
			require.Equal(t, want, requireError(t, err))
		})
	}
	for name, test := range map[string]struct {
		status     int
		body, code string
		kind       Kind
	}{
		"no content":        {204, ``, "invalid_json", Malformed},
		"a string":          {200, `"hello"`, "no_choice", Malformed},
		"error as text":     {200, `{"error":"overloaded"}`, "error_as_answer", Malformed},
		"error is null":     {200, `{"error":null,"choices":[]}`, "no_choice", Malformed},
		"refusal":           {200, `{"choices":[{"message":{"content":null,"refusal":"I cannot"},"finish_reason":"stop"}]}`, "refusal", Filtered},
		"tool call":         {200, `{"choices":[{"message":{"content":null,"tool_calls":[{"type":"function","function":{"name":"f"}}]},"finish_reason":"tool_calls"}]}`, "empty_content", Malformed},
		"null choice":       {200, `{"choices":[null]}`, "empty_content", Malformed},
		"choices an object": {200, `{"choices":{}}`, "no_choice", Malformed},
		"filtered in part":  {200, `{"choices":[{"message":{"content":"begin"},"finish_reason":"content_filter"}]}`, "content_filter", Filtered},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ask(t.Context(), serve(t, respond(test.status, test.body)))
			require.Equal(t, &Error{Kind: test.kind, Status: test.status, Code: test.code}, requireError(t, err))
		})
	}
}

func TestCallerCancels(t *testing.T) {
	t.Parallel()
	stub := llmtest.Start(t)
	c := open(t, Config{Endpoint: stub.Endpoint()})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := c.Complete(ctx, Request{Model: "m", Prompt: "!hang"})
		failed <- err
	}()
	require.NoError(t, stub.Await(t.Context(), func(s llmtest.Stats) bool { return s.Running == 1 }))
	cancel()
	require.Equal(t, &Error{Kind: Canceled}, requireError(t, <-failed))
	require.NoError(t, stub.Await(t.Context(), func(s llmtest.Stats) bool { return s.Running == 0 && s.Disconnected == 1 }))

	_, err := c.Complete(ctx, Request{Model: "m", Prompt: "never sent"})
	require.Equal(t, &Error{Kind: Canceled}, requireError(t, err))
	require.Zero(t, stub.Calls("never sent"))
}

// Fault F52 and F55: whatever the server does with the time, the call ends.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	for _, prompt := range []string{"!hang", "!slow 1h", "!drip 20ms"} {
		t.Run(prompt, func(t *testing.T) {
			t.Parallel()
			stub := llmtest.Start(t)
			c := open(t, Config{Endpoint: stub.Endpoint(), Timeout: 300 * time.Millisecond})
			_, err := c.Complete(t.Context(), Request{Model: "m", Prompt: prompt})
			require.Equal(t, Timeout, requireError(t, err).Kind)
			require.NoError(t, stub.Await(t.Context(), func(s llmtest.Stats) bool { return s.Running == 0 }))
		})
	}
	t.Run("deadline of the caller", func(t *testing.T) {
		t.Parallel()
		stub := llmtest.Start(t)
		c := open(t, Config{Endpoint: stub.Endpoint()})
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := c.Complete(ctx, Request{Model: "m", Prompt: "!hang"})
		require.Equal(t, Timeout, requireError(t, err).Kind)
	})
	t.Run("error response that never ends", func(t *testing.T) {
		t.Parallel()
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, func(cfg *Config) { cfg.Timeout = 3 * time.Second })
		_, err := ask(t.Context(), c)
		require.Equal(t, &Error{Kind: ServerError, Status: 503}, requireError(t, err))
	})
}

func TestParallelCalls(t *testing.T) {
	t.Parallel()
	const calls = 200
	stub := llmtest.Start(t)
	c := open(t, Config{Endpoint: stub.Endpoint()})
	group, ctx := errgroup.WithContext(t.Context())
	for i := range calls {
		group.Go(func() error {
			answer, err := c.Complete(ctx, Request{Model: "m", Prompt: fmt.Sprintf("!hang x1 %d", i)})
			if err == nil && answer.Text == "" {
				return fmt.Errorf("call %d has no answer", i)
			}
			return err
		})
	}
	require.NoError(t, stub.Await(ctx, func(s llmtest.Stats) bool { return s.Running == calls }))
	stub.Release()
	require.NoError(t, group.Wait())
	require.NoError(t, stub.Await(t.Context(), func(s llmtest.Stats) bool { return s.Running == 0 }))
	require.Equal(t, calls, stub.Stats().MaxRunning)
	require.Equal(t, calls, stub.Stats().Calls)
}

func TestConfigHidesTheKey(t *testing.T) {
	t.Parallel()
	cfg := Config{Endpoint: "https://user:CANARY@llm.example/v1/chat/completions?key=CANARY", APIKey: "CANARY"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("start", slog.Any("llm", cfg))
	c := open(t, cfg)
	texts := []string{
		fmt.Sprint(cfg), fmt.Sprintf("%+v", cfg), fmt.Sprintf("%#v", cfg), log.String(),
		c.Endpoint(), c.EndpointKey(), strings.Join(c.Warnings(), "\n"),
	}
	for _, text := range texts {
		require.NotContains(t, text, "CANARY")
	}
	require.Contains(t, log.String(), "https://llm.example/v1/chat/completions")
}
