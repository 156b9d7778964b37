package retry

import (
	"context"
	"slices"
	"time"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
)

const (
	rowsPerPage  = 1000
	rowsPerQuery = 100 // jobs asked for by id
)

// Select returns all rows that a filter chooses, the one that ended first first.
func Select(ctx context.Context, rows Rows, f store.Filter) ([]job.Row, error) {
	f.Limit = rowsPerPage
	var all []job.Row
	for {
		page, err := rows.List(ctx, f)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if len(page) < f.Limit {
			break
		}
		f.After = &page[len(page)-1]
	}
	slices.Reverse(all)
	return all, nil
}

// ByKey returns the rows of those jobs that have one.
func ByKey(ctx context.Context, rows Rows, keys []job.Key) (map[job.Key]job.Row, error) {
	byRole := make(map[job.Role][]string)
	for _, k := range keys {
		byRole[k.Role] = append(byRole[k.Role], k.JobID)
	}
	found := make(map[job.Key]job.Row, len(keys))
	for role, ids := range byRole {
		slices.Sort(ids)
		for chunk := range slices.Chunk(slices.Compact(ids), rowsPerQuery) {
			page, err := rows.List(ctx, store.Filter{Roles: []job.Role{role}, JobIDs: chunk, Limit: rowsPerQuery})
			if err != nil {
				return nil, err
			}
			for _, row := range page {
				found[row.Key()] = row
			}
		}
	}
	return found, nil
}

// Await looks for the new outcomes of jobs that run or were sent again, every so
// often, until all are there or ctx ends. A row that tells of another run than it
// did when the job was chosen is a new outcome, whichever run it tells of. It
// returns how many are missing.
func Await(ctx context.Context, rows Rows, results []Result, every time.Duration, report func(Result)) (int, error) {
	for {
		var waiting []*Result
		var keys []job.Key
		for i := range results {
			if r := &results[i]; r.awaits() {
				waiting = append(waiting, r)
				keys = append(keys, r.Row.Key())
			}
		}
		if len(waiting) == 0 {
			return 0, nil
		}
		found, err := ByKey(ctx, rows, keys)
		if err != nil && ctx.Err() == nil {
			return len(waiting), err
		}
		missing := len(waiting)
		for _, r := range waiting {
			if row, ok := found[r.Row.Key()]; ok && row.Effect != r.Row.Effect {
				r.Outcome = &row
				missing--
				report(*r)
			}
		}
		if missing == 0 {
			return 0, nil
		}
		timer := time.NewTimer(every)
		select {
		case <-ctx.Done():
			timer.Stop()
			return missing, ctx.Err()
		case <-timer.C:
		}
	}
}

// awaits reports whether an outcome is to be expected and is not there.
func (r *Result) awaits() bool {
	return r.Outcome == nil && (r.Action == Retried || r.Action == Running || r.Action == Resent)
}
