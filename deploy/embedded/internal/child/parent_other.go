//go:build !linux

package child

import "syscall"

// DieWithParent has no counterpart here: a child of a killed parent stays.
func DieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
