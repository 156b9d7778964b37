// Package outcome puts a job's terminal row into the words the outside world
// reads: an entry for the updates stream, a text for the legacy chat channel, a
// dead letter. The bridge and the final activities both publish, and they must
// publish the same thing for the same row, or a job that one of them finished
// and the other repeats would be told twice in different ways.
package outcome

import (
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// Update is what the stream updates shows of row for the job j, under the
// identity effect. j says whom to tell: for a repeated answer it is the newer
// job and not the one the row was written for. Chats that came through the
// legacy list are answered on stream.ChatChannel as well.
func Update(row job.Row, j job.Job, updates, effect string) stream.Update {
	if j.ID == "" {
		j.ID = row.JobID
	}
	u := stream.Update{
		Effect: effect,
		Stream: updates,
		Type:   stream.TypeResult,
		Job:    j,
		At:     row.FinishedAt,
	}
	if row.Status == job.Completed {
		u.Payload = row.Output
	} else {
		u.Type = stream.TypeError
		u.Payload = stream.ErrorPayload(row.ErrorCode, row.ErrorMessage)
	}
	if j.Source == job.SourceList {
		u.Channel = stream.ChatChannel
		u.ChannelText = channelText(row, j)
	}
	return u
}

// channelText is the text a browser of the legacy chat shows. A failure is
// marked so that nobody takes it for an answer, and is always the same words:
// the channel has no field of its own for errors.
func channelText(row job.Row, j job.Job) string {
	if row.Status == job.Completed {
		return row.Output
	}
	return "[NodPT error] This message could not be answered (code " + row.ErrorCode + ", job " + j.ID + ")."
}

// NeedsDeadLetter reports whether a job that ended so leaves a dead letter.
// Cancelling is a person's decision, not a fault, and leaves none.
func NeedsDeadLetter(s job.Status) bool { return s == job.Failed || s == job.Rejected }

// DeadLetter is the record of row's entry in its dead-letter stream. fields are
// the entry's, or those of the job (job.Job.Fields) where the entry is gone.
func DeadLetter(row job.Row, fields []job.Field, effect string) stream.DeadLetter {
	return stream.DeadLetter{
		Effect:   effect,
		Stream:   row.Stream,
		EntryID:  row.EntryID,
		Reason:   row.ErrorCode,
		Error:    row.ErrorMessage,
		Fields:   fields,
		FailedAt: row.FinishedAt,
	}
}
