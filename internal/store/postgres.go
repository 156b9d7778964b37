package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

func openPostgres(raw string) (dialect, *sql.DB, error) {
	cfg, err := pgx.ParseConfig(raw)
	if err != nil {
		return dialect{}, nil, configError(postgresName,
			"the URL cannot be read; percent-encode / ? # @ : in user and password, and see that files it names exist")
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = dialTimeout
	}
	d := dialect{
		name:       postgresName,
		migrations: postgresName,
		goose:      goose.DialectPostgres,
		migrating: sessionLock{
			lock:   "SELECT 1 FROM pg_advisory_lock(" + postgresLock + ")",
			unlock: "SELECT pg_advisory_unlock(" + postgresLock + ")",
		},
		check:         checkPostgres,
		numbered:      true,
		unlessPresent: " ON CONFLICT DO NOTHING",
		hasTables:     "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = 'executor_jobs'",
		forUpdate:     " FOR UPDATE",
		insertAlone:   true,
		time:          nativeTime,
		reason:        postgresReason,
	}
	d.queries = newQueries(d)
	return d, pooled(stdlib.OpenDB(*cfg)), nil
}

// postgresLock is the key of the advisory lock: "executor" in ASCII.
const postgresLock = "7311142551966379890"

// checkPostgres refuses databases whose encoding cannot hold every answer.
func checkPostgres(ctx context.Context, db *sql.DB) error {
	encoding, _, err := oneText(ctx, db, "SHOW server_encoding")
	if err != nil {
		return err
	}
	if encoding != "UTF8" {
		return configError(postgresName, "the database's encoding must be UTF8; create it with ENCODING 'UTF8'")
	}
	return nil
}

func postgresReason(err error) reason {
	var (
		refused *pgconn.PgError
		connect *pgconn.ConnectError
	)
	if !errors.As(err, &refused) {
		r := commonReason(err)
		if r.cause == nil && !r.conflict && errors.As(err, &connect) {
			// Nothing was sent yet but the greeting: this text is about hosts
			// and TLS.
			r.text = "the server cannot be reached: " + strings.Join(strings.Fields(connect.Unwrap().Error()), " ")
			r.cause = ErrUnreachable
		}
		if r.cause == nil && errors.Is(err, pgconn.ErrConnClosed) {
			r.text, r.cause = "the connection was lost", ErrUnreachable
		}
		return r
	}
	r := reason{code: "SQLSTATE " + refused.Code, text: "the server refused the statement"}
	switch refused.Code {
	case "23505": // unique_violation
		r.text, r.duplicate, r.conflict = "the row exists", true, true
	case "40001", "40P01": // serialization_failure, deadlock_detected
		r.text, r.conflict = "lost against concurrent transactions", true
	case "28P01", "28000":
		r.text = "the login was refused"
	case "3D000":
		r.text = "the database does not exist"
	case "42501":
		r.text = "the user lacks a right on the tables executor_*"
	case "42P01", "42703":
		r.text = "a table or column of ours is missing"
	case "25006":
		r.text = "the database is read-only"
	case "53100":
		r.text = "the server's disk is full"
	case "53300":
		r.text, r.cause = "the server has no connection left", ErrUnreachable
	case "55P03", "57014":
		r.text = "the server gave up the statement"
	case "57P01", "57P02", "57P03":
		r.text, r.cause = "the server is starting or stopping", ErrUnreachable
	default:
		if strings.HasPrefix(refused.Code, "08") {
			r.text, r.cause = "the connection was lost", ErrUnreachable
		}
	}
	return r
}
