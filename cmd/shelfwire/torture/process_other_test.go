//go:build !linux

package torture

import "os/exec"

// dieWithParent can do nothing here: children of a killed test stay.
func dieWithParent(*exec.Cmd) {}
