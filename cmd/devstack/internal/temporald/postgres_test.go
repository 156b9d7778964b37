package temporald

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"

	"github.com/nodpt/executor/cmd/devstack/internal/postgresd"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

func startPostgres(t *testing.T, ports *proc.Ports) *postgresd.Server {
	t.Helper()
	port, err := ports.Free(t.Context())
	require.NoError(t, err)
	dir := t.TempDir()
	server, err := postgresd.Start(t.Context(), postgresd.Config{
		Port: port, Dir: filepath.Join(dir, "postgres"), LogFile: filepath.Join(dir, "postgres.log"), Durable: true,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(context.WithoutCancel(t.Context()))) })
	return server
}

// setting is what a session finds: SHOW, or a count.
func setting(t *testing.T, address, query string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) }()
	var value string
	require.NoError(t, conn.QueryRow(t.Context(), query).Scan(&value))
	return value
}

func TestServerOnPostgresRunsWorkflowsAndKeepsThem(t *testing.T) {
	t.Parallel()
	ports := new(proc.Ports)
	postgres := startPostgres(t, ports)
	database := postgres.DatabaseURL(postgres.Address(), "temporal")

	server, c := start(t, ports, Config{Postgres: database, Shards: 3, Retention: 48 * time.Hour})
	run := greetSomeone(t, c)
	requireListed(t, c, run)

	namespace, err := c.WorkflowService().DescribeNamespace(t.Context(), &workflowservice.DescribeNamespaceRequest{Namespace: DefaultNamespace})
	require.NoError(t, err)
	require.Equal(t, 48*time.Hour, namespace.GetConfig().GetWorkflowExecutionRetentionTtl().AsDuration())
	require.Equal(t, "3", setting(t, database, "SELECT count(*)::text FROM shards"))
	require.Equal(t, "on", setting(t, database, "SHOW fsync"))
	require.Equal(t, "on", setting(t, database, "SHOW synchronous_commit"))

	began := time.Now()
	require.NoError(t, server.Stop())
	t.Logf("stopped after %s", time.Since(began).Round(time.Millisecond))

	_, err = Start(t.Context(), Config{Port: portOf(t, server), Postgres: database, Shards: 4}, ports)
	var shards *ShardsError
	require.ErrorAs(t, err, &shards)
	require.Equal(t, ShardsError{Want: 4, Have: 3}, *shards)

	second, c := start(t, ports, Config{Postgres: database})
	var answer string
	require.NoError(t, c.GetWorkflow(t.Context(), run.GetID(), run.GetRunID()).Get(t.Context(), &answer))
	require.Equal(t, "hello stack", answer)
	requireListed(t, c, run)
	require.Equal(t, "3", setting(t, database, "SELECT count(*)::text FROM shards"), "no wish: what the database has")
	require.NoError(t, second.Stop())
}

func TestStorageThatCannotBe(t *testing.T) {
	t.Parallel()
	const url = "postgres://user:secret@127.0.0.1:1/temporal"
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"two places":       {Config{Postgres: url, Database: "temporal.db"}, "either on Postgres or in a file"},
		"shards of SQLite": {Config{Shards: 2}, "needs Postgres"},
		"negative shards":  {Config{Postgres: url, Shards: -1}, "at least 1"},
		"too many shards":  {Config{Postgres: url, Shards: 1 << 20}, "at most 4096"},
		"not a URL":        {Config{Postgres: "host=127.0.0.1 password=secret"}, "not a URL"},
		"broken URL":       {Config{Postgres: "postgres://user:secret@127.0.0.1:x/temporal"}, "cannot parse"},
		"no database":      {Config{Postgres: "postgres://user:secret@127.0.0.1:1"}, "names no database"},
		"nobody there":     {Config{Postgres: url}, "database temporal: failed to connect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := openStorage(t.Context(), tc.cfg)
			require.ErrorContains(t, err, tc.want)
			require.NotContains(t, err.Error(), "secret")
		})
	}
}
