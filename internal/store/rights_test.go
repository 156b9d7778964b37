package store

import (
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// testLeastRights runs the statements that docs/security.md gives for a user
// with the least rights, and works as that user: on tables that exist, nothing
// else is needed. Fault C17.
func testLeastRights(t *testing.T, server *dbServer) {
	t.Helper()
	owned := server.fresh(t)
	owner := open(t, owned)
	persist(t, owner, completed("before", "run:1", noon()))

	const password = "l3ast"
	for _, statement := range documentedRights(t, server.kind.scheme) {
		_, err := owner.writes.ExecContext(t.Context(), strings.ReplaceAll(statement, "'…'", "'"+password+"'"))
		require.NoError(t, err, statement)
	}

	u, err := url.Parse(owned)
	require.NoError(t, err)
	u.User = url.UserPassword("executor_app", password)
	app := open(t, u.String())
	require.Equal(t, owner.UUID(), app.UUID())
	row := completed("as app", "run:1", noon())
	require.Equal(t, job.Written, persist(t, app, row).Verdict)
	require.Equal(t, job.Kept, persist(t, app, row).Verdict)
	require.NoError(t, app.RaiseEntry(t.Context(), row.Key(), "9-9"))
	require.NoError(t, app.SetDeadID(t.Context(), row.Key(), row.Effect, "1-1"))
	_, found, err := app.Row(t.Context(), job.Key{Role: row.Role, JobID: "before"})
	require.NoError(t, err)
	require.True(t, found)

	for _, statement := range []string{
		"DELETE FROM executor_jobs", "DROP TABLE executor_jobs", "CREATE TABLE executor_more (x int)",
		"UPDATE executor_goose_db_version SET version_id = 0", "ALTER TABLE executor_jobs ADD COLUMN x int",
	} {
		_, err := app.writes.ExecContext(t.Context(), statement)
		require.Error(t, err, statement)
		require.Contains(t, app.fail(t.Context(), "x", err).Error(), "the user lacks a right", statement)
	}
	require.NoError(t, app.Close())
	require.NoError(t, owner.Close())
}

// documentedRights are the statements for one kind of server.
func documentedRights(t *testing.T, scheme string) []string {
	t.Helper()
	content, err := os.ReadFile("../../docs/security.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```sql\n-- ("+scheme+")[^\n]*\n(.*?)```").FindAllStringSubmatch(string(content), -1)
	require.Len(t, blocks, 1)
	var statements []string
	for statement := range strings.SplitSeq(blocks[0][2], ";") {
		if statement = strings.TrimSpace(statement); statement != "" {
			statements = append(statements, statement)
		}
	}
	return statements
}
