package store

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSQLiteFile(t *testing.T) {
	t.Parallel()

	t.Run("is durable and private", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "a dir? 100%#", "executor.db")
		require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
		s := open(t, "sqlite://"+filepath.Join(filepath.Dir(filepath.Dir(path)), "a dir%3F 100%25%23", "executor.db"))
		require.Equal(t, "sqlite://"+path, s.Describe())
		require.Equal(t, "sqlite", s.Dialect())
		for _, name := range []string{path, path + "-wal"} {
			info, err := os.Stat(name)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), name)
		}
		require.Equal(t, []string{"wal"}, texts(t, s.writes, "PRAGMA journal_mode"))
		require.Equal(t, []string{"2"}, texts(t, s.writes, "PRAGMA synchronous"), "2 is FULL")
		require.Equal(t, []string{"5000"}, texts(t, s.writes, "PRAGMA busy_timeout"))
		_, err := s.reads.ExecContext(t.Context(), "DELETE FROM executor_jobs")
		require.Error(t, err, "the reading connections cannot write")
	})

	t.Run("times are text that sorts", func(t *testing.T) {
		t.Parallel()
		s := open(t, sqliteFiles{}.fresh(t))
		row := completed("j", "run:1", noon().Truncate(time.Second))
		persist(t, s, row)
		require.Equal(t, []string{"2026-03-04T11:00:00.000000Z"}, texts(t, s.reads, "SELECT finished_at FROM executor_jobs"))
		// SQLite's own functions understand it.
		require.Equal(t, []string{"2026-03-04 11:00:00"}, texts(t, s.reads, "SELECT datetime(finished_at) FROM executor_jobs"))
	})

	t.Run("a relative path is named in full", func(t *testing.T) {
		t.Parallel()
		path, err := sqlitePath("executor.db")
		require.NoError(t, err)
		wd, err := os.Getwd()
		require.NoError(t, err)
		require.Equal(t, filepath.Join(wd, "executor.db"), path)
	})

	t.Run("a busy file is waited for and then reported", func(t *testing.T) {
		t.Parallel()
		url := sqliteFiles{}.fresh(t)
		a, b := open(t, url), open(t, url)
		holder, err := b.writes.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		_, err = a.Persist(t.Context(), completed("j", "run:1", noon()))
		require.ErrorContains(t, err, "another process keeps the file locked [SQLite result 5]; check DATABASE_URL")
		require.NoError(t, holder.Rollback())
		persist(t, a, completed("j", "run:1", noon()))
	})

	t.Run("what is no database is refused", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		text := filepath.Join(dir, "notes.txt")
		require.NoError(t, os.WriteFile(text, []byte("these are the notes of someone who mistyped a path, CANARY"), 0o600))
		for name, tc := range map[string]struct{ path, want string }{
			"a text file":          {text, "the file is no SQLite database"},
			"a directory":          {dir, "is a directory"},
			"a directory not made": {filepath.Join(dir, "none", "executor.db"), "no such file or directory"},
		} {
			_, err := Open(t.Context(), Config{URL: "sqlite://" + tc.path}, nil)
			require.ErrorContains(t, err, tc.want, name)
			require.ErrorContains(t, err, "DATABASE_URL", name)
			require.NotContains(t, err.Error(), "CANARY", name)
		}
		content, err := os.ReadFile(text)
		require.NoError(t, err)
		require.Contains(t, string(content), "these are the notes", "the file was left alone")
	})

	t.Run("an ended context opens nothing", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := Open(ctx, Config{URL: sqliteFiles{}.fresh(t)}, nil)
		require.ErrorIs(t, err, context.Canceled)
	})

	t.Run("ping", func(t *testing.T) {
		t.Parallel()
		assert.NoError(t, open(t, sqliteFiles{}.fresh(t)).Ping(t.Context()))
	})
}
