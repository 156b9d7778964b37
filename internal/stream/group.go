package stream

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nodpt/executor/internal/job"
)

// EnsureGroup creates the group, and the stream where it is missing, unless they
// exist. The group starts at the beginning of the stream: entries added before
// it was created are jobs too, and rows answer those that were done already.
func (c *Client) EnsureGroup(ctx context.Context, stream string) error {
	err := c.commands.XGroupCreateMkStream(ctx, stream, c.group, "0").Err()
	if err != nil && redis.HasErrorPrefix(err, "BUSYGROUP") {
		return nil
	}
	return fail(ctx, "create the group on "+stream, err)
}

// Ack acknowledges entries and returns how many were pending. group is the one
// they were read through; empty means the client's own. Fewer than given is no
// failure: somebody else acknowledged them, or the group is gone, which Redis
// does not tell apart.
func (c *Client) Ack(ctx context.Context, stream, group string, ids ...string) (int64, error) {
	if len(ids) == 0 {
		return 0, nil
	}
	n, err := c.commands.XAck(ctx, stream, cmp.Or(group, c.group), ids...).Result()
	return n, fail(ctx, "acknowledge on "+stream, err)
}

// Refresh resets the idle time of entries that consumer owns and that are being
// worked on, so that nobody claims them. Delivery counts stay as they are.
// Entries that are no longer pending are passed over; pending ids whose entries
// are gone leave the pending list.
func (c *Client) Refresh(ctx context.Context, stream, consumer string, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	err := c.commands.XClaimJustID(ctx, &redis.XClaimArgs{
		Stream: stream, Group: c.group, Consumer: consumer, MinIdle: 0, Messages: ids,
	}).Err()
	return fail(ctx, "refresh pending entries of "+stream, err)
}

// Restore makes entries pending for this consumer that are not pending for
// anybody: their consumer was deleted, which drops its entries without a word, or
// they were acknowledged meanwhile. Ids whose entries are gone are passed over.
// Do not give it entries that another consumer has: it would take them.
func (c *Client) Restore(ctx context.Context, stream string, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	args := []any{"XCLAIM", stream, c.group, c.consumer, 0}
	for _, id := range ids {
		args = append(args, id)
	}
	err := c.reader.Do(ctx, append(args, "FORCE", "JUSTID")...).Err()
	return fail(ctx, "make entries of "+stream+" pending again", err)
}

// PendingSummary is the state of a group's pending list.
type PendingSummary struct {
	Count     int64            // entries read and not acknowledged, over all consumers
	OldestID  string           // empty when nothing is pending
	Consumers map[string]int64 // entries per consumer that has any
}

// Pending summarises what the group has read and not acknowledged.
func (c *Client) Pending(ctx context.Context, stream string) (PendingSummary, error) {
	p, err := c.commands.XPending(ctx, stream, c.group).Result()
	if err != nil {
		return PendingSummary{}, fail(ctx, "count pending entries of "+stream, err)
	}
	return PendingSummary{Count: p.Count, OldestID: p.Lower, Consumers: p.Consumers}, nil
}

// PendingEntry is one entry of the pending list.
type PendingEntry struct {
	ID         string
	Consumer   string
	Idle       time.Duration // since the last delivery, claim or refresh
	Deliveries int64
}

// PendingList lists pending entries of all consumers in order of their ids,
// beginning behind the id after; "" or "0" begins at the oldest.
func (c *Client) PendingList(ctx context.Context, stream, after string, count int) ([]PendingEntry, error) {
	start := "-"
	if after != "" && after != "0" {
		start = "(" + after
	}
	found, err := c.commands.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: stream, Group: c.group, Start: start, End: "+", Count: int64(count),
	}).Result()
	if err != nil {
		return nil, fail(ctx, "list pending entries of "+stream, err)
	}
	list := make([]PendingEntry, 0, len(found))
	for _, p := range found {
		list = append(list, PendingEntry{ID: p.ID, Consumer: p.Consumer, Idle: p.Idle, Deliveries: p.RetryCount})
	}
	return list, nil
}

// Entry reads one entry. It reports false where the entry or the stream is gone.
func (c *Client) Entry(ctx context.Context, stream, id string) (job.Entry, bool, error) {
	op := "read an entry of " + stream
	reply, err := c.commands.Do(ctx, "XRANGE", stream, id, id).Result()
	if err != nil {
		return job.Entry{}, false, fail(ctx, op, err)
	}
	b, err := entriesReply(stream, reply)
	if err != nil || len(b.Entries) == 0 {
		return job.Entry{}, false, fail(ctx, op, err)
	}
	return b.Entries[0], true, nil
}

// Range reads entries from one id to another, both included, in order and at most
// count of them, without delivering them. An id behind "(" is left out.
func (c *Client) Range(ctx context.Context, stream, from, to string, count int) ([]job.Entry, error) {
	op := "read entries of " + stream
	reply, err := c.commands.Do(ctx, "XRANGE", stream, from, to, "COUNT", count).Result()
	if err != nil {
		return nil, fail(ctx, op, err)
	}
	b, err := entriesReply(stream, reply)
	return b.Entries, fail(ctx, op, err)
}

// Delivered is the newest id that the group was given, "0-0" where there is no
// group or no stream.
func (c *Client) Delivered(ctx context.Context, stream string) (string, error) {
	groups, err := c.commands.XInfoGroups(ctx, stream).Result()
	if err = fail(ctx, "ask how far "+stream+" was read", err); err != nil && !errors.Is(err, ErrNoGroup) {
		return "", err
	}
	for _, g := range groups {
		if g.Name == c.group {
			return g.LastDeliveredID, nil
		}
	}
	return "0-0", nil
}

// Audited is the id that SetAudited was last given, "0-0" if it never was or Redis
// has forgotten.
func (c *Client) Audited(ctx context.Context, stream string) (string, error) {
	id, err := c.commands.Get(ctx, c.auditKey(stream)).Result()
	if errors.Is(err, redis.Nil) {
		return "0-0", nil
	}
	return id, fail(ctx, "ask how far "+stream+" was looked through", err)
}

// SetAudited remembers up to which id the entries of a stream were looked through
// for those the group has lost.
func (c *Client) SetAudited(ctx context.Context, stream, id string) error {
	err := c.commands.Set(ctx, c.auditKey(stream), id, 0).Err()
	return fail(ctx, "note how far "+stream+" was looked through", err)
}

func (c *Client) auditKey(stream string) string {
	return "{executor}:audited:" + c.group + ":" + stream
}

// ClaimDead takes over entries of consumers that have stopped beating, at most
// limit of them; this consumer is never counted as dead. Taking counts as one more
// delivery. Call it until it returns nothing.
func (c *Client) ClaimDead(ctx context.Context, stream string, limit int) (Batch, error) {
	op := "take over entries of " + stream
	dead, err := c.deadConsumers(ctx, stream)
	if err != nil {
		return Batch{}, fail(ctx, op, err)
	}
	var all Batch
	for _, name := range dead {
		left := limit - len(all.Entries) - len(all.Deleted)
		if left <= 0 {
			break
		}
		reply, err := run(ctx, c.scripts.claim, c.reader, op, []string{stream}, c.group, name, c.consumer, left)
		if err != nil {
			// What was claimed before is ours already and will be found by ReadOwn.
			return Batch{}, err
		}
		parts, err := listReply(reply, 2)
		if err != nil {
			return Batch{}, fail(ctx, op, err)
		}
		b, err := entriesReply(stream, parts[0])
		if err != nil {
			return Batch{}, fail(ctx, op, err)
		}
		deleted, err := stringsReply(parts[1])
		if err != nil {
			return Batch{}, fail(ctx, op, err)
		}
		all.Entries = append(all.Entries, b.Entries...)
		all.Deleted = append(all.Deleted, deleted...)
	}
	return all, nil
}

// deadConsumers are those with pending entries and no alive key, in order of
// their names.
func (c *Client) deadConsumers(ctx context.Context, stream string) ([]string, error) {
	consumers, err := c.commands.XInfoConsumers(ctx, stream, c.group).Result()
	if err != nil {
		return nil, err
	}
	var dead []string
	for _, consumer := range consumers {
		if consumer.Pending == 0 || consumer.Name == c.consumer {
			continue
		}
		// Alive keys are in another hash slot than the stream, so they are read one
		// by one and not in the script that claims. A consumer that beats again in
		// between loses entries that it has in hand, which is harmless: starting a
		// job twice starts it once.
		err := c.commands.Get(ctx, c.aliveKey(consumer.Name)).Err()
		switch {
		case errors.Is(err, redis.Nil):
			dead = append(dead, consumer.Name)
		case err != nil:
			return nil, err
		}
	}
	slices.SortFunc(dead, strings.Compare)
	return dead, nil
}

// DropIdleConsumers deletes the group's consumers that own no pending entry and
// have been idle for at least that long, and returns how many. This consumer
// stays.
func (c *Client) DropIdleConsumers(ctx context.Context, stream string, idle time.Duration) (int, error) {
	n, err := runInt(ctx, c.scripts.dropIdle, c.commands, "drop idle consumers of "+stream,
		[]string{stream}, c.group, idle.Milliseconds(), c.consumer)
	return int(n), err
}
