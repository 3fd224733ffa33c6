package state

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// TestAWorkerWhoseLeaseWasTakenWritesNothing: a worker is stopped for longer than its lease, another takes it, and the
// first wakes up in the middle of its work.
func TestAWorkerWhoseLeaseWasTakenWritesNothing(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	old := own(t, s, work.StagePush, "old", 2)
	require.NoError(t, s.Park(ctx, []work.Parked{{ProductID: "p", Partition: 1, Reason: "REPLAY"}}))
	seen, err := s.Load(ctx, []string{"p"})
	require.NoError(t, err)
	exec(t, s, `UPDATE leases SET expires = clock_timestamp() - interval '1 ms' WHERE partition = 1`)

	writes := map[string]func(f []work.Fence) error{
		"take in": func(f []work.Fence) error {
			return s.TakeIn(ctx, work.TakeIn{
				Fences: f, Parked: []work.Parked{{ProductID: "q", Partition: 1}},
				TakenIn: map[int32]int64{1: 10},
			})
		},
		"intend": func(f []work.Fence) error {
			return s.Intend(ctx, f, []work.Intent{{Key: "k", Shop: "s", ProductIDs: []string{"p"}, Mutation: "productSet"}})
		},
		"settle": func(f []work.Fence) error {
			return s.Settle(ctx, work.Settlement{
				Fences: f, Products: []work.Settled{{Known: work.Known{ProductID: "p", Shop: "s"}}},
				Unpark: seen.Parked, Positions: map[int32]int64{1: 10},
			})
		},
		"save positions": func(f []work.Fence) error { return s.SavePosition(ctx, f, map[int32]int64{1: 10}, "id") },
	}
	for name, write := range writes {
		err := write(old)
		require.ErrorIs(t, err, work.ErrLeaseLost, "%s under a lease that has ended", name)
		require.ErrorContains(t, err, "push/1")
	}
	taken, err := s.Renew(ctx, work.StagePush, "new", 2, time.Minute)
	require.NoError(t, err)
	require.Len(t, taken, 1)
	require.Equal(t, int64(2), taken[0].Epoch)
	for name, write := range writes {
		require.ErrorIs(t, write(old), work.ErrLeaseLost, "%s under a lease that was taken", name)
	}
	l, err := s.Load(ctx, []string{"p", "q"})
	require.NoError(t, err)
	require.Equal(t, seen.Parked, l.Parked)
	require.Empty(t, l.Known, "nothing was written")
	for name, write := range writes {
		require.NoError(t, write(fencesOf(taken)), "%s by the new owner", name)
	}
	require.Error(t, s.Settle(ctx, work.Settlement{}), "a write without fences is a mistake")
	require.ErrorContains(t, s.SavePosition(ctx, fencesOf(taken), map[int32]int64{0: 1}, "id"), "without its fence")
}

// TestAnEndedLeaseComesBackAsANewOne: the holder has dropped its memory by its own clock; what it gets back must look
// new to it.
func TestAnEndedLeaseComesBackAsANewOne(t *testing.T) {
	s := newStore(t)
	first := own(t, s, work.StagePush, "w", 1)
	require.Equal(t, first, own(t, s, work.StagePush, "w", 1), "a renewal keeps the epoch")
	exec(t, s, `UPDATE leases SET expires = clock_timestamp()`)
	again := own(t, s, work.StagePush, "w", 1)
	require.Equal(t, first[0].Epoch+1, again[0].Epoch)
}

// TestWorkersShareLeasesFairly runs real workers against each other: two start together, a third joins, one is killed,
// one stops cleanly.
func TestWorkersShareLeasesFairly(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	const n = 7
	renew := func(owner string) []work.Lease {
		leases, err := s.Renew(ctx, work.StagePush, owner, n, time.Minute)
		require.NoError(t, err)
		return leases
	}
	// A drained lease is released as soon as it is seen to be wanted.
	turn := func(owners ...string) map[string]int {
		held := make([]int, len(owners))
		var g errgroup.Group
		for i, o := range owners {
			g.Go(func() error {
				leases, err := s.Renew(ctx, work.StagePush, o, n, time.Minute)
				var give []work.Fence
				for _, l := range leases {
					if l.Wanted {
						give = append(give, l.Fence)
					}
				}
				held[i] = len(leases) - len(give)
				if err == nil {
					err = s.Release(ctx, give)
				}
				return err
			})
		}
		require.NoError(t, g.Wait())
		out := map[string]int{}
		for i, o := range owners {
			out[o] = held[i]
		}
		require.Zero(t, count(t, s, `SELECT count(*) FROM leases WHERE owner = '' AND wanted_by = ''`), "none lies idle")
		return out
	}
	settle := func(owners ...string) (held map[string]int) {
		for range 4 {
			held = turn(owners...)
		}
		return held
	}
	total := func(held map[string]int) (sum, low, high int) {
		low = n
		for _, v := range held {
			sum, low, high = sum+v, min(low, v), max(high, v)
		}
		return sum, low, high
	}
	held := settle("a", "b")
	sum, low, high := total(held)
	require.Equal(t, []int{n, 3, 4}, []int{sum, low, high}, "two: %v", held)
	held = settle("a", "b", "c")
	sum, low, high = total(held)
	require.Equal(t, []int{n, 2, 3}, []int{sum, low, high}, "three: %v", held)
	stays := settle("a", "b", "c")
	require.Equal(t, held, stays, "at rest nothing moves")

	require.NoError(t, s.Release(ctx, fencesOf(renew("b"))))
	held = settle("a", "c")
	sum, low, high = total(held)
	require.Equal(t, []int{n, 3, 4}, []int{sum, low, high}, "one stopped: %v", held)

	exec(t, s, `UPDATE leases SET expires = clock_timestamp() WHERE owner = 'a'`) // killed, and its time is over
	require.Len(t, renew("c"), n)
}

// TestAStoppedWorkersTransactionBlocksNobody: a worker is stopped in the middle of a settlement and holds its lease's
// row; its lease ends, and the others go on without waiting for the row.
func TestAStoppedWorkersTransactionBlocksNobody(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	own(t, s, work.StagePush, "stopped", 2)
	tx, err := s.pool.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `SELECT FROM leases WHERE partition = 1 FOR NO KEY UPDATE`)
	require.NoError(t, err)
	exec(t, s, `UPDATE leases SET expires = clock_timestamp() WHERE partition = 0`)

	leases, err := s.Renew(ctx, work.StagePush, "other", 2, time.Minute)
	require.NoError(t, err)
	require.Len(t, leases, 1)
	require.NoError(t, tx.Rollback(ctx))
}

// TestIntentsWaitForNobodyAndTakeoversForThem: whoever takes a partition over finds all intents of the worker before, and
// nobody else waits for them, nor they for anybody.
func TestIntentsWaitForNobodyAndTakeoversForThem(t *testing.T) {
	s := newStore(t)
	fences := own(t, s, work.StagePush, "w", 2)
	stages, parts, owners, epochs := fenceColumns(fences)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	intent := []work.Intent{{Key: "k", Shop: "s1", ProductIDs: []string{"p"}, Mutation: "productSet"}}

	settlement, err := s.pool.Begin(ctx)
	require.NoError(t, err)
	_, err = settlement.Exec(ctx, `SELECT fence($1, $2, $3, $4)`, stages, parts, owners, epochs)
	require.NoError(t, err)
	require.NoError(t, s.Intend(ctx, fences, intent))
	require.NoError(t, settlement.Rollback(ctx))

	open, err := s.pool.Begin(ctx)
	require.NoError(t, err)
	_, err = open.Exec(ctx, `SELECT FROM leases FOR KEY SHARE`) // as Intend does
	require.NoError(t, err)
	require.NoError(t, s.Intend(ctx, fences, intent))
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: fences, Positions: map[int32]int64{0: 5}}))
	mine, err := s.Renew(ctx, work.StagePush, "w", 2, time.Minute)
	require.NoError(t, err)
	require.Len(t, mine, 2)
	exec(t, s, `UPDATE leases SET expires = clock_timestamp()`)
	theirs, err := s.Renew(ctx, work.StagePush, "other", 2, time.Minute)
	require.NoError(t, err)
	require.Empty(t, theirs, "an intent is being written under these leases")
	require.ErrorIs(t, s.Intend(ctx, fences, intent), work.ErrLeaseLost)
	require.ErrorIs(t, s.Intend(ctx, fences[:1], intent), work.ErrLeaseLost)

	released := make(chan error, 1)
	go func() { released <- s.Release(ctx, fences) }()
	require.Eventually(t, func() bool {
		return count(t, s, `SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`) == 1
	}, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, open.Commit(ctx))
	require.NoError(t, <-released)
	theirs, err = s.Renew(ctx, work.StagePush, "other", 2, time.Minute)
	require.NoError(t, err)
	require.Len(t, theirs, 2)
}

// TestAssignConverges lets any workers join, leave and die in any order, and then come to rest.
func TestAssignConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "partitions")
		seats := make([]seat, n)
		for i := range seats {
			seats[i].partition = int32(i)
		}
		now := time.Unix(1_000_000, 0)
		const ttl = 10 * time.Second
		turn := func(me string) {
			a := assign(seats, me, now, ttl/10)
			mark := func(ps []int32, f func(*seat)) {
				for _, p := range ps {
					f(&seats[p])
				}
			}
			mark(a.renew, func(s *seat) {
				if s.owner != me || !s.expires.After(now) {
					t.Fatalf("%s renews %d, which is not its own", me, s.partition)
				}
				s.expires = now.Add(ttl)
			})
			mark(a.claim, func(s *seat) {
				if s.owner != "" && s.expires.After(now) {
					t.Fatalf("%s claims %d from living %s", me, s.partition, s.owner)
				}
				*s = seat{partition: s.partition, owner: me, expires: now.Add(ttl)}
			})
			mark(a.want, func(s *seat) { s.wantedBy, s.wantedUntil = me, now.Add(ttl) })
			mark(a.drop, func(s *seat) { s.wantedBy = "" })
			for i := range seats { // gives up what another waits for, at once
				if s := &seats[i]; s.owner == me && s.wantedBy != "" && s.wantedBy != me && s.wantedUntil.After(now) {
					s.owner, s.expires = "", now
				}
			}
		}
		alive := map[string]bool{}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			w := fmt.Sprintf("w%d", rapid.IntRange(0, 6).Draw(t, "worker"))
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				delete(alive, w) // killed
			case 1:
				for i := range seats { // stopped cleanly
					if seats[i].owner == w {
						seats[i].owner, seats[i].expires = "", now
					}
				}
				delete(alive, w)
			default:
				alive[w] = true
				turn(w)
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 4).Draw(t, "seconds")) * time.Second)
		}
		if len(alive) == 0 {
			return
		}
		now = now.Add(2 * ttl) // what the dead held is free
		for range 2*n + 10 {
			for w := range alive {
				turn(w)
			}
			now = now.Add(time.Second)
		}
		held := map[string]int{}
		for _, s := range seats {
			if s.owner == "" {
				t.Fatalf("partition %d has no owner: %+v", s.partition, seats)
			}
			held[s.owner]++
		}
		low, high := n, 0
		for w := range alive {
			low, high = min(low, held[w]), max(high, held[w])
		}
		if high-low > 1 {
			t.Fatalf("unfair: %v of %d", held, n)
		}
	})
}

// TestPositionsMoveForwardOnly: a late answer of an earlier write must not undo a later one, and a cursor belongs to
// its position.
func TestPositionsMoveForwardOnly(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StageExpand, "w", 2)
	lease := func() work.Lease {
		leases, err := s.Renew(ctx, work.StageExpand, "w", 2, time.Minute)
		require.NoError(t, err)
		return leases[1]
	}
	take := func(in work.TakeIn) {
		in.Fences = f
		require.NoError(t, s.TakeIn(ctx, in))
	}
	take(work.TakeIn{Cursors: map[int32]string{1: "p100"}})
	require.Equal(t, "p100", lease().Cursor)
	take(work.TakeIn{Positions: map[int32]int64{1: 5}})
	l := lease()
	require.Equal(t, []any{int64(5), int64(5), ""}, []any{l.Position, l.TakenIn, l.Cursor})
	take(work.TakeIn{TakenIn: map[int32]int64{1: 9}})
	take(work.TakeIn{TakenIn: map[int32]int64{1: 7}, Positions: map[int32]int64{1: 3}})
	l = lease()
	require.Equal(t, []int64{5, 9}, []int64{l.Position, l.TakenIn})
	require.NoError(t, s.SavePosition(ctx, f, map[int32]int64{0: 2, 1: 8}, "id"))
	pos, err := s.Positions(ctx, work.StageExpand)
	require.NoError(t, err)
	require.Equal(t, map[int32]int64{0: 2, 1: 8}, pos)
}

// TestPositionsInAnotherTopicOfTheNameAreReplaced: a topic that is made anew begins at 0, whatever stood before.
func TestPositionsInAnotherTopicOfTheNameAreReplaced(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StageLoad, "w", 1)
	for _, step := range []struct {
		of         string
		save, want int64
	}{{"one", 300, 300}, {"one", 200, 300}, {"two", 40, 40}, {"two", 30, 40}, {"two", 41, 41}} {
		require.NoError(t, s.SavePosition(ctx, f, map[int32]int64{0: step.save}, step.of))
		l, err := s.Renew(ctx, work.StageLoad, "w", 1, time.Minute)
		require.NoError(t, err)
		require.Equal(t, []int64{step.want, step.want}, []int64{l[0].Position, l[0].TakenIn})
		require.Equal(t, step.of, l[0].Cursor)
	}
}

// pass lets time go by for the state: all ends come nearer.
func pass(t require.TestingT, s *Store, d time.Duration) {
	exec(t, s, `UPDATE leases SET expires = expires - $1::interval, wanted_until = wanted_until - $1::interval`, d)
}

// TestWhatIsGivenUpForAWorkerThatLeftIsTakenAtOnce: it stopped cleanly before it had got anything, and its marks kept
// half of the partitions idle for as long as a lease.
func TestWhatIsGivenUpForAWorkerThatLeftIsTakenAtOnce(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	const ttl = 30 * time.Second
	renew := func(w string) []work.Lease {
		ls, err := s.Renew(ctx, work.StagePush, w, 8, ttl)
		require.NoError(t, err)
		return ls
	}
	giveUp := func(w string) (n int) {
		var give []work.Fence
		for _, l := range renew(w) {
			if l.Wanted {
				give = append(give, l.Fence)
			}
		}
		require.NoError(t, s.Release(ctx, give))
		return len(give)
	}
	renew("a")
	renew("b")
	require.Equal(t, 4, giveUp("a"))
	require.Len(t, renew("a"), 4, "they are kept for the one who waits")
	require.NoError(t, s.Release(ctx, []work.Fence{{Stage: work.StagePush, Partition: work.AllPartitions, Owner: "b"}}))
	require.Len(t, renew("a"), 8)

	renew("c")
	require.Equal(t, 4, giveUp("a"))
	pass(t, s, markFor(ttl)) // c was killed
	require.Len(t, renew("a"), 8, "three renewals later nobody waits for it any more")
	require.LessOrEqual(t, markFor(ttl), 5*time.Second)
	renew("d")
	require.NoError(t, s.Release(ctx, []work.Fence{{Stage: work.StagePush, Partition: work.AllPartitions, Owner: "a"}}))
	require.Len(t, renew("d"), 8, "all of a's at once")
}

// TestAStormOfWorkersLeavesNoPartitionIdle: every second and a half workers join, stop or are killed. No partition that
// nobody holds lies idle for more than four renewals while somebody works, and everything comes to rest.
func TestAStormOfWorkersLeavesNoPartitionIdle(t *testing.T) {
	s := newStore(t)
	const ttl, tick, n = 30 * time.Second, 1500 * time.Millisecond, 6
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		exec(t, s, `TRUNCATE leases`)
		var alive []string
		idle := map[int32]time.Duration{}
		turn := func() {
			for _, w := range rapid.Permutation(alive).Draw(t, "order") {
				leases, err := s.Renew(ctx, work.StagePush, w, n, ttl)
				require.NoError(t, err)
				var give []work.Fence
				for _, l := range leases {
					if l.Wanted {
						give = append(give, l.Fence)
					}
				}
				require.NoError(t, s.Release(ctx, give))
			}
			pass(t, s, tick)
			rows, err := s.pool.Query(ctx, `SELECT partition, owner = '' OR expires <= clock_timestamp() FROM leases`)
			require.NoError(t, err)
			var p int32
			var free bool
			_, err = pgx.ForEachRow(rows, []any{&p, &free}, func() error {
				if idle[p] += tick; !free || len(alive) == 0 {
					idle[p] = 0
				}
				// The mark of one that was killed stands for three renewals, and the next one takes the partition.
				require.LessOrEqual(t, idle[p], 4*tick, "partition %d lies idle", p)
				return nil
			})
			require.NoError(t, err)
		}
		for i := range rapid.IntRange(1, 12).Draw(t, "turns") {
			switch what := rapid.IntRange(0, 3).Draw(t, "what"); {
			case what < 2 && len(alive) < 4:
				alive = append(alive, fmt.Sprintf("w%d", i))
			case what == 2 && len(alive) > 0: // stops cleanly
				require.NoError(t, s.Release(ctx, []work.Fence{{Stage: work.StagePush, Partition: work.AllPartitions, Owner: alive[0]}}))
				alive = alive[1:]
			case what == 3 && len(alive) > 0: // is killed
				alive = alive[1:]
			}
			turn()
		}
		if len(alive) == 0 {
			return
		}
		for range 40 { // beyond the leases of the killed
			turn()
		}
		held := map[string]int{}
		for _, w := range alive {
			held[w] = count(t, s, `SELECT count(*) FROM leases WHERE owner = $1`, w)
			require.InDelta(t, float64(n)/float64(len(alive)), held[w], 1)
		}
	})
}

// TestTheShareOfTheKilledLiesNotIdle: three of four were killed, the fourth stopped, and a fifth has just come. It waited
// for the leases of the killed to end before it took what the fourth had given back.
func TestTheShareOfTheKilledLiesNotIdle(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	const ttl = 30 * time.Second
	renew := func(w string) (n int) {
		ls, err := s.Renew(ctx, work.StagePush, w, 8, ttl)
		require.NoError(t, err)
		return len(ls)
	}
	require.Equal(t, 8, renew("d"))
	exec(t, s, `UPDATE leases SET owner = (ARRAY['a','b','c'])[1 + partition] WHERE partition < 3`)
	require.NoError(t, s.Release(ctx, []work.Fence{{Stage: work.StagePush, Partition: work.AllPartitions, Owner: "d"}}))
	require.Equal(t, 2, renew("e"), "its share")
	pass(t, s, spareFor(ttl))
	require.Equal(t, 5, renew("e"), "two renewals later all that is free")
}

// TestRenewalsPassAFullPool: every connection of the process waits for a row that somebody holds, and its leases are
// renewed all the same.
func TestRenewalsPassAFullPool(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `INSERT INTO products (product_id, shop) VALUES ('p', 's')`)
	require.NoError(t, err)
	var g errgroup.Group
	for range s.pool.Config().MaxConns {
		g.Go(func() error {
			_, err := s.pool.Exec(context.WithoutCancel(ctx), `INSERT INTO products (product_id, shop) VALUES ('p', 's') ON CONFLICT DO NOTHING`)
			return err
		})
	}
	require.Eventually(t, func() bool { return s.pool.Stat().AcquiredConns() == s.pool.Config().MaxConns }, 5*time.Second, time.Millisecond)
	rctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	leases, err := s.Renew(rctx, work.StagePush, "w", 1, time.Minute)
	require.NoError(t, err)
	require.Equal(t, f, fencesOf(leases))
	require.NoError(t, tx.Rollback(ctx))
	require.NoError(t, g.Wait())
}

// TestALeaseThatEndsTooFarAheadIsTaken: the state's clock was set back by an hour after a worker had been killed. One
// that lives has its lease corrected.
func TestALeaseThatEndsTooFarAheadIsTaken(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	const ttl = 50 * time.Millisecond
	_, err := s.Renew(ctx, work.StagePush, "killed", 2, time.Hour)
	require.NoError(t, err)
	exec(t, s, `UPDATE leases SET owner = 'lives' WHERE partition = 1`)
	require.Eventually(t, func() bool {
		_, err := s.Renew(ctx, work.StagePush, "lives", 2, time.Minute)
		require.NoError(t, err)
		got, err := s.Renew(ctx, work.StagePush, "other", 2, ttl)
		require.NoError(t, err)
		for _, l := range got {
			require.Zero(t, l.Partition)
		}
		return len(got) == 1
	}, 10*time.Second, 5*time.Millisecond)
}
