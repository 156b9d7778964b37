package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// sample is the name of a series and its labels, as an executor serves them.
var sample = regexp.MustCompile(`(?m)^([a-z]\w*)(?:\{(.*)\})? `) //nolint:gochecknoglobals // a constant

// TestObservedMetricsExist lets everything happen to one executor that an alert or
// a panel of deploy/ looks at, and expects each series of their list: a name that
// is spelled differently there would never show anything, and nobody would notice.
func TestObservedMetricsExist(t *testing.T) {
	t.Parallel()
	b := newBundleIn(t, newNamespace(t))
	root, err := harness.RepositoryRoot()
	require.NoError(t, err)
	list, err := os.ReadFile(filepath.Join(root, "deploy", "testdata", "metrics.txt"))
	require.NoError(t, err)
	wanted := strings.Split(strings.TrimSpace(string(list)), "\n")
	require.Greater(t, len(wanted), 20)

	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()),
		"temporal", proc.Loopback(b.Port()), shared.temporal.Address())
	require.NoError(t, proxy.Start())
	t.Cleanup(proxy.Stop)
	b.loseEntry("chat")
	b.strandEntry("manager")
	e := b.Launch(map[string]string{"TEMPORAL_ADDRESS": proxy.Listen, "MAX_TOTAL": "20"}, "run")
	b.Ready(e)
	missing := func() (left []string) {
		text := b.get(e.Health + "/metrics")
		require.NotContains(t, text, harness.Canary)
		served := sample.FindAllStringSubmatch(text, -1)
		for _, line := range wanted {
			left = append(left, lacking(served, line)...)
		}
		return left
	}
	served := func(what, line string) {
		t.Helper()
		b.Wait(what, func(context.Context) error {
			if left := lacking(sample.FindAllStringSubmatch(b.get(e.Health+"/metrics"), -1), line); len(left) > 0 {
				return errors.New(strings.Join(left, ", "))
			}
			return nil
		})
	}

	// Jobs that end well, that fail for good, and entries that are none.
	submit := func(role, id, directive string) {
		b.Submit(role, "jobId", id, "userId", "u1", "task", directive+" "+harness.Text("task"))
	}
	submit("manager", "m1", "!finish length")
	submit("inspector", "i1", "")
	submit("agent", "a1", "!fail 503 x1")
	submit("agent", "a2", "!fail 400")
	b.Submit("chat", "userId", "u1", "chatId", "c1")
	// One that a person cancels, and whose entry comes twice meanwhile.
	submit("agent", "endless", "!fail 503")
	b.Run("job:agent:endless", "Running")
	submit("agent", "endless", "!fail 503")
	served("the duplicate", "executor_entries_duplicate_total")
	require.NoError(t, b.Temporal.CancelWorkflow(t.Context(), "job:agent:endless", ""))
	b.Update("endless", 1)
	for _, role := range allRoles() {
		b.Settled(role)
	}
	// A workflow task that fails like one of a run that new code cannot replay.
	run, err := b.Temporal.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{
		ID: "stranger-" + uuid.NewString(), TaskQueue: "executor-workflows",
	}, "NobodysWorkflow")
	require.NoError(t, err)
	served("the failed workflow task", "temporal_workflow_task_execution_failed_total")
	require.NoError(t, b.Temporal.TerminateWorkflow(t.Context(), run.GetID(), run.GetRunID(), "done"))

	// Redis is away when the final steps begin, then Temporal.
	submit("agent", "late", "!hang")
	b.LLM.Await("the call", func(s harness.Stats) bool { return s.Running == 1 })
	require.NoError(t, b.RedisServer.Process().Signal(syscall.SIGSTOP))
	b.LLM.Release()
	served("a final step that fails", "temporal_local_activity_execution_failed_total")
	served("trouble of the bridge", "executor_bridge_errors_total")
	require.NoError(t, b.RedisServer.Process().Signal(syscall.SIGCONT))
	b.Update("late", 1)
	proxy.Stop()
	served("a poll that fails", "temporal_long_request_failure_total")
	require.NoError(t, proxy.Start())

	b.Wait("all series of deploy/testdata/metrics.txt", func(context.Context) error {
		if left := missing(); len(left) > 0 {
			return fmt.Errorf("not served: %s", strings.Join(left, ", "))
		}
		return nil
	})
	b.Settled("agent")
}

// lacking is what no series has of a line of the list: a name and the labels it
// must have, as label or label=value|value. Each label may be on another series.
func lacking(served [][]string, line string) (left []string) {
	words := strings.Fields(line)
	name := words[0]
	has := func(match string) bool {
		return slices.ContainsFunc(served, func(s []string) bool {
			return s[1] == name && strings.Contains(","+s[2], match)
		})
	}
	if !has("") {
		return []string{name}
	}
	for _, word := range words[1:] {
		label, values, _ := strings.Cut(word, "=")
		if !has("," + label + `="`) {
			left = append(left, name+"{"+label+"}")
		}
		for value := range strings.SplitSeq(values, "|") {
			if value != "" && !has(","+label+`="`+value+`"`) {
				left = append(left, name+"{"+label+"="+value+"}")
			}
		}
	}
	return left
}
