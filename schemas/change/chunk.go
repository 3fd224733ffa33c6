package change

import (
	"time"

	"github.com/shelfwire/shelfwire/schemas/route"
)

// Selection names rows of a table: those that match Where and lead to one of Products, and all of them where neither is
// set.
type Selection struct {
	// Table is "schema.name".
	Table string
	// Where is a condition in SQL on the table's columns.
	Where string
	// Products are ids, by any of Routes that is no query.
	Products []string
	Routes   []route.Route
}

// All reports whether every row of the table is meant.
func (s *Selection) All() bool { return s.Where == "" && len(s.Products) == 0 }

// Cut is a table divided into ranges of keys, which can be read side by side.
type Cut struct {
	// Shape names columns, types and order of the keys. Keys of another shape say nothing.
	Shape string
	// Bounds are where the ranges end, each with its bound, in ascending order. Behind the last one stands another range
	// unless Closed.
	Bounds [][]string
	Closed bool
	// Rows is about how many rows are selected; never negative.
	Rows int64
	// Writers are the transactions that were writing to the table, as [Cut] of an earlier look may name them too.
	Writers []string
	// Snapshot tells which transactions have been seen.
	Snapshot Snapshot
}

// ChunkQuery asks for the next rows of a range.
type ChunkQuery struct {
	Selection
	// Shape is that of the cut which After and Upto come from; empty where they are of no cut.
	Shape string
	// The rows behind the key After, up to and with Upto; empty: from the first, to the last.
	After, Upto []string
	// Mark is written before the snapshot is taken, as a logical message with this prefix that is flushed with whatever is
	// flushed next; empty: none.
	MarkPrefix, Mark string
	// Limit is the most rows to read, at least 1. A table that is read by blocks may give as many more as one block has.
	Limit int
}

// Chunk is a run of rows of one table in primary key order, as one snapshot saw them. It crosses from the connector
// that reads it to the stage that merges it with the stream, which is why it stands here.
type Chunk struct {
	Relation *Relation
	// Shape is that of the table now. Where it is not the query's, the table must be cut anew, and nothing was read.
	Shape string
	// Rows hold the values in the text form of the stream, byte for byte. The receiver owns them.
	Rows []Tuple
	// LastKey is what to go on from: the primary key of the last row in its text form, or the number of the next block;
	// what the read was given where there is no row.
	LastKey []string
	// Done says that no row of the range stood behind the last one.
	Done bool
	// Snapshot says which transactions the rows contain.
	Snapshot Snapshot
	// ReadAt is when the snapshot was taken, by the database's clock.
	ReadAt time.Time
}
