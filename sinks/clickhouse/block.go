package clickhouse

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// block is what one INSERT writes: columns of equal length.
type block struct {
	table   string
	rows    int
	columns []columnValues
	// settled are the times at which pushes of the block were settled; nil but for outcomes.
	settled []time.Time
}

// columnValues holds a slice of a type that the driver takes for the column.
type columnValues struct {
	name   string
	values any
}

// column says how a column is filled from rows of type R.
type column[R any] struct {
	name string
	fill func(rows []R) any
}

// field makes a column of a function that gives one row's value.
func field[R, T any](name string, get func(*R) T) column[R] {
	return column[R]{name: name, fill: func(rows []R) any {
		values := make([]T, len(rows))
		for i := range rows {
			values[i] = get(&rows[i])
		}
		return values
	}}
}

// row is a record that was read as a V.
type row[V any] struct {
	event.Record
	v V
}

// readShare is how many records make another goroutine worth its start.
const readShare = 1024

// read tries every record once, on all processors: most of the time that an insert takes in this process goes into JSON.
// Those that it cannot read go to malformed.
func read[V any](records []event.Record, decode func(*event.Record) (V, error)) (rows []row[V], bad []row[string]) {
	values := make([]V, len(records))
	errs := make([]error, len(records))
	share := max(readShare, (len(records)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for from := 0; from < len(records); from += share {
		wg.Go(func() {
			for i := from; i < min(from+share, len(records)); i++ {
				values[i], errs[i] = decode(&records[i])
			}
		})
	}
	wg.Wait()
	rows = make([]row[V], 0, len(records))
	for i := range records {
		if errs[i] != nil {
			bad = append(bad, row[string]{records[i], errs[i].Error()})
			continue
		}
		rows = append(rows, row[V]{records[i], values[i]})
	}
	return rows, bad
}

// build makes the block of a table: the columns that every table has, and its own.
func build[V any](table, topicID string, rows []row[V], columns []column[row[V]]) block {
	b := block{table: table, rows: len(rows)}
	for _, c := range identity[V](topicID) {
		b.columns = append(b.columns, columnValues{c.name, c.fill(rows)})
	}
	for _, c := range columns {
		b.columns = append(b.columns, columnValues{c.name, c.fill(rows)})
	}
	return b
}

// identity is what a row is known by.
func identity[V any](topicID string) []column[row[V]] {
	return []column[row[V]]{
		field("topic_id", func(*row[V]) string { return topicID }),
		field("partition", func(r *row[V]) int32 { return r.Partition }),
		field("offset", func(r *row[V]) uint64 { return uint64(r.Offset) }),
		field("timestamp", func(r *row[V]) time.Time { return clamp(r.Timestamp) }),
	}
}

// header makes a column of a record's header; empty where it has none.
func header[V any](name, key string) column[row[V]] {
	return field(name, func(r *row[V]) string {
		s, _ := r.Header(key)
		return s
	})
}

// nullable is NULL for the zero time, which says "never" in our events.
func nullable(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = clamp(t)
	return &t
}

const malformedTable = "malformed_rows"

func malformed(topic, topicID string, bad []row[string]) block {
	return build(malformedTable, topicID, bad, []column[row[string]]{
		field("topic", func(*row[string]) string { return topic }),
		field("reason", func(r *row[string]) string { return r.v }),
		field("key", func(r *row[string]) string { return string(r.Key) }),
		field("value", func(r *row[string]) string { return string(r.Value) }),
		field("headers", func(r *row[string]) map[string]string { return headers(&r.Record) }),
	})
}

// headers keeps the first header of each key, as [event.Record.Header] does.
func headers(r *event.Record) map[string]string {
	m := make(map[string]string, len(r.Headers))
	for _, h := range r.Headers {
		if _, ok := m[h.Key]; !ok {
			m[h.Key] = string(h.Value)
		}
	}
	return m
}

// excerpt shortens what a reason quotes.
func excerpt(b []byte) string {
	const most = 80
	s := strings.ToValidUTF8(string(b[:min(len(b), most+utf8.UTFMax)]), "?")
	if len(b) > most {
		s = s[:min(len(s), most)] + "..."
	}
	return fmt.Sprintf("%q", s)
}
