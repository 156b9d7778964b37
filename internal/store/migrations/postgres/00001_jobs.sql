-- +goose Up
CREATE TABLE executor_meta (
    name  text COLLATE "C" NOT NULL PRIMARY KEY,
    value text NOT NULL
);

-- COLLATE "C" compares bytes: jobIds that differ in case, in trailing spaces or
-- in Unicode form are different jobs. fence is microseconds since 1970.
CREATE TABLE executor_jobs (
    role              text COLLATE "C" NOT NULL,
    job_id            text COLLATE "C" NOT NULL,
    status            text COLLATE "C" NOT NULL,
    output            text        NOT NULL,
    error_code        text        NOT NULL,
    error_message     text        NOT NULL,
    model             text        NOT NULL,
    prompt_tokens     bigint      NOT NULL,
    completion_tokens bigint      NOT NULL,
    truncated         boolean     NOT NULL,
    attempts          integer     NOT NULL,
    workflow_id       text        NOT NULL,
    run_id            text        NOT NULL,
    effect            text COLLATE "C" NOT NULL,
    fence             bigint      NOT NULL,
    stream            text        NOT NULL,
    entry_id          text        NOT NULL,
    last_entry_id     text        NOT NULL,
    dead_id           text        NOT NULL,
    nodpt_workflow_id text        NOT NULL,
    user_id           text        NOT NULL,
    project_id        text        NOT NULL,
    node_id           text        NOT NULL,
    connection_id     text        NOT NULL,
    enqueued_at       timestamptz(6),
    started_at        timestamptz(6),
    finished_at       timestamptz(6),
    PRIMARY KEY (role, job_id)
);

CREATE INDEX executor_jobs_finished_at ON executor_jobs (finished_at);
