package pipeline

import "github.com/shelfwire/shelfwire/schemas/event"

// captureMemory hands out the small pieces that rows consist of from large ones, so that a row costs next to no
// allocation of its own. No piece is used twice: when the last row of a large one has gone, so has its memory.
type captureMemory struct {
	bytes   pieces[byte]
	headers pieces[event.Header]
	rows    pieces[captureRowStep]
	pairs   pieces[routerPair]
}

// pieces hands out slices of a large one. The zero value is ready.
type pieces[T any] struct{ rest []T }

// take returns n zero values.
func (p *pieces[T]) take(n, large int) []T {
	if n > len(p.rest) {
		if n > large/4 {
			return make([]T, n)
		}
		p.rest = make([]T, large)
	}
	out := p.rest[:n:n]
	p.rest = p.rest[n:]
	return out
}

// The large pieces: 64 KiB, 20 KiB, about 20 KiB, about 16 KiB.
const (
	captureBytes   = 64 << 10
	captureHeaders = 512
	captureRows    = 64
	capturePairs   = 128
)

// copy keeps bytes. It keeps the difference between nil and empty, too.
func (m *captureMemory) copy(b []byte) []byte {
	if b == nil {
		return nil
	}
	out := m.bytes.take(len(b), captureBytes)
	copy(out, b)
	return out
}

func (m *captureMemory) text(s string) []byte {
	out := m.bytes.take(len(s), captureBytes)
	copy(out, s)
	return out
}

// copyPairs keeps pairs; the result is nil for none.
func (m *captureMemory) copyPairs(p []routerPair) []routerPair {
	if len(p) == 0 {
		return nil
	}
	out := m.pairs.take(len(p), capturePairs)
	copy(out, p)
	return out
}

// room returns an empty slice for n headers.
func (m *captureMemory) room(n int) []event.Header { return m.headers.take(n, captureHeaders)[:0] }
