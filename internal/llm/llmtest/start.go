package llmtest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

// TB is what Start needs of a test. It is not testing.TB so that the binary
// with the mock-llm command does not link the testing package.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Running is a stub listening on a free loopback port.
type Running struct {
	*Server
	URL string // http://127.0.0.1:<port>
}

// Endpoint is the URL of the chat endpoint, as LLM_ENDPOINT wants it.
func (r *Running) Endpoint() string { return r.URL + "/v1/chat/completions" }

// Start runs a stub until the test ends. At most one Options is used.
func Start(tb TB, options ...Options) *Running {
	tb.Helper()
	var o Options
	if len(options) > 0 {
		o = options[0]
	}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("llmtest: listen on loopback: %v", err)
		return nil
	}
	stub := NewServer(o)
	server := &http.Server{Handler: stub, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	tb.Cleanup(func() {
		stub.Close()
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			tb.Fatalf("llmtest: serve: %v", err)
		}
	})
	return &Running{Server: stub, URL: "http://" + listener.Addr().String()}
}
