package pipeline

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// loadProxy stands between loaders and an engine, and can be slow, lose answers and hold requests back.
type loadProxy struct {
	listener net.Listener
	target   string

	delay   atomic.Int64 // of each piece of an answer, in ns
	mute    atomic.Bool  // answers to inserts are lost
	muted   atomic.Int64 // bytes of them
	mu      sync.Mutex
	holding chan struct{} // nil: requests pass; closed to let those go that are held
	held    atomic.Int64
}

// loadData is more than a question of ours takes, and less than a block of rows.
const loadData = 1500

func newLoadProxy(t *testing.T, target string) *loadProxy {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &loadProxy{listener: l, target: target}
	t.Cleanup(func() {
		_ = l.Close()
		p.release()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

// url is that of the engine, by way of the proxy.
func (p *loadProxy) url(direct string) string {
	return strings.Replace(direct, p.target, p.listener.Addr().String(), 1)
}

// hold keeps blocks of rows on their way from now on, also when their sender has given up, until release.
func (p *loadProxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holding = make(chan struct{})
}

func (p *loadProxy) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holding != nil {
		close(p.holding)
		p.holding = nil
	}
}

func (p *loadProxy) serve(client net.Conn) {
	engine, err := net.Dial("tcp", p.target) //nolint:noctx // ends with its connection
	if err != nil {
		_ = client.Close()
		return
	}
	var deaf atomic.Bool // an answer of this connection was lost
	go func() {
		p.answers(client, engine, &deaf)
		_, _ = client.Close(), engine.Close()
	}()
	p.requests(engine, client, &deaf)
	_ = engine.Close()
}

func (p *loadProxy) requests(to, from net.Conn, deaf *atomic.Bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > loadData {
			if p.mute.Load() {
				deaf.Store(true)
			}
			p.mu.Lock()
			holding := p.holding
			p.mu.Unlock()
			if holding != nil {
				p.held.Add(1)
				<-holding
			}
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *loadProxy) answers(to io.Writer, from net.Conn, deaf *atomic.Bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if deaf.Load() {
			p.muted.Add(int64(n))
			continue
		}
		if d := time.Duration(p.delay.Load()); d > 0 {
			<-time.After(d)
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
