package store

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
)

// What an *Error can match with errors.Is, besides the context errors.
var (
	// ErrConfig means that DATABASE_URL itself is at fault.
	ErrConfig = errors.New("store: bad database url")
	// ErrUnreachable means that the database does not answer: the server is
	// down, the network is cut, the file cannot be opened.
	ErrUnreachable = errors.New("store: database unreachable")
	// ErrClosed means that the store was closed before the call.
	ErrClosed = errors.New("store: closed")
	// ErrNoStore means that the database answers and holds no executor's rows.
	ErrNoStore = errors.New("store: no rows of an executor there")
	// ErrBadRow means that the row can never be stored: do not retry.
	ErrBadRow = errors.New("store: bad row")
)

// What this package tells itself.
var (
	errConflict      = errors.New("another process wrote first")
	errUnreadable    = errors.New("a column holds a value of another type than it was created with")
	errMigrationLock = errors.New("another process has been migrating the database for five minutes")
)

// Error says what the store could not do and what to look at. Database servers
// quote values in their messages ("Duplicate entry '…'"), so none of their text
// is kept: only their code, and a reason in our words.
type Error struct {
	Op      string // what was attempted: "open", "persist"
	Dialect string // empty where the URL does not tell
	Code    string // SQLSTATE, MySQL error number or SQLite result code; empty if it was not the database that refused
	Reason  string // why, safe to show and to log
	cause   error  // one of the errors above or a context error, or nil
}

// Error implements error. It ends with the setting to look at, unless only
// the caller's own context or row is at fault.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("store: " + e.Op)
	if e.Dialect != "" {
		b.WriteString(" (" + e.Dialect + ")")
	}
	b.WriteString(": " + e.Reason)
	if e.Code != "" {
		b.WriteString(" [" + e.Code + "]")
	}
	switch {
	case errors.Is(e.cause, context.Canceled), errors.Is(e.cause, ErrClosed), errors.Is(e.cause, ErrBadRow):
	case errors.Is(e.cause, ErrConfig):
		b.WriteString("; correct DATABASE_URL")
	default:
		b.WriteString("; check DATABASE_URL and its database")
	}
	return b.String()
}

// Unwrap returns the error it matches, which never carries content.
func (e *Error) Unwrap() error { return e.cause }

// reason is what a dialect makes of an error of its driver.
type reason struct {
	text      string
	code      string
	cause     error
	conflict  bool // lost against a concurrent transaction: try again at once
	duplicate bool // an insert met an existing key
}

// fail types err once, at the edge of the package.
func (s *Store) fail(ctx context.Context, op string, err error) error {
	if typed := new(Error); errors.As(err, &typed) {
		return typed
	}
	e := &Error{Op: op, Dialect: s.dialect.name}
	switch {
	case errors.Is(err, ErrBadRow):
		e.Reason, e.cause = strings.TrimPrefix(err.Error(), badRowPrefix), ErrBadRow
	case errors.Is(err, ErrNoStore):
		e.Reason, e.cause = "there are no jobs of an executor: the address is wrong, or no executor has run yet", ErrNoStore
	case errors.Is(err, ErrClosed):
		e.Reason, e.cause = "the store is closed", ErrClosed
	case ctx.Err() != nil:
		// What the driver says then depends on where the cancellation met it.
		e.Reason, e.cause = "gave up waiting for the database", ctx.Err()
		if errors.Is(ctx.Err(), context.Canceled) {
			e.Reason = "canceled"
		}
	default:
		r := s.dialect.reason(err)
		if r.code == "" && r.cause == nil && s.closed.Load() {
			r.text, r.cause = "the store is closed", ErrClosed // database/sql has no error value for it
		}
		e.Reason, e.Code, e.cause = r.text, r.code, r.cause
	}
	return e
}

func configError(dialect, text string) error {
	return &Error{Op: "open", Dialect: dialect, Reason: text, cause: ErrConfig}
}

const badRowPrefix = "bad row: "

type badRowError struct{ text string }

func (e *badRowError) Error() string { return badRowPrefix + e.text }
func (e *badRowError) Unwrap() error { return ErrBadRow }

func badRow(text string) error { return &badRowError{text} }

// commonReason covers what all drivers have in common: the network, the file
// system, and what this package says itself.
func commonReason(err error) reason {
	var (
		network *net.OpError
		name    *net.DNSError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		path    *fs.PathError
	)
	switch {
	case errors.Is(err, errConflict):
		return reason{text: "other processes kept writing the same row", conflict: true}
	case errors.Is(err, errMigrationLock):
		return reason{text: errMigrationLock.Error()}
	case errors.Is(err, errUnreadable):
		return reason{text: errUnreadable.Error()}
	case errors.As(err, &cert):
		return reason{text: "the server's certificate was not accepted: " + cert.Err.Error(), cause: ErrUnreachable}
	case errors.As(err, &record):
		return reason{text: "the server does not speak TLS", cause: ErrUnreachable}
	case errors.As(err, &name):
		return reason{text: "the host name cannot be resolved: " + name.Error(), cause: ErrUnreachable}
	case errors.As(err, &network):
		return reason{text: "the server cannot be reached: " + network.Error(), cause: ErrUnreachable}
	case errors.As(err, &path):
		return reason{text: path.Error(), cause: ErrUnreachable}
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
		return reason{text: "the connection was lost", cause: ErrUnreachable}
	case errors.Is(err, context.DeadlineExceeded):
		return reason{text: "the server did not answer in time", cause: ErrUnreachable}
	default:
		return reason{text: "the database driver failed"}
	}
}
