// Package change holds the vocabulary of captured changes: positions, snapshots, relations and rows as logical
// replication yields them, before they are encoded for Kafka.
package change

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// LSN is a Postgres log sequence number: a byte position in the write-ahead log. Zero is "no position".
type LSN uint64

// String writes the LSN as Postgres does: "16/B374D848".
func (l LSN) String() string { return string(l.Append(nil)) }

// Append appends the form of [LSN.String].
func (l LSN) Append(dst []byte) []byte {
	dst = append(appendHex(dst, uint32(l>>32)), '/')
	return appendHex(dst, uint32(l))
}

func appendHex(dst []byte, v uint32) []byte {
	shift := max(0, (bits.Len32(v)+3)/4-1) * 4
	for ; shift >= 0; shift -= 4 {
		dst = append(dst, "0123456789ABCDEF"[v>>shift&15])
	}
	return dst
}

// ParseLSN reads the form of [LSN.String].
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is no LSN: want the form 16/B374D848", s)
	}
	return LSN(h<<32 | l), nil
}

// MarshalText and UnmarshalText give the LSN its Postgres form in JSON.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads the form of [LSN.String].
func (l *LSN) UnmarshalText(b []byte) (err error) {
	*l, err = ParseLSN(string(b))
	return err
}

// ProductID is the text form of the source's own product id. It is the key of catalog.changes.
type ProductID string

// Position identifies one event of the source and orders all of them. An LSN alone does not: rows of one COPY share
// an LSN, and a commit may carry the LSN of the next transaction's begin.
//
// For a change, CommitLSN is the final LSN of its transaction and Ordinal counts the surviving rows, truncates and
// transactional messages of that transaction in WAL order from 1, before any routing. For a snapshot row, CommitLSN
// is the LSN of the chunk's high watermark and Ordinal counts the chunk's rows from 1. The zero Position stands
// before everything.
type Position struct {
	CommitLSN LSN    `json:"commit_lsn"`
	Ordinal   uint64 `json:"ordinal"`
}

// Compare orders positions as the source committed them.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.CommitLSN, q.CommitLSN), cmp.Compare(p.Ordinal, q.Ordinal))
}

// String writes the position as "16/B374D848:12", the form of the record header.
func (p Position) String() string { return string(p.Append(nil)) }

// Append appends the form of [Position.String].
func (p Position) Append(dst []byte) []byte {
	dst = append(p.CommitLSN.Append(dst), ':')
	return strconv.AppendUint(dst, p.Ordinal, 10)
}

// ParsePosition reads the form of [Position.String].
func ParsePosition(s string) (Position, error) {
	lsn, ord, ok := strings.Cut(s, ":")
	l, err := ParseLSN(lsn)
	o, err2 := strconv.ParseUint(ord, 10, 64)
	if !ok || err != nil || err2 != nil {
		return Position{}, fmt.Errorf("%q is no position: want the form 16/B374D848:12", s)
	}
	return Position{CommitLSN: l, Ordinal: o}, nil
}

// History says which past a position belongs to. Positions of different histories cannot be compared.
type History struct {
	SystemID string `json:"system_id"`
	Timeline int32  `json:"timeline"`
	Slot     string `json:"slot"`
}

// XID is a full 64-bit transaction id (xid8), so that it can be compared with a snapshot. Zero means "none": every
// snapshot sees it.
type XID uint64

// Widen gives a 32-bit transaction id of the stream its epoch: the one that brings it nearest to near, a recent full
// id. Two ids of one stream are never 2^31 apart, as Postgres itself relies on that.
func Widen(xid uint32, near XID) XID {
	d := int32(xid - uint32(near)) // modular distance
	w := int64(near) + int64(d)
	if w < 0 {
		return XID(xid)
	}
	return XID(w)
}

// XIDs are transaction ids in any order. As JSON, each stands as its distance to the one before: those of one stream are
// near each other, so that a thousand take some 2 KB.
type XIDs []XID

// MarshalJSON writes the distances.
func (l XIDs) MarshalJSON() ([]byte, error) {
	b := []byte{'['}
	last := XID(0)
	for i, x := range l {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(x-last), 10)
		last = x
	}
	return append(b, ']'), nil
}

// UnmarshalJSON reads them.
func (l *XIDs) UnmarshalJSON(b []byte) error {
	var steps []int64
	if err := json.Unmarshal(b, &steps); err != nil {
		return fmt.Errorf("transaction ids: %w", err)
	}
	*l = nil
	last := XID(0)
	for _, d := range steps {
		last += XID(d)
		*l = append(*l, last)
	}
	return nil
}

// Snapshot is a Postgres snapshot (pg_snapshot): which transactions a read has seen.
type Snapshot struct {
	Xmin, Xmax XID
	// Running lists the transactions in [Xmin, Xmax) that were in progress, in ascending order.
	Running []XID
}

// ParseSnapshot reads the text of pg_current_snapshot(): "100:104:100,102".
func ParseSnapshot(s string) (Snapshot, error) {
	part := strings.Split(s, ":")
	if len(part) != 3 {
		return Snapshot{}, fmt.Errorf("%q is no snapshot: want xmin:xmax:running", s)
	}
	lo, err1 := strconv.ParseUint(part[0], 10, 64)
	hi, err2 := strconv.ParseUint(part[1], 10, 64)
	if err1 != nil || err2 != nil {
		return Snapshot{}, fmt.Errorf("%q is no snapshot: want xmin:xmax:running", s)
	}
	snap := Snapshot{Xmin: XID(lo), Xmax: XID(hi)}
	for x := range strings.SplitSeq(part[2], ",") {
		if x == "" {
			continue
		}
		v, err := strconv.ParseUint(x, 10, 64)
		if err != nil {
			return Snapshot{}, fmt.Errorf("%q is no snapshot: running id %q", s, x)
		}
		snap.Running = append(snap.Running, XID(v))
	}
	return snap, nil
}

// String writes the snapshot as Postgres does.
func (s Snapshot) String() string {
	run := make([]string, len(s.Running))
	for i, x := range s.Running {
		run[i] = strconv.FormatUint(uint64(x), 10)
	}
	return fmt.Sprintf("%d:%d:%s", s.Xmin, s.Xmax, strings.Join(run, ","))
}

// Sees reports whether the snapshot shows what transaction x did, provided that x is a top-level transaction that
// has committed. The zero Snapshot sees nothing but the zero XID.
func (s Snapshot) Sees(x XID) bool {
	switch {
	case x == 0 || x < s.Xmin:
		return true
	case x >= s.Xmax:
		return false
	}
	return !slices.Contains(s.Running, x)
}

// ParentRow is a row of a parent table that was looked up by its id.
type ParentRow struct {
	// ID is the id in the row's own text, which may differ from the text that it was found by: 1.5 and 1.50.
	ID string
	// Product is the product that the row belongs to, as the row says it.
	Product ProductID
}

// Page is a page of the products that one row concerns.
type Page struct {
	// Products are in the query's order. Rows counts what it returned, those without a product too: fewer than were asked
	// for are the last.
	Products []ProductID
	Rows     int
	// Snapshot names transactions that the query has all seen.
	Snapshot Snapshot
}

// Op is what happened to a row, as Debezium names it.
type Op byte

// The operations.
const (
	Create   Op = 'c'
	Update   Op = 'u'
	Delete   Op = 'd'
	Truncate Op = 't'
	Read     Op = 'r' // a snapshot row
)

// Column describes one column of a relation.
type Column struct {
	Name    string
	TypeOID uint32
	TypeMod int32
	// Identity says that the column belongs to the replica identity.
	Identity bool
	// Form says how values are written as JSON. It is looked up for types that do not come with Postgres.
	Form Form
}

// Relation is a table as the stream describes it at one moment; it is never changed after it was made, so that a
// pointer to it is the identity of one shape of the table.
type Relation struct {
	OID          uint32
	Schema, Name string
	// ReplicaIdentity is 'd', 'n', 'f' or 'i' as in pg_class.relreplident.
	ReplicaIdentity byte
	// Mixed says that a partition of the table has a smaller identity than this, so that a NULL in an old row may stand
	// for what was not written. Such values are Missing.
	Mixed   bool
	Columns []Column
	// PrimaryKey lists the columns of the primary key in key order; empty when the table has none.
	PrimaryKey []string

	plan atomic.Pointer[plan] // made with the first row
}

// Table is "schema.name", the form of the configuration.
func (r *Relation) Table() string { return r.Schema + "." + r.Name }

// Index returns the place of a column, or -1.
func (r *Relation) Index(column string) int {
	for i := range r.Columns {
		if r.Columns[i].Name == column {
			return i
		}
	}
	return -1
}

// Kind says what a Value is.
type Kind byte

// The kinds. Missing is the zero value: the column was not sent (not part of the old row's identity).
const (
	Missing   Kind = 0
	Null      Kind = 'n'
	Text      Kind = 't'
	Unchanged Kind = 'u' // a TOASTed value that was not changed and so not sent
	Wide      Kind = 'w' // a value that was sent and is too large to be kept; whether it was changed is not known
)

// Value is one column of a row: the text form that Postgres gives it under DateStyle ISO, IntervalStyle postgres,
// TimeZone UTC, extra_float_digits 3. Data is valid only as long as the row's owner says.
type Value struct {
	Kind Kind
	Data []byte
}

// Tuple is a row, parallel to the columns of its relation. A nil Tuple is an absent row.
type Tuple []Value

// Change is one row change of a committed transaction, or one row of a snapshot chunk.
type Change struct {
	Op       Op
	Relation *Relation
	// Before is the old row, or its replica identity alone (other columns Missing); nil where Postgres sent none.
	Before Tuple
	// After is the new row; nil for Delete and Truncate.
	After Tuple
	// LSN is the WAL position of the row itself. It is no identity and not monotonic across transactions.
	LSN      LSN
	Position Position
}

// Message is a logical decoding message (pg_logical_emit_message).
type Message struct {
	Transactional bool
	LSN           LSN
	Prefix        string
	Content       []byte
	// Position is set for a transactional message, which has its ordinal like a row; one that is not counted has the
	// position of the event before it.
	Position Position
}

// Transaction is what all events of one source transaction share.
type Transaction struct {
	XID XID
	// CommitLSN is the final LSN of the transaction, known at its begin.
	CommitLSN LSN
	// CommitTime has microseconds and is not monotonic in commit order.
	CommitTime time.Time
}

// EventKind says what an Event of the stream is.
type EventKind byte

// The kinds of events, in the order in which a transaction yields them.
const (
	EventBegin     EventKind = 'B' // Transaction is set
	EventChange    EventKind = 'R' // Transaction and Change are set
	EventMessage   EventKind = 'M' // Message is set; Transaction too when it is transactional
	EventCommit    EventKind = 'C' // Transaction and EndLSN are set
	EventKeepalive EventKind = 'k' // EndLSN is the server's WAL end; no transaction is open
	EventIdle      EventKind = 'i' // nothing came for a while
)

// Event is one step of the replication stream. It and all that it points to are valid until the next call of the
// stream; only Relation may be kept.
type Event struct {
	Kind        EventKind
	Transaction *Transaction
	Change      *Change
	Message     *Message
	// EndLSN of a commit is where the transaction ends: what may be acknowledged when all of it is durable. Of a
	// keepalive it is the server's WAL end, which may be acknowledged when nothing at all is outstanding.
	EndLSN LSN
}
