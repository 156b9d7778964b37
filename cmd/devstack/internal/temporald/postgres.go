package temporald

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/metrics"
	"go.temporal.io/server/common/persistence"
	"go.temporal.io/server/common/persistence/serialization"
	"go.temporal.io/server/common/persistence/sql"
	"go.temporal.io/server/common/persistence/sql/sqlplugin"
	postgresplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/postgresql"
	"go.temporal.io/server/common/resolver"
	"go.temporal.io/server/schema"
	postgresschema "go.temporal.io/server/schema/postgresql/v12"
)

// Each of the four services has a pool of its own per database, which makes some
// 80 connections if all are used: Postgres allows 100 by default. Idle ones are
// kept, because a new one costs more than a transaction.
const (
	mainConns       = 16
	visibilityConns = 4
)

// maintenanceDatabase is there on every Postgres; one connects to it to create
// others.
const maintenanceDatabase = "postgres"

// ShardsError says that a database was created with another number of history
// shards, which decides where each workflow's rows are and cannot change.
type ShardsError struct {
	Want, Have int
}

func (e *ShardsError) Error() string {
	return fmt.Sprintf("the database has %d history shards, which cannot become %d", e.Have, e.Want)
}

// openPostgres makes sure that both databases exist and have a schema.
func openPostgres(ctx context.Context, address string, shards int) (storage, error) {
	db, err := parsePostgres(address)
	if err != nil {
		return storage{}, err
	}
	s := storage{main: db.sql(db.conn.Database, mainConns), visibility: db.sql(db.conn.Database+"_visibility", visibilityConns)}
	if err := db.setUp(ctx, s.main, "postgresql/v12/temporal", postgresschema.Version); err != nil {
		return storage{}, fmt.Errorf("database %s: %w", s.main.DatabaseName, err)
	}
	if err := db.setUp(ctx, s.visibility, "postgresql/v12/visibility", postgresschema.VisibilityVersion); err != nil {
		return storage{}, fmt.Errorf("database %s: %w", s.visibility.DatabaseName, err)
	}
	s.shards, err = settleShards(ctx, s.main, shards)
	return s, err
}

// postgres is a parsed URL.
type postgres struct {
	conn       *pgx.ConnConfig
	attributes map[string]string
}

func parsePostgres(address string) (*postgres, error) {
	// First, because its errors leave the password out.
	if _, err := pgx.ParseConfig(address); err != nil {
		return nil, err
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" {
		return nil, errors.New("postgres: not a URL")
	}
	query := u.Query()
	if !query.Has("sslmode") {
		query.Set("sslmode", "disable") // as the server's plugin does
		u.RawQuery = query.Encode()
	}
	db := &postgres{attributes: map[string]string{}}
	for name := range query {
		db.attributes[name] = query.Get(name)
	}
	if db.conn, err = pgx.ParseConfig(u.String()); err != nil {
		return nil, err
	}
	if db.conn.Database == "" {
		return nil, errors.New("postgres: the URL names no database")
	}
	return db, nil
}

// sql is a database as the server's configuration has it.
func (db *postgres) sql(database string, conns int) *config.SQL {
	return &config.SQL{
		PluginName: postgresplugin.PluginNamePGX,
		// The plugin builds a URL, in which it escapes the password alone.
		User:              url.User(db.conn.User).String(),
		Password:          db.conn.Password,
		ConnectAddr:       net.JoinHostPort(db.conn.Host, strconv.Itoa(int(db.conn.Port))),
		ConnectAttributes: db.attributes,
		DatabaseName:      database,
		MaxConns:          conns,
		MaxIdleConns:      conns,
	}
}

// setUp makes a database and its schema from the directory of the server's own
// schemas, unless they are there. It leaves an existing schema alone: a server
// refuses to run on one that is too old for it.
func (db *postgres) setUp(ctx context.Context, database *config.SQL, dir, version string) error {
	if err := db.create(ctx, database.DatabaseName); err != nil {
		return err
	}
	statements, err := fs.ReadFile(schema.Assets(), dir+"/schema.sql")
	if err != nil {
		return err
	}
	admin, err := sql.NewSQLAdminDB(sqlplugin.DbKindUnknown, database, resolver.NewNoopResolver(), log.NewNoopLogger(), metrics.NoopMetricsHandler)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	if err := admin.CreateSchemaVersionTables(); err != nil {
		return err
	}
	return db.session(ctx, database.DatabaseName, func(conn *pgx.Conn) error {
		// All or nothing, because a crash half-way would leave what neither is a
		// schema nor can become one.
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			var done bool
			if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM schema_version)").Scan(&done); err != nil || done {
				return err
			}
			if _, err := tx.Exec(ctx, string(statements)); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO schema_version
				(version_partition, db_name, creation_time, curr_version, min_compatible_version)
				VALUES (0, $1, now() AT TIME ZONE 'UTC', $2, $2)`, database.DatabaseName, version)
			return err
		})
	})
}

// create creates a database unless it is there. It looks first, because creating
// needs a right that the user of an existing database may lack.
func (db *postgres) create(ctx context.Context, name string) error {
	err := db.session(ctx, name, func(*pgx.Conn) error { return nil })
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "3D000" { // invalid_catalog_name
		return err
	}
	return db.session(ctx, maintenanceDatabase, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
		return err
	})
}

// session is a connection to a database while use runs.
func (db *postgres) session(ctx context.Context, database string, use func(*pgx.Conn) error) error {
	cfg := db.conn.Copy()
	cfg.Database = database
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(use(conn), conn.Close(ctx))
}

// settleShards returns the number of history shards: what is asked for, 0 being
// no wish, has to agree with what the database was created with. The server by
// itself would only log that it does not.
func settleShards(ctx context.Context, db *config.SQL, want int) (int, error) {
	conn, err := sql.NewSQLDB(sqlplugin.DbKindMain, db, resolver.NewNoopResolver(), log.NewNoopLogger(), metrics.NoopMetricsHandler)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	row, err := conn.GetClusterMetadata(ctx, &sqlplugin.ClusterMetadataFilter{ClusterName: clusterName})
	if errors.Is(err, stdsql.ErrNoRows) { // no server has run on it yet
		if want == 0 {
			want = DefaultPostgresShards
		}
		return want, nil
	}
	if err != nil {
		return 0, err
	}
	cluster, err := serialization.NewSerializer().DeserializeClusterMetadata(persistence.NewDataBlob(row.Data, row.DataEncoding))
	if err != nil {
		return 0, err
	}
	have := int(cluster.GetHistoryShardCount())
	if want != 0 && want != have {
		return 0, &ShardsError{Want: want, Have: have}
	}
	return have, nil
}
