// Package store keeps the one row per job that says how it ended. It exists
// because Redis forgets and Temporal's retention ends: the row is the permanent
// memory by which a job is never paid for twice, and the arbiter that decides
// which of several runs speaks for a job. One type serves SQLite, PostgreSQL
// and MySQL or MariaDB; what differs between them is in the dialect, and one
// conformance suite holds them to the same behaviour.
package store

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/job"
)

// Config says where the rows are kept.
type Config struct {
	// URL names the database, as in DATABASE_URL:
	//
	//	sqlite://executor.db            a file, relative to the working directory
	//	sqlite:///var/lib/executor.db   a file, absolute
	//	postgres://user:password@host:5432/database?sslmode=verify-full
	//	mysql://user:password@host:3306/database?tls=true   (MariaDB too)
	//
	// Reserved characters in user and password are percent-encoded.
	URL string
}

// Store is the result store. It is safe for concurrent use, also by several
// processes on one database.
type Store struct {
	dialect  dialect
	describe string
	uuid     string
	reads    *sql.DB
	writes   *sql.DB // on servers the same pool as reads
	writer   writer
	closed   atomic.Bool
}

// writer runs operations in write transactions.
type writer interface {
	// do returns when op is committed. op may run more than once and must
	// then start over.
	do(ctx context.Context, op operation) error
	// close returns when nothing is being written any more.
	close()
}

// querier is what *sql.DB and *sql.Tx have in common for us.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

type operation func(ctx context.Context, tx querier) error

// Open connects to the database, brings its tables up to date and reads the
// identity of the store. Several processes may open an empty database at the
// same moment. It does not wait for a server that is not there. Errors are
// *Error; they match ErrConfig when cfg is at fault.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s, err := connect(ctx, cfg, true)
	if err != nil {
		return nil, err
	}
	if err := s.prepare(ctx, log); err != nil {
		_ = s.Close() // the first error is the one that matters
		return nil, err
	}
	log.LogAttrs(ctx, slog.LevelInfo, "result store opened",
		slog.String("database", s.Describe()),
		slog.String("dialect", s.Dialect()),
		slog.String("store", s.uuid))
	return s, nil
}

// Attach connects to a store that an executor has created, for commands that
// look at its jobs. It creates and changes nothing, so that a mistyped address
// does not become an empty database: without our tables the error matches
// ErrNoStore.
func Attach(ctx context.Context, cfg Config) (*Store, error) {
	const op = "attach"
	s, err := connect(ctx, cfg, false)
	if err != nil {
		return nil, err
	}
	_, found, err := oneText(ctx, s.reads, s.dialect.hasTables)
	if err == nil && !found {
		err = ErrNoStore
	}
	if err == nil {
		s.uuid, _, err = oneText(ctx, s.reads, s.dialect.queries.readIdentity)
	}
	if err != nil {
		_ = s.Close() // the first error is the one that matters
		return nil, s.fail(ctx, op, err)
	}
	return s, nil
}

// prepare makes the database ours.
func (s *Store) prepare(ctx context.Context, log *slog.Logger) error {
	if err := s.writes.PingContext(ctx); err != nil {
		return s.fail(ctx, "open", err)
	}
	if s.dialect.check != nil {
		if err := s.dialect.check(ctx, s.writes); err != nil {
			return s.fail(ctx, "open", err)
		}
	}
	if err := migrate(ctx, s.dialect, s.writes, log); err != nil {
		return s.fail(ctx, "migrate", err)
	}
	id, err := identity(ctx, s.dialect, s.writes)
	if err != nil {
		return s.fail(ctx, "read the store's identity", err)
	}
	s.uuid = id
	return nil
}

// Persist settles which run speaks for a job, in one transaction (DESIGN.md
// section 4):
//
//   - there is no row, or none with a terminal status: row is written;
//   - the stored row has the same effect: it stays, and is returned as Kept;
//   - it has another effect: row replaces it where its fence is newer, and is
//     Superseded where not.
//
// Whatever the verdict, the stored last entry becomes the newest of the stored
// one, row.LastEntryID and row.EntryID. The returned row is what now stands in
// the database: times in UTC and whole microseconds, text without NUL, invalid
// UTF-8 replaced and identifiers cut at their column's width.
//
// Repeating a call is harmless, which is also what to do after an error: the
// transaction may have been committed although its answer was lost. A row that
// can never be stored, one without key, effect or terminal status, gives an
// error matching ErrBadRow.
func (s *Store) Persist(ctx context.Context, row job.Row) (job.Persisted, error) {
	const op = "persist"
	row, err := clean(row)
	if err != nil {
		return job.Persisted{}, s.fail(ctx, op, err)
	}
	var out job.Persisted
	err = s.write(ctx, op, func() error {
		if s.dialect.insertAlone && !failpoint.Armed(failpoint.PersistTx) {
			// Nearly every call is a job's first outcome, and for that one
			// statement is the whole transaction.
			inserted, err := s.insert(ctx, s.reads, row)
			if err != nil {
				return err
			}
			if inserted {
				out = job.Persisted{Verdict: job.Written, Row: row}
				return nil
			}
		}
		return s.writer.do(ctx, func(ctx context.Context, tx querier) error {
			var err error
			out, err = s.settle(ctx, tx, row)
			if err == nil && out.Verdict == job.Written {
				err = failpoint.Hit(ctx, failpoint.PersistTx)
			}
			return err
		})
	})
	if err != nil {
		return job.Persisted{}, err
	}
	return out, nil
}

// settle is the rule itself, with the stored row locked.
func (s *Store) settle(ctx context.Context, tx querier, row job.Row) (job.Persisted, error) {
	if s.dialect.oneWriter {
		inserted, err := s.insert(ctx, tx, row)
		if err != nil {
			return job.Persisted{}, err
		}
		if inserted {
			return job.Persisted{Verdict: job.Written, Row: row}, nil
		}
	}
	stored, found, err := s.lock(ctx, tx, row.Key())
	if err != nil {
		return job.Persisted{}, err
	}
	if !found {
		inserted, err := s.insert(ctx, tx, row)
		if err != nil {
			return job.Persisted{}, err
		}
		if !inserted {
			return job.Persisted{}, errConflict // another process was first: look again
		}
		return job.Persisted{Verdict: job.Written, Row: row}, nil
	}

	last := newestEntry(stored.LastEntryID, row.LastEntryID)
	sameEffect := stored.Effect == row.Effect
	if !terminal(stored.Status) || !sameEffect && row.Fence.After(stored.Fence) {
		row.LastEntryID = last
		if err := s.replace(ctx, tx, row); err != nil {
			return job.Persisted{}, err
		}
		return job.Persisted{Verdict: job.Written, Row: row}, nil
	}
	if last != stored.LastEntryID {
		if err := s.setLastEntry(ctx, tx, row.Key(), last); err != nil {
			return job.Persisted{}, err
		}
		stored.LastEntryID = last
	}
	if sameEffect {
		return job.Persisted{Verdict: job.Kept, Row: stored}, nil
	}
	return job.Persisted{Verdict: job.Superseded, Row: stored}, nil
}

// RaiseEntry records that the job's entries up to entryID are dealt with. It
// never lowers the stored id, and does nothing where there is no row.
func (s *Store) RaiseEntry(ctx context.Context, key job.Key, entryID string) error {
	key, entryID = cleanKey(key), job.SafeText(entryID, maxEntryID)
	const op = "raise the last entry"
	return s.write(ctx, op, func() error {
		return s.writer.do(ctx, func(ctx context.Context, tx querier) error {
			last, found, err := s.lastEntry(ctx, tx, key)
			if err != nil || !found || job.CompareEntryIDs(entryID, last) <= 0 {
				return err
			}
			return s.setLastEntry(ctx, tx, key, entryID)
		})
	})
}

// SetDeadID records which dead-letter entry belongs to the job's row, as long
// as effect still stands there; otherwise it does nothing.
func (s *Store) SetDeadID(ctx context.Context, key job.Key, effect, deadID string) error {
	key, effect, deadID = cleanKey(key), job.SafeText(effect, maxEffect), job.SafeText(deadID, maxEntryID)
	const op = "record the dead letter"
	return s.write(ctx, op, func() error {
		return s.writer.do(ctx, func(ctx context.Context, tx querier) error {
			return s.setDead(ctx, tx, key, effect, deadID)
		})
	})
}

// Row returns the row of one job, and whether there is one.
func (s *Store) Row(ctx context.Context, key job.Key) (job.Row, bool, error) {
	rows, err := s.Rows(ctx, []job.Key{key})
	if err != nil {
		return job.Row{}, false, err
	}
	row, found := rows[key]
	return row, found, nil
}

// Rows returns the rows of those jobs that have one. Up to 64 keys are one
// query.
func (s *Store) Rows(ctx context.Context, keys []job.Key) (map[job.Key]job.Row, error) {
	rows, err := s.find(ctx, keys)
	if err != nil {
		return nil, s.fail(ctx, "read rows", err)
	}
	return rows, nil
}

// UUID identifies the store's contents, not its address: it is created with the
// tables, and processes compare it to find out that they write to different
// databases.
func (s *Store) UUID() string { return s.uuid }

// Dialect is sqlite, postgres or mysql (which includes MariaDB).
func (s *Store) Dialect() string { return s.dialect.name }

// Describe names the database for people, without its password.
func (s *Store) Describe() string { return s.describe }

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	if _, _, err := oneText(ctx, s.reads, "SELECT 1"); err != nil {
		return s.fail(ctx, "ping", err)
	}
	return nil
}

// Close commits what waits to be written and closes the connections. Calls that
// come later give an error matching ErrClosed. A second Close does nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.writer.close()
	if err := errors.Join(s.reads.Close(), s.writes.Close()); err != nil {
		return &Error{Op: "close", Dialect: s.dialect.name, Reason: s.dialect.reason(err).text}
	}
	return nil
}

// Conflicts between processes are settled by trying again. They end quickly: a
// transaction of ours holds its locks for a few round trips.
const (
	maxTries  = 8
	firstWait = 5 * time.Millisecond
)

// write runs try until it does not lose a conflict against another transaction.
func (s *Store) write(ctx context.Context, op string, try func() error) error {
	for attempt := 0; ; attempt++ {
		err := try()
		if err == nil {
			return nil
		}
		if attempt == maxTries-1 || !s.dialect.reason(err).conflict {
			return s.fail(ctx, op, err)
		}
		ceiling := firstWait << attempt
		if !wait(ctx, ceiling/2+rand.N(ceiling/2)) { //nolint:gosec // jitter, not a secret
			return s.fail(ctx, op, ctx.Err())
		}
	}
}

// wait reports whether d passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serverWriter leaves the order of concurrent transactions to the server. READ
// COMMITTED, because MySQL's default would lock the gaps between keys and let
// unrelated jobs deadlock.
type serverWriter struct{ db *sql.DB }

func (w serverWriter) do(ctx context.Context, op operation) error {
	tx, err := w.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if err := op(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

// close has nothing to wait for: closing the pool ends what still runs.
func (serverWriter) close() {}
