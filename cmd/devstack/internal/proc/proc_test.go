package proc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const patience = 30 * time.Second

// shell starts a shell script and waits until it has written "ready".
func shell(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start(Spec{
		Name: "script", Path: "sh", Args: []string{"-c", script},
		Env: os.Environ(), LogFile: filepath.Join(t.TempDir(), "script.log"),
	})
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, p.WaitReady(ctx, func(context.Context) error {
		if strings.Contains(p.Log(), "ready") {
			return nil
		}
		return errors.New("has not said so")
	}))
	return p
}

func TestStopIsPolite(t *testing.T) {
	t.Parallel()
	p := shell(t, `trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done`)
	require.NoError(t, p.Stop(t.Context(), patience))
	require.Equal(t, "ready\nbye\n", p.Log())
	require.NoError(t, p.Stop(t.Context(), patience), "stopping twice is harmless")
}

func TestStopReportsExitCode(t *testing.T) {
	t.Parallel()
	p := shell(t, `trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done`)
	require.ErrorContains(t, p.Stop(t.Context(), patience), "exit status 3")
	code, err := p.ExitCode(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, code)
}

func TestStopKillsInTheEnd(t *testing.T) {
	t.Parallel()
	p := shell(t, `trap '' TERM; echo ready; while :; do sleep 0.05; done`)
	require.ErrorContains(t, p.Stop(t.Context(), 50*time.Millisecond), "was killed")
	code, err := p.ExitCode(t.Context())
	require.NoError(t, err)
	require.Equal(t, -1, code)
}

func TestWaitReadyShowsWhyAProcessEnded(t *testing.T) {
	t.Parallel()
	p, err := Start(Spec{
		Name: "script", Path: "sh", Args: []string{"-c", "echo no database; exit 2"},
		Env: os.Environ(), LogFile: filepath.Join(t.TempDir(), "log"),
	})
	require.NoError(t, err)
	err = p.WaitReady(t.Context(), func(context.Context) error { return errors.New("refused") })
	require.ErrorContains(t, err, "exit status 2")
	require.ErrorContains(t, err, "no database")
}

func TestStartNamesMissingExecutable(t *testing.T) {
	t.Parallel()
	_, err := Start(Spec{Name: "executor", Path: "./does-not-exist", LogFile: filepath.Join(t.TempDir(), "log")})
	require.ErrorContains(t, err, "start executor: ")
}

func TestReadyChecks(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			http.Error(w, "redis is down", http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	require.NoError(t, HTTPReady(server.URL+"/readyz")(t.Context()))
	require.ErrorContains(t, HTTPReady(server.URL+"/other")(t.Context()), "redis is down")
	require.NoError(t, TCPReady(server.Listener.Addr().String())(t.Context()))

	free, err := new(Ports).Free(t.Context())
	require.NoError(t, err)
	require.Error(t, TCPReady(Loopback(free))(t.Context()))
}

func TestPreferTellsWhoHoldsThePort(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	busy := l.Addr().(*net.TCPAddr).Port
	ports := new(Ports)

	port, notice, err := ports.Prefer(t.Context(), busy, "the web UI")
	require.NoError(t, err)
	require.NotEqual(t, busy, port)
	require.Contains(t, notice, fmt.Sprintf("port %d is busy", busy))
	require.Contains(t, notice, "the web UI uses port "+strconv.Itoa(port))
	if runtime.GOOS == "linux" {
		require.Contains(t, notice, "pid "+strconv.Itoa(os.Getpid()))
	}

	require.NoError(t, l.Close())
	port, notice, err = ports.Prefer(t.Context(), busy, "the web UI")
	require.NoError(t, err)
	require.Equal(t, busy, port)
	require.Empty(t, notice)
}

func TestLockDir(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := LockDir(dir)
	require.NoError(t, err)
	_, err = LockDir(dir)
	require.ErrorContains(t, err, "in use by process "+strconv.Itoa(os.Getpid()))
	require.NoError(t, lock.Unlock())
	lock, err = LockDir(dir)
	require.NoError(t, err)
	require.NoError(t, lock.Unlock())
}

func TestEnviron(t *testing.T) {
	t.Setenv("DEVSTACK_TEST_KEEP", "1")
	t.Setenv("DEVSTACK_TEST_DROP", "1")
	t.Setenv("DEVSTACK_TEST_SET", "1")
	env := Environ(func(name string) bool { return name != "DEVSTACK_TEST_DROP" }, map[string]string{"DEVSTACK_TEST_SET": "2"})
	require.Contains(t, env, "DEVSTACK_TEST_KEEP=1")
	require.Contains(t, env, "DEVSTACK_TEST_SET=2")
	require.NotContains(t, env, "DEVSTACK_TEST_SET=1")
	require.NotContains(t, env, "DEVSTACK_TEST_DROP=1")
}
