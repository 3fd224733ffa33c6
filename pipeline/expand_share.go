package pipeline

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// A rule that is changed a hundred times in a moment asks a hundred times for the same products. Requests of a partition
// that wait while another is expanded share one run when their route's query is asked the same: then each of their
// transactions has exactly the products of the run, which is newer than all of them. Each keeps its own batch, its items
// and its parked rows, and the position passes none before the run is over. Requests that ask for different products share
// nothing: their batches have different members.

// fanoutRequest is a record of catalog.fanouts that waits to be expanded.
type fanoutRequest struct {
	rec *event.Record
	fan event.Fanout
	bad error // why it can never be expanded
	// images are those that the query is asked, each once, and asks tells them and the query: requests of which it is
	// equal list the same products.
	images []map[string]*string
	asks   string
	done   bool
}

// request reads a record.
func (e *Expand) request(rec *event.Record) *fanoutRequest {
	q := &fanoutRequest{rec: rec}
	if q.bad = json.Unmarshal(rec.Value, &q.fan); q.bad != nil {
		return q
	}
	query, known := e.query[q.fan.Table]
	if !known {
		q.bad = fmt.Errorf("no route of the configuration has a query for the table %q", q.fan.Table)
		return q
	}
	byText := map[string]map[string]*string{}
	for _, image := range []map[string]*string{q.fan.Before, q.fan.After} {
		if image == nil {
			continue
		}
		asked := query.asks(image)
		text, err := json.Marshal(asked) // in the order of columns
		if err != nil {
			panic(fmt.Sprintf("encode the row of a fan-out: %v", err)) // texts, that came as JSON
		}
		byText[string(text)] = asked
	}
	asks := []string{q.fan.Table, query.sql}
	for _, text := range slices.Sorted(maps.Keys(byText)) {
		q.images, asks = append(q.images, byText[text]), append(asks, text)
	}
	q.asks = strings.Join(asks, "\x00")
	return q
}

// fanoutQuery is a route's query, and the columns of the row that it asks for.
type fanoutQuery struct {
	sql     string
	columns []string // nil: any of them
}

// rowParameter finds where a query mentions its first parameter, rowColumn what it takes of it: $1::jsonb->>'id'.
var (
	rowParameter = regexp.MustCompile(`\$1($|[^0-9])`)
	rowColumn    = regexp.MustCompile(`\$1(?:\s*::\s*jsonb?)?\s*->>?\s*'([^']*)'($|\s*[^\s'])`)
)

// newFanoutQuery reads which columns a query takes of the row. Where that cannot be told for sure, it may be any.
func newFanoutQuery(sql string) fanoutQuery {
	q := fanoutQuery{sql: sql}
	found := rowColumn.FindAllStringSubmatch(sql, -1)
	if len(found) == 0 || len(found) != len(rowParameter.FindAllString(sql, -1)) {
		return q
	}
	for _, m := range found {
		q.columns = append(q.columns, m[1])
	}
	return q
}

// asks is what the query can see of a row.
func (q *fanoutQuery) asks(image map[string]*string) map[string]*string {
	if q.columns == nil {
		return image
	}
	out := map[string]*string{}
	for _, c := range q.columns {
		if v, ok := image[c]; ok {
			out[c] = v
		}
	}
	return out
}

// begin says after which product the run begins, and which of the other requests share it: those that ask for the same and
// whose transactions can be seen now. A request behind one that cannot be seen waits with it, so that the last offset alone
// tells who shares the run.
//
// A run that was begun before goes on with those that shared it then, as far as they have been read again: whoever has come
// since has nothing of the products before the cursor, and who is left out now has nothing of those behind it.
func (w *expansion) begin(ctx context.Context, others []*fanoutRequest) (after string, err error) {
	first := w.shared[0]
	upto, after, resumed := w.reached()
	var snap change.Snapshot
	if !resumed {
		if snap, err = w.visible(ctx); err != nil {
			return "", err
		}
	}
	w.shared, w.upto = []*fanoutRequest{first}, first.rec.Offset
	for _, q := range others {
		if resumed && q.rec.Offset > upto {
			break
		}
		if q.done || q.bad != nil || q.asks != first.asks {
			continue
		}
		if !resumed && !snap.Sees(q.fan.XID) {
			break
		}
		w.shared, w.upto = append(w.shared, q), q.rec.Offset
	}
	return after, nil
}

// cursorAt says how far the products are parked for all who share the run, and reached reads it. A cursor of another form,
// or of a query that has changed, says nothing: the run begins anew.
func (w *expansion) cursorAt(product change.ProductID) string {
	return fmt.Sprintf("%s%d:%s:%s", cursorMark, w.upto, w.asked(), product)
}

func (w *expansion) reached() (upto int64, product string, ok bool) {
	rest, ok := strings.CutPrefix(w.lease.Cursor, cursorMark)
	parts := strings.SplitN(rest, ":", 3)
	if !ok || len(parts) < 3 || parts[1] != w.asked() {
		return 0, "", false
	}
	upto, err := strconv.ParseInt(parts[0], 10, 64)
	return upto, parts[2], err == nil
}

// asked is what the run asks for, short enough for a cursor.
func (w *expansion) asked() string {
	sum := sha256.Sum256([]byte(w.shared[0].asks))
	return hex.EncodeToString(sum[:8])
}

const cursorMark = "shared:"

// parkMost bounds the rows of one transaction: a page of a run that many batches share is parked in pieces.
const parkMost = 10_000

// wanted is what one batch wants of each product of the run.
type wanted struct {
	batch   event.Batch
	xids    []change.XID
	changes int
	first   time.Time
}

// wants lists the batches that share the run, each once however many of its rows do.
func (w *expansion) wants() []*wanted {
	var out []*wanted
	byBatch := map[string]*wanted{}
	for _, q := range w.shared {
		b := byBatch[q.fan.BatchID]
		if b == nil {
			b = &wanted{first: q.fan.CommitTime}
			byBatch[q.fan.BatchID], out = b, append(out, b)
		}
		b.batch = event.Batch{
			Type: event.BatchOpened, ID: q.fan.BatchID, Kind: event.KindTransaction, XID: q.fan.XID, CommitTime: q.fan.CommitTime,
		}
		if !slices.Contains(b.xids, q.fan.XID) {
			b.xids = append(b.xids, q.fan.XID)
		}
		b.changes++
	}
	return out
}

// park lets the products of a page wait, as items of each batch that shares the run. A product wants a row for each of
// them, so that none is paused, cancelled or counted with another; one push ends them all.
func (w *expansion) park(ctx context.Context, ids []change.ProductID) error {
	wants := w.wants()
	for piece := range slices.Chunk(ids, max(1, parkMost/len(wants))) {
		if err := w.parkPiece(ctx, wants, piece); err != nil {
			return err
		}
	}
	return nil
}

func (w *expansion) parkPiece(ctx context.Context, wants []*wanted, ids []change.ProductID) error {
	e, rec, now := w.e, w.shared[0].rec, time.Now()
	t := work.TakeIn{
		Fences: []work.Fence{w.lease.Fence}, Cursors: map[int32]string{rec.Partition: w.cursorAt(ids[len(ids)-1])},
		Positions: map[int32]int64{rec.Partition: rec.Offset},
	}
	for _, b := range wants {
		if b.batch.ID != "" {
			t.Batches = append(t.Batches, b.batch)
		}
		for _, id := range ids {
			t.Parked = append(t.Parked, work.Parked{
				ProductID: string(id), Partition: change.Partition(id, e.cfg.ChangePartitions), Lane: work.LaneCampaign, Due: now,
				Reason: "FANOUT", CampaignID: b.batch.ID, XIDs: b.xids, Changes: b.changes,
				FirstCommit: b.first, LastCommit: b.batch.CommitTime,
			})
			if b.batch.ID != "" {
				t.Items = append(t.Items, work.Item{
					BatchID: b.batch.ID, ProductID: string(id), XID: b.batch.XID, Status: work.ItemPending,
				})
			}
		}
	}
	e.stats.Products.Add(int64(len(ids)))
	return e.takeIn(ctx, t)
}
