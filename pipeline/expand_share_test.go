package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// ruleChange is the record of a change of a rule, each in a transaction of its own.
func ruleChange(t require.TestingT, offset int64, before, after map[string]string) event.Record {
	fan := event.Fanout{
		Table: "catalog.rules", XID: change.XID(100 + offset), BatchID: fmt.Sprintf("b%d", offset), Before: image(before), After: image(after),
		CommitTime: time.Unix(offset, 0).UTC(),
	}
	v, err := json.Marshal(fan)
	require.NoError(t, err)
	return event.Record{
		Partition: 3, Offset: offset, Key: []byte("k"), Value: v, Headers: []event.Header{{Key: event.HeaderBatch, Value: []byte(fan.BatchID)}},
	}
}

func image(row map[string]string) map[string]*string {
	if row == nil {
		return nil
	}
	out := map[string]*string{}
	for k, v := range row {
		out[k] = &v
	}
	return out
}

// A rule that is changed a hundred times in a moment concerns the same products each time.
func TestAHundredChangesOfARuleAreReadOnce(t *testing.T) {
	src := &pages{visible: 1 << 40}
	for i := range 2000 {
		src.products = append(src.products, fmt.Sprintf("a%04d", i))
	}
	var recs []event.Record
	for i := range int64(100) {
		recs = append(recs, ruleChange(t, i,
			map[string]string{"id": "1", "category": "a", "percent": fmt.Sprint(i)},
			map[string]string{"id": "1", "category": "a", "percent": fmt.Sprint(i + 1)}))
	}
	st := &taken{}
	e := expander(src, st)
	e.cfg.Page = 1000
	require.NoError(t, e.handle(t.Context(), work.Lease{}, recs[:1])) // the others come while it is expanded
	require.NoError(t, e.handle(t.Context(), work.Lease{}, recs[1:]))
	t.Logf("%d pages are read for %d changes of a rule over %d products", src.asked, len(recs), len(src.products))
	require.LessOrEqual(t, src.asked, 2*3)
	require.Equal(t, int64(100), st.writes[len(st.writes)-1].Positions[3])
	items, parked := map[[2]string]change.XID{}, map[[2]string]bool{}
	for _, w := range st.writes {
		for _, it := range w.Items {
			items[[2]string{it.BatchID, it.ProductID}] = it.XID
		}
		for _, p := range w.Parked {
			parked[[2]string{p.CampaignID, p.ProductID}] = true
		}
	}
	require.Len(t, items, 100*2000, "each transaction's batch has all its products")
	require.Len(t, parked, 100*2000)
	for i := range 100 {
		require.Equal(t, change.XID(100+i), items[[2]string{fmt.Sprintf("b%d", i), "a0007"}], "each item waits for its own transaction")
	}
}

// members lists the products of a category, whatever else the row says.
func members(category string) (ids []string) {
	for i := range 9 {
		if id := fmt.Sprintf("%s%d", category, i); (i+len(category))%3 != 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// Whatever a worker dies at, however the records are polled, and whoever asks for the same: each batch has exactly the
// products of its own row, and the position never passes a row that lacks one of them.
func TestSharedRunsKeepBatchesApart(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		categories := []string{"", "a", "b", "c"}
		src := &pages{visible: 1 << 40}
		for _, c := range categories[1:] {
			src.products = append(src.products, members(c)...)
		}
		var recs []event.Record
		want := map[string][]string{} // by batch
		n := rapid.IntRange(1, 12).Draw(rt, "requests")
		for i := range int64(n) {
			var rows [2]map[string]string
			for k := range rows {
				if c := rapid.SampledFrom(categories).Draw(rt, "category"); c != "" {
					rows[k] = map[string]string{"category": c, "percent": fmt.Sprint(i)}
					want[fmt.Sprintf("b%d", 2*i)] = append(want[fmt.Sprintf("b%d", 2*i)], members(c)...)
				}
			}
			recs = append(recs, ruleChange(rt, 2*i, rows[0], rows[1])) // offsets have gaps
		}
		got := map[[2]string]bool{}
		position, cursor := int64(0), ""
		for position < 2*int64(n)-1 {
			from := int(position+1) / 2
			upto := rapid.IntRange(from+1, n).Draw(rt, "polled")
			st := &taken{fail: rapid.IntRange(1, 30).Draw(rt, "dies at")}
			e := expander(src, st)
			e.cfg.Page = rapid.IntRange(1, 5).Draw(rt, "page")
			if src.running = nil; rapid.IntRange(0, 4).Draw(rt, "standby") == 0 {
				src.running = []change.XID{change.XID(100 + 2*rapid.IntRange(from, n).Draw(rt, "hidden"))}
			}
			lease := work.Lease{Fence: work.Fence{Partition: 3}, Position: position, Cursor: cursor}
			ctx, cancel := context.WithCancel(t.Context())
			src.unseen = cancel // what waits for its transaction is stopped, as by a lease that is given up
			err := e.handle(ctx, lease, recs[from:upto])
			cancel()
			for _, w := range st.writes {
				for _, it := range w.Items {
					got[[2]string{it.BatchID, it.ProductID}] = true
				}
				require.GreaterOrEqual(rt, w.Positions[3], position)
				position, cursor = w.Positions[3], w.Cursors[3]
				for offset := int64(0); offset < position; offset += 2 {
					for _, id := range want[fmt.Sprintf("b%d", offset)] {
						require.True(rt, got[[2]string{fmt.Sprintf("b%d", offset), id}], "b%d is passed at %d without %s", offset, position, id)
					}
				}
			}
			if err == nil {
				require.GreaterOrEqual(rt, position, recs[upto-1].Offset+1)
			}
		}
		for k := range got {
			require.Contains(rt, want[k[0]], k[1], "of batch %s", k[0])
		}
	})
}

func TestTheColumnsThatAQueryAsksFor(t *testing.T) {
	for sql, want := range map[string][]string{
		`SELECT id FROM p WHERE c = ($1::jsonb->>'id')::bigint AND id > $2 LIMIT $3`: {"id"},
		`SELECT f($1 ->> 'a', $1::json -> 'b', $10)`:                                 {"a", "b"},
		`SELECT f($1)`:                            nil,
		`SELECT f($1::jsonb->>'a', $1)`:           nil,
		`SELECT f($1::jsonb->>'it''s')`:           nil,
		"SELECT f($1::jsonb->>'a'\n'b')":          nil,
		`SELECT f($1::jsonb#>>'{a,b}')`:           nil,
		`SELECT f($1::jsonb->>lower('A'))`:        nil,
		`SELECT f(jsonb_each($1::jsonb)), $2, $3`: nil,
		`SELECT id FROM p`:                        nil,
	} {
		q := newFanoutQuery(sql)
		require.Equal(t, want, q.columns, sql)
	}
	q := newFanoutQuery(`SELECT f($1->>'a', $1->>'gone')`)
	require.Equal(t, image(map[string]string{"a": "1"}), q.asks(image(map[string]string{"a": "1", "b": "2"})))
}

// A transaction that no new snapshot sees yet holds up nobody who came before it.
func TestARequestThatIsNotVisibleHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		row := map[string]string{"category": "a"}
		recs := []event.Record{ruleChange(t, 0, nil, row), ruleChange(t, 1, nil, row)}
		src := &pages{products: []string{"a1", "a2", "a3"}, visible: 101} // 101 waits for a standby
		st := &taken{}
		e := expander(src, st)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- e.handle(ctx, work.Lease{}, recs) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, map[int32]int64{3: 1}, st.writes[len(st.writes)-1].Positions)
		require.Equal(t, []string{"a1", "a2", "a3"}, st.parked())
		cancel()
		require.Error(t, <-done)
	})
}

// A run that was begun goes on with those that shared it then, and with no other: not with one that could not be seen, nor
// one whose query was another.
func TestARunGoesOnWithThoseWhoSharedIt(t *testing.T) {
	row := map[string]string{"category": "a"}
	recs := []event.Record{ruleChange(t, 0, nil, row), ruleChange(t, 1, nil, row), ruleChange(t, 2, nil, row)}
	for name, tt := range map[string]struct {
		hidden []change.XID
		query  string
	}{
		"all of them":         {},
		"but one was hidden":  {hidden: []change.XID{101}},
		"of another query":    {query: "SELECT id FROM products WHERE c = ($1::jsonb->>'category') AND id > $2 LIMIT $3"},
		"hidden at the start": {hidden: []change.XID{102}},
	} {
		t.Run(name, func(t *testing.T) {
			src := &pages{products: []string{"a1", "a2", "a3", "a4", "a5"}, visible: 1 << 40, running: tt.hidden}
			first := &taken{fail: 2}
			require.ErrorIs(t, expander(src, first).handle(t.Context(), work.Lease{}, recs), work.ErrLeaseLost)
			src.running = nil
			second := &taken{}
			e := expander(src, second)
			if tt.query != "" {
				e.query["catalog.rules"] = newFanoutQuery(tt.query)
			}
			require.NoError(t, e.handle(t.Context(), work.Lease{Cursor: first.writes[0].Cursors[3]}, recs))
			got := map[[2]string]bool{}
			for _, w := range append(first.writes, second.writes...) {
				for _, it := range w.Items {
					got[[2]string{it.BatchID, it.ProductID}] = true
				}
			}
			require.Len(t, got, 3*5)
			switch name {
			case "all of them":
				require.Len(t, second.parked(), 3*3, "none is parked twice")
			case "of another query":
				require.Len(t, second.parked(), 3*5, "it may list others before the cursor")
			}
		})
	}
}
