package change

import (
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Unavailable stands in a record for a value that Postgres did not send because it is TOASTed and was not changed.
const Unavailable = "__debezium_unavailable_value"

// Envelope is what the envelope of a change says beside the change itself.
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
}

// AppendEnvelope appends the change as JSON, as the Debezium Postgres connector writes it with schemas off,
// decimal.handling.mode=string, time.precision.mode=isostring and interval.handling.mode=string. Field order is
// Debezium's too.
//
// Values: booleans, integers, oid and floats are JSON numbers and booleans (NaN and infinities strings), numeric and
// money strings, dates and times ISO 8601 in UTC, bytea and bit(n) base64, bit(1) a boolean, arrays JSON arrays, and
// everything else a string of Postgres' text: json, uuid, ranges, enums, domains, composites, hstore, geometric
// and unknown types. No column is dropped.
//
// Where the connector loses or invents, this does not:
//   - an old row that is only a key has the key's columns; the connector fills the others with null or a default;
//   - infinity and -infinity of date and timestamp are these words; the connector gives the year 292278994;
//   - an array with NaN or of several dimensions is itself, nested; the connector gives null or a Java address. One
//     whose indexes do not begin at 1 is Postgres' text, as its bounds would be lost;
//   - time 24:00:00 is not 00:00:00, a timetz offset with seconds is not null, name is not null, numeric(5,-2) does
//     not get 2046 decimals, NULL in a column with a default stays null;
//   - varbit is text, as base64 would lose its length;
//   - hstore, geometric types, arrays of enums and domains, and domains over numbers are text so far, and not the
//     connector's structures. Text can be read back without loss.
func AppendEnvelope(dst []byte, c *Change, e *Envelope) []byte {
	dst = append(dst, `{"before":`...)
	dst = appendRow(dst, c.Relation, c.Before)
	dst = append(dst, `,"after":`...)
	dst = appendRow(dst, c.Relation, c.After)
	dst = appendSource(dst, c, e)
	if e.Transaction == nil || e.TableOrdinal == 0 {
		dst = append(dst, `,"transaction":null`...)
	} else {
		// One id for all events of a transaction, where the connector has another one for each.
		dst = append(dst, `,"transaction":{"id":"`...)
		dst = strconv.AppendUint(dst, uint64(e.Transaction.XID), 10)
		dst = append(dst, ':')
		dst = strconv.AppendUint(dst, uint64(e.Transaction.CommitLSN), 10)
		dst = append(dst, `","total_order":`...)
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

func appendSource(dst []byte, c *Change, e *Envelope) []byte {
	at := e.ReadAt
	if e.Transaction != nil {
		at = e.Transaction.CommitTime
	}
	dst = append(dst, `,"source":{"version":`...)
	dst = appendString(dst, e.Version)
	dst = append(dst, `,"connector":"postgresql","name":`...)
	dst = appendString(dst, e.Name)
	dst = append(dst, `,"ts_ms":`...)
	dst = strconv.AppendInt(dst, at.UnixMilli(), 10)
	if c.Op == Read {
		dst = append(dst, `,"snapshot":"incremental","db":`...)
	} else {
		dst = append(dst, `,"snapshot":"false","db":`...)
	}
	dst = appendString(dst, e.Database)
	dst = append(dst, `,"sequence":"[`...)
	if e.LastCommit == 0 {
		dst = append(dst, `null`...)
	} else {
		dst = append(dst, `\"`...)
		dst = strconv.AppendUint(dst, uint64(e.LastCommit), 10)
		dst = append(dst, `\"`...)
	}
	dst = append(dst, `,\"`...)
	dst = strconv.AppendUint(dst, uint64(c.LSN), 10)
	dst = append(dst, `\"]","ts_us":`...)
	dst = strconv.AppendInt(dst, at.UnixMicro(), 10)
	dst = append(dst, `,"ts_ns":`...)
	dst = strconv.AppendInt(dst, at.UnixMicro(), 10)
	dst = append(dst, `000,"schema":`...)
	dst = appendString(dst, c.Relation.Schema)
	dst = append(dst, `,"table":`...)
	dst = appendString(dst, c.Relation.Name)
	dst = append(dst, `,"txId":`...)
	if e.Transaction == nil {
		dst = append(dst, "null"...)
	} else {
		dst = strconv.AppendUint(dst, uint64(e.Transaction.XID), 10)
	}
	dst = append(dst, `,"lsn":`...)
	dst = strconv.AppendUint(dst, uint64(c.LSN), 10)
	return append(dst, `,"xmin":null,"origin":null,"origin_lsn":null}`...)
}

func appendClock(dst []byte, at time.Time) []byte {
	dst = append(dst, `,"ts_ms":`...)
	dst = strconv.AppendInt(dst, at.UnixMilli(), 10)
	dst = append(dst, `,"ts_us":`...)
	dst = strconv.AppendInt(dst, at.UnixMicro(), 10)
	dst = append(dst, `,"ts_ns":`...)
	return strconv.AppendInt(dst, at.UnixNano(), 10)
}

// appendRow appends a row as an object; what was not sent is left out, and an absent row is null.
func appendRow(dst []byte, rel *Relation, t Tuple) []byte {
	if t == nil {
		return append(dst, "null"...)
	}
	dst = append(dst, '{')
	first := true
	for i := range t {
		if t[i].Kind == Missing {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = appendString(dst, rel.Columns[i].Name)
		dst = append(dst, ':')
		dst = appendValue(dst, &rel.Columns[i], t[i])
	}
	return append(dst, '}')
}

func appendValue(dst []byte, c *Column, v Value) []byte {
	switch {
	case v.Kind == Null:
		return append(dst, "null"...)
	case v.Kind == Unchanged && c.TypeOID == oidBytea:
		return appendBase64(dst, []byte(Unavailable))
	case v.Kind == Unchanged && element(c.TypeOID) == oidBytea:
		return append(appendBase64(append(dst, '['), []byte(Unavailable)), ']')
	case v.Kind == Unchanged && element(c.TypeOID) != 0:
		return append(dst, `["`+Unavailable+`"]`...)
	case v.Kind == Unchanged:
		return append(dst, `"`+Unavailable+`"`...)
	case len(v.Data) == 0: // only text types have an empty form
		return append(dst, `""`...)
	}
	return appendText(dst, c.TypeOID, c.TypeMod, v.Data)
}

// AppendKey appends the primary key of a row as a JSON object in key order, with values as in the envelope. It
// reports false, and leaves dst as it is, where the table has no primary key or the row does not carry all of it (the
// old row under a replica identity that is another index).
func AppendKey(dst []byte, rel *Relation, t Tuple) ([]byte, bool) {
	at := len(dst)
	for i, name := range rel.PrimaryKey {
		n := rel.Index(name)
		if n < 0 || n >= len(t) || t[n].Kind != Text {
			return dst[:at], false
		}
		if i == 0 {
			dst = append(dst, '{')
		} else {
			dst = append(dst, ',')
		}
		dst = appendString(dst, name)
		dst = append(dst, ':')
		dst = appendValue(dst, &rel.Columns[n], t[n])
	}
	if len(dst) == at {
		return dst, false
	}
	return append(dst, '}'), true
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

const hexDigits = "0123456789ABCDEF"

// appendString appends a JSON string. What JSON demands is escaped, and characters beyond U+FFFF as surrogates, as
// the connector does: keys must be the same bytes, or they fall into other partitions. Bytes that are not UTF-8, which
// a database with SQL_ASCII can hold, become U+FFFD.
func appendString[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf:
			i++
			continue
		case c >= utf8.RuneSelf:
			r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			if n > 1 && r <= 0xFFFF {
				i += n
				continue
			}
			dst = append(dst, s[start:i]...)
			if n == 1 {
				dst = append(dst, "\uFFFD"...)
				break
			}
			hi, lo := utf16.EncodeRune(r)
			dst = appendUnicode(appendUnicode(dst, hi), lo)
			i += n - 1
		default:
			dst = append(dst, s[start:i]...)
			dst = appendEscape(dst, c)
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	}
	return appendUnicode(dst, rune(c))
}

func appendUnicode(dst []byte, r rune) []byte {
	return append(dst, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
}
