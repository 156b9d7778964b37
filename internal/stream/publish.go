package stream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/nodpt/executor/internal/job"
)

// Names of the outside contract (DESIGN.md section 2.2).
const (
	// Updates is the stream the SignalR service reads.
	Updates = "signalr:updates"
	// ChatChannel is the channel the old web API waits on for answers to jobs
	// from the chat list.
	ChatChannel = "AI.RESPONSE"
	// TypeResult and TypeError are the values of an update's Type.
	TypeResult = "result"
	TypeError  = "error"
)

// PublishTTL is how long an effect is remembered after it was published. Within
// it, publishing the same effect again does nothing.
const PublishTTL = 7 * 24 * time.Hour

// Update is one message to the user's browser.
type Update struct {
	Effect  string    // which outcome this is, see job.EntryEffect; it decides the MessageId
	Stream  string    // where to publish; empty means Updates
	Type    string    // TypeResult or TypeError
	Payload string    // the answer, or ErrorPayload
	Job     job.Job   // whose identifiers are copied
	At      time.Time // time of the outcome

	// Channel, if set, gets {"ConnectionId","Content"} with ChannelText as the
	// content, in the same step as the update. Set it to ChatChannel for jobs from
	// the chat list.
	Channel     string
	ChannelText string
}

// MessageID is the id of the update with that effect: UUIDv5 in this project's
// namespace, so that every attempt to publish an effect gives it the same id.
func MessageID(effect string) string {
	project := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/nodpt/executor"))
	return uuid.NewSHA1(project, []byte(effect)).String()
}

// Timestamp formats a time as the outside contract wants it: UTC in RFC 3339
// with exactly seven fractional digits, which is .NET's round-trip format "o".
func Timestamp(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.0000000Z")
}

// Fields are the fields of the update's entry: exactly those of DESIGN.md
// section 2.2, each once, empty ones included, chat's two only for chat.
func Fields(u Update) []job.Field {
	fields := []job.Field{
		{Name: "MessageId", Value: MessageID(u.Effect)},
		{Name: "NodeId", Value: u.Job.NodeID},
		{Name: "ProjectId", Value: u.Job.ProjectID},
		{Name: "UserId", Value: u.Job.UserID},
		{Name: "ClientConnectionId", Value: u.Job.ConnectionID},
		{Name: "WorkflowGroup", Value: u.Job.WorkflowID},
		{Name: "Type", Value: u.Type},
		{Name: "Payload", Value: u.Payload},
		{Name: "Timestamp", Value: Timestamp(u.At)},
		{Name: "JobId", Value: u.Job.ID},
		{Name: "Role", Value: string(u.Job.Role)},
	}
	if u.Job.Role == job.Chat {
		fields = append(fields,
			job.Field{Name: "chatId", Value: u.Job.ChatID},
			job.Field{Name: "connectionId", Value: u.Job.ConnectionID})
	}
	return fields
}

// ErrorPayload is the Payload of an error update: {"code":…,"message":…}. Both
// are shown to users.
func ErrorPayload(code, message string) string {
	return plainJSON(struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}{code, message})
}

// Publish adds the update to its stream unless its effect was published within
// PublishTTL, and reports whether it did so now. It may be repeated after any
// error.
func (c *Client) Publish(ctx context.Context, u Update) (bool, error) {
	channelMessage := ""
	if u.Channel != "" {
		channelMessage = plainJSON(struct {
			ConnectionID string `json:"ConnectionId"` //nolint:tagliatelle // the old web API's name
			Content      string `json:"Content"`      //nolint:tagliatelle // the old web API's name
		}{u.Job.ConnectionID, u.ChannelText})
	}
	stream := cmp.Or(u.Stream, Updates)
	args := []any{int64(PublishTTL / time.Second), u.Channel, channelMessage}
	n, err := runInt(ctx, c.scripts.publish, c.effects, "publish on "+stream,
		[]string{stream, "{" + stream + "}:pub:" + MessageID(u.Effect)},
		append(args, flat(Fields(u))...)...)
	return n == 1, err
}

// Add appends an entry and returns its id. It is not repeated after an error, and
// the entry may exist then.
func (c *Client) Add(ctx context.Context, stream string, fields []job.Field) (string, error) {
	args := append([]any{"XADD", stream, "*"}, flat(fields)...)
	id, err := c.effects.Do(ctx, args...).Text()
	return id, fail(ctx, "add to "+stream, err)
}

func flat(fields []job.Field) []any {
	out := make([]any, 0, 2*len(fields))
	for _, f := range fields {
		out = append(out, f.Name, f.Value)
	}
	return out
}

// plainJSON encodes without escaping <, > and &: readers show the text as it is.
func plainJSON(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	// Encoding a struct of strings cannot fail.
	_ = enc.Encode(v)
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}
