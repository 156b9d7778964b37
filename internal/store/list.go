package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/nodpt/executor/internal/job"
)

// Filter chooses rows. Empty fields choose everything.
type Filter struct {
	Roles     []job.Role
	Statuses  []job.Status
	Codes     []string // error codes
	UserID    string
	ProjectID string
	JobIDs    []string
	// Since and Before bound the time the job ended: Since <= finished_at < Before.
	Since, Before time.Time
	// After continues behind a row of an earlier page, in the order of List.
	After *job.Row
	// Limit is the number of rows of a page; 0 is DefaultPage.
	Limit int
}

// DefaultPage is how many rows List returns where the filter does not say.
const DefaultPage = 100

// List returns rows without their output, the one that ended last first; rows
// that ended at the same time are in order of role and job id. A page shorter
// than the limit is the last one.
func (s *Store) List(ctx context.Context, f Filter) ([]job.Row, error) {
	query, args := s.dialect.list(f)
	rows, err := s.query(ctx, s.reads, s.dialect.bind(query), args...)
	if err != nil {
		return nil, s.fail(ctx, "list rows", err)
	}
	return rows, nil
}

// list is the query of a filter, and what is bound to it.
func (d dialect) list(f Filter) (query string, args []any) {
	var where []string
	add := func(condition string, values ...any) {
		where = append(where, condition)
		args = append(args, values...)
	}
	addIn := func(column string, values []any) {
		if len(values) > 0 {
			add(column+" IN (?"+strings.Repeat(", ?", len(values)-1)+")", values...)
		}
	}
	addIn("role", bound(f.Roles))
	addIn("status", bound(f.Statuses))
	addIn("error_code", bound(f.Codes))
	addIn("job_id", bound(f.JobIDs))
	if f.UserID != "" {
		add("user_id = ?", f.UserID)
	}
	if f.ProjectID != "" {
		add("project_id = ?", f.ProjectID)
	}
	if !f.Since.IsZero() {
		add("finished_at >= ?", d.time(cleanTime(f.Since)))
	}
	if !f.Before.IsZero() {
		add("finished_at < ?", d.time(cleanTime(f.Before)))
	}
	if a := f.After; a != nil {
		at := d.time(cleanTime(a.FinishedAt))
		add("(finished_at < ? OR finished_at = ? AND (role > ? OR role = ? AND job_id > ?))",
			at, at, string(a.Role), string(a.Role), a.JobID)
	}
	list := slices.Clone(columns())
	list[slices.Index(list, "output")] = "''" // an answer may be megabytes
	query = "SELECT " + strings.Join(list, ", ") + " FROM executor_jobs"
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	limit := f.Limit
	if limit <= 0 {
		limit = DefaultPage
	}
	query += " ORDER BY finished_at DESC, role, job_id LIMIT ?"
	return query, append(args, limit)
}

func bound[T ~string](values []T) []any {
	out := make([]any, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}
