package activities

import (
	"context"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
)

// CodeUnreadable is the code of attempts whose job could not be decrypted.
const CodeUnreadable = "payload_unreadable"

// Unreadable is an attempt at a job that cannot be read, most likely because the
// key it is encrypted with is missing here. The job waits for the key: the attempt
// counts as given back, not as one of RETRY_FOR, and above all not as one whose
// worker died, for which the SDK's own error would be taken.
func (r *Runner) Unreadable(ctx context.Context, err error) error {
	p := readProgress(ctx, activity.GetInfo(ctx).Attempt)
	p.Classified++
	p.Returned++
	activity.RecordHeartbeat(ctx, p)
	r.metrics.ActivityError(r.role, CodeUnreadable)
	return temporal.NewApplicationErrorWithOptions("the job cannot be read: "+err.Error(), CodeUnreadable, temporal.ApplicationErrorOptions{
		NextRetryDelay: backoff(p.Returned, slowRetry),
	})
}
