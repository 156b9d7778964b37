package proc

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Holder names the process that listens on a port, for example "redis-server,
// pid 4711", or returns "" where that cannot be found out: the process may
// belong to another user.
func Holder(port int) string {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		for inode := range listeners(table, port) {
			if name := socketOwner(inode); name != "" {
				return name
			}
		}
	}
	return ""
}

// listeners returns the socket inodes that a kernel table lists as listening
// on the port. Columns: slot, local address, remote address, state (0A is
// listening), queues, timer, retransmits, uid, timeout, inode.
func listeners(table string, port int) map[string]bool {
	f, err := os.Open(table) //nolint:gosec // G304: a constant path of the kernel
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	suffix := fmt.Sprintf(":%04X", port)
	inodes := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		columns := strings.Fields(lines.Text())
		if len(columns) > 9 && columns[3] == "0A" && strings.HasSuffix(columns[1], suffix) {
			inodes[columns[9]] = true
		}
	}
	return inodes
}

func socketOwner(inode string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != "socket:["+inode+"]" {
			continue
		}
		pid := strings.Split(link, "/")[2]
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm")) //nolint:gosec // G304: below /proc
		if err != nil {
			return "pid " + pid
		}
		return strings.TrimSpace(string(name)) + ", pid " + pid
	}
	return ""
}
