package postgres

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// killBackends stops the postmaster and kills its children, which leaves it to
// be killed itself. Stopped, it neither starts new ones nor reaps the dead, so
// that their process ids cannot belong to anyone else meanwhile.
func killBackends(postmaster int) {
	if syscall.Kill(postmaster, syscall.SIGSTOP) != nil {
		return // it has ended already
	}
	// The signal takes effect a moment later, in which one more may be started.
	for range 10 {
		children := childrenOf(postmaster)
		if len(children) == 0 {
			return
		}
		for _, pid := range children {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// childrenOf are the children of a process that are still running.
func childrenOf(parent int) []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	var found []int
	for _, stat := range stats {
		b, err := os.ReadFile(stat) // pid (name) state ppid ...; the name may hold anything
		if err != nil {
			continue // it has just ended
		}
		fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(fields) < 2 || fields[0][0] == 'Z' || string(fields[1]) != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(stat))); err == nil {
			found = append(found, pid)
		}
	}
	return found
}
