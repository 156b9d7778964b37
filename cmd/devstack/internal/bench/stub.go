package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// stub is the LLM stand-in, seen through its admin paths.
type stub struct{ url string }

func (s *stub) endpoint() string { return s.url + "/v1/chat/completions" }

// calls are the stand-in's counters.
type calls struct {
	Calls             int            `json:"calls"`
	Running           int            `json:"running"`
	MaxRunning        int            `json:"max_running"`
	MaxRunningByModel map[string]int `json:"max_running_by_model"`
	BusySeconds       float64        `json:"busy_seconds"`
}

func (s *stub) stats(ctx context.Context) (calls, error) {
	var out calls
	return out, request(ctx, http.MethodGet, s.url+"/_/stats", nil, &out)
}

// script forgets all counts and changes how long calls take: their median in
// milliseconds, and the sigma of its logarithm, 0 for calls that all take the same.
func (s *stub) script(ctx context.Context, latencyMS int, sigma float64) error {
	if err := request(ctx, http.MethodPost, s.url+"/_/reset", nil, nil); err != nil {
		return err
	}
	return request(ctx, http.MethodPost, s.url+"/_/script", map[string]any{
		"latency_ms": latencyMS, "sigma": sigma, "seed": 1, "answer_length": answerBytes,
	}, nil)
}

// request sends a JSON body, if there is one, and decodes a JSON answer into out,
// unless that is nil.
func request(ctx context.Context, method, url string, body, out any) error {
	var text bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&text).Encode(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, &text)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %.200s", method, url, resp.Status, answer)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}
