package pipeline

import (
	"strings"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// captureMemory hands out the small pieces that rows consist of from large ones, so that a row costs next to no
// allocation of its own.
//
// It belongs to a unit, and is used again once that unit is in Kafka. What is held of an open transaction, or waits for
// the product of a parent row, when a unit leaves will be in a later unit: then that one takes the memory with it.
// Units are written in order, so all that lies in it has been written by then.
type captureMemory struct {
	bytes   pieces[byte]
	headers pieces[event.Header]
	rows    pieces[captureRowStep]
	pairs   pieces[routerPair]
}

func newCaptureMemory() *captureMemory {
	return &captureMemory{
		bytes: pieces[byte]{large: 64 << 10}, headers: pieces[event.Header]{large: 512},
		rows: pieces[captureRowStep]{large: 64}, pairs: pieces[routerPair]{large: 128},
	}
}

// reset makes all of it free again.
func (m *captureMemory) reset() {
	m.bytes.reset()
	m.headers.reset()
	m.rows.reset()
	m.pairs.reset()
}

// pieces hands out slices of large ones.
type pieces[T any] struct {
	large    int // their length
	chunks   [][]T
	at, used int // chunks[:at] are full, used of chunks[at] is
}

// piecesKept is how many large ones are kept for the next unit, which is what a busy stream needs. Those of bytes have
// 64 KiB, of headers 20 KiB.
const piecesKept = 96

func (p *pieces[T]) reset() {
	if len(p.chunks) > piecesKept {
		clear(p.chunks[piecesKept:])
		p.chunks = p.chunks[:piecesKept]
	}
	p.at, p.used = 0, 0
}

// take returns n values that may hold anything.
func (p *pieces[T]) take(n int) []T {
	if n > p.large/4 {
		return make([]T, n)
	}
	if p.used+n > p.large {
		p.at, p.used = p.at+1, 0
	}
	if p.at == len(p.chunks) {
		p.chunks = append(p.chunks, make([]T, p.large))
	}
	out := p.chunks[p.at][p.used : p.used+n : p.used+n]
	p.used += n
	return out
}

// copy keeps bytes. It keeps the difference between nil and empty, too.
func (m *captureMemory) copy(b []byte) []byte {
	if b == nil {
		return nil
	}
	out := m.bytes.take(len(b))
	copy(out, b)
	return out
}

func (m *captureMemory) text(s string) []byte {
	out := m.bytes.take(len(s))
	copy(out, s)
	return out
}

// copyPairs keeps pairs; the result is nil for none.
func (m *captureMemory) copyPairs(p []routerPair) []routerPair {
	if len(p) == 0 {
		return nil
	}
	out := m.pairs.take(len(p))
	copy(out, p)
	return out
}

// room returns an empty slice for n headers.
func (m *captureMemory) room(n int) []event.Header { return m.headers.take(n)[:0] }

// captureIDs makes strings of product ids, many of them in one allocation.
type captureIDs struct{ text strings.Builder }

// captureIDBytes is how much is allocated at once.
const captureIDBytes = 4 << 10

func (i *captureIDs) id(b []byte) change.ProductID {
	at := i.text.Len()
	if at+len(b) > i.text.Cap() {
		i.text = strings.Builder{} // strings made of the old one live on
		i.text.Grow(max(captureIDBytes, len(b)))
		at = 0
	}
	i.text.Write(b)
	return change.ProductID(i.text.String()[at:])
}
