package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
)

// strike does what a blow says, and leaves somebody who captures.
func (tr *trial) strike(b blow) {
	ctx := tr.t.Context()
	rng := rand.New(rand.NewPCG(b.pick, 0xb10))
	switch b.kind {
	case "kill capture":
		tr.active.kill()
		rest(ctx, b.span)
		tr.active = tr.enter(b.habits)
	case "stop capture":
		tr.active.stop()
		rest(ctx, b.span)
		tr.active = tr.enter(b.habits)
	case "freeze capture, another takes over":
		tr.duel(b, rng)
	case "lose a step":
		m := &mishap{call: []string{"fence", "position", "begin", "produce", "flush", "before commit", "after commit"}[rng.IntN(7)]}
		m.left.Store(1 + rng.Int64N(3))
		tr.unlucky.Store(m)
	case "cut connections":
		tr.active.proxy.drop()
	case "silence":
		tr.active.proxy.cut()
		rest(ctx, b.span)
		tr.active.proxy.mend()
	case "delays":
		tr.active.proxy.slow(time.Duration(1+rng.IntN(15)) * time.Millisecond)
		rest(ctx, 2*b.span)
		tr.active.proxy.slow(0)
	case "end backends":
		tr.server.exec(tr.database, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'shelfwire%'`)
	case "broker errors":
		end := tr.broker.trouble(rng)
		rest(ctx, b.span)
		end()
	case "request a snapshot":
		tr.request(rng)
	case "kill the server":
		tr.server.now().Kill()
		rest(ctx, b.span/2)
		tr.server.start(nil)
		tr.aim()
	case "drop the slot":
		tr.server.exec(tr.database, dropSlot(tr.slot()))
	case "read the slot":
		tr.active.kill()
		tr.free()
		tr.server.exec(tr.database, `SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM pg_replication_slots
			WHERE slot_name = $1 AND wal_status <> 'lost'`, tr.slot()) // an earlier blow may have lost it
		tr.active = tr.enter(b.habits)
	case "lose the slot's WAL":
		tr.loseWAL()
		tr.active = tr.enter(b.habits)
	case "restore a backup":
		tr.restore(b)
	case "fail over":
		tr.failOver(b, rng)
	case "checkpoint":
		tr.server.exec(tr.database, "CHECKPOINT")
	default:
		require.FailNow(tr.t, "no such blow", b.kind)
	}
}

// aim leads the captures to the server where it is now.
func (tr *trial) aim() {
	for _, c := range []*contender{tr.active, tr.second} {
		if c != nil {
			c.proxy.aim(tr.server.addr())
		}
	}
}

// duel freezes who captures. A standby takes over; then the first one wakes up and knows nothing of it.
func (tr *trial) duel(b blow, rng *rand.Rand) {
	ctx := tr.t.Context()
	tr.second = tr.enter(b.habits)
	rest(ctx, b.span/2)
	first, second := tr.active, tr.second
	for _, c := range []*contender{first, second} { // the standby may have been the quicker one, as the first had just begun
		if c.capture.Stats().Active.Load() {
			first, second = c, map[bool]*contender{true: second, false: first}[c == first]
			break
		}
	}
	first.freeze()
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for !second.capture.Stats().Active.Load() {
		tr.alive()
		require.True(tr.t, rest(limited, time.Millisecond), "nobody takes over")
	}
	rest(ctx, b.span)
	first.thaw()
	rest(ctx, b.span/2)
	tr.alive()
	switch rng.IntN(3) {
	case 0:
		first.kill()
	case 1:
		first.stop()
	case 2:
		second.kill()
		second = first
	}
	tr.active, tr.second = second, nil
}

// request asks for a snapshot, as a user would or as the command line does. One in five cannot be had.
func (tr *trial) request(rng *rand.Rand) {
	id := fmt.Sprintf("r%d", len(tr.evidence.asked))
	text := []string{
		`{"id": "%s", "table": "public.items"}`,
		`{"id": "%s", "table": "public.variants", "where": "id %% 3 = 1"}`,
		`{"id": "%s", "products": ["p1", "p2", "p3"]}`,
		`{"id": "%s", "all": true}`,
		`{"id": "%s", "table": "public.refused"}`,
	}[rng.IntN(5)]
	tr.server.exec(tr.database, `SELECT pg_logical_emit_message($1, 'shelfwire.snapshot', $2)`, rng.IntN(2) == 0, fmt.Sprintf(text, id))
	tr.evidence.asked = append(tr.evidence.asked, id)
}

// dropSlot takes the slot away from whoever reads it.
func dropSlot(slot string) string {
	return fmt.Sprintf(`DO $$ BEGIN
		LOOP
			BEGIN
				PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '%s' AND active;
				PERFORM pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '%s';
				RETURN;
			EXCEPTION WHEN object_in_use OR undefined_object THEN
			END;
		END LOOP;
	END $$`, slot, slot)
}

// free waits until nobody has the slot.
func (tr *trial) free() {
	tr.server.exec(tr.database, fmt.Sprintf(`DO $$ BEGIN
		WHILE EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '%s' AND active) LOOP
			PERFORM pg_sleep(0.005);
		END LOOP;
	END $$`, tr.slot()))
}

// loseWAL kills the capture and has the server give up what its slot holds. The witness reads along.
func (tr *trial) loseWAL() {
	tr.active.kill()
	tr.free()
	there := 0
	tr.server.with(tr.database, func(ctx context.Context, conn *pgx.Conn) error {
		for range 2 { // the witness shall not be lost too
			if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
				return err
			}
			if err := tr.evidence.witness.drain(ctx, conn); err != nil {
				return err
			}
		}
		return conn.QueryRow(ctx, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, tr.slot()).Scan(&there)
	})
	if there == 0 { // dropped by an earlier blow, and not made again yet
		return
	}
	tr.server.exec("postgres", `ALTER SYSTEM SET max_slot_wal_keep_size = '96MB'`)
	tr.server.exec("postgres", `SELECT pg_reload_conf()`)
	lost := false
	for range 40 {
		tr.server.with(tr.database, func(ctx context.Context, conn *pgx.Conn) error {
			for _, sql := range []string{`INSERT INTO unrouted VALUES (1)`, `SELECT pg_switch_wal()`, `CHECKPOINT`} {
				if _, err := conn.Exec(ctx, sql); err != nil {
					return err
				}
			}
			if err := tr.evidence.witness.drain(ctx, conn); err != nil {
				return err
			}
			return conn.QueryRow(ctx, `SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = $1`, tr.slot()).Scan(&lost)
		})
		if lost {
			break
		}
	}
	require.True(tr.t, lost, "the slot is not lost")
	tr.server.exec("postgres", `ALTER SYSTEM RESET max_slot_wal_keep_size`)
	tr.server.exec("postgres", `SELECT pg_reload_conf()`)
}

// quiet stops the clerks and waits until everything is captured.
func (tr *trial) quiet() {
	tr.clerks.stop()
	require.NoError(tr.t, tr.clerks.fatal)
	tr.unlucky.Store(nil)
	tr.settle()
}

// remember keeps what the history says now: another server is about to take the place of this one.
func (tr *trial) remember() {
	tr.server.with(tr.database, func(ctx context.Context, conn *pgx.Conn) error {
		deeds, err := tr.evidence.witness.readHistory(ctx, conn)
		tr.evidence.past = append(tr.evidence.past, pastEra{deeds: deeds})
		return err
	})
}

func (tr *trial) work() { tr.clerks.start(func() string { return tr.server.url(tr.database) }) }

// restore copies the server's files, lets everybody go on, and puts the copy in the server's place: its history ends
// where the copy was made.
func (tr *trial) restore(b blow) {
	tr.clerks.stop()
	tr.active.kill()
	require.NoError(tr.t, tr.server.now().Stop())
	backup := tr.server.copy()
	tr.server.start(nil)
	tr.work()
	tr.active = tr.enter(b.habits)
	rest(tr.t.Context(), 300*time.Millisecond+b.span)
	tr.clerks.stop()
	// A source that had written more than that by now would not be known for one that was set back.
	tr.server.exec(tr.database, `INSERT INTO unrouted SELECT generate_series(1, 5000)`)
	tr.quiet()
	tr.remember()
	tr.active.kill()
	require.NoError(tr.t, tr.server.now().Stop())
	tr.evidence.past[len(tr.evidence.past)-1].until = time.Now()
	backup.start(nil)
	tr.server.replace(backup)
	tr.active = tr.enter(b.habits)
	tr.healed(b)
	tr.work()
}

// healed waits until the position is one of the server as it is: what was lost is known by its WAL, and must be looked
// at before others write.
func (tr *trial) healed(b blow) {
	until := tr.evidence.past[len(tr.evidence.past)-1].until
	limited, cancel := context.WithTimeout(tr.t.Context(), 30*time.Second)
	defer cancel()
	for {
		tr.alive()
		pos, ok, err := tr.evidence.topics.ReadPosition(limited, kafkatopics.CapturePartition, "capture/"+tr.slot())
		if err == nil && ok && pos.CommitLSN != 0 && pos.At.After(until) {
			return
		}
		require.True(tr.t, rest(limited, time.Millisecond), "capture does not go on after %s", b.kind)
	}
}

// failOver makes a standby, promotes it, and leaves the primary behind. The standby has the slots, or not, and all that
// the primary has written, or not.
func (tr *trial) failOver(b blow, rng *rand.Rand) {
	tr.quiet()
	// The copy's slots must not ask for rows of the catalog that the primary is free to remove.
	for range 2 {
		tr.server.exec(tr.database, "CHECKPOINT")
		tr.server.with(tr.database, tr.evidence.witness.drain)
		tr.settle()
	}
	tr.active.kill()
	require.NoError(tr.t, tr.server.now().Stop())
	standby, slots, whole := tr.server.copy(), rng.IntN(2) == 0, rng.IntN(2) == 0
	tr.server.start(nil)
	standby.standBy(tr.server, slots)
	tr.t.Cleanup(func() {
		if standby.now() != tr.server.now() { // it has never come to be the primary
			_ = standby.now().Stop()
		}
	})
	tr.active = tr.enter(b.habits)
	ddl := tr.clerks.ddl
	tr.clerks.ddl = false
	tr.work()
	rest(tr.t.Context(), 200*time.Millisecond+b.span)
	tr.clerks.stop()
	tr.clerks.ddl = ddl
	if rng.IntN(2) == 0 {
		tr.quiet()
	}
	end := tr.end()
	if whole {
		standby.exec("postgres", fmt.Sprintf(`DO $$ BEGIN
			WHILE pg_last_wal_replay_lsn() < '%s' LOOP PERFORM pg_sleep(0.005); END LOOP;
		END $$`, end))
	}
	standby.exec("postgres", `SELECT pg_promote()`)
	tr.remember()
	tr.active.kill()
	tr.evidence.past[len(tr.evidence.past)-1].until = time.Now()
	tr.server.now().Kill()
	tr.server.replace(standby)
	if !slots {
		tr.server.exec(tr.database, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, tr.evidence.witness.slot)
	}
	tr.active = tr.enter(b.habits)
	tr.healed(b)
	tr.work()
}
