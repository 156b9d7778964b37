package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/pressly/goose/v3"
)

// The migrations of each dialect. One that has been released is never edited.
// SQLite has no lock that spans goose's transactions, so there a migration may
// be tried by two processes at once: its statements must fail, not add up, when
// they find their work done.
//
//go:embed migrations
var migrations embed.FS

// versionTable is where goose keeps its books. Like every table of ours it
// begins with executor_, because the database may be shared.
const versionTable = "executor_goose_db_version"

// Attempts to migrate where two processes may collide.
const (
	migrateTries = 10
	migrateWait  = 100 * time.Millisecond
)

// migrate brings the tables up to date.
func migrate(ctx context.Context, d dialect, db *sql.DB, log *slog.Logger) error {
	dir, err := fs.Sub(migrations, "migrations/"+d.migrations)
	if err != nil {
		return err
	}
	options := []goose.ProviderOption{
		goose.WithTableName(versionTable),
		goose.WithDisableGlobalRegistry(true),
		goose.WithSlog(log),
	}
	if d.migrating != nil {
		options = append(options, goose.WithSessionLocker(d.migrating))
	}
	for attempt := 1; ; attempt++ {
		provider, err := goose.NewProvider(d.goose, db, dir, options...)
		if err != nil {
			return err
		}
		applied, err := provider.Up(ctx)
		if err == nil {
			for _, m := range applied {
				log.LogAttrs(ctx, slog.LevelInfo, "migrated the result store",
					slog.Int64("version", m.Source.Version), slog.Duration("took", m.Duration))
			}
			return nil
		}
		collided := d.migrating == nil || halfMade(err)
		if !collided || attempt == migrateTries || !wait(ctx, migrateWait) {
			return err
		}
	}
}

// halfMade reports that goose found its table without the row it begins with. It
// looks before it takes the lock, and MySQL shows a table that is just being made.
// The error has no type.
func halfMade(err error) bool { return strings.Contains(err.Error(), "missing zero version migration") }

// sessionLock is a lock of the database server that lives as long as the
// connection that took it. Unlike goose's own lockers it waits in the server
// instead of asking every five seconds.
type sessionLock struct{ lock, unlock string }

// SessionLock implements lock.SessionLocker.
func (l sessionLock) SessionLock(ctx context.Context, conn *sql.Conn) error {
	var granted sql.NullInt64
	if err := conn.QueryRowContext(ctx, l.lock).Scan(&granted); err != nil {
		return fmt.Errorf("take the migration lock: %w", err)
	}
	if granted.Int64 != 1 {
		return errMigrationLock
	}
	return nil
}

// SessionUnlock implements lock.SessionLocker.
func (l sessionLock) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, l.unlock)
	return err
}

// identity returns the uuid of the store's contents and creates it where it is
// missing. Of several processes that try, the first decides.
func identity(ctx context.Context, d dialect, db *sql.DB) (string, error) {
	id, found, err := oneText(ctx, db, d.queries.readIdentity)
	if err != nil || found {
		return id, err
	}
	if _, err := insertFirst(ctx, d, db, d.queries.rememberIdentity, uuid.NewString()); err != nil {
		return "", err
	}
	id, _, err = oneText(ctx, db, d.queries.readIdentity)
	return id, err
}
