package torture

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy passes TCP on, and can be cut: then nothing goes through any more and nobody is told, as when a cable is pulled.
type proxy struct {
	listener net.Listener
	target   string

	mu   sync.Mutex
	open chan struct{} // closed while bytes may pass
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{listener: l, target: target, open: make(chan struct{})}
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
	p.open = make(chan struct{})
}

func (p *proxy) mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.open)
}

// pass waits until bytes may pass.
func (p *proxy) pass(ctx context.Context) bool {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	select {
	case <-open:
		return true
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
	far, err := new(net.Dialer).DialContext(ctx, "tcp", p.target)
	if err != nil {
		return
	}
	defer far.Close()
	stopFar := context.AfterFunc(ctx, func() { _ = far.Close() })
	defer stopFar()
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
