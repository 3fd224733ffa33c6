package postgres

import "encoding/binary"

// A row may be a gigabyte wide, and Kafka takes a hundredth of that. So the values of a row that will not fit anyway are
// cut out of the stream as they come, and memory does not follow them.
const (
	// wideRow is the size of a message from which on its wide values are cut out. It is more than twice what a record
	// takes, so that the JSON of a row that is cut would not have fitted whole (bytea shrinks by a third).
	wideRow = 16 << 20
	// wideValue is the size up to which values are kept.
	wideValue = 64 << 10
	// wideKind stands in the place of a value that was cut out. Postgres has no such kind.
	wideKind = 'w'
)

// cut is how far the first message of the buffer has been looked through for wide values. The zero cut has not begun.
type cut struct {
	on bool
	// at is how much of the message is kept and looked through, columns how many values of the row are still to come,
	// drop how many bytes of the value that is cut out.
	at, columns, drop int
	// done: the rest is taken as it is, because it holds no row, or is no message of pgoutput, which the decoder will say.
	done bool
}

// wide says whether the first message is to be looked through.
func (w *wire) wide() bool {
	return w.cut.on || w.w-w.r >= 5 && w.buf[w.r] == 'd' && w.announced() > w.wideRow
}

// cutWide takes the wide values out of the part of the first message that has come, and makes its length that of what
// stays. It is called again when more has come, until the message is whole.
func (w *wire) cutWide() {
	c := &w.cut
	if !c.on {
		*c = cut{on: true}
	}
	for !c.done {
		b := w.buf[w.r:w.w]
		rest := b[c.at:]
		switch {
		case c.drop > 0:
			n := min(c.drop, len(rest))
			if n == 0 {
				return
			}
			copy(rest, rest[n:])
			w.w -= n
			c.drop -= n
		case c.at == 0:
			if !w.cutHead(b) {
				return
			}
		case c.columns == 0:
			if !w.cutRow(rest) {
				return
			}
		case !w.cutValue(rest):
			return
		}
	}
}

// cutHead passes over what stands before the first row; false when more must come.
func (w *wire) cutHead(b []byte) bool {
	const kind = 5 + 1 + 8 + 8 + 8 // of the message of pgoutput: after the frame, 'w', two positions and a time
	at := kind + 1 + 4             // the table's OID
	if w.chunk != nil && *w.chunk != 0 {
		at += 4 // the subtransaction
	}
	if len(b) < at+1 {
		return false
	}
	c := &w.cut
	c.at = at
	switch b[kind] {
	case msgInsert, msgUpdate, msgDelete:
		c.done = b[5] != 'w'
	default:
		c.done = true
	}
	return true
}

// cutRow passes over the beginning of a row; false when more must come.
func (w *wire) cutRow(rest []byte) bool {
	c := &w.cut
	if c.at >= w.announced() {
		c.done = true
		return true
	}
	if len(rest) < 3 {
		return false
	}
	switch rest[0] {
	case 'N', 'O', 'K':
		c.columns = int(binary.BigEndian.Uint16(rest[1:]))
		c.at += 3
	default:
		c.done = true
	}
	return true
}

// cutValue passes over a value, or marks one that is to be cut out; false when more must come.
func (w *wire) cutValue(rest []byte) bool {
	c := &w.cut
	if len(rest) == 0 {
		return false
	}
	switch rest[0] {
	case 'n', 'u':
		c.at++
	case 't':
		if len(rest) < 5 {
			return false
		}
		n := int(binary.BigEndian.Uint32(rest[1:]))
		left := w.announced() - c.at - 5
		switch {
		case n > left:
			c.done = true
			return true
		case n > w.wideValue:
			rest[0] = wideKind
			w.w -= 4
			copy(rest[1:], rest[5:])
			c.at++
			c.drop = n
			w.lost += n
			binary.BigEndian.PutUint32(w.buf[w.r+1:], uint32(w.announced()-1-4-n))
		case len(rest) < 5+n:
			return false
		default:
			c.at += 5 + n
		}
	default:
		c.done = true
		return true
	}
	c.columns--
	return true
}
