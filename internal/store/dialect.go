package store

import (
	"context"
	"database/sql"
	"strconv"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// dialect is all that differs between the databases.
type dialect struct {
	name       string
	migrations string // directory below migrations/
	goose      goose.Dialect
	// migrating keeps other processes from migrating at the same time; nil
	// where the database has no such lock.
	migrating lock.SessionLocker
	// check refuses a database that cannot hold our rows; may be nil.
	check func(context.Context, *sql.DB) error

	numbered      bool   // placeholders are $1, $2 instead of ?
	unlessPresent string // ends an INSERT so that an existing key is no error; empty where it is reported as duplicate
	hasTables     string // SELECT that gives a row where our tables exist
	forUpdate     string // ends a SELECT whose row is to be locked
	insertAlone   bool   // a first outcome is inserted without a transaction around it, one round trip instead of four
	oneWriter     bool   // a transaction is alone: a first outcome is inserted at once, without looking for the row to be locked
	time          func(time.Time) any
	reason        func(error) reason

	queries queries
}

// Names of the dialects, and the directories of their migrations.
const (
	sqliteName   = "sqlite"
	postgresName = "postgres"
	mysqlName    = "mysql"
)

// bind turns the ? of query into the dialect's placeholders. Our queries hold
// no other question mark.
func (d dialect) bind(query string) string {
	if !d.numbered {
		return query
	}
	parts := strings.Split(query, "?")
	var b strings.Builder
	b.WriteString(parts[0])
	for i, part := range parts[1:] {
		b.WriteString("$" + strconv.Itoa(i+1) + part)
	}
	return b.String()
}

// Pool sizes. The executor's writers are the final steps of jobs, a few dozen
// at most, and each is a round trip or two.
const (
	serverConns  = 16
	sqliteReads  = 4
	connIdle     = 2 * time.Minute
	connLifetime = 5 * time.Minute // below the idle limits of common proxies
	dialTimeout  = 5 * time.Second
)

func pooled(db *sql.DB) *sql.DB {
	db.SetMaxOpenConns(serverConns)
	db.SetMaxIdleConns(serverConns)
	db.SetConnMaxIdleTime(connIdle)
	db.SetConnMaxLifetime(connLifetime)
	return db
}
