package torture

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
)

// calm waits until every commit before now has been captured, taken in, pushed, settled, relayed and loaded. It looks
// from outside only: at the slot, at the topics and at the state.
func (w *world) calm(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	end, err := one[string](ctx, w.sourceURL, `SELECT pg_current_wal_flush_lsn()::text`)
	if err != nil {
		return err
	}
	var waiting string
	for {
		waiting, err = w.waiting(ctx, end)
		if err == nil && waiting == "" {
			return nil
		}
		if err != nil {
			waiting = err.Error()
		}
		if !rest(ctx, 250*time.Millisecond) {
			return fmt.Errorf("no calm after %s: %s\n%s", limit, waiting, w.dump(context.WithoutCancel(ctx)))
		}
	}
}

// waiting says what is not finished yet. Where no request can land late, what only waits for that to be ruled out is.
func (w *world) waiting(ctx context.Context, end string) (string, error) {
	captured, err := one[bool](ctx, w.sourceURL,
		`SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`, end, w.cfg.Source.Slot)
	if err != nil || !captured {
		return "capture is behind " + end, err
	}
	// In the order in which one makes work for the next.
	for _, s := range []struct {
		stage work.Stage
		topic string
	}{{work.StageExpand, event.Fanouts}, {work.StageBatches, event.Batches}, {work.StagePush, event.Changes}} {
		behind, err := w.behind(ctx, s.stage, 0, s.topic)
		if err != nil || behind != "" {
			return behind, err
		}
	}
	for _, q := range []struct{ what, sql string }{
		{"parked products", `SELECT count(*) FROM parked WHERE reason <> 'LATE_REQUEST'`},
		{"products that wait for a late request", fmt.Sprintf(`SELECT count(*) FROM parked WHERE %t`, w.setup.late)},
		{"open batches", `SELECT count(*) FROM batches WHERE status IN ('PENDING', 'PROCESSING')`},
		{"outbox rows", `SELECT count(*) FROM outbox`},
	} {
		n, err := one[int64](ctx, w.stateURL, q.sql)
		if err != nil || n > 0 {
			return fmt.Sprintf("%d %s", n, q.what), err
		}
	}
	return w.loading(ctx)
}

// loading says what ClickHouse does not have yet.
func (w *world) loading(ctx context.Context) (string, error) {
	if w.clickhouseURL == "" {
		return "", nil
	}
	first := int32(0)
	for _, topic := range clickhouse.Topics() {
		behind, err := w.behind(ctx, work.StageLoad, first, topic)
		if err != nil || behind != "" {
			return behind, err
		}
		first += topicPartitions(topic)
	}
	return "", nil
}

func topicPartitions(topic string) int32 {
	if topic == event.Batches {
		return 1
	}
	return partitions
}

// behind says how far a stage is from the end of a topic; first is the stage's own number of the topic's partition 0.
// The last offsets of a partition may be transaction markers, which no reader ever sees.
func (w *world) behind(ctx context.Context, stage work.Stage, first int32, topic string) (string, error) {
	at, err := w.state.Positions(ctx, stage)
	if err != nil {
		return "", err
	}
	ends, err := w.cluster.EndOffsets(ctx, w.cluster.Topic(topic))
	if err != nil {
		return "", err
	}
	for _, part := range slices.Sorted(maps.Keys(ends)) {
		from, end := at[first+part], ends[part]
		if from >= end {
			continue
		}
		found := false
		_, err := w.cluster.Scan(ctx, w.cluster.Topic(topic), part, from, end, func(event.Record) bool {
			found = true
			return false
		})
		if err != nil || found {
			return fmt.Sprintf("%s is at %d of %s/%d, which ends at %d", stage, from, topic, part, end), err
		}
	}
	return "", nil
}

// dump describes the state for someone who must find out why a run came to no end.
func (w *world) dump(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var b strings.Builder
	for _, q := range []struct{ what, sql string }{
		{"leases", `SELECT format('%s/%s %s until %s, taken in %s, position %s %s', stage, partition, right(owner, 14),
			(expires - now())::interval(1), taken_in, position, cursor) FROM leases ORDER BY stage, partition`},
		{"parked", `SELECT format('%s %s lane %s: %s rows, due in %s, attempt %s', coalesce(nullif(shop, ''), '-'), reason, lane, count(*),
			(min(due) - now())::interval(1), max(attempt)) FROM parked GROUP BY shop, reason, lane ORDER BY 1`},
		{"parked rows", `SELECT format('%s %s/%s %s generation %s xids %s', partition, product_id, shop, reason, generation, xids)
			FROM parked WHERE reason <> 'LATE_REQUEST' ORDER BY due LIMIT 10`},
		{"intents", `SELECT format('%s %s %s: %s, the oldest %s ago', shop, mutation, '', count(*), (now() - min(at))::interval(1))
			FROM intents GROUP BY shop, mutation`},
		{"open batches", `SELECT format('%s %s %s %s announced %s changes %s fanouts %s: %s', id, kind, name, status, announced, changes, fanouts,
			(SELECT string_agg(s, ', ') FROM (SELECT format('%s %s', count(*), i.status) s FROM batch_items i WHERE i.batch_id = b.id GROUP BY i.status) x))
			FROM batches b WHERE status IN ('PENDING', 'PROCESSING') LIMIT 10`},
		{"open items", `SELECT format('%s %s/%s %s xid %s %s %s', i.batch_id, product_id, shop, i.status, i.xid, category, message) FROM batch_items i
			JOIN batches b ON b.id = i.batch_id
			WHERE b.status IN ('PENDING', 'PROCESSING') AND i.status IN ('PENDING', 'PROCESSING', 'RETRYING', 'HELD') LIMIT 10`},
		{"outbox", `SELECT format('%s rows, the oldest %s', count(*), (now() - min(at))::interval(1)) FROM outbox`},
		{"shops", `SELECT format('%s dead since %s: %s, next probe in %s', shop, dead_since, reason, (next_probe - now())::interval(1)) FROM shops`},
		{"buckets", `SELECT format('%s %s', shop, bucket) FROM buckets`},
	} {
		rows, err := query[string](ctx, w.stateURL, q.sql)
		if err != nil {
			rows = []string{err.Error()}
		}
		fmt.Fprintf(&b, "%s:\n  %s\n", q.what, strings.Join(rows, "\n  "))
	}
	for _, topic := range []string{event.Changes, event.Fanouts, event.Batches, event.Outcomes, event.Documents} {
		ends, err := w.cluster.EndOffsets(ctx, w.cluster.Topic(topic))
		fmt.Fprintf(&b, "%s ends at %v %v\n", topic, ends, err)
	}
	for _, p := range w.parts {
		p.mu.Lock()
		last := p.last
		p.mu.Unlock()
		if last != nil {
			fmt.Fprintf(&b, "--- %s says at last:\n%s\n", p.name, tail(last.Log(), 1200))
		}
	}
	return b.String()
}
