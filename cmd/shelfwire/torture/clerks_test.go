package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/route"
)

// trialRoutes are the routes of a trial, one table of each kind.
var trialRoutes = []route.Route{
	{Table: "public.items", Key: "id", Batch: true, BatchWhen: []string{"approved"}, Admin: "approved"},
	{Table: "public.variants", Key: "product_id"},
	{Table: "public.stock", Parent: &route.Parent{Column: "variant_id", Table: "public.variants", ID: "id", Key: "product_id"}},
	{Table: "public.notes", Key: "product_id"},
	{Table: "public.orders", Key: "product_id"},
	{Table: "public.categories", Query: "SELECT id FROM items WHERE $1::jsonb IS NOT NULL AND id > $2 ORDER BY id COLLATE \"C\" LIMIT $3"},
}

// trialTables are the tables of a trial, and the history: a trigger writes each row that is changed into a table that
// nobody captures, in the same transaction. What is rolled back is not in it either.
const trialTables = `
	CREATE TABLE items (id text PRIMARY KEY, title text, price numeric, body text, approved text);
	CREATE TABLE variants (id bigint PRIMARY KEY, product_id text NOT NULL, sku text, body text);
	CREATE UNIQUE INDEX variants_identity ON variants (id, product_id);
	CREATE TABLE stock (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, variant_id bigint REFERENCES variants ON DELETE CASCADE, qty int);
	CREATE TABLE notes (n bigint, product_id text, body text);
	CREATE SEQUENCE numbers;
	CREATE TABLE orders (id bigint, region int, product_id text, qty int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
	CREATE TABLE orders_0 PARTITION OF orders FOR VALUES IN (0);
	CREATE TABLE orders_1 PARTITION OF orders FOR VALUES IN (1);
	CREATE TABLE categories (id int PRIMARY KEY, name text);
	CREATE TABLE unrouted (id int);
	ALTER TABLE items REPLICA IDENTITY FULL; ALTER TABLE variants REPLICA IDENTITY FULL; ALTER TABLE stock REPLICA IDENTITY FULL;
	ALTER TABLE notes REPLICA IDENTITY FULL; ALTER TABLE categories REPLICA IDENTITY FULL;
	ALTER TABLE orders REPLICA IDENTITY FULL; ALTER TABLE orders_0 REPLICA IDENTITY FULL; ALTER TABLE orders_1 REPLICA IDENTITY FULL;

	CREATE TABLE history (seq bigserial, xid xid8 DEFAULT pg_current_xact_id(), tbl text, identity text, op text, old jsonb, new jsonb);
	CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO history (tbl, identity, op, old, new) SELECT coalesce(TG_ARGV[0], TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME),
			(SELECT relreplident FROM pg_class WHERE oid = TG_RELID), translate(left(TG_OP, 1), 'IUDT', 'cudt'), to_jsonb(OLD), to_jsonb(NEW);
		RETURN NULL;
	END $$;
	CREATE FUNCTION remember_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO history (tbl, op) VALUES (TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, 't');
		RETURN NULL;
	END $$;
	CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON items FOR EACH ROW EXECUTE FUNCTION remember();
	CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON variants FOR EACH ROW EXECUTE FUNCTION remember();
	CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON stock FOR EACH ROW EXECUTE FUNCTION remember();
	CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON notes FOR EACH ROW EXECUTE FUNCTION remember();
	CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION remember('public.orders');
	CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON categories FOR EACH ROW EXECUTE FUNCTION remember();
	CREATE TRIGGER forget AFTER TRUNCATE ON items EXECUTE FUNCTION remember_truncate();
	CREATE TRIGGER forget AFTER TRUNCATE ON variants EXECUTE FUNCTION remember_truncate();
	CREATE TRIGGER forget AFTER TRUNCATE ON stock EXECUTE FUNCTION remember_truncate();
	CREATE TRIGGER forget AFTER TRUNCATE ON notes EXECUTE FUNCTION remember_truncate();
	CREATE TRIGGER forget AFTER TRUNCATE ON orders EXECUTE FUNCTION remember_truncate();
	-- Who opens the slot that tells in which order transactions have committed sees one table: the history.
	CREATE PUBLICATION witness FOR TABLE history WITH (publish = 'insert');

	INSERT INTO items SELECT 'p' || i, 'title', i FROM generate_series(0, 39) i;
	INSERT INTO variants SELECT i, 'p' || i % 40, 'sku' FROM generate_series(0, 59) i;
	INSERT INTO stock (variant_id, qty) SELECT i, i FROM generate_series(0, 59) i;
	INSERT INTO notes SELECT nextval('numbers'), 'p' || i, 'note' FROM generate_series(0, 29) i;
	INSERT INTO orders SELECT i, i % 2, 'p' || i, 1 FROM generate_series(0, 39) i;
	INSERT INTO categories SELECT i, 'name' FROM generate_series(0, 4) i`

// clerks write to the source of a trial: several at a time, and one that changes the tables themselves.
type clerks struct {
	seed uint64
	// ddl: tables are changed too. truncates: now and then one is emptied.
	// whole: items keep the identity without which the program does not start, as their route reads a column of no key.
	ddl, truncates, whole bool
	rolls, commits, fails atomic.Int64
	// write draws a transaction, which begins and ends by its own statements; nil: for the tables of a trial.
	write func(*rand.Rand) []string
	// pace is added to the pause between two transactions of one clerk.
	pace time.Duration

	stopping context.CancelFunc
	running  sync.WaitGroup
	shift    uint64

	mu    sync.Mutex
	fatal error
}

// start sends the clerks to work, each with the connection string that url gives when it connects.
func (c *clerks) start(url func() string) {
	ctx, cancel := context.WithCancel(context.Background())
	c.stopping = cancel
	c.shift++
	write := c.write
	if write == nil {
		write = writeTransaction
	}
	for i := range uint64(2) {
		rng := rand.New(rand.NewPCG(c.seed, c.shift<<8|i))
		c.running.Go(func() { c.work(ctx, url, rng, write) })
	}
	if c.ddl {
		rng := rand.New(rand.NewPCG(c.seed, c.shift<<8|0xdd))
		c.running.Go(func() { c.work(ctx, url, rng, c.alterTables) })
	}
}

// stop lets them finish what they are at.
func (c *clerks) stop() {
	if c.stopping != nil {
		c.stopping()
		c.running.Wait()
		c.stopping = nil
	}
}

// work runs one transaction after the other. What the server refuses (a deadlock, a table that is not as it was) is
// rolled back; a connection that is lost is made anew, and whether its last commit went through only the history knows.
func (c *clerks) work(ctx context.Context, url func() string, rng *rand.Rand, write func(*rand.Rand) []string) {
	whole := context.WithoutCancel(ctx) // no statement is cut by us
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(whole)
		}
	}()
	pause := c.pace + time.Duration(3+rng.IntN(10))*time.Millisecond
	for rest(ctx, pause) {
		if conn == nil || conn.IsClosed() {
			limited, cancel := context.WithTimeout(whole, 5*time.Second)
			fresh, err := pgx.Connect(limited, url())
			if err == nil {
				_, err = fresh.Exec(limited, `SET lock_timeout = '500ms'; SET deadlock_timeout = '20ms'`)
			}
			cancel()
			if err != nil {
				rest(ctx, 20*time.Millisecond)
				continue
			}
			conn = fresh
		}
		c.transact(whole, conn, write(rng))
	}
}

func (c *clerks) transact(ctx context.Context, conn *pgx.Conn, statements []string) {
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err := conn.Exec(limited, strings.Join(statements, ";\n"))
	var refused *pgconn.PgError
	switch {
	case err == nil && statements[len(statements)-1] == "COMMIT":
		c.commits.Add(1)
	case err == nil:
		c.rolls.Add(1)
	case !errors.As(err, &refused):
		_ = conn.Close(limited)
	default:
		c.fails.Add(1)
		if refused.Code == "42601" { // a syntax error is ours
			c.mu.Lock()
			c.fatal = fmt.Errorf("%w in %q", err, statements)
			c.mu.Unlock()
		}
		if _, err := conn.Exec(limited, "ROLLBACK"); err != nil {
			_ = conn.Close(limited)
		}
	}
}

// unwanted asks for a snapshot, in a transaction or a savepoint that is rolled back.
const unwanted = `SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', '{"id": "unwanted", "table": "public.items"}')`

// writeTransaction draws one transaction: a few statements, some within savepoints that are rolled back, now and then
// more rows than the server keeps in memory.
func writeTransaction(rng *rand.Rand) []string {
	sql := []string{"BEGIN"}
	for range 1 + rng.IntN(5) {
		switch rng.IntN(7) {
		case 0:
			sql = append(sql, "SAVEPOINT a", writeStatement(rng), "ROLLBACK TO a")
		case 1:
			sql = append(sql, "SAVEPOINT a", writeStatement(rng), "SAVEPOINT b", writeStatement(rng), "ROLLBACK TO b", writeStatement(rng), "RELEASE a")
		case 2:
			sql = append(sql, "SAVEPOINT a", writeStatement(rng), "SAVEPOINT b", writeStatement(rng), "RELEASE b", "ROLLBACK TO a")
		}
		sql = append(sql, writeStatement(rng))
	}
	switch rng.IntN(60) {
	case 0: // a batch with a name
		sql = append(sql, `SELECT pg_logical_emit_message(true, 'shelfwire.batch', '{"name": "named", "admin": "clerk"}')`)
	case 1: // and one that is rolled back, which the server does not tell beside rows that stay
		sql = append(sql, "SAVEPOINT a", `SELECT pg_logical_emit_message(true, 'shelfwire.batch', '{"name": "gone"}')`, writeStatement(rng), "ROLLBACK TO a")
	case 2: // snapshots that nobody wants any more
		sql = append(sql, "SAVEPOINT a", unwanted, writeStatement(rng), "ROLLBACK TO a")
	case 3:
		return append(sql, unwanted, "ROLLBACK")
	}
	if rng.IntN(25) == 0 {
		sql = append(sql,
			`INSERT INTO items SELECT 'big' || g || '-' || pg_current_xact_id(), repeat('t', 900), g FROM generate_series(1, 80) g`,
			`SAVEPOINT big`, `UPDATE items SET price = price + 1 WHERE id LIKE 'big%'`, writeStatement(rng), `ROLLBACK TO big`,
			writeStatement(rng), `UPDATE items SET price = price + 1 WHERE id LIKE 'big%'`, `SAVEPOINT more`,
			`INSERT INTO notes SELECT nextval('numbers'), 'p' || g % 40, repeat('n', 700) FROM generate_series(1, 80) g`, `RELEASE more`,
			`DELETE FROM items WHERE id LIKE 'big%' AND right(id, 1) < '7'`)
		if rng.IntN(2) == 0 {
			sql = append(sql, `DELETE FROM items WHERE id LIKE 'big%'`, `DELETE FROM notes WHERE length(body) > 600`)
		}
	}
	return append(sql, []string{"COMMIT", "COMMIT", "COMMIT", "ROLLBACK"}[rng.IntN(4)])
}

// writeStatement draws one statement. A variant's product follows from its id, so that a stock row leads to one product.
func writeStatement(rng *rand.Rand) string {
	item := func() string { return fmt.Sprintf("p%d", rng.IntN(60)) }
	variant := func() int { return rng.IntN(80) }
	switch rng.IntN(19) {
	case 0:
		return fmt.Sprintf(`INSERT INTO items VALUES ('%s', 't', 1.50) ON CONFLICT (id) DO UPDATE SET title = left(items.title, 50) || 'x'`, item())
	case 1:
		return fmt.Sprintf(`UPDATE items SET price = price + 0.25 WHERE id = '%s'`, item())
	case 2:
		return fmt.Sprintf(`DELETE FROM items WHERE id = '%s'`, item())
	case 3: // another product
		return fmt.Sprintf(`UPDATE items SET id = left(id, 3) || '-' || pg_current_xact_id() || '-' || %d WHERE id = '%s'`, rng.IntN(1e9), item())
	case 4: // wide, and stored apart
		return fmt.Sprintf(`UPDATE items SET body = (SELECT string_agg(md5(g::text || %d), '') FROM generate_series(1, 150) g) WHERE id = '%s'`, rng.IntN(1e9), item())
	case 5:
		return fmt.Sprintf(`UPDATE items SET approved = 'admin%d' WHERE id IN ('%s', '%s')`, rng.IntN(3), item(), item())
	case 6:
		v := variant()
		return fmt.Sprintf(`INSERT INTO variants VALUES (%d, 'p%d', 's') ON CONFLICT (id) DO UPDATE SET sku = left(variants.sku, 50) || 'y'`, v, v%40)
	case 7:
		return fmt.Sprintf(`UPDATE variants SET body = repeat(md5('%d'), 5), sku = NULL WHERE id %% 11 = %d`, rng.IntN(1e9), rng.IntN(11))
	case 8:
		return fmt.Sprintf(`DELETE FROM variants WHERE id = %d`, variant()) // and its stock
	case 9:
		return fmt.Sprintf(`INSERT INTO stock (variant_id, qty) SELECT id, 1 FROM variants WHERE id %% 20 = %d`, rng.IntN(20))
	case 10:
		return fmt.Sprintf(`UPDATE stock SET qty = qty + 1 WHERE variant_id %% 7 = %d`, rng.IntN(7))
	case 11:
		return fmt.Sprintf(`DELETE FROM stock WHERE qty > %d`, 3+rng.IntN(60))
	case 12:
		return fmt.Sprintf(`INSERT INTO notes SELECT nextval('numbers'), 'p' || g, 'note' FROM generate_series(%d, %d) g`, rng.IntN(20), 20+rng.IntN(10))
	case 13: // another product, without a key
		return fmt.Sprintf(`UPDATE notes SET product_id = '%s', body = left(body, 60) || 'z' WHERE n %% 17 = %d`, item(), rng.IntN(17))
	case 14:
		return fmt.Sprintf(`DELETE FROM notes WHERE n %% 13 = %d`, rng.IntN(13))
	case 15:
		return fmt.Sprintf(`INSERT INTO orders VALUES (%d, %d, '%s', 1) ON CONFLICT DO NOTHING`, rng.IntN(200), rng.IntN(2), item())
	case 16: // another partition
		return fmt.Sprintf(`UPDATE orders SET region = 1 - region, qty = qty + 1 WHERE id = %d AND region < 2`, rng.IntN(200))
	case 17:
		return fmt.Sprintf(`UPDATE orders SET product_id = '%s' WHERE id %% 9 = %d`, item(), rng.IntN(9))
	}
	return fmt.Sprintf(`INSERT INTO categories VALUES (%d, 'c') ON CONFLICT (id) DO UPDATE SET name = left(categories.name, 50) || 'z'`, rng.IntN(5))
}

// alterTables draws one change of the tables, in a transaction with rows before and after it. Columns that come and go
// are called x_...
func (c *clerks) alterTables(rng *rand.Rand) []string {
	table := []string{"items", "variants", "notes", "stock"}[rng.IntN(4)]
	touch := fmt.Sprintf(`UPDATE %s SET %s WHERE %s`, table, map[string]string{
		"items": "title = left(title, 40) || 'd'", "variants": "sku = left(sku, 40) || 'd'", "notes": "body = left(body, 40) || 'd'", "stock": "qty = qty + 1",
	}[table], map[string]string{
		"items": "id < 'p3'", "variants": "id < 9", "notes": "n % 5 = 0", "stock": "id % 5 = 0",
	}[table])
	column := fmt.Sprintf("x_%d", rng.IntN(2))
	var sql []string
	switch rng.IntN(13) {
	case 0, 1:
		sql = []string{fmt.Sprintf(`ALTER TABLE %s ADD IF NOT EXISTS %s text DEFAULT 'new'`, table, column)}
	case 2:
		sql = []string{fmt.Sprintf(`ALTER TABLE %s DROP IF EXISTS %s`, table, column)}
	case 3:
		sql = []string{fmt.Sprintf(`ALTER TABLE %s RENAME %s TO x_renamed`, table, column), touch, fmt.Sprintf(`ALTER TABLE %s RENAME x_renamed TO %s`, table, column)}
	case 4:
		sql = []string{fmt.Sprintf(`ALTER TABLE %s ALTER %s DROP DEFAULT, ALTER %s TYPE int USING length(%s::text)`, table, column, column, column)}
	case 5:
		sql = []string{fmt.Sprintf(`ALTER TABLE %s ALTER %s DROP DEFAULT, ALTER %s TYPE text USING %s::text`, table, column, column, column)}
	case 6: // all rows are written anew, and nobody hears of it
		sql = []string{
			`ALTER TABLE items ALTER price TYPE text USING price::text`, `UPDATE items SET title = left(title, 40) || 'p' WHERE id < 'p3'`,
			`ALTER TABLE items ALTER price TYPE numeric USING price::numeric`,
		}
	case 7:
		name := table + "_away"
		sql = []string{
			fmt.Sprintf(`ALTER TABLE %s RENAME TO %s`, table, name),
			fmt.Sprintf(`UPDATE %s SET %s`, name, map[string]string{"items": "title = title", "variants": "sku = sku", "notes": "body = body", "stock": "qty = qty"}[table]),
			fmt.Sprintf(`ALTER TABLE %s RENAME TO %s`, name, table),
		}
	case 8:
		to := []string{"FULL", "FULL", "DEFAULT"}[rng.IntN(3)]
		sql = []string{`ALTER TABLE items REPLICA IDENTITY ` + to, `UPDATE items SET title = left(title, 40) || 'i' WHERE id < 'p3'`}
		if c.whole || rng.IntN(2) == 0 {
			to = []string{"FULL", "USING INDEX variants_identity"}[rng.IntN(2)]
			sql = []string{`ALTER TABLE variants REPLICA IDENTITY ` + to, `UPDATE variants SET sku = left(sku, 40) || 'i' WHERE id < 9`}
		}
	case 9: // nothing is written to the table while it is not published
		sql = []string{`LOCK TABLE ` + table, `ALTER PUBLICATION shelfwire DROP TABLE ` + table, `ALTER PUBLICATION shelfwire ADD TABLE ` + table}
	case 10:
		region := 2 + rng.IntN(4)
		sql = []string{
			fmt.Sprintf(`CREATE TABLE orders_%d (LIKE orders INCLUDING ALL)`, region), fmt.Sprintf(`ALTER TABLE orders_%d REPLICA IDENTITY FULL`, region),
			fmt.Sprintf(`ALTER TABLE orders ATTACH PARTITION orders_%d FOR VALUES IN (%d)`, region, region),
			fmt.Sprintf(`INSERT INTO orders SELECT g, %d, 'p' || g, 1 FROM generate_series(1, 5) g`, region),
			fmt.Sprintf(`UPDATE orders SET region = %d WHERE id = %d AND region < 2`, region, rng.IntN(200)),
		}
	case 11:
		return []string{`VACUUM FULL ` + table} // the rows move to another file
	case 12:
		if !c.truncates || rng.IntN(3) > 0 {
			return []string{"BEGIN", touch, "COMMIT"}
		}
		sql = []string{
			[]string{`TRUNCATE notes`, `TRUNCATE stock, notes`, `TRUNCATE variants CASCADE`, `TRUNCATE orders`}[rng.IntN(4)],
			`INSERT INTO notes VALUES (nextval('numbers'), 'p1', 'after')`,
		}
	}
	sql = append(append([]string{"BEGIN", touch}, sql...), touch)
	return append(sql, []string{"COMMIT", "COMMIT", "COMMIT", "ROLLBACK"}[rng.IntN(4)])
}
