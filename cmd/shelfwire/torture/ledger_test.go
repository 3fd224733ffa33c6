package torture

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// deed is one row change as the history has it.
type deed struct {
	lsn                change.LSN // of the commit
	xid                uint64
	table, identity    string
	op                 string
	old, new           image
	fanned, led, wiped bool
}

// image holds the values of a row as text, nil for NULL. A nil map is no image.
type image map[string]*string

// witness tells by a slot of its own when transactions committed. It decodes nothing: Postgres says in SQL which
// transaction a message is of, and the first bytes of a Begin are the position of its commit.
type witness struct {
	slot    string
	commits map[uint32]change.LSN
}

// drain reads what was committed since the last call.
func (w *witness) drain(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT xid::text::bigint, substring(data from 2 for 8)
		FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'witness')
		WHERE get_byte(data, 0) = ascii('B')`, w.slot)
	if err != nil {
		return err
	}
	var xid int64
	var lsn []byte
	_, err = pgx.ForEachRow(rows, []any{&xid, &lsn}, func() error {
		w.commits[uint32(xid)] = change.LSN(binary.BigEndian.Uint64(lsn))
		return nil
	})
	return err
}

// readHistory gives everything that was committed, in the order of the commits.
func (w *witness) readHistory(ctx context.Context, conn *pgx.Conn) ([]deed, error) {
	if err := w.drain(ctx, conn); err != nil {
		return nil, fmt.Errorf("read the witness: %w", err)
	}
	routes := map[string]deed{}
	for _, r := range trialRoutes {
		routes[r.Table] = deed{fanned: r.Query != "", led: r.Parent != nil}
	}
	rows, err := conn.Query(ctx, `SELECT xid::text::bigint, tbl, coalesce(identity, ''), op, old, new FROM history ORDER BY seq`)
	if err != nil {
		return nil, err
	}
	var deeds []deed
	var xid int64
	var table, identity, op string
	var before, after []byte
	_, err = pgx.ForEachRow(rows, []any{&xid, &table, &identity, &op, &before, &after}, func() error {
		d, routed := routes[table]
		if !routed {
			return nil
		}
		d.xid, d.table, d.identity, d.op, d.wiped = uint64(xid), table, identity, op, op == "t"
		d.lsn = w.commits[uint32(xid)] // 0: from before the witness
		d.old, d.new = imageOf(before), imageOf(after)
		deeds = append(deeds, d)
		return nil
	})
	slices.SortStableFunc(deeds, func(a, b deed) int { return cmp.Compare(a.lsn, b.lsn) })
	return deeds, err
}

// imageOf reads a JSON object of scalars.
func imageOf(raw []byte) image {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var values map[string]any
	if err := dec.Decode(&values); err != nil {
		values = map[string]any{"not JSON": string(raw)}
	}
	out := image{}
	for k, v := range values {
		out[k] = nil
		if v != nil {
			s := fmt.Sprint(v)
			out[k] = &s
		}
	}
	return out
}

func (i image) text(column string) string {
	if v := i[column]; v != nil {
		return *v
	}
	return ""
}

func (i image) String() string {
	if i == nil {
		return "none"
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(i)) {
		v := "NULL"
		if i[k] != nil {
			if v = *i[k]; len(v) > 40 {
				v = fmt.Sprintf("%s...%d bytes", v[:40], len(v))
			}
		}
		fmt.Fprintf(&b, "%s=%s ", k, v)
	}
	return "{" + strings.TrimSpace(b.String()) + "}"
}

func (i image) equal(j image) bool {
	return (i == nil) == (j == nil) && maps.EqualFunc(i, j, func(a, b *string) bool {
		return (a == nil) == (b == nil) && (a == nil || *a == *b)
	})
}

// identityColumns of a table whose identity is not FULL.
var identityColumns = map[string][]string{"public.items": {"id"}, "public.variants": {"id", "product_id"}}

// owed is a record that a deed must have become. optional: it may be absent, as the row's parent was gone when it was
// looked up.
type owed struct {
	op, product string
	before      image // what the record may say of it
	after       image
	optional    bool
}

// productColumn is the column of the product id, of the tables that have one.
var productColumn = map[string]string{"public.items": "id", "public.variants": "product_id", "public.notes": "product_id", "public.orders": "product_id"}

func (d *deed) product(i image) string {
	if d.led {
		var v int
		_, _ = fmt.Sscan(i.text("variant_id"), &v)
		return fmt.Sprintf("p%d", v%40)
	}
	return i.text(productColumn[d.table])
}

// owes says what a deed must have become in catalog.changes.
func (d *deed) owes(optional bool) []owed {
	before := d.old
	if before != nil && d.identity != "f" {
		before = image{}
		moved := d.op == "d"
		for _, c := range identityColumns[d.table] {
			before[c] = d.old[c]
			moved = moved || d.old.text(c) != d.new.text(c)
		}
		if !moved {
			before = nil // no old row is sent when its identity stays
		}
	}
	after := d.new
	if d.op == "u" && d.identity != "f" && d.new.text("body") == d.old.text("body") {
		if v := d.new["body"]; v != nil && len(*v) > 2000 { // stored apart and not sent again
			after = maps.Clone(d.new)
			unavailable := change.Unavailable
			after["body"] = &unavailable
		}
	}
	switch {
	case d.op == "c":
		return []owed{{op: "c", product: d.product(d.new), after: after, optional: optional}}
	case d.op == "d":
		return []owed{{op: "d", product: d.product(d.old), before: before, optional: optional}}
	case d.product(d.old) == d.product(d.new):
		return []owed{{op: "u", product: d.product(d.new), before: before, after: after, optional: optional}}
	}
	return []owed{
		{op: "d", product: d.product(d.old), before: before, optional: optional},
		{op: "c", product: d.product(d.new), after: after, optional: optional},
	}
}

// found is a record of catalog.changes.
type found struct {
	partition          int32
	offset             int64
	pos                change.Position
	table, op, product string
	xid, batch         string
	before, after      image
	at                 time.Time // when it was encoded
	era                int
}

func foundOf(r *event.Record) found {
	h := func(key string) string {
		v, _ := r.Header(key)
		return v
	}
	var env struct {
		Op            string          `json:"op"`
		Before, After json.RawMessage //nolint:tagliatelle // as the connector writes them
		At            int64           `json:"ts_us"`
	}
	_ = json.Unmarshal(r.Value, &env) // what is not JSON equals nothing that is owed
	pos, _ := change.ParsePosition(h(event.HeaderPosition))
	out := found{
		partition: r.Partition, offset: r.Offset, pos: pos, table: h(event.HeaderTable), op: h(event.HeaderOp), product: string(r.Key),
		xid: h(event.HeaderXID), batch: h(event.HeaderBatch), before: imageOf(env.Before), after: imageOf(env.After), at: time.UnixMicro(env.At),
	}
	if env.Op != out.op {
		out.op += " and " + env.Op
	}
	return out
}

func (r *found) is(o *owed) bool {
	return r.op == o.op && r.product == o.product && r.before.equal(o.before) && r.after.equal(o.after)
}

func (r *found) String() string {
	return fmt.Sprintf("%d/%d at %s: %s of %s for %s, %s -> %s", r.partition, r.offset, r.pos, r.op, r.table, r.product, r.before, r.after)
}

// era is a history without a break: a source that is set back begins another one.
type era struct {
	began time.Time
	// first and last bound what must have been captured: commits in [first, last); last is 0 in the era that goes on.
	first, last change.LSN
	gaps        [][2]change.LSN // what was healed: [from, to)
	deeds       []deed
}

func (e *era) exempt(lsn change.LSN) bool {
	if lsn < e.first || e.last != 0 && lsn >= e.last {
		return true
	}
	return slices.ContainsFunc(e.gaps, func(g [2]change.LSN) bool { return lsn >= g[0] && lsn < g[1] })
}

// pastEra is what a server's history said before another one took its place.
type pastEra struct {
	until time.Time
	deeds []deed
}

// erasOf cuts the history where healings say that it went back. first is where the first slot began.
func erasOf(f *findings, first change.LSN, past []pastEra, now []deed, healings []event.Healing) []era {
	slices.SortFunc(healings, func(a, b event.Healing) int { return a.At.Compare(b.At) })
	eras := []era{{first: first}}
	next := 0
	for _, h := range healings {
		cur := &eras[len(eras)-1]
		switch {
		case !h.Back && h.From == 0:
			cur.first = h.To
		case !h.Back:
			cur.gaps = append(cur.gaps, [2]change.LSN{h.From, h.To})
		default:
			var before *pastEra
			for next < len(past) && past[next].until.Before(h.At) {
				before = &past[next]
				next++
			}
			if before == nil {
				f.add(fmt.Sprintf("healing: the source did not go back: %+v", h))
				continue
			}
			cur.last, cur.deeds = h.From, before.deeds
			eras = append(eras, era{began: before.until, first: h.To})
		}
	}
	eras[len(eras)-1].deeds = now
	return eras
}

// spot names the changes of one table in one transaction.
type spot struct {
	lsn   change.LSN
	table string
}

// compareEra holds records against the deeds of their era: each row that was owed once, in order, and nothing else.
func compareEra(f *findings, e *era, records []found) {
	got := map[spot][]found{}
	xids := map[spot]string{}
	for _, r := range records {
		if r.op != "r" {
			p := spot{r.pos.CommitLSN, r.table}
			got[p] = append(got[p], r)
		}
	}
	gone := map[string]change.LSN{} // variants that were deleted, and when for the last time
	wiped := change.LSN(0)
	for i := range e.deeds {
		switch d := &e.deeds[i]; {
		case d.table == "public.variants" && d.op == "d":
			gone[d.old.text("id")] = d.lsn
		case d.table == "public.variants" && d.wiped:
			wiped = d.lsn
		}
	}
	want := map[spot][]owed{}
	var order []spot
	for i := range e.deeds {
		d := &e.deeds[i]
		if d.fanned || d.wiped {
			continue
		}
		p := spot{d.lsn, d.table}
		if want[p] == nil {
			order = append(order, p)
			xids[p] = fmt.Sprint(d.xid)
		}
		optional := false
		if d.led {
			row := d.new
			if row == nil {
				row = d.old
			}
			optional = gone[row.text("variant_id")] >= d.lsn || wiped >= d.lsn
		}
		want[p] = append(want[p], d.owes(optional)...)
	}
	for _, p := range order {
		compareSpot(f, p, want[p], got[p], xids[p], e.exempt(p.lsn))
		delete(got, p)
	}
	for p, list := range got {
		f.add(fmt.Sprintf("never committed: %d records of %s at %s, the first %s", len(list), p.table, p.lsn, &list[0]))
	}
}

func compareSpot(f *findings, p spot, want []owed, got []found, xid string, exempt bool) {
	slices.SortStableFunc(got, func(a, b found) int {
		// A row that leaves one product for another is two records of one position.
		return cmp.Or(a.pos.Compare(b.pos), -cmp.Compare(a.op, b.op))
	})
	f.count("records of the stream", len(got))
	if !exempt {
		f.count("rows of the history", len(want))
	} else {
		f.count("rows in gaps", len(want))
	}
	i := 0
	for j := range want {
		o := &want[j]
		switch {
		case i < len(got) && got[i].is(o):
			if got[i].xid != xid {
				f.add(fmt.Sprintf("%s should be of transaction %s and is of %s", &got[i], xid, got[i].xid))
			}
			i++
		case o.optional || exempt:
		default:
			there := "nothing more is there"
			if i < len(got) {
				there = "there is " + got[i].String()
			}
			f.add(fmt.Sprintf("lost or wrong: %s at %s, row %d of %d (%d records): should be %s for %s, %s -> %s; %s",
				p.table, p.lsn, j+1, len(want), len(got), o.op, o.product, o.before, o.after, there))
			return
		}
	}
	if i < len(got) {
		f.add(fmt.Sprintf("doubled or wrong: %s at %s: after %d of %d rows there is %s", p.table, p.lsn, i, len(want), &got[i]))
	}
}
