package pipeline

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// captureKind says what a captureStep is.
type captureKind byte

const (
	captureBegin    captureKind = iota // tx
	captureRow                         // row
	captureName                        // position, name, admin: a batch message of the open transaction
	captureCommit                      // end, others, and progress where the transaction calls for a snapshot
	captureAdvance                     // end: nothing of ours stands before it that has not been seen
	captureProgress                    // progress: the rows of one snapshot chunk are complete
	captureMessage                     // mirror: a logical message for the mirror; position and nth, or end where it belongs to no transaction
)

// captureStep is one step of the stream or of a snapshot, routed and encoded, in the order in which it becomes
// records. Between reading and here it may have waited for the products of parent rows.
type captureStep struct {
	kind        captureKind
	tx          change.Transaction
	end         change.LSN
	others      bool // nothing of the transaction concerned any table or message that is captured
	position    change.Position
	nth         int64 // of the messages that have this position, see captureMessage
	name, admin string
	row         *captureRowStep
	progress    *captureSnapshotStep
	mirror      []event.Record
}

// captureRowStep is one row change with all the records that it may become.
type captureRowStep struct {
	position change.Position
	// pairs are where the row leads. Only those that are pending change after it was made.
	pairs []routerPair
	// fanout is the record for catalog.fanouts, if any.
	fanout *event.Record
	// dead holds the reasons why the row, or part of it, is a dead letter.
	dead  []string
	batch bool
	admin string
	// snapshot is the batch id of the snapshot that the row belongs to; empty for a row of a transaction.
	snapshot string
	op       change.Op
	headers  []event.Header // of all its records
	// whole, leave and arrive are the envelope as it is, as the delete for the product that the row leaves, and as the
	// create for the one that it comes to; nil where the pairs can have no use for it.
	whole, leave, arrive []byte
	// mirror are its records for the mirror topics; mirrorOnly says that it has no others.
	mirror     []event.Record
	mirrorOnly bool
}

// captureSnapshotStep says where the snapshots are now: a chunk is complete, one has begun or ended.
type captureSnapshotStep struct {
	// running, ended and tables are what the position says of them.
	running []event.SnapshotProgress
	ended   []event.SnapshotEnd
	tables  []string
	// announce are the batches of those that have ended by this.
	announce []event.Batch
	// dead are requests that cannot be had.
	dead []event.Record
	// taken is the end of a message that this takes; 0 for none.
	taken change.LSN
}

// captureUnit is what one Kafka transaction writes.
type captureUnit struct {
	records []event.Record
	// groups are parallel to records; 0 belongs to no batch.
	groups   []int64
	bytes    int
	announce []captureAnnounce
	position event.Position
	// open is the group of the batch that position.Open describes; 0 for none. snapshots are the groups of
	// position.Snapshots, ended those of snapshots that have ended by it and are not announced, as nothing is in Kafka.
	open             int64
	snapshots, ended []int64
	// confirm is what the source may forget once the unit is committed; 0 for nothing new.
	confirm change.LSN
	// snapshot: rows of a snapshot are among the records.
	snapshot bool
	// moved: the position differs from that of the unit before.
	moved bool
	// newest is the commit time of the last transaction in it, for the measured lag.
	newest time.Time
	// memories are those that are free once it is in Kafka.
	memories []*captureMemory
}

// captureAnnounce is a batch whose last record stands in the unit.
type captureAnnounce struct {
	group int64
	batch event.Batch
}

// captureLimits are the thresholds of the batch decision and of a unit.
type captureLimits struct {
	products, rows       int
	unitRows, unitBytes  int
	maxRecord            int
	changes, deadletters string // topics
}

// captureBatcher turns steps into units: it decides what is a batch before the first record of a transaction is let
// go, and where a large transaction is split. It is pure; one goroutine uses it.
type captureBatcher struct {
	memory *captureMemories
	// waitedIn is the number of the memory that the first of the steps lies in that have waited and are applied now; 0 for
	// steps that come at once.
	waitedIn uint64
	limits   captureLimits
	history  change.History
	writer   string
	stats    *CaptureStats

	unit  *captureUnit
	tx    captureTx
	group int64 // the last one given
	// snapshots are the groups of those that run.
	snapshots map[string]int64
	// position is what the last finished unit has said, and what the next one begins with.
	position event.Position
}

// captureTx is the open transaction.
type captureTx struct {
	open bool
	change.Transaction
	// batch: decided; group is its group then. Until then records are held. loose: those of the mirror are not; as soon
	// as a row leads to a product it is a batch.
	batch, loose bool
	group        int64
	held         []event.Record
	// mirrored are those held for the mirror.
	mirrored    []event.Record
	heldBytes   int
	products    map[change.ProductID]struct{}
	rows        int64
	name, admin string
	// last is the position of the last event, messages how many messages for the mirror have come behind it.
	last     change.Position
	messages int64
	// id is the header of the batch, once it is one.
	id []byte
	// heldIn is the number of the memory that the first of what is held lies in.
	heldIn uint64
}

// newCaptureBatcher goes on from a position. Its Open transaction, if any, will be begun again by the stream.
func newCaptureBatcher(limits captureLimits, pos event.Position, stats *CaptureStats) *captureBatcher {
	b := &captureBatcher{
		memory: newCaptureMemories(), limits: limits, history: captureNames(pos), writer: pos.Writer, stats: stats,
		group: captureResumed, snapshots: map[string]int64{}, position: pos,
	}
	for _, p := range pos.Snapshots {
		b.snapshotGroup(p.ID) // in the order in which the writer counts them
	}
	b.unit = &captureUnit{position: pos}
	return b
}

// captureResumed is the group of the transaction that a predecessor has begun. Those of its snapshots come next.
const captureResumed = 1

// snapshotGroup is the group of a snapshot's records.
func (b *captureBatcher) snapshotGroup(id string) int64 {
	if b.snapshots[id] == 0 {
		b.group++
		b.snapshots[id] = b.group
	}
	return b.snapshots[id]
}

// batchID names the batch that a transaction is. It is the same however often the transaction is read.
func (b *captureBatcher) batchID(tx change.Transaction) string {
	return captureBatchID(b.history, tx)
}

// captureNames is the history that the batches of a session are named by: that of the position, but where a transaction
// is half in Kafka that was begun before a failover, the timeline of its name. No transaction of the new timeline can
// have a name of the old one, as nothing beyond the position was captured there.
func captureNames(pos event.Position) change.History {
	h := pos.History
	if pos.Open != nil {
		var timeline int32
		if _, err := fmt.Sscanf(pos.Open.BatchID, "tx-%d-", &timeline); err == nil {
			h.Timeline = timeline
		}
	}
	return h
}

func captureBatchID(h change.History, tx change.Transaction) string {
	return "tx-" + strconv.FormatInt(int64(h.Timeline), 10) + "-" + strconv.FormatUint(uint64(tx.CommitLSN), 16)
}

// apply takes one step whose products are known.
func (b *captureBatcher) apply(s *captureStep) {
	switch s.kind {
	case captureBegin:
		b.begin(s.tx)
	case captureRow:
		b.row(s.row)
	case captureName:
		b.mirror(s.mirror)
		b.tx.last, b.tx.messages = s.position, 0
		b.tx.name = s.name
		if s.admin != "" {
			b.tx.admin = s.admin
		}
		b.decide()
	case captureCommit:
		last := b.unit.position.Last
		b.commit(s.end)
		if s.others {
			b.unit.position.Last = last
		}
		if s.progress != nil {
			b.progress(s.progress)
		}
	case captureAdvance:
		last := b.unit.position.Last
		b.moveTo(s.end)
		b.unit.position.Last = last // what stands before the end is of others
	case captureProgress:
		b.mirror(s.mirror)
		b.progress(s.progress)
	case captureMessage:
		b.message(s)
	}
}

func (b *captureBatcher) begin(tx change.Transaction) {
	products := b.tx.products
	clear(products)
	if products == nil {
		products = map[change.ProductID]struct{}{}
	}
	b.tx = captureTx{
		open: true, Transaction: tx, products: products,
		held: b.tx.held[:0], mirrored: b.tx.mirrored[:0],
	}
	if open := b.position.Open; open != nil && b.position.CommitLSN == tx.CommitLSN {
		b.tx.batch, b.tx.loose, b.tx.group = open.BatchID != "", open.BatchID == "", captureResumed
		b.tx.rows, b.tx.name, b.tx.admin = open.Rows, open.Name, open.Admin
	}
}

func (b *captureBatcher) row(r *captureRowStep) {
	if r.snapshot != "" {
		b.unit.snapshot = true
		b.records(r, func(_ change.ProductID, rec event.Record) {
			rec.Headers = append(rec.Headers, event.Header{Key: event.HeaderBatch, Value: b.memory.text(r.snapshot)})
			b.emit(b.snapshotGroup(r.snapshot), rec)
		})
		b.mirror(r.mirror)
		return
	}
	b.mirror(r.mirror)
	b.tx.last, b.tx.messages = r.position, 0
	if r.mirrorOnly {
		b.bound()
		return
	}
	b.tx.rows++
	if r.admin != "" && b.tx.admin == "" {
		b.tx.admin = r.admin
	}
	b.records(r, func(product change.ProductID, rec event.Record) {
		if b.tx.batch {
			b.emit(b.tx.group, b.withBatch(rec))
			return
		}
		b.hold()
		b.tx.held = append(b.tx.held, rec)
		b.tx.heldBytes += captureSize(&rec)
		if rec.Topic == b.limits.changes {
			b.tx.products[product] = struct{}{}
		}
	})
	// Held memory is a reason of its own: a transaction of few but huge rows is let go as a batch.
	if r.batch || r.fanout != nil || len(b.tx.products) >= b.limits.products || b.tx.loose || b.tx.rows >= int64(b.limits.rows) {
		b.decide()
	}
	b.bound()
}

// bound lets go what has become too much to hold.
func (b *captureBatcher) bound() {
	switch {
	case b.tx.batch || b.tx.loose || b.tx.heldBytes < b.limits.unitBytes && len(b.tx.mirrored) < max(b.limits.rows, b.limits.unitRows):
	case b.tx.rows > 0:
		b.decide()
	default:
		b.loosen()
	}
}

// empty reports whether writing the unit would tell anybody anything but a position.
func (b *captureBatcher) empty() bool {
	return len(b.unit.records) == 0 && len(b.unit.announce) == 0 && !b.unit.snapshot
}

// decide makes the open transaction a batch, and lets go what was held of it.
func (b *captureBatcher) decide() {
	if b.tx.batch {
		return
	}
	b.tx.batch = true
	if b.tx.group == 0 {
		b.group++
		b.tx.group = b.group
	}
	b.letMirrorGo()
	for _, rec := range b.tx.held {
		b.emit(b.tx.group, b.withBatch(rec))
	}
	b.tx.held, b.tx.heldBytes = b.tx.held[:0], 0
}

func (b *captureBatcher) withBatch(rec event.Record) event.Record {
	if b.tx.id == nil {
		b.tx.id = []byte(b.batchID(b.tx.Transaction))
	}
	rec.Headers = append(rec.Headers, event.Header{Key: event.HeaderBatch, Value: b.tx.id})
	return rec
}

func (b *captureBatcher) commit(end change.LSN) {
	b.letMirrorGo()
	for _, rec := range b.tx.held {
		b.emit(0, rec)
	}
	b.tx.held, b.tx.heldBytes = b.tx.held[:0], 0
	if b.tx.batch {
		b.stats.Batches.Add(1)
		b.unit.announce = append(b.unit.announce, captureAnnounce{group: b.tx.group, batch: event.Batch{
			Type: event.BatchAnnounced, ID: b.batchID(b.tx.Transaction), Kind: event.KindTransaction,
			Name: b.tx.name, Admin: b.tx.admin, XID: b.tx.XID, CommitLSN: b.tx.CommitLSN,
			CommitTime: b.tx.CommitTime, Rows: b.tx.rows,
		}})
	}
	b.stats.Transactions.Add(1)
	b.unit.newest = b.tx.CommitTime
	b.tx.open = false
	b.moveTo(end)
}

// moveTo says that everything before end is in this unit or an earlier one.
//
// Invariant: it is called at a transaction's end or outside of any, with nothing held. The position of a whole
// transaction is where it ends, with ordinal 0: the commit record of the next transaction may stand exactly there, and
// its rows count from 1.
func (b *captureBatcher) moveTo(end change.LSN) {
	pos := change.Position{CommitLSN: end}
	if pos.Compare(b.unit.position.Position) <= 0 {
		return
	}
	b.unit.position.Position, b.unit.position.Last, b.unit.position.Open = pos, end, nil
	b.unit.confirm, b.unit.moved, b.unit.open = end, true, 0
}

func (b *captureBatcher) progress(d *captureSnapshotStep) {
	b.moveTo(d.taken)
	for _, rec := range d.dead {
		b.stats.DeadLetters.Add(1)
		b.emit(0, rec)
	}
	b.unit.moved = true
	b.unit.snapshot = true
	b.unit.position.Snapshots, b.unit.position.Tables, b.unit.position.Ended = d.running, d.tables, d.ended
	for _, batch := range d.announce {
		b.unit.announce = append(b.unit.announce, captureAnnounce{group: b.snapshotGroup(batch.ID), batch: batch})
		delete(b.snapshots, batch.ID)
	}
	if len(b.snapshots) <= len(d.running) {
		return
	}
	for id, group := range b.snapshots { // also one that had no rows has ended
		if !slices.ContainsFunc(d.running, func(p event.SnapshotProgress) bool { return p.ID == id }) {
			b.unit.ended = append(b.unit.ended, group)
			delete(b.snapshots, id)
		}
	}
}

// full reports whether the unit should be written before it takes another step.
func (b *captureBatcher) full() bool {
	return len(b.unit.records) >= b.limits.unitRows || b.unit.bytes >= b.limits.unitBytes
}

// seal completes the unit as it stands, so that it can be written; it may still grow and be sealed again. In the middle
// of a transaction whose records have begun to leave, and which is a batch by then, the position names its last row. Of
// a transaction that is still undecided nothing stands in the unit, so its position is where the last whole one ends.
func (b *captureBatcher) seal() *captureUnit {
	u := b.unit
	u.snapshots = u.snapshots[:0]
	for i := range u.position.Snapshots {
		u.snapshots = append(u.snapshots, b.snapshotGroup(u.position.Snapshots[i].ID))
	}
	// A transaction that has begun again but brought nothing new yet leaves the position where it was.
	if b.tx.open && (b.tx.batch || b.tx.loose) && b.tx.beyond(&u.position) {
		u.position.Position = b.tx.last
		u.position.Open = &event.OpenTransaction{Name: b.tx.name, Admin: b.tx.admin, Rows: b.tx.rows, Messages: b.tx.messages}
		if b.tx.batch {
			u.position.Open.BatchID = b.batchID(b.tx.Transaction)
		}
		u.open, u.moved = b.tx.group, true
	}
	return u
}

// beyond reports whether the transaction has brought something that a position does not say yet.
func (t *captureTx) beyond(p *event.Position) bool {
	switch c := t.last.Compare(p.Position); {
	case c != 0:
		return c > 0
	case p.Open == nil:
		return t.messages > 0
	}
	return t.messages > p.Open.Messages
}

// holds reports whether records of the open transaction are held back for a later unit.
func (b *captureBatcher) holds() bool {
	return len(b.tx.held) > 0 || len(b.tx.mirrored) > 0
}

// hold must be called before a record is held.
func (b *captureBatcher) hold() {
	switch {
	case b.holds():
	case b.waitedIn != 0:
		b.tx.heldIn = b.waitedIn
	default:
		b.tx.heldIn = b.memory.number
	}
}

// renew begins the next unit where this one, which is on its way, ends. spare is a unit that is in Kafka, whose memory
// may be used again, perhaps even this one; nil where there is none.
func (b *captureBatcher) renew(spare *captureUnit) {
	gone := b.unit.memories
	b.position = b.unit.position
	b.unit = &captureUnit{position: b.position}
	var back []*captureMemory
	if spare != nil {
		back = spare.memories
		if cap(spare.records) <= captureUnitKept {
			b.unit.records, b.unit.groups = spare.records[:0], spare.groups[:0]
		}
	}
	b.memory.turn(gone, back)
}

// captureUnitKept is how long a list of records may be to be used again: more than a busy stream needs.
const captureUnitKept = 16 << 10

func (b *captureBatcher) emit(group int64, rec event.Record) {
	b.unit.records = append(b.unit.records, rec)
	b.unit.groups = append(b.unit.groups, group)
	b.unit.bytes += captureSize(&rec)
}

// captureSize is what a record takes in memory and, nearly, in Kafka.
func captureSize(rec *event.Record) int {
	n := len(rec.Key) + len(rec.Value) + 64
	for i := range rec.Headers {
		n += len(rec.Headers[i].Key) + len(rec.Headers[i].Value) + 8
	}
	return n
}
