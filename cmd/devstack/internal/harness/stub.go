package harness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// Stub is the LLM stand-in, seen through its admin API.
type Stub struct {
	b       *Bundle
	Address string // host:port
	Process *proc.Process
}

func (s *Stub) url() string { return "http://" + s.Address }

// Stats are the counters of the stand-in.
type Stats struct {
	Calls             int            `json:"calls"`
	Running           int            `json:"running"`
	MaxRunning        int            `json:"max_running"`
	ByPrompt          map[string]int `json:"by_prompt"`
	ByPromptHash      map[string]int `json:"by_prompt_hash"`
	ByModel           map[string]int `json:"by_model"`
	ByMaxTokens       map[int]int    `json:"by_max_tokens"`
	ByStatus          map[int]int    `json:"by_status"`
	MaxRunningByModel map[string]int `json:"max_running_by_model"`
}

// Asked is the number of calls with exactly this prompt, however long it is.
func (s Stats) Asked(prompt string) int {
	return s.ByPromptHash[fmt.Sprintf("%x", sha256.Sum256([]byte(prompt)))]
}

func (s *Stub) do(ctx context.Context, method, path string, body any) (Stats, error) {
	var out Stats
	text, err := json.Marshal(body)
	if err != nil {
		return out, err
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url()+path, bytes.NewReader(text))
	if err != nil {
		return out, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err = io.ReadAll(resp.Body)
	if err != nil {
		return out, err
	}
	if resp.StatusCode != http.StatusOK {
		return out, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	if path == "/_/script" {
		return out, nil // answers with the script
	}
	return out, json.Unmarshal(text, &out)
}

// Stats returns the counters.
func (s *Stub) Stats() Stats {
	s.b.T.Helper()
	st, err := s.do(s.b.T.Context(), http.MethodGet, "/_/stats", nil)
	require.NoError(s.b.T, err)
	return st
}

// Script changes the settings given.
func (s *Stub) Script(settings map[string]any) {
	s.b.T.Helper()
	_, err := s.do(s.b.T.Context(), http.MethodPost, "/_/script", settings)
	require.NoError(s.b.T, err)
}

// Release answers the calls that hang now.
func (s *Stub) Release() {
	s.b.T.Helper()
	_, err := s.do(s.b.T.Context(), http.MethodPost, "/_/release", nil)
	require.NoError(s.b.T, err)
}

// Await waits until the counters meet a condition.
func (s *Stub) Await(what string, condition func(Stats) bool) {
	s.b.T.Helper()
	s.AwaitFor(Patience, what, condition)
}

// AwaitFor is Await with another patience.
func (s *Stub) AwaitFor(d time.Duration, what string, condition func(Stats) bool) {
	s.b.T.Helper()
	s.b.WaitFor(d, what, func(ctx context.Context) error {
		st, err := s.do(ctx, http.MethodGet, "/_/stats", nil)
		if err != nil {
			return err
		}
		if !condition(st) {
			return fmt.Errorf("counters are %+v", st)
		}
		return nil
	})
}

// SortedKeys are the names of fields.
func SortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// ErrorPayload decodes the Payload of an error update.
func ErrorPayload(t *testing.T, update map[string]any) map[string]string {
	t.Helper()
	payload, ok := update["Payload"].(string)
	require.True(t, ok)
	var out map[string]string
	require.NoError(t, json.Unmarshal([]byte(payload), &out))
	return out
}

// Silent drops the SDK's log.
type Silent struct{}

func (Silent) Debug(string, ...any) {}
func (Silent) Info(string, ...any)  {}
func (Silent) Warn(string, ...any)  {}
func (Silent) Error(string, ...any) {}
