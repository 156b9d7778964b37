package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// shown is a command line of the README or of docs.
type shown struct{ place, text string }

// documented returns the command lines with these programs, in the order of the
// pages. Each stands once.
func documented(t *testing.T, programs ...string) []shown {
	t.Helper()
	root, err := harness.RepositoryRoot()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "scripts", "documented"), programs...) //nolint:gosec // G204: our own script
	output, err := cmd.Output()
	require.NoError(t, err)
	var all []shown
	seen := map[string]bool{}
	for line := range strings.Lines(string(output)) {
		place, text, found := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		require.True(t, found, line)
		if !seen[text] {
			seen[text] = true
			all = append(all, shown{place, text})
		}
	}
	require.NotEmpty(t, all)
	return all
}

// shell is where a reader of the pages sits: `executor` and `redis-cli` find what
// they need.
type shell struct {
	*bundle
	executor harness.Executor
	path     string
	jobs     int
}

// TestDocumentedCommands executes the command lines of all pages, one after the
// other, as a person would who has the jobs they are about.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	s := &shell{bundle: b, path: filepath.Join(b.Dir, "bin")}
	require.NoError(t, os.Mkdir(s.path, 0o700))
	require.NoError(t, os.Symlink(shared.binary, filepath.Join(s.path, "executor")))
	client, err := exec.LookPath("redis-cli")
	require.NoError(t, err)
	wrapper := fmt.Sprintf("#!/bin/sh\nexec %s -e --no-auth-warning -u %s \"$@\"\n", client, b.AdminURL())
	require.NoError(t, os.WriteFile(filepath.Join(s.path, "redis-cli"), []byte(wrapper), 0o700)) //nolint:gosec // G306: a program
	s.executor = b.Launch(nil, "run")
	b.Ready(s.executor)

	for _, c := range documented(t, "executor", "redis-cli", "XACK", "XGROUP", "XPENDING", "XTRIM", "curl", "sqlite3", "openssl", "printf") {
		t.Run(c.place, func(t *testing.T) { //nolint:paralleltest // in the order of the pages
			s.execute(t, c.text)
		})
	}
}

// endless are commands that stay until they are interrupted.
var endless = regexp.MustCompile(` --watch\b|^executor (codec-server|worker|run|bridge)\b`) //nolint:gochecknoglobals // a constant

func (s *shell) execute(t *testing.T, text string) {
	t.Helper()
	switch command := text; {
	case strings.HasPrefix(command, "X"):
		if stream, found := strings.CutPrefix(text, "XGROUP CREATE "); found {
			// Of a group that is not there.
			require.NoError(t, s.Redis.XGroupDestroy(t.Context(), strings.Fields(stream)[0], "executor-group").Err())
		}
		text = "redis-cli " + text
	case strings.Contains(command, "retry --failed"), strings.Contains(command, "dlq replay"):
		s.failed() // so that there is one
		text += " --yes"
	case strings.Contains(command, "cancel ID"):
		s.jobs++
		id := fmt.Sprintf("job-%d", s.jobs)
		s.Submit("agent", "jobId", id, "userId", "u2", "task", "!hang "+harness.Text("task"))
		s.LLM.Await("the call runs", func(st harness.Stats) bool { return st.Running > 0 })
		text = strings.ReplaceAll(text, "ID", "job:agent:"+id)
	case strings.Contains(command, "watch ID"):
		s.jobs++
		id := fmt.Sprintf("job-%d", s.jobs)
		s.Submit("agent", "jobId", id, "userId", "u2", "task", harness.Text("task"))
		text = strings.ReplaceAll(text, "ID", "job:agent:"+id)
	case strings.Contains(command, " ID"):
		text = strings.ReplaceAll(text, "ID", "job:agent:"+s.failed())
	case strings.Contains(command, "dlq show"):
		s.failed()
		letters := s.DeadLetters("agent")
		require.NotEmpty(t, letters)
		text = regexp.MustCompile(`agent/\S+`).ReplaceAllString(text, "agent/"+letters[0].ID)
	}
	text = strings.ReplaceAll(text, ` -u "redis://$REDIS_CONNECTION"`, "") // the wrapper knows where Redis is
	text = strings.NewReplacer("HOST", "127.0.0.1", "<id>", "1-0", "<last-delivered-id>", "1-0", "http://127.0.0.1:9090", s.executor.Health).Replace(text)

	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-euc", text) //nolint:gosec // G204: what the pages say
	cmd.Dir = s.Dir
	cmd.WaitDelay = time.Second // what the shell has started may hold its output
	redis := s.OperatorConnection()
	if strings.HasPrefix(text, "executor doctor") || strings.HasPrefix(text, "executor worker") {
		redis = s.RedisConnection(s.RedisServer.Address()) // as the executors see it
	}
	cmd.Env = s.Env(map[string]string{
		"PATH": s.path + string(os.PathListSeparator) + os.Getenv("PATH"), "REDIS_CONNECTION": redis, "LOG_LEVEL": "info",
		"HTTP_ADDR": "127.0.0.1:0",
	})
	if strings.HasPrefix(text, "executor codec-server") {
		cmd.Env = append(cmd.Env, "CODEC_ADDR=127.0.0.1:0", "CODEC_TOKEN="+strings.Repeat("t", 32), "ENCRYPTION_KEYS=a:"+strings.Repeat("A", 43)+"=")
	}
	var out output
	if endless.MatchString(text) {
		out = interrupted(t, cmd)
	} else {
		out = ended(t, cmd)
	}
	message := fmt.Sprintf("%s\n%s%s", text, out.stdout, out.stderr)
	switch {
	case strings.HasPrefix(text, "executor doctor"):
		require.Contains(t, []int{0, 1}, out.code, message) // 1: it has found something
		require.Contains(t, out.stdout, "REDIS_CONNECTION", message)
	case strings.Contains(text, "!fail"):
		require.Equal(t, 1, out.code, message)
	case strings.HasPrefix(text, "LLM_ENDPOINT=http://169.254."), strings.HasPrefix(text, "REDIS_CONNECTION=redis.example.com"):
		// Shown because they are refused.
		require.Equal(t, 2, out.code, message)
	default:
		require.Equal(t, 0, out.code, message)
	}
}

// failed is the id of a new job that has failed, and that a retry heals.
func (s *shell) failed() string {
	s.T.Helper()
	s.jobs++
	id := fmt.Sprintf("job-%d", s.jobs)
	s.Submit("agent", "jobId", id, "userId", "u1", "projectId", "p1", "task", "!fail 400 x1 "+harness.Text("task"))
	require.Equal(s.T, "error", s.Update(id, 1)["Type"])
	s.Settled("agent")
	return id
}

// interrupted is Ctrl-C once the command has said something.
func interrupted(t *testing.T, cmd *exec.Cmd) output {
	t.Helper()
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer func() { _ = reader.Close() }()
	cmd.Args[2] = "exec " + cmd.Args[2] // the signal is for the program
	cmd.Stdout, cmd.Stderr = writer, writer
	require.NoError(t, cmd.Start())
	require.NoError(t, writer.Close())
	first := make([]byte, 4096)
	n, err := reader.Read(first)
	require.NoError(t, err, "it ended without a word")
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	var rest bytes.Buffer
	_, err = rest.ReadFrom(reader)
	require.NoError(t, err)
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return output{stdout: string(first[:n]) + rest.String(), code: cmd.ProcessState.ExitCode()}
}
