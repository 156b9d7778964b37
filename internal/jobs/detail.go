package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	workflowpb "go.temporal.io/api/workflow/v1"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/retry"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/workflows"
)

// Detail is everything there is to know about a job.
type Detail struct {
	Job
	// Cause says to operators why the job failed, where its run still tells: what the
	// LLM answered, which attempt, model and endpoint. It holds no content.
	Cause string `json:"cause,omitempty"`
	// MessageID is the id of the update for what the row says.
	MessageID string `json:"messageId,omitempty"`
	// AnswerID is the id of the update that answered the last entry, where that one
	// asked again for a job that was completed.
	AnswerID    string       `json:"answerId,omitempty"`
	DeadLetters []DeadLetter `json:"deadLetters"`
	Runs        []Run        `json:"runs"` // the latest first
	// Tries are the attempts of the latest run of which something is known.
	Tries []Attempt `json:"tries"`
	// Notes say what could not be found out, and why.
	Notes   []string `json:"notes,omitempty"`
	Content *Content `json:"content,omitempty"`
}

// DeadLetter is a copy of an entry of the job in the dead-letter stream. It is
// resolved when the job has ended in another way since.
type DeadLetter struct {
	Stream   string `json:"stream"`
	ID       string `json:"id"`
	Reason   string `json:"reason"`
	Resolved bool   `json:"resolved"`
}

// Run is one run of the job's workflow.
type Run struct {
	RunID     string    `json:"runId"`
	Status    string    `json:"status"` // Temporal's, in lower case
	StartedAt time.Time `json:"startedAt,omitzero"`
	ClosedAt  time.Time `json:"closedAt,omitzero"`
	Attempts  int       `json:"attempts,omitempty"` // at the call
	Code      string    `json:"code,omitempty"`
	Message   string    `json:"message,omitempty"`
	// Verdict is what the store made of a completed run's outcome: written, kept or
	// superseded.
	Verdict job.Verdict `json:"verdict,omitempty"`
	// Speaks reports whether the row is this run's.
	Speaks bool `json:"speaks"`
	// Effect names the outcome, where that can be told; MessageID is that of the
	// update for it, if the run has ended and was not superseded.
	Effect    string `json:"effect,omitempty"`
	MessageID string `json:"messageId,omitempty"`
	UI        string `json:"ui,omitempty"`
}

// Attempt is one attempt at a step. Of those before the last, Temporal keeps the
// failure of one.
type Attempt struct {
	Step      Step      `json:"step"`
	Attempt   int       `json:"attempt,omitempty"`
	Status    string    `json:"status"` // waiting, running, completed, failed or canceled
	StartedAt time.Time `json:"startedAt,omitzero"`
	EndedAt   time.Time `json:"endedAt,omitzero"`
	NextAt    time.Time `json:"nextAt,omitzero"`
	Worker    string    `json:"worker,omitempty"`
	Code      string    `json:"code,omitempty"`
	Message   string    `json:"message,omitempty"`
	// Cause is for operators, where the message is for users. It holds no content.
	Cause string `json:"cause,omitempty"`
	// State, StateSince, Model and Endpoint are what a running call says of itself.
	State      string    `json:"state,omitempty"`
	StateSince time.Time `json:"stateSince,omitzero"`
	Model      string    `json:"model,omitempty"`
	Endpoint   string    `json:"endpoint,omitempty"`
}

// Content is what a job asked and what was answered. It may be confidential.
type Content struct {
	Task    string `json:"task,omitempty"`
	Payload string `json:"payload,omitempty"`
	Answer  string `json:"answer,omitempty"`
}

const (
	maxRuns = 20 // of a job that are looked at closely
	// Dead letters are looked for from a while before the job's first failure on:
	// their ids are times of Redis, the failures are dated by others.
	deadSlack = time.Minute
	deadPages = 50
)

// Detail reads the rest about a job that was found. Its task, its payload and its
// answer are read only if content is set.
func (v *View) Detail(ctx context.Context, f Found, content bool) (Detail, error) {
	d := Detail{Job: f.Job, DeadLetters: []DeadLetter{}, Runs: []Run{}, Tries: []Attempt{}}
	if f.row != nil {
		d.MessageID = stream.MessageID(f.row.Effect)
		if f.row.Status == job.Completed && f.row.LastEntryID != f.row.EntryID {
			d.AnswerID = stream.MessageID(job.AnswerEffect(f.row.Stream, f.row.LastEntryID))
		}
	}
	input, err := v.addRuns(ctx, &d, f)
	if err != nil {
		return d, err
	}
	v.addDeadLetters(ctx, &d, f)
	if content {
		if err := v.addContent(ctx, &d, f, input); err != nil {
			return d, err
		}
	}
	return d, nil
}

func (d *Detail) note(format string, args ...any) {
	d.Notes = append(d.Notes, fmt.Sprintf(format, args...))
}

// addRuns lists the runs of the job's workflow and the attempts of the latest, and
// returns the input of one, if there is any.
func (v *View) addRuns(ctx context.Context, d *Detail, f Found) (*commonpb.Payloads, error) {
	switch {
	case v.runs == nil:
		return nil, nil
	case f.run == nil && f.row != nil && f.row.RunID != "":
		d.note("The history of this job is gone: Temporal keeps it for the namespace's retention time only.")
		return nil, nil
	case f.run == nil:
		return nil, nil
	}
	infos, err := v.runsOf(ctx, *f.run)
	if err != nil {
		return nil, err
	}
	if len(infos) > maxRuns {
		d.note("Only the last %d of %d runs are shown.", maxRuns, len(infos))
		infos = infos[:maxRuns]
	}
	stories := make([]story, len(infos))
	err = parallel(ctx, len(infos), func(ctx context.Context, i int) (err error) {
		if stories[i], err = v.tell(ctx, infos[i]); errors.Is(err, errNoRun) {
			return nil // deleted a moment ago
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if f.run.open() {
		v.underway(&stories[0], *f.run)
	}
	var input *commonpb.Payloads
	for i, info := range infos {
		r := v.runOf(info, stories[i], f.row)
		d.Runs = append(d.Runs, r)
		if r.Speaks && d.Status == Failed {
			d.Cause = stories[i].cause(d.Code)
		}
		if len(d.Tries) == 0 && stories[i].attempts != nil {
			d.Tries = stories[i].attempts
		}
		if input == nil {
			input = stories[i].input
		}
	}
	return input, nil
}

// runsOf are all runs of the latest one's workflow, that one first.
func (v *View) runsOf(ctx context.Context, latest run) ([]*workflowpb.WorkflowExecutionInfo, error) {
	infos := []*workflowpb.WorkflowExecutionInfo{latest.info()}
	query := "WorkflowId = '" + latest.workflowID() + "'" // parsed, hence without quotes
	err := v.each(ctx, conditions{plain: query}, func(page []*workflowpb.WorkflowExecutionInfo) error {
		for _, info := range page {
			if info.GetExecution().GetRunId() != latest.id() && info.GetType().GetName() == workflows.WorkflowType {
				infos = append(infos, info)
			}
		}
		return nil
	})
	return infos, err
}

func (v *View) runOf(info *workflowpb.WorkflowExecutionInfo, s story, row *job.Row) Run {
	e := info.GetExecution()
	r := Run{
		RunID: e.GetRunId(), Status: statusName(info.GetStatus()),
		StartedAt: timeOf(info.GetStartTime()), ClosedAt: timeOf(info.GetCloseTime()),
		Attempts: s.called, Code: s.code, Message: s.message, Verdict: s.verdict,
		Speaks: row != nil && row.RunID == e.GetRunId(),
		Effect: v.effect(info), UI: v.link(e.GetWorkflowId(), e.GetRunId()),
	}
	if r.Speaks {
		r.Effect = row.Effect
	}
	if r.Effect != "" && !isOpen(info.GetStatus()) && s.verdict != job.Superseded {
		r.MessageID = stream.MessageID(r.Effect)
	}
	return r
}

// effect is the outcome a run speaks for, by the rule of workflows.JobWorkflow;
// empty where that stands in a memo that cannot be read.
func (v *View) effect(info *workflowpb.WorkflowExecutionInfo) string {
	runID := info.GetExecution().GetRunId()
	_, ours := info.GetMemo().GetFields()[workflows.MemoEntryID]
	first := info.GetFirstRunId() == "" || info.GetFirstRunId() == runID
	if !ours || !first {
		return job.RunEffect(runID)
	}
	entry := v.memo(info.GetMemo(), workflows.MemoEntryID)
	if entry == "" {
		return ""
	}
	return job.EntryEffect(v.memo(info.GetMemo(), workflows.MemoStream), entry)
}

// addDeadLetters finds the job's dead letters, the newest first. The row names at
// most one, that of the outcome it holds; all of them are in the stream.
func (v *View) addDeadLetters(ctx context.Context, d *Detail, f Found) {
	since := f.Since()
	if since.IsZero() {
		since = f.FinishedAt
	}
	for _, r := range d.Runs {
		if !r.ClosedAt.IsZero() && r.Status != "completed" {
			since = r.ClosedAt // of the earliest that failed: they come last
		}
	}
	if v.streams == nil || since.IsZero() {
		return
	}
	var mine []stream.Dead
	page := stream.DeadRange{Since: since.Add(-deadSlack)}
	for look := 0; ; look++ {
		dead, err := v.streams.DeadLetters(ctx, f.key.Role.Stream(), page)
		if err != nil {
			d.note("Dead letters could not be looked for: %v.", err)
			break
		}
		for _, letter := range dead {
			if f.owns(letter) {
				mine = append(mine, letter)
			}
		}
		if len(dead) == 0 {
			break
		}
		if page.Before = dead[len(dead)-1].ID; look == deadPages {
			d.note("Dead letters were looked for among the newest only.")
			break
		}
	}
	for _, letter := range mine {
		known := DeadLetter{Stream: stream.DeadStream(letter.Stream), ID: letter.ID, Reason: letter.Reason}
		if v.rows != nil {
			letters, err := retry.Letters(ctx, v.rows, []stream.Dead{letter})
			known.Resolved = err == nil && letters[0].Resolved
		}
		d.DeadLetters = append(d.DeadLetters, known)
	}
}

// owns reports whether a dead letter is the job's.
func (f Found) owns(letter stream.Dead) bool {
	if letter.EntryID != "" && (letter.EntryID == f.EntryID || letter.EntryID == f.LastEntryID) {
		return true
	}
	j, ok := jobOf(f.key.Role, job.Entry{Stream: letter.Stream, ID: letter.EntryID, Fields: letter.Fields})
	return ok && j.ID != "" && j.ID == f.key.JobID
}

// addContent reads task, payload and answer from wherever they still are.
func (v *View) addContent(ctx context.Context, d *Detail, f Found, input *commonpb.Payloads) error {
	d.Content = &Content{}
	if err := v.addTask(ctx, d, f, input); err != nil {
		return err
	}
	if v.rows == nil || f.row == nil || f.row.Status != job.Completed {
		return nil
	}
	row, found, err := v.rows.Row(ctx, f.row.Key())
	if found {
		d.Content.Answer = row.Output
	}
	return err
}

func (v *View) addTask(ctx context.Context, d *Detail, f Found, input *commonpb.Payloads) error {
	if input != nil {
		in, err := v.decodeInput(input)
		if err == nil {
			d.Content.Task, d.Content.Payload = in.Job.Task, in.Job.Payload
			return nil
		}
		if encrypted(input) {
			d.note("Task and payload are encrypted in Temporal, and no key in ENCRYPTION_KEYS fits.")
		} else {
			d.note("Task and payload in Temporal cannot be read: they were written by another version.")
		}
	}
	entry, found := job.Entry{}, false
	switch {
	case f.entry != nil:
		entry, found = *f.entry, true
	case v.streams != nil && f.EntryID != "":
		var err error
		if entry, found, err = v.streams.Entry(ctx, f.key.Role.Stream(), f.EntryID); err != nil {
			return err
		}
	}
	if !found {
		d.note("Task and payload are gone: neither Temporal nor the stream has them any more.")
		return nil
	}
	decoded, err := job.Decode(f.key.Role, entry)
	if err != nil {
		d.note("The entry cannot be read as a job: see XRANGE %s %s %s.", entry.Stream, entry.ID, entry.ID)
		return nil //nolint:nilerr // a rejected entry; why is in the row
	}
	d.Content.Task, d.Content.Payload = decoded.Job.Task, decoded.Job.Payload
	return nil
}

// encrypted reports whether payloads are marked so.
func encrypted(payloads *commonpb.Payloads) bool {
	for _, p := range payloads.GetPayloads() {
		if string(p.GetMetadata()["encoding"]) == "binary/encrypted" {
			return true
		}
	}
	return false
}
