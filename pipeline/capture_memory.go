package pipeline

import (
	"strings"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// captureMemory hands out the small pieces that rows consist of from large ones, so that a row costs next to no
// allocation of its own.
type captureMemory struct {
	number  uint64 // of those of its session
	bytes   pieces[byte]
	headers pieces[event.Header]
	rows    pieces[captureRowStep]
	pairs   pieces[routerPair]
}

// captureMemories are the memories of a session: the one in use, which each unit begins anew, and earlier ones. Each is
// used again once all that lies in it is in Kafka.
//
// Invariant: what lies in a memory is in a unit that has left, or is held of the open transaction, or waits for the
// product of a parent row. A unit that leaves takes with it the memories that are older than the first record held and
// the first step that waits, by their numbers. Units are written in order, so when it is in Kafka, so is all of them.
type captureMemories struct {
	*captureMemory // in use
	full           []*captureMemory
	free           []*captureMemory
	count          uint64
}

// captureMemoriesFree is how many are kept for use: one is filled while another is written.
const captureMemoriesFree = 2

func newCaptureMemories() *captureMemories {
	m := &captureMemories{}
	m.begin()
	return m
}

func (m *captureMemories) begin() {
	if n := len(m.free); n > 0 {
		m.captureMemory, m.free = m.free[n-1], m.free[:n-1]
	} else {
		m.captureMemory = newCaptureMemory()
	}
	m.count++
	m.number = m.count
}

// before lists those with lower numbers.
func (m *captureMemories) before(number uint64) []*captureMemory {
	n := 0
	for n < len(m.full) && m.full[n].number < number {
		n++
	}
	list := m.full[:n:n]
	if m.number < number {
		list = append(list, m.captureMemory)
	}
	return list
}

// turn begins another memory, after those in gone, which came from before, have left with a unit. Those in back, which
// left earlier, are in Kafka.
func (m *captureMemories) turn(gone, back []*captureMemory) {
	if n := len(gone); n > 0 && gone[n-1] == m.captureMemory {
		m.full = m.full[n-1:]
	} else {
		m.full = append(m.full[n:], m.captureMemory)
	}
	for _, b := range back {
		if len(m.free) < captureMemoriesFree {
			b.reset()
			m.free = append(m.free, b)
		}
	}
	m.begin()
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
