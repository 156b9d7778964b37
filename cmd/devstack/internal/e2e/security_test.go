package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/protobuf/proto"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// TestMemoryUnderLargeEntries: fault C12. A thousand entries just above the
// limit, in front of jobs just below it, must not fill the memory of a process
// that reads, copies and refuses them. The figure is that of a program without the
// race detector, which adds to it.
func TestMemoryUnderLargeEntries(t *testing.T) {
	t.Parallel()
	const (
		mib   = 1 << 20
		large = 1000
		jobs  = 6
		// The highest was 172 MiB, and 244 MiB with 300 jobs.
		limit = 512 << 10 // kB
	)
	b := newBundle(t)
	b.Suite.Binary = plainExecutor(t)
	text := harness.Text("payload") + strings.Repeat("x", mib)
	for i := range large {
		b.Submit("inspector", "jobId", fmt.Sprintf("large-%d", i), "userId", "u1", "task", harness.Text("task"), "payload", text[:mib+1])
	}
	p := b.Start(map[string]string{"MAX_INSPECTOR": "8", "LOG_LEVEL": "info"}, "run")
	for i := range jobs {
		b.Submit("inspector", "jobId", fmt.Sprintf("fits-%d", i), "userId", "u1", "task", harness.Text("task"), "payload", text[:mib-4096])
	}
	b.WaitFor(4*harness.Patience, "all jobs done", func(context.Context) error {
		if done := len(b.Rows("status = 'completed'")); done != jobs {
			return fmt.Errorf("%d of %d", done, jobs)
		}
		return nil
	})
	b.Settled("inspector")
	require.Len(t, b.Rows("status = 'rejected' AND error_code = 'too_large'"), large)
	require.Less(t, peak(t, p.Pid()), limit, "kB of memory at the highest")
	b.Stop(p)
}

// plainVariable names an executor without the race detector. Without it the test
// builds one.
const plainVariable = "EXECUTOR_PLAIN_BINARY"

func plainExecutor(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(plainVariable); path != "" {
		return path
	}
	root, err := harness.RepositoryRoot()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "executor")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", path, "./cmd/executor")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	return path
}

// peak is the most memory a process ever had, in kB (proc_pid_status(5)).
func peak(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, found)
	kB, err := strconv.Atoi(string(found[1]))
	require.NoError(t, err)
	t.Logf("peak: %d MiB", kB/1024)
	return kB
}

// TestListOfWorkflowsHoldsNoContent: fault C07. Ids, memo and search attributes
// are what everybody sees who may list workflows.
func TestListOfWorkflowsHoldsNoContent(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.Start(nil, "run")
	b.Submit("inspector", "jobId", "done", "userId", "u1", "projectId", "p1", "task", harness.Text("task"), "payload", harness.Text("payload"))
	b.Submit("chat", "jobId", "failed", "userId", "u1", "message", "!fail 400 "+harness.Text("message"))
	b.Update("done", 1)
	b.Update("failed", 1)
	b.Settled("inspector")
	b.Settled("chat")
	b.Wait("both closed workflows in the list", func(ctx context.Context) error {
		list, err := b.Temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Namespace: b.Options.Namespace, Query: "ExecutionStatus != 'Running'",
		})
		if err != nil {
			return err
		}
		if len(list.GetExecutions()) != 2 {
			return fmt.Errorf("%d so far", len(list.GetExecutions()))
		}
		raw, err := proto.Marshal(list)
		require.NoError(t, err)
		require.NotContains(t, string(raw), harness.Canary)
		require.Contains(t, string(raw), "u1", "the user's id is in it: operators search for it")
		return nil
	})
	b.Stop(p)
}
