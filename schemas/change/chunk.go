package change

import "time"

// Chunk is a run of rows of one table in primary key order, as one snapshot saw them. It crosses from the connector
// that reads it to the stage that merges it with the stream, which is why it stands here.
type Chunk struct {
	Relation *Relation
	// Rows hold the values in the text form of the stream, byte for byte. The receiver owns them.
	Rows []Tuple
	// LastKey is the primary key of the last row in its text form, for the next chunk; what the read was given where
	// there is no row.
	LastKey []string
	// Done says that no row stood behind the last one.
	Done bool
	// Snapshot says which transactions the rows contain.
	Snapshot Snapshot
	// ReadAt is when the snapshot was taken, by the database's clock.
	ReadAt time.Time
}
