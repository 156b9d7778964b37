package llm

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/llm/llmtest"
)

// The table "LLM" of DESIGN.md section 4, fault F48 and F49.
func TestStatuses(t *testing.T) {
	t.Parallel()
	code := func(code string) string {
		return `{"error":{"message":"m","type":"t","param":null,"code":"` + code + `"}}`
	}
	tests := []struct {
		status     int
		body       string
		retryAfter string
		want       Error
	}{
		{500, code("server_error"), "", Error{Kind: ServerError, Code: "server_error"}},
		{500, "", "", Error{Kind: ServerError}},
		{502, "<html>Bad Gateway</html>", "", Error{Kind: ServerError}},
		{503, "", "", Error{Kind: ServerError}},
		{503, "", "7", Error{Kind: ServerError, RetryAfter: 7 * time.Second}},
		{504, "", "", Error{Kind: ServerError}},
		{529, `{"type":"error","error":{"type":"overloaded_error","message":"m"}}`, "", Error{Kind: ServerError, Code: "overloaded_error"}},
		{529, "", "2", Error{Kind: RateLimited, RetryAfter: 2 * time.Second}},
		{408, "", "", Error{Kind: Timeout}},
		{409, "", "", Error{Kind: ServerError}},

		{429, code("rate_limit_exceeded"), "", Error{Kind: RateLimited, Code: "rate_limit_exceeded"}},
		{429, code("rate_limit_exceeded"), "7", Error{Kind: RateLimited, Code: "rate_limit_exceeded", RetryAfter: 7 * time.Second}},
		{429, code("token_quota_exceeded"), "", Error{Kind: RateLimited, Code: "token_quota_exceeded"}},
		{429, "slow down", "", Error{Kind: RateLimited}},
		{429, code("insufficient_quota"), "30", Error{Kind: Quota, Code: "insufficient_quota", RetryAfter: 30 * time.Second}},
		{429, code("credit_balance_exhausted"), "", Error{Kind: Quota, Code: "credit_balance_exhausted"}},
		{429, code("project_spend_limit_exceeded"), "", Error{Kind: Quota, Code: "project_spend_limit_exceeded"}},
		{429, code("organization_spend_limit_exceeded"), "", Error{Kind: Quota, Code: "organization_spend_limit_exceeded"}},
		{429, `{"error":{"code":"insufficient_quota"}}`, "", Error{Kind: Quota, Code: "insufficient_quota"}},
		{429, `{"error":{"message":"m","type":"insufficient_quota","code":null}}`, "", Error{Kind: Quota, Code: "insufficient_quota"}},
		{429, `{"error":{"message":"m","type":"insufficient_quota","code":429}}`, "", Error{Kind: Quota, Code: "429"}},
		{402, "", "", Error{Kind: Quota}},
		{403, code("billing_not_active"), "", Error{Kind: Quota, Code: "billing_not_active"}},

		{401, code("invalid_api_key"), "", Error{Kind: Misconfigured, Code: "invalid_api_key"}},
		{403, "", "", Error{Kind: Misconfigured}},
		{404, code("model_not_found"), "", Error{Kind: Misconfigured, Code: "model_not_found"}},
		{404, `{"error":"model not found"}`, "", Error{Kind: Misconfigured}},
		{404, `{"detail":"Not Found"}`, "", Error{Kind: Misconfigured}},
		{405, "", "", Error{Kind: Misconfigured}},
		{410, "", "", Error{Kind: Misconfigured}},
		{400, code("invalid_api_key"), "", Error{Kind: Misconfigured, Code: "invalid_api_key"}},
		{400, code("model_not_found"), "", Error{Kind: Misconfigured, Code: "model_not_found"}},

		{400, code("context_length_exceeded"), "", Error{Kind: BadRequest, Code: "context_length_exceeded"}},
		{400, "", "", Error{Kind: BadRequest}},
		{413, "", "", Error{Kind: BadRequest}},
		{418, "", "", Error{Kind: BadRequest}},
		{422, `{"detail":[{"type":"missing"}]}`, "", Error{Kind: BadRequest}},
		{400, code("content_filter"), "", Error{Kind: Filtered, Code: "content_filter"}},

		// Shapes of error bodies.
		{400, `[{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}]`, "", Error{Kind: BadRequest, Code: "400"}},
		{400, `{"object":"error","message":"m","type":"invalid_request_error","code":"1500"}`, "", Error{Kind: BadRequest, Code: "1500"}},
		{400, code("has spaces and UPPER case"), "", Error{Kind: BadRequest, Code: "t"}},
		{400, code(strings.Repeat("x", 65)), "", Error{Kind: BadRequest, Code: "t"}},
		{400, code(strings.Repeat("x", 64)), "", Error{Kind: BadRequest, Code: strings.Repeat("x", 64)}},
		{400, `{"error":{"code":{"a":1},"type":["b"]}}`, "", Error{Kind: BadRequest}},
		{400, `{"error":{"code":true}}`, "", Error{Kind: BadRequest}},
		{400, `{"error":null}`, "", Error{Kind: BadRequest}},
		{400, `{"error":{"code":"cut`, "", Error{Kind: BadRequest}},
		{500, `null`, "", Error{Kind: ServerError}},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%d %.60s %s", test.status, test.body, test.retryAfter), func(t *testing.T) {
			t.Parallel()
			_, err := ask(t.Context(), serve(t, func(w http.ResponseWriter, r *http.Request) {
				if test.retryAfter != "" {
					w.Header().Set("Retry-After", test.retryAfter)
				}
				respond(test.status, test.body)(w, r)
			}))
			test.want.Status = test.status
			require.Equal(t, &test.want, requireError(t, err))
		})
	}
}

// The status tells what happened even if the body of the error is too large,
// cut or compressed.
func TestErrorBodies(t *testing.T) {
	t.Parallel()
	t.Run("huge", func(t *testing.T) {
		t.Parallel()
		_, err := ask(t.Context(), serve(t, respond(503, strings.Repeat("x", 8<<20))))
		require.Equal(t, &Error{Kind: ServerError, Status: 503}, requireError(t, err))
	})
	t.Run("cut", func(t *testing.T) {
		t.Parallel()
		_, err := ask(t.Context(), serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":`)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}))
		require.Equal(t, &Error{Kind: Misconfigured, Status: 404}, requireError(t, err))
	})
	t.Run("compressed", func(t *testing.T) {
		t.Parallel()
		_, err := ask(t.Context(), serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = w.Write(compress(t, `{"error":{"code":"insufficient_quota"}}`))
		}))
		require.Equal(t, &Error{Kind: Quota, Status: 429, Code: "insufficient_quota"}, requireError(t, err))
	})
}

func TestTransportFailures(t *testing.T) {
	t.Parallel()
	listen := func(t *testing.T) net.Listener {
		t.Helper()
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	// accept answers each connection with fixed bytes, after the request.
	accept := func(t *testing.T, reply string) string {
		t.Helper()
		l := listen(t)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = io.WriteString(conn, reply)
				_ = conn.Close()
			}
		}()
		return "http://" + l.Addr().String()
	}
	tests := map[string]struct {
		endpoint func(t *testing.T) string
		want     Error
	}{
		"connection refused": {func(t *testing.T) string {
			t.Helper()
			l := listen(t)
			require.NoError(t, l.Close())
			return "http://" + l.Addr().String()
		}, Error{Kind: Unreachable, Code: "connection_refused"}},
		"closed without an answer": {func(t *testing.T) string {
			t.Helper()
			return accept(t, "")
		}, Error{Kind: Unreachable, Code: "connection_closed"}},
		"not HTTP": {func(t *testing.T) string {
			t.Helper()
			return accept(t, "-ERR unknown command\r\n")
		}, Error{Kind: Unreachable, Code: "transport"}},
		"cut by length": {func(t *testing.T) string {
			t.Helper()
			return accept(t, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"choices\":")
		}, Error{Kind: Unreachable, Status: 200, Code: "cut_body"}},
		"cut in a chunk": {func(t *testing.T) string {
			t.Helper()
			return accept(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{\"choices\":")
		}, Error{Kind: Unreachable, Status: 200, Code: "cut_body"}},
		"cut between chunks": {func(t *testing.T) string {
			t.Helper()
			return accept(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
		}, Error{Kind: Unreachable, Status: 200, Code: "cut_body"}},
		"complete but not whole JSON": {func(t *testing.T) string {
			t.Helper()
			return accept(t, "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"choices\":")
		}, Error{Kind: Malformed, Status: 200, Code: "invalid_json"}},
		"unknown certificate": {func(t *testing.T) string {
			t.Helper()
			server := httptest.NewUnstartedServer(says("never"))
			server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
			server.Config.ErrorLog = discardLog()
			server.StartTLS()
			t.Cleanup(server.Close)
			return server.URL
		}, Error{Kind: Unreachable, Code: "tls_certificate"}},
		"https to an http port": {func(t *testing.T) string {
			t.Helper()
			return strings.Replace(accept(t, "HTTP/1.1 400 Bad Request\r\n\r\n"), "http:", "https:", 1)
		}, Error{Kind: Misconfigured, Code: "https_to_http_port"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := open(t, Config{Endpoint: test.endpoint(t) + "/v1/chat/completions"})
			_, err := ask(t.Context(), c)
			require.Equal(t, &test.want, requireError(t, err))
		})
	}
}

func TestNameNotResolved(t *testing.T) {
	t.Parallel()
	resolver := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no name server here")
	}}
	c, err := newClient(Config{Endpoint: "https://llm.example/v1/chat/completions"}, dialVia(resolver, false))
	require.NoError(t, err)
	_, err = ask(t.Context(), c)
	require.Equal(t, &Error{Kind: Unreachable, Code: "name_not_resolved"}, requireError(t, err))
}

// I6: whatever is in the prompt, the key, the URL or the response stays there.
func TestErrorsShowNothing(t *testing.T) {
	t.Parallel()
	const (
		promptCanary = "canary-of-the-prompt"
		keyCanary    = "canary-of-the-key"
		bodyCanary   = "CANARY of the body"
	)
	quote := func(s string) string {
		b, err := json.Marshal(s)
		require.NoError(t, err)
		return string(b)
	}
	bodies := []string{
		bodyCanary,
		`{"error":` + quote(bodyCanary) + `}`,
		`{"error":{"message":` + quote(bodyCanary) + `,"type":` + quote(bodyCanary) + `,"param":` + quote(bodyCanary) + `,"code":` + quote(bodyCanary) + `}}`,
		`{"error":{"message":` + quote(promptCanary) + `,"type":` + quote(keyCanary) + `,"code":` + quote(promptCanary) + `}}`,
		`{"error":{"code":"key-` + keyCanary + `"}}`,
		`{"choices":[{"message":{"content":null},"finish_reason":` + quote(bodyCanary) + `}],"model":` + quote(bodyCanary) + `}`,
		`{"choices":[{"message":{"content":` + quote(bodyCanary) + `},"finish_reason":"content_filter"}]}`,
		`{"choices":[{"message":{"content":` + quote(bodyCanary+strings.Repeat("<", 200_000)) + `}}]}`,
		`{"choices":[{"message":{"content":` + quote(bodyCanary),
	}
	for _, status := range []int{200, 302, 400, 401, 404, 429, 500, 503} {
		for i, body := range bodies {
			t.Run(fmt.Sprintf("%d body %d", status, i), func(t *testing.T) {
				t.Parallel()
				c := serve(t, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Location", "/"+promptCanary)
					w.Header().Set("Retry-After", bodyCanary)
					respond(status, body)(w, r)
				}, func(cfg *Config) {
					cfg.APIKey = keyCanary
					cfg.Endpoint += "?token=" + keyCanary
				})
				_, err := c.Complete(t.Context(), Request{Model: "m", Prompt: "please " + promptCanary})
				requireClean(t, err)
			})
		}
	}
	t.Run("nothing listens", func(t *testing.T) {
		t.Parallel()
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, l.Close())
		c := open(t, Config{Endpoint: "http://user:" + keyCanary + "@" + l.Addr().String() + "/" + keyCanary, APIKey: keyCanary})
		_, err = c.Complete(t.Context(), Request{Model: "gpt-5" + promptCanary, Prompt: promptCanary})
		requireClean(t, err)
	})
	t.Run("refused by the client", func(t *testing.T) {
		t.Parallel()
		stub := llmtest.Start(t)
		c := open(t, Config{Endpoint: stub.Endpoint(), APIKey: keyCanary})
		_, err := c.Complete(t.Context(), Request{Model: "text-davinci-003", Prompt: promptCanary})
		requireClean(t, err)
	})
}

func requireClean(t *testing.T, err error) {
	t.Helper()
	e := requireError(t, err)
	require.NoError(t, errors.Unwrap(e))
	for _, text := range []string{e.Error(), fmt.Sprintf("%+v", e), fmt.Sprintf("%#v", e), fmt.Sprintf("%+v", *e), e.Code} {
		require.NotContains(t, strings.ToLower(text), "canary")
	}
}

func TestErrorTextNamesTheSetting(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]Error{
		"llm_misconfigured, status 401, invalid_api_key: check LLM_API_KEY and what it may use":                {Kind: Misconfigured, Status: 401, Code: "invalid_api_key"},
		"llm_misconfigured, status 404: check LLM_ENDPOINT and the model's name (MODEL_<ROLE>, DEFAULT_MODEL)": {Kind: Misconfigured, Status: 404},
		"llm_misconfigured, status 302, redirect: check LLM_ENDPOINT":                                          {Kind: Misconfigured, Status: 302, Code: "redirect"},
		"llm_quota, status 429: check the account behind LLM_API_KEY":                                          {Kind: Quota, Status: 429},
		"llm_unreachable, connection_refused: check that LLM_ENDPOINT is up":                                   {Kind: Unreachable, Code: "connection_refused"},
		"llm_timeout: LLM_TIMEOUT bounds one call":                                                             {Kind: Timeout},
		"llm_malformed_answer, status 200, no_choice":                                                          {Kind: Malformed, Status: 200, Code: "no_choice"},
	} {
		require.Equal(t, want, e.Error())
	}
}

func TestKindsAreDistinct(t *testing.T) {
	t.Parallel()
	seen := map[Kind]bool{}
	for _, k := range Kinds() {
		require.False(t, seen[k], k)
		require.True(t, strings.HasPrefix(string(k), "llm_"))
		seen[k] = true
	}
	require.Len(t, seen, 11)
}
