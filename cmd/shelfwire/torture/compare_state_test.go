package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// emitted is a row that was once in the outbox.
type emitted struct {
	ID         int64
	Topic      string
	Partition  int32
	Key, Value []byte
}

// compareState holds what the state has ever put into its outbox against the topics, and looks for what is left open.
func (w *world) compareState(ctx context.Context, f *findings, topics map[string][]event.Record) error {
	conn, err := pgx.Connect(ctx, w.stateURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, `SELECT id, topic, partition, key, value FROM emitted ORDER BY id`)
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[emitted])
	if err != nil {
		return err
	}
	byTopic := map[string][]emitted{}
	for _, e := range all {
		byTopic[e.Topic] = append(byTopic[e.Topic], e)
	}
	f.count("outbox rows", len(all))
	for _, name := range []string{event.Outcomes, event.Documents, event.Batches} {
		compareEmitted(f, name, byTopic[w.cluster.Topic(name)], topics[name])
	}
	ids := map[string]int{}
	for _, r := range topics[event.Outcomes] {
		var o event.Outcome
		if err := json.Unmarshal(r.Value, &o); err != nil {
			f.add(fmt.Sprintf("catalog.outcomes %d/%d: %v", r.Partition, r.Offset, err))
		}
		if ids[o.ID]++; ids[o.ID] == 2 {
			f.add(fmt.Sprintf("catalog.outcomes: outcome %s of product %s stands there twice", o.ID, o.ProductID))
		}
	}
	f.count("outcomes", len(ids))
	if err := w.compareBatches(ctx, f, topics[event.Batches]); err != nil {
		return err
	}
	return w.openEnds(ctx, f)
}

// compareEmitted holds one topic against the outbox rows for it. Within a partition the records must stand in the
// order in which they were put into the outbox, for each key; compaction may have removed older ones of a key.
func compareEmitted(f *findings, name string, want []emitted, got []event.Record) {
	byKey := map[string][]emitted{}
	for _, e := range want {
		byKey[string(e.Key)] = append(byKey[string(e.Key)], e)
	}
	for _, r := range got {
		if name == event.Batches && byCapture(r.Value) {
			continue
		}
		key := string(r.Key)
		list := byKey[key]
		i := 0
		for i < len(list) && !same(list[i], r) {
			i++
		}
		switch {
		case i == len(list):
			f.add(fmt.Sprintf("catalog.%s %d/%d: key %s: there twice, out of order or never in the outbox: %s",
				name, r.Partition, r.Offset, key, r.Value))
			continue
		case i > 0 && name != event.Documents:
			for _, e := range list[:i] {
				f.add(fmt.Sprintf("catalog.%s: outbox row %d of key %s is missing before %d/%d: %s", name, e.ID, key, r.Partition, r.Offset, e.Value))
			}
		}
		byKey[key] = list[i+1:]
	}
	for key, list := range byKey {
		for _, e := range list {
			f.add(fmt.Sprintf("catalog.%s: outbox row %d of key %s is missing: %s", name, e.ID, key, e.Value))
		}
	}
	f.count("records of catalog."+name, len(got))
}

func same(e emitted, r event.Record) bool {
	return (e.Partition < 0 || e.Partition == r.Partition) && (e.Value == nil) == (r.Value == nil) && bytes.Equal(e.Value, r.Value)
}

// byCapture reports whether Capture has written an event of a batch. On a slow machine a snapshot takes long enough to
// be told of while it is read.
func byCapture(value []byte) bool {
	var b event.Batch
	return json.Unmarshal(value, &b) == nil && slices.Contains([]string{event.BatchAnnounced, event.BatchReading, event.BatchHealed}, b.Type)
}

// compareBatches looks that each batch was announced once, is known to the state and has ended once.
func (w *world) compareBatches(ctx context.Context, f *findings, records []event.Record) error {
	type story struct{ announced, opened, ended int }
	stories := map[string]*story{}
	for _, r := range records {
		var b event.Batch
		if err := json.Unmarshal(r.Value, &b); err != nil {
			f.add(fmt.Sprintf("catalog.batches %d: %v", r.Offset, err))
			continue
		}
		s := stories[b.ID]
		if s == nil {
			s = &story{}
			stories[b.ID] = s
		}
		switch b.Type {
		case event.BatchAnnounced:
			s.announced++
		case event.BatchOpened:
			s.opened++
		case event.BatchCompleted, event.BatchFailed, event.BatchCancelled:
			s.ended++
		}
	}
	f.count("batches", len(stories))
	known, err := query[string](ctx, w.stateURL, `SELECT round || ' ' || id FROM batches WHERE announced AND ended_at IS NOT NULL`)
	if err != nil {
		return err
	}
	left := map[string]int{} // rounds
	for _, k := range known {
		round, id, _ := strings.Cut(k, " ")
		left[id], _ = strconv.Atoi(round)
	}
	for id, s := range stories {
		if s.announced != 1 || s.ended != max(left[id], 1) || s.opened > 1 {
			f.add(fmt.Sprintf("batch %s was announced %d times, opened %d times and ended %d times, in %d rounds", id, s.announced, s.opened, s.ended, left[id]))
		}
		if left[id] == 0 {
			f.add(fmt.Sprintf("batch %s has not ended in the state", id))
		}
		delete(left, id)
	}
	for id := range left {
		f.add(fmt.Sprintf("batch %s of the state was never announced", id))
	}
	return nil
}

// openEnds looks for what nobody would ever come back to.
func (w *world) openEnds(ctx context.Context, f *findings) error {
	for _, q := range []struct{ what, sql string }{
		{"an unsettled item of an ended batch", `SELECT format('%s %s/%s %s', i.batch_id, i.product_id, i.shop, i.status)
			FROM batch_items i JOIN batches b ON b.id = i.batch_id
			WHERE b.ended_at IS NOT NULL AND i.status IN ('PENDING', 'PROCESSING', 'RETRYING', 'HELD')`},
		{"an item of no batch", `SELECT format('%s %s/%s', batch_id, product_id, shop) FROM batch_items i
			WHERE NOT EXISTS (SELECT FROM batches b WHERE b.id = i.batch_id)`},
		{"an intent that nobody will look at again", `SELECT format('%s/%s %s %s, %s old', product_id, shop, mutation, key, now() - at)
			FROM intents i WHERE NOT EXISTS (SELECT FROM parked p WHERE p.product_id = i.product_id AND p.shop IN ('', i.shop))`},
		{"an intent that is older than any request", fmt.Sprintf(`SELECT format('%%s/%%s %%s %%s, %%s old', product_id, shop, mutation, key, now() - at)
			FROM intents WHERE at < now() - interval '%d s'`, int((lateRequest + 30*time.Second).Seconds()))},
		{"an outbox row", `SELECT format('%s %s', id, topic) FROM outbox`},
		{"a parked product", `SELECT format('%s/%s %s', product_id, shop, reason) FROM parked WHERE reason <> 'LATE_REQUEST'`},
		{"a shop that counts as dead", `SELECT format('%s: %s', shop, reason) FROM shops WHERE dead_since IS NOT NULL`},
	} {
		rows, err := query[string](ctx, w.stateURL, q.sql)
		if err != nil {
			return err
		}
		for _, r := range rows {
			f.add("state: " + q.what + ": " + r)
		}
	}
	return nil
}
