package state

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// outboxRows are records on their way out, in columns.
type outboxRows struct {
	topics  []string
	parts   []int32
	keys    [][]byte
	values  [][]byte
	headers []*string
}

func newOutboxRows(records []event.Record) (outboxRows, error) {
	var o outboxRows
	for i := range records {
		r := &records[i]
		var headers *string
		if len(r.Headers) > 0 {
			v, err := json.Marshal(r.Headers)
			if err != nil {
				return o, fmt.Errorf("encode headers of a record for %s: %w", r.Topic, err)
			}
			text := string(v)
			headers = &text
		}
		o.topics, o.parts = append(o.topics, r.Topic), append(o.parts, r.Partition)
		o.keys, o.values, o.headers = append(o.keys, r.Key), append(o.values, r.Value), append(o.headers, headers)
	}
	return o, nil
}

// queue appends the rows in their order: ids rise with it.
func (o outboxRows) queue(b *pgx.Batch) {
	if len(o.topics) == 0 {
		return
	}
	b.Queue(`INSERT INTO outbox (topic, partition, key, value, headers)
		SELECT topic, partition, key, value, headers::json
		FROM unnest($1::text[], $2::int[], $3::bytea[], $4::bytea[], $5::text[])
			WITH ORDINALITY n(topic, partition, key, value, headers, i) ORDER BY i`,
		o.topics, o.parts, o.keys, o.values, o.headers)
}

// RelayLock is the right to take from the outbox. It is a session of its own: when the connection is lost, so is the
// lock, and every call with it fails from then on. Calls with one lock must not overlap.
type RelayLock struct {
	conn *pgx.Conn
}

// Close gives the lock up. When it returns without an error, another process can have it at once.
func (l *RelayLock) Close(ctx context.Context) error {
	// Closing alone would leave the lock with the server's session until that has noticed.
	_, err := l.conn.Exec(ctx, `SELECT pg_advisory_unlock($1)`, lockRelay)
	if cerr := l.conn.Close(ctx); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("give up the relay's lock: %w", err)
	}
	return nil
}

// LockRelay makes this process the relay, or fails with [work.ErrRelayBusy]. Close it when done.
func (s *Store) LockRelay(ctx context.Context) (*RelayLock, error) {
	cfg := s.pool.Config().ConnConfig
	silence := strconv.FormatInt(s.relayTimeout.Milliseconds(), 10)
	cfg.RuntimeParams["idle_session_timeout"] = silence // since Postgres 14
	cfg.RuntimeParams["tcp_user_timeout"] = silence     // for one that was stopped while it read an answer
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect for the relay's lock: %w", err)
	}
	var got bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, lockRelay).Scan(&got); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("take the relay's lock: %w", err)
	}
	if !got {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, work.ErrRelayBusy
	}
	return &RelayLock{conn: conn}, nil
}

// takenMost bounds the keys and values of what is taken at a time, in bytes: all of it is in memory, and what does not
// fit into a transaction of the relay is read again for the next. It is what one of these holds by default.
const takenMost = 16 << 20

// TakeOutbox returns the next rows with their numbers: up to limit, and to 16 MiB of keys and values where that is more
// than one row. Rows that were taken and not deleted come first
// and alone, with the numbers that they had: after a crash the relay learns from Kafka which of them were sent.
//
// Non-obvious: ids come from a sequence, whose order is not the order of commits: a row with a lower id may become
// visible after a higher one was sent. So rows are numbered here, under the lock, among those that are visible, and
// the order and the numbers are stored before anything is sent. For one product ids do rise in the order of its
// settlements, because the next begins after the last is committed.
func (s *Store) TakeOutbox(ctx context.Context, l *RelayLock, limit int) ([]work.Numbered, error) {
	var out []work.Numbered
	var b pgx.Batch // one transaction, on the connection that holds the lock
	b.Queue(`UPDATE relay SET (number, taken) = (SELECT number + cardinality(ids), ids
			FROM (SELECT coalesce(array_agg(id ORDER BY id), '{}') AS ids
				FROM (SELECT id, size, sum(size) OVER (ORDER BY id) AS upto
					FROM (SELECT id, coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0) AS size
						FROM outbox ORDER BY id LIMIT $1) o) o
				WHERE upto <= $2 OR upto = size) n)
		WHERE taken = '{}' AND EXISTS (SELECT FROM outbox)`, limit, takenMost)
	b.Queue(`SELECT r.number - cardinality(r.taken) + t.i, o.topic, o.partition, o.key, o.value, o.headers
		FROM relay r CROSS JOIN LATERAL unnest(r.taken) WITH ORDINALITY t(id, i) JOIN outbox o ON o.id = t.id
		ORDER BY t.i`).Query(func(rows pgx.Rows) (err error) {
		out, err = pgx.CollectRows(rows, scanNumbered)
		return err
	})
	if err := l.conn.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("take from the outbox: %w", err)
	}
	return out, nil
}

func scanNumbered(row pgx.CollectableRow) (work.Numbered, error) {
	var r work.Numbered
	var headers []byte
	if err := row.Scan(&r.Number, &r.Topic, &r.Partition, &r.Key, &r.Value, &headers); err != nil {
		return r, err
	}
	if headers != nil {
		if err := json.Unmarshal(headers, &r.Headers); err != nil {
			return r, fmt.Errorf("decode headers of outbox row %d: %w", r.Number, err)
		}
	}
	return r, nil
}

// DeleteOutbox deletes the taken rows with numbers up to upTo: they are in Kafka. Numbers go on above upTo in any
// case, also when the state was restored from before it.
func (s *Store) DeleteOutbox(ctx context.Context, l *RelayLock, upTo int64) error {
	var b pgx.Batch
	b.Queue(`DELETE FROM outbox WHERE id IN (SELECT t.id FROM relay r
		CROSS JOIN LATERAL unnest(r.taken) WITH ORDINALITY t(id, i) WHERE r.number - cardinality(r.taken) + t.i <= $1)`, upTo)
	b.Queue(`UPDATE relay SET number = greatest(number, $1),
		taken = taken[1 + least(greatest($1 - (number - cardinality(taken)), 0), cardinality(taken))::int:]
		WHERE number < $1 OR taken <> '{}'`, upTo)
	if err := l.conn.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("delete from the outbox up to %d: %w", upTo, err)
	}
	return nil
}

// OutboxBacklog is what waits for the relay.
type OutboxBacklog struct {
	// Rows is an upper bound: transactions that were rolled back leave gaps that are counted.
	Rows int64
	// Bytes is an estimate: as many rows as large as the last 50 are.
	Bytes int64
	// Oldest is how long the first row has waited.
	Oldest time.Duration
}

const outboxSQL = `SELECT coalesce(z.id - a.id + 1, 0), coalesce((z.id - a.id + 1) * l.size, 0)::bigint,
			coalesce(clock_timestamp() - a.at, interval '0')
		FROM (SELECT 1) one LEFT JOIN (SELECT id, at FROM outbox ORDER BY id LIMIT 1) a ON true
		LEFT JOIN (SELECT id FROM outbox ORDER BY id DESC LIMIT 1) z ON true
		LEFT JOIN (SELECT avg(size) AS size FROM (SELECT coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0) AS size
			FROM outbox ORDER BY id DESC LIMIT 50) newest) l ON true`

func (o *OutboxBacklog) scan(row pgx.Row) error { return row.Scan(&o.Rows, &o.Bytes, &o.Oldest) }

// Outbox says how much waits for the relay, in three index probes, for backpressure and metrics.
func (s *Store) Outbox(ctx context.Context) (OutboxBacklog, error) {
	var o OutboxBacklog
	err := o.scan(s.pool.QueryRow(ctx, outboxSQL))
	if err != nil {
		return o, fmt.Errorf("measure the outbox: %w", err)
	}
	return o, nil
}

// relaySilence is how long the session of the relay's lock may be silent before the server ends it, and the lock with
// it. A stopped process (SIGSTOP, a frozen machine) says nothing, yet its kernel goes on answering for it, so that no
// other process would ever relay. It is that of a lease, and longer than brokers take to restart: a relay that waits
// for Kafka is silent too, and loses no more than its turn.
const relaySilence = 30 * time.Second
