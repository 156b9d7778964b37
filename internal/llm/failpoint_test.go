//go:build failpoints

package llm

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/failpointtest"
)

// Variables of the processes that TestFailpoints starts: where to send how many
// bytes of prompt.
const (
	childEndpoint = "LLM_TEST_ENDPOINT"
	childPrompt   = "LLM_TEST_PROMPT"
)

// TestFailpointChild is what such a process runs: one call, whose outcome it
// writes to stderr.
func TestFailpointChild(t *testing.T) {
	t.Parallel()
	endpoint := os.Getenv(childEndpoint)
	if endpoint == "" {
		require.NoError(t, failpoint.Check())
		require.False(t, failpoint.Armed(failpoint.LLMSent), "the tests themselves are not armed")
		return
	}
	c := open(t, Config{Endpoint: endpoint, Timeout: 30 * time.Second})
	got, err := c.Complete(t.Context(), Request{Model: "m", Prompt: os.Getenv(childPrompt)})
	outcome := "answer " + got.Text + "\n"
	if e, ok := errors.AsType[*Error](err); ok {
		outcome = string(e.Kind) + " " + e.Code + "\n"
	}
	_, _ = os.Stderr.WriteString(outcome)
}

// TestFailpoints shows that each point is where its name says: when llm_sent
// acts the server has the whole request, however long it is, and the answer need
// not have come.
func TestFailpoints(t *testing.T) {
	t.Parallel()
	const small, large = 10, 100_000
	tests := map[string]struct {
		plan    string
		prompt  int
		answer  bool // the server answers, or the call hangs
		outcome string
		killed  bool
	}{
		"killed with the request sent":            {"llm_sent:1:kill", small, false, "failpoint llm_sent pass 1: kill\n", true},
		"killed with a long request sent":         {"llm_sent:1:kill", large, false, "failpoint llm_sent pass 1: kill\n", true},
		"connection lost with the request sent":   {"llm_sent:1:error", small, false, "failpoint llm_sent pass 1: error\nllm_unreachable transport\n", false},
		"connection lost, and the answer is fast": {"llm_sent:1:error", small, true, "failpoint llm_sent pass 1: error\nllm_unreachable transport\n", false},
		"slow after the request":                  {"llm_sent:1:sleep=50ms", large, true, "failpoint llm_sent pass 1: sleep\nanswer fine\n", false},
		"armed, and another pass":                 {"llm_sent:2:kill,llm_done:2:kill", small, true, "answer fine\n", false},
		"killed with the answer there":            {"llm_done:1:kill", small, true, "failpoint llm_done pass 1: kill\n", true},
		"answer cut short":                        {"llm_done:1:error", small, true, "failpoint llm_done pass 1: error\nllm_unreachable cut_body\n", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var received atomic.Int64
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				var body struct {
					Messages []struct {
						Content string `json:"content"`
					} `json:"messages"`
				}
				if json.NewDecoder(r.Body).Decode(&body) == nil && len(body.Messages) == 1 && len(body.Messages[0].Content) == tt.prompt {
					received.Add(1)
				}
				if tt.answer {
					says("fine")(w, r)
					return
				}
				<-r.Context().Done()
			})
			stderr, state := failpointtest.Run(t, "TestFailpointChild", tt.plan,
				childEndpoint+"="+c.Endpoint(), childPrompt+"="+strings.Repeat("x", tt.prompt))
			require.Equal(t, tt.outcome, stderr)
			require.Equal(t, tt.killed, failpointtest.Killed(state), "%v", state)
			require.Equal(t, !tt.killed, state.Success(), "%v", state)
			require.Eventually(t, func() bool { return received.Load() == 1 }, 10*time.Second, time.Millisecond,
				"the server has the whole request")
		})
	}
}

// TestFailpointNeedsARequest: a call that is never sent does not pass llm_sent.
func TestFailpointNeedsARequest(t *testing.T) {
	t.Parallel()
	stderr, state := failpointtest.Run(t, "TestFailpointChild", "llm_sent:1:kill",
		childEndpoint+"=http://127.0.0.1:1/v1/chat/completions", childPrompt+"=x")
	require.True(t, state.Success())
	require.Equal(t, "llm_unreachable connection_refused\n", stderr)
}
