//go:build unix && !linux

package proc

import "syscall"

// attributes puts the child into a process group of its own, so that Ctrl-C
// reaches only the parent, which then stops everything in order. Here the
// kernel offers no way to end children with a parent that was killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
