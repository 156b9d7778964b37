//go:build !failpoints

package failpoint

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What ships must not be armed by a variable that somebody happens to set.
func TestShippedBuildIgnoresTheEnvironment(t *testing.T) {
	t.Setenv("EXEC_FAIL", "read:1:kill,acked:1+:error,nonsense")
	require.NoError(t, Check())
	for _, p := range Points() {
		require.False(t, Armed(p))
		require.NoError(t, Hit(t.Context(), p))
	}
}

func TestShippedBuildPaysNothing(t *testing.T) { //nolint:paralleltest // allocations are counted for the whole process
	ctx := t.Context()
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if Armed(PersistTx) || Hit(ctx, Read) != nil {
			panic("armed")
		}
	}))
}
