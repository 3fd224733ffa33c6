package pipeline

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// lateParents sees a transaction only when it is asked for the second time, as where its commit waits for a standby.
type lateParents struct {
	captureSource

	late  change.XID
	calls int
}

func (s *lateParents) ParentKeys(_ context.Context, _ route.Parent, ids []string) (map[string]change.ParentRow, change.Snapshot, error) {
	s.calls++
	product, snap := change.ProductID("old"), change.Snapshot{Xmin: s.late, Xmax: 1000, Running: []change.XID{s.late}}
	if s.calls > 1 {
		product, snap = "new", change.Snapshot{Xmin: 1000, Xmax: 1000}
	}
	out := map[string]change.ParentRow{}
	for _, id := range ids {
		out[id] = change.ParentRow{ID: id, Product: product}
	}
	return out, snap, nil
}

// What the stream has said of a parent's row may be forgotten when a row of it comes. A look-up that has not seen that
// transaction yet would bring back what was before it.
func TestParentsAreNotOlderThanTheStream(t *testing.T) {
	source := &lateParents{late: 5}
	session := newMemorySession(t, &memoryStream{benchStream: *newBenchStream(0, 0)}, false)
	session.c.parts.Source = source
	session.router.cache = newRouterCache(1)
	shops, products := testRelation("shops", "id", "product"), testRelation("products", "id", "shop")
	for i, rows := range [][]*change.Change{
		{{Op: change.Update, Relation: shops, After: testTuple("7", "new")}, {Op: change.Create, Relation: shops, After: testTuple("8", "other")}},
		{{Op: change.Create, Relation: products, After: testTuple("1", "7")}},
	} {
		tx := &change.Transaction{XID: change.XID(5 + i), CommitLSN: change.LSN(100 * (i + 1)), CommitTime: time.Unix(1, 0)}
		require.NoError(t, session.take(&change.Event{Kind: change.EventBegin, Transaction: tx}))
		for n, row := range rows {
			row.Position = change.Position{CommitLSN: tx.CommitLSN, Ordinal: uint64(n + 1)}
			require.NoError(t, session.take(&change.Event{Kind: change.EventChange, Transaction: tx, Change: row}))
		}
		require.NoError(t, session.take(&change.Event{Kind: change.EventCommit, Transaction: tx, EndLSN: tx.CommitLSN + 50}))
	}
	require.NoError(t, session.drain(t.Context()))
	var keys []string
	for _, rec := range session.closeUnit().records {
		if rec.Topic == "catalog."+event.Changes {
			keys = append(keys, string(rec.Key))
		}
	}
	require.Equal(t, []string{"new"}, keys)
	require.Equal(t, 2, source.calls)
}

// hungParents sees every transaction but one, whose commit waits for a standby.
type hungParents struct {
	memoryParents

	hung change.XID
}

func (s hungParents) Snapshot(context.Context) (change.Snapshot, error) {
	return change.Snapshot{Xmin: s.hung, Xmax: 1 << 40, Running: []change.XID{s.hung}}, nil
}

// However much passes while a commit hangs, it is not forgotten, and what positions must say stays little. The next session
// goes on from there.
func TestACommitThatHangsIsNotForgotten(t *testing.T) {
	const hung = 5
	session := newMemorySession(t, &memoryStream{benchStream: *newBenchStream(0, 0)}, false)
	session.c.parts.Source = hungParents{hung: hung}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { _ = session.prover.run(ctx, session.c) }()
	go func() {
		for u := range session.units {
			session.written(u)
		}
	}()
	defer close(session.units)
	shops := testRelation("shops", "id", "product")
	for i := range 50_000 {
		tx := &change.Transaction{XID: change.XID(hung + i), CommitLSN: change.LSN(100 * (i + 1)), CommitTime: time.Unix(1, 0)}
		row := &change.Change{
			Op: change.Update, Relation: shops, After: testTuple("7", "p"), Position: change.Position{CommitLSN: tx.CommitLSN, Ordinal: 1},
		}
		for _, ev := range []change.Event{
			{Kind: change.EventBegin, Transaction: tx},
			{Kind: change.EventChange, Transaction: tx, Change: row},
			{Kind: change.EventCommit, Transaction: tx, EndLSN: tx.CommitLSN + 50},
		} {
			require.NoError(t, session.take(&ev))
			require.NoError(t, session.after(t.Context()))
		}
		require.LessOrEqual(t, len(session.book.recent), captureUnseenMost)
	}
	pos := session.closeUnit().position
	require.Contains(t, pos.Unseen, change.XID(hung))
	require.Contains(t, pos.UnseenParents["public.shops"], change.XID(hung))

	raw, err := json.Marshal(pos)
	require.NoError(t, err)
	pos = event.Position{}
	require.NoError(t, json.Unmarshal(raw, &pos))
	hangs := change.Snapshot{Xmin: hung, Xmax: 1 << 40, Running: []change.XID{hung}}
	next := newRouter(session.c.cfg.Routes)
	next.behind(pos.Unseen, pos.UnseenParents)
	require.True(t, next.tables["public.shops"].ahead(hangs))
	require.False(t, next.tables["public.shops"].ahead(change.Snapshot{Xmin: 1 << 40, Xmax: 1 << 40}))
	require.False(t, next.tables["public.shops"].ahead(hangs), "it is visible to all that come later")

	// A table that has become a parent since may have been changed by any of them; one that was a parent only by its own.
	next = newRouter(session.c.cfg.Routes)
	next.behind(change.XIDs{hung}, map[string]change.XIDs{"public.others": {hung}})
	require.True(t, next.tables["public.shops"].ahead(hangs))
	next.behind(change.XIDs{hung}, map[string]change.XIDs{"public.shops": {}})
	require.False(t, next.tables["public.shops"].ahead(hangs))
}
