package stream

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nodpt/executor/internal/job"
)

// ReadNew reads up to count entries nobody in the group has read, waiting up to
// block (at most 5 s; 0 does not wait) for the first. No entries and no error
// means that none came.
//
// After an error entries may have been delivered without arriving here. They are
// pending for this consumer: read them with ReadOwn before the next ReadNew.
func (c *Client) ReadNew(ctx context.Context, stream string, count int, block time.Duration) ([]job.Entry, error) {
	args := []any{"XREADGROUP", "GROUP", c.group, c.consumer, "COUNT", count}
	args = append(args, blockArgs(block)...)
	args = append(args, "STREAMS", stream, ">")
	b, err := c.read(ctx, "read "+stream, stream, args)
	return b.Entries, err
}

// ReadOwn reads entries that were delivered to this consumer and are still
// pending, in order of their ids, beginning behind the id after; "0" begins at
// the oldest. It does not wait. Each entry read counts as delivered once more,
// and as idle for no time: to look at single entries use PendingList and Entry.
func (c *Client) ReadOwn(ctx context.Context, stream, after string, count int) (Batch, error) {
	return c.read(ctx, "read own pending entries of "+stream, stream,
		[]any{"XREADGROUP", "GROUP", c.group, c.consumer, "COUNT", count, "STREAMS", stream, after})
}

// TailUpdates reads entries behind the id after, outside of any group, waiting
// up to block (at most 5 s; 0 does not wait) for the first. LastID gives the id
// to begin with.
func (c *Client) TailUpdates(ctx context.Context, stream, after string, block time.Duration) ([]job.Entry, error) {
	args := append([]any{"XREAD", "COUNT", 100}, blockArgs(block)...)
	args = append(args, "STREAMS", stream, after)
	b, err := c.read(ctx, "follow "+stream, stream, args)
	return b.Entries, err
}

// LastID is the id of the newest entry a stream has ever had, "0-0" where there
// is no stream.
func (c *Client) LastID(ctx context.Context, stream string) (string, error) {
	info, err := c.commands.XInfoStream(ctx, stream).Result()
	if err = fail(ctx, "read the last id of "+stream, err); err != nil {
		if errors.Is(err, ErrNoGroup) {
			return "0-0", nil
		}
		return "", err
	}
	return info.LastGeneratedID, nil
}

// AutoClaim takes over entries that have been idle for at least minIdle, whoever
// owns them, up to count. It looks at a part of the pending list beginning at
// cursor ("0-0" first) and returns the cursor to go on with, "0-0" at the end.
// Ids in Deleted have left the pending list.
func (c *Client) AutoClaim(ctx context.Context, stream string, minIdle time.Duration, cursor string, count int) (Batch, string, error) {
	op := "claim idle entries of " + stream
	reply, err := c.reader.Do(ctx, "XAUTOCLAIM", stream, c.group, c.consumer,
		minIdle.Milliseconds(), cursor, "COUNT", count).Result()
	if err != nil {
		return Batch{}, "", fail(ctx, op, err)
	}
	parts, err := listReply(reply, 3) // 2 before Redis 7.0, which is the oldest supported
	if err != nil {
		return Batch{}, "", fail(ctx, op, err)
	}
	next, ok := parts[0].(string)
	if !ok {
		return Batch{}, "", fail(ctx, op, replyError{"cursor"})
	}
	b, err := entriesReply(stream, parts[1])
	if err != nil {
		return Batch{}, "", fail(ctx, op, err)
	}
	deleted, err := stringsReply(parts[2])
	if err != nil {
		return Batch{}, "", fail(ctx, op, err)
	}
	b.Deleted = append(b.Deleted, deleted...)
	return b, next, nil
}

// read sends one reading command, once.
func (c *Client) read(ctx context.Context, op, stream string, args []any) (Batch, error) {
	reply, err := c.reader.Do(ctx, args...).Result()
	if errors.Is(err, redis.Nil) {
		return Batch{}, nil
	}
	if err != nil {
		return Batch{}, fail(ctx, op, err)
	}
	b, err := streamReply(stream, reply)
	return b, fail(ctx, op, err)
}

// blockArgs leaves BLOCK out where there is nothing to wait: BLOCK 0 would wait
// for ever.
func blockArgs(block time.Duration) []any {
	ms := min(block, maxBlock).Milliseconds()
	if ms <= 0 {
		return nil
	}
	return []any{"BLOCK", ms}
}
