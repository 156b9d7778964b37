package docs

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// reproducibly is how security.md shows that two builds are the same.
const reproducibly = "make build VERSION=x && sha256sum bin/executor"

// TestTheBinaryIsReproducible does so in two directories.
func TestTheBinaryIsReproducible(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("security.md")
	require.NoError(t, err)
	require.Contains(t, string(page), "`"+reproducibly+"` in two directories")

	var sums []string
	for range 2 {
		out := strings.Fields(in(t, checkout(t), "", "sh", "-euc", reproducibly))
		sums = append(sums, out[len(out)-2])
	}
	require.Len(t, sums[0], 64)
	require.Equal(t, sums[0], sums[1])
}
