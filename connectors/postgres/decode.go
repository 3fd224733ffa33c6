package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// The messages of pgoutput, protocol 1 (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html).
const (
	msgBegin    = 'B'
	msgCommit   = 'C'
	msgOrigin   = 'O'
	msgRelation = 'R'
	msgType     = 'Y'
	msgInsert   = 'I'
	msgUpdate   = 'U'
	msgDelete   = 'D'
	msgTruncate = 'T'
	msgMessage  = 'M'
)

// message is one decoded pgoutput message. Which fields are set depends on kind.
type message struct {
	kind byte
	lsn  change.LSN // begin: final LSN; commit: end LSN; message: its own
	at   time.Time  // begin: commit time
	xid  uint32     // begin
	// relation is the described one (R) or the row's (I, U, D).
	relation      *change.Relation
	before, after change.Tuple
	truncated     []*change.Relation
	transactional bool
	prefix        string
	content       []byte
}

// decoder turns pgoutput messages into values that point into the message. It does no I/O, keeps the relations that
// the stream has described, and reuses its tuples: what it returns is valid until the next call and as long as the
// message's bytes are. Any input is answered by a message or an error; memory stays within a small multiple of the
// input's length.
type decoder struct {
	relations     map[uint32]*change.Relation
	before, after change.Tuple
	truncated     []*change.Relation
}

func newDecoder() *decoder { return &decoder{relations: map[uint32]*change.Relation{}} }

// decode reads one message into m, which is overwritten.
func (d *decoder) decode(b []byte, m *message) error {
	if len(b) == 0 {
		return errors.New("decode: empty message")
	}
	*m = message{kind: b[0]}
	r := reader{b: b[1:]}
	var name string
	var err error
	switch b[0] {
	case msgBegin:
		name = "begin"
		m.lsn, m.at, m.xid = r.lsn(), r.time(), r.uint32()
	case msgCommit:
		name = "commit"
		_, _ = r.byte(), r.lsn() // flags, unused; commit LSN, known since the begin
		m.lsn, m.at = r.lsn(), r.time()
	case msgRelation:
		name = "relation"
		m.relation, err = r.relation()
		if err == nil && r.err == nil {
			d.relations[m.relation.OID] = m.relation
		}
	case msgInsert:
		name = "insert"
		err = d.insert(&r, m)
	case msgUpdate:
		name = "update"
		err = d.update(&r, m)
	case msgDelete:
		name = "delete"
		err = d.delete(&r, m)
	case msgTruncate:
		name = "truncate"
		err = d.truncate(&r, m)
	case msgMessage:
		name = "message"
		m.transactional = r.byte()&1 != 0
		m.lsn, m.prefix = r.lsn(), r.string()
		m.content = r.bytes(int(r.uint32()))
	case msgOrigin, msgType:
		return nil // origins are not routed; values are text, so types need no description
	default:
		return fmt.Errorf("decode: unknown message %q", b[0])
	}
	if err == nil {
		err = r.err
	}
	if err == nil && len(r.b) > 0 {
		err = fmt.Errorf("%d bytes too many", len(r.b))
	}
	if err != nil {
		return fmt.Errorf("decode %s: %w", name, err)
	}
	return nil
}

func (d *decoder) insert(r *reader, m *message) (err error) {
	if m.relation, err = d.relation(r); err != nil {
		return err
	}
	if t := r.byte(); t != 'N' && r.err == nil {
		return fmt.Errorf("table %s: want the new row, got %q", m.relation.Table(), t)
	}
	m.after, err = d.tuple(r, m.relation, &d.after)
	return err
}

func (d *decoder) update(r *reader, m *message) (err error) {
	if m.relation, err = d.relation(r); err != nil {
		return err
	}
	t := r.byte()
	if t == 'K' || t == 'O' {
		if m.before, err = d.old(r, m.relation, t); err != nil {
			return err
		}
		t = r.byte()
	}
	if t != 'N' && r.err == nil {
		return fmt.Errorf("table %s: want the new row, got %q", m.relation.Table(), t)
	}
	if m.after, err = d.tuple(r, m.relation, &d.after); err != nil {
		return err
	}
	// A TOASTed value that did not change is not in the new row; where the old one carries it, it is known all the same.
	for i := range m.before {
		if old := m.before[i].Kind; m.after[i].Kind == change.Unchanged && (old == change.Text || old == change.Null) {
			m.after[i] = m.before[i]
		}
	}
	return nil
}

func (d *decoder) delete(r *reader, m *message) (err error) {
	if m.relation, err = d.relation(r); err != nil {
		return err
	}
	t := r.byte()
	if t != 'K' && t != 'O' && r.err == nil {
		return fmt.Errorf("table %s: want the old row, got %q", m.relation.Table(), t)
	}
	m.before, err = d.old(r, m.relation, t)
	return err
}

// old reads an old row. Of one that is only the key, Postgres sends the other columns as NULL, which they are not. Which
// columns these are the description need not say: it is of the root of a partitioned table, and the row was written by a
// partition with an identity of its own. A key has no NULL in it.
func (d *decoder) old(r *reader, rel *change.Relation, kind byte) (change.Tuple, error) {
	t, err := d.tuple(r, rel, &d.before)
	if err != nil || kind == 'O' && !rel.Mixed {
		return t, err
	}
	for i := range t {
		if t[i].Kind == change.Null || kind == 'K' && !rel.Columns[i].Identity {
			t[i] = change.Value{}
		}
	}
	return t, nil
}

func (d *decoder) truncate(r *reader, m *message) error {
	n := int(r.uint32())
	_ = r.byte() // CASCADE and RESTART IDENTITY change nothing for the tables that are named
	if r.err == nil && n*4 > len(r.b) {
		return fmt.Errorf("%d tables in %d bytes", n, len(r.b))
	}
	d.truncated = d.truncated[:0]
	for range n {
		rel, err := d.relation(r)
		if err != nil {
			return err
		}
		d.truncated = append(d.truncated, rel)
	}
	m.truncated = d.truncated
	return nil
}

func (d *decoder) relation(r *reader) (*change.Relation, error) {
	oid := r.uint32()
	if r.err != nil {
		return nil, r.err
	}
	rel := d.relations[oid]
	if rel == nil {
		return nil, fmt.Errorf("table with OID %d has not been described", oid)
	}
	return rel, nil
}

// tuple reads a row into the scratch tuple that into points to.
func (d *decoder) tuple(r *reader, rel *change.Relation, into *change.Tuple) (change.Tuple, error) {
	n := int(r.uint16())
	if r.err != nil {
		return nil, r.err
	}
	if n != len(rel.Columns) {
		return nil, fmt.Errorf("table %s: row of %d columns, described with %d", rel.Table(), n, len(rel.Columns))
	}
	if cap(*into) < n {
		*into = make(change.Tuple, n)
	}
	t := (*into)[:n]
	for i := range t {
		switch k := r.byte(); k {
		case 'n':
			t[i] = change.Value{Kind: change.Null}
		case 'u':
			t[i] = change.Value{Kind: change.Unchanged}
		case wideKind:
			t[i] = change.Value{Kind: change.Wide}
		case 't':
			t[i] = change.Value{Kind: change.Text, Data: r.bytes(int(r.uint32()))}
		default:
			if r.err == nil {
				return nil, fmt.Errorf("table %s: column %s: unknown kind %q", rel.Table(), rel.Columns[i].Name, k)
			}
		}
		if r.err != nil {
			return nil, fmt.Errorf("table %s: column %s: %w", rel.Table(), rel.Columns[i].Name, r.err)
		}
	}
	return t, nil
}

// reader takes fields off the front of a message. After the first that is not there, err is set and all are zero.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("message is cut short")

func (r *reader) bytes(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.fail()
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) fail() {
	r.b = nil
	if r.err == nil {
		r.err = errShort
	}
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) lsn() change.LSN { return change.LSN(r.uint64()) }

func (r *reader) time() time.Time { return fromPostgresTime(int64(r.uint64())) }

func (r *reader) string() string {
	i := bytes.IndexByte(r.b, 0)
	if i < 0 {
		r.fail()
		return ""
	}
	s := string(r.b[:i])
	r.b = r.b[i+1:]
	return s
}

// relation reads a description. The primary key is not part of it.
func (r *reader) relation() (*change.Relation, error) {
	rel := &change.Relation{OID: r.uint32(), Schema: r.string(), Name: r.string(), ReplicaIdentity: r.byte()}
	if rel.Schema == "" {
		rel.Schema = "pg_catalog" // as the protocol abbreviates it
	}
	n := int(r.uint16())
	if r.err != nil {
		return nil, r.err
	}
	const least = 1 + 1 + 4 + 4 // flags, the end of an empty name, type, modifier
	if n*least > len(r.b) {
		return nil, fmt.Errorf("%d columns in %d bytes", n, len(r.b))
	}
	rel.Columns = make([]change.Column, n)
	for i := range rel.Columns {
		rel.Columns[i] = change.Column{Identity: r.byte()&1 != 0, Name: r.string(), TypeOID: r.uint32(), TypeMod: int32(r.uint32())}
	}
	return rel, r.err
}

// postgresEpoch is where Postgres counts microseconds from, in microseconds since 1970.
const postgresEpoch = 946684800_000_000

func fromPostgresTime(us int64) time.Time { return time.UnixMicro(us + postgresEpoch).UTC() }

func toPostgresTime(t time.Time) int64 { return t.UnixMicro() - postgresEpoch }
