package demo

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// receiveGoods books a delivery in, as a nightly script does: through psql, or through database/sql in the simple
// protocol.
func receiveGoods(ctx context.Context, w *writer) (int64, error) {
	variant, units := w.anyVariant(), 1+w.rng.IntN(40)
	run := w.runScript
	if w.psql == "" || w.rng.IntN(2) == 0 {
		run = w.runSQL
	}
	rows, err := run(ctx, variant, units)
	if err == nil {
		w.tally.committed()
	}
	return rows, err
}

// delivery is the script; psql replaces its variables.
const delivery = `
BEGIN;
UPDATE catalog.stock SET physical = physical + :units, approved = approved + :units
WHERE variant_id = (SELECT variant_id FROM catalog.stock WHERE variant_id >= :variant ORDER BY variant_id LIMIT 1);
SELECT 'changed ' || count(*) FROM catalog.stock
WHERE variant_id = (SELECT variant_id FROM catalog.stock WHERE variant_id >= :variant ORDER BY variant_id LIMIT 1);
COMMIT;
`

// runScript runs the delivery in psql. The password goes by the environment, where other users cannot read it.
func (w *writer) runScript(ctx context.Context, variant int64, units int) (int64, error) {
	c := w.conn.Config()
	psql := exec.CommandContext(ctx, w.psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1",
		"--set=variant="+strconv.FormatInt(variant, 10), "--set=units="+strconv.Itoa(units), "--file=-")
	psql.Env = append(os.Environ(), "PGHOST="+c.Host, "PGPORT="+strconv.Itoa(int(c.Port)), "PGUSER="+c.User,
		"PGPASSWORD="+c.Password, "PGDATABASE="+c.Database)
	psql.Stdin = strings.NewReader(delivery)
	var out, errs bytes.Buffer
	psql.Stdout, psql.Stderr = &out, &errs
	psql.WaitDelay = time.Second
	if err := psql.Run(); err != nil {
		message := strings.TrimSpace(errs.String())
		if strings.Contains(message, "deadlock detected") {
			err = errConflict
		}
		return 0, fmt.Errorf("psql: %w: %s", err, message)
	}
	_, count, _ := strings.Cut(strings.TrimSpace(out.String()), "changed ")
	return strconv.ParseInt(count, 10, 64)
}

func (w *writer) runSQL(ctx context.Context, variant int64, units int) (rows int64, err error) {
	c := w.conn.Config().Copy()
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	db := stdlib.OpenDB(*c)
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	result, err := tx.ExecContext(ctx, `
		UPDATE catalog.stock SET physical = physical + $2::int, approved = approved + $2::int
		WHERE variant_id = (SELECT variant_id FROM catalog.stock WHERE variant_id >= $1::bigint ORDER BY variant_id LIMIT 1)`,
		variant, units)
	if err != nil {
		return 0, errors.Join(err, rollback(tx))
	}
	rows, err = result.RowsAffected()
	if err != nil {
		return 0, errors.Join(err, rollback(tx))
	}
	return rows, tx.Commit()
}

func rollback(tx *sql.Tx) error {
	if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
		return err
	}
	return nil
}

// application is the demo's own program: an HTTP interface on loopback, with one connection to the database.
type application struct {
	url    string
	listen net.Listener
	conn   *pgx.Conn
	busy   chan struct{} // holds one token while the connection is in use
}

// openApplication connects and listens; run serves.
func openApplication(ctx context.Context, database string) (*application, error) {
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return nil, fmt.Errorf("connect the application: %w", err)
	}
	listen, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the application: %w", err), conn.Close(ctx))
	}
	return &application{
		url: "http://" + listen.Addr().String(), listen: listen, conn: conn, busy: make(chan struct{}, 1),
	}, nil
}

// run serves until stop is closed and the last request has ended, at most 5 s later.
func (a *application) run(stop <-chan struct{}) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", a.answer(a.order))
	mux.HandleFunc("POST /products/approve", a.answer(a.approve))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(a.listen) }()
	var err error
	select {
	case err = <-ended:
	case <-stop:
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err = server.Shutdown(ctx); err != nil {
			err = errors.Join(err, server.Close())
		}
		if end := <-ended; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err = errors.Join(err, a.conn.Close(ctx)); err != nil {
		return fmt.Errorf("serve the application: %w", err)
	}
	return nil
}

// answer runs a request in a transaction and answers the number of rows that it has changed.
func (a *application) answer(run func(context.Context, pgx.Tx, *http.Request) (int64, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case a.busy <- struct{}{}:
			defer func() { <-a.busy }()
		case <-r.Context().Done():
			return
		}
		var rows int64
		err := pgx.BeginFunc(r.Context(), a.conn, func(tx pgx.Tx) (err error) {
			rows, err = run(r.Context(), tx, r)
			return err
		})
		switch {
		case err == nil:
			_, _ = fmt.Fprint(w, rows) // a caller that is gone learns nothing, and the transaction stands
		case conflict(err):
			http.Error(w, err.Error(), http.StatusConflict)
		default:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// order takes an order of one variant and reserves its units.
func (a *application) order(ctx context.Context, tx pgx.Tx, r *http.Request) (int64, error) {
	tag, err := tx.Exec(ctx, `
		WITH line AS (
			SELECT v.id, v.price, s.warehouse_id FROM catalog.variants v JOIN catalog.stock s ON s.variant_id = v.id
			WHERE v.id >= $1 AND v.price IS NOT NULL ORDER BY v.id, s.warehouse_id LIMIT 1
		), placed AS (
			INSERT INTO catalog.orders (store_id, number, status, total)
			SELECT $2, $3, 'Paid', price * $4::int FROM line RETURNING id
		)
		INSERT INTO catalog.order_items (order_id, line, variant_id, quantity, price)
		SELECT placed.id, 1, line.id, $4, line.price FROM placed, line`,
		r.FormValue("variant"), int64(northID), r.FormValue("number"), r.FormValue("units"))
	if err != nil || tag.RowsAffected() == 0 {
		return 0, err
	}
	_, err = tx.Exec(ctx, `
		SELECT catalog.book_stock(i.variant_id, s.warehouse_id, i.quantity)
		FROM catalog.orders o JOIN catalog.order_items i ON i.order_id = o.id
		JOIN LATERAL (SELECT warehouse_id FROM catalog.stock WHERE variant_id = i.variant_id ORDER BY 1 LIMIT 1) s ON true
		WHERE o.store_id = $1 AND o.number = $2`, int64(northID), r.FormValue("number"))
	return tag.RowsAffected() + 2, err
}

func (a *application) approve(ctx context.Context, tx pgx.Tx, r *http.Request) (int64, error) {
	tag, err := tx.Exec(ctx, `
		UPDATE catalog.products SET approved_at = now(), approved_by = $2
		WHERE id = (SELECT id FROM catalog.products WHERE id >= $1 AND approved_at IS NULL ORDER BY id LIMIT 1)`,
		r.FormValue("from"), r.FormValue("by"))
	return tag.RowsAffected(), err
}

func placeOrder(ctx context.Context, w *writer) (int64, error) {
	number := fmt.Sprintf("D-%x", w.rng.Uint64())
	return w.post(ctx, "/orders", url.Values{
		"variant": {strconv.FormatInt(w.anyVariant(), 10)}, "number": {number}, "units": {strconv.Itoa(1 + w.rng.IntN(2))},
	})
}

func approveByHTTP(ctx context.Context, w *writer) (int64, error) {
	return w.post(ctx, "/products/approve", url.Values{
		"from": {strconv.FormatInt(w.anyProduct(), 10)}, "by": {pick(w.rng, admins)},
	})
}

// post calls the application with a form; its answer is a number of rows.
func (w *writer) post(ctx context.Context, path string, form url.Values) (int64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.app+path, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return 0, err
	}
	switch response.StatusCode {
	case http.StatusOK:
		w.tally.committed()
		return strconv.ParseInt(string(body), 10, 64)
	case http.StatusConflict:
		return 0, fmt.Errorf("%s: %w: %s", path, errConflict, body)
	}
	return 0, fmt.Errorf("%s answers %s: %s", path, response.Status, body)
}
