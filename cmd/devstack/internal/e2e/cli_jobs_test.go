package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// TestJobCommands runs the scripts of list, show, watch, cancel and completion,
// each with a stack of its own, as the user "operator" of Redis.
func TestJobCommands(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("testdata", "script", "jobs-*.txtar"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			s := &jobsScript{retryScript{newBundle(t)}, map[string]*proc.Process{}}
			testscript.RunT(inline{t}, testscript.Params{Files: []string{file}, Setup: s.setup, Cmds: s.commands()})
		})
	}
}

// jobsScript adds to the commands of the other scripts.
type jobsScript struct {
	retryScript
	up map[string]*proc.Process
}

func (s *jobsScript) setup(env *testscript.Env) error {
	env.Setenv("ESC", "\x1b")
	return s.retryScript.setup(env)
}

func (s *jobsScript) commands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	commands := s.retryScript.commands()
	maps.Copy(commands, map[string]func(ts *testscript.TestScript, neg bool, args []string){
		// up NAME ARGS… runs an executor until down NAME.
		"up":   func(_ *testscript.TestScript, _ bool, args []string) { s.up[args[0]] = s.Start(nil, args[1:]...) },
		"down": func(_ *testscript.TestScript, _ bool, args []string) { s.Stop(s.up[args[0]]) },
		"freeze": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Check(s.up[args[0]].Signal(syscall.SIGSTOP))
		},
		"thaw": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Check(s.up[args[0]].Signal(syscall.SIGCONT))
		},
		// until PATTERN COMMAND… repeats a command until its output matches.
		"until": func(ts *testscript.TestScript, _ bool, args []string) {
			pattern := regexp.MustCompile("(?m)" + args[0])
			s.Wait("output of "+strings.Join(args[1:], " "), func(context.Context) error {
				_ = ts.Exec(args[1], args[2:]...) // the output tells
				if out := ts.ReadFile("stdout"); !pattern.MatchString(out) {
					return fmt.Errorf("it is %s%s", out, ts.ReadFile("stderr"))
				}
				return nil
			})
		},
		// keys KEY… are exactly those of the JSON objects in the last output, in order.
		"keys": func(ts *testscript.TestScript, _ bool, want []string) {
			for line := range strings.Lines(ts.ReadFile("stdout")) {
				require.Equal(s.T, want, keysOf(s.T, line))
			}
		},
		// encrypt gives a key to the commands, and to the executors that are run from now
		// on.
		"encrypt": func(ts *testscript.TestScript, _ bool, _ []string) {
			key := "k1:" + base64.StdEncoding.EncodeToString([]byte("CANARY-of-exactly-32-bytes-long!"))
			s.Options.Environ = map[string]string{"ENCRYPTION_KEYS": key}
			ts.Setenv("ENCRYPTION_KEYS", key)
		},
		// bare makes a namespace without search attributes the one of the commands, and
		// starts runs there that no worker takes.
		"bare": func(ts *testscript.TestScript, _ bool, users []string) {
			namespace := newNamespace(s.T)
			ts.Setenv("TEMPORAL_NAMESPACE", namespace)
			s.plainRuns(namespace, users)
		},
	})
	return commands
}

// keysOf are the keys of a JSON object in their order.
func keysOf(t *testing.T, text string) []string {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	token, err := dec.Token()
	require.NoError(t, err)
	require.Equal(t, json.Delim('{'), token)
	var keys []string
	for dec.More() {
		token, err := dec.Token()
		require.NoError(t, err)
		keys = append(keys, token.(string))
		var value json.RawMessage
		require.NoError(t, dec.Decode(&value))
	}
	return keys
}

// plainRuns starts a run for a job of each user, without search attributes.
func (b *bundle) plainRuns(namespace string, users []string) {
	b.T.Helper()
	c, err := client.NewLazyClient(client.Options{HostPort: b.Options.Temporal, Namespace: namespace, Logger: harness.Silent{}})
	require.NoError(b.T, err)
	defer c.Close()
	for _, user := range users {
		id := "plain-" + user
		b.Wait("run of "+id, func(ctx context.Context) error { // a new namespace takes a while to be known
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			_, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "job:agent:" + id, TaskQueue: "executor-workflows"}, "JobWorkflow",
				map[string]any{"job": map[string]any{"role": "agent", "jobId": id, "userId": user, "task": harness.Text("task")}})
			return err
		})
	}
}

// watching is a running watch command.
type watching struct {
	cmd   *exec.Cmd
	lines chan string
}

// watch runs executor watch as the operator.
func (b *bundle) watch(args ...string) *watching {
	b.T.Helper()
	w := &watching{lines: make(chan string, 1000)}
	w.cmd = exec.CommandContext(b.T.Context(), shared.binary, append([]string{"watch"}, args...)...) //nolint:gosec // G204: the binary under test
	w.cmd.Dir, w.cmd.Env = b.Dir, b.Env(map[string]string{"REDIS_CONNECTION": b.OperatorConnection()})
	w.cmd.Stderr = os.Stderr
	out, err := w.cmd.StdoutPipe()
	require.NoError(b.T, err)
	require.NoError(b.T, w.cmd.Start())
	go func() {
		defer close(w.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			w.lines <- scanner.Text()
		}
	}()
	return w
}

// line waits for a line that contains all of these.
func (b *bundle) line(w *watching, parts ...string) string {
	b.T.Helper()
	patience := time.After(harness.Patience)
	for {
		select {
		case line, ok := <-w.lines:
			require.True(b.T, ok, "the watch has ended")
			require.NotContains(b.T, line, harness.Canary)
			missing := false
			for _, part := range parts {
				missing = missing || !strings.Contains(line, part)
			}
			if !missing {
				return line
			}
		case <-patience:
			require.Fail(b.T, "no such line", "%q", parts)
		}
	}
}

// interrupt ends a watch as Ctrl-C does and returns its exit code.
func (b *bundle) interrupt(w *watching) int {
	b.T.Helper()
	require.NoError(b.T, w.cmd.Process.Signal(os.Interrupt))
	for range w.lines { //nolint:revive // until it has ended
	}
	if err := w.cmd.Wait(); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		require.True(b.T, ok, "%v", err)
		return exit.ExitCode()
	}
	return 0
}

// following waits until a watch follows: it prints what has come since.
func (b *bundle) following(w *watching) {
	b.T.Helper()
	b.Wait("the watch follows", func(ctx context.Context) error {
		b.say(ctx, "jobId-of-nobody", "result")
		select {
		case <-w.lines:
			return nil
		default:
			return errors.New("nothing was printed yet")
		}
	})
}

// say adds an update as somebody else might.
func (b *bundle) say(ctx context.Context, jobID, kind string) {
	b.T.Helper()
	require.NoError(b.T, b.Redis.XAdd(ctx, &redis.XAddArgs{Stream: harness.Updates, Values: []string{
		"MessageId", "x", "Type", kind, "Payload", harness.Text("answer"), "JobId", jobID, "Role", "agent",
	}}).Err())
}

func TestWatchOutcomes(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	all, agents := b.watch(), b.watch("--role", "agent", "-o", "jsonl")
	b.following(all)
	b.following(agents)

	b.Submit("chat", "jobId", "c1", "message", harness.Text("task"), "userId", "u1")
	require.Regexp(t, `^\d\d:\d\d:\d\d  chat       completed  c1 +\d+/\d+ tokens  [\d.]+m?s$`, b.line(all, "c1"))
	b.Submit("agent", "jobId", "a1", "task", "!fail 400 "+harness.Text("task"))
	require.Regexp(t, `agent      failed     a1 +llm_bad_request  [\d.]+m?s$`, b.line(all, "a1"))
	b.Submit("agent", "jobId", "a2", "task", harness.Text("task"), "userId", "u1", "projectId", "p1")
	b.line(all, "a2", "completed")
	b.Submit("chat", "chatId", "7", "userId", "u1")
	b.line(all, "rejected", "chat_message_missing")

	var outcome map[string]any
	line := b.line(agents, `"a1"`)
	require.Equal(t, []string{"at", "role", "jobId", "status", "code", "model", "tookMs", "messageId", "updateId"}, keysOf(t, line))
	line = b.line(agents, `"a2"`)
	require.NoError(t, json.Unmarshal([]byte(line), &outcome))
	require.Equal(t, []string{
		"at", "role", "jobId", "status", "model", "promptTokens", "completionTokens", "tookMs", "userId", "projectId", "messageId", "updateId",
	}, keysOf(t, line), "and no chat before")
	require.Equal(t, "completed", outcome["status"])

	// The stored answer, for whoever asks again.
	b.Settled("agent")
	b.Submit("agent", "jobId", "a2", "task", harness.Text("task"))
	b.line(agents, `"a2"`, `"repeated":true`)
	require.Regexp(t, `a2 +\d+/\d+ tokens  again$`, b.line(all, "a2"))

	// An update of somebody who wants to draw on the screen.
	b.say(t.Context(), "\x1b]0;title\x07\x1b[2Jx\nsecond line", "error")
	require.Regexp(t, `failed     �]0;title��\[2Jx second line`, b.line(all, "second line"))
	require.NotContains(t, b.line(agents, "second line"), "\x1b")

	require.Equal(t, 0, b.interrupt(all))
	require.Equal(t, 0, b.interrupt(agents))
}

func TestWatchJobsIsInterrupted(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	b.Submit("agent", "jobId", "a1", "task", "!hang "+harness.Text("task"))
	b.LLM.Await("call runs", func(s harness.Stats) bool { return s.Running == 1 })
	w := b.watch("a1")
	b.line(w, "a1", "running")
	require.Equal(t, 1, b.interrupt(w))
	b.LLM.Await("call still runs", func(s harness.Stats) bool { return s.Running == 1 })
	b.LLM.Release()
	b.Settled("agent")
}
