package store

import (
	"context"
	"database/sql"
	"net/url"
	"strings"
)

// Validate reports what is wrong with cfg as far as can be told without
// connecting: an *Error that matches ErrConfig, or nil.
func Validate(cfg Config) error {
	if rest, found := strings.CutPrefix(cfg.URL, sqliteName+"://"); found {
		_, err := sqlitePath(rest)
		return err
	}
	_, db, err := openServer(cfg.URL)
	if err != nil {
		return err
	}
	return db.Close() // nothing was connected yet
}

// connect opens the pools for cfg.URL.
func connect(ctx context.Context, cfg Config, create bool) (*Store, error) {
	if rest, found := strings.CutPrefix(cfg.URL, sqliteName+"://"); found {
		return openSQLite(ctx, rest, create)
	}
	dialect, db, err := openServer(cfg.URL)
	if err != nil {
		return nil, err
	}
	return &Store{
		dialect:  dialect,
		describe: Redact(cfg.URL),
		reads:    db,
		writes:   db,
		writer:   serverWriter{db},
	}, nil
}

// openServer returns the pool of a database server, which connects when it is
// used.
func openServer(raw string) (dialect, *sql.DB, error) {
	scheme, _, _ := strings.Cut(raw, "://")
	switch scheme {
	case postgresName, "postgresql":
		return openPostgres(raw)
	case mysqlName, "mariadb":
		return openMySQL(raw)
	default:
		return dialect{}, nil, configError("", "the URL must begin with sqlite://, postgres:// or mysql://")
	}
}

// Redact returns a database URL with everything that may be a secret replaced
// by ***, also where the URL is malformed.
func Redact(raw string) string {
	scheme, rest, found := strings.Cut(raw, "://")
	if !found {
		return "***"
	}
	if scheme == sqliteName {
		return raw // a path
	}
	u, err := url.Parse(raw)
	if err != nil || strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") {
		// An unescaped / ? or # in a password shifts it into another part.
		return scheme + "://***"
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user, _, secret := strings.Cut(authority[:i], ":")
		if secret {
			user += ":***"
		}
		authority = user + authority[i:]
	}
	path, query, found := strings.Cut(tail, "?")
	if !found {
		return scheme + "://" + authority + path
	}
	pairs := strings.Split(query, "&")
	for i, pair := range pairs {
		if name, _, hasValue := strings.Cut(pair, "="); hasValue && secretParam(name) {
			pairs[i] = name + "=***"
		}
	}
	return scheme + "://" + authority + path + "?" + strings.Join(pairs, "&")
}

func secretParam(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"pass", "secret", "token", "%"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
