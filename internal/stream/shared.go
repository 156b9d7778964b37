package stream

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// What processes tell each other through Redis lives in keys of the hash slot
// {executor}.

// answerTTL is how long an answer is kept for a later attempt of the same job.
const answerTTL = time.Hour

// storeTTL is how long an announced store is remembered after the last process
// that uses it stopped announcing it.
const storeTTL = 30 * time.Second

// Lease takes the lease of that name for ttl, or renews it where this consumer
// holds it. It reports false while another consumer does.
func (c *Client) Lease(ctx context.Context, name string, ttl time.Duration) (bool, error) {
	n, err := runInt(ctx, c.scripts.lease, c.commands, "take the lease "+name,
		[]string{"{executor}:lease:" + name}, c.consumer, ttl.Milliseconds())
	return n == 1, err
}

// Unlease gives the lease up if this consumer holds it.
func (c *Client) Unlease(ctx context.Context, name string) error {
	_, err := runInt(ctx, c.scripts.unlease, c.commands, "give up the lease "+name,
		[]string{"{executor}:lease:" + name}, c.consumer)
	return err
}

// SaveAnswer keeps the answer of a language model for an hour, so that an
// attempt after a crash need not ask again.
func (c *Client) SaveAnswer(ctx context.Context, effect string, data []byte) error {
	return fail(ctx, "save an answer", c.commands.Set(ctx, answerKey(effect), data, answerTTL).Err())
}

// LoadAnswer returns the answer saved for an effect, and whether there is one.
func (c *Client) LoadAnswer(ctx context.Context, effect string) ([]byte, bool, error) {
	data, err := c.commands.Get(ctx, answerKey(effect)).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fail(ctx, "load an answer", err)
	}
	return data, true, nil
}

func answerKey(effect string) string { return "{executor}:answer:" + effect }

// SetCooldown asks all processes to leave an endpoint alone for d, rounded up to
// milliseconds. It never shortens a cool-down that is under way.
func (c *Client) SetCooldown(ctx context.Context, endpointKey string, d time.Duration) error {
	ms := max(1, (d + time.Millisecond - 1).Milliseconds())
	_, err := runInt(ctx, c.scripts.coolDown, c.commands, "set a cool-down", []string{coolDownKey(endpointKey)}, ms)
	return err
}

// Cooldown is how long the endpoint is still to be left alone; 0 when it is not.
func (c *Client) Cooldown(ctx context.Context, endpointKey string) (time.Duration, error) {
	ms, err := runInt(ctx, c.scripts.readCoolDown, c.commands, "read a cool-down", []string{coolDownKey(endpointKey)})
	return time.Duration(ms) * time.Millisecond, err
}

func coolDownKey(endpointKey string) string { return "{executor}:cooldown:" + endpointKey }

// AnnounceStore says which result store this process writes to. If processes
// that use another store are alive, other is that store's id and nothing is
// announced: two stores behind one Redis would each miss what the other has
// done. Repeat it every 10 seconds or so; an announcement ends after 30, so the
// store can be moved once every process has stopped.
func (c *Client) AnnounceStore(ctx context.Context, storeUUID string) (other string, err error) {
	return runString(ctx, c.scripts.store, c.commands, "announce the result store",
		[]string{"{executor}:store"}, storeUUID, storeTTL.Milliseconds())
}
