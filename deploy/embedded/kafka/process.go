package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
)

// role of a process that is a broker.
const role = "kafka"

// Run is a broker until ctx ends. ready is called once, with its host:port.
func Run(ctx context.Context, c Config, ready func(addr string) error) error {
	b, err := Start(ctx, c)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := ready(b.Addr()); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// ChildHook must be the first statement of main and of TestMain where
// [StartProcess] is used. In a process that it made to be a broker it runs it
// and never returns; in any other it does nothing.
func ChildHook() {
	var c Config
	child.Hook(role, &c, func() error {
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin) // the parent never writes: the end is its wish to stop
			cancel()
		}()
		return Run(ctx, c, func(addr string) error {
			readyPipe := os.NewFile(3, "ready")
			_, err := io.WriteString(readyPipe, addr)
			return errors.Join(err, readyPipe.Close())
		})
	})
}

// Process is a broker in a process of its own, which can be killed alone.
type Process struct {
	addr  string
	proc  *child.Process
	stdin io.Closer
}

// StartProcess runs this executable again as a broker and returns when it
// listens. It ends when this process ends, however that ends. c.Dir is required.
func StartProcess(ctx context.Context, c Config) (*Process, error) {
	if c.Dir == "" {
		return nil, errors.New("start kafka: no directory")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("start kafka: %w", err)
	}
	c.Dir = dir
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start kafka: %w", err)
	}
	cmd, err := child.Reexec(role, c)
	if err != nil {
		return nil, err
	}
	ready, childReady, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	cmd.ExtraFiles = []*os.File{childReady}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must not reach it before its clients are closed
	p := &Process{}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, errors.Join(err, childReady.Close())
	}
	p.proc, err = child.Start(cmd, filepath.Join(c.Dir, "kafka.log"), syscall.SIGKILL)
	if err := errors.Join(err, childReady.Close()); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	addr, err := io.ReadAll(ready)
	if err == nil && len(addr) > 0 {
		p.addr = string(addr)
		return p, nil
	}
	p.Kill()
	return nil, errors.Join(fmt.Errorf("start kafka in %s: %s", c.Dir, strings.TrimSpace(p.Log())), ctx.Err())
}

// Addr is the broker's host:port.
func (p *Process) Addr() string { return p.addr }

// PID of the broker's process: kill it with SIGKILL for a crash.
func (p *Process) PID() int { return p.proc.PID() }

// Done is closed when the broker has ended, for whatever reason, and its
// directory is free for another start.
func (p *Process) Done() <-chan struct{} { return p.proc.Done() }

// Log is the end of what the broker has printed since it started.
func (p *Process) Log() string { return p.proc.Log() }

// Stop ends the broker after syncing its files.
func (p *Process) Stop() error {
	return p.proc.Stop(child.Step{Ask: p.stdin.Close, Wait: 10 * time.Second})
}

// Kill ends the broker with SIGKILL, as a crash would.
func (p *Process) Kill() { p.proc.Kill() }
