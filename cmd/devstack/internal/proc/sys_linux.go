package proc

import "syscall"

// attributes puts the child into a process group of its own, so that Ctrl-C
// reaches only the parent, which then stops everything in order; and has the
// kernel kill it when the parent dies without having done so.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
