package job_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// jsonText is a JSON object of about that many bytes, with some of everything
// that a scanner has to look at.
func jsonText(b *testing.B, size int) string {
	b.Helper()
	node := map[string]any{"name": "node \"7\"", "code": "if a < b {\n\treturn é\n}", "at": []float64{1, 2.5}, "on": true}
	one, err := json.Marshal(node)
	require.NoError(b, err)
	nodes := make([]any, size/len(one))
	for i := range nodes {
		nodes[i] = node
	}
	text, err := json.Marshal(map[string]any{"nodes": nodes})
	require.NoError(b, err)
	return string(text)
}

func BenchmarkDecode(b *testing.B) {
	flat := func(payload string) job.Entry {
		return entry("jobId", "j1", "workflowId", "w1", "userId", "u1", "projectId", "p1", "connectionId", "c1",
			"task", "do it", "payload", payload)
	}
	whole := func(payload string) job.Entry {
		text, err := json.Marshal(map[string]string{
			"jobId": "j1", "workflowId": "w1", "userId": "u1", "projectId": "p1", "connectionId": "c1",
			"task": "do it", "payload": payload,
		})
		require.NoError(b, err)
		return entry("data", string(text))
	}
	large := jsonText(b, 100_000)
	for _, bc := range []struct {
		name     string
		entry    job.Entry
		rejected string
	}{
		{name: "fields/small", entry: flat(`{"k":1}`)},
		{name: "fields/100kB", entry: flat(large)},
		{name: "json/small", entry: whole(`{"k":1}`)},
		{name: "json/100kB", entry: whole(large)},
		{name: "rejected", entry: entry("jobId", "j1", "userId", "u\n1", "task", "do it"), rejected: job.ReasonControlChars},
		// As much as is looked at before it is refused.
		{name: "rejected/1MB", entry: flat(strings.Repeat("<", job.MaxEncoded/2)), rejected: job.ReasonTooLarge},
	} {
		b.Run(bc.name, func(b *testing.B) {
			size := 0
			for _, f := range bc.entry.Fields {
				size += len(f.Name) + len(f.Value)
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var err error
			for b.Loop() {
				_, err = job.Decode(job.Agent, bc.entry)
			}
			if bc.rejected == "" {
				require.NoError(b, err)
				return
			}
			var rejection *job.Rejection
			require.ErrorAs(b, err, &rejection)
			require.Equal(b, bc.rejected, rejection.Reason)
		})
	}
}

func BenchmarkWorkflowID(b *testing.B) {
	for name, id := range map[string]string{
		"plain":  "3f2b8f1e-6f0e-4a53-9d3b-5d0a8f6d2c11",
		"hashed": "projet é/3f2b8f1e-6f0e-4a53-9d3b",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				job.WorkflowID(job.Agent, id)
			}
		})
	}
}
