package contestant

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	readCount = 100         // entries of one read
	readBlock = time.Second // how long a read waits, and the end of the context with it
)

// JobsStream is the stream that a contestant reads, with a group of its own name.
// The engine makes its jobs itself, and those of the queue come through Enqueue.
func JobsStream(name string) string { return name + ":jobs" }

// UpdatesStream is the stream that a contestant writes its updates to.
func UpdatesStream(name string) string { return name + ":updates" }

// streams are a contestant's entries and updates.
type streams struct {
	name  string
	redis *redis.Client
}

func newStreams(name, address string) streams {
	return streams{name: name, redis: redis.NewClient(&redis.Options{
		Addr: address,
		// One command less for each connection.
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})}
}

func (s streams) close() { _ = s.redis.Close() }

// createGroup creates stream and group where there are none.
func (s streams) createGroup(ctx context.Context) error {
	err := s.redis.XGroupCreateMkStream(ctx, JobsStream(s.name), s.name, "0").Err()
	if err != nil && !strings.HasPrefix(err.Error(), "BUSYGROUP") {
		return fmt.Errorf("create group: %w", err)
	}
	return nil
}

// read waits for new entries; none is no error.
func (s streams) read(ctx context.Context) ([]redis.XMessage, error) {
	found, err := s.redis.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: s.name, Consumer: "consumer", Streams: []string{JobsStream(s.name), ">"},
		Count: readCount, Block: readBlock,
	}).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("read: %w", err)
	}
	if len(found) == 0 {
		return nil, nil
	}
	return found[0].Messages, nil
}

// publish adds the update that tells the answer, with the fields of the project's
// contract.
func (s streams) publish(ctx context.Context, j Job, a Answer) error {
	err := s.redis.XAdd(ctx, &redis.XAddArgs{Stream: UpdatesStream(s.name), Values: []string{
		"MessageId", uuid.NewString(),
		"NodeId", j.NodeID,
		"ProjectId", j.ProjectID,
		"UserId", j.UserID,
		"ClientConnectionId", j.ConnectionID,
		"WorkflowGroup", j.WorkflowID,
		"Type", "result",
		"Payload", a.Text,
		"Timestamp", time.Now().UTC().Format("2006-01-02T15:04:05.0000000Z"),
		"JobId", j.ID,
		"Role", role,
	}}).Err()
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

func (s streams) acknowledge(ctx context.Context, entryID string) error {
	if err := s.redis.XAck(ctx, JobsStream(s.name), s.name, entryID).Err(); err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	return nil
}
