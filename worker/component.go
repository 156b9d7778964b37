// Package worker serves the task queues. It exists to turn the settings of one
// process into Temporal workers: one per queue, each with the slots that are the
// role's concurrency limit, started and stopped together in an order that loses
// no work.
package worker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	sdk "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// QueueNameWorkflows is the name of the queue of workflow tasks and final
// activities in settings; the other queues are named after their roles.
const QueueNameWorkflows = "workflows"

// Queues returns the names of all queues as settings and flags know them.
func Queues() []string {
	names := []string{QueueNameWorkflows}
	for _, role := range job.Roles() {
		names = append(names, string(role))
	}
	return names
}

// Component is one task queue with everything that runs on it. It registers
// itself; the pool only starts and stops it.
type Component struct {
	// Name is the queue's name in settings, one of Queues().
	Name string
	// TaskQueue is the Temporal task queue.
	TaskQueue string
	// Slots is the number of activities that work at once.
	Slots int
	// Options are complete but for what the pool sets for all.
	Options sdk.Options
	// Register adds workflows and activities.
	Register func(sdk.Registry)
}

// RoleActivity is the activity of a role.
type RoleActivity interface {
	Run(ctx context.Context, call workflows.Call) (workflows.Answer, error)
	// Unreadable takes the place of Run where the call could not be decoded. What
	// it returns is the attempt's error.
	Unreadable(ctx context.Context, err error) error
}

// Final holds the final activities by the names the workflow calls them by.
type Final map[string]any

// stopWorkflows is how long the workflows worker may take to finish what the
// drained role workers have just reported.
const stopWorkflows = 5 * time.Second

// workflowPatience is how long a workflow's code may compute before the SDK takes
// it for stuck, and the server's own patience with a workflow task. The default
// of a second is spent on a starved machine by encoding a job of 1 MiB; the task
// then fails, is tried again, and starves the machine some more.
const workflowPatience = 10 * time.Second

// RoleComponent serves one role's queue: nothing but its activity runs there.
// The activity waits for its place in slots itself.
func RoleComponent(cfg Config, role job.Role, slots *Slots, run RoleActivity) Component {
	return Component{
		Name:      string(role),
		TaskQueue: workflows.RoleQueue(role),
		Slots:     slots.limit,
		Options: sdk.Options{
			Tuner:                            slots.tuner(),
			MaxConcurrentActivityTaskPollers: rolePollers,
			DisableWorkflowWorker:            true,
			DisableEagerActivities:           true,
			// The activity ends its call by itself when the drain is over; what the SDK
			// ends, it reports badly.
			WorkerStopTimeout: cfg.DrainTimeout + time.Second,
			// Beats are sent as often as the activity makes them: a cancellation
			// arrives with them.
			MaxHeartbeatThrottleInterval: workflows.HeartbeatEvery,
		},
		Register: func(r sdk.Registry) {
			// Only a dynamic activity decodes its argument itself. For others the SDK
			// does, and fails the attempt before there is anybody to make sense of it.
			r.RegisterDynamicActivity(func(ctx context.Context, args converter.EncodedValues) (workflows.Answer, error) {
				if name := activity.GetInfo(ctx).ActivityType.Name; name != workflows.RoleActivity(role) {
					return workflows.Answer{}, fmt.Errorf("this queue serves %s only", workflows.RoleActivity(role))
				}
				var call workflows.Call
				if err := args.Get(&call); err != nil {
					return workflows.Answer{}, run.Unreadable(ctx, err)
				}
				return run.Run(ctx, call)
			}, activity.DynamicRegisterOptions{})
		},
	}
}

// WorkflowsComponent serves the workflows queue: workflow tasks, and the final
// activities in both their forms.
func WorkflowsComponent(final Final) Component {
	return Component{
		Name:      QueueNameWorkflows,
		TaskQueue: workflows.QueueWorkflows,
		Slots:     finalSlots,
		Options: sdk.Options{
			MaxConcurrentWorkflowTaskPollers:        workflowPollers,
			MaxConcurrentWorkflowTaskExecutionSize:  workflowSlots,
			MaxConcurrentLocalActivityExecutionSize: workflowSlots,
			MaxConcurrentActivityExecutionSize:      finalSlots,
			MaxConcurrentActivityTaskPollers:        finalPollers,
			DisableEagerActivities:                  true,
			WorkerStopTimeout:                       stopWorkflows,
			DeadlockDetectionTimeout:                workflowPatience,
		},
		Register: func(r sdk.Registry) {
			r.RegisterWorkflowWithOptions(workflows.JobWorkflow, workflow.RegisterOptions{Name: workflows.WorkflowType})
			for name, run := range final {
				r.RegisterActivityWithOptions(run, activity.RegisterOptions{Name: name})
			}
		},
	}
}

// selected returns the components of the configured queues.
func selected(cfg Config, components []Component) ([]Component, error) {
	if len(cfg.Queues) == 0 {
		return nil, fmt.Errorf("no queue to serve: --queues takes a comma-separated list of %v", Queues())
	}
	var out []Component
	for _, name := range cfg.Queues {
		if !slices.Contains(Queues(), name) {
			return nil, fmt.Errorf("unknown queue %.40q: --queues takes a comma-separated list of %v", name, Queues())
		}
		i := slices.IndexFunc(components, func(c Component) bool { return c.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("queue %q has no component in this process", name)
		}
		if !slices.ContainsFunc(out, func(c Component) bool { return c.Name == name }) {
			out = append(out, components[i])
		}
	}
	return out, nil
}
