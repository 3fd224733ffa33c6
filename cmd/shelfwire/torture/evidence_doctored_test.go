package torture

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// doctored is an exhibit that somebody has changed.
type doctored struct {
	t *testing.T
	exhibit
}

// header is a header's text.
func (d *doctored) header(r *event.Record, key string) string {
	v, _ := r.Header(key)
	return v
}

// find is the place of the first change in catalog.changes that is as wanted, not one of a snapshot.
func (d *doctored) find(what string, is func(i int, r *event.Record) bool) int {
	d.t.Helper()
	list := d.topics[event.Changes]
	for i := range list {
		if d.header(&list[i], event.HeaderOp) != "r" && is(i, &list[i]) {
			return i
		}
	}
	require.FailNow(d.t, "nothing to doctor", what)
	return -1
}

// row finds a change of a table by its operation.
func (d *doctored) row(table, op string) int {
	d.t.Helper()
	return d.find(op+" of "+table, func(_ int, r *event.Record) bool {
		return d.header(r, event.HeaderTable) == table && d.header(r, event.HeaderOp) == op
	})
}

// set replaces a header.
func (d *doctored) set(r *event.Record, key, value string) {
	r.Headers = slices.Clone(r.Headers)
	for i := range r.Headers {
		if r.Headers[i].Key == key {
			r.Headers[i].Value = []byte(value)
		}
	}
}

// edit changes the envelope of a record.
func (d *doctored) edit(r *event.Record, change func(env map[string]any)) {
	d.t.Helper()
	var env map[string]any
	require.NoError(d.t, json.Unmarshal(r.Value, &env))
	change(env)
	raw, err := json.Marshal(env)
	require.NoError(d.t, err)
	r.Value = raw
}

// announcement is the place of one of the batch of a transaction, with its offsets.
func (d *doctored) announcement() (int, event.Batch) {
	d.t.Helper()
	for i, r := range d.topics[event.Batches] {
		var b event.Batch
		require.NoError(d.t, json.Unmarshal(r.Value, &b))
		if b.Type == event.BatchAnnounced && b.Kind == event.KindTransaction && len(b.Changes) > 0 {
			return i, b
		}
	}
	require.FailNow(d.t, "no batch was announced")
	return -1, event.Batch{}
}

func (d *doctored) announce(i int, b event.Batch) {
	d.t.Helper()
	raw, err := json.Marshal(b)
	require.NoError(d.t, err)
	d.topics[event.Batches][i].Value = raw
}

// insert puts a record behind another one of the same partition, whose successors move on.
func (d *doctored) insert(behind int, r event.Record) {
	d.topics[event.Changes] = slices.Insert(d.topics[event.Changes], behind+1, r)
}

// forgeries are what a capture could do wrong, one at a time, each with what must be found.
var forgeries = []struct {
	name, want string
	forge      func(d *doctored)
}{
	{"a record is lost", "lost or wrong", func(d *doctored) {
		i := d.row("public.items", "u")
		d.topics[event.Changes] = slices.Delete(d.topics[event.Changes], i, i+1)
	}},
	{"the delete that a product is left by is lost", "lost or wrong", func(d *doctored) {
		i := d.row("public.notes", "d")
		d.topics[event.Changes] = slices.Delete(d.topics[event.Changes], i, i+1)
	}},
	{"the last record of its partition is lost", "lost or wrong", func(d *doctored) {
		list := d.topics[event.Changes]
		last := -1
		for i := range list {
			if list[i].Partition == list[0].Partition && d.header(&list[i], event.HeaderOp) != "r" && d.header(&list[i], event.HeaderTable) != "public.stock" {
				last = i
			}
		}
		d.topics[event.Changes] = slices.Delete(list, last, last+1)
	}},
	{"a record comes twice", "or wrong: public.variants", func(d *doctored) {
		i := d.row("public.variants", "u")
		d.insert(i, d.topics[event.Changes][i])
	}},
	{"a row of a parent comes twice", "or wrong: public.stock", func(d *doctored) {
		i := d.row("public.stock", "c")
		d.insert(i, d.topics[event.Changes][i])
	}},
	{"two records of a product change places", "order:", func(d *doctored) {
		list := d.topics[event.Changes]
		i := d.find("two of one product", func(i int, r *event.Record) bool {
			return i+1 < len(list) && string(r.Key) == string(list[i+1].Key) && r.Partition == list[i+1].Partition &&
				d.header(r, event.HeaderPosition) != d.header(&list[i+1], event.HeaderPosition)
		})
		a, b := list[i], list[i+1]
		a.Offset, b.Offset = b.Offset, a.Offset
		list[i], list[i+1] = b, a
	}},
	{"a value is another one", "lost or wrong", func(d *doctored) {
		d.edit(&d.topics[event.Changes][d.row("public.variants", "c")], func(env map[string]any) { env["after"].(map[string]any)["sku"] = "other" })
	}},
	{"a value is NULL", "lost or wrong", func(d *doctored) {
		d.edit(&d.topics[event.Changes][d.row("public.notes", "c")], func(env map[string]any) { env["after"].(map[string]any)["body"] = nil })
	}},
	{"a column is left out", "lost or wrong", func(d *doctored) {
		d.edit(&d.topics[event.Changes][d.row("public.orders", "c")], func(env map[string]any) { delete(env["after"].(map[string]any), "qty") })
	}},
	{"an old value is another one", "lost or wrong", func(d *doctored) {
		d.edit(&d.topics[event.Changes][d.row("public.items", "u")], func(env map[string]any) { env["before"].(map[string]any)["title"] = "other" })
	}},
	{"a row comes that was rolled back", "never committed", func(d *doctored) {
		i := d.row("public.items", "c")
		r := d.topics[event.Changes][i]
		pos, err := change.ParsePosition(d.header(&r, event.HeaderPosition))
		require.NoError(d.t, err)
		pos.CommitLSN++
		d.set(&r, event.HeaderPosition, pos.String())
		d.insert(i, r)
	}},
	{"a row comes of a savepoint that was rolled back", "or wrong: public.orders", func(d *doctored) {
		i := d.row("public.orders", "c")
		r := d.topics[event.Changes][i]
		pos, err := change.ParsePosition(d.header(&r, event.HeaderPosition))
		require.NoError(d.t, err)
		pos.Ordinal += 100_000
		d.set(&r, event.HeaderPosition, pos.String())
		d.edit(&r, func(env map[string]any) { env["after"].(map[string]any)["id"] = 4711 })
		d.insert(i, r)
	}},
	{"an operation is another one", "lost or wrong", func(d *doctored) {
		r := &d.topics[event.Changes][d.row("public.variants", "c")]
		d.set(r, event.HeaderOp, "u")
		d.edit(r, func(env map[string]any) { env["op"] = "u" })
	}},
	{"header and envelope name two operations", "lost or wrong", func(d *doctored) {
		d.set(&d.topics[event.Changes][d.row("public.variants", "c")], event.HeaderOp, "u")
	}},
	{"a record goes to another product", "lost or wrong", func(d *doctored) {
		d.topics[event.Changes][d.row("public.items", "u")].Key = []byte("p4711")
	}},
	{"a record names another transaction", "should be of transaction", func(d *doctored) {
		d.set(&d.topics[event.Changes][d.row("public.items", "u")], event.HeaderXID, "1")
	}},
	{"a row of the first snapshot is lost", "nobody heard of row", func(d *doctored) {
		d.topics[event.Changes] = slices.DeleteFunc(d.topics[event.Changes], func(r event.Record) bool { return string(r.Key) == "quiet" })
	}},
	{"a row of the snapshot is another one", "and a reader knows", func(d *doctored) {
		for i := range d.topics[event.Changes] {
			if r := &d.topics[event.Changes][i]; string(r.Key) == "quiet" {
				d.edit(r, func(env map[string]any) { env["after"].(map[string]any)["title"] = "other" })
			}
		}
	}},
	{"an announcement names a later offset", "is announced with offsets", func(d *doctored) {
		i, b := d.announcement()
		for part := range b.Changes {
			b.Changes[part]++
			break
		}
		d.announce(i, b)
	}},
	{"an announcement names an earlier offset", "is announced with offsets", func(d *doctored) {
		i, b := d.announcement()
		for part := range b.Changes {
			b.Changes[part]--
			break
		}
		d.announce(i, b)
	}},
	{"an announcement leaves a partition out", "is announced with offsets", func(d *doctored) {
		i, b := d.announcement()
		for part := range b.Changes {
			delete(b.Changes, part)
			break
		}
		d.announce(i, b)
	}},
	{"a batch is not announced", "batch never announced", func(d *doctored) {
		i, _ := d.announcement()
		d.topics[event.Batches] = slices.Delete(d.topics[event.Batches], i, i+1)
	}},
	{"a batch is announced twice", "batch announced twice", func(d *doctored) {
		i, _ := d.announcement()
		d.topics[event.Batches] = append(d.topics[event.Batches], d.topics[event.Batches][i])
	}},
	{"a record of a batch does not name it", "is announced with offsets", func(d *doctored) {
		_, b := d.announcement()
		for part, at := range b.Changes {
			for i := range d.topics[event.Changes] {
				if r := &d.topics[event.Changes][i]; r.Partition == part && r.Offset == at {
					d.set(r, event.HeaderBatch, "")
					return
				}
			}
		}
		require.FailNow(d.t, "no such record")
	}},
	{"a fan-out is lost", "fan-out lost", func(d *doctored) {
		require.NotEmpty(d.t, d.topics[event.Fanouts])
		// That of a fan-out in the first slot's time, not before.
		d.topics[event.Fanouts] = d.topics[event.Fanouts][:len(d.topics[event.Fanouts])-1]
	}},
	{"a fan-out comes twice", "fan-out doubled", func(d *doctored) {
		d.topics[event.Fanouts] = append(d.topics[event.Fanouts], d.topics[event.Fanouts][0])
	}},
	{"a dead letter comes of nothing", "dead letter", func(d *doctored) {
		d.topics[event.DeadLetters] = append(d.topics[event.DeadLetters], d.topics[event.Changes][d.row("public.items", "u")])
	}},
	{"nobody hears of a truncated table", "nobody was told", func(d *doctored) {
		i := slices.IndexFunc(d.topics[event.DeadLetters], func(r event.Record) bool { return strings.Contains(d.header(&r, event.HeaderReason), "truncated") })
		require.GreaterOrEqual(d.t, i, 0)
		d.topics[event.DeadLetters] = slices.Delete(d.topics[event.DeadLetters], i, i+1)
	}},
	{"a request that was rolled back is taken", "whose request was rolled back", func(d *doctored) {
		last := len(d.topics[event.Positions]) - 1
		d.edit(&d.topics[event.Positions][last], func(pos map[string]any) {
			pos["ended_snapshots"] = append(pos["ended_snapshots"].([]any), map[string]any{"id": "x", "request": "unwanted"})
		})
	}},
	{"a snapshot that was asked for does not end", "snapshots were asked for", func(d *doctored) {
		for i := range d.topics[event.Positions] {
			d.edit(&d.topics[event.Positions][i], func(pos map[string]any) { delete(pos, "ended_snapshots") })
		}
	}},
}

// The comparison is what every schedule rests on. One that finds nothing in what is wrong would let all of them pass.
func TestCaptureTortureFindsForgeries(t *testing.T) {
	tr := newTrial(t, trialPlan{seed: 1, first: habits{Rows: 20, TxRows: 40, Chunk: 10, Readers: 2, Every: time.Millisecond, Memory: "64kB"}}, newSourceServer(t))
	tr.server.exec(tr.database, `INSERT INTO items VALUES ('quiet')`) // which no clerk changes
	tr.begin()
	rest(t.Context(), 2*time.Second)
	tr.clerks.stop()
	for _, sql := range []string{ // what the clerks may not have come to
		`INSERT INTO orders SELECT g, 0, 'p' || g, 1 FROM generate_series(1000, 1005) g`,
		`UPDATE categories SET name = 'last'`,
		`TRUNCATE notes`,
		`INSERT INTO notes SELECT nextval('numbers'), 'p1', 'note' FROM generate_series(1, 60)`,
		`SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', '{"id": "r0", "table": "public.items"}')`,
	} {
		tr.server.exec(tr.database, sql)
	}
	tr.evidence.asked = append(tr.evidence.asked, "r0")
	tr.settle()
	tr.active.stop()
	tr.server.with(tr.database, func(ctx context.Context, conn *pgx.Conn) error {
		x, err := tr.evidence.gather(ctx, conn)
		if err != nil {
			return err
		}
		f := &findings{}
		require.NoError(t, tr.evidence.judge(t.Context(), f, conn, x))
		require.Empty(t, f.wrong, "nothing is wrong yet")
		for _, forgery := range forgeries {
			d := &doctored{t, exhibit{map[string][]event.Record{}, x.now}}
			for name, list := range x.topics {
				d.topics[name] = slices.Clone(list)
			}
			forgery.forge(d)
			f := &findings{}
			require.NoError(t, tr.evidence.judge(t.Context(), f, conn, &d.exhibit))
			if all := strings.Join(f.wrong, "\n"); !strings.Contains(all, forgery.want) {
				t.Errorf("%s: %q is not in %q", forgery.name, forgery.want, tail(all, 1000))
			}
		}
		return nil
	})
}
