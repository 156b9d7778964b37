package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/nodpt/executor/internal/job"
)

// Timing of the role activity. There is no schedule-to-close timeout, because it
// would count the time a job waits for a slot and fail jobs that never ran; what
// ends a job is the activity's own judgement (RETRY_FOR, malformed answers,
// worker deaths).
const (
	// HeartbeatTimeout is how soon the death of a worker is noticed.
	HeartbeatTimeout = 8 * time.Second
	// HeartbeatEvery is the interval of the beats. The first comes this long into
	// the call: a beat at the start of every short call costs 17 % of its latency.
	HeartbeatEvery = 2 * time.Second

	roleStartToClose    = 25 * time.Hour
	roleFirstRetry      = time.Second
	roleMaximumInterval = 15 * time.Second
)

// roleCall suits an LLM call: long, watched by heartbeats, retried until the
// activity itself says that the job has failed.
func roleCall(role job.Role, override Override) workflow.ActivityOptions {
	return workflow.ActivityOptions{
		TaskQueue:           RoleQueue(role),
		StartToCloseTimeout: roleStartToClose,
		HeartbeatTimeout:    HeartbeatTimeout,
		// Wait for the activity's word: an answer that arrives together with the
		// cancellation still completes the job.
		WaitForCancellation: true,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval:    roleFirstRetry,
			BackoffCoefficient: 2,
			MaximumInterval:    roleMaximumInterval,
		},
		Summary: callSummary(role, override),
	}
}

// stepLocal suits final steps while all is well: they run inside the workflow
// task, without a round trip through the server. Its budget must end before a
// workflow task does (10 s).
func stepLocal(summary string) workflow.LocalActivityOptions {
	return workflow.LocalActivityOptions{
		ScheduleToCloseTimeout: 3 * time.Second,
		StartToCloseTimeout:    2 * time.Second,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval:    50 * time.Millisecond,
			BackoffCoefficient: 2,
			MaximumInterval:    500 * time.Millisecond,
		},
		Summary: summary,
	}
}

// stepRegular suits a final step whose local budget is spent: something is down,
// the step is retried until it is up again, and the UI shows it as a pending
// activity with its last error.
func stepRegular(summary string) workflow.ActivityOptions {
	return workflow.ActivityOptions{
		TaskQueue:           QueueWorkflows,
		StartToCloseTimeout: 30 * time.Second,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval:    time.Second,
			BackoffCoefficient: 2,
			MaximumInterval:    10 * time.Second,
		},
		Summary: summary,
	}
}
