package workflows

import (
	"fmt"

	"go.temporal.io/sdk/workflow"
)

// Everything that tells runs of different versions apart is in this file, behind a
// function named after the question it answers, so that the workflow reads
// without version numbers and one look here shows which old histories are still
// supported.

// CurrentPlan is the plan that runs are started with. A flag of
// workflow.GetVersion would tell the same, for two more events in every run.
const CurrentPlan = 1

// checkPlan stops a worker that does not know the run's plan, before it does
// anything of another: the workflow task fails, and is given again and again until
// a worker that knows the plan takes it. So runs wait for an upgrade that is on its
// way, as they do at a flag of workflow.GetVersion.
func (in Input) checkPlan() {
	if in.Plan > CurrentPlan {
		panic(fmt.Sprintf("the run follows plan %d, and this worker is older: it knows plans up to %d", in.Plan, CurrentPlan))
	}
}

// finishesAtOnce reports whether a run tries all final steps in one local
// activity before it does them one by one. Runs of plan 0 had a local activity for
// each.
func (in Input) finishesAtOnce() bool { return in.Plan >= 1 }

// readsRowFirst reports whether a run started by hand is at its beginning, where
// it reads the row before it does anything else. A run that was reset to a later
// point replays the history of another run, which did not read the row; the
// missing marker of this flag tells.
func readsRowFirst(ctx workflow.Context) bool {
	return workflow.GetVersion(ctx, "read-row-first", workflow.DefaultVersion, 1) != workflow.DefaultVersion
}
