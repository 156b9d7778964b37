package stream

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/nodpt/executor/internal/job"
)

// Backlog reads the entries from the oldest one on that the group has not
// acknowledged, read or not; entries behind that one are included even where they
// are acknowledged. It ends when more returns false, after limit entries, or at
// the end of the stream, and reports whether it got as far as the caller wanted:
// until more was satisfied, or to the end. Nothing is delivered by it.
func (c *Client) Backlog(ctx context.Context, stream string, limit int, more func(job.Entry) bool) (complete bool, err error) {
	after, err := c.acknowledgedUpTo(ctx, stream)
	if err != nil {
		return false, err
	}
	for limit > 0 {
		entries, err := c.TailUpdates(ctx, stream, after, 0)
		if err != nil {
			return false, err
		}
		if len(entries) == 0 {
			return true, nil
		}
		for _, e := range entries[:min(len(entries), limit)] {
			if !more(e) {
				return true, nil
			}
			after = e.ID
		}
		limit -= len(entries)
	}
	return false, nil
}

// acknowledgedUpTo is an id behind which every entry lies that the group has not
// acknowledged.
func (c *Client) acknowledgedUpTo(ctx context.Context, stream string) (string, error) {
	pending, err := c.Pending(ctx, stream)
	switch {
	case errors.Is(err, ErrNoGroup):
		return "0", nil
	case err != nil:
		return "", err
	case pending.OldestID != "":
		return before(pending.OldestID), nil
	}
	return c.Delivered(ctx, stream)
}

// before is the id that comes right before another one: XREAD has no inclusive
// form.
func before(id string) string {
	m, s, _ := strings.Cut(id, "-")
	ms, err := strconv.ParseUint(m, 10, 64)
	if err != nil {
		return "0"
	}
	seq, err := strconv.ParseUint(s, 10, 64)
	switch {
	case err != nil:
		return "0"
	case seq > 0:
		return strconv.FormatUint(ms, 10) + "-" + strconv.FormatUint(seq-1, 10)
	case ms > 0:
		return strconv.FormatUint(ms-1, 10) + "-" + strconv.FormatUint(math.MaxUint64, 10)
	default:
		return "0"
	}
}
