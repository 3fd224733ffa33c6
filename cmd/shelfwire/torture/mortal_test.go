package torture

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// mortal is a part in this process that could as well be a process: it reaches its databases through a proxy of its own,
// and can be killed without a goodbye, or frozen and woken up. What it runs passes step wherever it may meet its fate.
type mortal struct {
	name   string
	proxy  *proxy
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of its run; valid once done is closed
	dead   atomic.Bool
	// fate says what goes wrong at a step; nil errors for nothing.
	fate func(step string) error

	mu     sync.Mutex
	awake  chan struct{} // closed while it runs
	frozen bool
}

var errKilled = errors.New("killed")

// start runs it until it is ended. clear is what the end of a process would do by itself.
func (m *mortal) start(run func(context.Context) error, clear func()) {
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel, m.done, m.awake = cancel, make(chan struct{}), make(chan struct{})
	close(m.awake)
	go func() {
		m.err = run(ctx)
		clear()
		close(m.done)
	}()
}

// step is a point at which it can be dead, asleep or unlucky.
func (m *mortal) step(call string) error {
	if err := m.sleep(); err != nil {
		return err
	}
	if err := m.fate(call); err != nil {
		return err
	}
	return m.sleep() // its fate may have been to fall asleep
}

// sleep lasts as long as it is frozen.
func (m *mortal) sleep() error {
	m.mu.Lock()
	awake := m.awake
	m.mu.Unlock()
	<-awake
	if m.dead.Load() {
		return errKilled
	}
	return nil
}

// strike ends it as SIGKILL does: its connections break, and what it has not sent is never sent.
func (m *mortal) strike() {
	m.dead.Store(true)
	m.proxy.sever()
	m.thaw()
	m.cancel()
}

// kill strikes, and waits until nothing of it is left.
func (m *mortal) kill() {
	m.strike()
	<-m.done
}

// stop ends it as SIGTERM does.
func (m *mortal) stop() {
	m.thaw()
	m.cancel()
	<-m.done
	m.proxy.sever()
}

func (m *mortal) freeze() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.frozen {
		m.frozen, m.awake = true, make(chan struct{})
		m.proxy.cut()
	}
}

func (m *mortal) thaw() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen {
		m.frozen = false
		close(m.awake)
		m.proxy.mend()
	}
}

// safeLog is written by many.
type safeLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
