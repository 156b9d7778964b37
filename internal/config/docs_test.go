package config_test

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/config"
)

// updateDocs says that a test shall write what it would otherwise compare.
func updateDocs() bool { return os.Getenv("UPDATE_DOCS") != "" }

const update = "run UPDATE_DOCS=1 go test ./internal/config"

func TestVariablesAreComplete(t *testing.T) {
	t.Parallel()
	params, err := env.GetFieldParams(&config.Config{})
	require.NoError(t, err)
	var fields, documented []string
	for _, p := range params {
		fields = append(fields, p.Key)
	}
	byName := make(map[string]config.Variable)
	for _, v := range config.Variables() {
		require.NotEmpty(t, v.Meaning, v.Name)
		require.NotEmpty(t, v.Group, v.Name)
		require.NotContains(t, byName, v.Name)
		byName[v.Name] = v
		if !strings.HasPrefix(v.Name, "TEMPORAL_") || v.Name == "TEMPORAL_UI_URL" {
			documented = append(documented, v.Name)
		}
	}
	require.ElementsMatch(t, fields, documented)
	for _, p := range params {
		require.Equal(t, p.DefaultValue, byName[p.Key].Default, p.Key)
	}
}

// Every default is a value that may be set.
func TestDefaultsAreValid(t *testing.T) {
	t.Parallel()
	given := make(environ)
	for _, v := range config.Variables() {
		if !strings.HasPrefix(v.Name, "DB_") {
			given[v.Name] = v.Default
		}
	}
	explicit, defaults := load(t, given), load(t, nil)
	require.Equal(t, defaults.Roles(), explicit.Roles())
	require.Equal(t, defaults.Bridge(), explicit.Bridge())
	require.Equal(t, defaults.Worker(), explicit.Worker())
}

func TestEnvExample(t *testing.T) {
	t.Parallel()
	const path = "../../.env.example"
	if updateDocs() {
		require.NoError(t, os.WriteFile(path, []byte(config.EnvExample()), 0o600))
	}
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, config.EnvExample(), string(content), "%s is not in step with the code: %s", path, update)

	// The file, with every # before a variable taken away, is the defaults.
	var names []string
	for line := range strings.Lines(string(content)) {
		name, value, ok := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "#")), "=")
		if !ok || strings.Contains(name, " ") {
			continue
		}
		i := slices.IndexFunc(config.Variables(), func(v config.Variable) bool { return v.Name == name })
		require.GreaterOrEqual(t, i, 0, name)
		require.Equal(t, config.Variables()[i].Default, value, name)
		names = append(names, name)
	}
	require.Len(t, names, len(config.Variables()))
}

func TestMarkdownTable(t *testing.T) {
	t.Parallel()
	table := config.MarkdownTable()
	for _, v := range config.Variables() {
		require.Contains(t, table, "| `"+v.Name+"`")
	}
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, "|") {
			require.Equal(t, 4, strings.Count(line, "|"), line)
		}
	}
}

// A field without a tag would be a setting nobody can set.
func TestEveryFieldHasATag(t *testing.T) {
	t.Parallel()
	for field := range reflect.TypeFor[config.Config]().Fields() {
		if field.IsExported() {
			require.NotEmpty(t, field.Tag.Get("env"), field.Name)
		}
	}
}
