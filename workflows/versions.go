package workflows

// Every workflow.GetVersion flag of this package belongs in this file, each
// behind a function named after the question it answers, for example
//
//	func publishesProgress(ctx workflow.Context) bool
//
// so that the workflow reads without version numbers and one look here shows
// which old histories are still supported. There are none yet: the histories in
// testdata are of the first version.
