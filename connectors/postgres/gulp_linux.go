package postgres

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gulp reads what a socket holds, and pauses as its pace says. Of a connection that is no plain socket on this machine
// it reads nothing, and leaves it all to the connection's own Read.
type gulp struct {
	pace pace
	raw  syscall.RawConn // nil: never read here

	// recv reads into p; it is made once, as a closure for each read would be garbage.
	recv func(fd uintptr)
	p    []byte
	n    int
	err  error
}

func newGulp(conn net.Conn, pause time.Duration) *gulp {
	g := &gulp{}
	sc, ok := conn.(syscall.Conn)
	if !ok || pause <= 0 || !gulps(conn) {
		return g
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return g
	}
	g.raw, g.pace.least = raw, pause
	g.recv = func(fd uintptr) { g.n, g.err = unix.Read(int(fd), g.p) }
	return g
}

// gulps reports whether the window of a connection is small, or needs not be.
func gulps(conn net.Conn) bool {
	switch c := conn.(type) {
	case *net.UnixConn:
		return true
	case *net.TCPConn:
		return local(c.RemoteAddr().String())
	}
	return false
}

// read returns what is there, after a pause where that pays. Nothing and no error say: wait as usual.
func (g *gulp) read(p []byte) (int, error) {
	if g.raw == nil {
		return 0, nil
	}
	if n, err := g.now(p); n > 0 || err != nil {
		g.pace.took(n)
		return n, err
	}
	pause := g.pace.next(time.Now())
	if pause == 0 {
		return 0, nil
	}
	ts := unix.NsecToTimespec(int64(pause)) // a timer of the runtime would be late by up to a millisecond
	_ = unix.Nanosleep(&ts, nil)            // a signal may end it early, which does no harm
	n, err := g.now(p)
	g.pace.woke(n)
	return n, err
}

// now reads without waiting. It does not look at the connection's deadline.
func (g *gulp) now(p []byte) (int, error) {
	g.p = p
	err := g.raw.Control(g.recv)
	g.p = nil
	switch {
	case err != nil:
		return 0, err
	case errors.Is(g.err, unix.EAGAIN), errors.Is(g.err, unix.EINTR):
		return 0, nil
	case g.err != nil:
		return 0, g.err
	case g.n == 0:
		return 0, io.EOF
	}
	return g.n, nil
}

// setReceiveBuffer also bounds the segments that the other side sends. Those of loopback have up to 64 KiB, and a sender
// makes them as large as half the largest window that it has ever seen. Where the window is smaller than that later, as
// the kernel reckons it by how well segments fill their buffers, none fits into it: then a window is sent each time the
// sender's timer runs out, 0.2 s to minutes apart, and the stream stands still.
func setReceiveBuffer(c syscall.RawConn, bytes int) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, bytes),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, bytes/gulpSegments),
		)
	}); cerr != nil {
		return cerr
	}
	return err
}
