package store

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
)

// openSQLite opens the file that follows sqlite://, and creates it if it may.
func openSQLite(ctx context.Context, rest string, create bool) (*Store, error) {
	path, err := sqlitePath(rest)
	if err != nil {
		return nil, err
	}
	d := dialect{
		name:          sqliteName,
		migrations:    sqliteName,
		goose:         goose.DialectSQLite3,
		unlessPresent: " ON CONFLICT DO NOTHING",
		hasTables:     "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'executor_jobs'",
		oneWriter:     true,
		time:          textTime,
		reason:        sqliteReason,
	}
	d.queries = newQueries(d)
	s := &Store{dialect: d, describe: "sqlite://" + path}
	if create {
		err = createPrivate(path)
	} else if _, err = os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		err = ErrNoStore
	}
	if err != nil {
		return nil, s.fail(ctx, "open", err)
	}

	// FULL: an acknowledged job must survive a power cut. Transactions begin
	// IMMEDIATE, because a read lock that is raised later fails at once where
	// another process was faster, instead of waiting.
	writing, err := sqlitePool(path, 1, "_journal_mode=WAL&_synchronous=FULL&_txlock=immediate")
	if err != nil {
		return nil, s.fail(ctx, "open", err)
	}
	reading, err := sqlitePool(path, sqliteReads, "_query_only=true")
	if err != nil {
		return nil, errors.Join(s.fail(ctx, "open", err), writing.Close())
	}
	if err := settleJournal(ctx, writing); err != nil {
		return nil, errors.Join(s.fail(ctx, "open", err), writing.Close(), reading.Close())
	}
	s.reads, s.writes, s.writer = reading, writing, newGroupCommit(ctx, writing)
	return s, nil
}

// sqlitePath reads the path of a sqlite:// URL and makes it absolute, so that
// the start log names the file and not a place relative to somewhere.
func sqlitePath(rest string) (string, error) {
	if strings.ContainsAny(rest, "?#") {
		return "", configError(sqliteName, "sqlite:// takes a path and no parameters; write ? and # in a path as %3F and %23")
	}
	path, err := url.PathUnescape(rest)
	if err != nil || strings.ContainsRune(path, 0) {
		return "", configError(sqliteName, "the path cannot be read; write % as %25")
	}
	if path == "" || strings.HasPrefix(path, ":memory:") {
		return "", configError(sqliteName, "a file is needed, such as sqlite://executor.db: rows in memory would be lost at the end of the process")
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return "", configError(sqliteName, "the working directory is gone, so the path must be absolute")
	}
	return path, nil
}

// createPrivate makes a new file readable by its owner only, for it will hold
// answers, and finds out early whether it can be written. SQLite gives its
// side files the same mode.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func sqlitePool(path string, conns int, params string) (*sql.DB, error) {
	slashed := filepath.ToSlash(path)
	if !strings.HasPrefix(slashed, "/") {
		slashed = "/" + slashed // C:/...
	}
	file := url.URL{Scheme: "file", Path: slashed, RawQuery: "_busy_timeout=5000&" + params}
	connector, err := sqlite.NewConnector(file.String())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// settleJournal makes the first connection. Switching a new file to WAL needs
// it alone, and SQLite does not wait for that as it does for other locks.
func settleJournal(ctx context.Context, db *sql.DB) error {
	for attempt := 1; ; attempt++ {
		err := db.PingContext(ctx)
		if err == nil || !sqliteBusy(err) || attempt == migrateTries || !wait(ctx, migrateWait) {
			return err
		}
	}
}

func sqliteBusy(err error) bool {
	var refused *sqlite.Error
	return errors.As(err, &refused) && refused.Code()&0xff == 5 // SQLITE_BUSY
}

func sqliteReason(err error) reason {
	var refused *sqlite.Error
	if !errors.As(err, &refused) {
		return commonReason(err)
	}
	r := reason{code: "SQLite result " + strconv.Itoa(refused.Code()), text: "SQLite refused the statement"}
	switch refused.Code() & 0xff { // the rest is detail of the same kind
	case 5, 6: // SQLITE_BUSY, SQLITE_LOCKED
		// No conflict to try again at once: SQLite has just waited for
		// five seconds.
		r.text = "another process keeps the file locked"
	case 3, 8: // SQLITE_PERM, SQLITE_READONLY
		r.text = "the file or its directory is read-only"
	case 10: // SQLITE_IOERR
		r.text = "the disk failed"
	case 11: // SQLITE_CORRUPT
		r.text = "the file is damaged"
	case 26: // SQLITE_NOTADB
		r.text, r.cause = "the file is no SQLite database", ErrConfig
	case 13: // SQLITE_FULL
		r.text = "the disk is full"
	case 14: // SQLITE_CANTOPEN
		r.text, r.cause = "the file cannot be opened", ErrUnreachable
	case 19: // SQLITE_CONSTRAINT
		r.text = "a constraint that is not ours refused the row"
	}
	return r
}
