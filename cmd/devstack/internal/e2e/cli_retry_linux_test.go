package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// terminal is a person's: what is typed goes to a command, what it shows is kept.
type terminal struct {
	b      *bundle
	master *os.File
	cmd    *exec.Cmd
	mu     sync.Mutex
	shown  bytes.Buffer
	read   chan struct{} // closed when the command has closed its side
}

// onTerminal runs the executor with a pseudo terminal for all three of its files.
func (b *bundle) onTerminal(args ...string) *terminal {
	t := b.T
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = master.Close() })
	control := func(request uintptr, value *int32) {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(unsafe.Pointer(value)))
		require.Zero(t, errno)
	}
	var unlock, number int32
	control(syscall.TIOCSPTLCK, &unlock)
	control(syscall.TIOCGPTN, &number)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	t.Cleanup(cancel)
	term := &terminal{b: b, master: master, read: make(chan struct{})}
	term.cmd = exec.CommandContext(ctx, shared.binary, args...) //nolint:gosec // G204: the binary under test
	term.cmd.Dir = b.Dir
	term.cmd.Env = b.Env(map[string]string{"REDIS_CONNECTION": b.OperatorConnection(), "TERM": "xterm"})
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = slave, slave, slave
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, term.cmd.Start())
	require.NoError(t, slave.Close())
	go func() {
		defer close(term.read)
		_, _ = io.Copy(term, master) // it ends with an error when the other side is closed
	}()
	return term
}

func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shown.Write(p)
}

func (t *terminal) screen() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shown.String()
}

// waitFor waits until the terminal has shown a text.
func (t *terminal) waitFor(text string) {
	t.b.T.Helper()
	t.b.Wait(text, func(context.Context) error {
		if screen := t.screen(); !strings.Contains(screen, text) {
			return fmt.Errorf("it shows %q", screen)
		}
		return nil
	})
}

func (t *terminal) enter(keys string) {
	t.b.T.Helper()
	_, err := t.master.WriteString(keys)
	require.NoError(t.b.T, err)
}

// end waits until the command has ended and returns its exit code.
func (t *terminal) end() int {
	t.b.T.Helper()
	_ = t.cmd.Wait() // its exit code is looked at
	<-t.read
	return t.cmd.ProcessState.ExitCode()
}

// TestAskedOnATerminal answers the questions of retry and dlq purge.
func TestAskedOnATerminal(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	const n = 3
	for i := range n {
		b.Submit("agent", "jobId", fmt.Sprintf("j%d", i), "userId", "u1", "task", "!fail 400 x1 "+harness.Text("task"))
	}
	for i := range n {
		b.Update(fmt.Sprintf("j%d", i), 1)
	}
	b.Settled("agent")

	const question = "Retry 3 jobs? [y/N] "
	for _, answer := range []string{"n\r", "\r", "\x03", "\x04"} {
		term := b.onTerminal("retry", "--failed")
		term.waitFor(question)
		require.Contains(t, term.screen(), "llm_bad_request")
		term.enter(answer)
		require.Equal(t, 1, term.end(), "%q: %s", answer, term.screen())
		require.Contains(t, term.screen(), "nothing was done")
	}
	require.Equal(t, n, b.LLM.Stats().Calls)

	term := b.onTerminal("retry", "--failed", "--wait")
	term.waitFor(question)
	term.enter("y\r")
	require.Equal(t, 0, term.end(), term.screen())
	require.Contains(t, term.screen(), "retrying", "progress")
	require.Contains(t, term.screen(), "\x1b[32mcompleted", "in green")
	for i := range n {
		b.healed("agent", fmt.Sprintf("j%d", i), 2)
	}
	require.Equal(t, 2*n, b.LLM.Stats().Calls)

	// What cannot be undone takes more than a y.
	require.NoError(t, b.Redis.Do(t.Context(), "XADD", "jobs:chat:dead", "1000-1", "jobId", "old", "message", "m").Err())
	purge := []string{"dlq", "purge", "--before", "720h", "--unresolved-too"}
	for answer, code := range map[string]int{"y\r": 1, "2\r": 1, "\x03": 1} {
		term = b.onTerminal(purge...)
		term.waitFor(`Delete 1 dead letter for good, 1 of them unresolved. Type "1" to go on: `)
		term.enter(answer)
		require.Equal(t, code, term.end(), "%q: %s", answer, term.screen())
		require.Len(t, b.DeadLetters("chat"), 1)
	}
	term = b.onTerminal(purge...)
	term.waitFor("to go on: ")
	term.enter("1\r")
	require.Equal(t, 0, term.end(), term.screen())
	require.Empty(t, b.DeadLetters("chat"))
}

// TestWatchStreamsOnATerminal draws over what it has shown until Ctrl-C.
func TestWatchStreamsOnATerminal(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.Start(nil, "run")
	term := b.onTerminal("streams", "--watch", "--interval", "100ms")
	b.Wait("three times", func(context.Context) error {
		if n := strings.Count(term.screen(), "\x1b[H\x1b[J"); n < 3 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	require.Contains(t, term.screen(), "IN FLIGHT")
	term.enter("\x03")
	require.Equal(t, 0, term.end(), term.screen())
}
