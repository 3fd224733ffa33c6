package torture

import (
	"context"
	"encoding/json"
	"fmt"

	driver "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// place is where a record stands in its topic.
type place struct {
	partition int32
	offset    uint64
}

// view says how a row of ClickHouse and a record of a topic are known to be the same.
type view struct {
	name, topic string
	// identity is an SQL expression, and of the same meaning for a record.
	identity string
	of       func(r *event.Record) string
}

var views = []view{
	{"changes", event.Changes, "concat(product_id, ' ', value)", func(r *event.Record) string {
		return string(r.Key) + " " + string(r.Value)
	}},
	{"outcomes", event.Outcomes, "concat(id, ' ', product_id, ' ', status)", func(r *event.Record) string {
		o := decoded[event.Outcome](r)
		return o.ID + " " + o.ProductID + " " + string(o.Status)
	}},
	{"batches", event.Batches, "concat(batch_id, ' ', type, ' ', toString(round))", func(r *event.Record) string {
		b := decoded[event.Batch](r)
		return fmt.Sprintf("%s %s %d", b.ID, b.Type, b.Round)
	}},
	{"document_versions", event.Documents, "concat(product_id, '|', shop, ' ', hash)", func(r *event.Record) string {
		return string(r.Key) + " " + decoded[event.Document](r).Hash
	}},
	{"deadletters", event.DeadLetters, "concat(key, ' ', value)", func(r *event.Record) string {
		return string(r.Key) + " " + string(r.Value)
	}},
}

// decoded reads a record's value; the zero value where it has none.
func decoded[V any](r *event.Record) (v V) {
	_ = json.Unmarshal(r.Value, &v) // what cannot be read then differs from its row
	return v
}

// compareClickHouse holds every view against its topic, by partition and offset.
func (w *world) compareClickHouse(ctx context.Context, f *findings, topics map[string][]event.Record) error {
	opts, err := driver.ParseDSN(w.clickhouseURL)
	if err != nil {
		return err
	}
	conn, err := driver.Open(opts)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for _, v := range views {
		got, err := rowsOf(ctx, f, conn, v.name, v.identity)
		if err != nil {
			return err
		}
		compareRows(f, v, got, topics[v.topic], v.topic == event.Documents)
	}
	last := map[string]event.Record{}
	for _, r := range topics[event.Documents] {
		last[string(r.Key)] = r
	}
	var current []event.Record
	for _, r := range last {
		if r.Value != nil {
			current = append(current, r)
		}
	}
	v := view{name: "documents", identity: "concat(key, ' ', hash)", of: func(r *event.Record) string {
		return string(r.Key) + " " + decoded[event.Document](r).Hash
	}}
	got, err := rowsOf(ctx, f, conn, v.name, v.identity)
	if err != nil {
		return err
	}
	compareRows(f, v, got, current, false)
	var malformed uint64
	if err := conn.QueryRow(ctx, "SELECT count() FROM malformed").Scan(&malformed); err != nil {
		return err
	}
	if malformed > 0 {
		f.add(fmt.Sprintf("ClickHouse: %d records could not be read", malformed))
	}
	return nil
}

// rowsOf reads what a view has, and reports a record that it shows twice.
func rowsOf(ctx context.Context, f *findings, conn driver.Conn, view, identity string) (map[place]string, error) {
	rows, err := conn.Query(ctx, "SELECT partition, offset, "+identity+" FROM "+view)
	if err != nil {
		return nil, fmt.Errorf("read view %s: %w", view, err)
	}
	defer func() { _ = rows.Close() }()
	got := map[place]string{}
	for rows.Next() {
		var p place
		var id string
		if err := rows.Scan(&p.partition, &p.offset, &id); err != nil {
			return nil, fmt.Errorf("read view %s: %w", view, err)
		}
		if _, twice := got[p]; twice {
			f.add(fmt.Sprintf("ClickHouse: %s shows %d/%d twice", view, p.partition, p.offset))
		}
		got[p] = id
	}
	f.count("rows of view "+view, len(got))
	return got, rows.Err()
}

// compareRows holds rows against records. Of a compacted topic older records may be gone that the rows still have.
func compareRows(f *findings, v view, got map[place]string, records []event.Record, compacted bool) {
	for _, r := range records {
		p := place{r.Partition, uint64(r.Offset)}
		id, ok := got[p]
		switch want := v.of(&r); {
		case !ok:
			f.add(fmt.Sprintf("ClickHouse: %s lacks %d/%d: %s", v.name, p.partition, p.offset, tail(want, 300)))
		case id != want:
			f.add(fmt.Sprintf("ClickHouse: %s has at %d/%d: %s, and the topic: %s", v.name, p.partition, p.offset, tail(id, 300), tail(want, 300)))
		}
		delete(got, p)
	}
	if compacted {
		return
	}
	for p, id := range got {
		f.add(fmt.Sprintf("ClickHouse: %s has %d/%d, which the topic has not: %s", v.name, p.partition, p.offset, tail(id, 300)))
	}
}
