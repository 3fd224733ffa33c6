package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// ParentKeys finds the parent rows of ids, the text of values of p.Column, in one query. An id without a row, or whose
// row has no product, is not in the result. The snapshot says which transactions were seen. An id that the type of p.ID
// cannot hold fails the query with an error whose Data method says true.
func (s *Source) ParentKeys(ctx context.Context, p route.Parent, ids []string) (map[string]change.ParentRow, change.Snapshot, error) {
	keys := make(map[string]change.ParentRow, len(ids))
	parent, err := quoteTable(p.Table)
	if err != nil {
		return nil, change.Snapshot{}, err
	}
	m, err := s.readTable(ctx, fmt.Sprintf("look up %d rows of %s", len(ids), p.Table), readAhead{table: p.Table}, func(pg *pgconn.PgConn) error {
		typ, err := columnType(ctx, pg, p.Table, p.ID)
		if err != nil {
			return err
		}
		// Joined by number, as equal ids can have several texts: 1.5 and 1.50.
		sql := fmt.Sprintf(`SELECT q.n, t.%s, t.%s FROM unnest($1::text[]::%s[]) WITH ORDINALITY q (id, n) JOIN %s t ON t.%s = q.id`,
			quoteIdent(p.Key), quoteIdent(p.ID), typ, parent, quoteIdent(p.ID))
		return query(ctx, pg, sql, [][]byte{arrayLiteral(ids)}, func(_ []string, v [][]byte) error {
			n, err := strconv.Atoi(string(v[0]))
			if err != nil || v[1] == nil {
				return err
			}
			keys[ids[n-1]] = change.ParentRow{ID: string(v[2]), Product: change.ProductID(v[1])}
			return nil
		})
	})
	return keys, m.snapshot, err
}

// Snapshot says which transactions a read that begins now would see.
func (s *Source) Snapshot(ctx context.Context) (change.Snapshot, error) {
	m, err := s.read(ctx, "ask which transactions are visible", func(*pgconn.PgConn) error { return nil })
	return m.snapshot, err
}

// Page runs the query of a route for one image of a row and returns the product ids after the given one, at most
// limit rows. A row whose id is NULL is passed over.
func (s *Source) Page(ctx context.Context, sql string, image map[string]*string, after string, limit int) (change.Page, error) {
	row, err := json.Marshal(image)
	if err != nil {
		return change.Page{}, fmt.Errorf("encode the row of a fan-out: %w", err)
	}
	var page change.Page
	args := [][]byte{row, []byte(after), []byte(strconv.Itoa(limit))}
	m, err := s.readStatement(ctx, "list the products of a fan-out", sql, args, func(_ []string, v [][]byte) error {
		page.Rows++
		if len(v) > 0 && v[0] != nil {
			page.Products = append(page.Products, change.ProductID(v[0]))
		}
		return nil
	})
	page.Snapshot = m.snapshot
	return page, err
}
