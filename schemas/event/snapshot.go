package event

import (
	"maps"
	"slices"
	"time"
)

// SnapshotRequest asks for a snapshot while the stream runs. It is the content of the logical message shelfwire.snapshot.
// One of All, Table and Products must be set.
type SnapshotRequest struct {
	// ID is whatever the one who asks wants to find it by; the batch is named so.
	ID string `json:"id,omitempty"`
	// All asks for every routed table.
	All bool `json:"all,omitempty"`
	// Table is "schema.name"; empty with Products: every table whose rows lead to one product.
	Table string `json:"table,omitempty"`
	// Where is a condition in SQL on the columns of Table.
	Where string `json:"where,omitempty"`
	// Products are ids: only rows that lead to them.
	Products []string `json:"products,omitempty"`
	// Admin names the person behind it.
	Admin string `json:"admin,omitempty"`
}

// SnapshotProgress is the place of one snapshot. What its tables do not list any more is in Kafka.
type SnapshotProgress struct {
	// ID is that of its batch.
	ID string `json:"id"`
	// Request is what asked for it; nil for one that Capture began by itself, of tables that had none.
	Request *SnapshotRequest `json:"request,omitempty"`
	Tables  []SnapshotTable  `json:"tables"`
	// Rows have been read. Estimate is about how many there are, in the tables that have been looked at so far.
	Rows     int64     `json:"rows"`
	Estimate int64     `json:"estimate"`
	Began    time.Time `json:"began"`
	// Changes holds, by partition of catalog.changes, the offset of the last record.
	Changes map[int32]int64 `json:"changes,omitempty"`
	// Fanouts would be empty: a snapshot row of a query route touches nothing, as the rows of the product tables
	// themselves touch every product.
}

// SnapshotTable is a table that is not complete.
type SnapshotTable struct {
	// Number tells it from others of the snapshot: a table may stand there twice.
	Number int    `json:"number"`
	Table  string `json:"table"`
	// Shape names what the keys of the ranges are. Empty: the table has not been divided yet.
	Shape  string          `json:"shape,omitempty"`
	Ranges []SnapshotRange `json:"ranges,omitempty"`
}

// SnapshotRange is a part of a table: the rows behind the key After, up to and with Upto. An empty key is the beginning,
// or the end.
type SnapshotRange struct {
	After []string `json:"after,omitempty"`
	Upto  []string `json:"upto,omitempty"`
	Done  bool     `json:"done,omitempty"`
}

// Clone copies what changes as the snapshot goes on. Keys are never changed in place.
func (p SnapshotProgress) Clone() SnapshotProgress {
	p.Changes = maps.Clone(p.Changes)
	p.Tables = slices.Clone(p.Tables)
	for i := range p.Tables {
		p.Tables[i].Ranges = slices.Clone(p.Tables[i].Ranges)
	}
	return p
}

// SnapshotEnd is what became of a snapshot.
type SnapshotEnd struct {
	ID string `json:"id"`
	// Request is the ID of the one who asked.
	Request string `json:"request,omitempty"`
	Rows    int64  `json:"rows"`
	// Refused says why it was not finished; empty when it was.
	Refused string `json:"refused,omitempty"`
}
