package leak

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestAGoroutineIsFoundUntilItEnds(t *testing.T) { //nolint:paralleltest // other tests are goroutines too
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		<-end
	}()
	left := wait(0)
	require.Len(t, left, 1)
	require.Contains(t, left[0], "TestAGoroutineIsFoundUntilItEnds")
	close(end)
	<-ended
	require.Empty(t, wait(patience))
}
