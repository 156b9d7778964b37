package llm

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nodpt/executor/internal/failpoint"
)

const (
	dialTimeout  = 10 * time.Second
	idleTimeout  = 30 * time.Second
	maxIdleConns = 2048 // above any sensible number of parallel calls, so that each keeps its connection
	maxHeader    = 256 << 10
	maxErrorBody = 64 << 10 // all that is read of an error response: only its code is wanted
	maxElements  = 20_000   // JSON values in a response; an answer has some dozens

	minRetryAfter = time.Second
	maxRetryAfter = 15 * time.Minute
)

var (
	errAddressRefused = errors.New("link-local or metadata address refused")
	errCut            = errors.New("response cut short")
)

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func newDialer(allowLinkLocal bool) dialFunc { return dialVia(nil, allowLinkLocal) }

// dialVia checks addresses when they are dialled, after resolution: only there
// is it certain that what was checked is what gets connected.
func dialVia(resolver *net.Resolver, allowLinkLocal bool) dialFunc {
	d := &net.Dialer{
		Timeout:  dialTimeout,
		Resolver: resolver,
		// A non-streaming call is silent for minutes. The probes keep it alive
		// in stateful firewalls and notice a dead peer within about a minute.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4},
	}
	if !allowLinkLocal {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil || linkLocal(ap.Addr()) {
				return errAddressRefused
			}
			return nil
		}
	}
	return d.DialContext
}

// newHTTPClient builds the transport. It has no response-header timeout: a
// model that is not streaming answers late, and the call's context bounds it.
func newHTTPClient(dial dialFunc) *http.Client {
	// HTTP/1.1 only: calls that share one HTTP/2 connection would share its
	// death, and each of them would wait for its own timeout to notice.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			Protocols:              protocols,
			TLSHandshakeTimeout:    dialTimeout,
			IdleConnTimeout:        idleTimeout,
			MaxIdleConns:           maxIdleConns,
			MaxIdleConnsPerHost:    maxIdleConns,
			MaxResponseHeaderBytes: maxHeader,
			DisableCompression:     true,
		},
		// A redirect would carry the prompt and the API key to an address
		// nobody configured, or turn the POST into a GET.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// exchange is one HTTP request and what is known of its response. It is the
// doer that go-openai sends its request through: it calls the configured URL
// instead of the one go-openai made up, reads the response within limits, and
// keeps the status, Retry-After and body that go-openai drops or hides.
type exchange struct {
	client *Client
	prompt string

	sent       bool
	status     int // 0 until response headers arrived
	retryAfter time.Duration
	body       []byte
}

// Do implements go-openai's HTTPDoer.
func (x *exchange) Do(req *http.Request) (*http.Response, error) {
	x.sent = true
	endpoint := *x.client.endpoint
	req.URL, req.Host = &endpoint, endpoint.Host
	req.Header.Set("User-Agent", "nodpt-executor")

	resp, err := send(x.client.http, req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	x.status = resp.StatusCode
	x.retryAfter = parseRetryAfter(resp.Header, time.Now())

	switch {
	case x.status >= 300 && x.status < 400:
		return nil, &Error{Kind: Misconfigured, Status: x.status, Code: "redirect"}
	case x.status < 200:
		return nil, &Error{Kind: Misconfigured, Status: x.status, Code: "protocol"}
	case x.status >= 400:
		x.body = readErrorBody(resp)
	default:
		if x.body, err = x.readBody(resp); err != nil {
			return nil, err
		}
		if err := failpoint.Hit(req.Context(), failpoint.LLMDone); err != nil {
			return nil, fmt.Errorf("%w: %w", errCut, err)
		}
		if elements(x.body) > maxElements {
			return nil, x.malformed("too_many_elements")
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(x.body))
	return resp, nil
}

func (x *exchange) readBody(resp *http.Response) ([]byte, error) {
	limit := x.client.cfg.MaxResponse
	tooLarge := &Error{Kind: TooLarge, Status: x.status, Code: "response_too_large"}
	if resp.ContentLength > limit {
		return nil, tooLarge
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCut, err)
	}
	if int64(len(body)) > limit {
		return nil, tooLarge
	}
	if !gzipped(resp) {
		return body, nil
	}
	// Compression was not asked for, but some proxies apply it regardless.
	body, err = gunzip(body, limit+1)
	switch {
	case int64(len(body)) > limit:
		return nil, tooLarge
	case err != nil:
		return nil, &Error{Kind: Malformed, Status: x.status, Code: "invalid_gzip"}
	}
	return body, nil
}

// readErrorBody reads what it can: the status already says what happened, and a
// code that cannot be read is no reason to report something else.
func readErrorBody(resp *http.Response) []byte {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if gzipped(resp) {
		body, _ = gunzip(body, maxErrorBody)
	}
	return body
}

// elements counts the values of a JSON text, whether it is valid or not. The
// limit on bytes alone does not bound memory: 4 MiB of "{},{},…" in place of
// the choices become 2 GiB of go-openai's structs.
func elements(body []byte) int {
	n, quoted := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++
		case !quoted && (c == ',' || c == '{' || c == '['):
			n++
		}
	}
	return n
}

func gzipped(resp *http.Response) bool {
	return strings.EqualFold(strings.TrimSpace(resp.Header.Get("Content-Encoding")), "gzip")
}

func gunzip(body []byte, limit int64) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, limit))
}

// parseRetryAfter understands both forms of RFC 9110 section 10.2.3, seconds
// and date, and clamps them to 1 s to 15 min. It returns 0 for an absent or
// unreadable header. A date is compared with the server's own clock where the
// response has one, so that skew between the machines does not matter.
func parseRetryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if value == "" {
		return 0
	}
	var wait time.Duration
	if seconds, err := strconv.ParseFloat(value, 64); err == nil {
		// Compared as a number first: a duration would overflow.
		if seconds < 0 || math.IsNaN(seconds) {
			return 0
		}
		wait = time.Duration(min(seconds, maxRetryAfter.Seconds()) * float64(time.Second))
	} else {
		at, err := http.ParseTime(value)
		if err != nil {
			return 0
		}
		if date, err := http.ParseTime(h.Get("Date")); err == nil {
			now = date
		}
		wait = at.Sub(now)
	}
	return min(max(wait, minRetryAfter), maxRetryAfter)
}
