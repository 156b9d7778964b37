package llm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
)

// What can be found out about a model server without asking a model anything,
// for a person who looks for the reason why nothing works. None of it costs a
// token.

// probeTimeout bounds one question; servers answer these from memory.
const probeTimeout = 10 * time.Second

// Codes of what the probes find beside those of a call.
const (
	CodeNoChat        = "no_chat_endpoint" // something answers there, but no chat endpoint
	CodeRedirect      = "redirect"         // as in a call
	CodeHTTPSExpected = "https_expected"   // plain http to a port that speaks https
	CodeNoList        = "no_model_list"    // the server lists no models
)

// CheckEndpoint sends an empty JSON object to the endpoint. A chat endpoint
// refuses that before it looks at a model (OpenAI, vLLM, TensorRT-LLM and Ollama
// with 400, others with 422 or 500), and nothing else does: an unknown path gives
// 404 or 405, a wrong key 401 or 403. The result is nil for an endpoint that was
// found, else an *Error:
//
//   - Unreachable, Timeout, or Misconfigured without status: no exchange took place;
//   - Misconfigured with status 401, 403 or 407: the key is not accepted;
//   - Misconfigured with any other status: the path is wrong;
//   - Quota, RateLimited, ServerError: the server's own trouble.
func (c *Client) CheckEndpoint(ctx context.Context) error { return c.checkEndpoint(ctx, c.endpoint) }

func (c *Client) checkEndpoint(ctx context.Context, at *url.URL) error {
	x, err := c.probe(ctx, http.MethodPost, at, []byte("{}"))
	if err != nil {
		return err
	}
	switch s := x.status; {
	case s < 300:
		return &Error{Kind: Misconfigured, Status: s, Code: CodeNoChat} // a chat endpoint has nothing to say to that
	case s < 400:
		return &Error{Kind: Misconfigured, Status: s, Code: CodeRedirect}
	case s == http.StatusNotFound, s == http.StatusMethodNotAllowed, s == http.StatusGone, s == http.StatusNotImplemented:
		return &Error{Kind: Misconfigured, Status: s, Code: x.publicCode(providerCodes(x.body), "")}
	case s == http.StatusBadRequest && at.Scheme == "http" && bytes.Contains(x.body, []byte("HTTPS")) && !json.Valid(x.body):
		return &Error{Kind: Misconfigured, Status: s, Code: CodeHTTPSExpected}
	case s == http.StatusInternalServerError:
		return nil // how some servers put it that the messages are missing
	}
	if failed := x.statusFailure(); failed.Kind != BadRequest {
		return failed
	}
	return nil
}

// FindEndpoint looks for a chat endpoint elsewhere on the server and returns its
// URL, without credentials and query. Only an endpoint that answers as one is
// found, and none where the server refuses the key before it looks at the path.
func (c *Client) FindEndpoint(ctx context.Context) (string, bool) {
	for _, p := range candidates(c.endpoint.Path) {
		at := *c.endpoint
		at.Path, at.RawPath = p, ""
		err := c.checkEndpoint(ctx, &at)
		if err == nil {
			return redact(&at), true
		}
		if e, ok := errors.AsType[*Error](err); ok && e.Status == 0 {
			break // out of reach, and so is every other path
		}
	}
	return "", false
}

// candidates are the paths to try instead of a wrong one, the likeliest first.
func candidates(wrong string) []string {
	const chat = "/chat/completions"
	wrong = strings.TrimRight(wrong, "/")
	var all []string
	add := func(p string) {
		if p = path.Clean("/" + p); p != path.Clean("/"+wrong) && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if i := strings.LastIndex(wrong+"/", "/v1/"); i >= 0 {
		add(wrong[:i] + "/v1" + chat)
	}
	add(wrong + chat)
	add(wrong + openaiPath)
	add(path.Dir("/"+wrong) + chat)
	for _, base := range []string{"", "/openai", "/api"} {
		add(base + openaiPath)
	}
	return all
}

// Model is a model that a server lists.
type Model struct {
	ID    string
	Owner string // the server's word; several servers put their own name here
	// Loaded says that the server answers any name with the model it has loaded.
	Loaded bool
}

// Models asks which models the server offers. Where the endpoint ends in
// /chat/completions the list is beside it, at /models. The error is an *Error,
// whose code is CodeNoList where the server answers without a list.
func (c *Client) Models(ctx context.Context) ([]Model, error) {
	x, err := c.probe(ctx, http.MethodGet, c.modelsURL(), nil)
	if err != nil {
		return nil, err
	}
	if x.status >= 400 {
		failed := x.statusFailure()
		if failed.Kind == BadRequest || failed.Kind == Misconfigured && !KeyRefused(failed) {
			failed.Kind, failed.Code = Misconfigured, CodeNoList
		}
		return nil, failed
	}
	models, ok := modelList(x.body)
	if x.status >= 300 || !ok {
		return nil, &Error{Kind: Misconfigured, Status: x.status, Code: CodeNoList}
	}
	return models, nil
}

func (c *Client) modelsURL() *url.URL {
	at := *c.endpoint
	at.RawPath = ""
	p := strings.TrimRight(at.Path, "/")
	if base, found := strings.CutSuffix(p, "/chat/completions"); found {
		at.Path = base + "/models"
	} else if i := strings.LastIndex(p+"/", "/v1/"); i >= 0 {
		at.Path = p[:i] + "/v1/models"
	} else {
		at.Path = "/v1/models"
	}
	return &at
}

// modelList reads {"data": […]}, or the bare list some servers send.
func modelList(body []byte) ([]Model, bool) {
	type listed struct {
		ID      string          `json:"id"`
		OwnedBy string          `json:"owned_by"`
		Aliases []string        `json:"aliases"`
		Status  json.RawMessage `json:"status"`
	}
	list := json.RawMessage(bytes.TrimSpace(body))
	if !bytes.HasPrefix(list, []byte("[")) {
		var outer map[string]json.RawMessage
		found := false
		if json.Unmarshal(body, &outer) == nil {
			list, found = outer["data"] // null for a server that has none
		}
		if !found {
			return nil, false
		}
	}
	var all []listed
	if json.Unmarshal(list, &all) != nil {
		return nil, false
	}
	models := []Model{}
	for _, m := range all {
		// llama.cpp takes any name, unless it chooses among several models, whose
		// status it then lists.
		loaded := m.OwnedBy == "llamacpp" && m.Status == nil
		for _, id := range append([]string{m.ID}, m.Aliases...) {
			if id != "" {
				models = append(models, Model{ID: id, Owner: m.OwnedBy, Loaded: loaded})
			}
		}
	}
	return models, true
}

// Offers reports whether a request for name finds a model in the list. Ollama
// lists llama3:latest for llama3, and gateways list patterns such as openai/*.
func Offers(models []Model, name string) bool {
	return slices.ContainsFunc(models, func(m Model) bool {
		if prefix, found := strings.CutSuffix(m.ID, "*"); found && strings.HasPrefix(name, prefix) {
			return true
		}
		return m.Loaded || m.ID == name || m.ID == name+":latest"
	})
}

// KeyRefused reports whether an error of this package says that the server does
// not accept the API key.
func KeyRefused(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == Misconfigured && slices.Contains([]int{
		http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired,
	}, e.Status)
}

// probe sends one request and reads the response, whatever its status.
func (c *Client) probe(ctx context.Context, method string, at *url.URL, body []byte) (*exchange, error) {
	callCtx, cancel := context.WithTimeout(ctx, min(probeTimeout, c.cfg.Timeout))
	defer cancel()
	var content io.Reader
	if body != nil {
		content = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(callCtx, method, "/", content)
	if err != nil {
		return nil, &Error{Kind: Misconfigured, Code: "url"}
	}
	req.URL, req.Host = at, at.Host
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "nodpt-executor")
	if c.cfg.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.APIKey)
	}
	x := &exchange{client: c, sent: true}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, x.failure(ctx, callCtx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	x.status = resp.StatusCode
	x.retryAfter = parseRetryAfter(resp.Header, time.Now())
	if x.status >= 400 {
		x.body = readErrorBody(resp)
	} else if x.body, err = x.readBody(resp); err != nil {
		return nil, x.failure(ctx, callCtx, err)
	}
	return x, nil
}
