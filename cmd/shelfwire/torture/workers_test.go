package torture

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// TestTwoWorkersShareAndTakeOver runs two whole pipelines side by side: they share the partitions, and what is killed
// of one goes to the other. The times are printed: on a busy machine they say little.
func TestTwoWorkersShareAndTakeOver(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	w := newWorld(t, setup{seed: 2, products: 120, plain: true})
	w.run("one")
	w.run("two")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	w.awaitSlot("one", "two")
	require.NoError(t, w.calm(ctx, time.Minute))

	// Either may hold the slot and the relay's lock, so each of them is killed once.
	for _, turn := range []struct{ victim, heir string }{{"one", "two"}, {"two", "one"}} {
		w.awaitShares(ctx, map[string]int{turn.victim: partitions / 2, turn.heir: partitions / 2})
		require.NoError(t, w.byName[turn.victim].kill(ctx, strike{down: time.Hour}))
		killed := time.Now()
		conn, err := pgx.Connect(ctx, w.sourceURL)
		require.NoError(t, err)
		tag, err := conn.Exec(ctx, `UPDATE catalog.variants SET price = price + 1 WHERE price > 0`)
		require.NoError(t, err)
		require.NoError(t, conn.Close(ctx))

		w.awaitShares(ctx, map[string]int{turn.heir: partitions})
		took := time.Since(killed)
		w.awaitSales(ctx)
		t.Logf("%s was killed: its partitions were taken over after %s, and all of %d new prices were in the shops after %s",
			turn.victim, took.Round(10*time.Millisecond), tag.RowsAffected(), time.Since(killed).Round(10*time.Millisecond))

		// The dead one comes back and gets its share again.
		w.revive(turn.victim)
	}
	w.awaitShares(ctx, map[string]int{"one": partitions / 2, "two": partitions / 2})
	require.NoError(t, w.calm(ctx, time.Minute))
	f := &findings{}
	require.NoError(t, w.runAudit(ctx, f))
	require.Empty(t, f.wrong)
	require.Positive(t, f.compared["audit: prices"])
	for _, name := range []string{"one", "two"} {
		require.NoError(t, w.endPart(name), "clean stop")
	}
}

// revive replaces a part that was killed for good by a new run of it.
func (w *world) revive(name string) {
	require.NoError(w.t, w.endPart(name))
	w.run(name)
}

// awaitShares waits until exactly these parts hold so many valid leases of Push.
func (w *world) awaitShares(ctx context.Context, want map[string]int) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		owners, err := query[string](ctx, w.stateURL, `SELECT owner FROM leases WHERE stage = 'push' AND owner <> '' AND expires > now()`)
		require.NoError(w.t, err)
		have := map[string]int{}
		for _, owner := range owners {
			have[w.partOf(owner)]++
		}
		if fmt.Sprint(have) == fmt.Sprint(want) { // maps are printed in the order of their keys
			return
		}
		require.True(w.t, rest(ctx, 50*time.Millisecond), "leases are held by %v, not by %v", have, want)
	}
}

// partOf says which part a lease's owner is: its process id stands in the name.
func (w *world) partOf(owner string) string {
	for _, p := range w.parts {
		p.mu.Lock()
		run, ok := p.last.(*process)
		p.mu.Unlock()
		if ok && strings.Contains(owner, fmt.Sprintf("-%d-", run.cmd.Process.Pid)) {
			return p.name
		}
	}
	return owner
}

// awaitSales waits until the shops sell what the source says, at its prices.
func (w *world) awaitSales(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		sold, err := w.sold(ctx)
		require.NoError(w.t, err)
		f := &findings{}
		require.NoError(w.t, w.compareSales(ctx, f, sold))
		if len(f.wrong) == 0 {
			require.Positive(w.t, f.compared["variants on sale"])
			return
		}
		require.True(w.t, rest(ctx, 50*time.Millisecond), "%s", f.wrong)
	}
}

// sold is what the shops have on sale.
func (w *world) sold(ctx context.Context) (map[sale]shopifysim.Variant, error) {
	sold := map[sale]shopifysim.Variant{}
	for _, s := range demo.Stores() {
		_, products, err := w.shopProducts(ctx, s.Name)
		if err != nil {
			return nil, err
		}
		for _, p := range products {
			sell(sold, s.Name, p)
		}
	}
	return sold, nil
}
