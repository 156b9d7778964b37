package retry

import (
	"context"
	"errors"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// Letter is a dead letter and what has become of its job since.
type Letter struct {
	stream.Dead
	Role job.Role
	// Job has the identifiers of the job; no ID where the entry had no usable one.
	Job job.Job
	// Row is the row that tells of the dead letter, or the one that came after it;
	// nil where there is none.
	Row *job.Row
	// Resolved says that nobody needs to look at it any more: its job is completed,
	// or ended in another way since. Of an entry that was rejected: the job it names
	// is completed through a later entry.
	Resolved bool
}

// Letters finds out what became of the jobs of dead letters. All are of streams of
// known roles.
func Letters(ctx context.Context, rows Rows, dead []stream.Dead) ([]Letter, error) {
	letters := make([]Letter, len(dead))
	var keys []job.Key
	for i, d := range dead {
		letters[i] = letter(d)
		l := &letters[i]
		keys = append(keys, l.rejectedKey())
		if l.Job.ID != "" {
			keys = append(keys, l.key())
		}
	}
	found, err := ByKey(ctx, rows, keys)
	if err != nil {
		return nil, err
	}
	for i := range letters {
		letters[i].settle(found)
	}
	return letters, nil
}

func letter(d stream.Dead) Letter {
	role := roleOf(d.Stream)
	l := Letter{Dead: d, Role: role}
	decoded, err := job.Decode(role, job.Entry{Stream: d.Stream, ID: d.EntryID, Fields: d.Fields})
	if rejection, ok := errors.AsType[*job.Rejection](err); ok {
		l.Job = rejection.Job
	} else {
		l.Job = decoded.Job.Identifiers()
	}
	l.Job.Role = role
	return l
}

func roleOf(key string) job.Role {
	for _, r := range job.Roles() {
		if r.Stream() == key {
			return r
		}
	}
	return ""
}

func (l *Letter) key() job.Key { return job.Key{Role: l.Role, JobID: l.Job.ID} }

func (l *Letter) rejectedKey() job.Key {
	return job.Key{Role: l.Role, JobID: job.RejectedID(l.EntryID)}
}

// settle decides by the rows. Where they leave it open, the letter is unresolved.
func (l *Letter) settle(rows map[job.Key]job.Row) {
	own, found := rows[l.key()]
	if rejected, ok := rows[l.rejectedKey()]; ok {
		l.Row = &rejected
		l.Resolved = found && own.Status == job.Completed && job.CompareEntryIDs(own.LastEntryID, l.EntryID) > 0
		return
	}
	if !found {
		return
	}
	l.Row = &own
	switch own.Status {
	case job.Completed, job.Canceled:
		l.Resolved = true
	case job.Failed, job.Rejected:
		// Without an id the row is younger than its dead letter, maybe this one.
		l.Resolved = own.DeadID != "" && own.DeadID != l.ID
	}
}

// Replayer adds the entries of dead letters again.
type Replayer struct {
	Streams Streams
	Pace    Pace
}

// Do adds letters in the order given, like Retrier.Do. A letter's fields are read
// again, so that the letters need not carry them.
func (r *Replayer) Do(ctx context.Context, letters []Letter, report func(int, Result)) ([]Result, error) {
	results := make([]Result, len(letters))
	for i, l := range letters {
		results[i].Row = job.Row{Role: l.Role, JobID: l.Job.ID}
		if l.Row != nil && l.Row.JobID == l.Job.ID {
			results[i].Row = *l.Row
		}
	}
	err := r.Pace.each(ctx, len(letters), func(ctx context.Context, i int) error {
		res, err := r.one(ctx, letters[i])
		if err != nil {
			return err
		}
		res.Row = results[i].Row
		results[i] = res
		return nil
	}, func(i int) { report(i, results[i]) })
	return results, err
}

func (r *Replayer) one(ctx context.Context, l Letter) (Result, error) {
	if l.Resolved {
		return Result{Action: Resolved}, nil
	}
	dead, found, err := r.Streams.ReadDead(ctx, l.Stream, l.ID)
	switch {
	case err != nil:
		return Result{}, &OutageError{err}
	case !found:
		return cannot("it is deleted"), nil
	case dead.Truncated:
		return cannot("it is shortened, because the entry was larger than 64 KiB: send the job again from where it came"), nil
	}
	fields, err := fieldsAgain(l.Role, dead.EntryID, dead.Fields)
	if err != nil {
		return verdict(err)
	}
	id, err := r.Streams.Add(ctx, l.Stream, fields)
	if err != nil {
		return Result{}, addFailed(err)
	}
	return Result{Action: Resent, EntryID: id}, nil
}
