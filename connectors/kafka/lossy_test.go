package kafka_test

import (
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
)

// lossy is a listener whose connections lose chosen answers: the broker acts on the request, and the connection breaks
// in place of the answer. That is what a client sees of a cable that is pulled at the wrong moment.
type lossy struct {
	net.Listener
	// key is the API key whose answers are lost, as long as left is positive.
	key  int16
	left *atomic.Int32
}

func (l lossy) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lossyConn{Conn: c, l: l, doomed: make(map[uint32]bool)}, nil
}

type lossyConn struct {
	net.Conn
	l lossy

	mu     sync.Mutex
	in     []byte // of the request being received
	doomed map[uint32]bool
}

// Read watches the requests go by: size, API key, version, correlation id.
func (c *lossyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in = append(c.in, b[:n]...)
	for len(c.in) >= 12 {
		size := 4 + int(binary.BigEndian.Uint32(c.in))
		if len(c.in) < size {
			break
		}
		if int16(binary.BigEndian.Uint16(c.in[4:])) == c.l.key && c.l.left.Add(-1) >= 0 {
			c.doomed[binary.BigEndian.Uint32(c.in[8:])] = true
		}
		c.in = c.in[size:]
	}
	return n, err
}

func (c *lossyConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	lose := len(b) >= 8 && c.doomed[binary.BigEndian.Uint32(b[4:])]
	c.mu.Unlock()
	if lose {
		_ = c.Close()
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}
