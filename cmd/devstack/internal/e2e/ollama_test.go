//go:build ollama

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
)

// endpointVariable names the chat endpoint of an Ollama server that serves the
// default models of the roles; see scripts/test-ollama.
const endpointVariable = "OLLAMA_ENDPOINT"

// newOllamaBundle is a bundle whose executors call the real server.
func newOllamaBundle(t *testing.T) (b *bundle, endpoint string) {
	t.Helper()
	endpoint = os.Getenv(endpointVariable)
	require.NotEmpty(t, endpoint, "run this test through `make test-ollama`")
	b = newBundle(t)
	b.start(map[string]string{"LLM_ENDPOINT": endpoint}, "run")
	return b, endpoint
}

func TestOllamaAnswersAllRoles(t *testing.T) {
	t.Parallel()
	b, _ := newOllamaBundle(t)
	for i, c := range []struct {
		role, model string
		maxTokens   int64
		fields      []string
	}{
		{"manager", "trt-llm-manager", 256, []string{"task", text("task")}},
		{"inspector", "trt-llm-inspector", 512, []string{"task", text("task"), "payload", `{"code":"x := 1"}`}},
		{"agent", "trt-llm-agent", 128, []string{"task", text("task")}},
		{"chat", "trt-llm-manager", 64, []string{"message", text("message"), "nodeLevel", "manager"}},
	} {
		jobID := "ollama-" + c.role
		began := time.Now()
		b.submit(c.role, append([]string{"jobId", jobID, "userId", "u1"}, c.fields...)...)
		update := b.update(jobID, 1)
		t.Logf("%s answered after %s (the first one includes loading the model)", c.role, time.Since(began).Round(time.Millisecond))
		require.Equal(t, "result", update["Type"], "call %d", i)
		b.settled(c.role)
		row := b.row(c.role, jobID)
		require.Equal(t, "completed", row["status"])
		require.Equal(t, c.model, row["model"])
		require.Equal(t, update["Payload"], row["output"])
		require.Positive(t, row["prompt_tokens"])
		require.Positive(t, row["completion_tokens"])
		require.LessOrEqual(t, row["completion_tokens"], c.maxTokens)
		// A model with random weights rarely ends by itself; where it did not, it
		// was cut at the role's limit.
		require.Equal(t, row["completion_tokens"] == c.maxTokens, row["truncated"] == int64(1))
		b.run("job:"+c.role+":"+jobID, "Completed")
	}
}

// TestOllamaUnknownModelWaitsForIt asks for a model that does not exist: a
// mistake in the settings, so the job waits, and ends well once the model is
// there.
func TestOllamaUnknownModelWaitsForIt(t *testing.T) {
	t.Parallel()
	b, endpoint := newOllamaBundle(t)
	b.submit("chat", "jobId", "unknown", "userId", "u1", "message", text("message"), "model", "not-there-yet")
	b.submit("agent", "jobId", "known", "userId", "u1", "task", text("task"))

	b.wait("the job waits for another attempt", func(ctx context.Context) error {
		d, err := b.temporal.DescribeWorkflowExecution(ctx, "job:chat:unknown", "")
		if err != nil {
			return err
		}
		for _, a := range d.GetPendingActivities() {
			if failure := a.GetLastFailure(); failure.GetApplicationFailureInfo() != nil {
				require.Equal(t, "llm_misconfigured", failure.GetApplicationFailureInfo().GetType())
				require.Contains(t, failure.GetMessage(), "404")
				return nil
			}
		}
		return errors.New("no attempt has failed")
	})
	d, err := b.temporal.DescribeWorkflowExecution(t.Context(), "job:chat:unknown", "")
	require.NoError(t, err)
	require.Equal(t, enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, d.GetWorkflowExecutionInfo().GetStatus())
	pending, err := b.redis.XPending(t.Context(), "jobs:chat", group).Result()
	require.NoError(t, err)
	require.EqualValues(t, 1, pending.Count)
	found, err := b.updatesOf(t.Context(), "unknown")
	require.NoError(t, err)
	require.Empty(t, found)
	require.Nil(t, b.row("chat", "unknown"))
	require.Empty(t, b.deadLetters("chat"), "the queue is not dead-lettered for our own mistake")

	require.Equal(t, "result", b.update("known", 1)["Type"], "jobs of other models go on")

	copyModel(t, endpoint, "trt-llm-agent", "not-there-yet")
	require.Equal(t, "result", b.update("unknown", 1)["Type"])
	b.settled("chat")
	require.Equal(t, "not-there-yet", b.row("chat", "unknown")["model"])
}

// copyModel gives a model another name on the server behind a chat endpoint.
func copyModel(t *testing.T, endpoint, from, to string) {
	t.Helper()
	u, err := url.Parse(endpoint)
	require.NoError(t, err)
	u.Path = "/api/copy"
	body, err := json.Marshal(map[string]string{"source": from, "destination": to})
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u.String(), bytes.NewReader(body))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode, string(answer))
}
