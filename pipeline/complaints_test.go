package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	embeddedkafka "github.com/shelfwire/shelfwire/deploy/embedded/kafka"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// What users of other tools for change data capture complain about, again and again. Each test is named after one
// complaint and fails where Capture would give cause for it. What a test of another name has proved already stands
// there as a function that is called here.

// The log of an idle or filtered database grows until the disk is full, as nothing moves the slot.
// https://github.com/risingwavelabs/risingwave/issues/16697, https://github.com/redpanda-data/connect/issues/3198,
// https://github.com/airbytehq/airbyte/issues/15040
func TestComplaint01AnIdleDatabaseFillsTheDisk(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.Heartbeat = 50 * time.Millisecond
	c, stop := r.start()
	r.wait(c)
	other, err := pgx.Connect(t.Context(), embeddedtest.NewDatabase(t, embeddedtest.Postgres(t)))
	require.NoError(t, err)
	defer func() { _ = other.Close(context.Background()) }()
	_, err = other.Exec(t.Context(), `CREATE TABLE busy (v text)`)
	require.NoError(t, err)
	for name, write := range map[string]func(){
		"tables that nobody captures": func() { r.exec(`INSERT INTO unrouted SELECT generate_series(1, 50000)`) },
		"another database": func() {
			_, err := other.Exec(t.Context(), `INSERT INTO busy SELECT repeat('x', 100) FROM generate_series(1, 30000)`)
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			write()
			var end string
			require.NoError(t, r.db.QueryRow(t.Context(), `SELECT pg_current_wal_lsn()::text`).Scan(&end))
			require.Eventually(t, func() bool {
				r.exec(`CHECKPOINT`) // which notes what transactions run: without that no slot gives WAL up
				var confirmed, kept bool
				require.NoError(t, r.db.QueryRow(t.Context(), `SELECT confirmed_flush_lsn >= $1::pg_lsn, restart_lsn >= $1::pg_lsn
					FROM pg_replication_slots WHERE slot_name = $2`, end, r.slot()).Scan(&confirmed, &kept))
				return confirmed && kept
			}, time.Minute, 50*time.Millisecond, "the slot still holds what is before %s", end)
		})
	}
	require.NoError(t, stop())
}

// A restart skips rows silently: those with the position of one that was taken, or of a transaction that was running.
// https://github.com/debezium/debezium/pull/7531, https://github.com/debezium/debezium/pull/7760,
// https://github.com/risingwavelabs/risingwave/issues/14060
func TestComplaint02ARestartSkipsRows(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.BatchRows, r.cfg.TxRows = 3, 3
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	// All rows of a COPY have one LSN, and a commit has that of the next transaction's first row.
	running, err := pgx.Connect(t.Context(), r.url)
	require.NoError(t, err)
	defer func() { _ = running.Close(context.Background()) }()
	_, err = running.Exec(t.Context(), `BEGIN; INSERT INTO variants VALUES (100, 'running', 's')`)
	require.NoError(t, err)
	for i := range 3 {
		_, err = r.db.PgConn().CopyFrom(t.Context(), strings.NewReader(copyRows(i*10, 10)), `COPY variants FROM STDIN`)
		require.NoError(t, err)
	}
	for i := range 8 {
		killed := make(chan struct{})
		var n atomic.Int32
		r.faults = func(call string) error {
			if call == "after commit" && n.Add(1) == 2 { // one Kafka transaction more than the life before
				close(killed)
			}
			if n.Load() >= 2 {
				return errors.New("killed")
			}
			return nil
		}
		_, stop := r.start()
		<-killed
		require.NoError(t, stop())
		if i == 3 {
			_, err = running.Exec(t.Context(), `COMMIT`)
			require.NoError(t, err)
		}
	}
	r.faults = nil
	c, stop = r.start()
	r.wait(c)
	require.NoError(t, stop())
	times := map[string]int{}
	for _, rec := range r.records(event.Changes) {
		times[string(rec.Key)]++
	}
	require.Len(t, times, 31)
	for key, n := range times {
		require.Equal(t, 1, n, key)
	}
}

func copyRows(from, n int) string {
	var b strings.Builder
	for i := from; i < from+n; i++ {
		fmt.Fprintf(&b, "%d\tv%d\ts\n", i, i)
	}
	return b.String()
}

// A keepalive, or a position that was left zero, acknowledges what was received and is nowhere yet: it is never sent again.
// https://github.com/ConduitIO/conduit-connector-postgres/issues/313, https://github.com/psycopg/psycopg2/issues/940
func TestComplaint03KeepalivesAcknowledgeTooMuch(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.Heartbeat = 20 * time.Millisecond
	c, stop := r.start()
	r.wait(c)
	var armed, held atomic.Bool
	back := make(chan struct{})
	r.faults = func(call string) error {
		if call == "before commit" && armed.CompareAndSwap(true, false) {
			held.Store(true)
			<-back
			return errors.New("and then it is killed")
		}
		return nil
	}
	armed.Store(true)
	r.exec(`INSERT INTO products VALUES ('a', 'A', 1)`)
	require.Eventually(t, held.Load, time.Minute, time.Millisecond)
	var end string
	require.NoError(t, r.db.QueryRow(t.Context(), `SELECT pg_current_wal_lsn()::text`).Scan(&end))
	for range 20 { // WAL that concerns nobody, and keepalives behind it
		r.exec(`INSERT INTO unrouted SELECT generate_series(1, 1000)`)
		var acknowledged bool
		require.NoError(t, r.db.QueryRow(t.Context(), `SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`,
			end, r.slot()).Scan(&acknowledged))
		require.False(t, acknowledged)
	}
	close(back)
	require.NoError(t, stop())
	r.faults = nil
	c, stop = r.start()
	r.wait(c)
	require.NoError(t, stop())
	require.Equal(t, []string{"products c a"}, brief(r.records(event.Changes)))
}

// A lost slot needs a human and a copy of everything, or is made anew without a word, and the gap stays.
// https://github.com/spiceai/spiceai/issues/12018, https://github.com/debezium/debezium/pull/3970,
// https://github.com/ClickHouse/clickhouse-docs/pull/3197
func TestComplaint04ALostSlotNeedsAHuman(t *testing.T) {
	t.Run("dropped while it runs", healsASlotThatIsLostWhileItRuns)
	t.Run("its WAL is gone", healsASlotWhoseWALIsGone)
}

// A snapshot begins again from its first row after every stop, and the stream stands still meanwhile.
// https://github.com/airbytehq/airbyte/issues/18573, https://github.com/MaterializeInc/materialize/issues/16637
func TestComplaint05ASnapshotBeginsAgainAndHoldsTheStream(t *testing.T) {
	t.Run("goes on after a stop", resumesASnapshot)
	t.Run("the stream goes on beside it", func(t *testing.T) {
		r := newCaptureRig(t)
		r.cfg.SnapshotChunk, r.cfg.SnapshotReaders, r.cfg.SnapshotRate = 5, 1, 50
		r.exec(`INSERT INTO variants SELECT i, 'p' || i, 's' FROM generate_series(1, 5000) i`)
		c, stop := r.start()
		require.Eventually(t, c.Stats().Snapshotting.Load, time.Minute, time.Millisecond)
		r.exec(`INSERT INTO products VALUES ('a', 'A', 1)`)
		var lsn string
		require.NoError(t, r.db.QueryRow(t.Context(), `SELECT pg_current_wal_lsn()::text`).Scan(&lsn))
		end, err := change.ParseLSN(lsn)
		require.NoError(t, err)
		r.exec(`INSERT INTO unrouted VALUES (1)`)
		require.Eventually(t, func() bool { return change.LSN(c.Stats().Confirmed.Load()) >= end }, time.Minute, time.Millisecond, "WAL is held back")
		require.True(t, c.Stats().Snapshotting.Load())
		require.Contains(t, brief(r.records(event.Changes)), "products c a")
		require.NoError(t, stop())
	})
}

// A table that is added, or that shall be read again, costs a snapshot of everything, and the stream pauses for it.
// https://github.com/Altinity/clickhouse-sink-connector/issues/678, https://github.com/risingwavelabs/risingwave/issues/26481
func TestComplaint06OneTableCannotBeReadAlone(t *testing.T) {
	t.Run("added", waitsForWritersBeforeItReadsANewTable)
	t.Run("asked for", takesSnapshotsThatAreAskedFor)
}

// A large value that was not changed arrives as NULL.
// https://github.com/airbytehq/airbyte/issues/30518, https://github.com/redpanda-data/connect/issues/3106
func TestComplaint07UnchangedTOASTIsNULL(t *testing.T) {
	r := newCaptureRig(t)
	r.exec(`ALTER TABLE products ALTER title SET STORAGE external; ALTER TABLE variants ALTER sku SET STORAGE external;
		ALTER TABLE variants REPLICA IDENTITY DEFAULT, ADD n int`)
	r.cfg.Routes = []route.Route{{Table: "public.products", Key: "id"}, {Table: "public.variants", Key: "id"}}
	c, stop := r.start()
	r.wait(c)
	wide := strings.Repeat("wide ", 2000)
	r.exec(`INSERT INTO products VALUES ('a', $1, 1)`, wide)
	r.exec(`UPDATE products SET price = 2`)
	r.exec(`INSERT INTO variants VALUES (1, 'a', $1, 1)`, wide)
	r.exec(`UPDATE variants SET n = 2`)
	r.wait(c)
	require.NoError(t, stop())
	var updates int
	for _, rec := range r.records(event.Changes) {
		if header(&rec, event.HeaderOp) != "u" {
			continue
		}
		updates++
		var env struct{ After map[string]any }
		require.NoError(t, json.Unmarshal(rec.Value, &env))
		if header(&rec, event.HeaderTable) == "public.products" {
			require.Equal(t, wide, env.After["title"], "from the old row")
		} else {
			require.Equal(t, change.Unavailable, env.After["sku"], "no old row was sent: it is said that the value is not known")
		}
	}
	require.Equal(t, 2, updates)
}

// A large transaction takes as much memory as it has rows.
// https://github.com/airbytehq/airbyte/issues/20873, https://github.com/sequinstream/sequin/issues/881
func TestComplaint08ALargeTransactionTakesTheMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 100 MB")
	}
	r := newCaptureRig(t)
	p, err := embeddedkafka.StartProcess(t.Context(), embeddedkafka.Config{Dir: filepath.Join(t.TempDir(), "kafka")}) // its memory is not ours
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Stop() })
	r.kc, err = kafka.New(kafka.Config{Brokers: []string{p.Addr()}, Partitions: 4})
	require.NoError(t, err)
	t.Cleanup(r.kc.Close)
	require.NoError(t, r.kc.EnsureTopics(t.Context()))
	c, stop := r.start()
	r.wait(c)
	peak := func(rows int) (most uint64) {
		runtime.GC()
		r.exec(`INSERT INTO variants SELECT i, 'p' || i % 100, repeat('s', 200) FROM generate_series(1, $1) i`, rows)
		before := c.Stats().Rows.Load()
		look := time.NewTicker(10 * time.Millisecond)
		defer look.Stop()
		for c.Stats().Records.Load() < before || c.Stats().Rows.Load() < int64(rows) {
			<-look.C
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
		}
		r.exec(`TRUNCATE unrouted`)
		return most
	}
	few := peak(20_000)
	r.wait(c)
	r.exec(`DELETE FROM variants`)
	r.wait(c)
	many := peak(20_000 * 10)
	r.wait(c)
	require.NoError(t, stop())
	t.Logf("at most %d MiB of heap for 20,000 rows, %d MiB for 200,000", few>>20, many>>20)
	require.Less(t, many, few+64<<20, "200,000 rows are 100 MB of records")
	require.Positive(t, r.streamed[0].Load(), "it came before its commit")
}

// One event that cannot be handled stops everything, and so does a restart of the database.
// https://github.com/sequinstream/sequin/issues/2141, https://github.com/sequinstream/sequin/issues/2103,
// https://github.com/debezium/debezium/pull/2864
func TestComplaint09OneBadEventStopsEverything(t *testing.T) {
	t.Run("what nobody can take", goesOnPastWhatNobodyCanTake)
	t.Run("truncate", truncateIsNotForgotten)
	t.Run("the database restarts", func(t *testing.T) {
		dir := embeddedtest.Dir(t)
		s := ownServer(t, dir, nil)
		r := newCaptureRigOn(t, s.URL("postgres"))
		r.slotName = "restarts"
		c, stop := r.start()
		r.wait(c)
		port := s.Port()
		for i := range 2 {
			s.Kill()
			s = ownServerAt(t, dir, port, nil)
			r.connect(s.URL("postgres"))
			r.exec(`INSERT INTO products VALUES ($1, 'A', 1)`, fmt.Sprint("p", i))
			r.wait(c)
		}
		require.NoError(t, stop())
		require.Equal(t, []string{"products c p0", "products c p1"}, brief(r.records(event.Changes)))
		require.Empty(t, r.healings())
	})
}

// Rows stand twice in the topic after a crash, or where the snapshot meets the stream; or the rows between are missing.
// https://github.com/MaterializeInc/materialize/issues/13749, https://github.com/yugabyte/yugabyte-db/issues/19578,
// https://github.com/apache/seatunnel/pull/11556
func TestComplaint10RowsAreDoubledBetweenSnapshotAndStream(t *testing.T) {
	losesAndDoublesNothing(t, 0)
}

// Values at the ends of their type's range become NULL, empty, or others.
// https://github.com/debezium/debezium/pull/7927, https://github.com/risingwavelabs/risingwave/issues/16895,
// https://github.com/Altinity/clickhouse-sink-connector/pull/1418
func TestComplaint11ExtremesBecomeOtherValues(t *testing.T) {
	r := newCaptureRig(t)
	r.exec(`CREATE TABLE extremes (id text PRIMARY KEY, at timestamptz, day date, stamp timestamp, n numeric, f float8);
		ALTER TABLE extremes REPLICA IDENTITY FULL`)
	r.cfg.Routes = []route.Route{{Table: "public.extremes", Key: "id"}}
	rows := func(prefix string) {
		r.exec(fmt.Sprintf(`INSERT INTO extremes VALUES ('%[1]s1', 'infinity', '-infinity', '-infinity', 'NaN', 'NaN'),
			('%[1]s2', '4714-11-24 00:00:00+00 BC', '4714-11-24 BC', '0001-01-01 00:00:00 BC', 'Infinity', '-Infinity'),
			('%[1]s3', '294276-12-31 23:59:59.999999+00', '5874897-12-31', '294276-12-31 23:59:59.999999', -1e-1000, 1.7976931348623157e308)`, prefix))
	}
	rows("s") // by the snapshot
	c, stop := r.start()
	r.wait(c)
	rows("t") // by the stream
	r.wait(c)
	require.NoError(t, stop())
	want := map[string]map[string]any{
		"1": {"at": "infinity", "day": "-infinity", "stamp": "-infinity", "n": "NAN", "f": "NaN"},
		"2": {"at": "-4713-11-24T00:00:00.000000Z", "day": "-4713-11-24Z", "stamp": "0000-01-01T00:00:00Z", "n": "POSITIVE_INFINITY", "f": "-Infinity"},
		"3": {
			"at": "+294276-12-31T23:59:59.999999Z", "day": "+5874897-12-31Z", "stamp": "+294276-12-31T23:59:59.999999Z",
			"n": "-0." + strings.Repeat("0", 999) + "1", "f": 1.7976931348623157e308,
		},
	}
	got := 0
	for _, rec := range r.records(event.Changes) {
		var env struct{ After map[string]any }
		require.NoError(t, json.Unmarshal(rec.Value, &env))
		id := env.After["id"].(string)
		delete(env.After, "id")
		require.Equal(t, want[id[1:]], env.After, id)
		got++
	}
	require.Equal(t, 6, got)
}

// After a crash the slot is still active for a process that is gone, and the successor gives up.
// https://github.com/aiven/devportal/pull/1426, https://github.com/estuary/connectors/pull/1705
func TestComplaint12TheSlotIsActiveForSomebodyElse(t *testing.T) {
	fencesAPredecessorThatWakesUp(t)
}

// After a failover the slot is not there, and what was committed since is lost without a word.
// https://github.com/xtdb/xtdb/issues/5828, https://github.com/debezium/debezium/pull/6017
func TestComplaint13TheSlotIsGoneAfterAFailover(t *testing.T) {
	t.Run("without the slot", healsAFailoverThatLostWhatWasCaptured)
	t.Run("with the slot", goesOnAfterAFailoverWithTheSlot)
	t.Run("with a commit that hangs", goesOnAfterAFailoverWithACommitThatHangs)
	t.Run("without WAL that concerned nobody", goesOnAfterAFailoverThatLostNothingCaptured)
}

// A publication that is younger than the slot, or that is widened later, stops the stream for ever or hides rows.
// https://github.com/debezium/debezium/pull/1195, https://github.com/redpanda-data/connect/pull/4726,
// https://github.com/yugabyte/yb-voyager/pull/1299
func TestComplaint14ThePublicationComesTooLate(t *testing.T) {
	t.Run("younger than the slot", healsASlotThatIsOlderThanItsPublication)
	t.Run("narrowed for a while", func(t *testing.T) {
		r := newCaptureRig(t)
		c, stop := r.start()
		r.wait(c)
		require.NoError(t, stop())
		r.exec(`ALTER PUBLICATION shelfwire DROP TABLE variants; INSERT INTO variants VALUES (1, 'hidden', 's')`)
		r.exec(`INSERT INTO products VALUES ('seen', 'S', 1)`)
		c, stop = r.start()
		r.wait(c)
		require.NoError(t, stop())
		keys := brief(r.records(event.Changes))
		require.Contains(t, keys, "products c seen")
		require.Contains(t, keys, "variants r hidden", "no stream brings it: the table is read again")
	})
}

// A change of the schema breaks the stream, or gives rows the columns of another time.
// https://github.com/debezium/debezium/pull/7851, https://github.com/bruin-data/ingestr/pull/1172,
// https://github.com/apache/seatunnel/pull/11922
func TestComplaint15TheSchemaChangesMidStream(t *testing.T) {
	t.Run("columns", followsTheSchema)
	t.Run("the key, during a snapshot", beginsATableAgainWhenItsKeyChanges)
}
