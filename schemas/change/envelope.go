package change

import (
	"strconv"
	"time"
)

// Unavailable stands in a record for a value that Postgres did not send because it is TOASTed and was not changed.
const Unavailable = "__debezium_unavailable_value"

// Envelope is what the envelope of a change says beside the change itself. One goroutine uses it; kept from row to row,
// it remembers what the rows of a transaction have in common.
type Envelope struct {
	// Version is the version of the program. Name is the logical name of the source, the prefix of its mirror topics.
	Version, Name string
	Database      string
	// Transaction is nil for a snapshot row.
	Transaction *Transaction
	// LastCommit is the EndLSN of the transaction before; zero when none has been seen.
	LastCommit LSN
	// TableOrdinal counts the changes of the row's table within its transaction, from 1. Zero leaves the transaction
	// block null.
	TableOrdinal uint64
	// At is now, by the program's clock. ReadAt is when a snapshot row was read, by the database's.
	At, ReadAt time.Time
	// UTC moves timetz to UTC, as the connector does, which loses the offset. For the mirror; ours keeps it.
	UTC bool

	shared shared
}

// shared holds the parts of the source block that are the same for all rows of a transaction.
type shared struct {
	key shareKey
	// head goes to the LSN of the row, middle from there to the table, tail to the second LSN, block to the ordinal.
	head, middle, tail, block []byte
}

type shareKey struct {
	version, name, database string
	tx                      Transaction
	last                    LSN
	readAt                  time.Time
	snapshot, made          bool
}

// AppendEnvelope appends the change as JSON, as the Debezium Postgres connector writes it with schemas off,
// decimal.handling.mode=string, time.precision.mode=isostring and interval.handling.mode=string. Field order is
// Debezium's too.
//
// Values: booleans, integers, oid and floats are JSON numbers and booleans (NaN and infinities strings), numeric and
// money strings, dates and times ISO 8601 in UTC, bytea and bit(n) base64, bit(1) a boolean, arrays JSON arrays,
// geometric types objects with their coordinates as WKB, hstore a string of a JSON object, a domain what it is over,
// and everything else a string of Postgres' text: json, uuid, ranges, enums, composites and unknown types. No column
// is dropped.
//
// Each form can be read back without loss but the text of a money amount, which loses its currency sign where that is a
// dollar's, as it does there. A timetz keeps its offset, "13:14:15+02:00", unless e.UTC asks for the connector's form.
//
// Where the connector loses or invents, this does not:
//   - an old row that is only a key has the key's columns; the connector fills the others with null or a default;
//   - infinity and -infinity of date and timestamp are these words; the connector gives the year 292278994;
//   - an array with NaN or NULL or of several dimensions is itself, nested; the connector gives null or a Java address.
//     One whose indexes do not begin at 1 is Postgres' text, as its bounds would be lost;
//   - time 24:00:00 is not 00:00:00, a timetz offset with seconds is not null, name is not null, numeric(5,-2) does
//     not get 2046 decimals, NULL in a column with a default stays null;
//   - varbit is text, as base64 would lose its length;
//   - composites, multiranges, pg_lsn, xid and arrays of them are text; the connector leaves the column out;
//   - bytes that are not UTF-8 are lone surrogates and can be had back; there they are all U+FFFD.
func AppendEnvelope(dst []byte, c *Change, e *Envelope) []byte {
	p := c.Relation.planned()
	s := e.share(c.Op == Read)
	dst = append(dst, `{"before":`...)
	columns := p.written(e.UTC)
	dst = appendRow(dst, columns, c.Before)
	dst = append(dst, `,"after":`...)
	dst = appendRow(dst, columns, c.After)
	var digits [20]byte
	lsn := strconv.AppendUint(digits[:0], uint64(c.LSN), 10)
	dst = append(dst, s.head...)
	dst = append(dst, lsn...)
	dst = append(dst, s.middle...)
	dst = append(dst, p.table...)
	dst = append(dst, s.tail...)
	dst = append(dst, lsn...)
	dst = append(dst, `,"xmin":null,"origin":null,"origin_lsn":null}`...)
	if e.Transaction == nil || e.TableOrdinal == 0 {
		dst = append(dst, `,"transaction":null`...)
	} else {
		dst = append(dst, s.block...)
		dst = strconv.AppendUint(dst, c.Position.Ordinal, 10)
		dst = append(dst, `,"data_collection_order":`...)
		dst = strconv.AppendUint(dst, e.TableOrdinal, 10)
		dst = append(dst, '}')
	}
	dst = append(dst, `,"op":"`...)
	dst = append(dst, byte(c.Op), '"')
	dst = appendClock(dst, e.At)
	return append(dst, '}')
}

// share returns the parts for the open transaction.
func (e *Envelope) share(snapshot bool) *shared {
	s := &e.shared
	k := &s.key
	switch {
	case !k.made || k.snapshot != snapshot || k.last != e.LastCommit || k.version != e.Version || k.name != e.Name || k.database != e.Database:
	case e.Transaction != nil && k.tx == *e.Transaction:
		return s
	case e.Transaction == nil && k.tx == (Transaction{}) && k.readAt.Equal(e.ReadAt):
		return s
	}
	*k = shareKey{version: e.Version, name: e.Name, database: e.Database, last: e.LastCommit, snapshot: snapshot, made: true}
	at := e.ReadAt
	if e.Transaction != nil {
		k.tx, at = *e.Transaction, e.Transaction.CommitTime
	} else {
		k.readAt = e.ReadAt
	}
	s.head = e.appendHead(s.head[:0], at, snapshot)
	s.middle = append(s.middle[:0], `\"]","ts_us":`...)
	s.middle = strconv.AppendInt(s.middle, at.UnixMicro(), 10)
	s.middle = append(s.middle, `,"ts_ns":`...)
	s.middle = strconv.AppendInt(s.middle, at.UnixMicro(), 10)
	s.middle = append(s.middle, `000,`...)
	s.tail, s.block = s.tail[:0], s.block[:0]
	if e.Transaction == nil {
		s.tail = append(s.tail, "null"...)
	} else {
		s.tail = strconv.AppendUint(s.tail, uint64(k.tx.XID), 10)
		// One id for all events of a transaction, where the connector has another one for each.
		s.block = append(s.block, `,"transaction":{"id":"`...)
		s.block = strconv.AppendUint(s.block, uint64(k.tx.XID), 10)
		s.block = append(s.block, ':')
		s.block = strconv.AppendUint(s.block, uint64(k.tx.CommitLSN), 10)
		s.block = append(s.block, `","total_order":`...)
	}
	s.tail = append(s.tail, `,"lsn":`...)
	return s
}

func (e *Envelope) appendHead(dst []byte, at time.Time, snapshot bool) []byte {
	dst = append(dst, `,"source":{"version":`...)
	dst = appendString(dst, []byte(e.Version))
	dst = append(dst, `,"connector":"postgresql","name":`...)
	dst = appendString(dst, []byte(e.Name))
	dst = append(dst, `,"ts_ms":`...)
	dst = strconv.AppendInt(dst, at.UnixMilli(), 10)
	if snapshot {
		dst = append(dst, `,"snapshot":"incremental","db":`...)
	} else {
		dst = append(dst, `,"snapshot":"false","db":`...)
	}
	dst = appendString(dst, []byte(e.Database))
	dst = append(dst, `,"sequence":"[`...)
	if e.LastCommit == 0 {
		dst = append(dst, `null`...)
	} else {
		dst = append(dst, `\"`...)
		dst = strconv.AppendUint(dst, uint64(e.LastCommit), 10)
		dst = append(dst, `\"`...)
	}
	return append(dst, `,\"`...)
}

// appendClock appends a time in three units. Nanoseconds have their digits in common with the others.
func appendClock(dst []byte, at time.Time) []byte {
	var digits [20]byte
	ns := strconv.AppendInt(digits[:0], at.UnixNano(), 10)
	ms, us := len(ns)-6, len(ns)-3
	if ms < 1 || ns[0] == '-' { // the first milliseconds of 1970, and what was before them
		dst = append(dst, `,"ts_ms":`...)
		dst = strconv.AppendInt(dst, at.UnixMilli(), 10)
		dst = append(dst, `,"ts_us":`...)
		dst = strconv.AppendInt(dst, at.UnixMicro(), 10)
	} else {
		dst = append(dst, `,"ts_ms":`...)
		dst = append(dst, ns[:ms]...)
		dst = append(dst, `,"ts_us":`...)
		dst = append(dst, ns[:us]...)
	}
	dst = append(dst, `,"ts_ns":`...)
	return append(dst, ns...)
}

// appendRow appends a row as an object; what was not sent is left out, and an absent row is null.
func appendRow(dst []byte, columns []columnPlan, t Tuple) []byte {
	if t == nil {
		return append(dst, "null"...)
	}
	at := len(dst)
	dst = append(dst, '{')
	for i := range t {
		if t[i].Kind == Missing {
			continue
		}
		c := &columns[i]
		if len(dst) == at+1 {
			dst = append(dst, c.name[1:]...)
		} else {
			dst = append(dst, c.name...)
		}
		dst = c.appendValue(dst, t[i])
	}
	return append(dst, '}')
}

func (c *columnPlan) appendValue(dst []byte, v Value) []byte {
	switch v.Kind {
	case Null:
		return append(dst, "null"...)
	case Unchanged, Wide:
		return append(dst, c.unchanged...)
	default:
		return appendText(dst, c.form, v.Data)
	}
}

// AppendKey appends the primary key of a row as a JSON object in key order, with values as in the envelope. It
// reports false, and leaves dst as it is, where the table has no primary key or the row does not carry all of it (the
// old row under a replica identity that is another index).
func AppendKey(dst []byte, rel *Relation, t Tuple) ([]byte, bool) {
	p := rel.planned()
	return appendKey(dst, p.columns, p.key, t)
}

// AppendMessageKey is AppendKey for the record's key in a mirror topic. It is the primary key, unless the replica
// identity is an index without it: then old rows do not have the primary key, and records are keyed by the columns of
// that index, in column order, which each of them has. So it is too where there is an index but no primary key.
func AppendMessageKey(dst []byte, rel *Relation, t Tuple) ([]byte, bool) {
	p := rel.planned()
	return appendKey(dst, p.written(true), p.message, t)
}

func appendKey(dst []byte, columns []columnPlan, key []int, t Tuple) ([]byte, bool) {
	at := len(dst)
	for _, n := range key {
		if n >= len(t) || t[n].Kind != Text {
			return dst[:at], false
		}
		c := &columns[n]
		if len(dst) == at {
			dst = append(append(dst, '{'), c.name[1:]...)
		} else {
			dst = append(dst, c.name...)
		}
		dst = c.appendValue(dst, t[n])
	}
	if len(dst) == at {
		return dst, false
	}
	return append(dst, '}'), true
}

// AppendMessage appends a logical message as the connector has it in the topic of messages. The envelope's Transaction
// is nil for one that is not transactional.
func AppendMessage(dst []byte, m *Message, e *Envelope) []byte {
	s := e.share(false)
	dst = append(dst, `{"op":"m","ts_ms":`...)
	dst = strconv.AppendInt(dst, e.At.UnixMilli(), 10)
	dst = append(dst, s.head...)
	dst = strconv.AppendUint(dst, uint64(m.LSN), 10)
	dst = append(dst, s.middle...)
	dst = append(dst, `"schema":"","table":"","txId":`...)
	dst = append(dst, s.tail...)
	dst = strconv.AppendUint(dst, uint64(m.LSN), 10)
	dst = append(dst, `,"xmin":null,"origin":null,"origin_lsn":null},"transaction":null,"message":{"prefix":`...)
	dst = appendString(dst, []byte(m.Prefix))
	dst = append(dst, `,"content":`...)
	dst = appendBase64(dst, m.Content)
	return append(dst, '}', '}')
}

// AppendMessagePrefix appends the key of a logical message's record.
func AppendMessagePrefix(dst []byte, m *Message) []byte {
	return append(appendString(append(dst, `{"prefix":`...), []byte(m.Prefix)), '}')
}

// Image is a row as an object of texts, for queries that get it as jsonb: nil stands for NULL, and a column that was
// not sent, or not changed, is not in it. An absent row has a nil image. The texts are copies.
func Image(rel *Relation, t Tuple) map[string]*string {
	if t == nil {
		return nil
	}
	m := make(map[string]*string, len(t))
	for i := range t {
		switch t[i].Kind {
		case Null:
			m[rel.Columns[i].Name] = nil
		case Text:
			s := string(t[i].Data)
			m[rel.Columns[i].Name] = &s
		default: // not known, so not there
		}
	}
	return m
}
