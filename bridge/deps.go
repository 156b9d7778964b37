package bridge

import (
	"context"
	"time"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// Reader reads streams through the consumer group.
type Reader interface {
	EnsureGroup(ctx context.Context, key string) error
	ReadNew(ctx context.Context, key string, count int, block time.Duration) ([]job.Entry, error)
	ReadOwn(ctx context.Context, key, after string, count int) (stream.Batch, error)
	Entry(ctx context.Context, key, id string) (job.Entry, bool, error)
}

// Claimer keeps this consumer known as alive and takes over from those that are
// not.
type Claimer interface {
	Beat(ctx context.Context) error
	ClaimDead(ctx context.Context, key string, limit int) (stream.Batch, error)
	AutoClaim(ctx context.Context, key string, minIdle time.Duration, cursor string, count int) (stream.Batch, string, error)
}

// Keeper looks after pending entries without reading them.
type Keeper interface {
	Refresh(ctx context.Context, key, consumer string, ids ...string) error
	Restore(ctx context.Context, key string, ids ...string) error
	DropIdleConsumers(ctx context.Context, key string, idle time.Duration) (int, error)
}

// Ledger says what is pending.
type Ledger interface {
	Pending(ctx context.Context, key string) (stream.PendingSummary, error)
	PendingList(ctx context.Context, key, after string, count int) ([]stream.PendingEntry, error)
}

// Auditor looks at entries outside of the group, to find those it has lost.
type Auditor interface {
	Delivered(ctx context.Context, key string) (string, error)
	Range(ctx context.Context, key, from, to string, count int) ([]job.Entry, error)
	Audited(ctx context.Context, key string) (string, error)
	SetAudited(ctx context.Context, key, id string) error
}

// Settler publishes outcomes and acknowledges entries.
type Settler interface {
	Publish(ctx context.Context, u stream.Update) (bool, error)
	DeadLetter(ctx context.Context, d stream.DeadLetter) (string, error)
	Ack(ctx context.Context, key, group string, ids ...string) (int64, error)
}

// Leaser gives one of several bridges the turn.
type Leaser interface {
	Lease(ctx context.Context, name string, ttl time.Duration) (bool, error)
	Unlease(ctx context.Context, name string) error
}

// Identifier tells one life of Redis from the next.
type Identifier interface {
	ServerRun(ctx context.Context) (string, error)
}

// ChatMover moves items of the legacy chat list into the chat stream.
type ChatMover interface {
	MoveChat(ctx context.Context, list string, limit int) (int, error)
}

// Redis is all the bridge needs of *stream.Client.
type Redis interface {
	Reader
	Claimer
	Keeper
	Ledger
	Auditor
	Settler
	Leaser
	Identifier
	ChatMover
	Group() string
	Consumer() string
}

// Rows is what the bridge needs of *store.Store.
type Rows interface {
	Rows(ctx context.Context, keys []job.Key) (map[job.Key]job.Row, error)
	Persist(ctx context.Context, row job.Row) (job.Persisted, error)
	RaiseEntry(ctx context.Context, key job.Key, entryID string) error
	SetDeadID(ctx context.Context, key job.Key, effect, deadID string) error
}

// Metrics counts what the bridge sees: the part of *telemetry.Metrics it uses.
type Metrics interface {
	JobFinished(role job.Role, status job.Status, code string, sinceEnqueued time.Duration)
	EntryRejected(role job.Role, reason string)
	EntryDuplicate(role job.Role, kind string)
	EntryNormalised(role job.Role, note string)
	EntriesLost(role job.Role, n int)
	EntriesUnaccounted(role job.Role, kind string, n int)
	BridgeError(role job.Role, kind string)
}
