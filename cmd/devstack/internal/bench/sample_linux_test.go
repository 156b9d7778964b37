package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/procfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/postgresd"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// TestDatabaseCountsItsConnections checks that the work of PostgreSQL counts, which
// it does in a process for each connection: while that lives, and after it ended.
func TestDatabaseCountsItsConnections(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	port, err := new(proc.Ports).Free(ctx)
	require.NoError(t, err)
	dir := t.TempDir()
	server, err := postgresd.Start(ctx, postgresd.Config{Port: port, Dir: filepath.Join(dir, "postgres"), LogFile: filepath.Join(dir, "postgres.log")})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop(context.WithoutCancel(t.Context()))) })

	before, err := cpu(Database, server.Pid())
	require.NoError(t, err)
	conn, err := pgx.Connect(ctx, server.URL(server.Address()))
	require.NoError(t, err)
	const worth = 0.3 // seconds of one core
	used := before
	for used-before < worth {
		_, err = conn.Exec(ctx, "SELECT count(*) FROM generate_series(1, 200000)")
		require.NoError(t, err)
		used, err = cpu(Database, server.Pid())
		require.NoError(t, err)
	}
	own, err := cpu("another", server.Pid())
	require.NoError(t, err)
	require.Less(t, own-before, worth, "the parent has not done it itself")

	require.NoError(t, conn.Close(ctx))
	patience, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	require.NoError(t, proc.Wait(patience, func(context.Context) error {
		n := 0
		err := children(server.Pid(), func(child procfs.Proc) error {
			line, err := child.CmdLine()
			if strings.Contains(strings.Join(line, " "), "127.0.0.1") {
				n++
			}
			return err
		})
		if err == nil && n > 0 {
			err = fmt.Errorf("%d connections are open", n)
		}
		return err
	}))
	after, err := cpu(Database, server.Pid())
	require.NoError(t, err)
	require.GreaterOrEqual(t, after, used)

	memory, err := resident(Database, server.Pid())
	require.NoError(t, err)
	alone, err := resident("another", server.Pid())
	require.NoError(t, err)
	require.Greater(t, memory.Now, alone.Now)
	require.Zero(t, memory.Peak)
	mine, err := resident(Driver, os.Getpid())
	require.NoError(t, err)
	require.GreaterOrEqual(t, mine.Peak, mine.Now)
}
