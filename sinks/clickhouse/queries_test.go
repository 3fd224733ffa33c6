package clickhouse

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// recent moves records to the last minutes, for the queries about the last day.
func recent(rs []event.Record) []event.Record {
	start := time.Now().Add(-time.Hour).Truncate(time.Second)
	for i := range rs {
		rs[i].Timestamp = start.Add(time.Duration(rs[i].Offset) * time.Second)
	}
	return rs
}

func TestQueriesAnswerWhatAnAnalystAsks(t *testing.T) {
	db := open(t)
	var values []any
	for n := range 100 {
		o := outcomeOf(n)
		switch n % 10 {
		case 0:
			o.Status, o.Category, o.Message, o.AnsweredAt = event.Failed, event.Validation, fmt.Sprint("title is blank ", n), time.Time{}
		case 1:
			o.Status, o.Category, o.Message, o.AnsweredAt = event.Retrying, event.Network, "reset", time.Time{}
		}
		values = append(values, o)
	}
	rs := recent(records(t, event.Outcomes, 0, 0, values...))
	insert(t, db, event.Outcomes, topicA, rs, "a")
	insert(t, db, event.Outcomes, topicA, rs[:50], "b")

	failures, err := db.Failures(t.Context())
	require.NoError(t, err)
	require.Equal(t, []Failure{
		{Category: "NETWORK", Shop: "eu", Retried: 10, Products: 7, ExampleProduct: "p0", Example: "reset"},
		{Category: "VALIDATION", Shop: "eu", Failed: 10, Products: 7, ExampleProduct: "p6", Example: "title is blank 90"},
	}, failures)

	latencies, err := db.Latencies(t.Context())
	require.NoError(t, err)
	byStep := map[string]Latency{}
	for _, l := range latencies {
		byStep[l.Step] = l
	}
	require.Equal(t, Latency{Step: "commit_to_shop", Pushes: 80, P50: 350, P90: 350, P99: 350}, byStep["commit_to_shop"])
	require.Equal(t, Latency{Step: "sent_to_answered", Pushes: 80, P50: 250, P90: 250, P99: 250}, byStep["sent_to_answered"])
	require.NotContains(t, byStep, "kafka_to_due", "a step without its times has no latency")

	points, err := db.Points(t.Context())
	require.NoError(t, err)
	require.Equal(t, []Points{{
		Shop: "eu", Lane: "live", Pushes: 100, Answered: 80, Changes: 300, ChangesPerPush: 3, Points: 1000, PointsPerPush: 12.5,
	}}, points)
}

// Each step begins where the one before it ends.
func TestTheStepsOfAPushAddUpToTheWhole(t *testing.T) {
	db := open(t)
	var values []any
	for n := range 20 {
		o := outcomeOf(n)
		o.FirstCommit = time.Now().Add(-time.Minute)
		for i, at := range []*time.Time{&o.CapturedAt, &o.DueAt, &o.ReadAt, &o.SentAt, &o.AnsweredAt, &o.SettledAt} {
			*at = o.FirstCommit.Add(time.Duration((i+1)*(n+1)) * time.Millisecond)
		}
		values = append(values, o)
	}
	in, err := db.Insert(t.Context(), event.Outcomes, topicA, recent(records(t, event.Outcomes, 0, 0, values...)), "a")
	require.NoError(t, err)
	require.Len(t, in.SettledAt, 20)
	require.EqualValues(t, 20, count(t, db, `(
		SELECT timestamp, sumIf(ms, step NOT IN ('commit_to_shop', 'last_commit_to_shop', 'commit_to_clickhouse')) AS steps,
			sumIf(ms, step = 'commit_to_clickhouse') AS whole, count() AS n
		FROM latencies GROUP BY timestamp HAVING n = 10 AND whole > 59000 AND abs(steps - whole) < 0.01)`))
	latencies, err := db.Latencies(t.Context())
	require.NoError(t, err)
	require.Len(t, latencies, 10)
	for _, l := range latencies {
		require.EqualValues(t, 20, l.Pushes, l.Step)
	}
	require.Equal(t, "settled_to_clickhouse", latencies[6].Step)
}

// documentOf is the event of a document with one variant; an empty price is left alone.
func documentOf(t *testing.T, product, price string, quantity int) event.Record {
	t.Helper()
	v := document.Variant{Key: "v", SKU: document.Of("SKU")}
	if price != "" {
		v.Price = document.Of(price)
	}
	v.Stock = document.Of([]document.Level{{Location: "here", Quantity: quantity}})
	raw, err := json.Marshal(document.Document{Eligible: true, Variants: document.Of([]document.Variant{v})})
	require.NoError(t, err)
	value, err := json.Marshal(event.Document{ProductID: product, Shop: "eu", Hash: price, Document: raw, ReadAt: noon})
	require.NoError(t, err)
	return event.Record{Key: []byte(product + "|eu"), Value: value}
}

func TestDocumentsAndTheirHistories(t *testing.T) {
	db := open(t)
	gone := event.Record{Key: []byte("p2|eu")}
	rs := recent(records(t, event.Documents, 0, 0,
		documentOf(t, "p1", "1.00", 5), documentOf(t, "p2", "7", 1), documentOf(t, "p1", "1.00", 4),
		documentOf(t, "p1", "", 4), documentOf(t, "p1", "2.50", 4), gone, documentOf(t, "p1", "n/a", 4)))
	_, err := db.Begin(t.Context(), event.Documents, topicA)
	require.NoError(t, err)
	insert(t, db, event.Documents, topicA, rs[:5], "0-4")
	insert(t, db, event.Documents, topicA, rs, "0-6")
	insert(t, db, event.Documents, topicA, rs[:3], "0-2") // a predecessor that wakes

	require.EqualValues(t, 1, count(t, db, "documents"))
	require.EqualValues(t, 1, count(t, db, "documents WHERE product_id = 'p1' AND hash = 'n/a' AND offset = 6"))

	changes, err := db.PriceChanges(t.Context())
	require.NoError(t, err)
	require.Len(t, changes, 1)
	require.InDelta(t, 2.5, changes[0].Price, 1e-9)
	require.InDelta(t, 1.0, changes[0].Previous, 1e-9)
	require.EqualValues(t, 4, count(t, db, "price_history"), "two first prices, one change, one that is no number")
	require.EqualValues(t, 1, count(t, db, "price_history WHERE price IS NULL"))
	require.EqualValues(t, 3, count(t, db, "stock_history"))
	require.EqualValues(t, 1, count(t, db, "stock_history WHERE previous_quantity = 5 AND quantity = 4"))
	require.EqualValues(t, 2, count(t, db, "stock_history WHERE previous_quantity IS NULL"))

	// The topic is made anew: offsets start again, and what it does not hold is gone.
	_, err = db.Begin(t.Context(), event.Documents, topicB)
	require.NoError(t, err)
	insert(t, db, event.Documents, topicB, recent(records(t, event.Documents, 0, 0, documentOf(t, "p3", "3", 1))), "0-0")
	require.EqualValues(t, 1, count(t, db, "documents"))
	require.EqualValues(t, 1, count(t, db, "documents WHERE product_id = 'p3'"))
}

func TestBatchStatusFollowsTheEvents(t *testing.T) {
	db := open(t)
	_, err := db.Begin(t.Context(), event.Batches, topicA)
	require.NoError(t, err)
	at := func(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }
	rs := records(t, event.Batches, 0, 0,
		event.Batch{Type: event.BatchOpened, ID: "b", Kind: event.KindTransaction, At: at(1)},
		event.Batch{Type: event.BatchAnnounced, ID: "b", Kind: event.KindTransaction, Name: "import", Admin: "ann", Rows: 500, XID: 9, CommitLSN: 7, CommitTime: at(0), Changes: map[int32]int64{1: 2}, At: at(2)},
		event.Batch{Type: event.BatchAnnounced, ID: "waiting", Name: "later", At: at(2)},
		event.Batch{Type: event.BatchCompleted, ID: "b", Round: 1, Status: "COMPLETED", Total: 4, Succeeded: 3, Failed: 1, Errors: map[string]int{"VALIDATION": 1}, At: at(11)},
		event.Batch{Type: event.BatchOpened, ID: "again", At: at(3)},
		event.Batch{Type: event.BatchFailed, ID: "again", Round: 1, Status: "FAILED", Failed: 1, Total: 1, At: at(4)},
		event.Batch{Type: event.BatchOpened, ID: "again", Round: 2, At: at(5)},
	)
	insert(t, db, event.Batches, topicA, rs, "a")
	insert(t, db, event.Batches, topicA, rs[2:], "b")

	type status struct {
		ID       string           `ch:"batch_id"`
		Status   string           `ch:"status"`
		Name     string           `ch:"name"`
		Rows     int64            `ch:"rows"`
		Failed   int64            `ch:"failed"`
		Seconds  *float64         `ch:"seconds"`
		Rate     *float64         `ch:"success_rate"`
		Examples map[string]int64 `ch:"errors"`
	}
	var got []status
	require.NoError(t, db.conn.Select(t.Context(), &got, "SELECT batch_id, status, name, rows, failed, seconds, success_rate, errors FROM batch_status ORDER BY batch_id"))
	require.Len(t, got, 3)
	rate, seconds := 0.75, 10.0
	require.Equal(t, status{ID: "b", Status: "COMPLETED", Name: "import", Rows: 500, Failed: 1, Seconds: &seconds, Rate: &rate, Examples: map[string]int64{"VALIDATION": 1}}, got[1])
	require.Equal(t, "PENDING", got[2].Status)
	require.Equal(t, "PROCESSING", got[0].Status)

	failed := outcomeOf(1)
	failed.Status, failed.Category, failed.Message, failed.BatchIDs = event.Failed, event.Validation, "too long", []string{"b", "c"}
	mended := failed
	mended.ProductID, mended.ID = "p9", "o9"
	later := mended
	later.Status, later.Category, later.ID = event.Success, "", "o10"
	insert(t, db, event.Outcomes, topicA, records(t, event.Outcomes, 0, 0, failed, mended, later), "a")
	require.EqualValues(t, 1, count(t, db, "batch_failures WHERE batch_id = 'b' AND category = 'VALIDATION' AND products = 1 AND example = 'too long' AND example_product = 'p1'"))
	require.EqualValues(t, 2, count(t, db, "batch_failures"))
}
