package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
)

// documentColumns are the columns of the documents query. Their order is the query's own.
var documentColumns = []string{"product_id", "shop", "document"}

// Documents runs the documents query for these products on the primary, as one statement of a READ ONLY transaction, and
// returns its rows, a snapshot whose transactions it has all seen, and the time that was taken, by the database's clock. A
// product without a row in the result has none in the source.
//
// An error that is Temporary may be gone at the next try. One that is Data broke on a value of some product: the
// caller halves the list until it is found. Any other error of the server means that the query itself does not fit
// the database (any more).
func (s *Source) Documents(ctx context.Context, sql string, ids []change.ProductID) ([]document.Row, change.Snapshot, time.Time, error) {
	text := make([]string, len(ids))
	for i, id := range ids {
		text[i] = string(id)
	}
	rows := make([]document.Row, 0, len(ids))
	var place []int
	op := fmt.Sprintf("read the documents of %d products", len(ids))
	m, err := s.readStatement(ctx, op, sql, [][]byte{arrayLiteral(text)}, func(names []string, v [][]byte) error {
		if place == nil {
			for _, c := range documentColumns {
				i := slices.Index(names, c)
				if i < 0 {
					return errDocumentColumns(names)
				}
				place = append(place, i)
			}
		}
		row := document.Row{ProductID: string(v[place[0]]), Shop: string(v[place[1]])}
		if d := v[place[2]]; d != nil {
			row.Document = slices.Clone(d)
		}
		rows = append(rows, row)
		return nil
	})
	if err != nil {
		return nil, change.Snapshot{}, time.Time{}, err
	}
	return rows, m.snapshot, m.at, nil
}

// errDocumentColumns carries the code of an undefined column, as what it says is the same: the query does not fit.
func errDocumentColumns(names []string) error {
	return &QueryError{Op: "documents query", SQLSTATE: "42703", Err: fmt.Errorf("it returns the columns %q: want product_id, shop and document", names)}
}
