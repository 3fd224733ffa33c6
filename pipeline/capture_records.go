package pipeline

import (
	"fmt"
	"slices"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

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
