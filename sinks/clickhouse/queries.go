package clickhouse

import (
	"context"
	_ "embed" // the queries
	"fmt"
	"time"
)

// The analyst's questions about the last 24 hours, as SQL that can be copied into any client.
var (
	// FailuresSQL asks which causes failed how often, where, with an example.
	//go:embed queries/failures.sql
	FailuresSQL string
	// LatencySQL asks how long each step of a push takes.
	//go:embed queries/latency.sql
	LatencySQL string
	// PointsSQL asks what pushes cost, and how many changes each of them carried.
	//go:embed queries/points.sql
	PointsSQL string
	// PricesSQL asks which prices changed last.
	//go:embed queries/prices.sql
	PricesSQL string
)

// Failure is one cause of failures in one shop.
type Failure struct {
	// Category is what the shop's answer was taken for, such as API_LIMIT or VALIDATION.
	Category string `ch:"category" json:"category"`
	Shop     string `ch:"shop" json:"shop"`
	// Failed counts outcomes FAILED, Retried those that were to be tried again, Products the products they were about.
	Failed   int64 `ch:"failed" json:"failed"`
	Retried  int64 `ch:"retried" json:"retried"`
	Products int64 `ch:"products" json:"products"`
	// Example is the message of the latest of them, about ExampleProduct.
	ExampleProduct string `ch:"example_product" json:"example_product"`
	Example        string `ch:"example" json:"example"`
}

// Latency holds the quantiles of one step of successful pushes, in milliseconds.
type Latency struct {
	// Step is named by its two ends, such as due_to_read; commit_to_shop is the whole way.
	Step   string  `ch:"step" json:"step"`
	Pushes int64   `ch:"pushes" json:"pushes"`
	P50    float64 `ch:"p50_ms" json:"p50_ms"`
	P90    float64 `ch:"p90_ms" json:"p90_ms"`
	P99    float64 `ch:"p99_ms" json:"p99_ms"`
}

// Points is what the pushes of one shop and lane cost.
type Points struct {
	Shop string `ch:"shop" json:"shop"`
	Lane string `ch:"lane" json:"lane"`
	// Pushes counts outcomes, Answered those for which a request went out.
	Pushes   int64 `ch:"pushes" json:"pushes"`
	Answered int64 `ch:"answered" json:"answered"`
	// Changes counts the changes that they carried.
	Changes        int64   `ch:"changes" json:"changes"`
	ChangesPerPush float64 `ch:"changes_per_push" json:"changes_per_push"`
	// Points are those that the shop charged.
	Points        float64 `ch:"points" json:"points"`
	PointsPerPush float64 `ch:"points_per_push" json:"points_per_push"`
}

// PriceChange is one change of a variant's price in a shop's document. A first price is none.
type PriceChange struct {
	ProductID string `ch:"product_id" json:"product_id"`
	Shop      string `ch:"shop" json:"shop"`
	Variant   string `ch:"variant" json:"variant"`
	SKU       string `ch:"sku" json:"sku"`
	// Since is the time of the record with the first document that had the new price.
	Since time.Time `ch:"since" json:"since"`
	// Price and Previous are in the shop's currency, rounded as a float64 is: for showing, not for reckoning.
	Price    float64 `ch:"price" json:"price"`
	Previous float64 `ch:"previous" json:"previous"`
}

// Failures answers [FailuresSQL], the most frequent first, 20 at most. Nil: nothing failed.
func (d *DB) Failures(ctx context.Context) ([]Failure, error) {
	return ask[Failure](ctx, d, "failures", FailuresSQL)
}

// Latencies answers [LatencySQL], in the order of the steps.
func (d *DB) Latencies(ctx context.Context) ([]Latency, error) {
	return ask[Latency](ctx, d, "latencies", LatencySQL)
}

// Points answers [PointsSQL], by shop and lane.
func (d *DB) Points(ctx context.Context) ([]Points, error) {
	return ask[Points](ctx, d, "points", PointsSQL)
}

// PriceChanges answers [PricesSQL], the latest first, 20 at most.
func (d *DB) PriceChanges(ctx context.Context) ([]PriceChange, error) {
	return ask[PriceChange](ctx, d, "price changes", PricesSQL)
}

// ask returns nil where there is no row.
func ask[T any](ctx context.Context, d *DB, what, sql string) ([]T, error) {
	var out []T
	if err := d.conn.Select(ctx, &out, sql); err != nil {
		return nil, fmt.Errorf("ask for %s: %w", what, explain(err))
	}
	return out, nil
}
