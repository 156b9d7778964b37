package stream

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Consumer is one process in the group, as one stream sees it.
type Consumer struct {
	Name    string
	Pending int64         // entries it has read and not acknowledged
	Idle    time.Duration // since it last asked for entries
	// Alive says that it renewed its sign of life within the last 10 s. Others take
	// over what one that did not has pending.
	Alive bool
}

// Consumers lists the group's consumers of a stream by name; none where the
// stream or the group does not exist.
func (c *Client) Consumers(ctx context.Context, stream string) ([]Consumer, error) {
	op := "list the consumers of " + stream
	found, err := c.commands.XInfoConsumers(ctx, stream, c.group).Result()
	if err = fail(ctx, op, err); err != nil {
		if errors.Is(err, ErrNoGroup) {
			return nil, nil
		}
		return nil, err
	}
	list := make([]Consumer, 0, len(found))
	for _, f := range found {
		err := c.commands.Get(ctx, c.aliveKey(f.Name)).Err()
		if err != nil && !errors.Is(err, redis.Nil) {
			return nil, fail(ctx, op, err)
		}
		list = append(list, Consumer{Name: f.Name, Pending: f.Pending, Idle: f.Idle, Alive: err == nil})
	}
	slices.SortFunc(list, func(a, b Consumer) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}
