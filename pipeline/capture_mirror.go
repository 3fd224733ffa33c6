package pipeline

import (
	"bytes"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// MirrorConfig says what is mirrored: written once more, as the Debezium connector writes it, into a topic for each
// table, in the Kafka transactions of catalog.changes. The zero value mirrors nothing.
type MirrorConfig struct {
	// On mirrors the tables of the routes, their parents, and logical messages of every prefix but our own watermarks and
	// heartbeats. The stream must yield the messages.
	On bool
	// Tables are mirrored beside them; they need no route.
	Tables []string
}

// PublishedTables lists, sorted, the tables that must be published: those of the routes and those that are mirrored
// beside them.
func PublishedTables(cfg CaptureConfig) []string {
	tables := RoutedTables(cfg.Routes)
	if cfg.Mirror.On {
		tables = slices.Concat(tables, cfg.Mirror.Tables)
	}
	slices.Sort(tables)
	return slices.Compact(tables)
}

// captureTables lists the tables that must have been read once: those of SnapshotTables, and then the others that are
// mirrored, whose rows are for the mirror alone: one of these that cannot be read is left out, and begins with what
// changes.
func captureTables(cfg CaptureConfig) []string {
	tables := SnapshotTables(cfg.Routes)
	if !cfg.Mirror.On {
		return tables
	}
	for _, t := range PublishedTables(cfg) {
		if !slices.Contains(tables, t) {
			tables = append(tables, t)
		}
	}
	return tables
}

// captureMirror makes the records of the mirror topics. A nil one makes none.
type captureMirror struct {
	topics   map[string]string // by table
	messages string
	shapes   map[*change.Relation]string // the topic of each shape; empty for a table that is not mirrored
}

func newCaptureMirror(cfg CaptureConfig) (*captureMirror, error) {
	if !cfg.Mirror.On {
		return nil, nil
	}
	topics, err := event.MirrorTopics(cfg.Name, PublishedTables(cfg))
	if err != nil {
		return nil, &captureError{err.Error()}
	}
	return &captureMirror{
		topics: topics, messages: event.MirrorTopic(cfg.Name, event.MirrorMessages), shapes: map[*change.Relation]string{},
	}, nil
}

// topic is where the rows of a relation go; empty for nowhere.
func (m *captureMirror) topic(rel *change.Relation) string {
	if m == nil {
		return ""
	}
	topic, ok := m.shapes[rel]
	if !ok {
		if len(m.shapes) > 1000 { // a table altered in a loop must not fill the memory
			clear(m.shapes)
		}
		topic = m.topics[rel.Table()]
		m.shapes[rel] = topic
	}
	return topic
}

// mirrored adds the mirror's records to the step of a row, which the encoder has just made: what happened under the
// row's key, and a tombstone where the key is gone. A changed key is a delete and a create.
func (e *captureEncoder) mirrored(c *change.Change, row *captureRowStep, topic string) {
	rec := func(key, value []byte, headers ...event.Header) event.Record {
		return event.Record{Topic: topic, Partition: -1, Key: key, Value: value, Headers: headers}
	}
	key := func(t change.Tuple) []byte {
		k, ok := change.AppendMessageKey(nil, c.Relation, t)
		if !ok {
			return nil
		}
		return k
	}
	before, after := key(c.Before), key(c.After)
	moved := c.Op == change.Update && before != nil && after != nil && !bytes.Equal(before, after)
	forms := row
	if c.Relation.OwnForm() { // the connector's is another: nothing of the row's own can be used
		forms = &captureRowStep{}
		e.envelope.UTC = true
		defer func() { e.envelope.UTC = false }()
	}
	if forms.whole == nil && !moved {
		forms.whole = e.encode(c)
	}
	switch {
	case c.Op == change.Truncate:
		row.mirror = []event.Record{rec(nil, forms.whole)}
	case c.Op == change.Delete:
		row.mirror = []event.Record{rec(before, forms.whole), rec(before, nil)}
	case moved:
		d := *c
		if forms.leave == nil {
			d.Op, d.Before, d.After = change.Delete, c.Before, nil
			forms.leave = e.encode(&d)
		}
		if forms.arrive == nil {
			d.Op, d.Before, d.After = change.Create, nil, c.After
			forms.arrive = e.encode(&d)
		}
		became := event.Header{Key: event.HeaderNewKey, Value: after}
		row.mirror = []event.Record{
			rec(before, forms.leave, became), rec(before, nil, became),
			rec(after, forms.arrive, event.Header{Key: event.HeaderOldKey, Value: before}),
		}
	default:
		row.mirror = []event.Record{rec(after, forms.whole)}
	}
}

// message makes the record of a logical message; false where it is not mirrored.
func (e *captureEncoder) message(m *change.Message, tx *change.Transaction, mirror *captureMirror) (event.Record, bool) {
	if mirror == nil || m.Prefix == messageWatermark || m.Prefix == messageHeartbeat {
		return event.Record{}, false
	}
	now := time.Now()
	e.envelope.Transaction, e.envelope.At, e.envelope.ReadAt = tx, now, now
	return event.Record{
		Topic: mirror.messages, Partition: -1,
		Key: change.AppendMessagePrefix(nil, m), Value: change.AppendMessage(nil, m, &e.envelope),
	}, true
}

// mirrorMessage hands a logical message to the mirror. One that Capture itself does not read has the position of the
// event before it, so that positions do not depend on the mirror, and however many may share one. They are told apart by
// their number among them.
func (s *captureSession) mirrorMessage(m *change.Message) {
	switch {
	case s.mirror == nil || m.Prefix == MessageBatch:
	case !m.Transactional && m.Prefix == MessageSnapshot: // its record goes with what it asks for, see ask
	case !m.Transactional:
		if m.LSN <= s.resume.CommitLSN {
			return
		}
		if rec, ok := s.encoder.message(m, nil, s.mirror); ok {
			s.step(captureStep{kind: captureMessage, end: m.LSN, mirror: []event.Record{rec}})
		}
	case s.skip:
	default:
		if m.Position != s.messagesAt {
			s.messagesAt, s.messages = m.Position, 0
		}
		s.messages++
		if !s.mirrorsBeyond(m.Position, s.messages) {
			return
		}
		if rec, ok := s.encoder.message(m, &s.tx, s.mirror); ok {
			s.step(captureStep{kind: captureMessage, position: m.Position, nth: s.messages, mirror: []event.Record{rec}})
		}
	}
}

// mirrorsBeyond reports whether the nth message of a position is not in Kafka yet.
func (s *captureSession) mirrorsBeyond(pos change.Position, nth int64) bool {
	c := pos.Compare(s.resume.Position)
	return c > 0 || c == 0 && (s.resume.Open == nil || nth > s.resume.Open.Messages)
}

// mirrorRow makes the step of a row that leads to no product.
func (e *captureEncoder) mirrorRow(c *change.Change, tx *change.Transaction) *captureRowStep {
	row := &captureRowStep{position: c.Position, op: c.Op, mirrorOnly: true}
	e.prepare(c, tx, row)
	return row
}

// message takes a logical message for the mirror.
func (b *captureBatcher) message(s *captureStep) {
	if !b.tx.open {
		b.mirror(s.mirror)
		b.moveTo(s.end)
		return
	}
	b.mirror(s.mirror)
	b.tx.last, b.tx.messages = s.position, s.nth
	b.bound()
}

// mirror takes records of mirror topics. While their transaction is undecided they are held with its others: what is
// written of it and its position must go together.
func (b *captureBatcher) mirror(recs []event.Record) {
	for _, rec := range recs {
		if captureSize(&rec) > b.limits.maxRecord {
			rec = b.tooLarge(rec)
		}
		if !b.tx.open || b.tx.batch || b.tx.loose {
			b.emit(0, rec)
			continue
		}
		b.hold()
		b.tx.mirrored = append(b.tx.mirrored, rec)
		b.tx.heldBytes += captureSize(&rec)
	}
}

// loosen lets go what is held for the mirror of a transaction that has grown large and touches no product so far: it is
// no batch, but its position may stand in its middle from now on.
func (b *captureBatcher) loosen() {
	b.tx.loose = true
	b.letMirrorGo()
}

func (b *captureBatcher) letMirrorGo() {
	for _, rec := range b.tx.mirrored {
		b.emit(0, rec)
		b.tx.heldBytes -= captureSize(&rec)
	}
	b.tx.mirrored = b.tx.mirrored[:0]
}
