package term

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	xterm "golang.org/x/term"
)

// Interactive reports whether a person can answer on in.
func Interactive(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && xterm.IsTerminal(int(f.Fd()))
}

// Ask puts a question to the person at in and reports whether the answer was yes.
// Anything but "y" and "yes" is a no, and so is the end of ctx.
func Ask(ctx context.Context, in io.Reader, out io.Writer, question string) bool {
	fmt.Fprint(out, question+" [y/N] ")
	answer := make(chan string, 1)
	go func() { // a read from a terminal cannot be interrupted
		line, _ := bufio.NewReader(in).ReadString('\n')
		answer <- line
	}()
	select {
	case line := <-answer:
		line = strings.ToLower(strings.TrimSpace(line))
		return line == "y" || line == "yes"
	case <-ctx.Done():
		fmt.Fprintln(out)
		return false
	}
}
