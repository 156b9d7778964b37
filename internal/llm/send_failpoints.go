//go:build failpoints

package llm

import (
	"context"
	"net/http"
	"net/http/httptrace"
	"time"

	"github.com/nodpt/executor/internal/failpoint"
)

// flushTime is far more than a flush takes and far less than an LLM does.
const flushTime = 20 * time.Millisecond

// send passes the failpoint llm_sent once the request is written, while the
// answer is awaited. It returns after that, so that the point is always passed
// before the answer is looked at.
func send(client *http.Client, req *http.Request) (*http.Response, error) {
	if !failpoint.Armed(failpoint.LLMSent) {
		return client.Do(req) //nolint:gosec // as in send.go
	}
	ctx, cut := context.WithCancelCause(req.Context())
	written := make(chan struct{}, 1)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err == nil {
				select {
				case written <- struct{}{}:
				default: // written again on another connection
				}
			}
		},
	})
	answered := make(chan struct{})
	passed := make(chan error, 1)
	go func() {
		select {
		case <-written:
		case <-answered:
			select {
			case <-written:
			default: // it never got that far
				passed <- nil
				return
			}
		}
		// The transport calls its hook just before it flushes a small request to
		// the connection, and has none behind that.
		timer := time.NewTimer(flushTime)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-answered:
		}
		err := failpoint.Hit(ctx, failpoint.LLMSent)
		if err != nil {
			cut(err)
		}
		passed <- err
	}()
	resp, err := client.Do(req.WithContext(ctx)) //nolint:gosec // as in send.go
	close(answered)
	if lost := <-passed; lost != nil && err == nil {
		_ = resp.Body.Close()
		return nil, lost
	}
	return resp, err
}
