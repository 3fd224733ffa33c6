package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// typeNames gives the types that the columns of the documents query may have.
var typeNames = map[uint32]string{25: "text", 1043: "varchar", 1042: "char", 19: "name", 114: "json", 3802: "jsonb"}

// documents prepares the documents query and runs it for the first products that a column route leads to.
func (c *checker) documents(ctx context.Context, routes []route.Route, sql string) {
	const where = "documents query"
	desc, err := c.prepare(ctx, sql)
	if err != nil {
		c.add(where, err.Error(), "correct the SQL")
		return
	}
	if len(desc.ParamOIDs) != 1 {
		c.add(where, fmt.Sprintf("it has %d parameters", len(desc.ParamOIDs)), "use $1, an array of product ids, and nothing else")
		return
	}
	types := map[string]uint32{}
	for _, f := range desc.Fields {
		types[f.Name] = f.DataTypeOID
	}
	fine := true
	for col, allowed := range map[string][]string{
		"product_id": {"text", "varchar", "char", "name"}, "shop": {"text", "varchar", "char", "name"}, "document": {"jsonb", "json"},
	} {
		oid, ok := types[col]
		switch {
		case !ok:
			fine = false
			c.add(where, "it returns no column "+col, "return product_id text, shop text, document jsonb")
		case !slices.Contains(allowed, typeNames[oid]):
			fine = false
			c.add(where, fmt.Sprintf("column %s is not of type %s", col, allowed[0]), fmt.Sprintf("cast it: ...::%s AS %s", allowed[0], col))
		}
	}
	if !fine {
		return
	}
	ids, err := c.someProducts(ctx, routes)
	if err != nil {
		c.failed(where, err)
		return
	}
	c.tryDocuments(ctx, where, sql, ids)
}

// tryDocuments reads documents one by one. A query that fails on the values of one product is no finding, as it will
// be that product's failure alone; one that fails on all is.
func (c *checker) tryDocuments(ctx context.Context, where, sql string, ids []change.ProductID) {
	var failures []error
	for _, id := range ids {
		rows, _, _, err := c.Documents(ctx, sql, []change.ProductID{id})
		if err != nil {
			failures = append(failures, fmt.Errorf("product %s: %w", id, err))
			var q *QueryError
			if !errors.As(err, &q) || !q.Data() {
				break
			}
			continue
		}
		for _, row := range rows {
			if row.ProductID != string(id) {
				c.add(where, fmt.Sprintf("asked for product %q it returned %q", id, row.ProductID), "compare the same text that it returns: ... WHERE p.id::text = ANY ($1)")
				return
			}
			if row.Document != nil && !bytes.HasPrefix(bytes.TrimSpace(row.Document), []byte{'{'}) {
				c.add(where, fmt.Sprintf("the document of product %s is no JSON object", id), "return jsonb_build_object(...)")
				return
			}
		}
	}
	var q *QueryError
	if len(failures) > 0 && (len(failures) == len(ids) || !errors.As(failures[len(failures)-1], &q) || !q.Data()) {
		c.add(where, failures[len(failures)-1].Error(), "correct the SQL")
	}
}

// someProducts lists up to three product ids that column routes lead to.
func (c *checker) someProducts(ctx context.Context, routes []route.Route) ([]change.ProductID, error) {
	for _, r := range routes {
		if r.Key == "" || !c.exists(ctx, r.Table) {
			continue
		}
		table, err := quoteTable(r.Table)
		if err != nil {
			return nil, err
		}
		key := quoteIdent(r.Key)
		rows, err := c.pool.Query(ctx, fmt.Sprintf("SELECT DISTINCT k FROM (SELECT %s AS k FROM %s WHERE %s IS NOT NULL LIMIT 100) q LIMIT 3", key, table, key), pgx.QueryResultFormats{pgx.TextFormatCode})
		if err != nil {
			return nil, wrap(ctx, "list some products", err)
		}
		var ids []change.ProductID
		for rows.Next() {
			ids = append(ids, change.ProductID(rows.RawValues()[0]))
		}
		if rows.Err() != nil || len(ids) > 0 {
			return ids, wrap(ctx, "list some products", rows.Err())
		}
	}
	return nil, nil
}
