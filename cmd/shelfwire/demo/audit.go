package demo

import (
	"context"
	_ "embed" // the query
	"fmt"

	"github.com/jackc/pgx/v5"
)

//go:embed expectations.sql
var expectationsSQL string

// Expectation is one variant that a shop shall have on sale, as the reference schema says it.
type Expectation struct {
	Shop       string
	ProductID  string
	Title      string
	VariantKey string
	// Options are the variant's option values. A shop knows a variant by them: the key of a variant is no part of a
	// creation that would cost too much with it.
	Options []string
	SKU     string
	// Price is a decimal with two digits behind the point; PriceOwned is false where the store's price sync is off:
	// the shop keeps its own price then.
	Price      string
	PriceOwned bool
	// Levels are the units at each location; nil where the store's stock sync is off.
	Levels map[string]int64
}

// Expectations calls each for every variant that should be on sale in some shop, ordered by shop, product and
// position, in one snapshot. It is written apart from the documents query, from the top of the category tree down, so
// that a mistake in one of them is seen as a difference.
func Expectations(ctx context.Context, conn *pgx.Conn, each func(Expectation) error) error {
	rows, err := conn.Query(ctx, expectationsSQL)
	if err != nil {
		return fmt.Errorf("read what the shops should have: %w", err)
	}
	var e Expectation
	into := []any{&e.Shop, &e.ProductID, &e.Title, &e.VariantKey, &e.Options, &e.SKU, &e.Price, &e.PriceOwned, &e.Levels}
	_, err = pgx.ForEachRow(rows, into, func() error {
		one := e
		e.Levels, e.Options = nil, nil // the next row scans into ones of its own
		return each(one)
	})
	if err != nil {
		return fmt.Errorf("read what the shops should have: %w", err)
	}
	return nil
}
