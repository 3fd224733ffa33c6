package pipeline

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// captureEncoder turns a routed change into the bytes of the records that it may become, while the memory of the
// stream that it lies in is still valid.
type captureEncoder struct {
	cfg      CaptureConfig
	envelope change.Envelope
	// history names the batches.
	history change.History
	// tables counts the changes of each table, by OID, within the open transaction; names are the tables as headers say
	// them.
	tables map[uint32]uint64
	names  map[*change.Relation][]byte
	memory *captureMemories
	row1   captureRowStep // the step of a row that nothing waits for
	buf    []byte
	// tx is the open transaction, xid and committed are its headers.
	tx             change.Transaction
	xid, committed []byte
	// room is what the envelope of the row in work may take.
	room int
	log  *slog.Logger
}

func (e *captureEncoder) begin(tx *change.Transaction) {
	clear(e.tables)
	e.tx = *tx
	e.turned()
}

// turned puts what the rows of the open transaction share into the memory in use.
func (e *captureEncoder) turned() {
	e.buf = strconv.AppendUint(e.buf[:0], uint64(e.tx.XID), 10)
	e.xid = e.memory.copy(e.buf)
	e.buf = strconv.AppendInt(e.buf[:0], e.tx.CommitTime.UnixMicro(), 10)
	e.committed = e.memory.copy(e.buf)
}

// count must see every change of a table whose changes are encoded, also those that are captured already.
func (e *captureEncoder) count(c *change.Change) { e.tables[c.Relation.OID]++ }

// prepare says what the envelopes of a row have in common, and gives the headers to the step of the row.
func (e *captureEncoder) prepare(c *change.Change, tx *change.Transaction, row *captureRowStep) (pk []byte) {
	e.envelope.Transaction, e.envelope.TableOrdinal = tx, 0
	if tx != nil {
		e.envelope.TableOrdinal = e.tables[c.Relation.OID]
	}
	image := c.After
	if image == nil {
		image = c.Before
	}
	var ok bool
	if e.buf, ok = change.AppendKey(e.buf[:0], c.Relation, image); ok {
		pk = e.memory.copy(e.buf)
	}
	row.headers = e.headers(c, tx, pk)
	e.room = e.cfg.MaxRecordBytes - captureSize(&event.Record{Headers: row.headers}) - routerIDBytes - captureBatchHeaders
	return pk
}

// row encodes a change of a transaction, or, with tx nil, a row of a snapshot. Unless it is for later, the step and the
// pairs of r in it are valid until the next row.
func (e *captureEncoder) row(c *change.Change, tx *change.Transaction, r routed, later bool) *captureRowStep {
	row := &e.row1
	if later {
		row = &e.memory.rows.take(1)[0]
		r.pairs = e.memory.copyPairs(r.pairs)
	}
	*row = captureRowStep{position: c.Position, pairs: r.pairs, batch: r.batch, admin: r.admin, op: c.Op}
	pk := e.prepare(c, tx, row)
	e.forms(c, row)
	if r.fanout {
		row.fanout = e.fanout(c, tx, pk)
	}
	return row
}

// forms encodes the change as a whole, and, where the two images may belong to different products, also as the delete
// for the one and the create for the other.
func (e *captureEncoder) forms(c *change.Change, row *captureRowStep) {
	whole, leave, arrive := len(row.pairs) == 0, false, false
	for i := range row.pairs {
		p := &row.pairs[i]
		switch {
		case c.Op != change.Update || p.old == p.new:
			whole = true
		default:
			leave = leave || p.old.kind != routerNone
			arrive = arrive || p.new.kind != routerNone
			// Two rows of the parent may lead to one product, and dead letters carry the row as it came.
			whole = whole || p.old.kind >= routerPending || p.new.kind >= routerPending
		}
	}
	if whole || len(row.pairs) > 1 {
		row.whole = e.encode(c)
	}
	d := *c
	if leave {
		d.Op, d.Before, d.After = change.Delete, c.Before, nil
		row.leave = e.encode(&d)
	}
	if arrive {
		d.Op, d.Before, d.After = change.Create, nil, c.After
		row.arrive = e.encode(&d)
	}
}

// captureBatchHeaders is more than the headers of operation, batch and reason take.
const captureBatchHeaders = 2048

// captureBuffer is how much of the buffer is kept after a large row.
const captureBuffer = 1 << 20

// encode gives the envelope. Of a row that Kafka would not take, the widest values are left out as if they had not been
// sent: its product must be touched all the same, and is read from the database.
func (e *captureEncoder) encode(c *change.Change) []byte {
	e.buf = change.AppendEnvelope(e.buf[:0], c, &e.envelope)
	whole := len(e.buf)
	for widest := 64 << 10; len(e.buf) > e.room && widest > 0; widest /= 64 {
		d := *c
		d.Before, d.After = captureNarrow(c.Before, widest), captureNarrow(c.After, widest)
		e.buf = change.AppendEnvelope(e.buf[:0], &d, &e.envelope)
	}
	if len(e.buf) < whole {
		e.log.Warn("row is larger than a record may be, its widest values are left out", "table", c.Relation.Table(),
			"position", c.Position.String(), "bytes", whole, "left", len(e.buf))
	}
	out := e.memory.copy(e.buf)
	if cap(e.buf) > captureBuffer {
		e.buf = nil
	}
	return out
}

// captureNarrow is an image without the values that are wider than this.
func captureNarrow(t change.Tuple, widest int) change.Tuple {
	t = slices.Clone(t)
	for i := range t {
		if len(t[i].Data) > widest {
			t[i] = change.Value{Kind: change.Unchanged}
		}
	}
	return t
}

// headers are all but operation and batch, which the records of one row differ in or which are decided later.
func (e *captureEncoder) headers(c *change.Change, tx *change.Transaction, pk []byte) []event.Header {
	const most = 5
	h := e.memory.room(most + captureLaterHeaders)
	e.buf = c.Position.Append(e.buf[:0])
	h = append(h,
		event.Header{Key: event.HeaderPosition, Value: e.memory.copy(e.buf)},
		event.Header{Key: event.HeaderTable, Value: e.name(c.Relation)},
	)
	if tx != nil {
		h = append(h, event.Header{Key: event.HeaderXID, Value: e.xid}, event.Header{Key: event.HeaderCommitted, Value: e.committed})
	} else {
		h = append(h, event.Header{Key: event.HeaderOrigin, Value: captureOrigin})
	}
	if pk != nil {
		h = append(h, event.Header{Key: event.HeaderPrimaryKey, Value: pk})
	}
	return h
}

// captureLaterHeaders is room for those that are decided later: operation, batch and reason.
const captureLaterHeaders = 3

var captureOrigin = []byte("snapshot")

// name is a table as the header says it.
func (e *captureEncoder) name(rel *change.Relation) []byte {
	n := e.names[rel]
	if n == nil {
		if len(e.names) > 1000 { // a table altered in a loop must not fill the memory
			clear(e.names)
		}
		n = []byte(rel.Table())
		e.names[rel] = n
	}
	return n
}

// fanout makes the record of a row that concerns many products. Its transaction is always a batch.
func (e *captureEncoder) fanout(c *change.Change, tx *change.Transaction, pk []byte) *event.Record {
	after := slices.Clone(c.After)
	for i := range after {
		after[i] = routerNewValue(c, i)
	}
	raw, err := json.Marshal(event.Fanout{
		Table: c.Relation.Table(), Before: change.Image(c.Relation, c.Before), After: change.Image(c.Relation, after),
		Op: string(rune(c.Op)), Position: c.Position, XID: tx.XID, BatchID: captureBatchID(e.history, *tx),
		CommitTime: tx.CommitTime.UTC(),
	})
	if err != nil { // strings, numbers and times of this century
		panic(fmt.Sprintf("encode a fan-out: %v", err))
	}
	return &event.Record{
		Topic: e.cfg.Prefix + event.Fanouts, Partition: -1, Value: raw,
		Key: append([]byte(c.Relation.Table()+":"), pk...),
	}
}
