package child

import "syscall"

// dieWithParent asks the kernel for sig at the parent's death. The runtime sets
// it after the change of user, which would clear it.
func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }
