package torture

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// rowColumns name a row of a table.
var rowColumns = map[string][]string{
	"public.items": {"id"}, "public.variants": {"id"}, "public.stock": {"id"}, "public.notes": {"n"}, "public.orders": {"id", "region"},
}

func rowOf(table string, i image) string {
	name := table
	for _, c := range rowColumns[table] {
		name += " " + i.text(c)
	}
	return name
}

// reader is what somebody knows who has read catalog.changes to its end: the last values of each row.
type reader struct {
	rows map[string]image
	from map[string]*found // the record that a row is known by
}

// follow applies records in the order of eras and positions, which is also that of each partition.
func follow(records []found) *reader {
	k := &reader{rows: map[string]image{}, from: map[string]*found{}}
	sorted := slices.Clone(records)
	slices.SortStableFunc(sorted, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.era, b.era), a.pos.Compare(b.pos), -cmp.Compare(a.op, b.op))
	})
	var left image // by the record before, where it is the first half of a row that moves
	for i := range sorted {
		r := &sorted[i]
		if r.op == "d" {
			left = k.rows[rowOf(r.table, r.before)]
			delete(k.rows, rowOf(r.table, r.before))
		} else {
			if i == 0 || sorted[i-1].pos != r.pos {
				left = nil
			}
			if r.op == "u" && r.before != nil && rowOf(r.table, r.before) != rowOf(r.table, r.after) {
				delete(k.rows, rowOf(r.table, r.before))
			}
			row := rowOf(r.table, r.after)
			now := maps.Clone(r.after)
			for c, v := range now {
				if v != nil && *v == change.Unavailable {
					now[c] = k.rows[row][c]
					if left != nil {
						now[c] = left[c]
					}
				}
			}
			k.rows[row], k.from[row] = now, r
		}
	}
	return k
}

// compareTables holds what a reader knows against the tables as they are.
func compareTables(ctx context.Context, f *findings, conn *pgx.Conn, k *reader, eras []era) error {
	here := map[string]bool{}
	for table := range rowColumns {
		rows, err := conn.Query(ctx, "SELECT to_jsonb(t) FROM "+table+" t")
		if err != nil {
			return err
		}
		var raw []byte
		if _, err := pgx.ForEachRow(rows, []any{&raw}, func() error {
			now := imageOf(raw)
			name := rowOf(table, now)
			here[name] = true
			f.count("rows of the tables", 1)
			known, ok := k.rows[name]
			if !ok {
				f.add(fmt.Sprintf("nobody heard of row %s %s", name, now))
				return nil
			}
			for c, v := range now {
				// A column that came later is in no record of before.
				if !strings.HasPrefix(c, "x_") && (known[c] == nil) != (v == nil) || v != nil && known[c] != nil && !strings.HasPrefix(c, "x_") && *known[c] != *v {
					f.add(fmt.Sprintf("row %s is %s, and a reader knows %s by %s", name, now, known, k.from[name]))
					return nil
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	last := &eras[len(eras)-1]
	unseen := unseenDeletes(last)
	for name := range k.rows {
		if !here[name] && !unseen[name] && k.from[name].era == len(eras)-1 {
			f.add(fmt.Sprintf("row %s is gone, and a reader still has it by %s", name, k.from[name]))
		}
	}
	return nil
}

// unseenDeletes names the rows whose end is in no record: within a gap, by TRUNCATE, or with their parent.
func unseenDeletes(e *era) map[string]bool {
	out := map[string]bool{}
	rows := map[string]map[string]bool{} // by table
	for i := range e.deeds {
		d := &e.deeds[i]
		if rows[d.table] == nil {
			rows[d.table] = map[string]bool{}
		}
		switch {
		case d.wiped:
			maps.Copy(out, rows[d.table])
		case d.fanned:
		case d.new == nil:
			out[rowOf(d.table, d.old)] = e.exempt(d.lsn) || d.led
		default:
			name := rowOf(d.table, d.new)
			rows[d.table][name] = true
			out[name] = false
			if d.old != nil && rowOf(d.table, d.old) != name {
				out[rowOf(d.table, d.old)] = e.exempt(d.lsn)
			}
		}
	}
	return out
}

// compareOrder finds records behind others of their partition that come later in the history.
func compareOrder(f *findings, records []found) {
	type at struct {
		era int
		pos change.Position
	}
	last := map[int32]at{}
	for i := range records {
		r := &records[i]
		before := last[r.partition]
		if before.era > r.era || before.era == r.era && before.pos.Compare(r.pos) > 0 {
			f.add(fmt.Sprintf("order: %s stands behind %s", r, before.pos))
		}
		last[r.partition] = at{r.era, r.pos}
	}
}

// compareBatches holds announcements against the records that carry their ids. end is the position at the end: what it
// says is not finished is not announced yet.
func compareBatches(f *findings, records []found, batches []event.Batch, end *event.Position) {
	last := map[string]map[int32]int64{}
	for i := range records {
		r := &records[i]
		if r.batch == "" {
			continue
		}
		if last[r.batch] == nil {
			last[r.batch] = map[int32]int64{}
		}
		last[r.batch][r.partition] = r.offset
	}
	announced := map[string]bool{}
	for _, b := range batches {
		if b.Type != event.BatchAnnounced {
			continue
		}
		f.count("batches", 1)
		if announced[b.ID] {
			f.add("batch announced twice: " + b.ID)
		}
		announced[b.ID] = true
		if len(b.Changes)+len(last[b.ID]) > 0 && !maps.Equal(b.Changes, last[b.ID]) {
			f.add(fmt.Sprintf("batch %s is announced with offsets %v, and its last records are %v", b.ID, b.Changes, last[b.ID]))
		}
	}
	running := func(id string) bool {
		return slices.ContainsFunc(end.Snapshots, func(p event.SnapshotProgress) bool { return p.ID == id }) || end.Open != nil && end.Open.BatchID == id
	}
	for id := range last {
		if !announced[id] && !running(id) {
			f.add("batch never announced: " + id)
		}
	}
}

// compareFanouts holds catalog.fanouts against the deeds of a history without a break.
func compareFanouts(f *findings, e *era, records []event.Record) {
	got := map[spot][]event.Fanout{}
	for _, r := range records {
		var fan event.Fanout
		if err := json.Unmarshal(r.Value, &fan); err != nil {
			f.add(fmt.Sprintf("fan-out %d/%d: %v", r.Partition, r.Offset, err))
			continue
		}
		p := spot{fan.Position.CommitLSN, fan.Table}
		got[p] = append(got[p], fan)
	}
	for i := range e.deeds {
		d := &e.deeds[i]
		if !d.fanned || d.wiped {
			continue
		}
		p := spot{d.lsn, d.table}
		at := slices.IndexFunc(got[p], func(fan event.Fanout) bool {
			return fan.Op == d.op && image(fan.Before).equal(d.old) && image(fan.After).equal(d.new)
		})
		switch {
		case at >= 0:
			got[p] = slices.Delete(got[p], at, at+1)
			f.count("fan-outs of the history", 1)
		case !e.exempt(d.lsn):
			f.add(fmt.Sprintf("fan-out lost: %s at %s: %s %s -> %s; there are %v", d.table, d.lsn, d.op, d.old, d.new, got[p]))
		}
	}
	for p, list := range got {
		if len(list) > 0 {
			f.add(fmt.Sprintf("fan-out doubled or never committed: %s at %s: %v", p.table, p.lsn, list))
		}
	}
}

// compareDead finds a dead letter for each truncated table, and no others than those and the requests that were refused.
func compareDead(f *findings, eras []era, dead []event.Record) {
	wiped := map[spot]int{}
	for i := range eras {
		for _, d := range eras[i].deeds {
			if d.wiped {
				wiped[spot{d.lsn, d.table}] = 1
				if eras[i].exempt(d.lsn) {
					wiped[spot{d.lsn, d.table}] = 2 // at most
				}
			}
		}
	}
	for _, r := range dead {
		table, _ := r.Header(event.HeaderTable)
		at, _ := r.Header(event.HeaderPosition)
		pos, _ := change.ParsePosition(at)
		reason, _ := r.Header(event.HeaderReason)
		p := spot{pos.CommitLSN, table}
		switch origin, _ := r.Header(event.HeaderOrigin); {
		case wiped[p] > 0:
			wiped[p] = 0
		case origin == "shelfwire.snapshot" && strings.Contains(string(r.Value), "refused"):
		default:
			f.add(fmt.Sprintf("dead letter: %s at %s: %s: %s", table, at, reason, tail(string(r.Value), 300)))
		}
	}
	for p, n := range wiped {
		if n == 1 {
			f.add(fmt.Sprintf("nobody was told that %s was truncated at %s", p.table, p.lsn))
		}
	}
}
