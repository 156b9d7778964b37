package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// BinaryVariable names a built executor to test. Without it the tests build one
// with the race detector.
const BinaryVariable = "EXECUTOR_BINARY"

// ExecutorBinary returns the executor to test, building it in dir, with these
// build tags, unless one is named.
func ExecutorBinary(ctx context.Context, dir string, tags ...string) (string, error) {
	if path := os.Getenv(BinaryVariable); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("%s: %w", BinaryVariable, err)
		}
		return path, nil
	}
	root, err := RepositoryRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "executor")
	cmd := exec.CommandContext(ctx, "go", "build", "-race", "-buildvcs=false", "-tags", strings.Join(tags, ","), "-o", path, "./cmd/executor")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // the race detector needs it
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the executor: %w\n%s", err, out)
	}
	return path, nil
}

// RepositoryRoot is the nearest directory upwards that holds the executor's
// command; this module's own directory is on the way.
func RepositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "cmd", "executor")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("the executor's source was not found above the tests: set " + BinaryVariable)
		}
		dir = parent
	}
}
