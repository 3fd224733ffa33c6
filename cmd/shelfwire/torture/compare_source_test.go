package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// captured is one record that a row change must have become, or has become.
type captured struct {
	position, table, op, pk, xid string
	// product is empty where the oracle does not know it: the row leads through a parent.
	product string
	// images are the row before and after it as the envelope has them.
	images string
}

// id names the row change.
func (c captured) id() string { return c.position + " " + c.table + " " + c.pk }

// images are the parts of an envelope that do not depend on who wrote it and when.
type images struct {
	Before json.RawMessage `json:"before"`
	After  json.RawMessage `json:"after"`
}

func imagesOf(envelope []byte) string {
	var i images
	if err := json.Unmarshal(envelope, &i); err != nil {
		return fmt.Sprintf("%v: %s", err, envelope)
	}
	return string(i.Before) + " -> " + string(i.After)
}

// oracle reads from its own slot, which nobody has touched since before the traffic, every change up to end.
type oracle struct {
	routes map[string]route.Route
	// keyed are changes of tables with a key column, whose records are known exactly; led those that lead through a
	// parent, whose product only the router knows; fanned those of tables that concern many products.
	keyed, led, fanned []captured
	transactions       int
}

func (w *world) readOracle(ctx context.Context) (*oracle, error) {
	src, err := w.openSource(ctx)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	text, err := one[string](ctx, w.sourceURL, `SELECT pg_current_wal_flush_lsn()::text`)
	if err != nil {
		return nil, err
	}
	end, err := change.ParseLSN(text)
	if err != nil {
		return nil, err
	}
	stream, err := src.Stream(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close(ctx) }()
	o := &oracle{routes: map[string]route.Route{}}
	for _, r := range w.cfg.Routes {
		o.routes[r.Table] = r
	}
	for {
		ev, err := stream.Next(ctx)
		if err != nil {
			return nil, err
		}
		switch ev.Kind {
		case change.EventChange:
			o.take(&ev)
		case change.EventCommit:
			o.transactions++
		default: // what says only how far the stream is
		}
		if (ev.Kind == change.EventCommit || ev.Kind == change.EventKeepalive) && ev.EndLSN >= end {
			return o, nil
		}
	}
}

// take notes what one change must become in the topics.
func (o *oracle) take(ev *change.Event) {
	c := ev.Change
	r, ok := o.routes[c.Relation.Table()]
	if !ok {
		return
	}
	image := c.After
	if image == nil {
		image = c.Before
	}
	pk, _ := change.AppendKey(nil, c.Relation, image)
	row := captured{
		position: c.Position.String(), table: r.Table, op: string(rune(c.Op)), pk: string(pk),
		xid:    strconv.FormatUint(uint64(ev.Transaction.XID), 10),
		images: imagesOf(change.AppendEnvelope(nil, c, &change.Envelope{Transaction: ev.Transaction})),
	}
	switch {
	case r.Query != "":
		o.fanned = append(o.fanned, row)
	case r.Parent != nil:
		o.led = append(o.led, row)
	default:
		o.keyed = append(o.keyed, keyedRecords(row, c, r.Key)...)
	}
}

// keyedRecords is what a change of a table with a key column becomes: one record, or, where the row moves to another
// product, the delete for the one and the create for the other.
func keyedRecords(row captured, c *change.Change, column string) []captured {
	value := func(t change.Tuple) string {
		if i := c.Relation.Index(column); t != nil && t[i].Kind == change.Text {
			return string(t[i].Data)
		}
		return ""
	}
	from, to := value(c.Before), value(c.After)
	if c.Op != change.Update || from == "" || from == to {
		row.product = to
		if to == "" {
			row.product = from
		}
		return []captured{row}
	}
	leave, arrive := row, row
	leave.product, leave.op, leave.images = from, "d", ""
	arrive.product, arrive.op, arrive.images = to, "c", ""
	return []captured{leave, arrive}
}

// compareSource holds the topics against the oracle: every committed change once, in order, and nothing else.
func (w *world) compareSource(ctx context.Context, f *findings, topics map[string][]event.Record) error {
	o, err := w.readOracle(ctx)
	if err != nil {
		return fmt.Errorf("read the oracle's slot: %w", err)
	}
	f.count("source transactions", o.transactions)
	live := map[string][]captured{}
	snapshot := map[string]int{}
	last := map[int32]change.Position{}
	n := 0
	for _, r := range topics[event.Changes] {
		c := capturedOf(&r)
		if origin, _ := r.Header(event.HeaderOrigin); origin == "snapshot" {
			batch, _ := r.Header(event.HeaderBatch)
			snapshot[c.table+" "+c.pk+" in "+batch]++
			continue
		}
		n++
		live[c.id()] = append(live[c.id()], c)
		at, err := change.ParsePosition(c.position)
		if err != nil {
			f.add(fmt.Sprintf("catalog.changes %d/%d: %v", r.Partition, r.Offset, err))
		} else if at.Compare(last[r.Partition]) < 0 {
			f.add(fmt.Sprintf("catalog.changes %d/%d: position %s stands behind %s", r.Partition, r.Offset, at, last[r.Partition]))
		}
		last[r.Partition] = at
	}
	f.count("live records of catalog.changes", n)
	f.count("snapshot records", len(snapshot))
	for row, times := range snapshot {
		if times > 1 {
			f.add(fmt.Sprintf("snapshot: %s was captured %d times", row, times))
		}
	}
	compareKeyed(f, o, live)
	if err := w.compareLed(ctx, f, o, live); err != nil {
		return err
	}
	for id, list := range live {
		f.add(fmt.Sprintf("catalog.changes: %s (%d records) is no committed change: %+v", id, len(list), list[0]))
	}
	compareFanned(f, o, topics[event.Fanouts])
	return nil
}

// compareAsked finds one snapshot for each that was asked for.
func compareAsked(f *findings, asked []string, batches []event.Record) {
	f.count("snapshots asked for", len(asked))
	announced := map[string]int{}
	for _, r := range batches {
		var b event.Batch
		if err := json.Unmarshal(r.Value, &b); err != nil {
			f.add(fmt.Sprintf("catalog.batches %d: %v", r.Offset, err))
		} else if b.Type == event.BatchAnnounced && b.Kind == event.KindSnapshot {
			announced[b.Name]++
		}
	}
	for _, id := range asked {
		if announced[id] != 1 {
			f.add(fmt.Sprintf("snapshot %s was asked for and is announced %d times", id, announced[id]))
		}
	}
}

func capturedOf(r *event.Record) captured {
	h := func(key string) string {
		v, _ := r.Header(key)
		return v
	}
	return captured{
		position: h(event.HeaderPosition), table: h(event.HeaderTable), op: h(event.HeaderOp), pk: h(event.HeaderPrimaryKey),
		xid: h(event.HeaderXID), product: string(r.Key), images: imagesOf(r.Value),
	}
}

// compareKeyed takes from live what the oracle expects of tables with a key column.
func compareKeyed(f *findings, o *oracle, live map[string][]captured) {
	f.count("changes of keyed tables", len(o.keyed))
	want := map[string][]captured{}
	for _, c := range o.keyed {
		want[c.id()] = append(want[c.id()], c)
	}
	for id, expected := range want {
		got := live[id]
		delete(live, id)
		for i := range got {
			if len(expected) > 1 { // the images of a moved row are those of two records
				got[i].images = ""
			}
		}
		order := func(a, b captured) int { return strings.Compare(a.op, b.op) }
		slices.SortFunc(expected, order)
		slices.SortFunc(got, order)
		if !slices.Equal(expected, got) {
			f.add(fmt.Sprintf("catalog.changes: %s should be %+v and is %+v", id, expected, got))
		}
	}
}

// compareLed takes from live the changes of rows that lead through a parent. One may be absent where the parent is
// gone for good: its own deletion has touched the product.
func (w *world) compareLed(ctx context.Context, f *findings, o *oracle, live map[string][]captured) error {
	f.count("changes of tables with a parent", len(o.led))
	variants, err := query[string](ctx, w.sourceURL, `SELECT id::text FROM catalog.variants`)
	if err != nil {
		return err
	}
	dropped := 0
	for _, c := range o.led {
		got := live[c.id()]
		delete(live, c.id())
		var pk struct {
			Variant json.Number `json:"variant_id"`
		}
		if err := json.Unmarshal([]byte(c.pk), &pk); err != nil {
			return fmt.Errorf("primary key of %s: %w", c.id(), err)
		}
		switch {
		case len(got) == 0 && !slices.Contains(variants, pk.Variant.String()):
			dropped++
		case len(got) != 1:
			f.add(fmt.Sprintf("catalog.changes: %s of a variant that stands is there %d times", c.id(), len(got)))
		default:
			c.product = got[0].product
			if c != got[0] {
				f.add(fmt.Sprintf("catalog.changes: %s should be %+v and is %+v", c.id(), c, got[0]))
			}
		}
	}
	f.count("changes dropped because their parent is gone", dropped)
	return nil
}

func compareFanned(f *findings, o *oracle, records []event.Record) {
	f.count("fan-outs", len(o.fanned))
	got := map[string]int{}
	for _, r := range records {
		c := capturedOf(&r)
		got[c.id()+" "+c.op]++
	}
	for _, c := range o.fanned {
		id := c.id() + " " + c.op
		if got[id] != 1 {
			f.add(fmt.Sprintf("catalog.fanouts: %s is there %d times", id, got[id]))
		}
		delete(got, id)
	}
	for id := range got {
		f.add(fmt.Sprintf("catalog.fanouts: %s is no committed change", id))
	}
}
