package torture

import (
	"os/exec"
	"syscall"
)

// dieWithParent lets the kernel end the child when this process is gone, however that ended.
func dieWithParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
