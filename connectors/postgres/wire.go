package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// maxMessage bounds a message of the server. Postgres itself cannot make one larger than 1 GiB.
const maxMessage = 1<<30 + 1<<20

// errQuiet says that a wait ended without a byte from the server.
var errQuiet = errors.New("nothing received in time")

// wire frames the server's messages in place in one buffer. It is the only part that knows how bytes are fetched
// from the socket: when and in what portions that is done decides the speed of the walsender, so it is kept apart.
type wire struct {
	conn net.Conn
	size int // of the buffer at rest
	buf  []byte
	r, w int // unread bytes are buf[r:w]
	gulp *gulp

	// watched is the end that a read is given up at, stopWatch forgets it, and ended is set when it has come, before the
	// deadline of reads is set into the past.
	watched   <-chan struct{}
	stopWatch func() bool
	ended     *atomic.Bool
	// cut looks through a wide row; chunk is the transaction whose chunk is open, as rows within have one field more.
	cut   cut
	chunk *uint32
	// lost counts bytes that were cut out, until somebody sets it back.
	lost               int
	wideRow, wideValue int
}

func newWire(conn net.Conn, size int, pause time.Duration) *wire {
	return &wire{
		conn: conn, size: size, buf: make([]byte, size), gulp: newGulp(conn, pause), wideRow: wideRow, wideValue: wideValue,
	}
}

// next returns the next whole message in the buffer, or type 0 when fill is needed. The body is valid until fill.
func (w *wire) next() (typ byte, body []byte, err error) {
	b := w.buf[w.r:w.w]
	if len(b) < 5 {
		return 0, nil, nil
	}
	n := int64(binary.BigEndian.Uint32(b[1:])) + 1
	if n < 5 || n > maxMessage {
		return 0, nil, fmt.Errorf("message %q of %d bytes: not the protocol of Postgres", b[0], n)
	}
	if w.wide() {
		w.cutWide()
		b, n = w.buf[w.r:w.w], int64(w.announced())
	}
	if int64(len(b)) < n || w.cut.drop > 0 {
		return 0, nil, nil
	}
	w.cut = cut{}
	w.r += int(n)
	return b[0], b[5:n:n], nil
}

// whole reports whether next would return a message.
func (w *wire) whole() bool {
	n := w.announced()
	return n > 0 && w.w-w.r >= n && w.cut.drop == 0
}

// fill reads once, waiting until the deadline. It returns errQuiet when nothing came; the buffer is intact then and
// fill can be called again.
func (w *wire) fill(deadline time.Time) error {
	w.makeRoom()
	if !w.cut.on { // of a row that is wide, the server sends no small packets
		if n, err := w.gulp.read(w.buf[w.w:]); n > 0 || err != nil {
			w.w += n
			return err
		}
	}
	if err := w.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	if w.ended != nil && w.ended.Load() { // the deadline that it has set may have been the one before this
		return errQuiet
	}
	n, err := w.conn.Read(w.buf[w.w:])
	w.w += n
	w.gulp.pace.took(n)
	if n > 0 {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errQuiet
	}
	return err
}

// watch has the end of ctx end a read. A caller passes the same ctx again and again, so it is watched until another one
// comes.
func (w *wire) watch(ctx context.Context) {
	if w.watched == ctx.Done() {
		return
	}
	w.unwatch()
	ended := &atomic.Bool{}
	w.ended, w.watched = ended, ctx.Done()
	// Should the deadline fall into a read for another ctx, that one ends early with errQuiet, and its caller looks at
	// the clock anyway.
	w.stopWatch = context.AfterFunc(ctx, func() {
		ended.Store(true)
		_ = w.conn.SetReadDeadline(time.Unix(1, 0))
	})
}

func (w *wire) unwatch() {
	if w.stopWatch != nil {
		w.stopWatch()
	}
	w.watched, w.stopWatch, w.ended = nil, nil, nil
}

// close closes the connection. After an orderly end it has nothing left to say.
func (w *wire) close() {
	w.unwatch()
	_ = w.conn.Close()
}

// makeRoom moves the unread bytes to the front, doubles a buffer that is full of one message, and gives a grown one
// back as soon as that message has been read. It doubles, rather than trusting the announced length at once: the length
// is the server's word, the bytes are what has really come.
func (w *wire) makeRoom() {
	unread := w.w - w.r
	switch {
	case w.r == 0 && w.w == len(w.buf):
		w.replace(2 * len(w.buf))
	case len(w.buf) > w.size && unread <= w.size/2 && w.announced() <= w.size:
		w.replace(w.size)
	case w.r > 0:
		w.w = copy(w.buf, w.buf[w.r:w.w])
		w.r = 0
	}
}

// announced is the length of the first unread message; 0 when not even that is there.
func (w *wire) announced() int {
	if w.w-w.r < 5 {
		return 0
	}
	return int(binary.BigEndian.Uint32(w.buf[w.r+1:])) + 1
}

func (w *wire) replace(size int) {
	b := make([]byte, size)
	w.w = copy(b, w.buf[w.r:w.w])
	w.r, w.buf = 0, b
}

// send writes one message. A peer that takes no byte for 30 s is as good as gone.
func (w *wire) send(typ byte, body []byte) error {
	m := make([]byte, 0, 5+len(body))
	m = append(m, typ)
	m = binary.BigEndian.AppendUint32(m, uint32(4+len(body)))
	m = append(m, body...)
	if err := w.conn.SetWriteDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	_, err := w.conn.Write(m)
	return err
}
