// Package telemetry is how the executor is watched from outside: logs, metrics
// and health endpoints. It exists as a package of its own because of one
// promise that no other package can keep alone: nothing a job carries (task,
// payload, answer) and no secret ever appears in a log, a metric or a health
// report, whoever writes it, the Temporal SDK included.
//
// # What a log may carry
//
// Every record passes a filter before it is formatted. It works by allow-list:
//
//   - numbers, booleans, times and durations pass under any key;
//   - strings, and types made of strings, pass only under a key that is known
//     to name something harmless (an id, a role, an address: see knownKeys),
//     with control characters escaped, cut at 256 bytes, credentials in
//     addresses removed;
//   - errors pass under any key, as far as their text was written by code that
//     is known not to quote data: see describe;
//   - anything else is replaced by the name of its type, for example [string]
//     or [map[string]any]. So a forgotten key is visible and costs a line in
//     knownKeys, while a forgotten secret costs nothing.
//
// Groups and values that resolve themselves (slog.LogValuer) are looked into.
// An error must be logged as an error value: its text as a string is just a
// string, and is replaced unless its key is known.
//
// The SDK's own records are held to a stricter rule, because it logs results
// and error texts of activities: see TemporalLogger.
package telemetry

import (
	"io"
	"log/slog"
	"strings"

	sdklog "go.temporal.io/sdk/log"
)

// LogConfig says how much is logged and in which form.
type LogConfig struct {
	// Level is debug, info, warn or error in any case (LOG_LEVEL). Anything else
	// is info; internal/config reports it before it gets here.
	Level string
	// Format is json (the default) or text (LOG_FORMAT).
	Format string
}

// NewLogger returns the logger of the whole process. It writes to w, one line
// per record, through the filter described in the package comment.
func NewLogger(w io.Writer, cfg LogConfig) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: level}
	if strings.EqualFold(cfg.Format, "text") {
		return slog.New(newFilter(slog.NewTextHandler(w, opts)))
	}
	return slog.New(newFilter(slog.NewJSONHandler(w, opts)))
}

// TemporalLogger adapts the logger to the Temporal SDK, for client.Options.
//
// The SDK logs more than it should: the result of an activity that finished too
// late, the full text of activity errors, and some errors as part of the message
// (all measured with v1.50). So its records follow stricter rules: of an error
// only texts of this module's own error types and of plain network and server
// failures remain, everything else is its type, and a message ends at its first
// colon. What workflows and activities log through the SDK's loggers passes here
// as well.
func TemporalLogger(l *slog.Logger) sdklog.Logger {
	f, ok := l.Handler().(*filter)
	if !ok {
		f = newFilter(l.Handler())
	}
	return sdklog.NewStructuredLogger(slog.New(f.forSDK()))
}
