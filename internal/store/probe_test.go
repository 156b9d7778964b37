package store

import (
	"context"
	"database/sql"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

func TestProbes(t *testing.T) {
	t.Parallel()
	all := map[string]databases{sqliteName: sqliteFiles{}}
	for name, server := range chosenServers(t) {
		all[name] = server
	}
	for _, name := range sortedNames(all) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testProbes(t, all[name])
		})
	}
}

func testProbes(t *testing.T, dbs databases) {
	t.Helper()
	b := setup(t, dbs)
	persist(t, b.a, completed("j", "run:1", noon()))
	require.NoError(t, b.b.Writable(t.Context()))
	require.NoError(t, b.b.Writable(t.Context()))
	rows, err := b.a.List(t.Context(), Filter{})
	require.NoError(t, err)
	require.Len(t, rows, 1, "nothing is left behind")
	require.Equal(t, job.Written, persist(t, b.a, completed("k", "run:1", noon())).Verdict, "nor locked")

	ahead, precision, found, err := b.a.Clock(t.Context())
	require.NoError(t, err)
	require.Equal(t, b.a.Dialect() != sqliteName, found)
	require.LessOrEqual(t, ahead.Abs(), precision+time.Second, "the same machine's clock")

	if b.a.Dialect() == sqliteName {
		return
	}
	u, err := url.Parse(b.url)
	require.NoError(t, err)
	attach := func(change func(*url.URL)) Fault {
		t.Helper()
		other := *u
		change(&other)
		s, err := Attach(t.Context(), Config{URL: other.String()})
		if err == nil {
			require.NoError(t, s.Close())
			return ""
		}
		return FaultOf(err)
	}
	require.Equal(t, Fault(""), attach(func(*url.URL) {}))
	require.Equal(t, FaultLogin, attach(func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "wrong") }))
	require.Equal(t, FaultNoDatabase, attach(func(u *url.URL) { u.Path = "/nowhere" }))
	require.Equal(t, FaultName, attach(func(u *url.URL) { u.Host = "db.invalid:" + u.Port() }))
	require.Equal(t, FaultUnreachable, attach(func(u *url.URL) { u.Host = "127.0.0.1:1" }))

	runSQL(t, b.a, "DROP TABLE executor_jobs")
	require.Equal(t, FaultNoTables, attach(func(*url.URL) {}))
	require.Equal(t, FaultNoTables, FaultOf(b.b.Writable(t.Context())))
}

func TestFaultsOfSQLite(t *testing.T) {
	t.Parallel()
	attach := func(path string) error {
		s, err := Attach(t.Context(), Config{URL: "sqlite://" + path})
		if err == nil {
			require.NoError(t, s.Close())
		}
		return err
	}
	dir := t.TempDir()
	require.Equal(t, FaultNoTables, FaultOf(attach(filepath.Join(dir, "none.db"))))
	text := filepath.Join(dir, "text.db")
	require.NoError(t, os.WriteFile(text, []byte("this is no database, whatever its name may say"), 0o600))
	require.Equal(t, FaultConfig, FaultOf(attach(text)))
	require.Equal(t, FaultUnreachable, FaultOf(attach(dir)))

	s := open(t, "sqlite://"+filepath.Join(dir, "executor.db"))
	readOnly, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "executor.db")+"?mode=ro")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, readOnly.Close()) })
	// Nobody can keep root from writing to a file; a connection that may only read
	// says the same.
	other := &Store{dialect: s.dialect, reads: readOnly, writes: readOnly}
	require.Equal(t, FaultReadOnly, FaultOf(other.Writable(t.Context())))
}

func TestFaultOf(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]Fault{
		"SQLSTATE 28000": FaultLogin, "error 1045": FaultLogin, "error 1698": FaultLogin,
		"SQLSTATE 42501": FaultRights, "error 1044": FaultRights, "error 1142": FaultRights,
		"SQLSTATE 25006": FaultReadOnly, "error 1290": FaultReadOnly, "error 1836": FaultReadOnly,
		"SQLite result 8": FaultReadOnly, "SQLite result 1288": FaultReadOnly, "SQLite result 13": FaultOther,
		"SQLSTATE XX000": FaultOther, "": FaultOther,
	} {
		require.Equal(t, want, FaultOf(&Error{Code: code}), code)
	}
	require.Equal(t, FaultOther, FaultOf(nil))
	require.Equal(t, FaultUnreachable, FaultOf(&Error{cause: context.DeadlineExceeded}))
	require.Equal(t, FaultConfig, FaultOf(configError("", "x")))
}
