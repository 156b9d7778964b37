// Package proc runs the stack's child processes: it finds ports for them,
// keeps their output in files, waits until they answer and stops them for
// certain. It exists because the executor and Redis are run as real processes,
// which the demo shows and the end-to-end tests kill.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Spec describes a child process.
type Spec struct {
	Name    string   // for messages: "executor"
	Path    string   // executable, looked up on PATH if it has no slash
	Args    []string // without the executable's own name
	Env     []string // complete environment, KEY=value
	LogFile string   // receives stdout and stderr, appended
	Dir     string   // working directory; empty: that of the parent
	// Owner is the user the process runs as; nil: that of the parent.
	Owner *syscall.Credential
}

// Process is a running child. Its methods may be called concurrently.
type Process struct {
	name string
	log  string
	from int64 // size of the log when this process began
	cmd  *exec.Cmd
	done chan struct{}
	err  error // from Wait, valid after done is closed
}

// Start runs a child process. It ends with the parent at the latest.
func Start(spec Spec) (*Process, error) {
	path, err := exec.LookPath(spec.Path)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	log, err := os.OpenFile(spec.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: log file: %w", spec.Name, err)
	}
	defer func() { _ = log.Close() }() // the child has its own copy
	info, err := log.Stat()
	if err != nil {
		return nil, fmt.Errorf("start %s: log file: %w", spec.Name, err)
	}

	// Not CommandContext: a context would kill without asking first.
	cmd := exec.Command(path, spec.Args...) //nolint:gosec,noctx // G204: runs what the developer names; stopped by Stop
	cmd.Env = spec.Env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = spec.Dir
	cmd.SysProcAttr = attributes()
	cmd.SysProcAttr.Credential = spec.Owner
	p := &Process{name: spec.Name, log: spec.LogFile, from: info.Size(), cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel counts the thread that started the child as its parent, so
		// that thread has to live as long as the child does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	return p, nil
}

// Name is the name given in Spec.
func (p *Process) Name() string { return p.name }

// Pid is the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode waits for the end and returns the exit code, -1 for a process ended
// by a signal.
func (p *Process) ExitCode(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s is still running: %w", p.name, context.Cause(ctx))
	}
}

// Signal sends a signal; to a process that has ended it does nothing.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// Stop asks the process to end with SIGTERM, and after the grace time, or when
// ctx ends, kills it. It returns an error where it had to kill, or where the
// process did not exit with 0.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if _, err := p.ExitCode(ctx); err != nil {
		p.Kill()
		return fmt.Errorf("%s did not stop within %s and was killed", p.name, grace)
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w", p.name, p.err)
	}
	return nil
}

// Kill ends the process at once, without a chance to clean up, and waits until
// it is gone.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Log is everything the process has written since it was started.
func (p *Process) Log() string {
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	text, _ := io.ReadAll(io.NewSectionReader(f, p.from, 1<<62))
	return string(text)
}

// LogTail is the last lines of Log.
func (p *Process) LogTail(lines int) string {
	all := strings.Split(strings.TrimRight(p.Log(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// pollInterval bounds how much later than the process its readiness is noticed.
const pollInterval = 20 * time.Millisecond

// WaitReady polls a check until it succeeds, the process ends or ctx ends. Its
// error ends with what the process wrote last.
func (p *Process) WaitReady(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.done:
			cancel(fmt.Errorf("it ended: %s", p.cmd.ProcessState))
		case <-ctx.Done():
		}
	}()
	if err := Wait(ctx, check); err != nil {
		return fmt.Errorf("%s is not ready: %w; last lines of %s:\n%s", p.name, err, p.log, p.LogTail(20))
	}
	return nil
}

// Wait polls a check until it succeeds or ctx ends; then it returns why ctx
// ended and what the check said last.
func Wait(ctx context.Context, check func(context.Context) error) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last check: %w)", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// HTTPReady is a check for WaitReady: GET url answers 200.
func HTTPReady(url string) func(context.Context) error {
	client := &http.Client{Timeout: 5 * time.Second}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 2048))
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
		}
		return nil
	}
}

// TCPReady is a check for WaitReady: something accepts connections.
func TCPReady(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// Environ is the current environment without the variables whose name keep
// rejects, with the given settings added.
func Environ(keep func(name string) bool, settings map[string]string) []string {
	var env []string
	for _, kv := range os.Environ() { // children need PATH, HOME and their like
		name, _, _ := strings.Cut(kv, "=")
		if _, replaced := settings[name]; !replaced && keep(name) {
			env = append(env, kv)
		}
	}
	for name, value := range settings {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env
}
