package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

const (
	commitProducts = 500
	commitEach     = 4 // in a row under one condition, in one round
	commitPause    = 200 * time.Millisecond
)

// commitTimes are how long commits took, and their transactions as a whole.
type commitTimes struct{ commit, whole []time.Duration }

func (t *commitTimes) quantile(q float64) (commit, whole float64) {
	slices.Sort(t.commit)
	slices.Sort(t.whole)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return ms(quantile(t.commit, q)), ms(quantile(t.whole, q))
}

// measureCommit times the COMMIT of an application that approves 500 products, with no pipeline, with one, and with one
// whose shops take nothing, by turns. Source and state are databases of one server, as by default; it syncs to disk.
func measureCommit(ctx context.Context, b *bench) ([]figure, error) {
	rounds := b.few(20, 1)
	r, err := b.startParts(ctx, rigConfig{products: b.few(1000, 600), stores: 3})
	defer r.close()
	if err != nil {
		return nil, err
	}
	r.cfg.ClickHouse.URL = ""
	for _, sql := range []string{
		`ALTER SYSTEM SET fsync = on`, `ALTER SYSTEM SET full_page_writes = on`, `SELECT pg_reload_conf()`,
		`UPDATE catalog.products SET approved_at = coalesce(approved_at, now())`,
		`UPDATE catalog.variants SET approved_at = coalesce(approved_at, now()), price = coalesce(price, 10)`,
	} {
		if _, err := r.conn.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("%s: %w", sql, err)
		}
	}
	var off, on, dead commitTimes
	if err := b.runPipeline(ctx, r, func(ctx context.Context, r *benchRig) error { return r.settle(ctx) }); err != nil {
		return nil, err
	}
	r.app = nil // it is closed
	for i := range rounds {
		if err := r.approve(ctx, &off); err != nil {
			return nil, err
		}
		err := b.runPipeline(ctx, r, func(ctx context.Context, r *benchRig) error {
			if err := r.streamed(ctx); err != nil { // what was committed without a pipeline
				return err
			}
			if err := r.approve(ctx, &on); err != nil {
				return err
			}
			r.health(shopifysim.PaymentRequired)
			return r.approve(ctx, &dead)
		})
		r.app = nil
		r.health(shopifysim.Healthy)
		if err == nil {
			_, err = query[int64](ctx, r.parts.stateURL, `WITH a AS (DELETE FROM parked RETURNING 1), b AS (UPDATE shops SET dead_since = NULL, reason = '', next_probe = NULL RETURNING 1)
				SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b)`)
		}
		if err != nil {
			return nil, err
		}
		if i%5 == 4 {
			b.say("commit: round %d of %d", i+1, rounds)
		}
	}
	return commitFigures(rounds, &off, &on, &dead), nil
}

func commitFigures(rounds int, off, on, dead *commitTimes) []figure {
	var out []figure
	off50, offWhole50 := off.quantile(0.5)
	off99, offWhole99 := off.quantile(0.99)
	for _, c := range []struct {
		name  string
		words string
		times *commitTimes
	}{
		{"pipeline on", "with the whole pipeline but Load in the process of the clients, pushing them to three simulated shops", on},
		{"every shop dead", "the same with shops that answer HTTP 402 to everything", dead},
	} {
		p50, whole50 := c.times.quantile(0.5)
		p99, whole99 := c.times.quantile(0.99)
		how := func(with, without, whole, wholeWithout float64) string {
			return fmt.Sprintf("one transaction that approves %d products and gives their variants new prices, %d in a row %d ms apart, %d rounds by turns: without "+
				"pipeline, with it, with dead shops; COMMIT alone, %.2f ms against %.2f ms; the whole transaction %.1f ms against %.1f ms; source and state in one "+
				"server with fsync on; %s", commitProducts, commitEach, commitPause.Milliseconds(), rounds, with, without, whole, wholeWithout, c.words)
		}
		how50, how99 := how(p50, off50, whole50, offWhole50), how(p99, off99, whole99, offWhole99)
		out = append(out,
			atMost("transaction of 500 approvals, "+c.name+" ÷ off, p50", whole50/offWhole50, "ratio", 1.1, how50),
			atMost("transaction of 500 approvals, "+c.name+" ÷ off, p99", whole99/offWhole99, "ratio", 1.5, how99),
			atMost("its COMMIT alone, "+c.name+" ÷ off, p50", p50/off50, "ratio", 1.1, how50),
			atMost("its COMMIT alone, "+c.name+" ÷ off, p99", p99/off99, "ratio", 1.5, how99))
	}
	return out
}

func (r *benchRig) health(kind shopifysim.FaultKind) {
	for _, s := range r.parts.sim.Shops() {
		s.SetHealth(kind)
	}
}

// approve commits a few transactions as an application would, and times them.
func (r *benchRig) approve(ctx context.Context, t *commitTimes) error {
	return pace(ctx, commitEach, commitPause, func(int) error {
		began := time.Now()
		tx, err := r.conn.Begin(ctx)
		if err != nil {
			return err
		}
		price := r.price()
		for _, sql := range []string{
			`UPDATE catalog.products SET approved_at = now(), approved_by = 'bench' || $1::text WHERE id <= $2`,
			`UPDATE catalog.variants SET price = $1::text::numeric, approved_at = now() WHERE product_id <= $2`,
		} {
			if _, err := tx.Exec(ctx, sql, price, commitProducts); err != nil {
				return err
			}
		}
		before := time.Now()
		if err := tx.Commit(ctx); err != nil {
			return err
		}
		end := time.Now()
		t.commit, t.whole = append(t.commit, end.Sub(before)), append(t.whole, end.Sub(began))
		return nil
	})
}
