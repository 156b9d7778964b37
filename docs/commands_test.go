package docs

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEveryCommandIsExecuted fails for a command line in the README or on a page
// that no test executes. What executes which program:
//
//	executor, redis-cli, Redis commands, …   TestDocumentedCommands, end to end
//	docker compose                           make compose-smoke, on an engine
//	temporal                                 make test-temporal-cli
//	make                                     .ci/run, as below
//	the build of security.md                 TestTheBinaryIsReproducible
//	the rest                                 tests of the page, see elsewhere
func TestEveryCommandIsExecuted(t *testing.T) {
	t.Parallel()
	endToEnd := []string{"executor", "bin/executor", "redis-cli", "XACK", "XGROUP", "XPENDING", "XTRIM", "curl", "sqlite3", "openssl", "printf"}
	elsewhere := map[string][]string{
		"docs/migration.md":      {"export"},                         // compose-smoke, with the lines that follow
		"docs/roles.md":          {"go", "sed"},                      // TestAddingARole
		"deploy/redis/README.md": {"[", "sed", "mv", "redis-server"}, // TestRedisPasswordCommand, TestRedisConfiguration
		"docs/observability.md":  {"promtool"},                       // here
		"CONTRIBUTING.md":        {"go", "bash"},                     // here; the other is what runs all this
	}
	for line := range strings.Lines(in(t, "..", "", "scripts/documented")) {
		place, command, found := strings.Cut(strings.TrimSpace(line), "\t")
		require.True(t, found, line)
		page, _, _ := strings.Cut(place, ":")
		words := strings.Fields(regexp.MustCompile(`^([A-Z_]+=\S+ )+`).ReplaceAllString(command, ""))
		switch program := words[0]; {
		case command == reproducibly:
		case slices.Contains(elsewhere[page], program):
		case program == "make":
			makes(t, place, command, words[1])
		case slices.Contains(endToEnd, program), strings.HasPrefix(command, "docker compose "), program == "temporal":
		case program == "promtool", program == "go":
			in(t, "..", "", "sh", "-euc", command)
		default:
			require.Fail(t, "no test executes it", "%s: %s", place, command)
		}
	}
}

// makes checks a call of make: .ci/run makes the target, or make at least knows
// how to, for what takes hours, needs a person, or changes the repository.
func makes(t *testing.T, place, command, target string) {
	t.Helper()
	ci, err := os.ReadFile("../.ci/run")
	require.NoError(t, err)
	if regexp.MustCompile(`(?m)^ *step .* make ` + regexp.QuoteMeta(target) + `( |$)`).Match(ci) {
		return
	}
	known := []string{
		"test-unit", "test-e2e", // both are part of test
		"build", "dev", // the first is part of demo; scripts/try uses the second
		"executor-chaos", "chaos", // the first is part of chaos-short, which is a part of the second
		"bench-go",          // takes minutes; bench-go-once runs the same once
		"histories", "tidy", // these change files that are checked otherwise
		"bench", "bench-quick", // these need a machine to themselves
	}
	require.Contains(t, known, target, "%s: .ci/run does not make it", place)
	in(t, "..", "", "sh", "-euc", strings.Replace(command, "make ", "make --dry-run ", 1))
}
