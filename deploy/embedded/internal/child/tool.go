package child

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Output runs a tool to its end and returns what it printed on both streams.
// Like a server, it does not outlive this process (Linux).
func Output(cmd *exec.Cmd) ([]byte, error) {
	runtime.LockOSThread() // the death signal is tied to the thread that starts the child
	defer runtime.UnlockOSThread()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	dieWithParent(cmd.SysProcAttr, syscall.SIGKILL)
	return cmd.CombinedOutput()
}
