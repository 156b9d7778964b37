//go:build compose

package compose

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// root is the repository, seen from here.
const root = "../.."

// engine is a Docker engine, and the compose project on it.
type engine struct {
	// own says that it was started for this test, has nothing on it and reaches no
	// registry.
	own     bool
	name    string // of the project
	project []string
	environ []string
}

// newEngine is the engine that `docker` reaches. On one that others use too, the
// project takes names and ports of its own.
func newEngine(t *testing.T) *engine {
	t.Helper()
	e := &engine{own: os.Getenv("COMPOSE_SMOKE_ENGINE") == "own", name: "executor", environ: os.Environ()}
	e.project = []string{"compose", "--project-directory", root, "--file", filepath.Join(root, "docker-compose.yml"), "--progress", "plain"}
	if e.own {
		knowNobody(t)
	} else {
		e.name = "executor-smoke"
		e.project = append(e.project, "--project-name", e.name)
		e.environ = append(e.environ, "EXECUTOR_NETWORK="+e.name, "EXECUTOR_VERSION=smoke",
			"TEMPORAL_UI_PORT="+freePort(t), "PROMETHEUS_PORT="+freePort(t))
	}
	return e
}

// input runs docker with that input and returns what it writes.
func (e *engine) input(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = e.environ, stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, last(stderr.String()+stdout.String(), 4000))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// docker runs docker, which must succeed, and returns what it writes.
func (e *engine) docker(t *testing.T, args ...string) string {
	t.Helper()
	output, err := e.input(t.Context(), nil, args...)
	require.NoError(t, err)
	return output
}

// compose runs docker compose on the project, which must succeed.
func (e *engine) compose(t *testing.T, args ...string) string {
	t.Helper()
	return e.docker(t, e.composeArgs(args...)...)
}

func (e *engine) composeArgs(args ...string) []string {
	return append(slices.Clip(e.project), args...)
}

// containers are the ids of a service's containers, in the form of their host names.
func (e *engine) containers(t *testing.T, service string) []string {
	t.Helper()
	var ids []string
	for id := range strings.FieldsSeq(e.compose(t, "ps", "--quiet", service)) {
		ids = append(ids, id[:12])
	}
	return ids
}

// down removes the project and everything it has stored, and reports what is
// still there.
func (e *engine) down(ctx context.Context) error {
	if _, err := e.input(ctx, nil, e.composeArgs("--profile", "*", "down", "--volumes", "--timeout", "100")...); err != nil {
		return err
	}
	for _, list := range [][]string{{"ps", "--all"}, {"volume", "ls"}, {"network", "ls"}} {
		left, err := e.input(ctx, nil, append(list, "--quiet", "--filter", "label=com.docker.compose.project="+e.name)...)
		if err != nil {
			return err
		}
		if left != "" {
			return fmt.Errorf("docker %s: left behind: %s", list[0], left)
		}
	}
	if e.own {
		return nil // it goes with its images
	}
	_, err := e.input(ctx, nil, "image", "rm", "nodpt/executor:smoke")
	return err
}

// await tries until do succeeds, and fails the test with its error at last.
func await(t *testing.T, patience time.Duration, what string, do func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(300 * time.Millisecond)
	defer again.Stop()
	for {
		err := do()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			require.NoError(t, err, what)
		case <-again.C:
		}
	}
}

// knowNobody answers, where the engine looks, that no other name than those of
// its containers exists. Without an answer gRPC, which also asks for records that
// Docker does not have, waits for seconds each time.
func knowNobody(t *testing.T) {
	t.Helper()
	var config net.ListenConfig
	server, err := config.ListenPacket(t.Context(), "udp", "127.0.0.1:53")
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		message := make([]byte, 512)
		for {
			n, client, err := server.ReadFrom(message)
			if err != nil {
				return
			}
			// A header of 12 bytes, a name that ends with an empty label, type and class.
			end := 12 + bytes.IndexByte(message[min(12, n):n], 0) + 5
			if end > n || end < 17 {
				continue
			}
			message[2] |= 0x80                   // an answer
			message[3] = 0x83                    // no such name
			copy(message[6:12], make([]byte, 6)) // no records, not even additional ones
			_, _ = server.WriteTo(message[:end], client)
		}
	}()
}

// freePort is a port of loopback that nobody uses yet.
func freePort(t *testing.T) string {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, listener.Close()) }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	return port
}

func last(text string, n int) string { return text[max(0, len(text)-n):] }
