package telemetry_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/telemetry"
)

// Fault C10: whatever an id looks like, one event is one line, no terminal obeys
// it, and it cannot pretend to be an event or an attribute of its own.
func TestIDsCannotForgeLogLines(t *testing.T) {
	t.Parallel()
	hostile := []string{
		"a\nlevel=ERROR msg=forged", "a\r\n{\"level\":\"ERROR\",\"msg\":\"forged\"}", "\x1b[2J\x1b[1;31mred", "a\x00b", "a\u2028b\u2029c\u0085d",
		"\u202egnirts", "zero\u200bwidth", "tab\tbed", `quote" msg="forged`, "\xff\xfe", "back\bspace\x7f", strings.Repeat("long", 10_000),
		"\u009b31mC1", "\ufeffBOM",
	}
	for _, format := range []string{"json", "text"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			log, out := newLogger(format)
			sdk := telemetry.TemporalLogger(log)
			events := 0
			for _, id := range hostile {
				log.InfoContext(t.Context(), "event", slog.String("job_id", id), slog.String("user_id", id), slog.Any("fields", []string{id}))
				log.InfoContext(t.Context(), "event "+id, slog.Any("error", fmt.Errorf("job %s: %w", id, errors.New(id)))) //nolint:sloglint // what nobody should do
				log.With(slog.String(id, id)).WithGroup(id).InfoContext(t.Context(), "event", slog.String("job_id", id))
				sdk.Info("event "+id, "WorkflowID", id, id, id)
				events += 4
			}
			text := out.String()
			require.Equal(t, events, strings.Count(text, "\n"), "one line per event")
			for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
				require.Less(t, len(line), 2000, "line %d", i)
				require.NotContains(t, strings.ToValidUTF8(line, "\x01"), "\x01", "line %d: %q", i, line)
				for _, r := range line {
					require.False(t, r < ' ' || r >= 0x7f && r < 0xa0 || strings.ContainsRune("\u2028\u2029\u202e\u200b\ufeff", r), "line %d: %q", i, line)
				}
				if format == "text" {
					require.Equal(t, 1, strings.Count(line, " level=")+strings.Count(line, "\tlevel="), "line %d: %q", i, line)
				}
			}
			if format == "json" {
				require.Len(t, out.records(t), events)
			}
		})
	}
}
