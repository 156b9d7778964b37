// Package docs holds the tests of what the pages beside it say.
package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAddingARole does what roles.md says, in a copy of the repository, and
// compiles and tests what comes of it.
func TestAddingARole(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("roles.md")
	require.NoError(t, err)
	dir := checkout(t)
	blocks := regexp.MustCompile("(?ms)^```(diff|sh)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1)
	require.Len(t, blocks, 6)
	for _, block := range blocks {
		if block[1] == "diff" {
			in(t, dir, block[2], "git", "apply", "--unidiff-zero", "-")
			continue
		}
		in(t, dir, "", "sh", "-euc", block[2])
	}

	in(t, dir, "", "go", "vet", "./...")
	in(t, dir, "", "go", "test", "./internal/job", "./worker", "./workflows")
	in(t, dir, "", "go", "test", "./internal/stream", "-run", "TestTheShipped")
	in(t, dir, "", "go", "test", "./cmd/executor", "-run", "TestScripts/usage")
	in(t, dir, "", "go", "test", "./deploy", "-run", "TestComposeServesEveryQueue|TestPrometheusScrapesEveryProcess")
	in(t, dir, "", "go", "build", "-buildvcs=false", "-o", "executor", "./cmd/executor")
	require.Contains(t, in(t, dir, "", "./executor", "submit", "--help"), "painter")
	require.Contains(t, in(t, dir, "", "./executor", "config"), "MAX_TOKENS_PAINTER")
}

// checkout copies what the repository holds, as it is now, into a repository of
// its own.
func checkout(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	dir := t.TempDir()
	for name := range strings.Lines(in(t, root, "", "git", "ls-files", "--cached", "--others", "--exclude-standard")) {
		name = strings.TrimSuffix(name, "\n")
		info, err := os.Stat(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // deleted, and not committed yet
		}
		require.NoError(t, err)
		content, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		to := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o750))
		require.NoError(t, os.WriteFile(to, content, info.Mode().Perm()))
	}
	in(t, dir, "", "git", "init", "--quiet")
	return dir
}

func in(t *testing.T, dir, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), output)
	return string(output)
}
