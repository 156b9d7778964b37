package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Fault C15: the service listens at one address, on loopback, and nowhere else.
// The kernel is asked, not the program.
func TestNothingListensBeyondLoopback(t *testing.T) {
	t.Parallel()
	nobody := freeAddr(t)
	p := serveWithoutServers(t, map[string]string{
		"REDIS_CONNECTION": nobody, "TEMPORAL_ADDRESS": nobody, "LLM_ENDPOINT": "http://" + nobody + "/v1/chat/completions",
		"HTTP_ADDR": freeAddr(t),
	})
	require.Equal(t, []string{p.addr}, listening(t, p.cmd.Process.Pid))
	for _, path := range []string{"/", "/debug/pprof/", "/debug/vars", "/config"} {
		require.Equal(t, "404 page not found\n", p.get(t, path), path)
	}
	p.stop(t)
}

// listening are the TCP addresses a process listens on, and UDP ones it is bound
// to, from /proc (proc_net(5)).
func listening(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", pid)
	own := make(map[string]bool) // inodes of its sockets
	fds, err := filepath.Glob(dir + "/fd/*")
	require.NoError(t, err)
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if inode, ok := strings.CutPrefix(target, "socket:["); err == nil && ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	require.NotEmpty(t, own)
	var found []string
	for table, state := range map[string]string{"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"} { // LISTEN, unconnected
		content, err := os.ReadFile(dir + "/net/" + table)
		require.NoError(t, err)
		for line := range strings.Lines(string(content)) {
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == state && own[f[9]] {
				found = append(found, procAddr(t, f[1]))
			}
		}
	}
	return found
}

// procAddr reads an address as the kernel prints it: words of four bytes in the
// machine's order, and the port.
func procAddr(t *testing.T, text string) string {
	t.Helper()
	host, port, ok := strings.Cut(text, ":")
	require.True(t, ok, text)
	raw, err := hex.DecodeString(host)
	require.NoError(t, err)
	for i := 0; i+4 <= len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	require.True(t, ok, text)
	n, err := strconv.ParseUint(port, 16, 16)
	require.NoError(t, err)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)).String()
}
