// Package deploy holds what runs the executor elsewhere than on a developer's
// machine. Its tests keep those files in step with the code: a setting that was
// renamed, a queue nobody serves or an image of another Go version would
// otherwise be found by the first person who deploys it.
package deploy

import (
	"go/version"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/worker"
	"github.com/nodpt/executor/workflows"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

// matches returns the first group of every match of pattern, sorted.
func matches(t *testing.T, text, pattern string) []string {
	t.Helper()
	var found []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	require.NotEmpty(t, found, "nothing matches %s", pattern)
	slices.Sort(found)
	return found
}

func TestComposeSetsOnlyVariablesThatExist(t *testing.T) {
	t.Parallel()
	block := matches(t, read(t, "../docker-compose.yml"), `(?s)\nx-executor-environment:(.*?)\nservices:`)[0]
	known := []string{"GOMEMLIMIT"} // the Go runtime reads it
	for _, v := range config.Variables() {
		known = append(known, v.Name)
	}
	for _, name := range matches(t, block, `(?m)^  ([A-Z_]+):`) {
		require.Contains(t, known, name)
	}
}

// TestComposeSettingsAreAccepted loads what the compose file gives to the
// executor with every ${NAME:-default} at its default.
func TestComposeSettingsAreAccepted(t *testing.T) {
	t.Parallel()
	block := matches(t, read(t, "../docker-compose.yml"), `(?s)\nx-executor-environment:(.*?)\nservices:`)[0]
	block = regexp.MustCompile(`\$\{[A-Z_]+:-([^}]*)\}`).ReplaceAllString(block, "$1")
	environ := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^  ([A-Z_]+): *(.*)$`).FindAllStringSubmatch(block, -1) {
		environ[m[1]] = m[2]
	}
	require.NotEmpty(t, environ)
	_, err := config.Load(environ)
	require.NoError(t, err)
}

func TestComposeServesEveryQueue(t *testing.T) {
	t.Parallel()
	want := slices.Sorted(slices.Values(worker.Queues()))
	require.Equal(t, want, matches(t, read(t, "../docker-compose.yml"), `command: \[worker, --queues=([a-z]+)\]`))
}

func TestComposeRegistersEverySearchAttribute(t *testing.T) {
	t.Parallel()
	want := slices.Sorted(slices.Values(workflows.AttributeNames()))
	require.Equal(t, want, matches(t, read(t, "../docker-compose.yml"), `--name=(\w+) --type=Keyword`))
}

func TestImageBuildsWithGoNewEnough(t *testing.T) {
	t.Parallel()
	needed := matches(t, read(t, "../go.mod"), `(?m)^go (\S+)$`)[0]
	image := matches(t, read(t, "Dockerfile"), `(?m)^FROM golang:([0-9.]+)-`)[0]
	require.GreaterOrEqual(t, version.Compare("go"+image, "go"+needed), 0, "image has %s, go.mod needs %s", image, needed)
}

// TestComposeExplainsItsVariables: those of the file alone are listed at its top.
func TestComposeExplainsItsVariables(t *testing.T) {
	t.Parallel()
	file := read(t, "../docker-compose.yml")
	head, body, found := strings.Cut(file, "\nname:")
	require.True(t, found)
	known := map[string]bool{}
	for _, v := range config.Variables() {
		known[v.Name] = true
	}
	used := matches(t, body, `[^$]\$\{([A-Z_]+)`)
	for _, name := range used {
		require.True(t, known[name] || strings.Contains(head, name), name)
	}
	for _, name := range matches(t, head, `(?m)^#   ([A-Z_]{6,}) `) {
		require.Contains(t, used, name)
	}
}

// TestComposePublishesOnLoopbackOnly also where a port is moved.
func TestComposePublishesOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	for _, list := range matches(t, read(t, "../docker-compose.yml"), `(?m)^ +ports: (.*)$`) {
		require.Regexp(t, `^\["127\.0\.0\.1:[^,]*"\]$`, list)
	}
}

// TestComposeBoundsMemory: the limit of each executor, without swap, and below it
// that of its heap.
func TestComposeBoundsMemory(t *testing.T) {
	t.Parallel()
	file := read(t, "../docker-compose.yml")
	image := matches(t, file, `(?s)\nx-executor-image:(.*?)\n\n`)[0]
	kernel, err := strconv.Atoi(matches(t, image, `mem_limit: \$\{EXECUTOR_MEMORY:-(\d+)m\}`)[0])
	require.NoError(t, err)
	require.Equal(t, matches(t, image, `\bmem_limit: (\S+)`), matches(t, image, `\bmemswap_limit: (\S+)`), "jobs and keys would be swapped out to a disk")
	heap, err := strconv.Atoi(matches(t, file, `GOMEMLIMIT: \$\{GOMEMLIMIT:-(\d+)MiB\}`)[0])
	require.NoError(t, err)
	require.Less(t, heap, kernel, "Go would not notice before the kernel does")
}
