package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"

	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// waitingDocuments is the documents query of the catalog of measureWaiting: one table.
const waitingDocuments = `SELECT id::text AS product_id, 'shop' || shop AS shop, jsonb_build_object('eligible', true, 'title', title, 'handle', 'p-' || id,
	'descriptionHtml', body, 'options', '[{"name": "Title", "values": ["Default Title"]}]'::jsonb,
	'variants', jsonb_build_array(jsonb_build_object('key', id::text, 'options', '["Default Title"]'::jsonb, 'sku', 'SKU-' || id, 'price', price::text,
		'policy', 'DENY', 'taxable', true, 'requiresShipping', true))) AS document
	FROM products WHERE id = ANY (ARRAY(SELECT i::bigint FROM unnest($1::text[]) i WHERE i ~ '^[0-9]{1,18}$'))`

// waitingDead are the shops that take nothing.
const waitingDead = 5

// measureWaiting begins with a catalog that stands in no shop: `shelfwire run`, in a process of its own, takes its first
// snapshot, parks all of it, and pushes what shops and machine allow, while live changes go on.
func measureWaiting(ctx context.Context, b *bench) ([]figure, error) {
	shops, products := b.few(1000, 20), b.few(1_000_000, 5000)
	r, err := newCaptureRig(ctx, b, kfakeBroker)
	defer r.close()
	if err != nil {
		return nil, err
	}
	err = r.exec(ctx, `DROP TABLE products, still CASCADE`,
		`CREATE TABLE products (id bigint PRIMARY KEY, shop int NOT NULL, title text NOT NULL, price numeric(12,2) NOT NULL, body text NOT NULL)`,
		fmt.Sprintf(`INSERT INTO products SELECT i, i %% %d, 'A title of some length for product ' || i, 12.50, repeat('What a description says. ', 20)
			FROM generate_series(1, %d) i`, shops, products), `VACUUM (FREEZE, ANALYZE) products`)
	if err != nil {
		return nil, err
	}
	sim, err := shopifysim.New(shopifysim.Config{Latency: shopifysim.Latency{Min: 20 * time.Millisecond, Max: 60 * time.Millisecond}})
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	serveCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); _ = sim.Serve(serveCtx, l) }() // ends with stop
	defer func() { stop(); <-done }()
	urls := map[string]any{}
	for i := range shops {
		s, err := sim.AddShop(shopifysim.ShopConfig{Domain: fmt.Sprintf("shop%d", i), Token: "simulated"})
		if err != nil {
			return nil, err
		}
		if i < waitingDead {
			s.SetHealth(shopifysim.PaymentRequired)
		}
		urls[s.Domain()] = map[string]any{"url": fmt.Sprintf("http://%s/%s", l.Addr(), s.Domain()), "token": "simulated"}
	}
	text, err := yaml.Marshal(map[string]any{
		"source":    map[string]any{"url": r.url, "snapshot_rate": 1_000_000_000},
		"kafka":     map[string]any{"brokers": []string{r.broker.Addr()}},
		"state":     map[string]any{"url": r.state},
		"shops":     urls,
		"documents": waitingDocuments,
		"routes":    []map[string]any{{"table": "public.products", "key": "id"}},
		"metrics":   map[string]any{"listen": "off"},
	})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(r.dir, "waiting.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	w := &waiting{r: r, shops: shops, products: products}
	if err := withRun(ctx, []string{"-c", file}, w.watch); err != nil {
		return nil, err
	}
	requests := 0
	for _, s := range sim.Shops() {
		requests += s.Stats().Requests
	}
	return []figure{atMost("memory of shelfwire run with 1,000 shops and 1,000,000 products that wait", w.m.peak, "MB", 512, fmt.Sprintf(
		"peak resident set of `shelfwire run`, all roles but Load, in a process of its own: from the start over the first snapshot of %d products, "+
			"of which %d were parked at the most, through %.0f s more of pushing them to %d simulated shops, %d of them dead (HTTP 402), while %d products a second change; "+
			"%d requests to shops; %d products of dead shops were held back; %.0f MB resident at the end",
		products, w.most, waitingLasts.Seconds(), shops, waitingDead, waitingRate, requests, w.dead, w.m.resident))}, nil
}

const (
	waitingLasts = 20 * time.Second
	waitingRate  = 50
)

// waiting is what is seen of the process.
type waiting struct {
	r               *captureRig
	shops, products int
	m               memory
	most, dead      int64
}

func (w *waiting) watch(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 4*time.Minute, errors.New("the snapshot was not taken in after 4 minutes"))
	defer cancel()
	conn, err := pgx.Connect(ctx, w.r.state)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = poll(ctx, 500*time.Millisecond, func(ctx context.Context) (bool, error) {
		var there bool
		if err := conn.QueryRow(ctx, `SELECT to_regclass('pauses') IS NOT NULL`).Scan(&there); err != nil || !there {
			return false, err
		}
		var n, taken int64
		err := conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM parked), (SELECT coalesce(sum(position), 0) FROM leases WHERE stage = 'push')`).Scan(&n, &taken)
		w.most = max(w.most, n)
		return taken >= int64(w.products), err
	})
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	w.r.b.say("waiting: %d products were parked at the most", w.most)
	err = pace(ctx, int(waitingLasts.Seconds())*waitingRate, time.Second/waitingRate, func(i int) error {
		return w.r.exec(ctx, fmt.Sprintf(`UPDATE products SET price = price + 0.01 WHERE id = %d`, 1+i*7919%w.products))
	})
	if err != nil {
		return err
	}
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM parked WHERE reason = 'SHOP_DEAD'`).Scan(&w.dead); err != nil {
		return err
	}
	w.m, err = p.memory()
	return err
}
