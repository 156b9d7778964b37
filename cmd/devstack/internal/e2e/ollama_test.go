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

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
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
	b.Start(map[string]string{"LLM_ENDPOINT": endpoint}, "run")
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
		{"manager", "trt-llm-manager", 256, []string{"task", harness.Text("task")}},
		{"inspector", "trt-llm-inspector", 512, []string{"task", harness.Text("task"), "payload", `{"code":"x := 1"}`}},
		{"agent", "trt-llm-agent", 128, []string{"task", harness.Text("task")}},
		{"chat", "trt-llm-manager", 64, []string{"message", harness.Text("message"), "nodeLevel", "manager"}},
	} {
		jobID := "ollama-" + c.role
		began := time.Now()
		b.Submit(c.role, append([]string{"jobId", jobID, "userId", "u1"}, c.fields...)...)
		update := b.Update(jobID, 1)
		t.Logf("%s answered after %s (the first one includes loading the model)", c.role, time.Since(began).Round(time.Millisecond))
		require.Equal(t, "result", update["Type"], "call %d", i)
		b.Settled(c.role)
		row := b.Row(c.role, jobID)
		require.Equal(t, "completed", row["status"])
		require.Equal(t, c.model, row["model"])
		require.Equal(t, update["Payload"], row["output"])
		require.Positive(t, row["prompt_tokens"])
		require.Positive(t, row["completion_tokens"])
		require.LessOrEqual(t, row["completion_tokens"], c.maxTokens)
		// A model with random weights rarely ends by itself; where it did not, it
		// was cut at the role's limit.
		require.Equal(t, row["completion_tokens"] == c.maxTokens, row["truncated"] == int64(1))
		b.Run("job:"+c.role+":"+jobID, "Completed")
	}
}

// TestOllamaUnknownModelWaitsForIt asks for a model that does not exist: a
// mistake in the settings, so the job waits, and ends well once the model is
// there.
func TestOllamaUnknownModelWaitsForIt(t *testing.T) {
	t.Parallel()
	b, endpoint := newOllamaBundle(t)
	b.Submit("chat", "jobId", "unknown", "userId", "u1", "message", harness.Text("message"), "model", "not-there-yet")
	b.Submit("agent", "jobId", "known", "userId", "u1", "task", harness.Text("task"))

	b.Wait("the job waits for another attempt", func(ctx context.Context) error {
		d, err := b.Temporal.DescribeWorkflowExecution(ctx, "job:chat:unknown", "")
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
	d, err := b.Temporal.DescribeWorkflowExecution(t.Context(), "job:chat:unknown", "")
	require.NoError(t, err)
	require.Equal(t, enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, d.GetWorkflowExecutionInfo().GetStatus())
	pending, err := b.Redis.XPending(t.Context(), "jobs:chat", harness.Group).Result()
	require.NoError(t, err)
	require.EqualValues(t, 1, pending.Count)
	found, err := b.UpdatesOf(t.Context(), "unknown")
	require.NoError(t, err)
	require.Empty(t, found)
	require.Nil(t, b.Row("chat", "unknown"))
	require.Empty(t, b.DeadLetters("chat"), "the queue is not dead-lettered for our own mistake")

	require.Equal(t, "result", b.Update("known", 1)["Type"], "jobs of other models go on")

	copyModel(t, endpoint, "trt-llm-agent", "not-there-yet")
	require.Equal(t, "result", b.Update("unknown", 1)["Type"])
	b.Settled("chat")
	require.Equal(t, "not-there-yet", b.Row("chat", "unknown")["model"])
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
