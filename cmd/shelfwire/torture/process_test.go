package torture

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// process is a program of its own whose output is appended to a file.
type process struct {
	cmd  *exec.Cmd
	log  string
	from int64 // where this run's part of the log begins
	done chan struct{}
	err  error // of Wait; valid once done is closed
}

// startProcess starts a program that ends with this one.
func startProcess(log, program string, args ...string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	p := &process{log: log, from: fi.Size(), done: make(chan struct{})}
	p.cmd = exec.Command(program, args...) //nolint:noctx // it outlives the call that starts it; Kill and Stop end it
	p.cmd.Stdout, p.cmd.Stderr = f, f
	dieWithParent(p.cmd)
	started := make(chan error)
	go func() {
		// The death signal comes when the thread that started the child ends, so this one lasts as long as the child.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return p, nil
}

// Done is closed when the process has ended.
func (p *process) Done() <-chan struct{} { return p.done }

// Kill ends the process with SIGKILL and waits for its end.
func (p *process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// freeze stops the process where it stands; thaw lets it go on.
func (p *process) freeze() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *process) thaw()   { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// stopLimit is how long a process may take for a clean stop: a push worker drains for up to 20 s.
const stopLimit = 25 * time.Second

// Stop asks for a clean end. An error says how it was not one.
func (p *process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-p.done:
	case <-time.After(stopLimit):
		p.Kill()
		return fmt.Errorf("no end %s after SIGTERM: %s", stopLimit, p.Log())
	}
	if p.err != nil {
		return fmt.Errorf("%w after SIGTERM: %s", p.err, p.Log())
	}
	return nil
}

// Log is the end of what the process has printed since it was started.
func (p *process) Log() string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	from := max(p.from, fi.Size()-4<<10)
	b, err := io.ReadAll(io.NewSectionReader(f, from, fi.Size()-from))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

// Ports for servers that are killed and come back. They lie below those that the kernel gives to outgoing connections (a
// client that dials the port of a killed server over and over could otherwise be given that very port, and meet itself),
// and below those that the embedded services choose for themselves, from 20000 on: another one could otherwise take the
// port of a server that is just away, and keep it.
const (
	lowestPort  = 10000
	highestPort = 15999
)

// givenPorts are those that freePort has given away in this process. A server may not listen on its own yet, or just now.
var givenPorts sync.Map

// freePort finds a port that nothing listens on, and never gives the same one twice.
func freePort(ctx context.Context) (int, error) {
	for range 200 {
		port := lowestPort + rand.IntN(highestPort-lowestPort+1)
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return 0, err
		}
		if _, given := givenPorts.LoadOrStore(port, true); !given {
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port between %d and %d", lowestPort, highestPort)
}

// Another server may look for a port while one with a port of its own is away.
func TestFreePortsAreNobodyElses(t *testing.T) {
	given := map[int]bool{}
	for range 500 {
		port, err := freePort(t.Context())
		require.NoError(t, err)
		require.False(t, given[port], "twice: %d", port)
		require.Less(t, port, 20000, "the embedded services choose from 20000 on")
		given[port] = true
	}
}
