package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// LeaseLostError is what a fenced write fails with when a lease is not its owner's any more, or has ended. Nothing of
// the write was done. errors.Is finds it as [work.ErrLeaseLost].
type LeaseLostError struct {
	Op string
	// Leases lists them as "push/3, push/7", or those of which one was lost: "one of push/3, push/7".
	Leases string
}

func (e *LeaseLostError) Error() string { return e.Op + ": lease lost: " + e.Leases }

// Unwrap makes errors.Is(err, work.ErrLeaseLost) true.
func (e *LeaseLostError) Unwrap() error { return work.ErrLeaseLost }

// seatsQuery reads the seats and the time at which they were so.
const seatsQuery = `SELECT partition, owner, expires, wanted_by, wanted_until, clock_timestamp()
	FROM leases WHERE stage = $1 AND partition < $2 ORDER BY partition`

// Renew is a worker's turn at the leases of a stage: it makes the rows of partitions 0 to n-1 where they are missing,
// extends what owner holds by ttl, takes what is free up to owner's fair share, and marks leases of the busiest worker
// where owner has too few. It returns all that owner holds now; Wanted ones should be drained and released. Call it
// every twentieth of ttl or oftener: a worker that holds nothing is seen by its marks alone, and they last for three
// such turns. ttl must be the same for all workers of a stage. owner must be unique to the process's run: a successor with the same name would be
// taken for its predecessor.
//
// A lease whose end has passed comes back with a new epoch even if nobody else had it: whatever the holder keeps in
// memory for the old epoch is to be dropped.
func (s *Store) Renew(
	ctx context.Context, stage work.Stage, owner string, partitions int32, ttl time.Duration,
) ([]work.Lease, error) {
	if owner == "" || partitions <= 0 || ttl <= 0 {
		return nil, fmt.Errorf("renew leases of %s: want an owner, partitions and a ttl, got %q, %d, %s",
			stage, owner, partitions, ttl)
	}
	var leases []work.Lease
	err := s.retry(ctx, "renew leases", func() (err error) {
		leases, err = s.renew(ctx, stage, owner, partitions, ttl)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("renew leases of %s for %s: %w", stage, owner, err)
	}
	return leases, nil
}

func (s *Store) renew(
	ctx context.Context, stage work.Stage, owner string, partitions int32, ttl time.Duration,
) ([]work.Lease, error) {
	conn, err := s.leases.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release() // a connection that is still inside a transaction is closed by the pool, not reused

	// Two round trips: workers take turns by the advisory lock, so that what assign decides still holds when it is
	// written. Rows are locked only for writing, and rows of others never waited for: a stopped worker may hold them.
	var look pgx.Batch
	var seats []seat
	var now time.Time
	look.Queue(`BEGIN`)
	look.Queue(`SELECT pg_advisory_xact_lock(hashtext('lease'), hashtext($1))`, string(stage))
	look.Queue(`INSERT INTO leases (stage, partition) SELECT $1, p FROM generate_series(0, $2::int - 1) p
		WHERE NOT EXISTS (SELECT FROM leases l WHERE l.stage = $1 AND l.partition = p) ON CONFLICT DO NOTHING`,
		string(stage), partitions)
	look.Queue(seatsQuery, string(stage), partitions).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var t seat
			if err := rows.Scan(&t.partition, &t.owner, &t.expires, &t.wantedBy, &t.wantedUntil, &now); err != nil {
				return err
			}
			seats = append(seats, t)
		}
		return rows.Err()
	})
	if err := conn.SendBatch(ctx, &look).Close(); err != nil {
		return nil, err
	}
	s.ahead.judge(stage, seats, now, ttl, time.Now())
	return s.occupy(ctx, conn.Conn(), stage, owner, assign(seats, owner, now, spareFor(ttl)), ttl)
}

// occupy writes an assignment and commits.
func (s *Store) occupy(
	ctx context.Context, conn *pgx.Conn, stage work.Stage, owner string, a assignment, ttl time.Duration,
) ([]work.Lease, error) {
	var b pgx.Batch
	// Locked in the order of every other writer first: an UPDATE alone locks in the order of the heap.
	b.Queue(`WITH mine AS (SELECT stage, partition FROM leases WHERE stage = $1 AND partition = ANY($2) AND owner = $3
			AND expires > clock_timestamp() ORDER BY partition FOR NO KEY UPDATE)
		UPDATE leases l SET expires = clock_timestamp() + $4::interval FROM mine
		WHERE l.stage = mine.stage AND l.partition = mine.partition`, string(stage), a.renew, owner, ttl)
	if len(a.claim) > 0 {
		b.Queue(`WITH free AS (SELECT stage, partition FROM leases WHERE stage = $1 AND partition = ANY($2)
				AND (owner = '' OR expires <= clock_timestamp() OR expires > clock_timestamp() + 2 * $4::interval)
				ORDER BY partition FOR UPDATE SKIP LOCKED)
			UPDATE leases l SET owner = $3, epoch = epoch + 1, expires = clock_timestamp() + $4::interval,
				wanted_by = '', wanted_until = 'epoch' FROM free
			WHERE l.stage = free.stage AND l.partition = free.partition`, string(stage), a.claim, owner, ttl)
	}
	if len(a.want) > 0 {
		b.Queue(`WITH busy AS (SELECT stage, partition FROM leases WHERE stage = $1 AND partition = ANY($2)
				ORDER BY partition FOR NO KEY UPDATE SKIP LOCKED)
			UPDATE leases l SET wanted_by = $3, wanted_until = clock_timestamp() + $4::interval FROM busy
			WHERE l.stage = busy.stage AND l.partition = busy.partition`, string(stage), a.want, owner, markFor(ttl))
	}
	if len(a.drop) > 0 {
		b.Queue(`WITH dropped AS (SELECT stage, partition FROM leases WHERE stage = $1 AND partition = ANY($2)
				AND wanted_by = $3 ORDER BY partition FOR NO KEY UPDATE SKIP LOCKED)
			UPDATE leases l SET wanted_by = '', wanted_until = 'epoch' FROM dropped
			WHERE l.stage = dropped.stage AND l.partition = dropped.partition`, string(stage), a.drop, owner)
	}
	b.Queue(`DELETE FROM writes WHERE at < clock_timestamp() - interval '10 minutes'`)
	var leases []work.Lease
	b.Queue(`SELECT partition, epoch, expires, position, taken_in, cursor,
			wanted_by NOT IN ('', owner) AND wanted_until > clock_timestamp()
		FROM leases WHERE stage = $1 AND owner = $2 AND expires > clock_timestamp() ORDER BY partition`,
		string(stage), owner).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			l := work.Lease{Fence: work.Fence{Stage: stage, Owner: owner}}
			err := rows.Scan(&l.Partition, &l.Epoch, &l.Expires, &l.Position, &l.TakenIn, &l.Cursor, &l.Wanted)
			if err != nil {
				return err
			}
			leases = append(leases, l)
		}
		return rows.Err()
	})
	b.Queue(`COMMIT`)
	if err := conn.SendBatch(ctx, &b).Close(); err != nil {
		return nil, err
	}
	return leases, nil
}

// markFor is how long a worker that has marked a lease is waited for: three renewals. Shorter, and a slow answer would
// lose its turn; longer, and what is given up for a worker that was killed lies idle for as long.
func markFor(ttl time.Duration) time.Duration { return 3 * ttl / 20 }

// spareFor is how long a lease lies free before it is taken beyond the fair share: two renewals, in which everybody who
// lives has had a turn.
func spareFor(ttl time.Duration) time.Duration { return ttl / 10 }

// Release gives leases back at once, for a clean stop or to the worker that waits. A lease that is not the holder's
// any more is left alone. What was marked by a waiting worker is kept for it. A fence of [work.AllPartitions] gives
// back all of its owner, and withdraws the owner's marks.
func (s *Store) Release(ctx context.Context, fences []work.Fence) error {
	if len(fences) == 0 {
		return nil
	}
	stages, parts, owners, epochs := fenceColumns(fences)
	err := s.retry(ctx, "release leases", func() error {
		var b pgx.Batch
		b.Queue(`WITH mine AS (SELECT l.stage, l.partition FROM leases l
				JOIN unnest($1::text[], $2::int[], $3::text[], $4::bigint[]) f(stage, partition, owner, epoch)
				USING (stage, partition, owner, epoch) ORDER BY l.stage, l.partition FOR UPDATE OF l)
			UPDATE leases l SET owner = '', expires = clock_timestamp() FROM mine
			WHERE l.stage = mine.stage AND l.partition = mine.partition`, stages, parts, owners, epochs)
		for _, f := range fences {
			if f.Partition == work.AllPartitions {
				queueLeave(&b, f.Stage, f.Owner)
			}
		}
		return s.leases.SendBatch(ctx, &b).Close()
	})
	if err != nil {
		return fmt.Errorf("release leases: %w", err)
	}
	return nil
}

func queueLeave(b *pgx.Batch, stage work.Stage, owner string) {
	b.Queue(`WITH mine AS (SELECT l.stage, l.partition FROM leases l WHERE l.stage = $1 AND (l.owner = $2 OR l.wanted_by = $2)
			ORDER BY l.stage, l.partition FOR UPDATE OF l)
		UPDATE leases l SET owner = CASE WHEN l.owner = $2 THEN '' ELSE l.owner END,
			expires = CASE WHEN l.owner = $2 THEN clock_timestamp() ELSE l.expires END,
			wanted_until = CASE WHEN l.wanted_by = $2 THEN 'epoch' ELSE l.wanted_until END,
			wanted_by = CASE WHEN l.wanted_by = $2 THEN '' ELSE l.wanted_by END
		FROM mine WHERE l.stage = mine.stage AND l.partition = mine.partition`, string(stage), owner)
}

// leasesAhead watches leases that end later than any worker can have asked for: the state's clock has gone back. Their
// owner, if it lives, corrects that with its next renewal; one that was killed would be waited for until that time.
type leasesAhead struct {
	mu   sync.Mutex
	seen map[work.Stage]map[int32]leaseAhead
}

type leaseAhead struct {
	owner   string
	expires time.Time
	since   time.Time // by this process's clock, which does not go back
}

// judge marks the seats as dead that have stood unchanged for a ttl with an end more than two ttl ahead. A holder that
// lives has renewed by then, or knows by its own clock that it has lost the lease.
func (l *leasesAhead) judge(stage work.Stage, seats []seat, now time.Time, ttl time.Duration, mine time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was, is := l.seen[stage], map[int32]leaseAhead{}
	for i := range seats {
		s := &seats[i]
		if s.owner == "" || !s.expires.After(now.Add(2*ttl)) {
			continue
		}
		w, ok := was[s.partition]
		if !ok || w.owner != s.owner || !w.expires.Equal(s.expires) {
			w = leaseAhead{s.owner, s.expires, mine}
		}
		is[s.partition] = w
		s.dead = mine.Sub(w.since) >= ttl
	}
	if l.seen == nil {
		l.seen = map[work.Stage]map[int32]leaseAhead{}
	}
	l.seen[stage] = is
}

// Positions returns the position of each partition of a stage.
func (s *Store) Positions(ctx context.Context, stage work.Stage) (map[int32]int64, error) {
	rows, err := s.pool.Query(ctx, `SELECT partition, position FROM leases WHERE stage = $1`, string(stage))
	if err != nil {
		return nil, fmt.Errorf("read positions of %s: %w", stage, err)
	}
	out := map[int32]int64{}
	var p int32
	var pos int64
	if _, err := pgx.ForEachRow(rows, []any{&p, &pos}, func() error { out[p] = pos; return nil }); err != nil {
		return nil, fmt.Errorf("read positions of %s: %w", stage, err)
	}
	return out, nil
}

// SavePosition moves the positions of leased partitions forward, for a stage whose output is elsewhere and repeats
// harmlessly (Load). of is the id of the topic that they count, and becomes the leases' cursor: positions in another
// topic of that name say nothing, and are replaced, also by lower ones.
func (s *Store) SavePosition(ctx context.Context, fences []work.Fence, positions map[int32]int64, of string) error {
	if err := checkPositions(fences, positions); err != nil {
		return fmt.Errorf("save positions: %w", err)
	}
	parts := slices.Sorted(maps.Keys(positions))
	at := make([]int64, len(parts))
	for i, p := range parts {
		at[i] = positions[p]
	}
	return s.apply(ctx, "save positions", fences, func(b *pgx.Batch) {
		b.Queue(`UPDATE leases l SET cursor = $4, (position, taken_in) = (SELECT p, p FROM (SELECT
				CASE WHEN l.cursor = $4 THEN greatest(l.position, n.position) ELSE n.position END AS p) one)
			FROM unnest($2::int[], $3::bigint[]) n(partition, position)
			WHERE l.stage = $1 AND l.partition = n.partition AND (l.position < n.position OR l.cursor <> $4)`,
			string(fences[0].Stage), parts, at, of)
	})
}

// fenceColumns turns fences into the parameters of fence(), in the order in which rows are locked.
func fenceColumns(fences []work.Fence) (stages []string, parts []int32, owners []string, epochs []int64) {
	for _, f := range fences {
		stages = append(stages, string(f.Stage))
		parts = append(parts, f.Partition)
		owners = append(owners, f.Owner)
		epochs = append(epochs, f.Epoch)
	}
	return stages, parts, owners, epochs
}

// queuePositions moves positions forward, never back: a late write of an earlier read must not undo a later one. A
// record that is finished has been taken in. A cursor belongs to the position that it was written with: a position
// that moves without one begins its record anew.
func queuePositions(b *pgx.Batch, fences []work.Fence, takenIn, positions map[int32]int64, cursors map[int32]string) {
	touched := map[int32]bool{}
	for p := range positions {
		touched[p] = true
	}
	for p := range takenIn {
		touched[p] = true
	}
	for p := range cursors {
		touched[p] = true
	}
	if len(touched) == 0 {
		return
	}
	parts := slices.Sorted(maps.Keys(touched))
	taken, done, cursor := make([]int64, len(parts)), make([]int64, len(parts)), make([]*string, len(parts))
	for i, p := range parts {
		done[i] = positions[p]
		taken[i] = max(takenIn[p], positions[p])
		if c, ok := cursors[p]; ok {
			c = clean(c)
			cursor[i] = &c
		}
	}
	b.Queue(`UPDATE leases l SET position = greatest(l.position, n.position), taken_in = greatest(l.taken_in, n.taken_in),
			cursor = CASE WHEN n.cursor IS NOT NULL THEN n.cursor WHEN n.position > l.position THEN '' ELSE l.cursor END
		FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::text[]) n(partition, position, taken_in, cursor)
		WHERE l.stage = $1 AND l.partition = n.partition
			AND (l.position < n.position OR l.taken_in < n.taken_in OR n.cursor IS NOT NULL)`,
		string(fences[0].Stage), parts, done, taken, cursor)
}

// checkPositions refuses positions of partitions that no fence of the write covers.
func checkPositions(fences []work.Fence, positions ...map[int32]int64) error {
	if len(fences) == 0 {
		return errors.New("no fences")
	}
	for _, m := range positions {
		for p := range m {
			if !slices.ContainsFunc(fences, func(f work.Fence) bool { return f.Partition == p }) {
				return fmt.Errorf("position of partition %d of %s without its fence", p, fences[0].Stage)
			}
		}
	}
	return nil
}
