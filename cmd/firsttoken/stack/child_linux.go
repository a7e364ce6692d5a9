package stack

import "syscall"

// childAttr puts a child into its own process group and has the kernel end it
// when this process dies, even by SIGKILL.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
