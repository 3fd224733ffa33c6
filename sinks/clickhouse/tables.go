package clickhouse

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// tables says, for each topic, which rows its records become.
var tables = map[string]func(topicID, topic string, records []event.Record) []block{
	event.Changes: func(id, topic string, records []event.Record) []block {
		rows, bad := read(records, decodeChange)
		return []block{build("changes_rows", id, rows, changeColumns), malformed(topic, id, bad)}
	},
	event.Outcomes: func(id, topic string, records []event.Record) []block {
		rows, bad := read(records, decodeOutcome)
		b := build("outcomes_rows", id, rows, outcomeColumns)
		b.settled = settledTimes(rows)
		return []block{b, malformed(topic, id, bad)}
	},
	event.Batches: func(id, topic string, records []event.Record) []block {
		rows, bad := read(records, decodeBatch)
		return []block{build("batches_rows", id, rows, batchColumns), malformed(topic, id, bad)}
	},
	event.Documents: func(id, topic string, records []event.Record) []block {
		rows, bad := read(records, decodeDocument)
		return []block{
			build("document_versions_rows", id, rows, versionColumns),
			build("documents_rows", id, rows, documentColumns),
			malformed(topic, id, bad),
		}
	},
	event.DeadLetters: func(id, topic string, records []event.Record) []block {
		rows, bad := read(records, decodeDeadLetter)
		return []block{build("deadletters_rows", id, rows, deadLetterColumns), malformed(topic, id, bad)}
	},
}

// Topics are the topics that have tables, named as in package event, in the order in which the loader numbers their
// partitions. New ones are added at the end.
func Topics() []string {
	return []string{event.Changes, event.Outcomes, event.Batches, event.Documents, event.DeadLetters}
}

// tablesOf lists the tables in which a record of the topic may have its row.
func tablesOf(topic string) []string {
	if topic == event.Documents {
		// Not the versions, which retention may have emptied while the document stands.
		return []string{"documents_rows", malformedTable}
	}
	return []string{topic + "_rows", malformedTable}
}

type changeValue struct {
	position  change.Position
	xid       uint64
	committed time.Time
}

var changeColumns = []column[row[changeValue]]{
	field("product_id", func(r *row[changeValue]) string { return string(r.Key) }),
	header[changeValue]("table", event.HeaderTable),
	header[changeValue]("op", event.HeaderOp),
	header[changeValue]("pk", event.HeaderPrimaryKey),
	field("commit_lsn", func(r *row[changeValue]) uint64 { return uint64(r.v.position.CommitLSN) }),
	field("ordinal", func(r *row[changeValue]) uint64 { return r.v.position.Ordinal }),
	field("xid", func(r *row[changeValue]) uint64 { return r.v.xid }),
	header[changeValue]("batch_id", event.HeaderBatch),
	header[changeValue]("origin", event.HeaderOrigin),
	field("committed", func(r *row[changeValue]) *time.Time { return nullable(r.v.committed) }),
	field("value", func(r *row[changeValue]) string { return string(r.Value) }),
}

// decodeChange checks what columns are made of. The envelope itself stays as it came.
func decodeChange(r *event.Record) (v changeValue, err error) {
	if err := object(r.Value); err != nil {
		return v, err
	}
	text, ok := r.Header(event.HeaderPosition)
	if !ok {
		return v, fmt.Errorf("header %s is missing", event.HeaderPosition)
	}
	if v.position, err = change.ParsePosition(text); err != nil {
		return v, fmt.Errorf("header %s: %w", event.HeaderPosition, err)
	}
	if text, ok := r.Header(event.HeaderXID); ok {
		if v.xid, err = strconv.ParseUint(text, 10, 64); err != nil {
			return v, fmt.Errorf("header %s: %q is no transaction id", event.HeaderXID, text)
		}
	}
	if text, ok := r.Header(event.HeaderCommitted); ok {
		micros, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return v, fmt.Errorf("header %s: %q is no time in microseconds", event.HeaderCommitted, text)
		}
		v.committed = time.UnixMicro(micros)
	}
	return v, nil
}

var errTombstone = errors.New("the record has no value: this topic knows no tombstones")

// object refuses what is not one JSON object.
func object(b []byte) error {
	switch {
	case b == nil:
		return errTombstone
	case !json.Valid(b):
		return fmt.Errorf("value is no JSON: %s", excerpt(b))
	case bytes.TrimLeft(b, " \t\r\n")[0] != '{':
		return fmt.Errorf("value is no JSON object: %s", excerpt(b))
	}
	return nil
}

// decodeJSON reads the value as a V.
func decodeJSON[V any](r *event.Record) (v V, err error) {
	if r.Value == nil {
		return v, errTombstone
	}
	if err := json.Unmarshal(r.Value, &v); err != nil {
		return v, fmt.Errorf("decode the value: %w: %s", err, excerpt(r.Value))
	}
	return v, nil
}

func outcome[T any](name string, get func(*event.Outcome) T) column[row[event.Outcome]] {
	return field(name, func(r *row[event.Outcome]) T { return get(&r.v) })
}

var outcomeColumns = []column[row[event.Outcome]]{
	outcome("id", func(o *event.Outcome) string { return o.ID }),
	outcome("product_id", func(o *event.Outcome) string { return o.ProductID }),
	outcome("shop", func(o *event.Outcome) string { return o.Shop }),
	outcome("status", func(o *event.Outcome) string { return string(o.Status) }),
	outcome("category", func(o *event.Outcome) string { return string(o.Category) }),
	outcome("reason", func(o *event.Outcome) string { return o.Reason }),
	outcome("message", func(o *event.Outcome) string { return o.Message }),
	outcome("field", func(o *event.Outcome) string { return o.Field }),
	outcome("shopify_id", func(o *event.Outcome) string { return o.ShopifyID }),
	outcome("variant_ids", func(o *event.Outcome) []string { return o.VariantIDs }),
	outcome("batch_ids", func(o *event.Outcome) []string { return o.BatchIDs }),
	outcome("lane", func(o *event.Outcome) string { return o.Lane }),
	outcome("attempt", func(o *event.Outcome) int32 { return int32(o.Attempt) }),
	outcome("plan", func(o *event.Outcome) string { return o.Plan }),
	outcome("sent", func(o *event.Outcome) string { return o.Sent }),
	outcome("sent_hash", func(o *event.Outcome) string { return o.SentHash }),
	outcome("points_requested", func(o *event.Outcome) float64 { return o.PointsRequested }),
	outcome("points_actual", func(o *event.Outcome) float64 { return o.PointsActual }),
	outcome("changes", func(o *event.Outcome) int64 { return int64(o.Changes) }),
	outcome("first_commit", func(o *event.Outcome) *time.Time { return nullable(o.FirstCommit) }),
	outcome("last_commit", func(o *event.Outcome) *time.Time { return nullable(o.LastCommit) }),
	outcome("captured_at", func(o *event.Outcome) *time.Time { return nullable(o.CapturedAt) }),
	outcome("due_at", func(o *event.Outcome) *time.Time { return nullable(o.DueAt) }),
	outcome("read_at", func(o *event.Outcome) *time.Time { return nullable(o.ReadAt) }),
	outcome("sent_at", func(o *event.Outcome) *time.Time { return nullable(o.SentAt) }),
	outcome("answered_at", func(o *event.Outcome) *time.Time { return nullable(o.AnsweredAt) }),
	outcome("settled_at", func(o *event.Outcome) *time.Time { return nullable(o.SettledAt) }),
	outcome("document_hash", func(o *event.Outcome) string { return o.DocumentHash }),
	outcome("next_attempt", func(o *event.Outcome) *time.Time { return nullable(o.NextAttempt) }),
	{name: "loaded_at", fill: func(rows []row[event.Outcome]) any {
		now := time.Now().UTC()
		values := make([]*time.Time, len(rows))
		for i := range values {
			values[i] = &now
		}
		return values
	}},
}

func decodeOutcome(r *event.Record) (o event.Outcome, err error) {
	if !readOutcome(r.Value, &o) {
		o, err = decodeJSON[event.Outcome](r)
	}
	switch {
	case err != nil:
	case o.ProductID == "":
		err = errors.New("product_id is empty")
	case o.Status == "":
		err = errors.New("status is empty")
	}
	return o, err
}

// settledTimes are those of pushes that a shop took, which are those that the view latencies counts.
func settledTimes(rows []row[event.Outcome]) []time.Time {
	var times []time.Time
	for i := range rows {
		if o := &rows[i].v; o.Status == event.Success && !o.AnsweredAt.IsZero() && !o.SettledAt.IsZero() {
			times = append(times, o.SettledAt)
		}
	}
	return times
}

func batch[T any](name string, get func(*event.Batch) T) column[row[event.Batch]] {
	return field(name, func(r *row[event.Batch]) T { return get(&r.v) })
}

var batchColumns = []column[row[event.Batch]]{
	batch("batch_id", func(b *event.Batch) string { return b.ID }),
	batch("type", func(b *event.Batch) string { return b.Type }),
	batch("kind", func(b *event.Batch) string { return b.Kind }),
	batch("name", func(b *event.Batch) string { return b.Name }),
	batch("admin", func(b *event.Batch) string { return b.Admin }),
	batch("xid", func(b *event.Batch) uint64 { return uint64(b.XID) }),
	batch("commit_lsn", func(b *event.Batch) uint64 { return uint64(b.CommitLSN) }),
	batch("commit_time", func(b *event.Batch) *time.Time { return nullable(b.CommitTime) }),
	batch("rows", func(b *event.Batch) int64 { return b.Rows }),
	batch("changes", func(b *event.Batch) map[int32]int64 { return b.Changes }),
	batch("fanouts", func(b *event.Batch) map[int32]int64 { return b.Fanouts }),
	batch("round", func(b *event.Batch) int32 { return int32(b.Round) }),
	batch("status", func(b *event.Batch) string { return b.Status }),
	batch("total", func(b *event.Batch) int64 { return int64(b.Total) }),
	batch("succeeded", func(b *event.Batch) int64 { return int64(b.Succeeded) }),
	batch("failed", func(b *event.Batch) int64 { return int64(b.Failed) }),
	batch("skipped", func(b *event.Batch) int64 { return int64(b.Skipped) }),
	batch("cancelled", func(b *event.Batch) int64 { return int64(b.Cancelled) }),
	batch("errors", func(b *event.Batch) map[string]int64 {
		m := make(map[string]int64, len(b.Errors))
		for k, n := range b.Errors {
			m[k] = int64(n)
		}
		return m
	}),
	batch("at", func(b *event.Batch) *time.Time { return nullable(b.At) }),
}

func decodeBatch(r *event.Record) (event.Batch, error) {
	b, err := decodeJSON[event.Batch](r)
	switch {
	case err != nil:
	case b.ID == "":
		err = errors.New("batch_id is empty")
	case b.Type == "":
		err = errors.New("type is empty")
	}
	return b, err
}

// documentValue is a document, or the tombstone of one, with what its history is made of.
type documentValue struct {
	event.Document
	deleted  bool
	eligible bool
	reason   string

	keys, skus, prices, compare           []string
	levelKeys, levelLocations, levelNames []string
	levelQuantities                       []int64
}

var documentColumns = []column[row[documentValue]]{
	field("key", func(r *row[documentValue]) string { return string(r.Key) }),
	field("product_id", func(r *row[documentValue]) string { return r.v.ProductID }),
	field("shop", func(r *row[documentValue]) string { return r.v.Shop }),
	field("hash", func(r *row[documentValue]) string { return r.v.Hash }),
	field("document", func(r *row[documentValue]) string { return string(r.v.Document.Document) }),
	field("snapshot", func(r *row[documentValue]) string { return r.v.Snapshot }),
	field("read_at", func(r *row[documentValue]) *time.Time { return nullable(r.v.ReadAt) }),
	field("deleted", deletedFlag),
}

var versionColumns = []column[row[documentValue]]{
	field("product_id", func(r *row[documentValue]) string { return r.v.ProductID }),
	field("shop", func(r *row[documentValue]) string { return r.v.Shop }),
	field("hash", func(r *row[documentValue]) string { return r.v.Hash }),
	field("read_at", func(r *row[documentValue]) *time.Time { return nullable(r.v.ReadAt) }),
	field("deleted", deletedFlag),
	field("eligible", func(r *row[documentValue]) bool { return r.v.eligible }),
	field("reason", func(r *row[documentValue]) string { return r.v.reason }),
	field("variant_keys", func(r *row[documentValue]) []string { return r.v.keys }),
	field("variant_skus", func(r *row[documentValue]) []string { return r.v.skus }),
	field("variant_prices", func(r *row[documentValue]) []string { return r.v.prices }),
	field("variant_compare", func(r *row[documentValue]) []string { return r.v.compare }),
	field("level_keys", func(r *row[documentValue]) []string { return r.v.levelKeys }),
	field("level_locations", func(r *row[documentValue]) []string { return r.v.levelLocations }),
	field("level_names", func(r *row[documentValue]) []string { return r.v.levelNames }),
	field("level_quantities", func(r *row[documentValue]) []int64 { return r.v.levelQuantities }),
}

func deletedFlag(r *row[documentValue]) uint8 {
	if r.v.deleted {
		return 1
	}
	return 0
}

// decodeDocument takes the product and shop of a tombstone from its key, "product|shop". A document that breaks its own
// schema is on record nevertheless: its outcome says what is wrong with it, and it has no history of prices and stock.
func decodeDocument(r *event.Record) (v documentValue, err error) {
	if r.Value == nil {
		i := strings.LastIndexByte(string(r.Key), '|')
		if i < 0 {
			return v, fmt.Errorf("the key of a tombstone is not product|shop: %s", excerpt(r.Key))
		}
		v.ProductID, v.Shop, v.deleted = string(r.Key[:i]), string(r.Key[i+1:]), true
		return v, nil
	}
	if v.Document, err = decodeJSON[event.Document](r); err != nil {
		return v, err
	}
	if v.ProductID == "" || v.Shop == "" {
		return v, errors.New("product_id or shop is empty")
	}
	var doc document.Document
	if err := json.Unmarshal(v.Document.Document, &doc); err != nil {
		v.reason = "UNREADABLE"
		return v, nil
	}
	v.eligible, v.reason = doc.Eligible, doc.Reason
	for i := range doc.Variants.Value {
		variant := &doc.Variants.Value[i]
		v.keys = append(v.keys, variant.Key)
		v.skus = append(v.skus, variant.SKU.Value)
		v.prices = append(v.prices, variant.Price.Value)
		v.compare = append(v.compare, variant.CompareAtPrice.Value)
		for _, l := range variant.Stock.Value {
			v.levelKeys = append(v.levelKeys, variant.Key)
			v.levelLocations = append(v.levelLocations, l.Location)
			v.levelNames = append(v.levelNames, l.Name)
			v.levelQuantities = append(v.levelQuantities, int64(l.Quantity))
		}
	}
	return v, nil
}

type noValue struct{}

var deadLetterColumns = []column[row[noValue]]{
	field("key", func(r *row[noValue]) string { return string(r.Key) }),
	field("value", func(r *row[noValue]) string { return string(r.Value) }),
	header[noValue]("reason", event.HeaderReason),
	header[noValue]("table", event.HeaderTable),
	header[noValue]("op", event.HeaderOp),
	header[noValue]("position", event.HeaderPosition),
	field("headers", func(r *row[noValue]) map[string]string { return headers(&r.Record) }),
}

// decodeDeadLetter takes any record as it is.
func decodeDeadLetter(*event.Record) (noValue, error) { return noValue{}, nil }
