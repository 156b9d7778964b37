package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/spf13/cobra"
	xterm "golang.org/x/term"

	"github.com/nodpt/executor/internal/term"
)

// confirm asks before something that concerns many jobs is done. Where nobody can
// be asked, --yes has to say that it is meant.
func confirm(cmd *cobra.Command, yes bool, question string) error {
	return confirmed(cmd, yes, func(ctx context.Context, in io.Reader, out io.Writer) bool {
		return term.Ask(ctx, in, out, question)
	})
}

// confirmTyped is confirm for what cannot be undone: a word has to be typed.
func confirmTyped(cmd *cobra.Command, yes bool, question, word string) error {
	return confirmed(cmd, yes, func(ctx context.Context, in io.Reader, out io.Writer) bool {
		return askTyped(ctx, in, out, question, word)
	})
}

func confirmed(cmd *cobra.Command, yes bool, ask func(context.Context, io.Reader, io.Writer) bool) error {
	switch {
	case yes:
		return nil
	case !term.Interactive(cmd.InOrStdin()):
		return &exitError{exitUsage, errors.New("nobody can be asked here: add --yes to go on, or --dry-run to look first")}
	case !ask(cmd.Context(), cmd.InOrStdin(), cmd.ErrOrStderr()):
		return &exitError{exitFailed, errors.New("nothing was done")}
	}
	return nil
}

// askTyped reports whether the person at in types the word, before ctx ends.
func askTyped(ctx context.Context, in io.Reader, out io.Writer, question, word string) bool {
	fmt.Fprintf(out, "%s Type %q to go on: ", question, word)
	answer := make(chan string, 1)
	go func() { // a read from a terminal cannot be interrupted
		line, _ := bufio.NewReader(in).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case line := <-answer:
		return line == word
	case <-ctx.Done():
		fmt.Fprintln(out)
		return false
	}
}

// meter shows on a terminal's standard error how far a long operation has come,
// and nothing elsewhere.
type meter struct {
	writer  progress.Writer
	tracker *progress.Tracker
	ended   chan struct{}
}

func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && xterm.IsTerminal(int(f.Fd()))
}

func newMeter(cmd *cobra.Command, what string, total int) *meter {
	m := &meter{}
	if total < 2 || !onTerminal(cmd.ErrOrStderr()) {
		return m
	}
	m.tracker = &progress.Tracker{Message: what, Total: int64(total)}
	m.ended = make(chan struct{})
	m.writer = progress.NewWriter()
	m.writer.SetOutputWriter(cmd.ErrOrStderr())
	m.writer.SetNumTrackersExpected(1)
	m.writer.AppendTracker(m.tracker)
	go func() {
		defer close(m.ended)
		m.writer.Render()
	}()
	return m
}

func (m *meter) step() {
	if m.tracker != nil {
		m.tracker.Increment(1)
	}
}

func (m *meter) stop() {
	if m.writer != nil {
		m.writer.Stop()
		<-m.ended
	}
}

// whoami is who asks, as far as the machine knows.
func whoami() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return name + "@" + host
}
