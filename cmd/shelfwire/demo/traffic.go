package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
)

// TrafficConfig is how much traffic there shall be.
type TrafficConfig struct {
	// URL is the connection string of the database, with the right to write to the schema catalog. Writers + 2
	// connections are kept open.
	URL string
	// Duration is how long to write. Default 60 s. The events of the story (import, price rule, switches) are spread
	// over it; each takes place, so a very short run takes as long as these need.
	Duration time.Duration
	// Seed decides what is written, but not the order in which the writers come to it.
	Seed uint64
	// Rate is how many small transactions to begin in a second. Default 20. More shows coalescing, less is easier to
	// follow.
	Rate float64
	// Writers is how many connections write the small transactions at the same time. Default 3.
	Writers int
	// Import is how many products the named batch brings. Default 500; at most as many as the catalog has.
	Import int
	// RuleProducts is how many products the price rule shall be about, at most. Default 400; the category that comes
	// nearest is taken.
	RuleProducts int
}

func (c TrafficConfig) withDefaults() TrafficConfig {
	if c.Duration <= 0 {
		c.Duration = time.Minute
	}
	if c.Rate <= 0 {
		c.Rate = 20
	}
	if c.Writers <= 0 {
		c.Writers = 3
	}
	if c.Import <= 0 {
		c.Import = 500
	}
	if c.RuleProducts <= 0 {
		c.RuleProducts = 400
	}
	return c
}

// Traffic is the programs of a back office at work, by eight kinds of code path: statements, COPY, MERGE, SQL functions,
// cascades, bulk statements, scripts through other drivers and an application with an HTTP interface. None of them
// knows that anybody listens.
type Traffic struct {
	config TrafficConfig
	scene  scene
	tally  tally
	psql   string // path; empty: not installed
	app    string // base URL of the application
}

// scene is what the traffic found in the catalog when it began. It is not changed afterwards.
type scene struct {
	products, variants               int64
	firstProduct, lastProduct        int64
	firstVariant, lastVariant        int64
	ruleCategory, ruleProducts       int64
	importCategories                 []int64
	merge                            bool // MERGE is known since PostgreSQL 15
	maxDeletes, maxDrops, maxRevokes int64
	// free is how many products cost nothing, as where a merchant quotes each price.
	free int64
}

// NewTraffic returns traffic that has not begun. It does no I/O.
func NewTraffic(c TrafficConfig) *Traffic {
	return &Traffic{config: c.withDefaults(), tally: newTally()}
}

// Run writes for the configured duration and returns when the last transaction has ended. It returns the context's
// error when it was cancelled before. A serialization conflict or deadlock is tried again; any other error of the
// database ends the traffic. It can be called once.
func (t *Traffic) Run(ctx context.Context) error {
	if err := t.look(ctx); err != nil {
		return fmt.Errorf("look at the catalog: %w", err)
	}
	application, err := openApplication(ctx, t.config.URL)
	if err != nil {
		return err
	}
	t.app = application.url
	t.psql, _ = exec.LookPath("psql") // without it, scripts run through database/sql only

	group, ctx := errgroup.WithContext(ctx)
	stop := make(chan struct{})
	group.Go(func() error { return application.run(stop) })
	group.Go(func() error {
		defer close(stop)
		return t.work(ctx)
	})
	return group.Wait()
}

// work runs the story and the small transactions, each on connections of its own.
func (t *Traffic) work(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range t.config.Writers {
		group.Go(func() error {
			return t.withWriter(ctx, i, func(w *writer) error { return w.mill(ctx, i) })
		})
	}
	group.Go(func() error {
		return t.withWriter(ctx, t.config.Writers, func(w *writer) error { return w.story(ctx) })
	})
	return group.Wait()
}

func (t *Traffic) withWriter(ctx context.Context, i int, run func(*writer) error) (err error) {
	conn, err := pgx.Connect(ctx, t.config.URL)
	if err != nil {
		return fmt.Errorf("connect a writer: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	return run(&writer{Traffic: t, conn: conn, rng: rand.New(rand.NewPCG(t.config.Seed, uint64(i)))})
}

// look finds out how large the catalog is, and sizes the events by it.
func (t *Traffic) look(ctx context.Context) (err error) {
	conn, err := pgx.Connect(ctx, t.config.URL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	s := &t.scene
	err = conn.QueryRow(ctx, `
		SELECT p.*, v.*, current_setting('server_version_num')::int >= 150000
		FROM (SELECT count(*), coalesce(min(id), 0), coalesce(max(id), 0) FROM catalog.products) p,
		     (SELECT count(*), coalesce(min(id), 0), coalesce(max(id), 0) FROM catalog.variants) v`).
		Scan(&s.products, &s.firstProduct, &s.lastProduct, &s.variants, &s.firstVariant, &s.lastVariant, &s.merge)
	if err != nil {
		return err
	}
	if s.products == 0 {
		return errors.New("it is empty: generate or load a catalog before the traffic")
	}
	// So few that the guard of a shop, which stops a fifth of it from going off sale, has no reason to wake up, and
	// that a catalog of a handful is not used up.
	s.maxDeletes, s.maxDrops, s.maxRevokes = max(1, s.products/50), max(1, s.variants/50), max(2, s.products/20)
	err = conn.QueryRow(ctx, `
		WITH RECURSIVE under(top, id) AS (
			SELECT id, id FROM catalog.categories
			UNION SELECT u.top, c.id FROM under u JOIN catalog.categories c ON c.parent_id = u.id)
		SELECT u.top, count(*) FROM under u JOIN catalog.products p ON p.category_id = u.id
		GROUP BY u.top ORDER BY count(*) > $1, abs(count(*) - $1), u.top LIMIT 1`, t.config.RuleProducts).
		Scan(&s.ruleCategory, &s.ruleProducts)
	if errors.Is(err, pgx.ErrNoRows) {
		return errors.New("none of its products has a category")
	}
	if err != nil {
		return err
	}
	err = conn.QueryRow(ctx, `SELECT count(DISTINCT product_id) FROM catalog.variants WHERE price = 0`).Scan(&s.free)
	if err != nil {
		return err
	}
	return conn.QueryRow(ctx, `SELECT array_agg(DISTINCT category_id) FROM catalog.products WHERE category_id IS NOT NULL`).
		Scan(&s.importCategories)
}

// writer is one connection of one program. It is not safe for concurrent use.
type writer struct {
	*Traffic
	conn *pgx.Conn
	rng  *rand.Rand
}

// mill does small transactions at its share of the rate until the time is over: each kind once, divided among the
// writers, then drawn by weight.
func (w *writer) mill(ctx context.Context, number int) error {
	var turn []action
	for i := number; i < len(chores); i += w.config.Writers {
		turn = append(turn, chores[i])
	}
	total := 0
	for _, a := range chores {
		total += a.weight
	}
	tick := time.NewTicker(time.Duration(float64(w.config.Writers) / w.config.Rate * float64(time.Second)))
	defer tick.Stop()
	end := time.NewTimer(w.config.Duration)
	defer end.Stop()
	for {
		var next action
		if len(turn) > 0 {
			next, turn = turn[0], turn[1:]
		} else {
			next = draw(w.rng.IntN(total))
		}
		if err := w.do(ctx, next); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end.C:
			return nil
		case <-tick.C:
		}
	}
}

// draw returns the chore that n falls on.
func draw(n int) action {
	for _, a := range chores {
		if n -= a.weight; n < 0 {
			return a
		}
	}
	return chores[0]
}

// story does the events that people wait for, one after the other, each at its time.
func (w *writer) story(ctx context.Context) error {
	began := time.Now()
	for _, e := range events {
		at := time.Duration(e.at * float64(w.config.Duration))
		wait := time.NewTimer(at - time.Since(began))
		select {
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		case <-wait.C:
		}
		if err := w.do(ctx, e.action); err != nil {
			return err
		}
	}
	return nil
}

// do runs an action, again when it has met another writer.
func (w *writer) do(ctx context.Context, a action) error {
	for attempt := 1; ; attempt++ {
		rows, err := a.run(ctx, w)
		if err == nil {
			w.tally.did(a.kind, a.path, rows)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if attempt == 10 || !conflict(err) {
			return fmt.Errorf("%s by %s: %w", a.kind, a.path, err)
		}
		w.tally.rolledBack()
	}
}

// conflict reports whether a transaction has met another one: a deadlock, a serialization failure, or a row that a
// MERGE found missing and another writer has inserted.
func conflict(err error) bool {
	if p, ok := errors.AsType[*pgconn.PgError](err); ok {
		return p.Code == "40P01" || p.Code == "40001" || p.Code == "23505"
	}
	return errors.Is(err, errConflict)
}

// errConflict is what the application and scripts say of a conflict.
var errConflict = errors.New("met another transaction")

// commit runs fn in a transaction and counts it.
func (w *writer) commit(ctx context.Context, fn func(tx pgx.Tx) (int64, error)) (int64, error) {
	var rows int64
	err := pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) (err error) {
		rows, err = fn(tx)
		return err
	})
	if err != nil {
		return 0, err
	}
	w.tally.committed()
	return rows, nil
}

// exec commits one statement and returns the number of rows that it has changed.
func (w *writer) exec(ctx context.Context, sql string, args ...any) (int64, error) {
	return w.commit(ctx, func(tx pgx.Tx) (int64, error) {
		tag, err := tx.Exec(ctx, sql, args...)
		return tag.RowsAffected(), err
	})
}

// anyProduct and anyVariant draw an id; the next row at or after it is meant. Ids that the traffic itself has added
// are among them.
func (w *writer) anyProduct() int64 {
	return w.scene.firstProduct + w.rng.Int64N(w.scene.lastProduct-w.scene.firstProduct+1+w.tally.added())
}

func (w *writer) anyVariant() int64 {
	return w.scene.firstVariant + w.rng.Int64N(max(w.scene.lastVariant-w.scene.firstVariant+1, 1))
}

// percent draws a factor from 0.9 to 1.1 as a decimal.
func (w *writer) factor() string { return money(90 + w.rng.IntN(21)) }
