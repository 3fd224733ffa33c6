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
		go func() {
			defer func() { _ = theirs.Close() }()
			for b := sent; len(b) > 0; {
				n := min(piece, len(b))
				if _, err := theirs.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
		}()
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
