package config_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/config"
)

func TestReadmeTable(t *testing.T) {
	t.Parallel()
	const (
		path  = "../../README.md"
		begin = "<!-- config:begin -->\n"
		end   = "<!-- config:end -->"
	)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	head, rest, found := strings.Cut(string(content), begin)
	require.True(t, found, "%s has no line %s", path, strings.TrimSpace(begin))
	table, tail, found := strings.Cut(rest, end)
	require.True(t, found, "%s has no %s", path, end)
	if updateDocs() {
		table = config.MarkdownTable()
		require.NoError(t, os.WriteFile(path, []byte(head+begin+table+end+tail), 0o600))
	}
	require.Equal(t, config.MarkdownTable(), table, "the table in %s is not in step with the code: %s", path, update)
}
