// Package leak fails a package's tests when goroutines of this module outlive
// them. It looks for ours only, because the Temporal server and its Web UI leave
// goroutines of their own behind, which are not for us to end.
package leak

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// ours begins the name of every function of this module.
const ours = "github.com/nodpt/executor/cmd/devstack/"

// patience is how long goroutines may take to end after the last test.
const patience = 10 * time.Second

// Main runs a package's tests and returns the exit code. Call it from TestMain.
func Main(m *testing.M) int {
	code := m.Run()
	if err := Check(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// Check waits for the goroutines of this module to end. Its error shows the
// stacks of those that do not. It is for a TestMain that has parts of its own to
// stop first.
func Check() error {
	left := wait(patience)
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("goroutines outlive the tests:\n\n%s", strings.Join(left, "\n\n"))
}

// wait returns the stacks of goroutines that are still there after d.
func wait(d time.Duration) []string {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(d); ; <-ticker.C {
		if left := running(); len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// running returns the stacks of all our goroutines but the calling one and the
// one that runs the tests, those included that were only started by ours.
func running() []string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var left []string
	for _, stack := range strings.Split(string(buf), "\n\n")[1:] {
		waitsForTests := strings.Contains(stack, "testing.(*M).Run(")
		if strings.Contains(stack, ours) && !waitsForTests {
			left = append(left, stack)
		}
	}
	return left
}
