package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/llm"
)

// TestSurplusOfAnAnswerIsNotLogged: what a server sends behind the end of its
// response is quoted by net/http on the standard logger.
func TestSurplusOfAnAnswerIsNotLogged(t *testing.T) {
	t.Parallel()
	stderr := &service{}
	log.SetOutput(stderr) // a service collects output
	require.Equal(t, exitOK, execute(t.Context(), []string{"version"}, io.Discard, io.Discard))

	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	hungUp := make(chan struct{})
	go func() {
		defer close(hungUp)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		const body = `{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}`
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sCANARY of an answer", len(body), body)
		_, _ = conn.Read(make([]byte, 1)) // until the client has seen it, and hangs up
	}()
	c, err := llm.New(llm.Config{Endpoint: "http://" + l.Addr().String() + "/v1/chat/completions"})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	answer, err := c.Complete(t.Context(), llm.Request{Model: "m", Prompt: "p"})
	require.NoError(t, err)
	require.Equal(t, "hi", answer.Text)
	<-hungUp
	require.NotContains(t, string(stderr.output()), "CANARY")
}
