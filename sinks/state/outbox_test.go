package state

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// TestARowThatCommitsLateIsNotPassedOver: a writer draws a lower id and commits after a higher id was sent. A relay
// that remembered the highest id would never send it.
func TestARowThatCommitsLateIsNotPassedOver(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	lock, err := s.LockRelay(ctx)
	require.NoError(t, err)
	defer func() { require.NoError(t, lock.Close(context.WithoutCancel(ctx))) }()

	slow, err := s.pool.Begin(ctx)
	require.NoError(t, err)
	_, err = slow.Exec(ctx, `INSERT INTO outbox (topic, partition, key) VALUES ('t', -1, 'slow')`)
	require.NoError(t, err)
	f := own(t, s, work.StagePush, "w", 1)
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Outbox: records("quick")}))
	rows, err := s.TakeOutbox(ctx, lock, 10)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Equal(t, "quick", string(rows[0].Key))
	require.NoError(t, slow.Commit(ctx))
	require.NoError(t, s.DeleteOutbox(ctx, lock, rows[0].Number))
	rows, err = s.TakeOutbox(ctx, lock, 10)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Equal(t, "slow", string(rows[0].Key))
	require.Equal(t, int64(2), rows[0].Number)
}

// TestTheRelayIsAlone: a second one is refused until the first has gone, whether it left or was cut off.
func TestTheRelayIsAlone(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	lock, err := s.LockRelay(ctx)
	require.NoError(t, err)
	_, err = s.LockRelay(ctx)
	require.ErrorIs(t, err, work.ErrRelayBusy)

	exec(t, s, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1::oid`, lockRelay)
	next, err := s.LockRelay(ctx)
	for ; err != nil && ctx.Err() == nil; next, err = s.LockRelay(ctx) { // the server ends the session in its own time
		require.ErrorIs(t, err, work.ErrRelayBusy)
	}
	_, err = s.TakeOutbox(ctx, lock, 1)
	require.Error(t, err, "a lock without its session is worth nothing")
	require.Error(t, s.DeleteOutbox(ctx, lock, 1))
	require.NoError(t, next.Close(ctx))
}

// TestRecordsKeepTheirBytes: nil is a tombstone, empty is empty, headers keep their order.
func TestRecordsKeepTheirBytes(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	want := []event.Record{
		{Topic: "a", Partition: 3, Key: []byte{0, 0xff}, Headers: []event.Header{{Key: "z", Value: []byte{0}}, {Key: "a", Value: nil}}},
		{Topic: "b", Partition: -1, Key: []byte("k"), Value: []byte{}},
		{Topic: "c", Partition: -1, Value: []byte("v"), Headers: []event.Header{{Key: "a\x00b", Value: []byte("of a foreign writer")}}},
	}
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Outbox: want}))
	lock, err := s.LockRelay(ctx)
	require.NoError(t, err)
	defer func() { require.NoError(t, lock.Close(context.WithoutCancel(ctx))) }()
	rows, err := s.TakeOutbox(ctx, lock, 10)
	require.NoError(t, err)
	for i, r := range rows {
		require.Equal(t, work.Numbered{Number: int64(i + 1), Record: want[i]}, r)
	}
	b, err := s.Outbox(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(3), b.Rows)
	require.EqualValues(t, 4, b.Bytes, "keys and values")
	require.Positive(t, b.Oldest)
}

// TestTheRelaySendsEachRowOnce: many writers, and a relay that crashes between sending and deleting, again and again.
// Kafka's part is played by a slice and the number that stands in it.
func TestTheRelaySendsEachRowOnce(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	const writers, settlements = 6, 40
	f := own(t, s, work.StagePush, "w", writers)
	done := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := range settlements {
				k := fmt.Sprintf("%d/%04d", w, i)
				err := s.Settle(context.WithoutCancel(ctx), work.Settlement{Fences: f[w : w+1], Outbox: records(k+"a", k+"b")})
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	var sent []string
	var number int64 // in Kafka, written with the records
	finished := 0
	for crash := 0; finished < writers || len(sent) < 2*writers*settlements; crash++ {
		select {
		case err := <-done:
			require.NoError(t, err)
			finished++
		default:
		}
		lock, err := s.LockRelay(ctx)
		require.NoError(t, err)
		require.NoError(t, s.DeleteOutbox(ctx, lock, number)) // what a relay does first
		for range crash%3 + 1 {
			rows, err := s.TakeOutbox(ctx, lock, 7)
			require.NoError(t, err)
			if len(rows) == 0 {
				break
			}
			if crash%5 == 0 {
				break // crashed before it sent: the rows come again with their numbers
			}
			for i, r := range rows {
				require.Equal(t, number+int64(i)+1, r.Number, "numbers have no gap")
				sent = append(sent, string(r.Key))
			}
			number = rows[len(rows)-1].Number
			if crash%2 == 0 {
				break // crashed before it deleted
			}
			require.NoError(t, s.DeleteOutbox(ctx, lock, number))
		}
		require.NoError(t, lock.Close(ctx))
	}
	byWriter := map[string][]string{}
	for _, k := range sent {
		w, _, _ := strings.Cut(k, "/")
		byWriter[w] = append(byWriter[w], k)
	}
	for w := range writers {
		keys := byWriter[strconv.Itoa(w)]
		require.Len(t, keys, 2*settlements)
		require.True(t, slices.IsSorted(keys), "each writer's rows are sent in its order")
		require.Len(t, slices.Compact(keys), 2*settlements)
	}
}

// TestLargeRowsAreTakenFewAtATime: a thousand rows of documents would be all in memory at once, and again for each
// transaction that they are cut into.
func TestLargeRowsAreTakenFewAtATime(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	exec(t, s, `INSERT INTO outbox (topic, partition, key, value)
		SELECT 't', -1, 'k', convert_to(repeat('x', n * 1024 * 1024), 'UTF8') FROM unnest('{0,20,0,7,8,7,0}'::int[]) WITH ORDINALITY u(n, i) ORDER BY i`)
	lock, err := s.LockRelay(ctx)
	require.NoError(t, err)
	defer func() { require.NoError(t, lock.Close(context.WithoutCancel(ctx))) }()
	for _, want := range [][]int{{0}, {20}, {0, 7, 8}, {7, 0}, nil} {
		rows, err := s.TakeOutbox(ctx, lock, 10)
		require.NoError(t, err)
		var got []int
		for _, r := range rows {
			got = append(got, len(r.Value)>>20)
		}
		require.Equal(t, want, got)
		if len(rows) > 0 {
			require.NoError(t, s.DeleteOutbox(ctx, lock, rows[len(rows)-1].Number))
		}
	}
}

// TestNumbersGoOnAboveKafkas: the state was restored from a backup, and Kafka has seen higher numbers.
func TestNumbersGoOnAboveKafkas(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Outbox: records("a", "b")}))
	lock, err := s.LockRelay(ctx)
	require.NoError(t, err)
	defer func() { require.NoError(t, lock.Close(context.WithoutCancel(ctx))) }()
	require.NoError(t, s.DeleteOutbox(ctx, lock, 100))
	rows, err := s.TakeOutbox(ctx, lock, 1)
	require.NoError(t, err)
	require.Equal(t, int64(101), rows[0].Number, "nothing unnumbered is deleted")
	require.NoError(t, s.DeleteOutbox(ctx, lock, 50))
	again, err := s.TakeOutbox(ctx, lock, 10)
	require.NoError(t, err)
	require.Equal(t, rows, again, "what was taken comes alone until it is deleted")
}

// stoppable is a connection of a process that can be stopped: nothing is read any more then.
type stoppable struct {
	net.Conn
	stopped <-chan struct{}
}

func (c *stoppable) Read(b []byte) (int, error) {
	select {
	case <-c.stopped:
		select {} // until the test's process ends
	default:
		return c.Conn.Read(b)
	}
}

// TestAStoppedRelayLosesItsLock: a process under SIGSTOP answers nothing and ends nothing, while its kernel goes on
// acknowledging packets. It may have been stopped between two calls, or with an answer half read.
func TestAStoppedRelayLosesItsLock(t *testing.T) {
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	s := openStore(t, url)
	require.NoError(t, s.Migrate(t.Context()))
	exec(t, s, `INSERT INTO outbox (topic, partition, value) SELECT 't', 0, convert_to(repeat('x', 1000000), 'UTF8') FROM generate_series(1, 40)`)
	for name, reading := range map[string]bool{"between two calls": false, "with an answer half read": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			stop := make(chan struct{})
			stopped, err := open(ctx, Config{URL: url}, func(c *pgxpool.Config) {
				dial := c.ConnConfig.DialFunc
				c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := dial(ctx, network, addr)
					return &stoppable{conn, stop}, err
				}
			})
			require.NoError(t, err)
			stopped.relayTimeout = time.Second
			lock, err := stopped.LockRelay(ctx)
			require.NoError(t, err)
			close(stop)
			if reading {
				go func() { _, _ = stopped.TakeOutbox(context.WithoutCancel(ctx), lock, 40) }()
			}
			_, err = s.LockRelay(ctx)
			require.ErrorIs(t, err, work.ErrRelayBusy)
			var next *RelayLock
			require.Eventually(t, func() bool {
				next, err = s.LockRelay(ctx)
				return err == nil
			}, 15*time.Second, 50*time.Millisecond)
			runtime.KeepAlive(lock) // a connection that nobody refers to is closed
			require.NoError(t, next.Close(ctx))
		})
	}
}
