package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

const (
	maxValue   = 256 // bytes of a string value; a jobId fits, a prompt does not
	maxMessage = 200 // bytes of a record's message
	maxKey     = 32  // bytes of an unknown key
	maxList    = 16  // elements of a list
)

// filter is the slog.Handler in front of the formatting one. The SDK derives a
// logger for every workflow and activity, and most of them never log: so what was
// derived is looked at and formatted with the first record.
type filter struct {
	root   slog.Handler        // knows the level
	next   func() slog.Handler // root with the attributes and groups so far
	known  func(key string) bool
	strict bool // the record was written by the SDK
}

func newFilter(next slog.Handler) *filter {
	keys := knownKeys()
	return &filter{root: next, next: func() slog.Handler { return next }, known: func(key string) bool {
		_, ok := keys[plainKey(key)]
		return ok
	}}
}

func (f *filter) forSDK() *filter {
	sdk := *f
	sdk.strict = true
	return &sdk
}

// derive is f with another handler behind it, which is made when it is needed.
func (f *filter) derive(next func() slog.Handler) *filter {
	derived := *f
	derived.next = sync.OnceValue(next)
	return &derived
}

// Enabled implements slog.Handler.
func (f *filter) Enabled(ctx context.Context, level slog.Level) bool {
	return f.root.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (f *filter) Handle(ctx context.Context, r slog.Record) error {
	message := r.Message
	if f.strict {
		message, _, _ = strings.Cut(message, ": ")
	}
	out := slog.NewRecord(r.Time, r.Level, clean(message, maxMessage), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(f.attr(a))
		return true
	})
	return f.next().Handle(ctx, out)
}

// WithAttrs implements slog.Handler.
func (f *filter) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return f
	}
	return f.derive(func() slog.Handler { return f.next().WithAttrs(f.attrs(attrs)) })
}

// WithGroup implements slog.Handler.
func (f *filter) WithGroup(name string) slog.Handler {
	if name == "" {
		return f
	}
	return f.derive(func() slog.Handler { return f.next().WithGroup(f.key(name)) })
}

func (f *filter) attrs(in []slog.Attr) []slog.Attr {
	out := make([]slog.Attr, len(in))
	for i, a := range in {
		out[i] = f.attr(a)
	}
	return out
}

func (f *filter) attr(a slog.Attr) slog.Attr {
	if a.Equal(slog.Attr{}) {
		return a // handlers leave an empty attribute out
	}
	value := a.Value.Resolve()
	switch value.Kind() {
	case slog.KindGroup:
		group := slog.Attr{Value: slog.GroupValue(f.attrs(value.Group())...)}
		if a.Key != "" { // a group without a name is merged into its parent
			group.Key = f.key(a.Key)
		}
		return group
	case slog.KindString:
		return slog.String(f.key(a.Key), f.text(a.Key, value.String(), "string"))
	case slog.KindDuration:
		// slog would write nanoseconds, which nobody reads at a glance.
		return slog.String(f.key(a.Key), value.Duration().String())
	case slog.KindAny, slog.KindLogValuer:
		return slog.Attr{Key: f.key(a.Key), Value: f.any(a.Key, value.Any())}
	case slog.KindBool, slog.KindInt64, slog.KindUint64, slog.KindFloat64, slog.KindTime:
		return slog.Attr{Key: f.key(a.Key), Value: value}
	default:
		return slog.String(f.key(a.Key), "["+value.Kind().String()+"]")
	}
}

// key keeps a key that is known or at least has the form of one. A call whose
// arguments are out of step hands over a value as the key.
func (f *filter) key(key string) string {
	if f.known(key) || identifier(key) {
		return key
	}
	return "[key]"
}

func (f *filter) text(key, value, typeName string) string {
	if f.known(key) {
		return clean(value, maxValue)
	}
	return "[" + typeName + "]"
}

func (f *filter) any(key string, v any) slog.Value {
	switch x := v.(type) {
	case nil:
		return slog.AnyValue(nil)
	case error:
		return slog.StringValue(describe(x, f.strict))
	}
	typeName := fmt.Sprintf("%T", v)
	value := reflect.ValueOf(v)
	switch value.Kind() { //nolint:exhaustive // the rest is replaced by its type
	case reflect.Bool:
		return slog.BoolValue(value.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return slog.Int64Value(value.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return slog.Uint64Value(value.Uint())
	case reflect.Float32, reflect.Float64:
		return slog.Float64Value(value.Float())
	case reflect.String:
		return slog.StringValue(f.text(key, value.String(), typeName))
	case reflect.Slice, reflect.Array:
		if value.Type().Elem().Kind() != reflect.String || !f.known(key) {
			break
		}
		list := make([]string, 0, min(value.Len(), maxList))
		for i := range min(value.Len(), maxList) {
			list = append(list, clean(value.Index(i).String(), maxValue))
		}
		return slog.AnyValue(list)
	}
	return slog.StringValue("[" + typeName + "]")
}

// knownKeys are the keys whose text may be logged, in the form plainKey gives
// them, so that job_id, jobId and JobID are one. None of them may ever name
// content: a key like "message", "text" or "value" does not belong here.
func knownKeys() map[string]struct{} {
	keys := make(map[string]struct{})
	for _, group := range []string{
		// Where a job is and whose it is.
		"role stream entry entryid entryids lastentryid jobid job workflowid runid userid projectid nodeid connectionid " +
			"chatid nodptworkflowid deadid deadletterid effect messageid dead updates list fingerprint",
		// What happened to it.
		"status state reason code kind note field fields outcome verdict model source signal step operation action phase",
		// Who did it.
		"component consumer consumers group peer owner queue queues role roles worker holder lease instance bridge " +
			"name names check checks command version commit go build os",
		// With what.
		"addr address host port listen endpoint database dialect driver store storeid namespace namespaceid ui url link " +
			"path file dir channel channels cert",
		// Settings and advice: fixed sentences of this program.
		"variable variables setting settings default allowed hint advice warning warnings want supported format level script",
		// The SDK's tags (sdk/internal/internal_logging_tags.go) that hold names and ids.
		"activityid activityrunid activitytype eventtype taskqueue timerid workflowtype workerid buildid workertype " +
			"childworkflowid localactivitytype querytype updatename indexedvaluetype",
		// fx's events, logged at debug level: names of functions and types.
		"constructor callee caller function type module runtime decorator",
	} {
		for key := range strings.FieldsSeq(group) {
			keys[key] = struct{}{}
		}
	}
	return keys
}

// plainKey folds the ways in which a key is written into one.
func plainKey(key string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '_', '-', '.', ' ':
			return -1
		}
		return unicode.ToLower(r)
	}, key)
}

func identifier(s string) bool {
	if s == "" || len(s) > maxKey {
		return false
	}
	for i, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z':
		case i > 0 && (r >= '0' && r <= '9' || r == '_' || r == '.'):
		default:
			return false
		}
	}
	return true
}

// clean makes a text fit for one line of a log: control characters, invisible
// ones and invalid bytes are escaped, credentials are taken out, and what is
// longer than limit bytes is cut.
func clean(s string, limit int) string {
	cut := len(s) > 4*limit
	if cut {
		s = s[:4*limit] // no need to look at megabytes to keep a line of them
	}
	s = withoutCredentials(s)
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		piece := s[i : i+size]
		switch {
		case r == utf8.RuneError && size == 1:
			piece = fmt.Sprintf(`\x%02x`, s[i])
		case r == '\n':
			piece = `\n`
		case r == '\r':
			piece = `\r`
		case r == '\t':
			piece = `\t`
		case r != ' ' && !unicode.IsPrint(r):
			piece = fmt.Sprintf(`\u%04x`, r)
		}
		if b.Len()+len(piece) > limit {
			return b.String() + "…"
		}
		b.WriteString(piece)
		i += size
	}
	if cut {
		return b.String() + "…"
	}
	return b.String()
}
