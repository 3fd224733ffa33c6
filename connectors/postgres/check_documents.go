package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// typeNames gives the types that the columns of the documents query may have.
var typeNames = map[uint32]string{25: "text", 1043: "varchar", 1042: "char", 19: "name", 114: "json", 3802: "jsonb"}

// documentsPlace is what findings call the documents query, and documentsKey its place in the configuration.
const (
	documentsPlace = "documents query"
	documentsKey   = "documents"
)

// The numbers of products whose documents are read: a few one by one, so that one broken product is told from a broken
// query, and some hundred in groups, to see the shops that they belong to. A group is about what a push worker reads
// at once.
const (
	productsTried   = 3
	productsSampled = 300
	productsAtOnce  = 100
)

// documents prepares the documents query, runs it for some products, and compares what it reads and returns with what
// is declared.
func (c *checker) documents(ctx context.Context, d *Declared) {
	desc, err := c.prepare(ctx, d.Documents)
	if err != nil {
		c.sql(documentsKey, documentsPlace, err, "correct the SQL")
		return
	}
	if len(desc.ParamOIDs) != 1 {
		c.mistake(documentsKey, documentsPlace, fmt.Sprintf("it has %d parameters", len(desc.ParamOIDs)), "use $1, an array of product ids, and nothing else")
		return
	}
	if !c.documentColumnsFit(desc) {
		return
	}
	ids, err := c.someProducts(ctx, d.Routes)
	if err != nil {
		c.failed(documentsPlace, err)
		return
	}
	if !c.tryDocuments(ctx, d.Documents, ids[:min(len(ids), productsTried)]) {
		return
	}
	c.reads(ctx, d)
	c.shops(ctx, d, ids)
}

// documentColumnsFit reports whether the query returns the three columns in their types.
func (c *checker) documentColumnsFit(desc *pgconn.StatementDescription) bool {
	types := map[string]uint32{}
	for _, f := range desc.Fields {
		types[f.Name] = f.DataTypeOID
	}
	fit := true
	for _, col := range documentColumns {
		allowed := []string{"text", "varchar", "char", "name"}
		if col == "document" {
			allowed = []string{"jsonb", "json"}
		}
		oid, ok := types[col]
		switch {
		case !ok:
			fit = false
			c.mistake(documentsKey, documentsPlace, "it returns no column "+col, "return product_id text, shop text, document jsonb")
		case !slices.Contains(allowed, typeNames[oid]):
			fit = false
			c.mistake(documentsKey, documentsPlace, fmt.Sprintf("column %s is not of type %s", col, allowed[0]), fmt.Sprintf("cast it: ...::%s AS %s", allowed[0], col))
		}
	}
	return fit
}

// tryDocuments reads documents one by one and reports whether that works. A query that fails on the values of one
// product is no finding, as it will be that product's failure alone; one that fails on all is.
func (c *checker) tryDocuments(ctx context.Context, sql string, ids []change.ProductID) bool {
	var failure error
	failures := 0
	for _, id := range ids {
		rows, _, _, err := c.Documents(ctx, sql, []change.ProductID{id})
		if err != nil {
			failures++
			failure = fmt.Errorf("product %s: %w", id, err)
			if !isData(err) {
				break
			}
			continue
		}
		for _, row := range rows {
			if row.ProductID != string(id) {
				c.mistake(documentsKey, documentsPlace, fmt.Sprintf("asked for product %q it returned %q", id, row.ProductID), "compare the same text that it returns: ... WHERE p.id::text = ANY ($1)")
				return false
			}
			if row.Document != nil && !bytes.HasPrefix(bytes.TrimSpace(row.Document), []byte{'{'}) {
				c.mistake(documentsKey, documentsPlace, fmt.Sprintf("the document of product %s is no JSON object", id), "return jsonb_build_object(...)")
				return false
			}
		}
	}
	if failures > 0 && (failures == len(ids) || !isData(failure)) {
		c.sql(documentsKey, documentsPlace, failure, "correct the SQL")
		return false
	}
	return true
}

func isData(err error) bool {
	q, ok := errors.AsType[*QueryError](err)
	return ok && q.Data()
}

// someProducts lists products that a column route leads to, spread over the table: old ones and new ones may belong to
// different shops. It reads a bounded number of blocks however large the table is.
func (c *checker) someProducts(ctx context.Context, routes []route.Route) ([]change.ProductID, error) {
	for _, r := range routes {
		if r.Key == "" || !c.exists(ctx, r.Table) {
			continue
		}
		table, err := quoteTable(r.Table)
		if err != nil {
			return nil, err
		}
		const blocks = 64
		var share float64
		if err := c.pool.QueryRow(ctx, `
			SELECT least(100, 100.0 * $2 * current_setting('block_size')::int / greatest(1, sum(pg_relation_size(relid))))::float8
			FROM (SELECT relid FROM pg_partition_tree($1::regclass) UNION SELECT $1::regclass) t`, table, blocks).Scan(&share); err != nil {
			return nil, wrap(ctx, "measure "+r.Table, err)
		}
		key := quoteIdent(r.Key)
		for _, rows := range []string{ // the sample of a sparse table may be empty
			fmt.Sprintf("SELECT %s AS k FROM %s TABLESAMPLE SYSTEM (%g) REPEATABLE (1) WHERE %[1]s IS NOT NULL", key, table, share),
			fmt.Sprintf("SELECT %s AS k FROM %s WHERE %[1]s IS NOT NULL LIMIT 1000", key, table),
		} {
			ids, err := c.listProducts(ctx, fmt.Sprintf(`SELECT k::text FROM (SELECT DISTINCT k FROM (%s) s) q ORDER BY md5(k::text) LIMIT %d`, rows, productsSampled))
			if err != nil || len(ids) > 0 {
				return ids, err
			}
		}
	}
	return nil, nil
}

func (c *checker) listProducts(ctx context.Context, sql string) ([]change.ProductID, error) {
	rows, err := c.pool.Query(ctx, sql)
	if err != nil {
		return nil, wrap(ctx, "list some products", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[change.ProductID])
	return ids, wrap(ctx, "list some products", err)
}

// shops compares the shops of a sample of products with those that are known.
func (c *checker) shops(ctx context.Context, d *Declared, ids []change.ProductID) {
	if d.Shops == nil {
		return
	}
	tried, example := 0, map[string]string{}
	var broken brokenDocuments
	for at := 0; at < len(ids); at += productsAtOnce {
		group := ids[at:min(at+productsAtOnce, len(ids))]
		rows, _, _, err := c.Documents(ctx, d.Documents, group)
		if isData(err) {
			continue // of one product, which will fail alone
		}
		if err != nil {
			c.sql(documentsKey, documentsPlace, err, "correct the SQL")
			return
		}
		tried += len(group)
		for _, row := range rows {
			if example[row.Shop] == "" {
				example[row.Shop] = row.ProductID
			}
			broken.look(&row)
		}
	}
	broken.report(c)
	for _, shop := range slices.Sorted(maps.Keys(example)) {
		if shop != "" && !slices.Contains(d.Shops, shop) {
			c.found = append(c.found, Finding{
				Kind: FindingGap, Where: documentsPlace, Key: "shops",
				Problem: fmt.Sprintf("it sends products to shop %q, such as product %s, and shops has no entry of that name", shop, example[shop]),
				Mend:    "add the shop, or let the query return a name that stands there",
			})
		}
	}
	for _, shop := range d.Shops {
		if example[shop] == "" {
			c.found = append(c.found, Finding{
				Kind: FindingNote, Where: documentsPlace, Key: "shops." + shop,
				Problem: fmt.Sprintf("none of the %d products that were tried belongs to shop %s", tried, shop),
				Mend:    "nothing, if it is to be empty; else compare the names that the query returns",
			})
		}
	}
}

// brokenDocuments counts documents that break the schema.
type brokenDocuments struct {
	all, broken int
	product     string // the first of them
	why         error
}

func (b *brokenDocuments) look(row *document.Row) {
	if row.Shop == "" {
		return
	}
	b.all++
	if _, err := document.Parse(row.Document); err != nil {
		if b.broken++; b.broken == 1 {
			b.product, b.why = row.ProductID, err
		}
	}
}

// report says so where it is most of them: a few are those products' failures alone.
func (b *brokenDocuments) report(c *checker) {
	if 2*b.broken > b.all {
		c.found = append(c.found, Finding{
			Kind: FindingGap, Where: documentsPlace, Key: documentsKey,
			Problem: fmt.Sprintf("%d of %d documents that were tried break the schema, such as that of product %s: %v", b.broken, b.all, b.product, b.why),
			Mend:    "return documents as the schema wants them (schemas/document/document.schema.json): each of these products would fail",
		})
	}
}
