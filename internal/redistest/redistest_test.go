package redistest_test

import (
	"bufio"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nodpt/executor/internal/redistest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServerAnswersAndRestarts(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	require.Equal(t, "+PONG\r\n", ask(t, s.Addr(), "PING"))

	s.Kill()
	var d net.Dialer
	_, err := d.DialContext(t.Context(), "tcp", s.Addr())
	require.Error(t, err, "a killed server refuses connections")

	s.Restart(t)
	require.Equal(t, "+PONG\r\n", ask(t, s.Addr(), "PING"))
}

func TestArgumentsReachTheServer(t *testing.T) {
	t.Parallel()
	s := redistest.StartWith(t, "--requirepass", "open sesame")
	require.Contains(t, ask(t, s.Addr(), "PING"), "-NOAUTH")
	require.DirExists(t, s.Dir())
}

func TestServersDoNotShareData(t *testing.T) {
	t.Parallel()
	a, b := redistest.Start(t), redistest.Start(t)
	require.Equal(t, "+OK\r\n", ask(t, a.Addr(), "SET k v"))
	require.Equal(t, "$-1\r\n", ask(t, b.Addr(), "GET k"))
}

func ask(t *testing.T, addr, command string) string {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = conn.Write([]byte(command + "\r\n"))
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	return line
}
