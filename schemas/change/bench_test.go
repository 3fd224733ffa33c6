package change

import (
	"testing"
	"time"
)

// benchmarkRow is a row of eight columns and about 200 bytes, as a table of products has.
func benchmarkRow() (*Relation, Tuple) {
	rel := &Relation{
		OID: 1, Schema: "public", Name: "products", ReplicaIdentity: 'd', PrimaryKey: []string{"id"},
		Columns: []Column{
			{Name: "id", TypeOID: 20, TypeMod: -1, Identity: true},
			{Name: "shop", TypeOID: 23, TypeMod: -1},
			{Name: "handle", TypeOID: 25, TypeMod: -1},
			{Name: "title", TypeOID: 25, TypeMod: -1},
			{Name: "price", TypeOID: 1700, TypeMod: 786438},
			{Name: "n", TypeOID: 23, TypeMod: -1},
			{Name: "at", TypeOID: 1184, TypeMod: -1},
			{Name: "body", TypeOID: 25, TypeMod: -1},
		},
	}
	return rel, Tuple{
		text("1234567"), text("12"), text("handle-1234567"), text("A title of a product 1234567"), text("12.50"), text("42"),
		text("2026-11-21 13:14:15.123456+00"),
		text("body body body body body body body body body body body body body body body body body body body body body body"),
	}
}

func BenchmarkAppendEnvelope(b *testing.B) {
	rel, row := benchmarkRow()
	at := time.UnixMicro(1795249358462477)
	tx := Transaction{XID: 1221947, CommitLSN: 4060361500, CommitTime: at}
	e := Envelope{Version: "1.0", Name: "catalog", Database: "shop", Transaction: &tx, LastCommit: 4060361000, TableOrdinal: 3, At: at}
	for _, bench := range []struct {
		name string
		c    Change
	}{
		{"create", Change{Op: Create, Relation: rel, After: row}},
		{"update_full", Change{Op: Update, Relation: rel, Before: row, After: row}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c := bench.c
			c.LSN, c.Position = 4060361056, Position{CommitLSN: 4060361500, Ordinal: 7}
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				c.Position.Ordinal++
				c.LSN += 120
				buf = AppendEnvelope(buf[:0], &c, &e)
			}
			b.SetBytes(int64(len(buf)))
		})
	}
}
