package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// Declared is what a configuration says about the source.
type Declared struct {
	Routes []route.Route
	// Mirrored are tables that are captured beside those of the routes.
	Mirrored []string
	// Documents is the documents query.
	Documents string
	// Unrouted are tables ("schema.table") that Documents reads and that need no route.
	Unrouted []string
	// Captured are tables that have been captured before. One of them that is gone is a gap, as it is while capture runs:
	// it stops none of the others. Any other table that is not there is a mistake.
	Captured []string
	// Shops are the names that the column shop of Documents may hold. Nil: any.
	Shops []string
}

// FindingKind says what a finding means for a start.
type FindingKind string

// The kinds of findings.
const (
	// FindingMistake: the configuration does not fit the database. Finding.Key says where.
	FindingMistake FindingKind = "mistake"
	// FindingSource: the database lacks something, which an administrator gives it.
	FindingSource FindingKind = "source"
	// FindingAway: the database did not answer, or is no primary at the moment. Nothing else was looked at.
	FindingAway FindingKind = "away"
	// FindingGap: everything works, and some changes or some products will reach no shop.
	FindingGap FindingKind = "gap"
	// FindingNote: nothing is wrong; a person may want to know.
	FindingNote FindingKind = "note"
)

// Finding is one thing that stands in the way, or should be known, with what to do about it.
type Finding struct {
	Kind FindingKind `json:"kind"`
	// Where is a place as the reader knows it: "server", "route catalog.stock", "documents query".
	Where string `json:"where"`
	// Key is the place in the configuration, such as "routes.3.parent.table"; empty where none is meant. Offset is the
	// character of its SQL, from 1, that the server points at; 0 for none.
	Key    string `json:"key,omitempty"`
	Offset int    `json:"offset,omitempty"`
	// Problem says what is wrong, Mend what to do: SQL where SQL mends it.
	Problem string `json:"problem"`
	Mend    string `json:"mend"`
}

// checker collects findings.
type checker struct {
	*Source
	captured []string // Declared.Captured
	found    []Finding
}

// add reports what the database lacks.
func (c *checker) add(where, problem, mend string) {
	c.found = append(c.found, Finding{Kind: FindingSource, Where: where, Problem: problem, Mend: mend})
}

// mistake reports what the configuration has wrong.
func (c *checker) mistake(key, where, problem, mend string) {
	c.found = append(c.found, Finding{Kind: FindingMistake, Key: key, Where: where, Problem: problem, Mend: mend})
}

// failed reports an error of the check itself.
func (c *checker) failed(where string, err error) {
	if away(err) {
		c.found = append(c.found, Finding{Kind: FindingAway, Where: where, Problem: err.Error(), Mend: "start the server, or correct its address"})
		return
	}
	c.add(where, err.Error(), "mend what the error says, and check again")
}

// sql reports an error of SQL that the configuration holds at key.
func (c *checker) sql(key, where string, err error, mend string) {
	switch pg, ok := errors.AsType[*pgconn.PgError](err); {
	case away(err) || !ok && !isQueryError(err):
		c.failed(where, err)
	case ok && pg.Code == "42501": // insufficient_privilege
		c.add(where, err.Error(), fmt.Sprintf("grant what it needs: GRANT SELECT ON ... TO %s; GRANT USAGE ON SCHEMA ... TO %[1]s;", quoteIdent(c.pool.Config().ConnConfig.User)))
	case ok && pg.Code == "57014": // query_canceled
		c.mistake(key, where, err.Error(), "make the query faster, or raise source.statement_timeout")
	default:
		f := Finding{Kind: FindingMistake, Key: key, Where: where, Problem: err.Error(), Mend: mend}
		if ok {
			f.Offset = int(pg.Position)
		}
		c.found = append(c.found, f)
	}
}

func isQueryError(err error) bool {
	q, ok := errors.AsType[*QueryError](err)
	return ok && q.SQLSTATE != ""
}

// away reports whether the server may do later what it did not do now. A statement that took too long would take as
// long again.
func away(err error) bool {
	q, ok := errors.AsType[*QueryError](err)
	return ok && q.Temporary() && q.SQLSTATE != "57014"
}

// Check looks at everything that this package needs of the source before the first run: server, role, slot,
// publication, the tables and columns of the routes with their replica identities, the routes' queries and the
// documents query, both of which are run on the first rows. It then compares the tables that the documents query reads
// with the routes, and the shops of some hundred products with the names that are known. It changes nothing. No finding
// but notes means that capture and reads will work; a query may still fail on a row that was not tried.
func (s *Source) Check(ctx context.Context, d Declared) []Finding {
	c := &checker{Source: s, captured: d.Captured}
	c.server(ctx)
	if !c.reached() {
		return c.found
	}
	c.slot(ctx)
	c.mirrored(ctx, &d)
	c.published(ctx, published(d.Routes, d.Mirrored))
	for i := range d.Routes {
		c.route(ctx, fmt.Sprintf("routes.%d", i), &d.Routes[i])
	}
	c.identities(ctx, d.Routes)
	c.documents(ctx, &d)
	if i := slices.IndexFunc(c.found, func(f Finding) bool { return f.Kind == FindingAway }); i >= 0 {
		return c.found[i : i+1] // what else was found may be its consequence
	}
	return c.found
}

// reached reports whether nothing has been found to be away.
func (c *checker) reached() bool {
	return !slices.ContainsFunc(c.found, func(f Finding) bool { return f.Kind == FindingAway })
}

func (c *checker) server(ctx context.Context) {
	var (
		level              string
		replica, may, sees bool
		role               string
		senders, walSender int
	)
	err := c.pool.QueryRow(ctx, `
		SELECT current_setting('wal_level'), pg_is_in_recovery(), current_user, r.rolsuper,
			r.rolreplication OR r.rolsuper OR EXISTS (SELECT FROM pg_roles m
				WHERE m.rolname IN ('rds_replication', 'azure_pg_admin', 'cloudsqlsuperuser') AND pg_has_role(r.oid, m.oid, 'MEMBER')),
			current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication)
		FROM pg_roles r WHERE r.rolname = current_user`).Scan(&level, &replica, &role, &sees, &may, &senders, &walSender)
	if err != nil {
		c.failed("server", wrap(ctx, "look at the server", err))
		return
	}
	if level != "logical" {
		c.add("server", "wal_level is "+level+", so changes cannot be decoded", "ALTER SYSTEM SET wal_level = logical; and restart the server")
	}
	if replica {
		c.found = append(c.found, Finding{
			Kind: FindingAway, Where: "server", Problem: "it is a standby",
			Mend: "give the address of the primary: reads must tell which transactions they saw",
		})
	}
	if may && !replica && level == "logical" && walSender < senders {
		// Only a try tells what stands between.
		conn, err := c.replication(ctx)
		if err != nil {
			c.failed("replication", err)
			return
		}
		_ = conn.Close(ctx) // nothing was asked of it
	}
	if !may {
		c.add("server", "role "+role+" may not replicate", "ALTER ROLE "+quoteIdent(role)+" REPLICATION;")
	}
	if walSender >= senders {
		c.add("server", fmt.Sprintf("all %d walsenders are in use", senders), "raise max_wal_senders and restart the server, or end a replica that is not needed")
	}
}

func (c *checker) slot(ctx context.Context) {
	info, err := c.slotInfo(ctx)
	var trouble *SlotError
	switch {
	case err == nil:
		if c.version >= firstFailover && !info.Failover {
			c.found = append(c.found, Finding{
				Kind: FindingNote, Where: "slot " + c.cfg.Slot, Problem: "it is no failover slot: no standby has it, and a promotion is healed by a whole snapshot",
				Mend: fmt.Sprintf(`stop capture and run: psql "dbname=... replication=database" -c 'ALTER_REPLICATION_SLOT %s (FAILOVER)'`, quoteIdent(c.cfg.Slot)),
			})
		}
		return
	case !errors.As(err, &trouble):
		c.failed("slot "+c.cfg.Slot, err)
		return
	case trouble.Kind == SlotActive:
		return // another process is making it: whoever comes now stands by
	case trouble.Kind != SlotMissing:
		c.add("slot "+c.cfg.Slot, trouble.Detail, trouble.Mend)
		return
	}
	var used, all int
	err = c.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::int`).Scan(&used, &all)
	switch {
	case err != nil:
		c.failed("slot "+c.cfg.Slot, wrap(ctx, "count the slots", err))
	case used >= all:
		c.add("slot "+c.cfg.Slot, fmt.Sprintf("all %d slots of the server are taken", all), "raise max_replication_slots and restart the server, or drop a slot that is not used")
	}
}

// published reports what EnsurePublication would need and may not do.
func (c *checker) published(ctx context.Context, tables []string) {
	where := "publication " + c.cfg.Publication
	p, err := c.publication(ctx)
	if err != nil {
		c.failed(where, err)
		return
	}
	existing := slices.DeleteFunc(slices.Clone(tables), func(t string) bool { return !c.exists(ctx, t) })
	// Whoever published one without an identity would break the application that writes it. It is reported by its own.
	broken, err := c.unpublishable(ctx, p.missing(existing))
	if err != nil {
		c.failed(where, err)
		return
	}
	existing = slices.DeleteFunc(existing, func(t string) bool { return slices.Contains(broken, t) })
	stmts, err := c.publicationSQL(p, existing)
	if err != nil || len(stmts) == 0 {
		if err != nil && len(existing) > 0 {
			c.failed(where, err)
		}
		return
	}
	var may bool
	err = c.pool.QueryRow(ctx, `
		SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR (
			CASE WHEN EXISTS (SELECT FROM pg_publication WHERE pubname = $1)
				THEN (SELECT pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = $1)
				ELSE has_database_privilege(current_database(), 'CREATE') END
			AND (SELECT coalesce(bool_and(pg_has_role(c.relowner, 'USAGE')), true)
				FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = ANY ($2)))`,
		c.cfg.Publication, p.missing(existing)).Scan(&may)
	switch {
	case err != nil:
		c.failed(where, wrap(ctx, "look at privileges", err))
	case !may:
		problem := "it does not publish all routed tables and operations"
		if p == nil {
			problem = "it does not exist, and this role may not create it"
		}
		c.add(where, problem, strings.Join(stmts, "; ")+";")
	}
}

// mirrored reports tables that are to be mirrored and are not there, or would break once they were published.
func (c *checker) mirrored(ctx context.Context, d *Declared) {
	for i, t := range d.Mirrored {
		where := "mirror of " + t
		if _, ok := c.table(ctx, fmt.Sprintf("mirror.tables.%d", i), where, t); !ok {
			continue
		}
		names, err := c.nameless(ctx, []string{t})
		switch {
		case err != nil:
			c.failed(where, err)
		case len(names) > 0:
			c.mistake(fmt.Sprintf("mirror.tables.%d", i), where, "without a replica identity, Postgres refuses every update and delete of a published table",
				"give it a primary key, leave it out, or run: "+identitySQL(names))
		}
	}
}

// unpublishable are those of tables that Postgres would refuse updates of once they are published.
func (c *checker) unpublishable(ctx context.Context, tables []string) (broken []string, err error) {
	for _, t := range tables {
		names, err := c.nameless(ctx, []string{t})
		if err != nil {
			return nil, err
		}
		if len(names) > 0 {
			broken = append(broken, t)
		}
	}
	return broken, nil
}

func (c *checker) exists(ctx context.Context, name string) bool {
	found := false
	_, err := c.read(ctx, "look at "+name, func(pg *pgconn.PgConn) error {
		t, err := c.describe(ctx, pg, name)
		found = t != nil
		return err
	})
	return err == nil && found
}

func (c *checker) route(ctx context.Context, key string, r *route.Route) {
	where := "route " + r.Table
	t, ok := c.table(ctx, key+".table", where, r.Table)
	if !ok {
		return
	}
	if _, err := t.byBlocks(); err != nil {
		c.add(where, "the table has no primary key, so its snapshot could not be resumed",
			"add a primary key, or, for a table that is not partitioned, set REPLICA IDENTITY FULL, or leave the table out of the routes")
	}
	c.column(key+".key", where, t, r.Table, r.Key)
	c.column(key+".admin", where, t, r.Table, r.Admin)
	for i, col := range r.BatchWhen {
		c.column(fmt.Sprintf("%s.batch_when.%d", key, i), where, t, r.Table, col)
	}
	if r.Parent != nil {
		c.column(key+".parent.column", where, t, r.Table, r.Parent.Column)
	}
	ways := 0
	for _, way := range []bool{r.Key != "", r.Parent != nil, r.Query != ""} {
		if way {
			ways++
		}
	}
	switch {
	case ways != 1:
		c.mistake(key, where, "it must have exactly one of key, parent and query", "see the reference configuration")
	case r.Parent != nil:
		c.parent(ctx, key+".parent", where, r)
	case r.Query != "":
		c.query(ctx, key+".query", where, r)
	}
}

// table describes a table and reports when that is not possible.
func (c *checker) table(ctx context.Context, key, where, name string) (*table, bool) {
	var t *table
	var kind, privilege string
	schema, rel, err := splitTable(name)
	if err == nil {
		_, err = c.read(ctx, "look at "+name, func(pg *pgconn.PgConn) (err error) {
			t, err = c.describe(ctx, pg, name)
			return err
		})
	}
	if err == nil {
		err = wrap(ctx, "look at "+name, c.pool.QueryRow(ctx, `
			SELECT c.relkind::text || c.relpersistence::text || c.relispartition::text,
				CASE WHEN has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') THEN '' ELSE current_user END
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2`, schema, rel).Scan(&kind, &privilege))
	}
	quoted, _ := quoteTable(name)
	switch {
	case errors.Is(err, pgx.ErrNoRows) && slices.Contains(c.captured, name):
		c.found = append(c.found, Finding{
			Kind: FindingGap, Where: where, Problem: "table " + name + " is gone: nothing of it is captured until it is there again",
			Mend: "create it again, which is noticed, or take it out of the configuration",
		})
		return nil, false
	case errors.Is(err, pgx.ErrNoRows):
		c.mistake(key, where, "table "+name+" does not exist", "correct the name (it is case sensitive) or create the table")
		return nil, false
	case err != nil:
		c.failed(where, err)
		return nil, false
	case kind[0] != 'r' && kind[0] != 'p':
		c.mistake(key, where, name+" is no table", "route the tables behind it: views and foreign tables are not replicated")
		return nil, false
	case kind[1] != 'p':
		c.add(where, name+" is not logged, so its changes are not in the WAL", "ALTER TABLE "+quoted+" SET LOGGED;")
	case strings.HasSuffix(kind, "true"):
		c.mistake(key, where, name+" is a partition, and changes carry the name of its root", "route the partitioned table itself")
	}
	if privilege != "" {
		c.add(where, "role "+privilege+" may not read "+name, fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s; GRANT SELECT ON %s TO %s;", quoteIdent(schema), quoteIdent(privilege), quoted, quoteIdent(privilege)))
		return t, false
	}
	return t, true
}

func (c *checker) column(key, where string, t *table, name, col string) bool {
	if col == "" || t.Index(col) >= 0 {
		return true
	}
	c.mistake(key, where, fmt.Sprintf("column %s of %s does not exist, is generated, or is not published", col, name), "correct the name: columns that are computed are not in the WAL")
	return false
}

// parent checks that the parent's id is found by an index, is unique, and can be compared with the column.
func (c *checker) parent(ctx context.Context, key, where string, r *route.Route) {
	p := r.Parent
	t, ok := c.table(ctx, key+".table", where, p.Table)
	if !ok || !c.column(key+".id", where, t, p.Table, p.ID) || !c.column(key+".key", where, t, p.Table, p.Key) {
		return
	}
	parent, err1 := quoteTable(p.Table)
	child, err2 := quoteTable(r.Table)
	if err := errors.Join(err1, err2); err != nil {
		c.failed(where, err)
		return
	}
	var unique bool
	err := c.pool.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
			WHERE i.indrelid = $1::regclass AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1 AND a.attname = $2)`,
		parent, p.ID).Scan(&unique)
	if err == nil && !unique {
		c.add(where, fmt.Sprintf("%s.%s has no unique index, so a row could lead to several products, and each look-up reads the table", p.Table, p.ID),
			fmt.Sprintf("CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s);", parent, quoteIdent(p.ID)))
	}
	if err == nil {
		_, err = c.pool.Exec(ctx, fmt.Sprintf("SELECT FROM %s p JOIN %s c ON p.%s = c.%s LIMIT 0", parent, child, quoteIdent(p.ID), quoteIdent(p.Column)))
	}
	if err != nil {
		err = wrap(ctx, fmt.Sprintf("compare %s.%s with %s.%s", r.Table, p.Column, p.Table, p.ID), err)
		c.sql(key, where, err, "name columns of types that can be compared")
		c.found[len(c.found)-1].Offset = 0 // in SQL of ours
	}
}

// pageTried is the size of the pages that a route's query is tried with.
const pageTried = 5

// query prepares a route's query and runs two pages of it for one row of the table.
func (c *checker) query(ctx context.Context, key, where string, r *route.Route) {
	where += ", query"
	desc, err := c.prepare(ctx, r.Query)
	switch {
	case err != nil:
		c.sql(key, where, err, "correct the SQL")
		return
	case len(desc.Fields) != 1 || len(desc.ParamOIDs) != 3:
		c.mistake(key, where, fmt.Sprintf("it has %d parameters and returns %d columns", len(desc.ParamOIDs), len(desc.Fields)),
			"use $1 (the row as jsonb), $2 (the last product id of the page before) and $3 (page size), and return the product id alone")
		return
	}
	image, err := c.sample(ctx, r.Table)
	if err != nil {
		c.failed(where, err)
		return
	}
	after := ""
	for range 2 {
		page, err := c.Page(ctx, r.Query, image, after, pageTried)
		if err != nil {
			row, _ := json.Marshal(image) // of strings only
			c.sql(key, where, err, "correct the SQL: it was run for the row "+string(row))
			return
		}
		if page.Rows > pageTried {
			c.mistake(key, where, fmt.Sprintf("it returned %d rows for a page of %d", page.Rows, pageTried), "end it with LIMIT $3")
			return
		}
		for _, id := range page.Products {
			if string(id) <= after {
				c.mistake(key, where, fmt.Sprintf("product id %q came after %q: pages would lose products", id, after),
					`let it begin after $2 and order by the id COLLATE "C": WHERE id::text COLLATE "C" > $2 ORDER BY id::text COLLATE "C"`)
				return
			}
			after = string(id)
		}
	}
}

// sample is the image of a row of the table, or of a row of nulls where there is none.
func (c *checker) sample(ctx context.Context, name string) (map[string]*string, error) {
	chunk, err := c.ReadChunk(ctx, change.ChunkQuery{Selection: change.Selection{Table: name}, Limit: 1})
	if errors.Is(err, ErrNoPrimaryKey) {
		return map[string]*string{}, nil
	}
	if err != nil {
		return nil, err
	}
	if len(chunk.Rows) > 0 {
		return change.Image(chunk.Relation, chunk.Rows[0]), nil
	}
	image := map[string]*string{}
	for _, col := range chunk.Relation.Columns {
		image[col.Name] = nil
	}
	return image, nil
}

// prepare lets the server describe a statement. Its error is the server's own.
func (c *checker) prepare(ctx context.Context, sql string) (desc *pgconn.StatementDescription, err error) {
	_, err = c.read(ctx, "prepare", func(pg *pgconn.PgConn) (err error) {
		desc, err = pg.Prepare(ctx, "", sql, nil)
		return wrap(ctx, "the server does not take it", err)
	})
	if q, ok := errors.AsType[*QueryError](err); ok {
		return nil, q
	}
	return desc, err
}
