package telemetry

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"
	"testing/slogtest"

	"github.com/stretchr/testify/require"
)

// With every key known the filter must be invisible to slog's own rules for
// handlers: groups, empty attributes, times.
func TestFilterIsAProperHandler(t *testing.T) {
	t.Parallel()
	var out *bytes.Buffer
	newHandler := func(*testing.T) slog.Handler {
		out = new(bytes.Buffer)
		f := newFilter(slog.NewJSONHandler(out, nil))
		f.known = func(string) bool { return true }
		return f
	}
	slogtest.Run(t, newHandler, func(t *testing.T) map[string]any { //nolint:thelper // the signature is slogtest's
		var record map[string]any
		require.NoError(t, json.Unmarshal(out.Bytes(), &record))
		return record
	})
}

// A key that names content, or could, must never become known.
func TestKnownKeysNameNoContent(t *testing.T) {
	t.Parallel()
	f := newFilter(slog.DiscardHandler)
	for _, key := range []string{
		"task", "payload", "message", "answer", "output", "prompt", "result", "Result", "text", "content", "data", "body", "value", "values",
		"password", "secret", "token", "api_key", "authorization", "header", "error", "err", "PanicError", "StackTrace", "input", "args", "memo",
	} {
		require.False(t, f.known(key), key)
	}
}
