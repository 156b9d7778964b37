//go:build !failpoints

package failpoint

import "context"

// Check reports what is wrong with EXEC_FAIL. Programs that have points call it
// before they begin: a test whose faults never happen proves nothing. Without
// the build tag it is nil.
func Check() error { return nil }

// Armed reports whether anything may happen at a point. It is for places that
// need preparation to have the point at all. Without the build tag it is false.
func Armed(Point) bool { return false }

// Hit passes a point. Its error is an injected one, or the end of ctx during an
// injected sleep; the caller treats it like a failure of the step before.
// Without the build tag it is nil.
func Hit(context.Context, Point) error { return nil }
