package workflows

import "go.temporal.io/sdk/workflow"

// Every workflow.GetVersion flag of this package is in this file, behind a
// function named after the question it answers, so that the workflow reads
// without version numbers and one look here shows which old histories are still
// supported.

// readsRowFirst reports whether a run started by hand is at its beginning, where
// it reads the row before it does anything else. A run that was reset to a later
// point replays the history of another run, which did not read the row; the
// missing marker of this flag tells.
func readsRowFirst(ctx workflow.Context) bool {
	return workflow.GetVersion(ctx, "read-row-first", workflow.DefaultVersion, 1) != workflow.DefaultVersion
}
