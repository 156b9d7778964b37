-- +goose NO TRANSACTION
-- +goose Up
-- MySQL commits at every DDL statement, so each step can be repeated: a process
-- that dies between two of them leaves nothing the next one stumbles over.
CREATE TABLE IF NOT EXISTS executor_meta (
    name  VARCHAR(64)  NOT NULL PRIMARY KEY,
    value VARCHAR(255) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Times are UTC. fence is microseconds since 1970.
CREATE TABLE IF NOT EXISTS executor_jobs (
    role              VARCHAR(16)  NOT NULL,
    job_id            VARCHAR(256) NOT NULL,
    status            VARCHAR(16)  NOT NULL,
    output            LONGTEXT     NOT NULL,
    error_code        VARCHAR(128) NOT NULL,
    error_message     TEXT         NOT NULL,
    model             VARCHAR(512) NOT NULL,
    prompt_tokens     BIGINT       NOT NULL,
    completion_tokens BIGINT       NOT NULL,
    truncated         BOOLEAN      NOT NULL,
    attempts          INT          NOT NULL,
    workflow_id       VARCHAR(512) NOT NULL,
    run_id            VARCHAR(512) NOT NULL,
    effect            VARCHAR(768) NOT NULL,
    fence             BIGINT       NOT NULL,
    stream            VARCHAR(512) NOT NULL,
    entry_id          VARCHAR(64)  NOT NULL,
    last_entry_id     VARCHAR(64)  NOT NULL,
    dead_id           VARCHAR(64)  NOT NULL,
    nodpt_workflow_id VARCHAR(512) NOT NULL,
    user_id           VARCHAR(512) NOT NULL,
    project_id        VARCHAR(512) NOT NULL,
    node_id           VARCHAR(512) NOT NULL,
    connection_id     VARCHAR(512) NOT NULL,
    enqueued_at       DATETIME(6)  NULL,
    started_at        DATETIME(6)  NULL,
    finished_at       DATETIME(6)  NULL,
    PRIMARY KEY (role, job_id),
    KEY executor_jobs_finished_at (finished_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- utf8mb4_bin ignores trailing spaces, and jobIds must not. MySQL 8 and MariaDB
-- each have a byte-comparing collation that does not, under different names;
-- where there is neither the column stays as it is.
SET @executor_collation = (
    SELECT MAX(COLLATION_NAME) FROM information_schema.COLLATIONS
    WHERE COLLATION_NAME IN ('utf8mb4_0900_bin', 'utf8mb4_nopad_bin')
);
SET @executor_exact = CONCAT(
    'ALTER TABLE executor_jobs MODIFY job_id VARCHAR(256) CHARACTER SET utf8mb4 COLLATE ',
    COALESCE(@executor_collation, 'utf8mb4_bin'),
    ' NOT NULL'
);
PREPARE executor_exact FROM @executor_exact;
EXECUTE executor_exact;
DEALLOCATE PREPARE executor_exact;
