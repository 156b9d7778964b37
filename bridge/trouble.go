package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Kinds of trouble, as metrics name them.
const (
	troubleRedis      = "redis"
	troubleGroup      = "group_lost"
	troubleWrongType  = "wrong_type"
	troubleStoreRead  = "store_read"
	troubleStoreWrite = "store_write" // a full disk: rows can be read all the same
	troubleTemporal   = "temporal"
	troublePublish    = "publish"
	troubleChatList   = "chat_list"
)

// troubleError says which part of the system an error came from.
type troubleError struct {
	kind string
	err  error
}

func (e *troubleError) Error() string { return e.kind + ": " + e.err.Error() }
func (e *troubleError) Unwrap() error { return e.err }

// troubleLogEvery is how often the same trouble is logged while it lasts.
const troubleLogEvery = 30 * time.Second

// troubles holds what keeps a lane from working, so that each fault is logged
// when it begins and when it ends, and not at every attempt in between.
type troubles struct {
	mu   sync.Mutex
	open map[string]*trouble
}

type trouble struct {
	err    error
	since  time.Time
	logged time.Time
}

// trouble notes a fault of the lane. It may be called from any goroutine.
func (l *lane) trouble(ctx context.Context, kind string, err error) {
	l.b.metrics.BridgeError(l.role, kind)
	now := l.b.now()
	l.troubles.mu.Lock()
	t := l.troubles.open[kind]
	if t == nil {
		t = &trouble{since: now}
		l.troubles.open[kind] = t
	}
	t.err = err
	report := now.Sub(t.logged) >= troubleLogEvery
	if report {
		t.logged = now
	}
	l.troubles.mu.Unlock()
	if !report {
		return
	}
	switch kind {
	case troubleWrongType:
		l.log.ErrorContext(ctx, "the stream's key holds something else: its jobs cannot be read until somebody removes it",
			slog.String("kind", kind), slog.Any("error", err))
	case troubleChatList:
		l.log.WarnContext(ctx, "items of the chat list cannot be moved", slog.String("kind", kind), slog.Any("error", err))
	default:
		l.log.WarnContext(ctx, "intake has to wait", slog.String("kind", kind), slog.Any("error", err))
	}
}

// clear notes that these kinds of trouble are over, and reports whether there
// was any.
func (l *lane) clear(ctx context.Context, kinds ...string) bool {
	found := false
	for _, kind := range kinds {
		l.troubles.mu.Lock()
		t := l.troubles.open[kind]
		delete(l.troubles.open, kind)
		l.troubles.mu.Unlock()
		if t != nil {
			found = true
			l.log.InfoContext(ctx, "trouble is over", slog.String("kind", kind),
				slog.Duration("lasted", l.b.now().Sub(t.since)))
		}
	}
	return found
}

// current describes the trouble that lasts; nil is none.
func (t *troubles) current() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, kind := range []string{
		troubleWrongType, troubleGroup, troubleRedis,
		troubleStoreRead, troubleStoreWrite, troubleTemporal, troublePublish, troubleChatList,
	} {
		if tr := t.open[kind]; tr != nil {
			errs = append(errs, fmt.Errorf("%s: %w", kind, rootOf(tr.err)))
		}
	}
	return errors.Join(errs...)
}

// rootOf drops the kind that current names already.
func rootOf(err error) error {
	if te, ok := errors.AsType[*troubleError](err); ok {
		return te.err
	}
	return err
}
