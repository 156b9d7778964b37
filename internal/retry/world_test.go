package retry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeRuns is a workflow service that remembers requests, as the real one does.
type fakeRuns struct {
	mu      sync.Mutex
	current map[string]Run    // by workflow id
	begun   map[string]string // request id → run id
	asked   []string          // workflow ids in the order of Again
	last    Request

	// lose is how many replies to Again are lost after the run was started; down is
	// how many calls fail before anything was done; refuse is the answer to Again.
	lose, down int
	refuse     error
	hook       func(workflowID string) // called at each Again
}

var errLost = errors.New("the connection was cut")

func (f *fakeRuns) Current(_ context.Context, workflowID string) (Run, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down > 0 {
		f.down--
		return Run{}, errLost
	}
	run, ok := f.current[workflowID]
	if !ok {
		return Run{}, ErrGone
	}
	return run, nil
}

func (f *fakeRuns) Again(_ context.Context, run Run, req Request) (string, error) {
	if f.hook != nil {
		f.hook(run.WorkflowID)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, run.WorkflowID)
	f.last = req
	if f.refuse != nil {
		return "", f.refuse
	}
	id, again := f.begun[req.ID]
	if !again {
		if current := f.current[run.WorkflowID]; current.Open {
			return "", &OpenError{current.RunID}
		}
		id = fmt.Sprintf("again-%d-of-%s", len(f.begun)+1, run.RunID)
		if f.begun == nil {
			f.begun = map[string]string{}
		}
		f.begun[req.ID] = id
		f.current[run.WorkflowID] = Run{WorkflowID: run.WorkflowID, RunID: id, Open: true}
	}
	if f.lose > 0 {
		f.lose--
		return "", errLost
	}
	return id, nil
}

// fakeRows is a result store in memory.
type fakeRows struct {
	mu      sync.Mutex
	rows    []job.Row
	queries []store.Filter
	err     error
}

func (f *fakeRows) List(_ context.Context, filter store.Filter) ([]job.Row, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queries = append(f.queries, filter)
	if f.err != nil {
		return nil, f.err
	}
	rows := slices.Clone(f.rows)
	slices.SortStableFunc(rows, func(a, b job.Row) int { return b.FinishedAt.Compare(a.FinishedAt) })
	var found []job.Row
	for _, r := range rows {
		switch {
		case len(filter.Roles) > 0 && !slices.Contains(filter.Roles, r.Role),
			len(filter.JobIDs) > 0 && !slices.Contains(filter.JobIDs, r.JobID),
			len(filter.Statuses) > 0 && !slices.Contains(filter.Statuses, r.Status),
			filter.After != nil && !r.FinishedAt.Before(filter.After.FinishedAt):
			continue
		}
		if found = append(found, r); len(found) == filter.Limit {
			break
		}
	}
	return found, nil
}

func (f *fakeRows) put(row job.Row) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows = slices.DeleteFunc(f.rows, func(r job.Row) bool { return r.Key() == row.Key() })
	f.rows = append(f.rows, row)
}

// fakeStreams is Redis.
type fakeStreams struct {
	mu      sync.Mutex
	entries map[string]job.Entry // by stream/id
	dead    map[string]stream.Dead
	added   []job.Entry
	err     error // of Add
}

func (f *fakeStreams) Entry(_ context.Context, key, id string) (job.Entry, bool, error) {
	e, ok := f.entries[key+"/"+id]
	return e, ok, nil
}

func (f *fakeStreams) ReadDead(_ context.Context, key, id string) (stream.Dead, bool, error) {
	d, ok := f.dead[key+"/"+id]
	return d, ok, nil
}

func (f *fakeStreams) Add(_ context.Context, key string, fields []job.Field) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return "", f.err
	}
	id := fmt.Sprintf("9000-%d", len(f.added)+1)
	f.added = append(f.added, job.Entry{Stream: key, ID: id, Fields: fields})
	return id, nil
}

func (f *fakeStreams) connect(context.Context) (Streams, error) { return f, nil }

// failedJob is the row of a job of which the fakes have a closed run.
func failedJob(id string) job.Row {
	row := job.NewRow(
		job.Job{Role: job.Agent, ID: id}, job.Origin{Stream: "jobs:agent", EntryID: "1000-1"}, "entry:jobs:agent/1000-1",
		job.Outcome{Status: job.Failed, ErrorCode: "llm_timeout", FinishedAt: time.UnixMilli(2000).UTC()})
	row.WorkflowID, row.RunID, row.DeadID = job.WorkflowID(job.Agent, id), "run-of-"+id, "2000-1"
	return row
}

// world is a service on which those jobs' runs are closed, and a retrier for it.
func world(rows ...job.Row) (*fakeRuns, *fakeStreams, *Retrier) {
	runs := &fakeRuns{current: map[string]Run{}}
	for _, row := range rows {
		runs.current[row.WorkflowID] = Run{WorkflowID: row.WorkflowID, RunID: row.RunID}
	}
	streams := &fakeStreams{entries: map[string]job.Entry{}, dead: map[string]stream.Dead{}}
	return runs, streams, &Retrier{
		Runs: runs, Streams: streams.connect,
		Options: Options{Reason: "why", Pace: Pace{Rate: 1e6, Parallel: 1}},
	}
}

func fields(pairs ...string) []job.Field {
	var out []job.Field
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, job.Field{Name: pairs[i], Value: pairs[i+1]})
	}
	return out
}
