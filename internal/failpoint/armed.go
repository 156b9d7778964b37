//go:build failpoints

package failpoint

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"
)

// variable is also what scripts/check-binary looks for in what ships.
const variable = "EXEC_FAIL"

// fromEnvironment is the process's plan, read once. It stays armed until the
// process ends, so that the count of passes is that of the process.
//
//nolint:gochecknoglobals // passes are counted per process, and the points have no place in anybody's constructor
var fromEnvironment = sync.OnceValues(func() (*plan, error) {
	return parse(os.Getenv(variable))
})

// Check reports what is wrong with EXEC_FAIL. Programs that have points call it
// before they begin: a test whose faults never happen proves nothing.
func Check() error {
	_, err := fromEnvironment()
	return err
}

// Armed reports whether anything may happen at a point. It is for places that
// need preparation to have the point at all.
func Armed(p Point) bool {
	armed, err := fromEnvironment()
	return err != nil || armed.points[p] != nil
}

// Hit passes a point. Its error is an injected one, or the end of ctx during an
// injected sleep; the caller treats it like a failure of the step before. While
// EXEC_FAIL cannot be read every point fails.
func Hit(ctx context.Context, p Point) error {
	armed, err := fromEnvironment()
	if err != nil {
		return err
	}
	return armed.hit(ctx, p, os.Stderr, die)
}

// die ends the process as a crash would: no deferred call runs, and nobody is
// told. It does not return, because the signal may take effect a moment later
// and the caller must not get any further.
func die() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		// A fault that was announced and did not happen must not pass for one.
		panic(fmt.Sprintf("failpoint: cannot kill the own process: %v", err))
	}
	<-time.After(time.Minute)
	panic("failpoint: the process survived its own SIGKILL")
}
