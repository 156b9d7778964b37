package proc

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/leak"
)

// pidFileVariable makes the test binary play the parent of
// TestChildrenDieWithTheirParent.
const pidFileVariable = "DEVSTACK_TEST_PIDFILE"

func TestMain(m *testing.M) {
	if pidFile := os.Getenv(pidFileVariable); pidFile != "" {
		if err := playParent(pidFile); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1) // the test kills this process before it gets here
	}
	os.Exit(leak.Main(m))
}

// playParent starts a child that never ends, writes its pid and waits for it.
func playParent(pidFile string) error {
	p, err := Start(Spec{
		Name: "tail", Path: "tail", Args: []string{"-f", os.DevNull},
		Env: os.Environ(), LogFile: pidFile + ".log",
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(pidFile+".new", []byte(strconv.Itoa(p.Pid())), 0o600); err != nil {
		return err
	}
	if err := os.Rename(pidFile+".new", pidFile); err != nil {
		return err
	}
	<-p.Done()
	return nil
}

func TestChildrenDieWithTheirParent(t *testing.T) {
	t.Parallel()
	pidFile := filepath.Join(t.TempDir(), "pid")
	parent := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // G204: itself
	parent.Env = append(os.Environ(), pidFileVariable+"="+pidFile)
	require.NoError(t, parent.Start())
	var child int
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(pidFile) //nolint:gosec // G304: a file of this test
		if err != nil {
			return false
		}
		child, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	}, patience, 10*time.Millisecond)
	require.True(t, alive(child))

	require.NoError(t, syscall.Kill(parent.Process.Pid, syscall.SIGKILL))
	require.Error(t, parent.Wait())
	require.Eventually(t, func() bool { return !alive(child) }, patience, 10*time.Millisecond)
}

// alive reports whether a process runs. One that is dead but not collected yet
// does not count.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}
