package store

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/nodpt/executor/internal/job"
)

// What a person wants to know who looks for the reason why nothing works.

// Fault says what kind of thing stands between the executor and its rows.
type Fault string

// The faults.
const (
	FaultOther       Fault = "other"
	FaultConfig      Fault = "config"      // DATABASE_URL itself
	FaultName        Fault = "name"        // the host's name has no address
	FaultUnreachable Fault = "unreachable" // nobody answers
	FaultLogin       Fault = "login"       // user or password
	FaultNoDatabase  Fault = "no database" // the server has none of that name
	FaultNoTables    Fault = "no tables"   // no executor has used the database yet
	FaultRights      Fault = "rights"      // the user may not do it
	FaultReadOnly    Fault = "read-only"   // the database, the file or its directory
)

// FaultOf sorts an error of this package.
func FaultOf(err error) Fault {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return FaultOther
	}
	switch e.Code {
	case "SQLSTATE 28P01", "SQLSTATE 28000", "error 1045", "error 1698":
		return FaultLogin
	case "SQLSTATE 3D000", "error 1049":
		return FaultNoDatabase
	case "SQLSTATE 42501", "error 1044", "error 1142", "error 1227":
		return FaultRights
	case "SQLSTATE 42P01", "error 1146":
		return FaultNoTables
	case "SQLSTATE 25006", "error 1290", "error 1792", "error 1836":
		return FaultReadOnly
	}
	if code, found := strings.CutPrefix(e.Code, "SQLite result "); found {
		if n, err := strconv.Atoi(code); err == nil && (n&0xff == 3 || n&0xff == 8) {
			return FaultReadOnly
		}
	}
	switch {
	case errors.Is(e, ErrNoStore):
		return FaultNoTables
	case errors.Is(e, ErrConfig):
		return FaultConfig
	case strings.HasPrefix(e.Reason, nameReason):
		return FaultName
	case errors.Is(e, ErrUnreachable), errors.Is(e, context.DeadlineExceeded):
		return FaultUnreachable
	}
	return FaultOther
}

// nameReason begins the reason of an error that commonReason makes of a name
// without address.
const nameReason = "the host name cannot be resolved"

// Writable finds out whether rows can be added and changed, in a transaction
// that is taken back: nothing is left of it.
func (s *Store) Writable(ctx context.Context) error {
	const op = "write"
	tx, err := s.writes.BeginTx(ctx, nil)
	if err != nil {
		return s.fail(ctx, op, err)
	}
	err = s.tryRow(ctx, tx)
	if back := tx.Rollback(); err == nil && !errors.Is(back, sql.ErrTxDone) {
		err = back
	}
	if err != nil {
		return s.fail(ctx, op, err)
	}
	return nil
}

func (s *Store) tryRow(ctx context.Context, tx querier) error {
	key := job.Key{Role: "doctor", JobID: "doctor:" + uuid.NewString()} // no job's
	row, err := clean(job.Row{
		Role: key.Role, JobID: key.JobID, Effect: key.JobID, Outcome: job.Outcome{Status: job.Rejected},
	})
	if err != nil {
		return err
	}
	if _, err := s.insert(ctx, tx, row); err != nil {
		return err
	}
	return s.setLastEntry(ctx, tx, key, "0-0")
}

// Clock returns how far the database server's clock is ahead of this machine's,
// and to what precision that is known. It reports false for SQLite, which has no
// clock of its own.
func (s *Store) Clock(ctx context.Context) (ahead, precision time.Duration, found bool, err error) {
	var query string
	switch s.dialect.name {
	case postgresName:
		query = "SELECT CAST(CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS bigint) AS text)"
	case mysqlName:
		query = "SELECT CAST(CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED) AS CHAR)"
	default:
		return 0, 0, false, nil
	}
	const op = "read the clock"
	asked := time.Now()
	text, _, err := oneText(ctx, s.reads, query)
	took := time.Since(asked)
	if err != nil {
		return 0, 0, false, s.fail(ctx, op, err)
	}
	micros, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, 0, false, s.fail(ctx, op, errUnreadable)
	}
	// It was read at some moment between the question and the answer.
	return time.UnixMicro(micros).Sub(asked.Add(took / 2)), took / 2, true, nil
}
