package job

import (
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Canonical names of the fields a producer may set (DESIGN.md section 2.1).
// They are matched without regard to case.
const (
	fieldJobID        = "jobId"
	fieldWorkflowID   = "workflowId"
	fieldUserID       = "userId"
	fieldProjectID    = "projectId"
	fieldNodeID       = "nodeId"
	fieldConnectionID = "connectionId"
	fieldTask         = "task"
	fieldPayload      = "payload"
	fieldPriority     = "priority"
	fieldMessage      = "message"
	fieldChatID       = "chatId"
	fieldNodeLevel    = "nodeLevel"
	fieldModel        = "model"
	fieldSource       = "source"
	fieldRole         = "role"
	fieldData         = "data"
	fieldJob          = "job"
)

// Names of the fields that dead letters have beside the original ones.
const (
	fieldOriginalID = "original_id"
	fieldFailedAt   = "failed_at"
	fieldReason     = "reason"
	fieldError      = "error"
	fieldTruncated  = "truncated"
)

// Fields returns the job as the fields of a stream entry, in documented order
// and spelling; absent ones are left out. Decode of these fields for the same
// role gives the same job. The role is not among them: the stream says it.
func (j Job) Fields() []Field {
	task := fieldTask
	if j.Role == Chat {
		task = fieldMessage
	}
	priority := ""
	if j.Priority != 0 {
		priority = strconv.Itoa(j.Priority)
	}
	all := []Field{
		{fieldJobID, j.ID},
		{fieldWorkflowID, j.WorkflowID},
		{fieldUserID, j.UserID},
		{fieldProjectID, j.ProjectID},
		{fieldNodeID, j.NodeID},
		{fieldConnectionID, j.ConnectionID},
		{task, j.Task},
		{fieldPayload, j.Payload},
		{fieldPriority, priority},
		{fieldChatID, j.ChatID},
		{fieldNodeLevel, j.NodeLevel},
		{fieldModel, j.Model},
		{fieldSource, j.Source},
	}
	fields := make([]Field, 0, len(all))
	for _, f := range all {
		if f.Value != "" {
			fields = append(fields, f)
		}
	}
	return fields
}

// EncodedSize is the number of bytes the job takes in Temporal's history:
// encoding/json with its HTML escaping, which is what the SDK's JSON converter
// uses. A byte of text takes up to six (a NUL or "<" becomes \u003c), so the
// limit is meaningless on the raw text.
func EncodedSize(j Job) int {
	encoded, err := json.Marshal(j)
	if err != nil { // cannot happen: the type holds strings and one int
		return MaxEncoded + 1
	}
	return len(encoded)
}

// fits reports whether the job is within MaxEncoded; it encodes only where the
// raw length leaves that open.
func (j Job) fits() bool {
	const (
		worstGrowth = 6   // bytes that one byte of text can take
		overhead    = 512 // all names, quotes, braces and the numbers
	)
	raw := 0
	for _, f := range j.Fields() {
		raw += len(f.Value)
	}
	switch {
	case raw > MaxEncoded:
		return false
	case raw*worstGrowth+overhead <= MaxEncoded:
		return true
	default:
		return EncodedSize(j) <= MaxEncoded
	}
}

// SafeText makes text from outside storable and publishable: bytes that are not
// UTF-8 and NUL, which PostgreSQL refuses, become U+FFFD, and what exceeds limit
// bytes is cut off at the border of a character. Everything else, escape
// sequences of terminals too, stays.
func SafeText(s string, limit int) string {
	const replacement = string(utf8.RuneError)
	s = strings.ReplaceAll(strings.ToValidUTF8(s, replacement), "\x00", replacement)
	if len(s) <= limit {
		return s
	}
	end := max(limit, 0)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}
