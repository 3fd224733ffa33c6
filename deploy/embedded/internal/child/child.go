// Package child runs a server program as a child that does not outlive this
// process, and that can be stopped in steps or killed.
package child

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// logTail is how much of the end of a log an error or [Process.Log] shows, in bytes.
const logTail = 16 << 10

// Process is a running or ended child.
type Process struct {
	cmd      *exec.Cmd
	logFile  string
	logStart int64 // where this run's part of logFile begins
	done     chan struct{}
	err      error // of Wait; valid once done is closed
}

// Start runs cmd with its output appended to logFile. When this process dies,
// however it dies, the kernel sends onParentDeath to the child (Linux; elsewhere
// a child of a killed parent stays).
//
// The output goes to a file and not through a pipe, because grandchildren keep a
// pipe open, and Wait would then not return until the last of them has gone.
func Start(cmd *exec.Cmd, logFile string, onParentDeath syscall.Signal) (*Process, error) {
	f, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = f, f
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	dieWithParent(cmd.SysProcAttr, onParentDeath)
	p := &Process{cmd: cmd, logFile: logFile, logStart: fi.Size(), done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The death signal is tied to the thread that started the child, so this
		// thread must last as long as the child. It ends with this goroutine.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// PID is the child's process id. It stays known after its end.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended, for whatever reason.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the child ended; nil is exit status 0. Valid once Done is closed.
func (p *Process) Err() error { return p.err }

// Log is the end of what the child has printed since it started.
func (p *Process) Log() string {
	f, err := os.Open(p.logFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(p.logStart, fi.Size()-logTail)
	b, err := io.ReadAll(io.NewSectionReader(f, from, fi.Size()-from))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Kill ends the child with SIGKILL, as a crash would, and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // an error means that it has ended already
	<-p.done
}

// Step is one way to ask for an end, and how long to wait before the next.
type Step struct {
	Ask  func() error // errors are ignored: a child that has ended cannot be asked
	Wait time.Duration
}

// Signal is the step that sends sig.
func (p *Process) Signal(sig syscall.Signal, wait time.Duration) Step {
	return Step{Ask: func() error { return p.cmd.Process.Signal(sig) }, Wait: wait}
}

// Stop takes the steps in order until the child has ended, and kills it after
// the last. An error says how the child ended when that was not of its own will
// with status 0. On a child that has ended before, it returns at once.
func (p *Process) Stop(steps ...Step) error {
	select {
	case <-p.done:
		return nil // its end was seen through Done by whoever cared
	default:
	}
	for i, step := range steps {
		_ = step.Ask()
		timer := time.NewTimer(step.Wait)
		select {
		case <-p.done:
			timer.Stop()
			if i > 0 {
				return fmt.Errorf("%s had to be stopped the hard way: %w", p.cmd.Path, errors.Join(p.err, errors.New(p.Log())))
			}
			return p.err
		case <-timer.C:
		}
	}
	p.Kill()
	return fmt.Errorf("%s had to be killed: %s", p.cmd.Path, p.Log())
}
