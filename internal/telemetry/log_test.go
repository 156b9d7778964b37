package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/telemetry"
)

// canary stands for a task, a payload, an answer or a secret.
const canary = "CANARY-9c2e"

// buffer is what a logger of a test writes to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// records are the JSON records written so far.
func (b *buffer) records(t *testing.T) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(b.String()) {
		var record map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &record), line)
		all = append(all, record)
	}
	return all
}

func newLogger(format string) (*slog.Logger, *buffer) {
	var out buffer
	return telemetry.NewLogger(&out, telemetry.LogConfig{Level: "debug", Format: format}), &out
}

// one logs a single attribute and returns what was written for it.
func one(t *testing.T, a slog.Attr) any {
	t.Helper()
	log, out := newLogger("json")
	log.LogAttrs(t.Context(), slog.LevelInfo, "event", a)
	return out.records(t)[0][a.Key]
}

type valuer struct{ v any }

func (v valuer) LogValue() slog.Value { return slog.AnyValue(v.v) }

type panicking struct{}

func (panicking) LogValue() slog.Value { panic(canary) }

type stringer struct{}

func (stringer) String() string { return canary }

// foreignError is an error type of another module that quotes what it read.
type foreignError = textproto.ProtocolError

// brokenError cannot even say what it is.
type brokenError struct{}

func (*brokenError) Error() string { panic(canary) }

// carriers are all ways to hand content to a logger that came to mind.
func carriers() map[string]slog.Attr {
	content := map[string]any{"task": canary}
	return map[string]slog.Attr{
		"string":              slog.String("task", canary),
		"unknown key":         slog.String("somethingNew", canary),
		"error as a string":   slog.String("error", canary),
		"any string":          slog.Any("payload", canary),
		"bytes":               slog.Any("data", []byte(canary)),
		"raw JSON":            slog.Any("role", json.RawMessage(canary)),
		"map":                 slog.Any("fields", content),
		"struct":              slog.Any("job", job.Job{Task: canary, Payload: canary}),
		"pointer":             slog.Any("job", &job.Job{Task: canary}),
		"slice of strings":    slog.Any("values", []string{canary}),
		"slice of fields":     slog.Any("fields", []job.Field{{Name: "task", Value: canary}}),
		"stringer":            slog.Any("role", stringer{}),
		"group":               slog.Group("role", slog.String("task", canary), slog.Group("deeper", slog.Any("x", content))),
		"unnamed group":       slog.Group("", slog.String("task", canary)),
		"log valuer":          slog.Any("role", valuer{valuer{content}}),
		"log valuer of group": slog.Any("job", valuer{slog.GroupValue(slog.String("answer", canary))}),
		"log valuer panics":   slog.Any("role", panicking{}),
		"error":               slog.Any("error", foreignError(canary)),
		"error in error":      slog.Any("error", fmt.Errorf("outer: %w", foreignError(canary))),
		"error shown inside":  slog.Any("error", fmt.Errorf("before %w after", foreignError(canary))),
		"joined errors":       slog.Any("error", errors.Join(io.EOF, foreignError(canary))),
		"two errors":          slog.Any("error", fmt.Errorf("%w and %w", io.EOF, foreignError(canary))),
		"quoted in an error":  slog.Any("error", errors.New(`cannot parse "`+canary+`"`)),
		"panicking error":     slog.Any("error", (*brokenError)(nil)),
		"JSON error":          slog.Any("error", json.Unmarshal([]byte(`"`+canary+`"`), new(int))),
		"application error":   slog.Any("error", temporal.NewApplicationError(canary, canary, canary)),
		"key":                 slog.Int(canary, 1),
		"value as key":        slog.String("please write "+canary, "x"),
		"channel":             slog.Any("role", make(chan string)),
	}
}

func TestNothingCarriesContent(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "text"} {
		for name, a := range carriers() {
			t.Run(format+"/"+name, func(t *testing.T) {
				t.Parallel()
				log, out := newLogger(format)
				ctx := t.Context()
				log.LogAttrs(ctx, slog.LevelInfo, "event", a)
				log.With(a).InfoContext(ctx, "event")
				log.WithGroup("role").With(a).LogAttrs(ctx, slog.LevelError, "event", a)
				log.WithGroup(canary).InfoContext(ctx, "event", slog.Int("n", 1))
				sdk := telemetry.TemporalLogger(log)
				sdk.Error("event", a.Key, a.Value.Any())
				sdk.Info("event", a)
				sdklog.With(sdk, a.Key, a.Value.Any()).Debug("event")

				require.NotContains(t, out.String(), canary)
				require.Equal(t, 7, strings.Count(out.String(), "event"), out.String())
				require.Equal(t, 7, strings.Count(out.String(), "\n"))
			})
		}
	}
}

// What the SDK does, by its source.
func TestTheSDKsRecords(t *testing.T) {
	t.Parallel()
	log, out := newLogger("json")
	sdk := sdklog.With(telemetry.TemporalLogger(log), "Namespace", "default", "TaskQueue", "executor-agent", "WorkerID", "1@host")

	sdk.Info("Activity complete after timeout.", "WorkflowID", "job:agent:j1", "Result", canary, "ActivityType", "agent")
	sdk.Error("Activity error.", "Attempt", int32(3), "Error", temporal.NewApplicationErrorWithCause(canary, "llm_quota", errors.New(canary)))
	sdk.Error("Activity panic.", "PanicError", canary, "PanicStack", "goroutine 1\n"+canary)
	sdk.Warn("Workflow task postprocess error: "+canary, "RunID", "r1")
	sdk.Debug("ExecuteActivity", "ActivityID", "5", "Error", fmt.Errorf("unable to encode %s: %w", canary, io.EOF))
	sdk.Warn("odd", canary)

	require.NotContains(t, out.String(), canary)
	records := out.records(t)
	require.Len(t, records, 6)
	for _, r := range records {
		require.Equal(t, "executor-agent", r["TaskQueue"])
		require.Equal(t, "1@host", r["WorkerID"])
	}
	require.Equal(t, "job:agent:j1", records[0]["WorkflowID"])
	require.Equal(t, "[string]", records[0]["Result"])
	require.Equal(t, "ApplicationError(llm_quota): [error]", records[1]["Error"])
	require.InDelta(t, 3, records[1]["Attempt"], 0)
	require.Equal(t, "[string]", records[2]["PanicError"])
	require.Equal(t, "Workflow task postprocess error", records[3]["msg"])
	require.Equal(t, "EOF", records[4]["Error"])
}

func TestWhatPasses(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	long := strings.Repeat("é", 200)
	for _, tt := range []struct {
		name string
		attr slog.Attr
		want any
	}{
		{"id", slog.String("job_id", "j-1"), "j-1"},
		{"id in another case", slog.String("jobId", "j-1"), "j-1"},
		{"text of a known kind", slog.String("setting", "HTTP_ADDR"), "HTTP_ADDR"},
		{"role", slog.Any("role", job.Agent), "agent"},
		{"status", slog.Any("status", job.Completed), "completed"},
		{"names", slog.Any("queues", []string{"executor-agent", "executor-chat"}), []any{"executor-agent", "executor-chat"}},
		{"roles", slog.Any("roles", []job.Role{job.Agent, job.Chat}), []any{"agent", "chat"}},
		{"number under any key", slog.Int("whatever", 7), 7.0},
		{"named number", slog.Any("level9", time.March), 3.0},
		{"bool", slog.Bool("whatever", true), true},
		{"float", slog.Float64("ratio", 0.5), 0.5},
		{"time", slog.Time("at", at), "2026-01-02T03:04:05Z"},
		{"duration", slog.Duration("took", 1500*time.Millisecond), "1.5s"},
		{"nil", slog.Any("whatever", nil), nil},
		{"nil error", slog.Any("error", error(nil)), nil},
		{"log valuer", slog.Any("stream", valuer{"jobs:agent"}), "jobs:agent"},
		{"unknown text", slog.String("whatever", "x"), "[string]"},
		{"unknown type", slog.Any("whatever", map[string]any{}), "[map[string]interface {}]"},
		{"log injection", slog.String("job_id", "a\nlevel=ERROR\r\t\x00\x1b[31m\u202e\u200b\xff"), `a\nlevel=ERROR\r\t\u0000\u001b[31m\u202e\u200b\xff`},
		{"long id", slog.String("job_id", long), strings.Repeat("é", 128) + "…"},
		{"very long id", slog.String("job_id", strings.Repeat("x", 1<<20)), strings.Repeat("x", 256) + "…"},
		{"password in an address", slog.String("addr", "redis://user:"+canary+"@host:6379/0"), "redis://…@host:6379/0"},
		{"password in settings", slog.String("addr", "host:6379,password="+canary+",ssl=true"), "host:6379,password=…,ssl=true"},
		{"key in a header", slog.String("reason", "Authorization: Bearer "+canary), "Authorization: Bearer …"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, one(t, tt.attr))
		})
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 6379}, Err: errors.New("connection refused")}
	_, rejection := job.Decode(job.Agent, job.Entry{Stream: "jobs:agent", ID: "1-0"})
	require.Error(t, rejection)
	for _, tt := range []struct {
		name string
		err  error
		want string
		sdk  string // the same error logged by the SDK
	}{
		{"ours", rejection, rejection.Error(), rejection.Error()},
		{"ours, wrapped", fmt.Errorf("decode: %w", rejection), "decode: " + rejection.Error(), rejection.Error()},
		{"well known", fmt.Errorf("read: %w", io.EOF), "read: EOF", "EOF"},
		{"network", refused, "dial tcp 127.0.0.1:6379: connection refused", "dial tcp 127.0.0.1:6379: [error]"},
		{"plain", errors.New("out of luck"), "out of luck", "[error]"},
		{"foreign", foreignError(canary), "[textproto.ProtocolError]", "[textproto.ProtocolError]"},
		{"joined", errors.Join(io.EOF, errors.New("b")), "EOF; b", "EOF; [error]"},
		{"application", temporal.NewApplicationError("x", "llm_timeout"), "ApplicationError(llm_timeout)", "ApplicationError(llm_timeout)"},
		{"canceled", temporal.NewCanceledError(), "[*internal.CanceledError]", "[*internal.CanceledError]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, one(t, slog.Any("error", tt.err)))
			log, out := newLogger("json")
			telemetry.TemporalLogger(log).Warn("event", "Error", tt.err)
			require.Equal(t, tt.sdk, out.records(t)[0]["Error"])
		})
	}
}

func TestLevelAndFormat(t *testing.T) {
	t.Parallel()
	for level, want := range map[string]int{"debug": 4, "info": 3, "WARN": 2, "error": 1, "": 3, "nonsense": 3} {
		t.Run("level "+level, func(t *testing.T) {
			t.Parallel()
			var out buffer
			log := telemetry.NewLogger(&out, telemetry.LogConfig{Level: level})
			ctx := t.Context()
			log.DebugContext(ctx, "a")
			log.InfoContext(ctx, "b")
			log.WarnContext(ctx, "c")
			log.ErrorContext(ctx, "d")
			require.Len(t, out.records(t), want)
		})
	}
	log, out := newLogger("TEXT")
	log.InfoContext(t.Context(), "event", slog.String("job_id", "a b\n"))
	require.Contains(t, out.String(), `level=INFO msg=event job_id="a b\\n"`)
}

func TestForeignHandlersAreFilteredForTheSDKToo(t *testing.T) {
	t.Parallel()
	var out buffer
	telemetry.TemporalLogger(slog.New(slog.NewJSONHandler(&out, nil))).Info("event", "Result", canary)
	require.NotContains(t, out.String(), canary)
}
