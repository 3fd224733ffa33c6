package state

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// Backlog is what waits in the state, for status and metrics.
type Backlog struct {
	Stages []StageLeases
	// Parked are the products that wait, counted by why they do, the highest lane first. Where there are more than were
	// counted, ParkedMore is about how many.
	Parked     []ParkedGroup
	ParkedMore int64
	// Intents are requests whose answers are not on record, up to 10,000; Unanswered is how long the oldest has been out.
	Intents    int64
	Unanswered time.Duration
	Outbox     OutboxBacklog
}

// StageLeases says who works on a stage and how far it is.
type StageLeases struct {
	Stage work.Stage
	// Workers hold leases of Held partitions, of all that Positions names.
	Workers, Held int
	Positions     map[int32]int64
}

// ParkedGroup are products that wait in one lane, for one shop (empty: not read yet), for one reason.
type ParkedGroup struct {
	Lane         work.Lane
	Shop, Reason string
	Products     int64
	// Due of them may go now, and wait for room or for budget; the first of them since Oldest.
	Due    int64
	Oldest time.Duration
}

// backlogMost is how many parked rows are counted: a look must not read a table of ten million rows.
const backlogMost = 200_000

// Backlog counts what waits, in one round trip that reads at most 200,000 parked rows.
func (s *Store) Backlog(ctx context.Context) (Backlog, error) {
	var out Backlog
	var b pgx.Batch
	b.Queue(`SELECT stage, count(DISTINCT owner) FILTER (WHERE held)::int, count(*) FILTER (WHERE held)::int,
			array_agg(partition), array_agg(position)
		FROM (SELECT *, owner <> '' AND expires > clock_timestamp() AS held FROM leases) l GROUP BY stage ORDER BY stage`,
	).Query(func(rows pgx.Rows) (err error) {
		out.Stages, err = pgx.CollectRows(rows, stageLeases)
		return err
	})
	counted := int64(0)
	b.Queue(`SELECT lane, shop, reason, count(*), count(*) FILTER (WHERE due <= clock_timestamp()),
			greatest(clock_timestamp() - min(due), interval '0')
		FROM (SELECT lane, shop, reason, due FROM parked LIMIT $1) p GROUP BY 1, 2, 3 ORDER BY 1, 4 DESC, 2, 3`, backlogMost,
	).Query(func(rows pgx.Rows) (err error) {
		out.Parked, err = pgx.CollectRows(rows, pgx.RowToStructByPos[ParkedGroup])
		for i := range out.Parked {
			counted += out.Parked[i].Products
		}
		return err
	})
	b.Queue(`SELECT reltuples::bigint FROM pg_class WHERE oid = 'parked'::regclass`).QueryRow(func(row pgx.Row) error {
		var about int64
		err := row.Scan(&about)
		if counted == backlogMost {
			out.ParkedMore = max(about-counted, 1)
		}
		return err
	})
	b.Queue(`SELECT count(*), coalesce(clock_timestamp() - min(at), interval '0') FROM (SELECT at FROM intents LIMIT 10000) i`).
		QueryRow(func(row pgx.Row) error { return row.Scan(&out.Intents, &out.Unanswered) })
	b.Queue(outboxSQL).QueryRow(out.Outbox.scan)
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return out, fmt.Errorf("count what waits: %w", err)
	}
	return out, nil
}

func stageLeases(row pgx.CollectableRow) (StageLeases, error) {
	l := StageLeases{Positions: map[int32]int64{}}
	var parts []int32
	var at []int64
	err := row.Scan(&l.Stage, &l.Workers, &l.Held, &parts, &at)
	for i, p := range parts {
		l.Positions[p] = at[i]
	}
	return l, err
}
