// Package stream is everything this program does in Redis: consumer groups,
// acknowledgement, publishing once, dead letters, leases and the limit over all
// processes. It is the only importer of the Redis library, because that library
// repeats commands after a lost reply unless told otherwise, and here a repeated
// command hides a job or doubles an answer. The rules that avoid it are kept in
// one place: three connection pools with different retry settings, scripts that
// may be repeated, and errors that never carry an argument of a command.
package stream

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Config is what a Client needs to know.
type Config struct {
	// Connection is host:port, a redis:// or rediss:// URL, or StackExchange.Redis
	// syntax; see ParseConnection.
	Connection string
	// CAFile is a PEM file with the certificate authorities to trust instead of
	// the system's. It has an effect only where the connection uses TLS.
	CAFile string
	// Group is the consumer group; default DefaultGroup.
	Group string
	// Consumer names this process within the group and must be unique: two
	// processes of one name would read each other's pending entries. Default: a
	// random name.
	Consumer string
	// ClientName is shown by CLIENT LIST; default the Consumer.
	ClientName string
}

// DefaultGroup is the consumer group all executors share unless told otherwise.
const DefaultGroup = "executor-group"

const (
	// maxBlock is the longest a read waits for entries. Cancelling a context does
	// not interrupt a blocked read, so this is also how long a
	// shutdown may wait for one.
	maxBlock = 5 * time.Second
	// readerTimeout ends a read on a connection whose other side is gone. It must
	// exceed maxBlock.
	readerTimeout = maxBlock + 5*time.Second
	// readerPool holds one blocked connection per stream, one that follows the
	// updates, and some for claiming.
	readerPool = 8
)

// Client talks to one Redis server as one consumer of one group. It is safe for
// concurrent use. Methods that block or do I/O take a context; its deadline is
// honoured, its cancellation at the latest when the command in flight ends.
type Client struct {
	group    string
	consumer string
	log      *slog.Logger
	scripts  scripts
	rivals   rivals

	handshakes *tlsDialer // nil for clear text

	// reader reads, claims and never repeats a command: a repeated XREADGROUP
	// returns the next entry and leaves the first hidden in the pending list.
	reader *redis.Client
	// effects adds entries. It never repeats a command either; callers retry,
	// which is safe because what they call is a script that acts once.
	effects *redis.Client
	// commands does the rest, where repeating a command does no harm.
	commands *redis.Client
}

// Open prepares a client. It reads CAFile but does not connect: an unreachable
// server shows at the first call, or at Ping. Warnings about the connection
// string go to log.
//
// Open also routes the Redis library's own messages to log. That is a setting of
// the library as a whole, so the last client opened receives them all.
func Open(cfg Config, log *slog.Logger) (*Client, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	conn, err := ParseConnection(cfg.Connection)
	if err != nil {
		return nil, err
	}
	for _, warning := range conn.Warnings {
		log.Warn("Redis connection string", slog.String("warning", warning))
	}
	tlsConfig, err := conn.tlsConfig(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	if cfg.CAFile != "" && !conn.TLS {
		log.Warn("REDIS_CA_FILE has no effect: the Redis connection does not use TLS; use rediss:// or ssl=true")
	}
	redis.SetLogger(libraryLogger{log: log})
	var handshakes *tlsDialer
	if tlsConfig != nil {
		handshakes = newTLSDialer(conn, tlsConfig)
	}

	consumer := cmp.Or(cfg.Consumer, "executor-"+uuid.NewString())
	options := func(change func(*redis.Options)) *redis.Client {
		o := &redis.Options{
			Addr:       conn.Addr,
			Username:   conn.Username,
			Password:   conn.Password,
			DB:         conn.DB,
			TLSConfig:  tlsConfig,
			ClientName: clientName(cmp.Or(cfg.ClientName, conn.ClientName, consumer)),
			// RESP2 gives raw replies the same shape on every server version, and
			// no pushed frames between them.
			Protocol:                 2,
			DialTimeout:              conn.DialTimeout,
			ContextTimeoutEnabled:    true,
			DisableIdentity:          true, // CLIENT SETINFO needs a right of its own
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		}
		if handshakes != nil {
			o.Dialer = handshakes.dial
			o.DialerRetries = 1 // a handshake that nobody answers takes long enough once
		}
		change(o)
		return redis.NewClient(o)
	}
	return &Client{
		group:      cmp.Or(cfg.Group, DefaultGroup),
		consumer:   consumer,
		log:        log,
		scripts:    newScripts(),
		handshakes: handshakes,
		reader: options(func(o *redis.Options) {
			o.MaxRetries = -1
			o.PoolSize = readerPool
			o.ReadTimeout = readerTimeout
		}),
		effects:  options(func(o *redis.Options) { o.MaxRetries = -1 }),
		commands: options(func(*redis.Options) {}),
	}, nil
}

// Close closes all connections. Calls in flight end with ErrClosed or
// ErrUnavailable.
func (c *Client) Close() error {
	err := errors.Join(c.reader.Close(), c.effects.Close(), c.commands.Close())
	if err != nil {
		return fail(context.Background(), "close the Redis connections", err)
	}
	return nil
}

// Ping asks the server for a sign of life.
func (c *Client) Ping(ctx context.Context) error {
	const op = "ping Redis"
	err := fail(ctx, op, c.commands.Ping(ctx).Err())
	if errors.Is(err, context.DeadlineExceeded) && c.handshakes != nil {
		// A server that does not speak TLS often just waits for more, longer than
		// the caller does.
		if failed := c.handshakes.lastFailure(); failed != nil {
			return fail(context.WithoutCancel(ctx), op, failed)
		}
	}
	return err
}

// Group is the name of the consumer group.
func (c *Client) Group() string { return c.group }

// Consumer is this process's name within the group.
func (c *Client) Consumer() string { return c.consumer }

// clientName replaces what CLIENT SETNAME refuses: anything but printable ASCII
// without spaces.
func clientName(name string) string {
	b := []byte(name)
	for i, ch := range b {
		if ch <= ' ' || ch > '~' {
			b[i] = '_'
		}
	}
	return string(b)
}

// libraryLogger passes on what the Redis library has to say without its
// arguments, which may hold commands, replies or addresses with credentials.
// The format is a constant of the library and safe.
type libraryLogger struct{ log *slog.Logger }

func (l libraryLogger) Printf(ctx context.Context, format string, _ ...any) {
	// Not a warning: whoever made the call reports what came of it.
	l.log.DebugContext(ctx, "Redis client library", slog.String("note", format))
}
