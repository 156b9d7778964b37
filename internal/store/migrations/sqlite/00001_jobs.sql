-- +goose Up
CREATE TABLE executor_meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- Times are RFC 3339 in UTC with six fractional digits, so that text order is
-- time order. fence is microseconds since 1970.
CREATE TABLE executor_jobs (
    role              TEXT    NOT NULL,
    job_id            TEXT    NOT NULL,
    status            TEXT    NOT NULL,
    output            TEXT    NOT NULL,
    error_code        TEXT    NOT NULL,
    error_message     TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    truncated         INTEGER NOT NULL,
    attempts          INTEGER NOT NULL,
    workflow_id       TEXT    NOT NULL,
    run_id            TEXT    NOT NULL,
    effect            TEXT    NOT NULL,
    fence             INTEGER NOT NULL,
    stream            TEXT    NOT NULL,
    entry_id          TEXT    NOT NULL,
    last_entry_id     TEXT    NOT NULL,
    dead_id           TEXT    NOT NULL,
    nodpt_workflow_id TEXT    NOT NULL,
    user_id           TEXT    NOT NULL,
    project_id        TEXT    NOT NULL,
    node_id           TEXT    NOT NULL,
    connection_id     TEXT    NOT NULL,
    enqueued_at       TEXT,
    started_at        TEXT,
    finished_at       TEXT,
    PRIMARY KEY (role, job_id)
) STRICT;

CREATE INDEX executor_jobs_finished_at ON executor_jobs (finished_at);
