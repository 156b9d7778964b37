package llm

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Kind sorts failures by how they are treated. The values are stable: they are
// error codes in rows and updates, and metric labels.
type Kind string

// The kinds of failure. Which of them are retried, and how, is decided in
// activities; the comments say what they mean.
const (
	Unreachable   Kind = "llm_unreachable"      // no complete response: refused, reset, cut short
	Timeout       Kind = "llm_timeout"          // no complete response in time, or status 408
	ServerError   Kind = "llm_server_error"     // 5xx, and 4xx that are about the moment; 503 may carry RetryAfter
	RateLimited   Kind = "llm_rate_limited"     // 429, or 529 with Retry-After
	Quota         Kind = "llm_quota"            // the account is exhausted: a person has to act
	Misconfigured Kind = "llm_misconfigured"    // 401, 403, 404, redirects, refused addresses: our settings
	BadRequest    Kind = "llm_bad_request"      // 400, 413, 422: this job's request
	Malformed     Kind = "llm_malformed_answer" // status 2xx without a usable answer
	Filtered      Kind = "llm_content_filtered" // the provider or the model declined to answer
	TooLarge      Kind = "llm_answer_too_large" // the response or the answer exceeds its limit
	Canceled      Kind = "llm_canceled"         // the caller's context was cancelled
)

// Kinds returns all kinds, for documentation and metric labels.
func Kinds() []Kind {
	return []Kind{
		Unreachable, Timeout, ServerError, RateLimited, Quota, Misconfigured,
		BadRequest, Malformed, Filtered, TooLarge, Canceled,
	}
}

// Error is a failed call. It holds nothing of the prompt, the response or the
// key, and wraps no error that does.
type Error struct {
	Kind Kind
	// Status is the HTTP status, 0 where no response came.
	Status int
	// Code is a short word of [a-z0-9_.-]{1,64}: the provider's code if it
	// gave one of that shape, else ours for what happened ("connection_refused",
	// "redirect", "no_choice", …), else empty.
	Code string
	// RetryAfter is how long the server asked to wait, 1 s to 15 min; 0 where
	// it did not ask.
	RetryAfter time.Duration
}

// Error gives kind, status and code, and where a setting is to blame its name.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(string(e.Kind))
	if e.Status != 0 {
		b.WriteString(", status " + strconv.Itoa(e.Status))
	}
	if e.Code != "" {
		b.WriteString(", " + e.Code)
	}
	if hint := e.hint(); hint != "" {
		b.WriteString(": " + hint)
	}
	return b.String()
}

func (e *Error) hint() string {
	switch e.Kind {
	case Misconfigured:
		switch e.Status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return "check LLM_API_KEY and what it may use"
		case http.StatusNotFound:
			return "check LLM_ENDPOINT and the model's name (MODEL_<ROLE>, DEFAULT_MODEL)"
		default:
			return "check LLM_ENDPOINT"
		}
	case Quota:
		return "check the account behind LLM_API_KEY"
	case Timeout:
		if e.Status == 0 {
			return "LLM_TIMEOUT bounds one call"
		}
	case Unreachable:
		return "check that LLM_ENDPOINT is up"
	case ServerError, RateLimited, BadRequest, Malformed, Filtered, TooLarge, Canceled:
	}
	return ""
}

// failure sorts a call that gave no response object. The status the exchange
// saw decides, not the error's type: go-openai reports {"error":"text"} as two
// of its error types at once, one of them without a status.
func (x *exchange) failure(caller, call context.Context, err error) *Error {
	if errors.Is(caller.Err(), context.Canceled) {
		return &Error{Kind: Canceled}
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	switch {
	case x.status >= 400:
		return x.statusFailure()
	case call.Err() != nil:
		return &Error{Kind: Timeout, Status: x.status}
	case !x.sent:
		// go-openai refuses some requests itself, by the model's name.
		return &Error{Kind: BadRequest, Code: "refused_by_client"}
	case errors.Is(err, errCut):
		return &Error{Kind: Unreachable, Status: x.status, Code: "cut_body"}
	case x.status == 0:
		return transportFailure(err)
	default:
		return x.malformed("invalid_json")
	}
}

func transportFailure(err error) *Error {
	switch {
	case errors.Is(err, errAddressRefused):
		return &Error{Kind: Misconfigured, Code: "address_refused"}
	case errors.Is(err, http.ErrSchemeMismatch):
		return &Error{Kind: Misconfigured, Code: "https_to_http_port"}
	}
	e := &Error{Kind: Unreachable, Code: "transport"}
	var (
		dns    *net.DNSError
		cert   *tls.CertificateVerificationError
		record tls.RecordHeaderError
		alert  tls.AlertError
		netErr net.Error
	)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Code = "connection_refused"
	case errors.As(err, &dns):
		e.Code = "name_not_resolved"
	case errors.As(err, &cert):
		e.Code = "tls_certificate"
	case errors.As(err, &record), errors.As(err, &alert):
		e.Code = "tls"
	case errors.As(err, &netErr) && netErr.Timeout():
		e.Code = "connect_timeout"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		e.Code = "connection_reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.Code = "connection_closed"
	}
	return e
}

func (x *exchange) statusFailure() *Error {
	codes := providerCodes(x.body)
	return &Error{
		Kind:       statusKind(x.status, codes, x.retryAfter > 0),
		Status:     x.status,
		Code:       x.publicCode(codes, ""),
		RetryAfter: x.retryAfter,
	}
}

// statusKind is the table "LLM" of DESIGN.md section 4. The provider's codes
// matter where a status means different things to different providers.
func statusKind(status int, codes []string, retryAfter bool) Kind {
	switch status {
	case http.StatusPaymentRequired:
		return Quota
	case http.StatusTooManyRequests:
		if slices.ContainsFunc(codes, quotaCode) {
			return Quota
		}
		return RateLimited
	case http.StatusForbidden:
		if slices.ContainsFunc(codes, quotaCode) {
			return Quota
		}
		return Misconfigured
	case 529: // overloaded, as some providers say it
		if retryAfter {
			return RateLimited
		}
		return ServerError
	case http.StatusRequestTimeout:
		return Timeout
	case http.StatusBadRequest:
		switch {
		case slices.Contains(codes, "content_filter"), slices.Contains(codes, "content_policy_violation"):
			return Filtered
		case slices.Contains(codes, "invalid_api_key"), slices.Contains(codes, "model_not_found"):
			return Misconfigured // some gateways say 400 for what others call 401 and 404
		}
		return BadRequest
	case http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusProxyAuthRequired, http.StatusGone, http.StatusMisdirectedRequest, http.StatusUpgradeRequired:
		return Misconfigured
	case http.StatusConflict, http.StatusLocked, http.StatusTooEarly, 498, 499:
		return ServerError // about the moment, not about the request
	}
	if status >= 500 {
		return ServerError
	}
	return BadRequest
}

// quotaCode recognises an exhausted account. Codes that merely contain "quota"
// do not count: several providers use such for limits per minute.
func quotaCode(code string) bool {
	switch code {
	case "insufficient_quota", "insufficient_balance", "insufficient_credits",
		"credit_balance_exhausted", "credit_balance_too_low", "spend_limit_exceeded",
		"billing_hard_limit_reached", "billing_limit_reached", "billing_not_active":
		return true
	}
	return strings.HasSuffix(code, "_spend_limit_exceeded")
}

// providerCodes reads the short codes of an error body, the most specific
// first. It knows the shapes OpenAI-compatible servers use: an error object, a
// list of one, and the fields without an object around them.
func providerCodes(body []byte) []string {
	type words struct {
		Code json.RawMessage `json:"code"`
		Type json.RawMessage `json:"type"`
	}
	var outer struct {
		words
		Error json.RawMessage `json:"error"`
	}
	body = bytes.TrimSpace(body)
	if list, found := bytes.CutPrefix(body, []byte("[")); found {
		body = list // the decoder stops after the first element
	}
	// Ill-typed parts are skipped, the others are still filled in.
	_ = json.NewDecoder(bytes.NewReader(body)).Decode(&outer)
	var inner words
	_ = json.Unmarshal(outer.Error, &inner)

	var codes []string
	for _, raw := range []json.RawMessage{inner.Code, inner.Type, outer.Code, outer.Type} {
		word, number := "", json.Number("")
		if json.Unmarshal(raw, &word) != nil && json.Unmarshal(raw, &number) == nil {
			word = number.String()
		}
		if shortWord(word) {
			codes = append(codes, word)
		}
	}
	return codes
}

// shortWord reports whether s is safe to show and to store as a code.
func shortWord(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '.' && r != '-'
	})
}

// publicCode is the first of the provider's codes that cannot be an echo of the
// prompt or of the key, else fallback. A server that quotes its input in the
// code field must not get it into our logs.
func (x *exchange) publicCode(codes []string, fallback string) string {
	key := x.client.cfg.APIKey
	for _, code := range codes {
		if !strings.Contains(x.prompt, code) && !strings.Contains(key, code) && (key == "" || !strings.Contains(code, key)) {
			return code
		}
	}
	return fallback
}
