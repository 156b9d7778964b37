package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSecurityPageNamesTestsThatExist: a check that runs no test looks like one
// that passes.
func TestSecurityPageNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	page := read(t, "../docs/security.md")
	found := regexp.MustCompile("`T ('[^']+'|\\w+) (\\./[\\w/]+)`").FindAllStringSubmatch(page, -1)
	require.Greater(t, len(found), 15)
	for _, m := range found {
		pattern, tests := strings.Trim(m[1], "'"), testNames(t, filepath.Join("..", m[2]))
		for alternative := range strings.SplitSeq(pattern, `\|`) {
			require.Regexp(t, `(?m)^Test\w*`+alternative, tests, "%s has no such test", m[2])
		}
	}
	named := regexp.MustCompile(`e2e\x60 (Test\w+)`).FindAllStringSubmatch(page, -1)
	require.NotEmpty(t, named)
	for _, m := range named {
		require.Contains(t, testNames(t, "../cmd/devstack/internal/e2e"), m[1])
	}
}

// testNames are the tests of a directory, one a line.
func testNames(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	require.NoError(t, err)
	require.NotEmpty(t, files, dir)
	var names strings.Builder
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)`).FindAllSubmatch(source, -1) {
			names.Write(m[1])
			names.WriteByte('\n')
		}
	}
	return names.String()
}
