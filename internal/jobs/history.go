package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// story is what the history of a run tells.
type story struct {
	code, message string // of the end
	attempts      []Attempt
	called        int // attempts at the call
	verdict       job.Verdict
	input         *commonpb.Payloads
	// by scheduled event: which step, and which attempt of the list is its last
	steps map[int64]Step
	last  map[int64]int
}

// tell reads the history of a run. It returns errNoRun where that is gone.
func (v *View) tell(ctx context.Context, info *workflowpb.WorkflowExecutionInfo) (story, error) {
	s := story{steps: map[int64]Step{}, last: map[int64]int{}}
	e := info.GetExecution()
	events := v.runs.GetWorkflowHistory(ctx, e.GetWorkflowId(), e.GetRunId(), false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		if _, missing := errors.AsType[*serviceerror.NotFound](err); missing {
			return story{}, errNoRun
		}
		if err != nil {
			return story{}, fmt.Errorf("read the history of a job: %w", err)
		}
		v.read(&s, event)
	}
	return s, nil
}

// read adds an event to the story.
func (v *View) read(s *story, event *historypb.HistoryEvent) {
	switch event.GetEventType() { //nolint:exhaustive // the others tell nothing about a job
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
		s.input = event.GetWorkflowExecutionStartedEventAttributes().GetInput()
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
		s.steps[event.GetEventId()] = stepOf(event.GetActivityTaskScheduledEventAttributes().GetActivityType().GetName())
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_STARTED:
		v.attempted(s, event)
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
		v.done(s, event, event.GetActivityTaskCompletedEventAttributes().GetScheduledEventId(), "completed", nil)
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_FAILED:
		a := event.GetActivityTaskFailedEventAttributes()
		v.done(s, event, a.GetScheduledEventId(), "failed", a.GetFailure())
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT:
		a := event.GetActivityTaskTimedOutEventAttributes()
		v.done(s, event, a.GetScheduledEventId(), "failed", a.GetFailure())
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_CANCELED:
		v.done(s, event, event.GetActivityTaskCanceledEventAttributes().GetScheduledEventId(), "canceled", nil)
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
		var result workflows.Result
		if v.payloads.FromPayloads(event.GetWorkflowExecutionCompletedEventAttributes().GetResult(), &result) == nil {
			s.verdict = result.Verdict
		}
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
		s.code, s.message, _ = v.failure(event.GetWorkflowExecutionFailedEventAttributes().GetFailure())
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED:
		s.code = workflows.CodeCanceled
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
		a := event.GetWorkflowExecutionTerminatedEventAttributes()
		s.code, s.message = codeTerminated, a.GetReason()
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT:
		s.code = codeTimedOut
	}
}

// attempted adds the attempt of an activity that has ended, for the server writes
// its start down no sooner, and the failure of the one before.
func (v *View) attempted(s *story, event *historypb.HistoryEvent) {
	a := event.GetActivityTaskStartedEventAttributes()
	step := s.steps[a.GetScheduledEventId()]
	if a.GetLastFailure() != nil {
		s.attempts = append(s.attempts, v.failed(step, int(a.GetAttempt())-1, a.GetLastFailure()))
	}
	if step == StepCalling {
		s.called = int(a.GetAttempt())
	}
	s.last[a.GetScheduledEventId()] = len(s.attempts)
	s.attempts = append(s.attempts, Attempt{
		Step: step, Attempt: int(a.GetAttempt()), Status: "running", StartedAt: timeOf(event.GetEventTime()), Worker: a.GetIdentity(),
	})
}

// failed is an attempt of which only the failure is known.
func (v *View) failed(step Step, number int, f *failurepb.Failure) Attempt {
	a := Attempt{Step: step, Attempt: number, Status: "failed"}
	a.Code, a.Message, a.Cause = v.failure(f)
	return a
}

// done ends the attempt of an activity.
func (v *View) done(s *story, event *historypb.HistoryEvent, scheduled int64, status string, f *failurepb.Failure) {
	i, ok := s.last[scheduled]
	if !ok {
		if f == nil {
			return // canceled before it was started
		}
		i = len(s.attempts)
		s.attempts = append(s.attempts, Attempt{Step: s.steps[scheduled]})
	}
	a := &s.attempts[i]
	a.Status, a.EndedAt = status, timeOf(event.GetEventTime())
	if f != nil {
		a.Code, a.Message, a.Cause = v.failure(f)
	}
}

// underway adds what an open run waits for.
func (v *View) underway(s *story, r run) {
	p := r.pending()
	if p == nil {
		return
	}
	step := stepOf(p.GetActivityType().GetName())
	if f := p.GetLastFailure(); f != nil {
		before := v.failed(step, int(p.GetAttempt())-1, f)
		before.EndedAt = timeOf(p.GetLastAttemptCompleteTime())
		before.Worker = p.GetLastWorkerIdentity()
		if p.GetState() != enumspb.PENDING_ACTIVITY_STATE_SCHEDULED {
			before.Worker = "" // that is the next one's
		} else {
			before.StartedAt = timeOf(p.GetLastStartedTime())
		}
		s.attempts = append(s.attempts, before)
	}
	if step == StepCalling {
		s.called = int(p.GetAttempt())
	}
	a := Attempt{Step: step, Attempt: int(p.GetAttempt()), Status: "waiting", NextAt: timeOf(p.GetNextAttemptScheduleTime())}
	if p.GetState() != enumspb.PENDING_ACTIVITY_STATE_SCHEDULED {
		report := v.report(p)
		a.Status, a.StartedAt, a.Worker = "running", timeOf(p.GetLastStartedTime()), p.GetLastWorkerIdentity()
		if report.Attempt == 0 || report.Attempt == a.Attempt {
			a.State, a.StateSince, a.Model, a.Endpoint = report.State, report.Since, report.Model, report.Endpoint
		}
	}
	s.attempts = append(s.attempts, a)
}

// cause is what the call that gave a failed job its code tells operators.
func (s *story) cause(code string) string {
	for _, a := range slices.Backward(s.attempts) {
		if a.Step == StepCalling && a.Code == code {
			return a.Cause
		}
	}
	return ""
}

// statusName is Temporal's state of a run as people write it.
func statusName(s enumspb.WorkflowExecutionStatus) string {
	switch s {
	case enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING:
		return "running"
	case enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED:
		return "completed"
	case enumspb.WORKFLOW_EXECUTION_STATUS_FAILED:
		return "failed"
	case enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:
		return "canceled"
	case enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED:
		return "terminated"
	case enumspb.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW:
		return "continued"
	case enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT:
		return "timed_out"
	case enumspb.WORKFLOW_EXECUTION_STATUS_PAUSED:
		return "paused"
	case enumspb.WORKFLOW_EXECUTION_STATUS_UNSPECIFIED:
	}
	return "unknown"
}
