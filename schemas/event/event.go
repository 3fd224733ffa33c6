// Package event holds the records of the topics: names, headers, and the JSON of the events that Shelfwire itself
// writes. Row changes keep Debezium's envelope (package change encodes it).
package event

import (
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// The topics, without the configurable prefix.
const (
	Changes     = "changes"
	Fanouts     = "fanouts"
	Batches     = "batches"
	Outcomes    = "outcomes"
	Documents   = "documents"
	Positions   = "positions"
	DeadLetters = "deadletters"
)

// The headers of catalog.changes, catalog.fanouts and catalog.deadletters.
const (
	HeaderPosition   = "position"  // change.Position: 16/B374D848:12
	HeaderXID        = "xid"       // decimal xid8; absent for snapshot rows
	HeaderBatch      = "batch"     // batch id; absent outside a batch
	HeaderPrimaryKey = "pk"        // JSON object of the row's primary key; absent without one
	HeaderOp         = "op"        // c u d t r
	HeaderTable      = "table"     // schema.table
	HeaderCommitted  = "committed" // commit time of the transaction, decimal µs since 1970
	HeaderReason     = "reason"    // dead letters: a sentence that says what is wrong
	HeaderOrigin     = "origin"    // live (absent), snapshot, replay
)

// Header is one record header.
type Header struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Record is one Kafka record on its way in or out.
type Record struct {
	// Topic is the full name, with the prefix.
	Topic string
	// Partition is where the record stands, or where it shall go. -1 on the way out: by the murmur2 hash of Key.
	Partition int32
	// Offset and Timestamp are set on the way in, and Offset after a flush on the way out.
	Offset    int64
	Timestamp time.Time
	Key       []byte
	// Value is nil for a tombstone.
	Value   []byte
	Headers []Header
}

// Header returns the value of the first header with this key.
func (r *Record) Header(key string) (string, bool) {
	for i := range r.Headers {
		if r.Headers[i].Key == key {
			return string(r.Headers[i].Value), true
		}
	}
	return "", false
}

// Fanout is a row that concerns many products: the value of catalog.fanouts, keyed by table and primary key.
type Fanout struct {
	Table string `json:"table"`
	// Before and After are the row's images as JSON objects of text values; null where there is none.
	Before     map[string]*string `json:"before"`
	After      map[string]*string `json:"after"`
	Op         string             `json:"op"`
	Position   change.Position    `json:"position"`
	XID        change.XID         `json:"xid"`
	BatchID    string             `json:"batch_id"`
	CommitTime time.Time          `json:"commit_time"`
}

// Kinds of batches.
const (
	KindTransaction = "transaction"
	KindSnapshot    = "snapshot"
	KindReplay      = "replay"
)

// Types of batch events.
const (
	BatchAnnounced = "announced" // written by Capture, Replay: all of the batch stands in the topics now
	BatchReading   = "reading"   // written by Capture every 10 s: how far a snapshot has come
	BatchOpened    = "opened"    // the state has seen its first item
	BatchCompleted = "completed"
	BatchFailed    = "failed"
	BatchCancelled = "cancelled"
	// BatchHealed says that Capture could not go on where it stood, and reads the tables again under this batch id. The
	// batch itself is announced at the end of that snapshot.
	BatchHealed = "healed"
)

// Batch is the value of catalog.batches, keyed by batch id.
type Batch struct {
	Type string `json:"type"`
	ID   string `json:"batch_id"`
	// Kind is transaction, snapshot or replay.
	Kind  string `json:"kind"`
	Name  string `json:"name,omitempty"`
	Admin string `json:"admin,omitempty"`
	// XID and CommitLSN are zero for batches that are no transaction.
	XID        change.XID `json:"xid,omitempty"`
	CommitLSN  change.LSN `json:"commit_lsn,omitempty"`
	CommitTime time.Time  `json:"commit_time,omitzero"`
	// Rows counts the routed rows of the batch (announced, failed), or the rows read so far (reading).
	Rows int64 `json:"rows,omitempty"`
	// Estimate is about how many rows the snapshot has, PerSecond how many it reads, and LeftSeconds what remains to be
	// waited by that; 0 while unknown (reading).
	Estimate    int64   `json:"estimate,omitempty"`
	PerSecond   float64 `json:"per_second,omitempty"`
	LeftSeconds float64 `json:"left_seconds,omitempty"`
	// Changes and Fanouts hold, for each partition of catalog.changes and catalog.fanouts that the batch touches,
	// the offset of its last record there (announced).
	Changes map[int32]int64 `json:"changes,omitempty"`
	Fanouts map[int32]int64 `json:"fanouts,omitempty"`

	// The summary (completed, failed, cancelled).
	Round     int            `json:"round,omitempty"`
	Status    string         `json:"status,omitempty"`
	Total     int            `json:"total,omitempty"`
	Succeeded int            `json:"succeeded,omitempty"`
	Failed    int            `json:"failed,omitempty"`
	Skipped   int            `json:"skipped,omitempty"`
	Cancelled int            `json:"cancelled,omitempty"`
	Errors    map[string]int `json:"errors,omitempty"`
	// Reason says why the batch is not whole (announced): Capture had to give it up, and what is missing comes again in
	// the snapshot that closed the gap.
	Reason string `json:"reason,omitempty"`
	// Healing is what happened (healed).
	Healing *Healing  `json:"healing,omitempty"`
	At      time.Time `json:"at"`
}

// Healing is a gap in what was captured, and how it was closed: what was committed in it is in no record of its own,
// and all routed tables are read again.
type Healing struct {
	// Cause is one word, Reason a sentence for people.
	Cause  string `json:"cause"`
	Reason string `json:"reason"`
	// From is the position that was given up, 0 when there was none on record, and FromTime when it was written.
	From         change.LSN `json:"from"`
	FromTime     time.Time  `json:"from_time,omitzero"`
	FromTimeline int32      `json:"from_timeline,omitempty"`
	// To is where capture went on; 0 as long as it has not.
	To         change.LSN `json:"to"`
	ToTimeline int32      `json:"to_timeline,omitempty"`
	// Snapshot is the batch that reads the tables again.
	Snapshot string `json:"snapshot,omitempty"`
	// Touched counts the products that the state knew, which are evaluated again: some may be gone from the source.
	Touched int64     `json:"touched"`
	At      time.Time `json:"at,omitzero"`
	// Renew: the slot is still to be made anew. Back: the history of the source went back, so that what was known of it
	// is void.
	Renew bool `json:"renew,omitempty"`
	Back  bool `json:"back,omitempty"`
	// Recent holds the times of the healings of the hour before this one, and its own: more than a few ask for a person.
	Recent []time.Time `json:"recent,omitempty"`
}

// Position is the value of catalog.positions, written in the Kafka transaction that it describes. Its key is the
// writer: "capture/<slot>" or "relay".
type Position struct {
	Writer string `json:"writer"`
	change.History
	change.Position
	// Last is where the last transaction or message ends that is in Kafka (capture). Between it and the position stands WAL
	// that concerns nobody here. 0: not known.
	Last change.LSN `json:"last,omitempty"`
	// Open is the transaction that this Kafka transaction ended in the middle of; nil at a transaction's end.
	Open *OpenTransaction `json:"open,omitempty"`
	// Snapshots are those that run, in the order in which they began.
	Snapshots []SnapshotProgress `json:"snapshots,omitempty"`
	// Ended are the last snapshots that came to an end, the newest last.
	Ended []SnapshotEnd `json:"ended_snapshots,omitempty"`
	// Tables lists the routed tables whose snapshot is complete.
	Tables []string `json:"tables,omitempty"`
	// Published says of each captured table which table it is and which entry of the publication it has (capture). A
	// table whose entry has changed was not streamed all the time.
	Published map[string]string `json:"published,omitempty"`
	// Gone lists the routed tables that have been published and are not any more.
	Gone []string `json:"gone,omitempty"`
	// Unseen are the transactions of the stream that nothing has proved visible at the source (capture): the stream may be
	// ahead of what is visible.
	Unseen change.XIDs `json:"unseen_xids,omitempty"`
	// UnseenParents are those of them that have changed a parent table, by table. A table that is not named was no parent
	// when this was written.
	UnseenParents map[string]change.XIDs `json:"unseen_parents,omitempty"`
	// Healed is the last healing; with a CommitLSN of 0, one that has only begun (capture).
	Healed *Healing `json:"healed,omitempty"`
	// Making: the first slot is being made, and nobody may read from one that is there until its maker has looked at it
	// (capture).
	Making bool `json:"making_slot,omitempty"`
	// LargestOpen is how many bytes of the largest open transaction have been streamed (capture).
	LargestOpen int64 `json:"largest_open_bytes,omitempty"`
	// Number is the number of the last outbox row (relay), in the state of Incarnation.
	Number      int64     `json:"number,omitempty"`
	Incarnation string    `json:"incarnation,omitempty"`
	At          time.Time `json:"at"`
}

// OpenTransaction is what Capture must know of a transaction whose beginning is already in Kafka.
type OpenTransaction struct {
	BatchID string `json:"batch_id,omitempty"`
	Name    string `json:"name,omitempty"`
	Admin   string `json:"admin,omitempty"`
	Rows    int64  `json:"rows"`
	// Messages is how many logical messages of the mirror are in Kafka behind the event of the position, which they share.
	Messages int64           `json:"messages,omitempty"`
	Changes  map[int32]int64 `json:"changes,omitempty"`
	Fanouts  map[int32]int64 `json:"fanouts,omitempty"`
}
