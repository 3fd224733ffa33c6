package pipeline_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/change/changetest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// TestMirrorIsWhatDebeziumWrites runs the catalog of types and operations through capture and compares each record of
// the mirror topics with what the real connector wrote for the same SQL.
func TestMirrorIsWhatDebeziumWrites(t *testing.T) {
	dir := changetest.Dir(t, os.Getenv, filepath.Join("..", "..", "shared", "debezium"))
	want := changetest.Read(t, filepath.Join(dir, "debezium.jsonl"))
	name, tables := recordedTables(want)

	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	r := &captureRig{t: t, published: true, cfg: pipeline.CaptureConfig{
		Name: name, TxEvery: time.Millisecond, IdleEvery: 10 * time.Millisecond,
		// One table is routed as well: its records are made of the same pieces.
		Routes: []route.Route{{Table: "public.op_full", Key: "a"}}, Mirror: pipeline.MirrorConfig{On: true, Tables: tables},
	}}
	r.connect(url)
	var extensions int
	require.NoError(t, r.db.QueryRow(t.Context(), `SELECT count(*) FROM pg_available_extensions WHERE name IN ('hstore', 'citext', 'ltree')`).Scan(&extensions))
	if extensions < 3 {
		t.Skip("the server has no hstore, citext or ltree")
	}
	r.script(nil, filepath.Join(dir, "schema.sql"))
	r.exec(`DO $$ DECLARE p name; BEGIN FOR p IN SELECT pubname FROM pg_publication LOOP EXECUTE format('DROP PUBLICATION %I', p); END LOOP; END $$`)
	r.exec(`CREATE TABLE IF NOT EXISTS unrouted (id int)`)
	r.exec(`CREATE PUBLICATION shelfwire FOR ALL TABLES WITH (publish_via_partition_root = true)`)
	r.mirrorTopics(1)

	c, stop := r.start()
	r.wait(c)
	r.script(c, filepath.Join(dir, "types.sql"))
	r.exec(`RESET timezone; RESET datestyle`)
	r.wait(c)
	require.NoError(t, stop())

	byTopic := map[string][]changetest.Record{}
	for _, rec := range want {
		byTopic[rec.Topic] = append(byTopic[rec.Topic], rec)
	}
	cmp := changetest.NewComparison(t)
	for _, topic := range slices.Sorted(maps.Keys(byTopic)) {
		cmp.Topic(topic, r.mirrored(topic), byTopic[topic])
	}
	if os.Getenv(changetest.DirVariable) == "" {
		require.Empty(t, cmp.Unused(), "listed as different, and not different")
	}
	t.Logf("%d records of %d topics, %d values, %d differ for a listed reason", len(want), len(byTopic), cmp.Values, cmp.Listed)

	intervals := 0
	for _, iso := range changetest.Read(t, filepath.Join(dir, "debezium-modes.jsonl")) {
		if !strings.HasSuffix(iso.Topic, ".t_interval") {
			continue
		}
		for _, got := range r.mirrored(iso.Topic) {
			if string(got.Key) == string(iso.Key) {
				require.Equal(t, iso.Value.After, got.Value.After)
				intervals++
			}
		}
	}
	require.Equal(t, os.Getenv(changetest.DirVariable) == "", intervals > 0)
}

// recordedTables gives the name of the source and the tables that a recording has records of.
func recordedTables(list []changetest.Record) (name string, tables []string) {
	for _, rec := range list {
		if rec.Value == nil {
			continue
		}
		name = rec.Value.Source.Name
		if table := rec.Value.Table(); table != "" && !slices.Contains(tables, table) {
			tables = append(tables, table)
		}
	}
	return name, tables
}

// script runs a file as psql would. Where it pauses, c catches up: what a table was at a moment is known then.
func (r *captureRig) script(c *pipeline.Capture, file string) {
	r.t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(r.t, err)
	for _, s := range changetest.Statements(string(b)) {
		switch {
		case s.Pause:
			r.wait(c)
		case s.Data != "":
			_, err := r.db.PgConn().CopyFrom(r.t.Context(), strings.NewReader(s.Data), s.SQL)
			require.NoError(r.t, err, s.SQL)
		default:
			_, err := r.db.PgConn().Exec(r.t.Context(), s.SQL).ReadAll()
			require.NoError(r.t, err, s.SQL)
		}
	}
}

// mirrorTopics makes, where no others are, the topics of the rig's configuration.
func (r *captureRig) mirrorTopics(partitions int32) {
	r.t.Helper()
	topics, err := event.MirrorTopics(r.cfg.Name, pipeline.PublishedTables(r.cfg))
	require.NoError(r.t, err)
	mirrors := append(slices.Sorted(maps.Values(topics)), event.MirrorTopic(r.cfg.Name, event.MirrorMessages))
	r.kc, err = kafka.New(kafka.Config{Brokers: []string{embeddedtest.OwnKafka(r.t).Addr()}, Partitions: partitions, Mirrors: mirrors})
	require.NoError(r.t, err)
	r.t.Cleanup(r.kc.Close)
	require.NoError(r.t, r.kc.EnsureTopics(r.t.Context()))
}

// mirrored reads a mirror topic, partition by partition.
func (r *captureRig) mirrored(topic string) (list []changetest.Record) {
	r.t.Helper()
	for _, rec := range r.whole(topic) {
		got := changetest.Record{Topic: rec.Topic, Key: rec.Key, Headers: map[string]json.RawMessage{}}
		for _, h := range rec.Headers {
			text, err := json.Marshal(string(h.Value)) // as the recording has it: a string of JSON
			require.NoError(r.t, err)
			got.Headers[h.Key] = text
		}
		if rec.Value != nil {
			require.NoError(r.t, json.Unmarshal(rec.Value, &got.Value), "%s", rec.Value)
		}
		list = append(list, got)
	}
	return list
}

// whole reads all records of a topic by its full name.
func (r *captureRig) whole(topic string) (list []event.Record) {
	r.t.Helper()
	require.NoError(r.t, embeddedtest.Settle(r.t.Context(), topic))
	ends, err := r.kc.EndOffsets(r.t.Context(), topic)
	require.NoError(r.t, err)
	for p := range int32(len(ends)) {
		_, err := r.kc.Scan(r.t.Context(), topic, p, 0, ends[p], func(rec event.Record) bool {
			list = append(list, rec)
			return true
		})
		require.NoError(r.t, err)
	}
	return list
}

// TestMirrorIsExactlyOnce kills captures at every step of a Kafka transaction, mostly in the middle of large ones, and
// finds each record of the mirror topics once, in order, where Kafka's own partitioner would have put it.
func TestMirrorIsExactlyOnce(t *testing.T) {
	r := newCaptureRig(t)
	r.exec(`CREATE TABLE plain (id int PRIMARY KEY, v int)`)
	r.cfg.Name, r.cfg.Mirror = "shop", pipeline.MirrorConfig{On: true, Tables: []string{"public.plain"}}
	r.cfg.BatchProducts, r.cfg.BatchRows, r.cfg.TxRows = 40, 50, 50
	r.mirrorTopics(4)
	var n, kills atomic.Int32
	var armed atomic.Bool
	calls := []string{"produce", "flush", "before commit", "after commit"}
	r.faults = func(call string) error {
		if k := n.Add(1); armed.Load() && k%13 == 0 && slices.Contains(calls, call) && kills.Add(1) <= 10 {
			return fmt.Errorf("killed at %s", call)
		}
		return nil
	}
	c, stop := r.start()
	r.wait(c)
	armed.Store(true)
	for i := range 12 {
		r.exec(`BEGIN`)
		r.exec(`INSERT INTO plain SELECT i, $1 FROM generate_series($1 * 200 + 1, $1 * 200 + 200) i`, i)
		r.exec(`SELECT pg_logical_emit_message(true, 'note', $1)`, fmt.Sprint("in ", i))
		if i%3 == 0 { // a row that leads to a product in a transaction that is let go already
			r.exec(`INSERT INTO products VALUES ($1, 'T')`, fmt.Sprint("p", i))
		}
		r.exec(`UPDATE plain SET v = -1 WHERE id % 20 = 0 AND id > $1 * 200`, i)
		if i%4 == 0 { // more at one position than one Kafka transaction takes
			r.exec(`SELECT pg_logical_emit_message(true, 'note', $1 || n) FROM generate_series(1, 170) n`, fmt.Sprint("many ", i, " "))
		}
		r.exec(`SELECT pg_logical_emit_message(true, 'note', $1)`, fmt.Sprint("last of ", i))
		r.exec(`COMMIT`)
		r.exec(`SELECT pg_logical_emit_message(false, 'note', $1)`, fmt.Sprint("after ", i))
	}
	r.wait(c)
	require.NoError(t, stop())
	require.Greater(t, kills.Load(), int32(5))

	rows, last := map[string]bool{}, map[int32]change.LSN{}
	for _, rec := range r.whole("shop.public.plain") {
		require.Equal(t, change.Partition(change.ProductID(rec.Key), 4), rec.Partition)
		var e struct {
			After  struct{ ID, V int }
			Source struct{ LSN uint64 }
			Op     string
		}
		require.NoError(t, json.Unmarshal(rec.Value, &e))
		id := fmt.Sprint(e.Op, e.After.ID)
		require.False(t, rows[id], "%s stands twice", id)
		rows[id] = true
		require.GreaterOrEqual(t, change.LSN(e.Source.LSN), last[rec.Partition])
		last[rec.Partition] = change.LSN(e.Source.LSN)
	}
	require.Len(t, rows, 12*200+12*10)
	var notes []string
	for _, rec := range r.mirrored("shop.message") {
		var m struct{ Content []byte }
		require.NoError(t, json.Unmarshal(rec.Value.Message, &m))
		notes = append(notes, string(m.Content))
	}
	var expect []string
	for i := range 12 {
		expect = append(expect, fmt.Sprint("in ", i))
		for n := range 170 {
			if i%4 == 0 {
				expect = append(expect, fmt.Sprint("many ", i, " ", n+1))
			}
		}
		expect = append(expect, fmt.Sprint("last of ", i), fmt.Sprint("after ", i))
	}
	require.Equal(t, expect, notes)
	require.Len(t, r.whole("shop.public.products"), 4)
	require.Len(t, r.records(event.Changes), 4)
	var batches []string // the large transactions with a product, and no other
	for _, rec := range r.records(event.Batches) {
		var b event.Batch
		require.NoError(t, json.Unmarshal(rec.Value, &b))
		batches = append(batches, fmt.Sprint(b.Rows))
	}
	require.Equal(t, []string{"1", "1", "1", "1"}, batches)
}

// A table that is mirrored and leads to no product each is read by a snapshot like any other, for the mirror alone: at
// the first start, when it comes into the configuration, when somebody asks, and when it is made anew.
func TestMirrorTopicsBeginWithASnapshot(t *testing.T) {
	r, touched := publishedRig(t)
	r.exec(`CREATE TABLE plain (id int PRIMARY KEY, v text); INSERT INTO plain SELECT i, 'v' FROM generate_series(1, 250) i`)
	r.exec(`CREATE TABLE later (v text); ALTER TABLE later REPLICA IDENTITY FULL; INSERT INTO later VALUES ('x'), ('x')`) // no key
	r.exec(`INSERT INTO categories VALUES (1, 'c')`)
	r.cfg.Name, r.cfg.SnapshotChunk = "shop", 20
	r.cfg.Mirror = pipeline.MirrorConfig{On: true, Tables: []string{"public.plain", "public.later"}}
	r.mirrorTopics(2)
	reads := func(table string) (n int) {
		for _, rec := range r.mirrored("shop.public." + table) {
			if rec.Value != nil && rec.Value.Op == "r" {
				n++
			}
		}
		return n
	}

	r.cfg.Mirror.Tables = []string{"public.plain"}
	c, stop := r.start()
	r.wait(c)
	require.Equal(t, 250, reads("plain"))
	require.Equal(t, 1, reads("categories"), "its route is a query")
	require.Equal(t, 1, reads("products"))
	require.Empty(t, r.records(event.Fanouts), "a row that is read changes nothing")
	require.NoError(t, stop())

	r.cfg.Mirror.Tables = []string{"public.plain", "public.later"}
	c, stop = r.start()
	r.wait(c)
	require.Equal(t, 2, reads("later"))
	require.Equal(t, 250, reads("plain"))

	r.exec(`SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', '{"id": "x", "table": "public.plain", "where": "id <= 30"}')`)
	require.Eventually(t, func() bool { return reads("plain") == 280 }, time.Minute, 10*time.Millisecond)
	r.wait(c)
	r.exec(`SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', '{"id": "y", "table": "public.plain", "products": ["a"]}')`)
	require.Eventually(t, func() bool { return len(r.records(event.DeadLetters)) == 1 }, time.Minute, 10*time.Millisecond)

	r.exec(`BEGIN; DROP TABLE plain; CREATE TABLE plain (id int PRIMARY KEY, v text); INSERT INTO plain VALUES (1, 'new'); COMMIT`)
	require.Eventually(t, func() bool { return reads("plain") == 281 }, time.Minute, 10*time.Millisecond)
	r.wait(c)
	require.Len(t, r.rereads(), 1)
	require.Zero(t, touched.Load(), "no product has a row in it")
	r.exec(`DROP TABLE plain`)
	require.Eventually(t, func() bool { return len(r.rereads()) == 2 }, time.Minute, 10*time.Millisecond)
	r.exec(`INSERT INTO products VALUES ('b', 'B', 1)`)
	r.comes("products c b")
	require.NoError(t, stop())
	changes := slices.DeleteFunc(brief(r.records(event.Changes)), func(s string) bool { return s == "" })
	require.Len(t, changes, 3)
	slices.Sort(changes[:2]) // tables are read side by side
	require.Equal(t, []string{"products r a", "variants r a", "products c b"}, changes)
	require.Zero(t, touched.Load())
}
