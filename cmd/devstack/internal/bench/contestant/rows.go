package contestant

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver, which is the executor's
)

// createTable makes a table of the executor's name with those of its columns that
// a plain design fills, so that the rows of all can be counted with one query.
const createTable = `
CREATE TABLE IF NOT EXISTS executor_jobs (
    role              TEXT    NOT NULL,
    job_id            TEXT    NOT NULL,
    status            TEXT    NOT NULL,
    output            TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    nodpt_workflow_id TEXT    NOT NULL,
    user_id           TEXT    NOT NULL,
    project_id        TEXT    NOT NULL,
    node_id           TEXT    NOT NULL,
    connection_id     TEXT    NOT NULL,
    finished_at       TEXT    NOT NULL,
    PRIMARY KEY (role, job_id)
) STRICT`

const upsertRow = `
INSERT INTO executor_jobs (role, job_id, status, output, model, prompt_tokens, completion_tokens,
    nodpt_workflow_id, user_id, project_id, node_id, connection_id, finished_at)
VALUES (?, ?, 'completed', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (role, job_id) DO UPDATE SET
    status = excluded.status, output = excluded.output, model = excluded.model,
    prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
    finished_at = excluded.finished_at`

// rows is a contestant's result store.
type rows struct{ db *sql.DB }

func openRows(ctx context.Context, path string) (rows, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return rows{}, fmt.Errorf("rows: %w", err)
	}
	file := url.URL{Scheme: "file", Path: path, RawQuery: "_busy_timeout=5000&_journal_mode=WAL&_synchronous=FULL"}
	db, err := sql.Open("sqlite", file.String())
	if err != nil {
		return rows{}, fmt.Errorf("rows: %w", err)
	}
	// SQLite has one writer at a time. Those who wait for a connection are served in
	// order; those who wait for the file's lock would poll for it.
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, createTable); err != nil {
		_ = db.Close()
		return rows{}, fmt.Errorf("rows: %w", err)
	}
	return rows{db}, nil
}

func (r rows) close() { _ = r.db.Close() }

// persist writes the row of a completed job.
func (r rows) persist(ctx context.Context, j Job, a Answer) error {
	_, err := r.db.ExecContext(ctx, upsertRow, role, j.ID, a.Text, a.Model, a.PromptTokens, a.CompletionTokens,
		j.WorkflowID, j.UserID, j.ProjectID, j.NodeID, j.ConnectionID, time.Now().UTC().Format(time.RFC3339Nano))
	if err != nil {
		return fmt.Errorf("persist: %w", err)
	}
	return nil
}
