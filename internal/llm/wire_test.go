package llm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// wireClient returns a client whose every connection answers the first request
// with these bytes and hangs up.
func wireClient(t *testing.T, raw []byte) *Client {
	t.Helper()
	c, err := newClient(
		Config{Endpoint: "http://localhost/v1/chat/completions", APIKey: "the-key", MaxResponse: 1 << 16, Timeout: 20 * time.Second},
		func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				defer func() { _ = far.Close() }()
				req, err := http.ReadRequest(bufio.NewReader(far))
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = far.Write(raw)
			}()
			return near, nil
		})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// requireSound checks what must hold of any outcome of a call.
func requireSound(t *testing.T, answer Answer, err error) {
	t.Helper()
	if err == nil {
		require.True(t, answer.Text != "" || answer.Truncated)
		require.True(t, utf8.ValidString(answer.Text), "an answer is text")
		require.NotContains(t, answer.Text, "\x00", "PostgreSQL refuses it for ever") // B56
		require.False(t, exceeds(answer.Text, MaxAnswer))                             // B56
		require.True(t, utf8.ValidString(answer.Model))
		require.NotContains(t, answer.Model, "\x00")
		require.LessOrEqual(t, len(answer.Model), 3*256)
		require.True(t, shortWord(answer.FinishReason))
		require.GreaterOrEqual(t, answer.PromptTokens, int64(0))
		require.GreaterOrEqual(t, answer.CompletionTokens, int64(0))
		return
	}
	require.Zero(t, answer)
	e := requireError(t, err)
	require.True(t, e.Code == "" || shortWord(e.Code))
	require.True(t, e.RetryAfter == 0 || e.RetryAfter >= minRetryAfter && e.RetryAfter <= maxRetryAfter)
	// Nothing of a response can be in a text of this form, except its code.
	require.Regexp(t, errorForm(), e.Error())
	require.NoError(t, unwrapped(err), "a wrapped error could quote the response")
	require.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), "the-key")
}

func errorForm() *regexp.Regexp {
	return regexp.MustCompile(`^llm_[a-z_]+(, status [0-9]+)?(, [a-z0-9_.-]{1,64})?` +
		`(: (check LLM_API_KEY and what it may use|check LLM_ENDPOINT and the model's name \(MODEL_<ROLE>, DEFAULT_MODEL\)|` +
		`check LLM_ENDPOINT|check the account behind LLM_API_KEY|LLM_TIMEOUT bounds one call|check that LLM_ENDPOINT is up))?$`)
}

func unwrapped(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	return nil
}

// FuzzWire: any bytes in place of an HTTP response, from a broken status line to
// a body cut in the middle of a chunk.
func FuzzWire(f *testing.F) {
	const answer = `{"model":"m","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}`
	ok := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	for _, raw := range []string{
		"", "\x00", "HTTP", "HTTP/1.1", "HTTP/1.1 200", "HTTP/9.9 200 OK\r\n\r\n", "HTTP/1.1 99 x\r\n\r\n", "HTTP/1.1 -1 x\r\n\r\n",
		"HTTP/1.1 999 x\r\n\r\n", "SSH-2.0-OpenSSH\r\n", "\x15\x03\x01\x00\x02\x02\x16",
		ok + "\r\n" + answer,
		ok + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(answer)) + answer,
		ok + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(answer)+10) + answer,
		ok + "Content-Length: 18446744073709551616\r\n\r\n" + answer,
		ok + "Content-Length: 3\r\nContent-Length: 4\r\n\r\n" + answer,
		ok + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(answer), answer),
		ok + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s", len(answer), answer[:20]),
		ok + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + answer,
		ok + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"cho\r\nzz\r\n",
		ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		ok + "Content-Encoding: gzip\r\n\r\n" + answer,
		ok + "Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
		"HTTP/1.1 100 Continue\r\n\r\n" + ok + "\r\n" + answer,
		strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 10),
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + answer,
		"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 206 Partial\r\n\r\n" + answer, "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n",
		"HTTP/1.1 429 Too Many\r\nRetry-After: 1e308\r\n\r\n{\"error\":{\"code\":\"insufficient_quota\"}}",
		"HTTP/1.1 503 x\r\nRetry-After: Wed, 21 Oct 2065 07:28:00 GMT\r\nDate: Wed, 21 Oct 2065 07:27:00 GMT\r\n\r\n<html>",
		"HTTP/1.1 500 x\r\nRetry-After: -5\r\nContent-Length: 9\r\n\r\nxyz",
		"HTTP/1.1 400 x\r\n\r\n{\"error\":{\"code\":\"the-key\",\"type\":\"hello\"}}",
		ok + "\r\n" + `{"choices":[{"message":{"content":"a\u0000\ud800\u001b[31m"}}]}`,
		ok + "\r\n" + "{\"choices\":[{\"message\":{\"content\":\"\xff\xfe\x00\"}}]}",
		ok + "\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: [DONE]\n\n",
		ok + strings.Repeat("X: y\r\n", 200) + "\r\n" + answer,
	} {
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		answer, err := ask(t.Context(), wireClient(t, raw))
		requireSound(t, answer, err)
	})
}

// FuzzParts is FuzzWire with an HTTP frame that holds, so that the fuzzer spends
// its time on status, headers and body: chunked or not, cut or not.
func FuzzParts(f *testing.F) {
	for _, status := range []uint16{200, 201, 204, 206, 302, 400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 529} {
		for _, body := range []string{
			`{"choices":[{"message":{"content":"hi"},"finish_reason":"length"}]}`, `{"error":{"code":"insufficient_quota","type":5}}`,
			`{"choices":[{"message":{"content":"","refusal":"no"},"finish_reason":"content_filter"}]}`, `<html>`, `[{"error":{}}]`,
		} {
			f.Add(status, "Retry-After", "7", []byte(body), uint16(0), uint16(0))
			f.Add(status, "Content-Encoding", "gzip", []byte(body), uint16(5), uint16(0))
			f.Add(status, "Content-Type", "text/event-stream", []byte(body), uint16(1), uint16(20))
		}
	}
	f.Fuzz(func(t *testing.T, status uint16, header, value string, body []byte, chunk, cutAfter uint16) {
		var raw strings.Builder
		fmt.Fprintf(&raw, "HTTP/1.1 %03d x\r\n", status%1000)
		if !strings.ContainsAny(header+value, "\r\n:") && header != "" {
			fmt.Fprintf(&raw, "%s: %s\r\n", header, value)
		}
		if chunk == 0 {
			fmt.Fprintf(&raw, "Content-Length: %d\r\n\r\n%s", len(body), body)
		} else {
			raw.WriteString("Transfer-Encoding: chunked\r\n\r\n")
			for rest := body; len(rest) > 0; {
				n := min(int(chunk), len(rest))
				fmt.Fprintf(&raw, "%x\r\n%s\r\n", n, rest[:n])
				rest = rest[n:]
			}
			raw.WriteString("0\r\n\r\n")
		}
		sent := []byte(raw.String())
		if cutAfter > 0 {
			sent = sent[:max(0, len(sent)-int(cutAfter))]
		}
		answer, err := ask(t.Context(), wireClient(t, sent))
		requireSound(t, answer, err)
	})
}
