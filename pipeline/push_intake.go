package pipeline

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// intake sorts the records of one poll; it is pure.
type intake struct {
	prefix  string
	content map[string]bool // tables whose changes go in the lane of content
	n       int32
	at      time.Time                 // when the poll came
	owners  map[int32]*ownedPartition // under whose leases it came
	lost    map[int32]bool            // partitions of which nothing was written
	records []event.Record
	free    []*entry // live changes of no batch: they may be pushed before anything is written
	entries []*entry // live changes whose items must stand before their first read
	takeIn  work.TakeIn
	last    map[int32]int64
	done    map[int32][]int64 // offsets that are finished once takeIn is durable
	items   map[[2]string]struct{}
	batches map[string]struct{}
}

func (in *intake) nothingToWrite() bool {
	return len(in.takeIn.Items)+len(in.takeIn.Parked)+len(in.takeIn.Outbox) == 0
}

func (in *intake) add(r *event.Record) {
	if in.last == nil {
		in.last, in.done = map[int32]int64{}, map[int32][]int64{}
		in.items, in.batches = map[[2]string]struct{}{}, map[string]struct{}{}
	}
	in.last[r.Partition] = r.Offset
	in.records = append(in.records, *r)
	e, batch, origin, err := parseChange(r, in.content)
	if err != nil {
		in.takeIn.Outbox = append(in.takeIn.Outbox, deadLetter(in.prefix, r, err))
		in.done[r.Partition] = append(in.done[r.Partition], r.Offset)
		return
	}
	switch {
	case batch != "":
		in.item(batch, e, origin)
	case origin == "":
		in.free = append(in.free, e)
		return
	}
	if origin == "" {
		in.entries = append(in.entries, e)
		return
	}
	in.done[r.Partition] = append(in.done[r.Partition], r.Offset)
	in.takeIn.Parked = append(in.takeIn.Parked, work.Parked{
		ProductID: string(e.product), Partition: r.Partition, Lane: work.LaneCampaign, Due: time.Now(),
		Reason: origin, CampaignID: batch, Changes: 1, FirstCommit: e.first, LastCommit: e.last,
	})
}

func (in *intake) item(batch string, e *entry, origin string) {
	if _, ok := in.batches[batch]; !ok {
		in.batches[batch] = struct{}{}
		b := event.Batch{Type: event.BatchOpened, ID: batch, Kind: event.KindTransaction, CommitTime: e.last}
		if origin != "" {
			b.Kind = origin
		}
		if len(e.xids) > 0 {
			b.XID = e.xids[0]
		}
		in.takeIn.Batches = append(in.takeIn.Batches, b)
	}
	key := [2]string{batch, string(e.product)}
	if _, ok := in.items[key]; ok {
		return
	}
	in.items[key] = struct{}{}
	it := work.Item{BatchID: batch, ProductID: string(e.product), Status: work.ItemPending}
	if len(e.xids) > 0 {
		it.XID = e.xids[0]
	}
	in.takeIn.Items = append(in.takeIn.Items, it)
}

// productIDMost and shopNameMost bound what names a product (and a batch) and a shop, in bytes: both together are the key
// of an index, a row of which ends at 2,704 bytes (PostgreSQL, "B-Tree Indexes"). The state would refuse all that is
// written together with a longer one.
const (
	productIDMost = 512
	shopNameMost  = 255
)

// parseChange reads the key and headers of a record of catalog.changes; its value is not needed, as a push reads the
// document itself. content are the tables whose changes go in the lane of content.
func parseChange(r *event.Record, content map[string]bool) (e *entry, batch, origin string, err error) {
	if len(r.Key) == 0 {
		return nil, "", "", errors.New("the record has no key: it must be the product id")
	}
	// The state takes neither, and would refuse all that are read or written together with it.
	if !utf8.Valid(r.Key) || bytes.IndexByte(r.Key, 0) >= 0 {
		return nil, "", "", errors.New("the record's key is no text: it must be the product id in UTF-8")
	}
	if len(r.Key) > productIDMost {
		table, _ := r.Header(event.HeaderTable)
		return nil, "", "", fmt.Errorf("the product id has %d bytes, more than %d, and begins with %q: let the route of the "+
			"table %q, or whoever wrote the record, name shorter ids", len(r.Key), productIDMost, headOf(string(r.Key)), table)
	}
	e = &entry{
		product: change.ProductID(r.Key), partition: r.Partition, offsets: []int64{r.Offset},
		changes: 1, captured: r.Timestamp,
	}
	if v, ok := r.Header(event.HeaderXID); ok {
		x, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return nil, "", "", fmt.Errorf("header %s is %q: want a decimal transaction id", event.HeaderXID, v)
		}
		e.needs(change.XID(x))
	}
	e.first = r.Timestamp
	if v, ok := r.Header(event.HeaderCommitted); ok {
		us, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return nil, "", "", fmt.Errorf("header %s is %q: want microseconds since 1970", event.HeaderCommitted, v)
		}
		e.first = time.UnixMicro(us)
	}
	e.last = e.first
	batch, _ = r.Header(event.HeaderBatch)
	if !utf8.ValidString(batch) || strings.IndexByte(batch, 0) >= 0 {
		return nil, "", "", fmt.Errorf("header %s is no text", event.HeaderBatch)
	}
	if len(batch) > productIDMost {
		return nil, "", "", fmt.Errorf("header %s has %d bytes: want at most %d", event.HeaderBatch, len(batch), productIDMost)
	}
	if len(content) > 0 {
		if table, _ := r.Header(event.HeaderTable); content[table] {
			e.lane = work.LaneContent
		}
	}
	origin, _ = r.Header(event.HeaderOrigin)
	return e, batch, origin, nil
}

// deadLetter keeps the original bytes of a record that cannot be processed at all.
func deadLetter(prefix string, r *event.Record, reason error) event.Record {
	return event.Record{
		Topic: prefix + event.DeadLetters, Partition: -1, Key: r.Key, Value: r.Value,
		Headers: append(slices.Clone(r.Headers),
			event.Header{Key: event.HeaderReason, Value: []byte(reason.Error())},
			event.Header{Key: "source-topic", Value: []byte(r.Topic)},
			event.Header{Key: "source-partition", Value: strconv.AppendInt(nil, int64(r.Partition), 10)},
			event.Header{Key: "source-offset", Value: strconv.AppendInt(nil, r.Offset, 10)}),
	}
}
