//go:build !linux

package child

import "syscall"

// dieWithParent has no counterpart here: a child of a killed parent stays.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
