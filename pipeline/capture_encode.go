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
		row.xid = tx.XID
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

// records gives the records of a row whose products are known, with the product that each is for, if any.
func (b *captureBatcher) records(r *captureRowStep, emit func(change.ProductID, event.Record)) {
	if product, ok := r.single(); ok && len(r.dead) == 0 && r.fanout == nil {
		rec := event.Record{
			Topic: b.limits.changes, Partition: -1, Key: b.memory.text(string(product)), Value: r.whole,
			Headers: append(r.headers, event.Header{Key: event.HeaderOp, Value: captureOps[r.op]}), // nobody else has them
		}
		emit(product, b.bounded(rec))
		return
	}
	type made struct {
		product change.ProductID
		op      change.Op
		value   []byte
	}
	var list []made
	add := func(product change.ProductID, op change.Op, value []byte) {
		for i := range list {
			if list[i].product == product {
				// Two routes lead to one product; if they disagree on what happened, the row as it came says it all.
				if list[i].op != op && r.whole != nil {
					list[i].op, list[i].value = r.op, r.whole
				}
				return
			}
		}
		list = append(list, made{product, op, value})
	}
	reasons := slices.Clone(r.dead)
	for i := range r.pairs {
		p := &r.pairs[i]
		from, to := p.old.kind == routerProduct, p.new.kind == routerProduct
		switch {
		case from && to && p.old.product == p.new.product:
			add(p.new.product, r.op, r.whole)
		case r.op != change.Update && from:
			add(p.old.product, r.op, r.whole)
		case r.op != change.Update && to:
			add(p.new.product, r.op, r.whole)
		default:
			if from {
				add(p.old.product, change.Delete, r.leave)
			}
			if to {
				add(p.new.product, change.Create, r.arrive)
			}
		}
		for _, t := range []*routerTarget{&p.old, &p.new} {
			if t.kind == routerBad && !slices.Contains(reasons, t.reason) {
				reasons = append(reasons, t.reason)
			}
		}
	}
	for _, m := range list {
		emit(m.product, b.bounded(event.Record{
			Topic: b.limits.changes, Partition: -1, Key: b.memory.text(string(m.product)), Value: m.value, Headers: r.with(m.op),
		}))
	}
	for _, reason := range reasons {
		b.stats.DeadLetters.Add(1)
		rec := event.Record{Topic: b.limits.deadletters, Partition: -1, Value: r.whole, Headers: r.with(r.op)}
		rec.Headers = append(rec.Headers, event.Header{Key: event.HeaderReason, Value: []byte(reason)})
		emit("", b.bounded(rec))
	}
	if r.fanout != nil {
		rec := *r.fanout
		rec.Headers = r.with(r.op)
		if b.fits(&rec) {
			b.stats.Fanouts.Add(1)
		}
		emit("", b.bounded(rec))
	}
}

// fits reports whether Kafka takes a record.
func (b *captureBatcher) fits(rec *event.Record) bool { return captureSize(rec) <= b.limits.maxRecord }

// bounded is the record, or the dead letter that it becomes when Kafka would not take it.
func (b *captureBatcher) bounded(rec event.Record) event.Record {
	if b.fits(&rec) {
		return rec
	}
	return b.tooLarge(rec)
}

// single is the product of a row that leads to one by one route, and does not move it: nearly all rows do.
func (r *captureRowStep) single() (change.ProductID, bool) {
	if len(r.pairs) != 1 {
		return "", false
	}
	p := &r.pairs[0]
	switch {
	case p.new.kind == routerProduct && (r.op == change.Create || r.op == change.Read ||
		r.op == change.Update && p.old.kind == routerProduct && p.old.product == p.new.product):
		return p.new.product, true
	case p.old.kind == routerProduct && p.new.kind == routerNone && r.op == change.Delete:
		return p.old.product, true
	}
	return "", false
}

// captureOps are the values of the header of the operation.
var captureOps = [256][]byte{
	change.Create: {byte(change.Create)}, change.Update: {byte(change.Update)}, change.Delete: {byte(change.Delete)},
	change.Truncate: {byte(change.Truncate)}, change.Read: {byte(change.Read)},
}

// captureHead is how much is kept of a record that Kafka would not take.
const captureHead = 64 << 10

// tooLarge makes a dead letter of a record that Kafka would not take. Of its bytes only the head fits.
func (b *captureBatcher) tooLarge(rec event.Record) event.Record {
	b.stats.DeadLetters.Add(1)
	reason := fmt.Sprintf("the record has %d bytes and at most %d are taken; of its value the first %d are kept",
		captureSize(&rec), b.limits.maxRecord, min(captureHead, len(rec.Value)))
	rec.Topic = b.limits.deadletters
	rec.Value = rec.Value[:min(captureHead, len(rec.Value))]
	rec.Headers = append(rec.Headers, event.Header{Key: event.HeaderReason, Value: []byte(reason)})
	return rec
}

// with gives the headers of one record of the row, with room for the batch and a reason.
func (r *captureRowStep) with(op change.Op) []event.Header {
	h := make([]event.Header, 0, len(r.headers)+captureLaterHeaders)
	h = append(h, r.headers...)
	return append(h, event.Header{Key: event.HeaderOp, Value: captureOps[op]})
}
