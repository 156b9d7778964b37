package llm

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzResponse: whatever comes back, the call ends in a clean answer or a typed
// error that shows nothing of it.
func FuzzResponse(f *testing.F) {
	for _, body := range []string{
		``, `null`, `[]`, `{}`, `<html>`, `{"error":"x"}`, `{"error":{"code":"insufficient_quota"}}`,
		`{"choices":[]}`, `{"choices":[null]}`, `{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}`,
		`{"choices":[{"message":{"content":[{"type":"text","text":"a"}]}}]}`,
		`{"choices":[{"message":{"content":null,"refusal":"no"}}],"usage":{"prompt_tokens":-1}}`,
		`{"choices":[{"message":{"content":"\u0000\ud800"},"finish_reason":"length"}],"created":1e99}`,
		`[{"error":{"code":400,"message":["a"]}}]`, `{"error":{"message":5,"innererror":7,"code":{}}}`,
		strings.Repeat("[", 20000),
	} {
		f.Add(200, []byte(body), "")
		f.Add(429, []byte(body), "7")
	}
	f.Fuzz(func(t *testing.T, status int, body []byte, retryAfter string) {
		if status < 200 || status > 999 {
			status = 200 + (status%800+800)%800
		}
		c, err := New(Config{Endpoint: "http://localhost/v1/chat/completions", MaxResponse: 1 << 20})
		require.NoError(t, err)
		c.http.Transport = roundTrip(func(r *http.Request) *http.Response {
			rec := httptest.NewRecorder()
			rec.Header().Set("Retry-After", retryAfter)
			rec.WriteHeader(status)
			_, _ = rec.Write(body)
			resp := rec.Result()
			resp.Request = r
			return resp
		})
		answer, err := ask(t.Context(), c)
		requireSound(t, answer, err)
		if err == nil {
			require.GreaterOrEqual(t, status, 200)
			require.Less(t, status, 300)
			return
		}
		require.Equal(t, status, requireError(t, err).Status)
	})
}

type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }
