package stream

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nodpt/executor/internal/job"
)

// Limits of a dead letter.
const (
	maxDeadFields = 64       // as many as the decoder accepts
	maxDeadName   = 256      // bytes of one field name
	maxDeadValues = 64 << 10 // bytes of all original values together
	maxDeadError  = 2 << 10  // bytes of Error
)

// DeadLetter is an entry that failed for good, with the reason.
type DeadLetter struct {
	Effect   string // which outcome this is; decides whether it was added before
	Stream   string // the original stream; the dead letter goes to DeadStream of it
	EntryID  string
	Reason   string // stable snake_case code
	Error    string // safe text, cut at 2 kB
	Fields   []job.Field
	FailedAt time.Time
}

// DeadStream is the name of a stream's dead-letter stream.
func DeadStream(stream string) string { return stream + ":dead" }

// DeadLetter adds a dead letter once per effect and returns its entry id, the
// same one however often it is called within PublishTTL. It may be repeated
// after any error.
//
// The entry holds the original fields first and then original_id, failed_at,
// reason and error. Where the original fields are too large, long values are cut
// so that all values together take 64 KiB, fields beyond the 64th are left out,
// and truncated=1 is added. An original field that has one of those names, as a
// dead letter sent again by hand does, is kept under orig_<name>.
func (c *Client) DeadLetter(ctx context.Context, d DeadLetter) (string, error) {
	dead := DeadStream(d.Stream)
	args := append([]any{int64(PublishTTL / time.Second)}, flat(d.fields())...)
	return runString(ctx, c.scripts.deadLetter, c.effects, "add a dead letter to "+dead,
		[]string{dead, "{" + dead + "}:seen:" + MessageID(d.Effect)}, args...)
}

func (d DeadLetter) fields() []job.Field {
	fields, truncated := capFields(d.Fields)
	if truncated {
		fields = append(fields, job.Field{Name: "truncated", Value: "1"})
	}
	return append(fields,
		job.Field{Name: "original_id", Value: d.EntryID},
		job.Field{Name: "failed_at", Value: Timestamp(d.FailedAt)},
		job.Field{Name: "reason", Value: d.Reason},
		job.Field{Name: "error", Value: cut(d.Error, maxDeadError)})
}

// capFields shortens the longest values first, so that a huge payload does not
// push out the identifiers behind it.
func capFields(original []job.Field) (fields []job.Field, truncated bool) {
	fields = slices.Clone(original[:min(len(original), maxDeadFields)])
	truncated = len(fields) < len(original)

	lengths := make([]int, 0, len(fields))
	for _, f := range fields {
		lengths = append(lengths, len(f.Value))
	}
	limit := fairLimit(lengths, maxDeadValues)
	for i, f := range fields {
		name, value := cut(f.Name, maxDeadName), cut(f.Value, limit)
		truncated = truncated || len(name) < len(f.Name) || len(value) < len(f.Value)
		if isDeadName(name) {
			name = deadPrefix + name
		}
		fields[i] = job.Field{Name: name, Value: value}
	}
	return fields, truncated
}

// deadPrefix keeps an original field apart from one of the dead letter's own.
const deadPrefix = "orig_"

func isDeadName(name string) bool {
	switch strings.ToLower(name) {
	case "original_id", "failed_at", "reason", "error", "truncated":
		return true
	}
	return false
}

// fairLimit is the largest length to which all can be cut so that they fit into
// the budget together.
func fairLimit(lengths []int, budget int) int {
	slices.Sort(lengths)
	for i, n := range lengths {
		share := budget / (len(lengths) - i)
		if n > share {
			return share
		}
		budget -= n
	}
	if len(lengths) == 0 {
		return 0
	}
	return lengths[len(lengths)-1]
}

// cut shortens s to at most n bytes without splitting a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	end := n
	for end > n-utf8.UTFMax && end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}
