package jobs

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
)

const (
	lookEvery = 500 * time.Millisecond
	// patience is how long a server may be away before those who watch are told.
	patience = 30 * time.Second
	tailWait = 500 * time.Millisecond // a blocked read is not interrupted
)

// Follow looks at jobs again and again and passes each to changed first, and then
// whenever its state has changed, until all have ended. It returns how they ended.
// Servers may be away for a while.
func (v *View) Follow(ctx context.Context, all []Found, changed func(Found) error) ([]Found, error) {
	all = slices.Clone(all)
	for _, f := range all {
		if err := changed(f); err != nil {
			return all, err
		}
	}
	good := v.now()
	for slices.ContainsFunc(all, func(f Found) bool { return !f.Ended() }) {
		if err := pause(ctx, v.every); err != nil {
			return all, err
		}
		next := slices.Clone(all)
		err := parallel(ctx, len(all), func(ctx context.Context, i int) (err error) {
			if !all[i].Ended() {
				next[i], err = v.Again(ctx, all[i])
			}
			return err
		})
		switch {
		case ctx.Err() != nil:
			return all, ctx.Err()
		case err != nil && v.now().Sub(good) < patience:
			continue
		case err != nil:
			return all, err
		}
		good = v.now()
		for i, f := range next {
			if f.sign() != all[i].sign() {
				if err := changed(f); err != nil {
					return next, err
				}
			}
		}
		all = next
	}
	return all, nil
}

// sign is what makes a state another one.
func (f Found) sign() [4]any { return [4]any{f.State(), f.Attempts, f.Code, f.RunID} }

// pause waits, but not for longer than ctx lasts.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Outcome is an update, without its content, and what the row says about it.
type Outcome struct {
	At               time.Time `json:"at"`
	Role             job.Role  `json:"role"`
	JobID            string    `json:"jobId"`
	Status           Status    `json:"status"`
	Code             string    `json:"code,omitempty"`
	Model            string    `json:"model,omitempty"`
	PromptTokens     int64     `json:"promptTokens,omitempty"`
	CompletionTokens int64     `json:"completionTokens,omitempty"`
	Truncated        bool      `json:"truncated,omitempty"`
	TookMS           int64     `json:"tookMs"`
	UserID           string    `json:"userId,omitempty"`
	ProjectID        string    `json:"projectId,omitempty"`
	// Repeated marks the stored answer of a job that was asked for again.
	Repeated  bool   `json:"repeated,omitempty"`
	MessageID string `json:"messageId"`
	UpdateID  string `json:"updateId"` // id of the entry in signalr:updates
}

// Took is the time from the start of the job's run to its end.
func (o Outcome) Took() time.Duration { return time.Duration(o.TookMS) * time.Millisecond }

// Outcomes follows signalr:updates and passes each outcome to yield as it comes,
// until ctx ends. No roles stand for all.
func (v *View) Outcomes(ctx context.Context, roles []job.Role, yield func(Outcome) error) error {
	after, err := v.streams.LastID(ctx, stream.Updates)
	if err != nil {
		return err
	}
	good := v.now()
	for {
		entries, err := v.streams.TailUpdates(ctx, stream.Updates, after, tailWait)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && v.now().Sub(good) < patience:
			if err := pause(ctx, v.every); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		good = v.now()
		if len(entries) > 0 {
			after = entries[len(entries)-1].ID
		}
		for _, o := range v.outcomes(ctx, entries) {
			if len(roles) > 0 && !slices.Contains(roles, o.Role) {
				continue
			}
			if err := yield(o); err != nil {
				return err
			}
		}
	}
}

// outcomes reads updates. What is no outcome, or not ours, is left out. A store
// that does not answer only makes them shorter.
func (v *View) outcomes(ctx context.Context, entries []job.Entry) []Outcome {
	var all []Outcome
	var ids []string
	for _, e := range entries {
		if o, ok := outcomeOf(e); ok {
			all = append(all, o)
			ids = append(ids, o.JobID)
		}
	}
	if v.rows == nil || len(all) == 0 {
		return all
	}
	rows, err := v.rows.List(ctx, store.Filter{JobIDs: ids, Limit: len(ids) * len(job.Roles())})
	if err != nil {
		return all
	}
	byKey := map[job.Key]job.Row{}
	for _, row := range rows {
		byKey[row.Key()] = row
	}
	for i := range all {
		row, ok := byKey[job.Key{Role: all[i].Role, JobID: all[i].JobID}]
		if ok {
			all[i].add(row)
		}
	}
	return all
}

// outcomeOf is what an update says by itself.
func outcomeOf(e job.Entry) (Outcome, bool) {
	fields := map[string]string{}
	for _, f := range e.Fields {
		fields[f.Name] = f.Value
	}
	role, err := job.ParseRole(fields["Role"])
	if err != nil || fields["MessageId"] == "" {
		return Outcome{}, false
	}
	o := Outcome{
		Role: role, JobID: fields["JobId"], UserID: fields["UserId"], ProjectID: fields["ProjectId"],
		MessageID: fields["MessageId"], UpdateID: e.ID, At: job.EntryTime(e.ID),
	}
	if at, err := time.Parse(time.RFC3339Nano, fields["Timestamp"]); err == nil {
		o.At = at
	}
	switch fields["Type"] {
	case stream.TypeResult:
		o.Status = Completed
	case stream.TypeError:
		var payload struct {
			Code string `json:"code"`
		}
		_ = json.Unmarshal([]byte(fields["Payload"]), &payload) // without a code it failed all the same
		o.Code, o.Status = payload.Code, Failed
		switch {
		case payload.Code == string(job.Canceled):
			o.Status = Canceled
		case slices.Contains(job.Reasons(), payload.Code):
			o.Status = Rejected
		}
	default:
		return Outcome{}, false // parts of an answer, not its end
	}
	return o, true
}

// add copies from the row what an update does not say, if the row still holds
// that outcome. A result beside the one of the row is the stored answer, given
// again: it is published before the row notes for which entry.
func (o *Outcome) add(row job.Row) {
	switch {
	case o.MessageID == stream.MessageID(row.Effect):
		o.TookMS = max(row.FinishedAt.Sub(row.StartedAt).Milliseconds(), 0)
	case o.Status == Completed && row.Status == job.Completed:
		o.Repeated = true
	default:
		return
	}
	o.Status, o.Code = Status(row.Status), row.ErrorCode
	o.Model, o.PromptTokens, o.CompletionTokens, o.Truncated = row.Model, row.PromptTokens, row.CompletionTokens, row.Truncated
}
