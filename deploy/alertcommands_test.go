package deploy

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCommandsOfAlertsExist asks the executor for the help of each command line
// that an alert or the page tells to use, which fails at a flag it does not know.
func TestCommandsOfAlertsExist(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "executor")
	output, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", binary, "../cmd/executor").CombinedOutput()
	require.NoError(t, err, string(output))
	text := read(t, "../docs/observability.md")
	for _, a := range alerts(t) {
		text += a.Annotations["description"] + "\n"
	}
	commands := matches(t, text, "`executor ([a-z][^`…]*)`")
	for _, command := range slices.Compact(commands) {
		command = strings.NewReplacer("{{ $labels.role }}", "agent", "{{ $labels.code }}", "llm_timeout").Replace(command)
		sh := exec.CommandContext(t.Context(), "sh", "-euc", binary+" "+command+" --help")
		output, err := sh.CombinedOutput()
		require.NoError(t, err, "executor %s\n%s", command, output)
		require.Contains(t, string(output), "executor "+strings.Fields(command)[0], "executor %s", command)
	}
}
