// Package llmtest is a stand-in for an OpenAI-compatible model server that does
// as it is told: answer late, answer rubbish, refuse, hang, cut the connection.
// It exists because the executor's promises are about what happens when the
// model misbehaves, and real models misbehave only when nobody is looking. The
// same server runs inside tests and as the command `executor mock-llm`, where
// prompts that begin with an exclamation mark script it (see Behavior) and the
// paths under /_/ read its counters and change its script.
package llmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	maxRequest   = 16 << 20
	maxShownText = 200 // bytes of a prompt that Stats.ByPrompt shows
)

// Options is the server's script. In JSON form it is the body of
// POST /_/script, where fields that are not given keep their value.
type Options struct {
	// Behavior applies to every call that no rule and no directive says
	// otherwise about.
	Behavior
	// JitterMS adds up to so many milliseconds, evenly distributed, to the
	// latency; Sigma multiplies it by exp(Sigma·N(0,1)), which is about how
	// real models are late.
	JitterMS int     `json:"jitter_ms"`
	Sigma    float64 `json:"sigma"`
	// ErrorRate is the share (0 to 1) of otherwise fine calls that fail with
	// ErrorStatus (default 500).
	ErrorRate   float64 `json:"error_rate"`
	ErrorStatus int     `json:"error_status"`
	// Models, if not empty, are the only models known; others get 404. Else the
	// list of models is "*" and those asked for so far.
	Models []string `json:"models"`
	// NoModelList makes GET /v1/models a path that does not exist, as on servers
	// that implement the chat endpoint alone.
	NoModelList bool `json:"no_model_list"`
	// Quote lets error objects quote the prompt, as some servers' do.
	Quote bool `json:"quote"`
	// NoUsage leaves the token counts out of answers.
	NoUsage bool `json:"no_usage"`
	// APIKey, if not empty, is the bearer token demanded (401 otherwise).
	APIKey string `json:"api_key"`
	// Seed makes jitter and random errors repeatable.
	Seed uint64 `json:"seed"`
	// Rules are tried in order; the first that matches and is not used up
	// decides.
	Rules []Rule `json:"rules"`
}

// Rule applies a behaviour to some calls.
type Rule struct {
	Contains string `json:"contains"` // text in the prompt; empty matches all
	Model    string `json:"model"`    // exact model; empty matches all
	Times    int    `json:"times"`    // applies to so many matching calls, 0 = all
	Behavior
}

// Stats is what GET /_/stats returns.
type Stats struct {
	Calls             int            `json:"calls"`                // chat calls begun, whatever became of them
	Running           int            `json:"running"`              // calls being answered now
	MaxRunning        int            `json:"max_running"`          // highest Running so far
	Disconnected      int            `json:"disconnected"`         // calls whose client left before the answer
	ByPrompt          map[string]int `json:"by_prompt"`            // calls per prompt, its first 200 bytes
	ByPromptHash      map[string]int `json:"by_prompt_hash"`       // calls per prompt, its SHA-256 in hex
	ByModel           map[string]int `json:"by_model"`             // calls per model
	ByMaxTokens       map[int]int    `json:"by_max_tokens"`        // calls per limit they name; 0: none
	ByStatus          map[int]int    `json:"by_status"`            // calls per HTTP status sent
	RunningByModel    map[string]int `json:"running_by_model"`     // calls being answered now
	MaxRunningByModel map[string]int `json:"max_running_by_model"` // highest of those so far
	// BusySeconds is the time that calls have spent being answered, added up: over a
	// second in which three calls run it grows by three.
	BusySeconds float64 `json:"busy_seconds"`
}

func newStats() Stats {
	return Stats{
		ByPrompt: map[string]int{}, ByPromptHash: map[string]int{}, ByModel: map[string]int{},
		ByMaxTokens: map[int]int{}, ByStatus: map[int]int{}, RunningByModel: map[string]int{}, MaxRunningByModel: map[string]int{},
	}
}

func (s Stats) clone() Stats {
	s.ByPrompt = maps.Clone(s.ByPrompt)
	s.ByPromptHash = maps.Clone(s.ByPromptHash)
	s.ByModel = maps.Clone(s.ByModel)
	s.ByMaxTokens = maps.Clone(s.ByMaxTokens)
	s.ByStatus = maps.Clone(s.ByStatus)
	s.RunningByModel = maps.Clone(s.RunningByModel)
	s.MaxRunningByModel = maps.Clone(s.MaxRunningByModel)
	return s
}

// PromptHash is the key of a prompt in Stats.ByPromptHash.
func PromptHash(prompt string) string {
	sum := sha256.Sum256([]byte(prompt))
	return hex.EncodeToString(sum[:])
}

// Server is the stub. It implements http.Handler and is safe for concurrent
// use. All its state is in memory and grows with the number of distinct
// prompts until Reset.
type Server struct {
	initial Options
	done    chan struct{}
	close   sync.Once

	mu       sync.Mutex
	options  Options
	used     []int // uses per rule
	stats    Stats
	counted  time.Time      // up to when BusySeconds is counted
	applied  map[string]int // calls per prompt and directive, for "xN"
	rng      *rand.Rand
	changed  chan struct{} // closed and replaced whenever stats change
	released chan struct{} // closed and replaced by Release
}

// NewServer returns a stub with the given script.
func NewServer(o Options) *Server {
	s := &Server{
		initial:  o,
		done:     make(chan struct{}),
		changed:  make(chan struct{}),
		released: make(chan struct{}),
	}
	s.Reset()
	return s
}

// Close ends all calls that hang or wait. The server is of no use afterwards.
func (s *Server) Close() { s.close.Do(func() { close(s.done) }) }

// Script changes the script for calls that begin from now on.
func (s *Server) Script(change func(*Options)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.options)
	s.used = make([]int, len(s.options.Rules))
	s.rng = newRand(s.options.Seed)
}

// Reset returns to the script the server was made with and forgets all counts
// but those of calls still running.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := newStats()
	fresh.Running, fresh.MaxRunning = s.stats.Running, s.stats.Running
	for model, n := range s.stats.RunningByModel {
		if n > 0 {
			fresh.RunningByModel[model], fresh.MaxRunningByModel[model] = n, n
		}
	}
	s.stats, s.counted = fresh, time.Now()
	s.options = s.initial
	s.options.Rules = slices.Clone(s.initial.Rules)
	s.used = make([]int, len(s.options.Rules))
	s.applied = map[string]int{}
	s.rng = newRand(s.options.Seed)
	s.notify()
}

// Release lets the calls that hang now answer as if they had only been slow.
func (s *Server) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.released)
	s.released = make(chan struct{})
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countBusy()
	return s.stats.clone()
}

// countBusy brings BusySeconds up to now. The caller holds the lock, and calls it
// before the number of running calls changes.
func (s *Server) countBusy() {
	now := time.Now()
	s.stats.BusySeconds += float64(s.stats.Running) * now.Sub(s.counted).Seconds()
	s.counted = now
}

// Calls is the number of calls with exactly this prompt.
func (s *Server) Calls(prompt string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats.ByPromptHash[PromptHash(prompt)]
}

// Await returns nil as soon as the counters meet the condition, or the
// context's error.
func (s *Server) Await(ctx context.Context, condition func(Stats) bool) error {
	for {
		s.mu.Lock()
		stats, changed := s.stats.clone(), s.changed
		s.mu.Unlock()
		if condition(stats) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// notify wakes Await. The caller holds the lock.
func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func newRand(seed uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // latencies and test failures, nothing secret
}

// ServeHTTP answers the chat endpoint under any prefix, the list of models, and
// the admin paths.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimRight(r.URL.Path, "/")
	switch {
	case strings.HasPrefix(path, "/_/"):
		s.admin(w, r, strings.TrimPrefix(path, "/_/"))
	case strings.HasSuffix(path, "/chat/completions"):
		if requireMethod(w, r, http.MethodPost) {
			s.chat(w, r)
		}
	case strings.HasSuffix(path, "/models"):
		if requireMethod(w, r, http.MethodGet) {
			s.models(w, r)
		}
	case path == "" || path == "/healthz":
		_, _ = io.WriteString(w, "mock-llm is up; its counters are at /_/stats\n")
	default:
		unknownURL(w)
	}
}

func unknownURL(w http.ResponseWriter) {
	writeError(w, http.StatusNotFound, "unknown_url", "Unknown request URL. Please check the URL for typos.")
}

// unauthorized reports whether a request lacks the key that is demanded.
func (o Options) unauthorized(r *http.Request) bool {
	return o.APIKey != "" && r.Header.Get("Authorization") != "Bearer "+o.APIKey
}

func requireMethod(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	writeError(w, http.StatusMethodNotAllowed, "method_not_supported", "Method not allowed.")
	return false
}

func (s *Server) admin(w http.ResponseWriter, r *http.Request, action string) {
	switch action {
	case "stats":
		if requireMethod(w, r, http.MethodGet) {
			writeJSON(w, http.StatusOK, s.Stats())
		}
	case "script":
		if requireMethod(w, r, http.MethodPost) {
			s.adminScript(w, r)
		}
	case "reset", "release":
		if !requireMethod(w, r, http.MethodPost) {
			return
		}
		if action == "reset" {
			s.Reset()
		} else {
			s.Release()
		}
		writeJSON(w, http.StatusOK, s.Stats())
	default:
		writeError(w, http.StatusNotFound, "unknown_url", "Known: GET stats, POST script, POST reset, POST release.")
	}
}

func (s *Server) adminScript(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		writeError(w, http.StatusBadRequest, "unreadable", "The script could not be read.")
		return
	}
	s.mu.Lock()
	next := s.options
	s.mu.Unlock()
	// Lists are decoded afresh: encoding/json would reuse their elements.
	rules, models := next.Rules, next.Models
	next.Rules, next.Models = nil, nil
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&next); err != nil {
		writeError(w, http.StatusBadRequest, "invalid_script", "The script is not valid: "+err.Error())
		return
	}
	if next.Rules == nil {
		next.Rules = rules
	}
	if next.Models == nil {
		next.Models = models
	}
	s.Script(func(o *Options) { *o = next })
	writeJSON(w, http.StatusOK, next)
}

func (s *Server) models(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	o := s.options
	names := slices.Clone(o.Models)
	if len(names) == 0 {
		names = append([]string{"*"}, slices.Sorted(maps.Keys(s.stats.ByModel))...)
	}
	s.mu.Unlock()
	switch {
	case o.unauthorized(r):
		code, message := defaultCode(http.StatusUnauthorized)
		writeError(w, http.StatusUnauthorized, code, message)
		return
	case o.NoModelList:
		unknownURL(w)
		return
	}
	type model struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Created int64  `json:"created"`
		OwnedBy string `json:"owned_by"`
	}
	list := struct {
		Object string  `json:"object"`
		Data   []model `json:"data"`
	}{Object: "list", Data: []model{}}
	for _, name := range names {
		list.Data = append(list.Data, model{ID: name, Object: "model", Created: 1700000000, OwnedBy: "mock"})
	}
	writeJSON(w, http.StatusOK, list)
}

// call is one chat request and what the script makes of it.
type call struct {
	model, prompt string
	maxTokens     int
	stream, usage bool
	streamUsage   bool
	quote         bool
	behavior      Behavior
	latency       time.Duration
	unknownModel  bool
	unauthorized  bool
	released      <-chan struct{}
}

func (s *Server) chat(w http.ResponseWriter, r *http.Request) {
	// The whole body is read first: only then does net/http notice that the
	// client has gone.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			writeError(w, http.StatusRequestEntityTooLarge, "request_too_large", "The request is too large.")
		}
		return
	}
	c, err := parseRequest(body)
	s.mu.Lock()
	c.unauthorized = s.options.unauthorized(r)
	s.mu.Unlock()
	if err != nil {
		// Who one is comes before what one wants.
		status, code, message := http.StatusBadRequest, "invalid_request", err.Error()
		if c.unauthorized {
			status = http.StatusUnauthorized
			code, message = defaultCode(status)
		}
		writeError(w, status, code, message)
		return
	}
	s.begin(&c)
	rec := &recorder{ResponseWriter: w}
	defer s.end(r.Context(), c, rec)
	s.reply(rec, r, c)
}

func (s *Server) begin(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countBusy()
	st := &s.stats
	st.Calls++
	st.Running++
	st.MaxRunning = max(st.MaxRunning, st.Running)
	st.ByPrompt[shownText(c.prompt)]++
	st.ByPromptHash[PromptHash(c.prompt)]++
	st.ByModel[c.model]++
	st.ByMaxTokens[c.maxTokens]++
	st.RunningByModel[c.model]++
	st.MaxRunningByModel[c.model] = max(st.MaxRunningByModel[c.model], st.RunningByModel[c.model])
	s.notify()

	o := s.options
	c.usage, c.quote = !o.NoUsage, o.Quote
	c.unknownModel = len(o.Models) > 0 && !slices.Contains(o.Models, c.model)
	c.released = s.released
	c.behavior = s.decide(c.model, c.prompt)

	latency := float64(c.behavior.LatencyMS)
	if o.Sigma > 0 {
		latency *= math.Exp(o.Sigma * s.rng.NormFloat64())
	}
	if o.JitterMS > 0 {
		latency += s.rng.Float64() * float64(o.JitterMS)
	}
	c.latency = time.Duration(min(latency, math.MaxInt32) * float64(time.Millisecond))
}

// decide settles which behaviour a call gets: the prompt's directive, else the
// first rule that matches, else the script's own, which may be a random error.
// The caller holds the lock.
func (s *Server) decide(model, prompt string) Behavior {
	base := s.options.Behavior
	if d, found := parseDirective(prompt); found {
		key := PromptHash(prompt)
		s.applied[key]++
		if d.times == 0 || s.applied[key] <= d.times {
			return d.behavior.over(base)
		}
		return base
	}
	for i, rule := range s.options.Rules {
		if !strings.Contains(prompt, rule.Contains) || (rule.Model != "" && rule.Model != model) {
			continue
		}
		if rule.Times > 0 && s.used[i] >= rule.Times {
			continue
		}
		s.used[i]++
		return rule.over(base)
	}
	if s.options.ErrorRate > 0 && s.rng.Float64() < s.options.ErrorRate {
		base.Status = s.options.ErrorStatus
		if base.Status == 0 {
			base.Status = http.StatusInternalServerError
		}
	}
	return base
}

func (s *Server) end(ctx context.Context, c call, rec *recorder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countBusy()
	s.stats.Running--
	s.stats.RunningByModel[c.model]--
	if rec.status != 0 {
		s.stats.ByStatus[rec.status]++
	} else if ctx.Err() != nil {
		s.stats.Disconnected++
	}
	s.notify()
}

// recorder remembers the status sent.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find the connection's Flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func parseRequest(body []byte) (call, error) {
	var req struct {
		Model     string `json:"model"`
		MaxTokens int    `json:"max_tokens"`
		Reasoning int    `json:"max_completion_tokens"`
		Stream    bool   `json:"stream"`
		Options   struct {
			IncludeUsage bool `json:"include_usage"`
		} `json:"stream_options"`
		Messages []struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		} `json:"messages"`
	}
	if err := json.Unmarshal(body, &req); err != nil {
		return call{}, errors.New("the JSON body of the request could not be parsed")
	}
	if req.Model == "" {
		return call{}, errors.New("you must provide a model parameter")
	}
	c := call{model: req.Model, maxTokens: max(req.MaxTokens, req.Reasoning), stream: req.Stream, streamUsage: req.Options.IncludeUsage}
	for _, m := range req.Messages {
		if m.Role == "user" {
			c.prompt = contentText(m.Content)
		}
	}
	if len(req.Messages) == 0 || c.prompt == "" {
		return call{}, errors.New("messages must hold a user message with content")
	}
	return c, nil
}

// contentText reads a message's content, a string or a list of parts.
func contentText(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var parts []struct {
		Text string `json:"text"`
	}
	_ = json.Unmarshal(raw, &parts)
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
	}
	return b.String()
}

func shownText(s string) string {
	if len(s) <= maxShownText {
		return s
	}
	cut := maxShownText
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// writeError sends an error the way OpenAI does.
func writeError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, errorBody(status, code, message))
}

func errorBody(status int, code, message string) any {
	kind := "invalid_request_error"
	switch {
	case status >= 500:
		kind = "server_error"
	case status == http.StatusTooManyRequests && code == "insufficient_quota":
		kind = "insufficient_quota"
	case status == http.StatusTooManyRequests:
		kind = "requests"
	}
	type detail struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	}
	return struct {
		Error detail `json:"error"`
	}{detail{Message: message, Type: kind, Code: code}}
}

func defaultCode(status int) (code, message string) {
	switch status {
	case http.StatusUnauthorized:
		return "invalid_api_key", "Incorrect API key provided."
	case http.StatusForbidden:
		return "unsupported_country_region_territory", "Access refused."
	case http.StatusNotFound:
		return "model_not_found", "The model does not exist or you do not have access to it."
	case http.StatusTooManyRequests:
		return "rate_limit_exceeded", "Rate limit reached."
	case http.StatusRequestEntityTooLarge:
		return "request_too_large", "The request is too large."
	}
	if status >= 500 {
		return "server_error", fmt.Sprintf("The server had an error (%d) while processing your request.", status)
	}
	return "invalid_request", "The request is invalid."
}
