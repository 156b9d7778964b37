package stream

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/redistest"
)

func TestNames(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c, err := Open(Config{Connection: s.Addr(), Group: "g", Consumer: "me", ClientName: "executor bridge\n1"}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	require.Equal(t, "g", c.Group())
	require.Equal(t, "me", c.Consumer())
	require.Contains(t, do(t, c, "CLIENT", "LIST"), "name=executor_bridge_1 ")

	a, b := open(t, s.Addr(), ""), open(t, s.Addr(), "")
	require.Equal(t, DefaultGroup, a.Group())
	require.NotEmpty(t, a.Consumer())
	require.NotEqual(t, a.Consumer(), b.Consumer(), "two processes never share a name by default")
}

func TestOpenRefusesBadConfig(t *testing.T) {
	t.Parallel()
	_, err := Open(Config{Connection: "h:x"}, nil)
	require.ErrorContains(t, err, "REDIS_CONNECTION")
	_, err = Open(Config{Connection: "rediss://h", CAFile: filepath.Join(t.TempDir(), "none.pem")}, nil)
	require.ErrorContains(t, err, "REDIS_CA_FILE")
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, []byte("no certificate"), 0o600))
	_, err = Open(Config{Connection: "rediss://h", CAFile: empty}, nil)
	require.ErrorContains(t, err, "REDIS_CA_FILE")
}
