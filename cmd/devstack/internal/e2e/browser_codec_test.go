//go:build browser

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// TestBrowserDecodesPayloads configures the codec server in the Web UI as the
// documentation says, by clicking: a run that is encrypted cannot be read without
// it, nor with a wrong token, and can be read with it.
func TestBrowserDecodesPayloads(t *testing.T) {
	t.Parallel()
	const task, answer, workflow = "Summarise the contract.", "Both sides may end it after a year.", "job:agent:contract-1"
	// How the UI shows a payload that it cannot decode.
	ciphertext := regexp.MustCompile(`^"[0-9A-Za-z+/=]{200,}"$`)
	b := newBrowser(t, encryptionKeys("a"))
	b.LLM.Script(map[string]any{"answer": answer})
	b.Start(nil, "run")
	b.Submit("agent", "jobId", "contract-1", "userId", "u1", "projectId", "p1", "task", task)
	require.Equal(t, answer, b.Update("contract-1", 1)["Payload"])
	b.Run(workflow, "Completed")

	token := harness.Canary + "-codec-server-token"
	address := proc.Loopback(b.Port())
	server := b.Spawn("codec-server", map[string]string{"CODEC_ADDR": address, "CODEC_TOKEN": token, "TEMPORAL_UI_URL": b.ui}, "codec-server")
	require.NoError(t, server.WaitReady(t.Context(), proc.HTTPReady("http://"+address+"/healthz")))

	unreadable := func() {
		t.Helper()
		b.openRun(workflow, "Completed")
		for _, part := range []string{"Input", "Result"} {
			b.payload(part, func(text string) bool { return ciphertext.MatchString(text) })
		}
	}
	unreadable()
	b.configureCodec("http://" + address + "/not-the-token-of-the-server")
	unreadable()
	b.until("the UI says that it cannot decode", `document.querySelector('[data-testid="data-encoder-status-error"]') !== null`)
	b.configureCodec("http://" + address + "/" + token)
	b.openRun(workflow, "Completed")
	b.payload("Input", func(text string) bool { return strings.Contains(text, `"task": "`+task+`"`) })
	b.payload("Result", func(text string) bool { return strings.Contains(text, `"status": "completed"`) })
	b.until("the UI says that it decodes", `document.querySelector('[data-testid="data-encoder-status-success"]') !== null`)
	b.picture("decoded", 710)
	b.openTab("history")
	b.contains("main", answer[:20])
	b.openTab("user-metadata")
	b.framed("user-metadata-details", "Job: contract-1")
	b.Stop(server)
}

// payload waits until the page of a run shows an input or a result that is accepted.
func (b *browser) payload(part string, accept func(string) bool) {
	b.T.Helper()
	read(b, "what is shown as "+part, visible(fmt.Sprintf(`[data-testid="input-and-result"] [aria-label=%q]`, part), "")+`?.innerText ?? ""`, accept)
}

// configureCodec enters an endpoint as the browser's own setting.
func (b *browser) configureCodec(endpoint string) {
	b.T.Helper()
	b.click(`[data-testid^="data-encoder-status"]`, "")
	b.click(`#data-encoder-settings label:has(#use-local-endpoint-radio)`, "")
	b.enter(`#data-encoder-endpoint-input`, endpoint)
	b.click(`#data-encoder-settings [data-testid="confirm-modal-button"]`, "")
	b.until("the dialog is closed", `!document.getElementById("data-encoder-settings").open`)
}
