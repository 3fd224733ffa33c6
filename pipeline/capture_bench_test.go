package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// BenchmarkCaptureSession is what a row costs between the decoded message and the producer: routing, encoding, the
// decision what is a batch, and gathering.
func BenchmarkCaptureSession(b *testing.B) {
	for _, rows := range []int{1, 100} {
		b.Run(fmt.Sprintf("%d rows a transaction", rows), func(b *testing.B) {
			c := NewCapture(CaptureConfig{Routes: []route.Route{{Table: "public.products", Key: "id"}}, Heartbeat: -1}, CaptureParts{Source: benchSource{}})
			stream := newBenchStream(b.N, rows)
			b.ReportAllocs()
			b.ResetTimer()
			err := c.work(b.Context(), stream, benchProducer{}, event.Position{Writer: "bench"})
			if err != nil && !errors.Is(err, errBenchEnd) {
				b.Fatal(err)
			}
		})
	}
}

var errBenchEnd = errors.New("end of the benchmark")

// benchStream yields transactions over 20,000 products.
type benchStream struct {
	left, rows int
	relation   *change.Relation
	images     []change.Tuple
	tx         change.Transaction
	change     change.Change
	at         int // within the transaction; 0 before it begins
}

func newBenchStream(rows, each int) *benchStream {
	s := &benchStream{left: rows, rows: each, relation: &change.Relation{
		OID: 1, Schema: "public", Name: "products", ReplicaIdentity: 'd', PrimaryKey: []string{"id"},
		Columns: []change.Column{
			{Name: "id", TypeOID: 20, Identity: true},
			{Name: "shop", TypeOID: 23},
			{Name: "handle", TypeOID: 25},
			{Name: "title", TypeOID: 25},
			{Name: "price", TypeOID: 1700},
			{Name: "qty", TypeOID: 23},
			{Name: "updated_at", TypeOID: 1184},
			{Name: "body", TypeOID: 25},
		},
	}}
	for i := range 20_000 {
		var t change.Tuple
		for _, text := range []string{
			strconv.Itoa(i), "7", "handle-of-a-product-" + strconv.Itoa(i), "A title of some length for product " + strconv.Itoa(i), "12.50", "4",
			"2026-01-02 03:04:05.678901+00", "body body body body body body body body body body body body ",
		} {
			t = append(t, change.Value{Kind: change.Text, Data: []byte(text)})
		}
		s.images = append(s.images, t)
	}
	return s
}

func (s *benchStream) NextUntil(context.Context, time.Time) (change.Event, error) {
	switch {
	case s.left <= 0:
		return change.Event{}, errBenchEnd
	case s.at == 0:
		s.tx.XID++
		s.tx.CommitLSN += 100
		s.tx.CommitTime = time.Unix(1, 0)
		s.at = 1
		return change.Event{Kind: change.EventBegin, Transaction: &s.tx}, nil
	case s.at > s.rows:
		s.at = 0
		return change.Event{Kind: change.EventCommit, Transaction: &s.tx, EndLSN: s.tx.CommitLSN + 50}, nil
	}
	s.change = change.Change{
		Op: change.Update, Relation: s.relation, After: s.images[s.left*7919%len(s.images)],
		Position: change.Position{CommitLSN: s.tx.CommitLSN, Ordinal: uint64(s.at)},
	}
	s.at++
	s.left--
	return change.Event{Kind: change.EventChange, Transaction: &s.tx, Change: &s.change}, nil
}

func (s *benchStream) Buffered() bool { return true }
func (s *benchStream) Attend(ctx context.Context, work func(context.Context) error) error {
	return work(ctx)
}
func (*benchStream) Confirm(change.LSN)          {}
func (*benchStream) Confirmed() change.LSN       { return 0 }
func (*benchStream) Close(context.Context) error { return nil }

// benchSource sees every transaction, and publishes what it always has.
type benchSource struct{ captureSource }

func (benchSource) Snapshot(context.Context) (change.Snapshot, error) {
	return change.Snapshot{Xmin: 1 << 40, Xmax: 1 << 40}, nil
}

func (benchSource) KeepPublished(context.Context, []string) error { return nil }

func (benchSource) Memberships(context.Context, []string) (map[string]string, error) { return nil, nil }

// benchProducer takes everything.
type benchProducer struct{}

func (benchProducer) Begin() error                               { return nil }
func (benchProducer) ProduceMarked(int64, ...event.Record) error { return nil }
func (benchProducer) Flush(context.Context) error                { return nil }
func (benchProducer) Offsets(int64, string) map[int32]int64      { return map[int32]int64{} }
func (benchProducer) Commit(context.Context) error               { return nil }
func (benchProducer) Abort(context.Context) error                { return nil }
func (benchProducer) Close()                                     {}
