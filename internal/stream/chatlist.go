package stream

import (
	"context"

	"github.com/nodpt/executor/internal/job"
)

// MoveChat moves up to limit items from the head of the legacy chat list to the
// chat stream, as one step, and returns how many it moved. Each item becomes an
// entry source=list, data=<the item as it was>; whether it makes a job is the
// decoder's business, so nothing is lost here.
//
// The list and the stream are in different hash slots: this works on a single
// server, not on a Redis Cluster.
func (c *Client) MoveChat(ctx context.Context, list string, limit int) (int, error) {
	n, err := runInt(ctx, c.scripts.moveChat, c.effects, "move items of "+list,
		[]string{list, job.Chat.Stream(), "{executor}:chat:probe"}, limit)
	return int(n), err
}
