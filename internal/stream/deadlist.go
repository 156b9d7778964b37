package stream

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nodpt/executor/internal/job"
)

// Dead is a dead letter as it stands in its stream.
type Dead struct {
	Stream    string    // the original stream, for example jobs:agent
	ID        string    // the dead letter's id in DeadStream(Stream)
	EntryID   string    // the entry it was made of
	FailedAt  time.Time // zero where the field is no time
	Reason    string
	Error     string
	Truncated bool // Fields are not whole
	// Fields are those of the original entry, under their own names. They are
	// content.
	Fields []job.Field
}

// DeadRange chooses dead letters of one stream.
type DeadRange struct {
	// Since leaves out those added earlier.
	Since time.Time
	// Before continues behind a page: it is the id of the page's last one.
	Before string
	// Limit is the size of a page; 0 is 100.
	Limit int
}

// maxDeadPage bounds a page by what it may weigh: a dead letter takes up to 70 KiB.
const maxDeadPage = 100

// DeadLetters reads dead letters of a stream, the newest first. A page shorter
// than the limit is the last one.
func (c *Client) DeadLetters(ctx context.Context, stream string, r DeadRange) ([]Dead, error) {
	op := "read " + DeadStream(stream)
	from, to := "-", "+"
	if !r.Since.IsZero() {
		from = strconv.FormatInt(max(0, r.Since.UnixMilli()), 10)
	}
	if r.Before != "" {
		to = "(" + r.Before
	}
	count := r.Limit
	if count <= 0 || count > maxDeadPage {
		count = maxDeadPage
	}
	reply, err := c.commands.Do(ctx, "XREVRANGE", DeadStream(stream), to, from, "COUNT", count).Result()
	if err != nil {
		return nil, fail(ctx, op, err)
	}
	b, err := entriesReply(stream, reply)
	if err != nil {
		return nil, fail(ctx, op, err)
	}
	letters := make([]Dead, 0, len(b.Entries))
	for _, e := range b.Entries {
		letters = append(letters, parseDead(stream, e))
	}
	return letters, nil
}

// ReadDead reads one dead letter. It reports false where it is gone.
func (c *Client) ReadDead(ctx context.Context, stream, id string) (Dead, bool, error) {
	e, found, err := c.Entry(ctx, DeadStream(stream), id)
	if err != nil || !found {
		return Dead{}, false, err
	}
	return parseDead(stream, e), true, nil
}

// DropDead deletes dead letters for good and returns how many there were.
func (c *Client) DropDead(ctx context.Context, stream string, ids ...string) (int64, error) {
	var dropped int64
	for batch := range slices.Chunk(ids, maxDeadPage) {
		n, err := c.commands.XDel(ctx, DeadStream(stream), batch...).Result()
		dropped += n
		if err != nil {
			return dropped, fail(ctx, "delete from "+DeadStream(stream), err)
		}
	}
	return dropped, nil
}

// ErrBadID says that a text is no id of an entry.
var ErrBadID = errors.New("not an entry id: use <milliseconds>-<sequence>")

// CheckID reports whether Redis would take the text for the id of one entry.
func CheckID(id string) error {
	ms, seq, found := strings.Cut(id, "-")
	if !found || !isUint(ms) || !isUint(seq) {
		return ErrBadID
	}
	return nil
}

func isUint(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}

// parseDead undoes what DeadLetter.fields does.
func parseDead(stream string, e job.Entry) Dead {
	d := Dead{Stream: stream, ID: e.ID}
	for _, f := range e.Fields {
		if name, renamed := strings.CutPrefix(f.Name, deadPrefix); renamed && isDeadName(name) {
			d.Fields = append(d.Fields, job.Field{Name: name, Value: f.Value})
			continue
		}
		switch strings.ToLower(f.Name) {
		case "original_id":
			d.EntryID = f.Value
		case "failed_at":
			d.FailedAt, _ = time.Parse(time.RFC3339Nano, f.Value) // written by hand, it may be anything
		case "reason":
			d.Reason = f.Value
		case "error":
			d.Error = f.Value
		case "truncated":
			d.Truncated = f.Value != ""
		default:
			d.Fields = append(d.Fields, f)
		}
	}
	return d
}
