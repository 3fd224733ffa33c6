package postgres

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestWireFramesAnySplit sends messages of many sizes in arbitrary pieces through a small buffer.
func TestWireFramesAnySplit(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(0, 3000)), 1, 20).Draw(rt, "sizes")
		var sent []byte
		for i, n := range sizes {
			sent = append(sent, 'd')
			sent = binary.BigEndian.AppendUint32(sent, uint32(n+4))
			sent = append(sent, bytes.Repeat([]byte{byte(i)}, n)...)
		}
		ours, theirs := net.Pipe()
		defer func() { _ = ours.Close() }()
		piece := rapid.IntRange(1, 700).Draw(rt, "piece")
		go sendPieces(theirs, sent, piece)
		w := newWire(ours, 64, 0)
		for i, n := range sizes {
			for {
				whole := w.whole()
				typ, body, err := w.next()
				require.NoError(t, err)
				require.Equal(t, whole, typ != 0)
				if typ != 0 {
					require.Equal(t, bytes.Repeat([]byte{byte(i)}, n), append([]byte{}, body...))
					break
				}
				require.NoError(t, w.fill(time.Now().Add(10*time.Second)))
			}
		}
		require.LessOrEqual(t, len(w.buf), 2*(3000+64)*2, "memory follows the largest message")
		w.makeRoom()
		require.Len(t, w.buf, 64, "and comes back")
	})
}

// drawRow makes a row of pgoutput, and what is left of it when values above a size are cut out.
func drawRow(t *rapid.T, letter byte, most int) (row, rest []byte) {
	n := rapid.IntRange(0, 6).Draw(t, "columns")
	row = binary.BigEndian.AppendUint16([]byte{letter}, uint16(n))
	rest = bytes.Clone(row)
	for i := range n {
		kind := rapid.SampledFrom([]byte("nuttt")).Draw(t, "kind")
		if kind != 't' {
			row, rest = append(row, kind), append(rest, kind)
			continue
		}
		v := bytes.Repeat([]byte{byte('a' + i)}, rapid.OneOf(rapid.IntRange(0, 30), rapid.IntRange(0, 3000)).Draw(t, "bytes"))
		value := append(binary.BigEndian.AppendUint32([]byte{'t'}, uint32(len(v))), v...)
		row = append(row, value...)
		if len(v) > most {
			value = []byte{wideKind}
		}
		rest = append(rest, value...)
	}
	return row, rest
}

// Whatever pieces they come in, wide rows lose their wide values and nothing else, and no other message is touched.
func TestWireCutsWideRows(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const most, keep = 500, 20
		chunk := uint32(rapid.IntRange(0, 1).Draw(rt, "chunk"))
		var sent []byte
		var want [][]byte
		for range rapid.IntRange(1, 8).Draw(rt, "messages") {
			head := append([]byte{'w'}, make([]byte, 24)...)
			head = append(head, rapid.SampledFrom([]byte("IUDM")).Draw(rt, "type"))
			head = append(head, make([]byte, 4+4*chunk)...)
			body, left := bytes.Clone(head), bytes.Clone(head)
			for range rapid.IntRange(0, 2).Draw(rt, "rows") {
				row, rest := drawRow(rt, rapid.SampledFrom([]byte("KON")).Draw(rt, "letter"), keep)
				body, left = append(body, row...), append(left, rest...)
			}
			if rapid.IntRange(0, 9).Draw(rt, "garbage") == 0 {
				body = append(body, rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(rt, "bytes")...)
				left = nil
			}
			if left != nil && (len(body)+5 <= most || head[25] == 'M') {
				left = body
			}
			sent = append(binary.BigEndian.AppendUint32(append(sent, 'd'), uint32(4+len(body))), body...)
			want = append(want, left)
		}
		ours, theirs := net.Pipe()
		defer func() { _ = ours.Close() }()
		piece := rapid.IntRange(1, 700).Draw(rt, "piece")
		go sendPieces(theirs, sent, piece)
		w := newWire(ours, 64, 0)
		w.wideRow, w.wideValue, w.chunk = most, keep, &chunk
		for i := range want {
			for {
				whole := w.whole()
				typ, body, err := w.next()
				require.NoError(t, err)
				require.True(t, !whole || typ != 0, "what is promised comes")
				if typ != 0 {
					if want[i] != nil {
						require.Equal(t, want[i], body)
					}
					break
				}
				require.NoError(t, w.fill(time.Now().Add(10*time.Second)))
			}
		}
		require.Zero(t, w.w-w.r)
	})
}

// A value of a gigabyte passes through a buffer that does not grow.
func TestWireDoesNotGrowWithAValue(t *testing.T) {
	const size = 1 << 30
	ours, theirs := net.Pipe()
	defer func() { _ = ours.Close() }()
	head := append(append([]byte{'w'}, make([]byte, 24)...), 'I', 0, 0, 0, 1, 'N', 0, 2, 't')
	head = binary.BigEndian.AppendUint32(head, size)
	tail := []byte{'t', 0, 0, 0, 1, 'z'}
	go func() {
		_, _ = theirs.Write(append(binary.BigEndian.AppendUint32([]byte{'d'}, uint32(4+len(head)+size+len(tail))), head...))
		for range size >> 20 {
			_, _ = theirs.Write(make([]byte, 1<<20))
		}
		_, _ = theirs.Write(tail)
	}()
	w := newWire(ours, 1<<20, 0)
	for {
		typ, body, err := w.next()
		require.NoError(t, err)
		if typ != 0 {
			require.Equal(t, append([]byte{wideKind}, tail...), body[len(head)-5:])
			break
		}
		require.NoError(t, w.fill(time.Now().Add(10*time.Second)))
	}
	require.Len(t, w.buf, 1<<20)
	require.Equal(t, size, w.lost)
}

func TestWireRefusesOtherProtocols(t *testing.T) {
	for _, head := range [][]byte{{'H', 'T', 'T', 'P', '/'}, {'d', 0, 0, 0, 3}, {'d', 0xff, 0xff, 0xff, 0xff}} {
		w := newWire(nil, 64, 0)
		w.w = copy(w.buf, head)
		_, _, err := w.next()
		require.ErrorContains(t, err, "not the protocol of Postgres")
	}
}

func TestWireIsQuietAndGoesOn(t *testing.T) {
	ours, theirs := net.Pipe()
	defer func() { _ = ours.Close() }()
	w := newWire(ours, 64, 0)
	require.ErrorIs(t, w.fill(time.Now().Add(time.Millisecond)), errQuiet)
	go func() { _, _ = theirs.Write([]byte{'d', 0, 0, 0, 5, 7}) }()
	require.NoError(t, w.fill(time.Now().Add(10*time.Second)))
	for !w.whole() {
		require.NoError(t, w.fill(time.Now().Add(10*time.Second)))
	}
	typ, body, err := w.next()
	require.NoError(t, err)
	require.Equal(t, byte('d'), typ)
	require.Equal(t, []byte{7}, body)
}

// sendPieces writes in pieces of this size, and closes.
func sendPieces(conn net.Conn, sent []byte, piece int) {
	defer func() { _ = conn.Close() }()
	for b := sent; len(b) > 0; {
		n := min(piece, len(b))
		if _, err := conn.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
	}
}
