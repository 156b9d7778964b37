package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Lock is the exclusive use of a data directory. The kernel drops it when the
// process ends in whatever way, so a crash leaves nothing to clean up.
type Lock struct{ file *os.File }

// LockDir takes a directory for this process, creating it where needed. It
// fails at once where another process has it, naming that process.
func LockDir(dir string) (*Lock, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // G304: the user names the data directory
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path) //nolint:gosec // G304: as above
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by process %s: stop it or pass another --data", dir, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("data directory %s cannot be locked: %w", dir, err)
	}
	// The pid is for people only; the lock itself decides.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return &Lock{file: f}, nil
}

// Unlock gives the directory back. Closing the file alone would leave it locked
// while a process that is just being forked has a copy of the descriptor.
func (l *Lock) Unlock() error {
	return errors.Join(syscall.Flock(int(l.file.Fd()), syscall.LOCK_UN), l.file.Close())
}
