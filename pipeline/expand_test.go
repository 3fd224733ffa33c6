package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// pages lists the products of a category: those whose id begins with it.
type pages struct {
	products []string
	visible  change.XID
	running  []change.XID // below visible, and yet not to be seen
	from     time.Time    // before it, no snapshot sees the row's transaction
	broken   bool
	most     int  // a page of more takes too long; 0: none does
	deaf     bool // the query does not ask for $2
	nulls    int  // rows without a product, which come last
	asked    int
	unseen   func() // called when a snapshot is asked for again and again
	looks    int
}

func (p *pages) Page(_ context.Context, _ string, image map[string]*string, after string, n int) (change.Page, error) {
	p.asked++
	if p.most > 0 && n > p.most {
		return change.Page{}, stateError("57014")
	}
	if p.broken {
		return change.Page{}, queryError{data: true}
	}
	var page change.Page
	for _, id := range p.products {
		if (p.deaf || id[:1] == *image["category"] && id > after) && page.Rows < n {
			page.Products = append(page.Products, change.ProductID(id))
			page.Rows++
		}
	}
	page.Rows += min(p.nulls, n-page.Rows)
	page.Snapshot, _ = p.Snapshot(context.Background())
	p.looks = 0
	return page, nil
}

func (p *pages) Snapshot(context.Context) (change.Snapshot, error) {
	if time.Now().Before(p.from) {
		return change.Snapshot{Xmin: 100, Xmax: 100}, nil
	}
	if p.looks++; p.unseen != nil && p.looks > 3 {
		p.unseen()
	}
	snap := change.Snapshot{Xmin: p.visible, Xmax: p.visible, Running: p.running}
	for _, x := range p.running {
		snap.Xmin = min(snap.Xmin, x)
	}
	return snap, nil
}

// taken records what a stage writes; it fails at the write with the number fail, as a worker that dies there.
type taken struct {
	writes []work.TakeIn
	fail   int
}

func (t *taken) TakeIn(_ context.Context, in work.TakeIn) error {
	if t.fail > 0 && len(t.writes)+1 >= t.fail {
		return work.ErrLeaseLost
	}
	t.writes = append(t.writes, in)
	return nil
}

func (t *taken) parked() (ids []string) {
	for _, w := range t.writes {
		for _, p := range w.Parked {
			ids = append(ids, p.ProductID)
		}
	}
	return ids
}

func fanout(t *testing.T, before, after string) *event.Record {
	t.Helper()
	f := event.Fanout{Table: "catalog.rules", XID: 100, BatchID: "b1"}
	if before != "" {
		f.Before = map[string]*string{"category": &before}
	}
	if after != "" {
		f.After = map[string]*string{"category": &after}
	}
	v, err := json.Marshal(f)
	require.NoError(t, err)
	return &event.Record{
		Partition: 3, Offset: 7, Key: []byte("k"), Value: v, Headers: []event.Header{{Key: event.HeaderBatch, Value: []byte("b1")}},
	}
}

func expander(src *pages, st *taken) *Expand {
	return NewExpand(ExpandConfig{
		Prefix: "catalog.", Partitions: 8, ChangePartitions: 8, Page: 2,
		Routes: []route.Route{{Table: "catalog.rules", Query: "SELECT id FROM products WHERE category = ($1::jsonb->>'category') AND id > $2 LIMIT $3"}},
	}, nil, nil, src, st, slog.New(slog.DiscardHandler))
}

func TestExpandParksTheProductsOfBothImages(t *testing.T) {
	src := &pages{products: []string{"a1", "a2", "a3", "b1"}, visible: 1 << 40}
	st := &taken{}
	require.NoError(t, expander(src, st).handle(t.Context(), work.Lease{}, []event.Record{*fanout(t, "a", "b")}))
	require.Equal(t, []string{"a1", "a2", "a3", "b1"}, st.parked())
	for _, w := range st.writes[:len(st.writes)-1] {
		require.Equal(t, map[int32]int64{3: 7}, w.Positions, "the position stays until the last page")
		require.Len(t, w.Items, len(w.Parked), "each is an item of the row's batch")
		for _, p := range w.Parked {
			require.Equal(t, change.Partition(change.ProductID(p.ProductID), 8), p.Partition)
		}
	}
	require.Equal(t, map[int32]int64{3: 8}, st.writes[len(st.writes)-1].Positions)
}

// listed lists products by category.
type listed map[string][]string

func (l listed) Page(_ context.Context, _ string, image map[string]*string, after string, n int) (page change.Page, _ error) {
	for _, id := range l[*image["category"]] {
		if id > after && page.Rows < n {
			page.Products = append(page.Products, change.ProductID(id))
			page.Rows++
		}
	}
	page.Snapshot = change.Snapshot{Xmin: 1 << 40, Xmax: 1 << 40}
	return page, nil
}

func (l listed) Snapshot(context.Context) (change.Snapshot, error) {
	return change.Snapshot{Xmin: 1 << 40, Xmax: 1 << 40}, nil
}

// Most rows concern the same products before and after their change. Parked twice, a million of them would be read twice.
func TestAProductOfBothImagesIsParkedOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ids := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-d]{1,3}`), 0, 12, rapid.ID[string])
		src, all := listed{}, []string{}
		for _, category := range []string{"old", "new"} {
			src[category] = ids.Draw(rt, category)
			slices.Sort(src[category])
			all = append(all, src[category]...)
		}
		slices.Sort(all)
		all = slices.Compact(all)
		page := rapid.IntRange(1, 5).Draw(rt, "page")
		var parked []string
		lease := work.Lease{}
		for fail := rapid.IntRange(1, 4).Draw(rt, "fail"); ; fail++ {
			st := &taken{fail: fail}
			e := expander(nil, st)
			e.source, e.cfg.Page = src, page
			err := e.handle(t.Context(), lease, []event.Record{*fanout(t, "old", "new")})
			parked = append(parked, st.parked()...)
			if err == nil {
				break
			}
			require.ErrorIs(rt, err, work.ErrLeaseLost)
			if n := len(st.writes); n > 0 {
				lease.Cursor = st.writes[n-1].Cursors[3]
			}
		}
		require.Equal(rt, all, append([]string{}, parked...))
	})
}

// The next owner goes on after the page that was reached, whatever page the last one died at.
func TestExpandGoesOnAfterThePageReached(t *testing.T) {
	products := []string{"a1", "a2", "a3", "a4", "a5", "b1", "b2", "b3"}
	for fail := 1; fail <= 5; fail++ {
		t.Run(fmt.Sprint(fail), func(t *testing.T) {
			src := &pages{products: products, visible: 1 << 40}
			first, lease := &taken{fail: fail}, work.Lease{}
			require.ErrorIs(t, expander(src, first).handle(t.Context(), lease, []event.Record{*fanout(t, "a", "b")}), work.ErrLeaseLost)
			if n := len(first.writes); n > 0 {
				lease.Cursor = first.writes[n-1].Cursors[3]
			}
			second := &taken{}
			require.NoError(t, expander(src, second).handle(t.Context(), lease, []event.Record{*fanout(t, "a", "b")}))
			require.Equal(t, products, slices.Concat(first.parked(), second.parked()), "each product once")
		})
	}
}

// WAL is sent before a commit is visible: a page that does not see the row's own transaction is read again.
func TestExpandWaitsUntilTheRowIsVisible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &pages{products: []string{"a1"}, visible: 1 << 40, from: time.Now().Add(time.Minute)}
		st := &taken{}
		start := time.Now()
		require.NoError(t, expander(src, st).handle(t.Context(), work.Lease{}, []event.Record{*fanout(t, "a", "")}))
		require.GreaterOrEqual(t, time.Since(start), time.Minute)
		require.Less(t, time.Since(start), 62*time.Second)
		require.Equal(t, []string{"a1"}, st.parked())
		require.Equal(t, 1, src.asked, "the query may take minutes, and is not run for nothing")
	})
}

func TestAFanoutThatCannotBeExpandedStopsNothing(t *testing.T) {
	headers := []event.Header{{Key: event.HeaderBatch, Value: []byte("b1")}}
	for name, tt := range map[string]struct {
		rec *event.Record
		src pages
	}{
		"no JSON":           {&event.Record{Partition: 3, Offset: 7, Value: []byte("{"), Headers: headers}, pages{}},
		"no route":          {&event.Record{Partition: 3, Offset: 7, Value: []byte(`{"table":"catalog.other"}`), Headers: headers}, pages{}},
		"breaks on the row": {fanout(t, "a", ""), pages{broken: true}},
		"a long id":         {fanout(t, "a", ""), pages{products: []string{"a1" + strings.Repeat("x", 511)}}},
		"descends":          {fanout(t, "a", ""), pages{products: []string{"a2", "a1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			st := &taken{}
			tt.src.visible = 1 << 40
			e := expander(&tt.src, st)
			require.NoError(t, e.handle(t.Context(), work.Lease{}, []event.Record{*tt.rec}))
			require.Len(t, st.writes, 1)
			require.Equal(t, map[int32]int64{3: 8}, st.writes[0].Positions)
			require.Len(t, st.writes[0].Outbox, 1)
			require.Equal(t, "catalog.deadletters", st.writes[0].Outbox[0].Topic)
			require.Equal(t, tt.rec.Value, st.writes[0].Outbox[0].Value, "the original bytes")
			require.Contains(t, st.writes[0].Spoilt["b1"], "a fan-out was not expanded", "its batch can never be whole")
		})
	}
}

// A page that runs into the source's statement timeout is read in smaller pieces: asked for again as it was, it would
// hold up everything behind it for ever.
func TestAPageThatTakesTooLongIsMadeSmaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var products []string
		for i := range 25 {
			products = append(products, fmt.Sprintf("a%02d", i))
		}
		st := &taken{}
		src := &pages{products: products, visible: 1 << 40, most: 7}
		e := expander(src, st)
		e.cfg.Page = 100
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, e.handle(ctx, work.Lease{}, []event.Record{*fanout(t, "a", "")}))
		require.Equal(t, products, st.parked())
	})
}

// A query that pays no heed to where the page before ended would page for ever.
func TestAPageThatDoesNotAdvanceIsBuried(t *testing.T) {
	st := &taken{}
	e := expander(&pages{products: []string{"a1", "a2"}, visible: 1 << 40, deaf: true}, st)
	require.NoError(t, e.handle(t.Context(), work.Lease{}, []event.Record{*fanout(t, "a", "")}))
	require.Equal(t, []string{"a1", "a2"}, st.parked())
	last := st.writes[len(st.writes)-1]
	require.Contains(t, last.Spoilt["b1"], `returned "a1" after "a2"`)
	require.Equal(t, map[int32]int64{3: 8}, last.Positions)
}

// Rows without a product end no page early, and equal ids are one product.
func TestAPageMayHoldRowsWithoutAProduct(t *testing.T) {
	for nulls := range 5 {
		st := &taken{}
		src := &pages{products: []string{"a1", "a1", "a2"}, visible: 1 << 40, nulls: nulls}
		e := expander(src, st)
		e.cfg.Page = 4
		require.NoError(t, e.handle(t.Context(), work.Lease{}, []event.Record{*fanout(t, "a", "")}))
		require.Equal(t, []string{"a1", "a2"}, st.parked())
		require.Less(t, src.asked, 5)
	}
}

// unheard is a state that applies the first write under each token, and whose answer to it is lost.
type unheard struct {
	taken
	tokens map[work.Token]int
}

func (u *unheard) TakeIn(ctx context.Context, in work.TakeIn) error {
	if u.tokens[in.Token]++; u.tokens[in.Token] > 1 && in.Token != (work.Token{}) {
		return nil // applied before
	}
	if err := u.taken.TakeIn(ctx, in); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// A write whose answer is lost may have been applied: sent again, it must not add its dead letter and changes once more.
func TestAPageWhoseAnswerIsLostIsParkedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &unheard{tokens: map[work.Token]int{}}
		e := expander(&pages{products: []string{"a1", "a2", "a3"}, visible: 1 << 40}, nil)
		e.state = st
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		bad := event.Record{Partition: 3, Offset: 8, Value: []byte("{")}
		require.NoError(t, e.handle(ctx, work.Lease{}, []event.Record{*fanout(t, "a", ""), bad}))
		require.Equal(t, []string{"a1", "a2", "a3"}, st.parked())
		var dead int
		for _, w := range st.writes {
			dead += len(w.Outbox)
		}
		require.Equal(t, 1, dead)
	})
}
