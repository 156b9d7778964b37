//go:build compose

package compose

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// joining is the page whose lines bring the project up beside a NodPT.
const joining = "docs/migration.md"

// documented executes the `docker compose` lines of the README and the pages of
// docs, in their order, while jobs come and go. In the end all services run.
func (s *smoke) documented(t *testing.T) {
	t.Helper()
	dir := t.TempDir() // what lines write lands there
	page := ""
	for i, l := range documented(t) {
		line, command := l.text, strings.TrimPrefix(l.text, "docker ")
		if l.page == joining {
			continue // see joins
		}
		if l.page != page { // each page begins with everything running
			page = l.page
			s.compose(t, "up", "--detach", "--wait", "--wait-timeout", "120")
		}
		switch {
		case strings.Contains(line, "codec-server"):
			s.interrupted(t, dir, command)
			continue
		case strings.HasSuffix(line, "up --build"):
			command += " --detach --wait" // instead of a terminal that follows the logs
		case strings.Contains(line, "--profile observability up"):
			// Grafana has no stand-in. Prometheus has been up before.
			command = strings.Replace(command, " up -d", " up -d --no-deps prometheus", 1)
		}
		s.shell(t, dir, command)
		if strings.HasPrefix(command, "compose up") {
			s.submit(t, s.series("documented-"+string(rune('a'+i%26))+string(rune('a'+i/26)), 2, "!echo answer")...)
		}
	}
	s.compose(t, "up", "--detach", "--wait", "--wait-timeout", "120")
	s.ended(t)
}

// shown is a command line of a page.
type shown struct{ page, text string }

// documented are the lines; a line that several pages show, once for each.
func documented(t *testing.T) []shown {
	t.Helper()
	var lines []shown
	for line := range strings.Lines(run(t, nil, filepath.Join(root, "scripts", "documented"), "docker", "export")) {
		place, command, found := strings.Cut(strings.TrimSpace(line), "\t")
		require.True(t, found, line)
		page, _, _ := strings.Cut(place, ":")
		if strings.HasPrefix(command, "docker compose ") || strings.HasPrefix(command, "export ") {
			lines = append(lines, shown{page, command})
		}
	}
	require.Greater(t, len(lines), 20)
	return lines
}

// shell executes a line that begins with `compose`, on this project.
func (s *smoke) shell(t *testing.T, dir, line string) {
	t.Helper()
	cmd := s.line(t.Context(), dir, line)
	began := time.Now()
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "docker %s\n%s", line, last(string(output), 4000))
	took(t, "  "+last(line, 48), began)
}

func (s *smoke) line(ctx context.Context, dir, line string) *exec.Cmd {
	project := make([]string, len(s.project)-1)
	for i, word := range s.project[1:] { // the first is compose itself
		if absolute, err := filepath.Abs(word); err == nil && strings.HasPrefix(word, root) {
			word = absolute
		}
		project[i] = "'" + word + "'"
	}
	cmd := exec.CommandContext(ctx, "sh", "-euc", "docker compose "+strings.Join(project, " ")+strings.TrimPrefix(line, "compose"))
	cmd.Dir, cmd.Env = dir, s.environ
	return cmd
}

// interrupted executes a line that stays until Ctrl-C, which comes once it has
// said that it serves.
func (s *smoke) interrupted(t *testing.T, dir, line string) {
	t.Helper()
	// In place of a file .env.
	settings := " --env CODEC_TOKEN=" + strings.Repeat("t", 32) + " --env ENCRYPTION_KEYS=a:" + strings.Repeat("A", 43) + "= cli "
	cmd := s.line(t.Context(), dir, strings.Replace(line, " cli ", settings, 1))
	var output bytes.Buffer // read when it has ended
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a terminal does
	require.NoError(t, cmd.Start())
	await(t, time.Minute, "the codec server serves", func() error {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:8234/healthz", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		return response.Body.Close() // whatever it says: it is there
	})
	require.NoError(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGINT))
	_ = cmd.Wait() // compose says 130 of a container that was interrupted
	require.NotContains(t, output.String(), "panic")
}

// joins brings the executor up beside a NodPT, which here is a Redis on a network
// of its own, and sends it a job.
func (s *smoke) joins(t *testing.T) {
	t.Helper()
	if !s.own {
		return // names of networks and ports may be somebody's
	}
	require.NoError(t, s.down(t.Context()))
	const network, redis = "backend_network", "nodpt-redis"
	s.docker(t, "network", "create", network)
	s.docker(t, "run", "--detach", "--network", network, "--name", redis, "--user", "999", "redis:7.4.2-alpine",
		"redis-server", "--protected-mode", "no", "--appendonly", "yes", "--maxmemory-policy", "noeviction")
	s.docker(t, "run", "--detach", "--network", network, "--name", "ollama", "nodpt/executor:dev", "mock-llm", "--addr", "0.0.0.0:11434")
	dir, err := filepath.Abs(root)
	require.NoError(t, err)
	env := filepath.Join(t.TempDir(), "backend.env")
	require.NoError(t, os.WriteFile(env, []byte("NODPT_ENV_FILE="+env+"\nMAX_AGENT=7\n"), 0o600))
	var join, after []string // lines to bring it up, and those of the pages after that
	for _, l := range documented(t) {
		switch {
		case l.page != joining:
		case len(join) < 2:
			join = append(join, strings.ReplaceAll(l.text, "backend.env", env))
		default:
			after = append(after, l.text)
		}
	}
	require.Len(t, join, 2)
	require.NotEmpty(t, after)
	inShell := func(lines ...string) {
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "sh", "-euc", strings.Join(lines, "\n"))
		cmd.Dir, cmd.Env = dir, s.environ
		output, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s\n%s", lines, last(string(output), 4000))
	}
	defer func() {
		inShell(join[0], "docker compose down --volumes --timeout 100")
		s.docker(t, "rm", "--force", redis, "ollama")
		s.docker(t, "network", "rm", network)
	}()
	inShell(join...)
	s.docker(t, "exec", redis, "redis-cli", "-e", "XADD", job.Agent.Stream(), "*", "jobId", "theirs", "userId", "u1", "task", "!echo an answer")
	await(t, time.Minute, "NodPT hears the answer", func() error {
		answer, err := s.input(t.Context(), nil, "exec", redis, "redis-cli", "XRANGE", "signalr:updates", "-", "+")
		if err == nil && !strings.Contains(answer, "an answer") {
			err = errors.New("there is none")
		}
		return err
	})
	inShell(append(join[:1:1], after...)...)
}
