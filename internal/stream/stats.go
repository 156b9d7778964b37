package stream

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nodpt/executor/internal/job"
)

// Stats describes a stream and its group for gauges.
type Stats struct {
	Length     int64 // entries in the stream, acknowledged ones included
	Pending    int64 // read and not acknowledged
	DeadLength int64 // entries in its dead-letter stream
	Lag        int64 // not read yet; -1 where Redis cannot tell (entries were deleted)
	// OldestPending is the age of the oldest pending entry by its id, 0 when there
	// is none or its id is no plausible time. Producers may choose ids, so it is
	// for display only.
	OldestPending time.Duration
}

// Stats reads the numbers of one stream. A stream or group that does not exist
// is not an error: nothing is pending then, and everything is unread.
func (c *Client) Stats(ctx context.Context, stream string) (Stats, error) {
	op := "read the numbers of " + stream
	var s Stats
	var err error
	if s.Length, err = c.commands.XLen(ctx, stream).Result(); err != nil {
		return Stats{}, fail(ctx, op, err)
	}
	if s.DeadLength, err = c.commands.XLen(ctx, DeadStream(stream)).Result(); err != nil {
		return Stats{}, fail(ctx, "read the numbers of "+DeadStream(stream), err)
	}
	s.Lag = s.Length
	pending, err := c.Pending(ctx, stream)
	if errors.Is(err, ErrNoGroup) {
		return s, nil
	}
	if err != nil {
		return Stats{}, err
	}
	s.Pending = pending.Count
	if s.OldestPending, err = c.age(ctx, pending.OldestID); err != nil {
		return Stats{}, fail(ctx, op, err)
	}
	groups, err := c.commands.XInfoGroups(ctx, stream).Result()
	if err = fail(ctx, op, err); err != nil && !errors.Is(err, ErrNoGroup) {
		return Stats{}, err
	}
	for _, g := range groups {
		if g.Name == c.group {
			s.Lag = g.Lag
		}
	}
	return s, nil
}

// age compares an entry id with the server's clock, which made most ids.
func (c *Client) age(ctx context.Context, id string) (time.Duration, error) {
	at := job.EntryTime(id)
	if at.Year() < 2000 {
		return 0, nil
	}
	now, err := c.commands.Time(ctx).Result()
	if err != nil {
		return 0, err
	}
	return max(0, now.Sub(at)), nil
}

// ServerRun identifies one life of the server. It changes when Redis was
// restarted, or when the address leads to another server: what it confirmed last
// may be lost then, although no call has failed.
func (c *Client) ServerRun(ctx context.Context) (string, error) {
	const op = "ask which Redis this is"
	info, err := c.commands.Info(ctx, "server").Result()
	if err != nil {
		return "", fail(ctx, op, err)
	}
	for line := range strings.Lines(info) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "run_id:"); ok {
			return id, nil
		}
	}
	return "", fail(ctx, op, replyError{"run id"})
}

// ServerWarnings names settings of the server that can lose jobs. It is silent
// about what the user of the connection may not ask.
func (c *Client) ServerWarnings(ctx context.Context) []string {
	var warnings []string
	if info, err := c.commands.Info(ctx, "persistence").Result(); err == nil && strings.Contains(info, "aof_enabled:0") {
		warnings = append(warnings,
			"appendonly is off: a crash of Redis loses jobs that were not started yet; set appendonly yes")
	}
	if info, err := c.commands.Info(ctx, "memory").Result(); err == nil {
		for line := range strings.Lines(info) {
			policy, ok := strings.CutPrefix(strings.TrimSpace(line), "maxmemory_policy:")
			if ok && policy != "noeviction" {
				warnings = append(warnings,
					"maxmemory-policy lets Redis drop keys when memory is short; set maxmemory-policy noeviction")
			}
		}
	}
	return warnings
}
