package stream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// aliveTTL is how long a consumer counts as alive after its last Beat.
const aliveTTL = 10 * time.Second

// ErrConsumerShared says that another live process is the same consumer of the
// group. It is no failure of the call that returns it. Jobs are neither lost nor doubled,
// but each of the processes takes entries the other has in hand for its own, and
// the entries of one that dies are not noticed while the other lives.
var ErrConsumerShared = errors.New("another live process has the same consumer name: unset CONSUMER_NAME, or make it unique for each process")

// Beat says that this consumer is alive for another 10 seconds. Call it before
// the first read and then every few seconds, or other consumers take this one's
// pending entries (ClaimDead).
//
// It returns ErrConsumerShared, after doing its work all the same, when it meets
// another process that beats under this consumer's name. A process that was
// started in place of one that has just ended does not meet it.
func (c *Client) Beat(ctx context.Context) error {
	found, err := c.commands.SetArgs(ctx, c.aliveKey(c.consumer), c.rivals.own(),
		redis.SetArgs{TTL: aliveTTL, Get: true}).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fail(ctx, "renew the alive key", err)
	}
	if c.rivals.meet(found) {
		return ErrConsumerShared
	}
	return nil
}

func (c *Client) aliveKey(consumer string) string {
	return "{executor}:alive:" + c.group + ":" + consumer
}

// rivals finds out whether another process lives under this one's consumer name.
// Each process leaves a token of its own in the alive key. Where one has left
// its own it can find another only if that was written since.
type rivals struct {
	mu    sync.Mutex
	token string
	left  bool // the own token stands in the key, or somebody has replaced it
	met   int
}

// own is this process's token.
func (r *rivals) own() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.token == "" {
		r.token = uuid.NewString()
	}
	return r.token
}

// meet notes which token a beat has replaced, and reports whether it is that of
// a living rival. One meeting is not enough: it may be the last beat of a process
// that ended when this one began, late on its way.
func (r *rivals) meet(found string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.left {
		r.left = true // what was there before says nothing
		return false
	}
	if found == "" || found == r.token {
		return false
	}
	r.met++
	return r.met > 1
}
