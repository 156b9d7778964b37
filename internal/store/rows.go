package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nodpt/executor/internal/job"
)

// Widths of the columns in bytes. The decoder keeps to the same limits; here
// they make sure that no text from elsewhere, a model's name or an error, can
// be refused by MySQL's strict mode for ever.
const (
	maxJobID     = 256
	maxEffect    = 768
	maxEntryID   = 64
	maxErrorCode = 128
	maxText      = 512
	maxMessage   = 4096
	maxAnswer    = 64 << 20 // far above the answer's own cap
)

// maxKeys is how many rows one query asks for.
const maxKeys = 64

// keyColumns is how many of the columns are the key; they come first.
const keyColumns = 2

// columns returns the columns of executor_jobs in the order of values and
// scan.
func columns() []string {
	return []string{
		"role", "job_id",
		"status", "output", "error_code", "error_message", "model",
		"prompt_tokens", "completion_tokens", "truncated", "attempts",
		"workflow_id", "run_id", "effect", "fence",
		"stream", "entry_id", "last_entry_id", "dead_id",
		"nodpt_workflow_id", "user_id", "project_id", "node_id", "connection_id",
		"enqueued_at", "started_at", "finished_at",
	}
}

// values returns what is bound to columns.
func (d dialect) values(r job.Row) []any {
	return []any{
		string(r.Role), r.JobID,
		string(r.Status), r.Output, r.ErrorCode, r.ErrorMessage, r.Model,
		r.PromptTokens, r.CompletionTokens, r.Truncated, r.Attempts,
		r.WorkflowID, r.RunID, r.Effect, fenceMicros(r.Fence),
		r.Stream, r.EntryID, r.LastEntryID, r.DeadID,
		r.NodptWorkflowID, r.UserID, r.ProjectID, r.NodeID, r.ConnectionID,
		d.time(r.EnqueuedAt), d.time(r.StartedAt), d.time(r.FinishedAt),
	}
}

// scan reads columns.
func scan(rows *sql.Rows) (job.Row, error) {
	var (
		r                             job.Row
		fence                         int64
		enqueued, started, finishedAt timeColumn
	)
	err := rows.Scan(
		&r.Role, &r.JobID,
		&r.Status, &r.Output, &r.ErrorCode, &r.ErrorMessage, &r.Model,
		&r.PromptTokens, &r.CompletionTokens, &r.Truncated, &r.Attempts,
		&r.WorkflowID, &r.RunID, &r.Effect, &fence,
		&r.Stream, &r.EntryID, &r.LastEntryID, &r.DeadID,
		&r.NodptWorkflowID, &r.UserID, &r.ProjectID, &r.NodeID, &r.ConnectionID,
		&enqueued, &started, &finishedAt,
	)
	if err != nil {
		return job.Row{}, errUnreadable // database/sql's text quotes the value
	}
	r.Fence = fenceTime(fence)
	r.EnqueuedAt, r.StartedAt, r.FinishedAt = enqueued.Time, started.Time, finishedAt.Time
	return r, nil
}

// queries holds the statements of one dialect. There are few enough to read at
// a glance, which is why there is no query builder.
type queries struct {
	insert, replace, find, lock    string
	lastEntry, raise, setDead      string
	rememberIdentity, readIdentity string
}

func newQueries(d dialect) queries {
	all := columns()
	set := make([]string, 0, len(all))
	for _, c := range all[keyColumns:] {
		set = append(set, c+" = ?")
	}
	list := strings.Join(all, ", ")
	return queries{
		insert: d.bind("INSERT INTO executor_jobs (" + list + ") VALUES (?" +
			strings.Repeat(", ?", len(all)-1) + ")" + d.unlessPresent),
		replace: d.bind("UPDATE executor_jobs SET " + strings.Join(set, ", ") +
			" WHERE role = ? AND job_id = ?"),
		find:             "SELECT " + list + " FROM executor_jobs WHERE ",
		lock:             d.bind("SELECT " + list + " FROM executor_jobs WHERE role = ? AND job_id = ?" + d.forUpdate),
		lastEntry:        d.bind("SELECT last_entry_id FROM executor_jobs WHERE role = ? AND job_id = ?" + d.forUpdate),
		raise:            d.bind("UPDATE executor_jobs SET last_entry_id = ? WHERE role = ? AND job_id = ?"),
		setDead:          d.bind("UPDATE executor_jobs SET dead_id = ? WHERE role = ? AND job_id = ? AND effect = ?"),
		rememberIdentity: d.bind("INSERT INTO executor_meta (name, value) VALUES ('uuid', ?)" + d.unlessPresent),
		readIdentity:     "SELECT value FROM executor_meta WHERE name = 'uuid'",
	}
}

// insert reports whether row is the first of its key.
func (s *Store) insert(ctx context.Context, q querier, row job.Row) (bool, error) {
	return insertFirst(ctx, s.dialect, q, s.dialect.queries.insert, s.dialect.values(row)...)
}

// insertFirst reports whether the insert added a row rather than met one.
func insertFirst(ctx context.Context, d dialect, q querier, query string, args ...any) (bool, error) {
	result, err := q.ExecContext(ctx, query, args...)
	if err != nil {
		if d.reason(err).duplicate {
			return false, nil
		}
		return false, err
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

func (s *Store) replace(ctx context.Context, q querier, row job.Row) error {
	values := s.dialect.values(row)
	args := slices.Concat(values[keyColumns:], values[:keyColumns])
	_, err := q.ExecContext(ctx, s.dialect.queries.replace, args...)
	return err
}

// lock reads one row and keeps others from changing it until the transaction
// ends.
func (s *Store) lock(ctx context.Context, q querier, key job.Key) (job.Row, bool, error) {
	found, err := s.query(ctx, q, s.dialect.queries.lock, string(key.Role), key.JobID)
	if err != nil || len(found) == 0 {
		return job.Row{}, false, err
	}
	return found[0], true, nil
}

func (s *Store) lastEntry(ctx context.Context, q querier, key job.Key) (string, bool, error) {
	return oneText(ctx, q, s.dialect.queries.lastEntry, string(key.Role), key.JobID)
}

func (s *Store) setLastEntry(ctx context.Context, q querier, key job.Key, entryID string) error {
	_, err := q.ExecContext(ctx, s.dialect.queries.raise, entryID, string(key.Role), key.JobID)
	return err
}

func (s *Store) setDead(ctx context.Context, q querier, key job.Key, effect, deadID string) error {
	_, err := q.ExecContext(ctx, s.dialect.queries.setDead, deadID, string(key.Role), key.JobID, effect)
	return err
}

// find reads the rows of keys, one query per maxKeys of them. The rows are
// returned under the keys as they were given.
func (s *Store) find(ctx context.Context, keys []job.Key) (map[job.Key]job.Row, error) {
	out := make(map[job.Key]job.Row, len(keys))
	for chunk := range slices.Chunk(keys, maxKeys) {
		// One list per role and not a condition per key: a database has to read and
		// plan the query, which takes longer than finding the rows.
		ids := make(map[string][]any)
		for _, key := range chunk {
			key = cleanKey(key)
			ids[string(key.Role)] = append(ids[string(key.Role)], key.JobID)
		}
		var where strings.Builder
		args := make([]any, 0, len(ids)+len(chunk))
		for _, role := range slices.Sorted(maps.Keys(ids)) {
			if where.Len() > 0 {
				where.WriteString(" OR ")
			}
			where.WriteString("(role = ? AND job_id IN (?" + strings.Repeat(", ?", len(ids[role])-1) + "))")
			args = append(append(args, role), ids[role]...)
		}
		found, err := s.query(ctx, s.reads, s.dialect.bind(s.dialect.queries.find+where.String()), args...)
		if err != nil {
			return nil, err
		}
		stored := make(map[job.Key]job.Row, len(found))
		for _, row := range found {
			stored[row.Key()] = row
		}
		for _, key := range chunk {
			if row, ok := stored[cleanKey(key)]; ok {
				out[key] = row
			}
		}
	}
	return out, nil
}

func (s *Store) query(ctx context.Context, q querier, query string, args ...any) ([]job.Row, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []job.Row
	for rows.Next() {
		row, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, row)
	}
	return out, rows.Err()
}

// oneText reads the single value of a query that gives at most one row.
func oneText(ctx context.Context, q querier, query string, args ...any) (value string, found bool, err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return "", false, err
	}
	defer func() { _ = rows.Close() }()
	if rows.Next() {
		found = true
		if err := rows.Scan(&value); err != nil {
			return "", false, errUnreadable
		}
	}
	return value, found, rows.Err()
}

// clean makes row storable, or says why it can never be.
func clean(row job.Row) (job.Row, error) {
	switch {
	case row.Role == "" || row.JobID == "":
		return row, badRow("role and job id are required")
	case len(row.JobID) > maxJobID:
		return row, badRow(fmt.Sprintf("the job id is longer than %d bytes", maxJobID))
	case row.Effect == "":
		return row, badRow("an effect is required")
	case len(row.Effect) > maxEffect:
		return row, badRow(fmt.Sprintf("the effect is longer than %d bytes", maxEffect))
	case !terminal(row.Status):
		return row, badRow("only a terminal status can be stored")
	}
	key := cleanKey(row.Key())
	row.Role, row.JobID = key.Role, key.JobID
	row.Effect = job.SafeText(row.Effect, maxEffect)
	row.Output = job.SafeText(row.Output, maxAnswer)
	row.ErrorCode = job.SafeText(row.ErrorCode, maxErrorCode)
	row.ErrorMessage = job.SafeText(row.ErrorMessage, maxMessage)
	for _, text := range []*string{
		&row.Model, &row.WorkflowID, &row.RunID, &row.Stream, &row.NodptWorkflowID,
		&row.UserID, &row.ProjectID, &row.NodeID, &row.ConnectionID,
	} {
		*text = job.SafeText(*text, maxText)
	}
	for _, id := range []*string{&row.EntryID, &row.LastEntryID, &row.DeadID} {
		*id = job.SafeText(*id, maxEntryID)
	}
	row.LastEntryID = newestEntry(row.LastEntryID, row.EntryID)
	for _, t := range []*time.Time{&row.Fence, &row.EnqueuedAt, &row.StartedAt, &row.FinishedAt} {
		*t = cleanTime(*t)
	}
	return row, nil
}

// cleanKey is also applied to keys that are looked up, so that a key finds what
// was stored under it. A replaced character may make it longer; the column
// counts characters, and those stay as many.
func cleanKey(key job.Key) job.Key {
	return job.Key{
		Role:  job.Role(job.SafeText(string(key.Role), maxRole)),
		JobID: job.SafeText(key.JobID, 3*maxJobID),
	}
}

const maxRole = 16

// cleanTime cuts t to what every dialect can hold: whole microseconds in UTC,
// years of four digits. Anything else is no time at all.
func cleanTime(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Microsecond)
	if t.Year() < 1000 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

func fenceMicros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fenceTime(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

// timeFormat is RFC 3339 with a fixed number of digits, so that text order is
// time order.
const timeFormat = "2006-01-02T15:04:05.000000Z07:00"

func nativeTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}

func textTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.Format(timeFormat)
}

// timeColumn reads a nullable time, native or as text.
type timeColumn struct{ time.Time }

// Scan implements sql.Scanner.
func (c *timeColumn) Scan(value any) error {
	switch v := value.(type) {
	case nil:
		c.Time = time.Time{}
		return nil
	case time.Time:
		c.Time = v.UTC()
		return nil
	case string:
		t, err := time.Parse(time.RFC3339Nano, v)
		c.Time = t.UTC()
		return err
	default:
		return errors.New("not a time")
	}
}

func newestEntry(first string, more ...string) string {
	for _, id := range more {
		if job.CompareEntryIDs(id, first) > 0 {
			first = id
		}
	}
	return first
}

// terminal is false only for what a person wrote into the table.
func terminal(s job.Status) bool {
	switch s {
	case job.Completed, job.Failed, job.Rejected, job.Canceled:
		return true
	default:
		return false
	}
}
