package llmtest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
)

func TestMain(m *testing.M) {
	// After refusing a large body net/http lingers half a second by itself.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// client is an HTTP client that leaves no connection behind.
func client(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

type reply struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

func do(ctx context.Context, t *testing.T, method, url, body string) (reply, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	resp, err := client(t).Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	return reply{status: resp.StatusCode, header: resp.Header, body: string(data), err: err}, nil
}

func chatBody(model, prompt string) string {
	body, _ := json.Marshal(map[string]any{
		"model": model, "messages": []any{
			map[string]any{"role": "system", "content": "be brief"},
			map[string]any{"role": "user", "content": prompt},
		},
	}) // strings always encode
	return string(body)
}

func chat(t *testing.T, s *Running, prompt string) reply {
	t.Helper()
	r, err := do(t.Context(), t, http.MethodPost, s.Endpoint(), chatBody("m", prompt))
	require.NoError(t, err)
	return r
}

func (r reply) content(t *testing.T) string {
	t.Helper()
	require.Equal(t, http.StatusOK, r.status, r.body)
	var c completion
	require.NoError(t, json.Unmarshal([]byte(r.body), &c), r.body)
	require.Len(t, c.Choices, 1)
	require.NotNil(t, c.Choices[0].Message.Content)
	return *c.Choices[0].Message.Content
}

func TestAnswerLooksLikeOpenAI(t *testing.T) {
	t.Parallel()
	s := Start(t)
	r := chat(t, s, "hello")
	require.Equal(t, "application/json", r.header.Get("Content-Type"))
	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(r.body), &got))
	created, ok := got["created"].(float64)
	require.True(t, ok)
	require.Positive(t, created)
	delete(got, "created")
	rest, err := json.Marshal(got)
	require.NoError(t, err)
	require.JSONEq(t, `{
		"id": "chatcmpl-`+PromptHash("m\x00hello")[:24]+`", "object": "chat.completion", "model": "m",
		"choices": [{"index": 0, "message": {"role": "assistant", "content": "Mock answer 2cf24dba.", "refusal": null},
			"logprobs": null, "finish_reason": "stop"}],
		"usage": {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8},
		"system_fingerprint": "fp_mock"}`, string(rest))
	require.Equal(t, r.content(t), chat(t, s, "hello").content(t), "the same prompt has the same answer")
	require.NotEqual(t, r.content(t), chat(t, s, "other").content(t))
}

func TestDirectives(t *testing.T) {
	t.Parallel()
	errorOf := func(t *testing.T, r reply) (code, kind string) {
		t.Helper()
		var e struct {
			Error struct {
				Message string
				Type    string
				Param   any
				Code    string
			}
		}
		require.NoError(t, json.Unmarshal([]byte(r.body), &e), r.body)
		require.NotEmpty(t, e.Error.Message)
		return e.Error.Code, e.Error.Type
	}
	statuses := map[string]struct {
		status                 int
		code, kind, retryAfter string
	}{
		"!fail":                           {500, "server_error", "server_error", ""},
		"!fail 503":                       {503, "server_error", "server_error", ""},
		"!fail 401":                       {401, "invalid_api_key", "invalid_request_error", ""},
		"!fail 404 please":                {404, "model_not_found", "invalid_request_error", ""},
		"!fail 12":                        {500, "server_error", "server_error", ""},
		"!429 7":                          {429, "rate_limit_exceeded", "requests", "7"},
		"!429":                            {429, "rate_limit_exceeded", "requests", ""},
		"!quota":                          {429, "insufficient_quota", "insufficient_quota", ""},
		"  !fail 503\nand more":           {503, "server_error", "server_error", ""},
		`{"code":"x","task":"!fail 418"}`: {418, "invalid_request", "invalid_request_error", ""},
	}
	for prompt, want := range statuses {
		t.Run(prompt, func(t *testing.T) {
			t.Parallel()
			r := chat(t, Start(t), prompt)
			require.Equal(t, want.status, r.status)
			require.Equal(t, want.retryAfter, r.header.Get("Retry-After"))
			code, kind := errorOf(t, r)
			require.Equal(t, want.code, code)
			require.Equal(t, want.kind, kind)
		})
	}

	bodies := map[string]string{
		"!malformed null":  "null",
		"!malformed array": "[]",
		"!malformed empty": "",
		"!malformed html":  "<html><body><h1>Welcome to nginx!</h1></body></html>",
		"!malformed":       "<html><body><h1>Welcome to nginx!</h1></body></html>",
	}
	for prompt, want := range bodies {
		t.Run(prompt, func(t *testing.T) {
			t.Parallel()
			r := chat(t, Start(t), prompt)
			require.Equal(t, http.StatusOK, r.status)
			require.NoError(t, r.err)
			require.Equal(t, want, r.body)
		})
	}

	answers := map[string]string{
		"!echo two words":            "two words",
		"!echo first\nsecond":        "first\nsecond",
		"!slow 1ms":                  "Mock answer " + PromptHash("!slow 1ms")[:8] + ".",
		"!drip 1us":                  "Mock answer " + PromptHash("!drip 1us")[:8] + ".",
		"!unknown directive":         "Mock answer " + PromptHash("!unknown directive")[:8] + ".",
		"no directive: !fail 503":    "Mock answer " + PromptHash("no directive: !fail 503")[:8] + ".",
		`{"task":"!echo inspected"}`: "inspected",
		`{"task":"!echo`:             "Mock answer " + PromptHash(`{"task":"!echo`)[:8] + ".",
	}
	for prompt, want := range answers {
		t.Run(prompt, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, want, chat(t, Start(t), prompt).content(t))
		})
	}

	t.Run("!length", func(t *testing.T) {
		t.Parallel()
		require.Len(t, chat(t, Start(t), "!length 1000").content(t), 1000)
	})
	t.Run("!finish", func(t *testing.T) {
		t.Parallel()
		require.Contains(t, chat(t, Start(t), "!finish length").body, `"finish_reason":"length"`)
	})
	t.Run("!cut", func(t *testing.T) {
		t.Parallel()
		r := chat(t, Start(t), "!cut")
		require.ErrorIs(t, r.err, io.ErrUnexpectedEOF)
		require.NotEmpty(t, r.body)
	})
	t.Run("!gzip", func(t *testing.T) {
		t.Parallel()
		r := chat(t, Start(t), "!gzip")
		require.Equal(t, "gzip", r.header.Get("Content-Encoding"))
		z, err := gzip.NewReader(strings.NewReader(r.body))
		require.NoError(t, err)
		plain, err := io.ReadAll(z)
		require.NoError(t, err)
		require.True(t, json.Valid(plain))
	})
	for _, mode := range []string{"error", "truncated", "nochoices", "nullcontent", "emptycontent", "stream"} {
		t.Run("!malformed "+mode, func(t *testing.T) {
			t.Parallel()
			r := chat(t, Start(t), "!malformed "+mode)
			require.Equal(t, http.StatusOK, r.status)
			require.NoError(t, r.err)
			var c completion
			if json.Unmarshal([]byte(r.body), &c) == nil && len(c.Choices) > 0 {
				content := c.Choices[0].Message.Content
				require.True(t, content == nil || *content == "", "no usable answer")
			}
		})
	}
}

func TestInvalidUTF8(t *testing.T) {
	t.Parallel()
	r := chat(t, Start(t), "!malformed invalidutf8")
	require.Contains(t, r.body, "\xff")
	require.True(t, json.Valid([]byte(r.body)), "JSON but for the bytes: encoding/json repairs them")
}

func TestEndlessAnswer(t *testing.T) {
	t.Parallel()
	s := Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Endpoint(), strings.NewReader(chatBody("m", "!malformed endless")))
	require.NoError(t, err)
	resp, err := client(t).Do(req)
	require.NoError(t, err)
	n, err := io.CopyN(io.Discard, resp.Body, 8<<20)
	require.NoError(t, err)
	require.EqualValues(t, 8<<20, n)
	cancel()
	require.NoError(t, resp.Body.Close())
	require.NoError(t, s.Await(t.Context(), func(st Stats) bool { return st.Running == 0 }), "it ends with its client")
}

func TestQuote(t *testing.T) {
	t.Parallel()
	s := Start(t)
	require.NotContains(t, chat(t, s, "!fail 400 words").body, "words")
	s.Script(func(o *Options) { o.Quote = true })
	require.Contains(t, chat(t, s, "!fail 400 words").body, "words")
	require.Contains(t, chat(t, s, "!malformed error words").body, "words")
}

// "x2" counts per exact prompt.
func TestDirectiveTimes(t *testing.T) {
	t.Parallel()
	for _, directive := range []string{"!fail 503 x2", "!429 7 x2", "!429 x2", "!quota x2", "!malformed null x2", "!malformed x2", "!fail x2"} {
		t.Run(directive, func(t *testing.T) {
			t.Parallel()
			s := Start(t)
			failed := func(r reply) bool { return r.status != http.StatusOK || !strings.HasPrefix(r.body, `{"id"`) }
			for _, suffix := range []string{" job 1", " job 2"} {
				require.True(t, failed(chat(t, s, directive+suffix)))
				require.True(t, failed(chat(t, s, directive+suffix)))
				require.False(t, failed(chat(t, s, directive+suffix)))
				require.Equal(t, 3, s.Calls(directive+suffix))
			}
			s.Reset()
			require.True(t, failed(chat(t, s, directive+" job 1")))
		})
	}
}

func TestHangEnds(t *testing.T) {
	t.Parallel()
	running := func(n int) func(Stats) bool { return func(s Stats) bool { return s.Running == n } }
	t.Run("when the client leaves", func(t *testing.T) {
		t.Parallel()
		s := Start(t)
		ctx, cancel := context.WithCancel(t.Context())
		var group errgroup.Group
		group.Go(func() error {
			_, err := do(ctx, t, http.MethodPost, s.Endpoint(), chatBody("m", "!hang"))
			return err
		})
		require.NoError(t, s.Await(t.Context(), running(1)))
		cancel()
		require.ErrorIs(t, group.Wait(), context.Canceled)
		require.NoError(t, s.Await(t.Context(), running(0)))
		require.Equal(t, 1, s.Stats().Disconnected)
	})
	t.Run("when released", func(t *testing.T) {
		t.Parallel()
		s := Start(t)
		replies := make(chan reply, 1)
		go func() {
			r, _ := do(t.Context(), t, http.MethodPost, s.Endpoint(), chatBody("m", "!hang"))
			replies <- r
		}()
		require.NoError(t, s.Await(t.Context(), running(1)))
		r, err := do(t.Context(), t, http.MethodPost, s.URL+"/_/release", "")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, r.status)
		got := <-replies
		require.Contains(t, got.content(t), "Mock answer")
	})
	t.Run("when the server closes", func(t *testing.T) {
		t.Parallel()
		s := Start(t)
		done := make(chan error, 1)
		go func() {
			_, err := do(t.Context(), t, http.MethodPost, s.Endpoint(), chatBody("m", "!slow 1h"))
			done <- err
		}()
		require.NoError(t, s.Await(t.Context(), running(1)))
		s.Close()
		s.Close()
		require.Error(t, <-done, "not an empty answer")
		require.NoError(t, s.Await(t.Context(), running(0)))
	})
}

func TestAwaitGivesUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrClosedPipe)
	require.ErrorIs(t, NewServer(Options{}).Await(ctx, func(Stats) bool { return false }), io.ErrClosedPipe)
}

func TestCounters(t *testing.T) {
	t.Parallel()
	s := Start(t)
	long := strings.Repeat("é", 150)
	post := func(model, prompt string) {
		_, err := do(t.Context(), t, http.MethodPost, s.Endpoint(), chatBody(model, prompt))
		require.NoError(t, err)
	}
	post("a", "one")
	post("a", "one")
	post("b", long)
	post("b", "!fail 503")
	r, err := do(t.Context(), t, http.MethodGet, s.URL+"/_/stats", "")
	require.NoError(t, err)
	var got Stats
	require.NoError(t, json.Unmarshal([]byte(r.body), &got))
	require.Equal(t, s.Stats(), got, "nothing runs, so nothing changes")
	require.Positive(t, got.BusySeconds)
	got.BusySeconds = 0
	require.Equal(t, Stats{
		Calls: 4, MaxRunning: 1,
		ByPrompt:          map[string]int{"one": 2, strings.Repeat("é", 100): 1, "!fail 503": 1},
		ByPromptHash:      map[string]int{PromptHash("one"): 2, PromptHash(long): 1, PromptHash("!fail 503"): 1},
		ByModel:           map[string]int{"a": 2, "b": 2},
		ByMaxTokens:       map[int]int{0: 4},
		ByStatus:          map[int]int{200: 3, 503: 1},
		RunningByModel:    map[string]int{"a": 0, "b": 0},
		MaxRunningByModel: map[string]int{"a": 1, "b": 1},
	}, got)
	require.Equal(t, 2, s.Calls("one"))

	r, err = do(t.Context(), t, http.MethodPost, s.URL+"/_/reset", "")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, r.status)
	require.Equal(t, newStats(), s.Stats())
}

func TestMaxRunning(t *testing.T) {
	t.Parallel()
	const perModel = 20
	s := Start(t, Options{Behavior: Behavior{Hang: true}})
	var group errgroup.Group
	for i := range 2 * perModel {
		group.Go(func() error {
			r, err := do(t.Context(), t, http.MethodPost, s.Endpoint(), chatBody([]string{"a", "b"}[i%2], fmt.Sprint(i)))
			if err == nil && r.status != http.StatusOK {
				err = fmt.Errorf("status %d", r.status)
			}
			return err
		})
	}
	require.NoError(t, s.Await(t.Context(), func(st Stats) bool { return st.Running == 2*perModel }))
	s.Reset() // what still runs is not forgotten
	require.Equal(t, 2*perModel, s.Stats().MaxRunning)
	s.Release()
	require.NoError(t, group.Wait())
	require.NoError(t, s.Await(t.Context(), func(st Stats) bool { return st.Running == 0 }))
	require.Equal(t, map[string]int{"a": perModel, "b": perModel}, s.Stats().MaxRunningByModel)
}

func TestBusySeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(Options{Behavior: Behavior{LatencyMS: 2000}})
		var group errgroup.Group
		for range 3 {
			group.Go(func() error {
				r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", strings.NewReader(chatBody("m", "p")))
				s.ServeHTTP(httptest.NewRecorder(), r)
				return nil
			})
		}
		<-time.After(time.Second)
		synctest.Wait()
		require.InDelta(t, 3.0, s.Stats().BusySeconds, 1e-9, "calls under way count as far as they are")
		require.NoError(t, group.Wait())
		<-time.After(time.Minute)
		require.InDelta(t, 6.0, s.Stats().BusySeconds, 1e-9)
		s.Reset()
		require.Zero(t, s.Stats().BusySeconds)
	})
}

func TestScript(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Models: []string{"m"}})
	script := func(body string) reply {
		r, err := do(t.Context(), t, http.MethodPost, s.URL+"/_/script", body)
		require.NoError(t, err)
		return r
	}
	require.Equal(t, http.StatusOK, script(`{"answer_length":50,"rules":[
		{"contains":"boom","times":1,"status":503,"retry_after":9},
		{"contains":"boom","model":"other","status":400},
		{"contains":"say","answer":"said","answer_length":4}]}`).status)

	require.Len(t, chat(t, s, "hello").content(t), 50)
	r := chat(t, s, "boom please")
	require.Equal(t, http.StatusServiceUnavailable, r.status)
	require.Equal(t, "9", r.header.Get("Retry-After"))
	require.Len(t, chat(t, s, "boom please").content(t), 50, "the rule is used up, the other is for another model")
	require.Equal(t, "said", chat(t, s, "say it").content(t))

	require.Equal(t, http.StatusOK, script(`{"answer_length":10}`).status)
	require.Len(t, chat(t, s, "hello").content(t), 10)
	require.Equal(t, http.StatusServiceUnavailable, chat(t, s, "boom").status, "rules that are not given stay")
	require.Equal(t, http.StatusOK, script(`{"rules":[],"error_rate":1,"error_status":502}`).status)
	require.Equal(t, http.StatusBadGateway, chat(t, s, "boom").status)
	require.Equal(t, http.StatusOK, script(`{"error_rate":0,"malformed":"null"}`).status)
	require.Equal(t, "null", chat(t, s, "hello").body)

	require.Equal(t, http.StatusBadRequest, script(`{"answer_size":10}`).status)
	require.Equal(t, http.StatusBadRequest, script(`{`).status)

	s.Reset()
	require.Equal(t, "Mock answer 2cf24dba.", chat(t, s, "hello").content(t))
	s.Script(func(o *Options) { o.LatencyMS, o.JitterMS, o.Sigma, o.NoUsage = 1, 1, 0.1, true })
	require.NotContains(t, chat(t, s, "hello").body, "usage")
}

func TestErrorRate(t *testing.T) {
	t.Parallel()
	statuses := func(seed uint64) (list []int) {
		s := Start(t, Options{ErrorRate: 0.5, Seed: seed})
		for i := range 40 {
			list = append(list, chat(t, s, fmt.Sprint(i)).status)
		}
		return list
	}
	first := statuses(1)
	require.Contains(t, first, http.StatusOK)
	require.Contains(t, first, http.StatusInternalServerError)
	require.Equal(t, first, statuses(1), "a seed repeats")
}

func TestModels(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Models: []string{"llama", "m"}})
	r, err := do(t.Context(), t, http.MethodGet, s.URL+"/v1/models", "")
	require.NoError(t, err)
	require.JSONEq(t, `{"object":"list","data":[
		{"id":"llama","object":"model","created":1700000000,"owned_by":"mock"},
		{"id":"m","object":"model","created":1700000000,"owned_by":"mock"}]}`, r.body)
	r, err = do(t.Context(), t, http.MethodPost, s.Endpoint(), chatBody("gone", "hello"))
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, r.status)
	require.Contains(t, r.body, "model_not_found")
	require.Equal(t, http.StatusOK, chat(t, s, "hello").status)

	s.Script(func(o *Options) { o.Models = nil })
	r, err = do(t.Context(), t, http.MethodGet, s.URL+"/v1/models", "")
	require.NoError(t, err)
	require.Contains(t, r.body, `"id":"*"`, "it answers as any model")
	require.Contains(t, r.body, `"id":"m"`)

	s.Script(func(o *Options) { o.NoModelList = true })
	r, err = do(t.Context(), t, http.MethodGet, s.URL+"/v1/models", "")
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, r.status)
}

func TestTheKeyComesFirst(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{APIKey: "secret", NoModelList: true})
	for path, method := range map[string]string{"/v1/models": http.MethodGet, "/v1/chat/completions": http.MethodPost} {
		for _, body := range []string{"", "{}", chatBody("m", "hello")} {
			r, err := do(t.Context(), t, method, s.URL+path, body)
			require.NoError(t, err)
			require.Equal(t, http.StatusUnauthorized, r.status, path)
			require.Contains(t, r.body, "invalid_api_key")
		}
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := Start(t)
	tests := map[string]struct {
		method, path, body string
		status             int
	}{
		"no JSON":        {http.MethodPost, "/v1/chat/completions", "hello", 400},
		"no model":       {http.MethodPost, "/v1/chat/completions", `{"messages":[{"role":"user","content":"x"}]}`, 400},
		"no message":     {http.MethodPost, "/v1/chat/completions", `{"model":"m","messages":[]}`, 400},
		"too large":      {http.MethodPost, "/v1/chat/completions", strings.Repeat(" ", maxRequest+1), 413},
		"wrong method":   {http.MethodGet, "/v1/chat/completions", "", 405},
		"wrong path":     {http.MethodPost, "/v1/chat", "", 404},
		"unknown admin":  {http.MethodGet, "/_/secrets", "", 404},
		"GET of script":  {http.MethodGet, "/_/script", "", 405},
		"POST of stats":  {http.MethodPost, "/_/stats", "", 405},
		"GET of reset":   {http.MethodGet, "/_/reset", "", 405},
		"POST of models": {http.MethodPost, "/v1/models", "", 405},
		"health":         {http.MethodGet, "/healthz", "", 200},
		"root":           {http.MethodGet, "/", "", 200},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := do(t.Context(), t, test.method, s.URL+test.path, test.body)
			require.NoError(t, err)
			require.Equal(t, test.status, r.status, r.body)
		})
	}
}

func TestContentInParts(t *testing.T) {
	t.Parallel()
	s := Start(t)
	r, err := do(t.Context(), t, http.MethodPost, s.Endpoint(),
		`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"!echo "},{"type":"text","text":"parts"}]}]}`)
	require.NoError(t, err)
	require.Equal(t, "parts", r.content(t))
}

func TestStreaming(t *testing.T) {
	t.Parallel()
	stream := func(t *testing.T, prompt string) (events []string, readErr error) {
		t.Helper()
		s := Start(t)
		r, err := do(t.Context(), t, http.MethodPost, s.Endpoint(),
			`{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"`+prompt+`"}]}`)
		require.NoError(t, err)
		require.Equal(t, "text/event-stream", r.header.Get("Content-Type"))
		lines := bufio.NewScanner(bytes.NewReader([]byte(r.body)))
		for lines.Scan() {
			if data, found := strings.CutPrefix(lines.Text(), "data: "); found {
				events = append(events, data)
			}
		}
		return events, r.err
	}
	text := func(t *testing.T, events []string) (content, finish string, tokens int) {
		t.Helper()
		for _, event := range events {
			var c chunk
			require.NoError(t, json.Unmarshal([]byte(event), &c), event)
			require.Equal(t, "chat.completion.chunk", c.Object)
			if c.Usage != nil {
				require.Empty(t, c.Choices)
				tokens = c.Usage.TotalTokens
				continue
			}
			require.Len(t, c.Choices, 1)
			if piece := c.Choices[0].Delta.Content; piece != nil {
				content += *piece
			}
			if reason := c.Choices[0].FinishReason; reason != nil {
				finish = *reason
			}
		}
		return content, finish, tokens
	}
	t.Run("whole", func(t *testing.T) {
		t.Parallel()
		events, err := stream(t, "!echo three short words")
		require.NoError(t, err)
		last := len(events) - 1
		require.Equal(t, "[DONE]", events[last])
		content, finish, tokens := text(t, events[:last])
		require.Equal(t, "three short words", content)
		require.Equal(t, "stop", finish)
		require.Positive(t, tokens)
		require.Contains(t, events[0], `"role":"assistant"`)
	})
	t.Run("cut", func(t *testing.T) {
		t.Parallel()
		events, err := stream(t, "!cut")
		require.Error(t, err)
		content, finish, _ := text(t, events)
		require.NotEmpty(t, content)
		require.Empty(t, finish)
	})
	t.Run("failed", func(t *testing.T) {
		t.Parallel()
		s := Start(t)
		r, err := do(t.Context(), t, http.MethodPost, s.Endpoint(),
			`{"model":"m","stream":true,"messages":[{"role":"user","content":"!fail 503"}]}`)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, r.status)
	})
}

// The handler works without a network as well.
func TestAsHandler(t *testing.T) {
	t.Parallel()
	s := NewServer(Options{Behavior: Behavior{Answer: "hi", RetryAfterDate: true, RetryAfter: 60}})
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", strings.NewReader(chatBody("m", "hello"))))
	require.Equal(t, http.StatusOK, rec.Code)
	rec = httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", strings.NewReader(chatBody("m", "!429 60"))))
	require.Equal(t, http.StatusTooManyRequests, rec.Code)
	s.Script(func(o *Options) { o.Status = http.StatusServiceUnavailable })
	rec = httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", strings.NewReader(chatBody("m", "hello"))))
	at, err := http.ParseTime(rec.Header().Get("Retry-After"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Minute), at, 30*time.Second)
}

// failing records what Start reports to its test.
type failing struct {
	TB
	cleanups []func()
}

func (f *failing) Cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }

func TestStartStops(t *testing.T) {
	t.Parallel()
	tb := &failing{TB: t}
	s := Start(tb)
	require.Equal(t, http.StatusOK, chat(t, s, "hello").status)
	for _, f := range tb.cleanups {
		f()
	}
	_, err := do(t.Context(), t, http.MethodPost, s.Endpoint(), "")
	require.Error(t, err)
}

func TestMaxTokensAreCounted(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	for _, limit := range []string{`"max_tokens":7`, `"max_completion_tokens":7`, `"max_tokens":9`} {
		r, err := do(t.Context(), t, http.MethodPost, s.Endpoint(), `{"model":"m","messages":[{"role":"user","content":"x"}],`+limit+`}`)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, r.status)
	}
	require.Equal(t, map[int]int{7: 2, 9: 1}, s.Stats().ByMaxTokens)
}
