package torture

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// proxy passes TCP on, and can be cut: then nothing goes through any more and nobody is told, as when a cable is pulled.
type proxy struct {
	listener net.Listener

	mu     sync.Mutex
	target string
	open   chan struct{} // closed while bytes may pass
	cutOff bool
	delay  time.Duration // of each piece of data
	links  map[net.Conn]struct{}
	closed bool
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{listener: l, target: target, open: make(chan struct{}), links: map[net.Conn]struct{}{}}
	close(p.open)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(ctx, c)
		}
	}()
	return p
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cutOff {
		p.open, p.cutOff = make(chan struct{}), true
	}
}

func (p *proxy) mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = 0
	if p.cutOff {
		close(p.open)
		p.cutOff = false
	}
}

// slow holds each piece of data back for so long.
func (p *proxy) slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// aim has connections that are made from now on lead elsewhere.
func (p *proxy) aim(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// drop ends all connections. Both ends are told.
func (p *proxy) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.links {
		_ = c.Close()
	}
}

// sever ends all connections and takes no more, as the kernel does for a process that was killed.
func (p *proxy) sever() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.listener.Close()
	p.drop()
}

// link books connections for drop and sever, unless it is too late.
func (p *proxy) link(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if p.closed {
			_ = c.Close()
		} else {
			p.links[c] = struct{}{}
		}
	}
	return !p.closed
}

func (p *proxy) unlink(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.links, c)
	}
}

// pass waits until bytes may pass.
func (p *proxy) pass(ctx context.Context) bool {
	p.mu.Lock()
	open, delay := p.open, p.delay
	p.mu.Unlock()
	select {
	case <-open:
		return delay == 0 || rest(ctx, delay)
	case <-ctx.Done():
		return false
	}
}

func (p *proxy) serve(ctx context.Context, near net.Conn) {
	defer near.Close()
	stop := context.AfterFunc(ctx, func() { _ = near.Close() })
	defer stop()
	if !p.pass(ctx) {
		return
	}
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	far, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer far.Close()
	stopFar := context.AfterFunc(ctx, func() { _ = far.Close() })
	defer stopFar()
	if !p.link(near, far) {
		return
	}
	defer p.unlink(near, far)
	var g sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		g.Go(func() {
			p.copy(ctx, way[1], way[0])
			_ = way[1].Close() // the end is news like any other: it came after pass
		})
	}
	g.Wait()
}

func (p *proxy) copy(ctx context.Context, to io.Writer, from io.Reader) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if !p.pass(ctx) {
			return
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
