// Package redistest runs a real redis-server for a test. It exists because the
// promises this program makes rest on what Redis itself does with pending
// entries, scripts and lost replies, and no imitation does all of that the same
// way. Each test gets a server of its own, so tests run in parallel and may
// flush, kill or misconfigure it.
package redistest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	startTimeout = 20 * time.Second
	portAttempts = 10
)

// Server is one running redis-server process on a loopback port.
type Server struct {
	conf string // configuration file; empty: none
	dir  string
	port int
	args []string

	mu      sync.Mutex
	process *process
}

// Start runs a redis-server without persistence and stops it when the test
// ends. The test fails where redis-server is not on the PATH.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartWith(t)
}

// StartWith is Start with further command line arguments for redis-server, for
// example "--appendonly", "yes". They come after the defaults and win.
func StartWith(t testing.TB, args ...string) *Server {
	t.Helper()
	return launchServer(t, "", append([]string{"--save", "", "--appendonly", "no"}, args...))
}

func launchServer(t testing.TB, conf string, args []string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatalf("install redis-server (Debian: apt-get install redis-server, macOS: brew install redis): %v", err)
	}
	s := &Server{conf: conf, dir: t.TempDir(), args: args}
	t.Cleanup(s.Kill)

	// The port is free when it is picked, but another test may bind it before
	// the server does. Then the server exits and the next port is tried.
	var err error
	for range portAttempts {
		if s.port, err = freePort(); err != nil {
			continue
		}
		if err = s.start(); err == nil {
			return s
		}
	}
	t.Fatalf("start redis-server: %v", err)
	return nil
}

// Addr is the host:port the server listens on. It stays the same over Restart.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Dir is the server's working directory, where it keeps its data files.
func (s *Server) Dir() string { return s.dir }

// Kill ends the server at once, as kill -9 or a crash would. Killing a server
// that is not running does nothing.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		s.process.kill()
		s.process = nil
	}
}

// Restart starts the server again on the same port and directory after Kill, or
// kills it first.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Kill()
	if err := s.start(); err != nil {
		t.Fatalf("restart redis-server: %v", err)
	}
}

func (s *Server) start() error {
	var args []string
	if s.conf != "" {
		args = append(args, s.conf)
	}
	args = append(args,
		"--port", strconv.Itoa(s.port),
		"--bind", "127.0.0.1",
		"--dir", s.dir,
		"--daemonize", "no",
	)
	args = append(args, s.args...)
	p, err := launch(args)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = p
	return nil
}

// process is a redis-server that said it accepts connections.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and its output is read
}

func launch(args []string) (*process, error) {
	// The process outlives any one call, so it is ended by kill and not by a
	// context.
	cmd := exec.Command("redis-server", args...) //nolint:gosec,noctx // a test helper; the arguments come from the test
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	ready := make(chan struct{})
	output := &tail{}
	go p.watch(stdout, ready, output)

	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case <-ready:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("redis-server ended: %s", output)
	case <-timer.C:
		p.kill()
		return nil, fmt.Errorf("redis-server was not ready after %s: %s", startTimeout, output)
	}
}

// watch reads the server's log to its end, so that the server never blocks on a
// full pipe, and reports when the server accepts connections. The log line is
// better evidence than an open port, which another process might own.
func (p *process) watch(stdout io.Reader, ready chan<- struct{}, output *tail) {
	defer close(p.done)
	lines := bufio.NewScanner(stdout)
	for accepted := false; lines.Scan(); {
		output.add(lines.Text())
		if !accepted && strings.Contains(strings.ToLower(lines.Text()), "ready to accept connections") {
			accepted = true
			close(ready)
		}
	}
	_, _ = io.Copy(io.Discard, stdout)
	_ = p.cmd.Wait()
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// tail keeps the last lines of the server's log for error texts.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == 5 {
		t.lines = t.lines[1:]
	}
	t.lines = append(t.lines, line)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, " | ")
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // binds loopback only to learn a free port
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}
