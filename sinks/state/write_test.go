package state

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// cutConn breaks once, at the first request that holds mark: before it is sent, or after the server has answered it
// and so has done it.
type cutConn struct {
	net.Conn
	mark     []byte
	cuts     *atomic.Int32
	answered bool
	cutting  bool
}

func (c *cutConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, c.mark) && c.cuts.CompareAndSwap(0, 1) {
		if !c.answered {
			_ = c.Close()
			return 0, io.ErrUnexpectedEOF
		}
		c.cutting = true
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.cutting && err == nil {
		_ = c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// TestALostConnectionAppliesAWriteOnce: the connection breaks before the request, or after the commit and before its
// answer. What a settlement adds (outbox rows, counts of a parked row) must be there once in either case.
func TestALostConnectionAppliesAWriteOnce(t *testing.T) {
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	plain := openStore(t, url)
	require.NoError(t, plain.Migrate(t.Context()))
	f := own(t, plain, work.StagePush, "w", 1)
	for _, answered := range []bool{false, true} {
		key := "product-" + strconv.FormatBool(answered)
		var cuts atomic.Int32
		s, err := open(t.Context(), Config{URL: url}, func(c *pgxpool.Config) {
			dial := c.ConnConfig.DialFunc
			c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				return &cutConn{Conn: conn, mark: []byte(key), cuts: &cuts, answered: answered}, err
			}
		})
		require.NoError(t, err)
		require.NoError(t, s.Settle(t.Context(), work.Settlement{
			Fences: f, Outbox: records(key),
			Park: []work.Parked{{ProductID: key, Changes: 3}},
		}))
		s.Close()
		require.Equal(t, int32(1), cuts.Load())
		require.Equal(t, 1, count(t, plain, `SELECT count(*) FROM outbox WHERE key = $1`, []byte(key)), key)
		require.Equal(t, 3, count(t, plain, `SELECT changes FROM parked WHERE product_id = $1`, key), key)
	}
}

// TestAnIntentWhoseAnswerIsLostIsOnRecordOrRefused: as for a settlement, and a lease that was lost stays lost for the
// second try.
func TestAnIntentWhoseAnswerIsLostIsOnRecordOrRefused(t *testing.T) {
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	plain := openStore(t, url)
	require.NoError(t, plain.Migrate(t.Context()))
	f := own(t, plain, work.StagePush, "w", 1)
	for _, answered := range []bool{false, true} {
		for _, lost := range []bool{false, true} {
			key := fmt.Sprintf("intent-%t-%t", answered, lost)
			fences := slices.Clone(f)
			if lost {
				fences[0].Epoch++
			}
			var cuts atomic.Int32
			s, err := open(t.Context(), Config{URL: url}, func(c *pgxpool.Config) {
				dial := c.ConnConfig.DialFunc
				c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := dial(ctx, network, addr)
					return &cutConn{Conn: conn, mark: []byte(key), cuts: &cuts, answered: answered}, err
				}
			})
			require.NoError(t, err)
			err = s.Intend(t.Context(), fences, []work.Intent{{Key: key, Shop: "s", ProductIDs: []string{"p"}}})
			s.Close()
			require.Equal(t, int32(1), cuts.Load())
			if lost {
				require.ErrorIs(t, err, work.ErrLeaseLost, key)
				require.Zero(t, count(t, plain, `SELECT count(*) FROM intents WHERE key = $1`, key), key)
			} else {
				require.NoError(t, err, key)
				require.Equal(t, 1, count(t, plain, `SELECT count(*) FROM intents WHERE key = $1`, key), key)
			}
		}
	}
}

// TestALostAnswerToACommitIsNoRefusal: what a person asked for is done, and was said to be nothing that could be done,
// because the second try met what the first had left.
func TestALostAnswerToACommitIsNoRefusal(t *testing.T) {
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	plain := openStore(t, url)
	ctx := t.Context()
	require.NoError(t, plain.Migrate(ctx))
	f := own(t, plain, work.StagePush, "w", 1)
	failed := work.Item{BatchID: "b", ProductID: "p", Shop: "s", Status: work.ItemFailed}
	require.NoError(t, plain.TakeIn(ctx, work.TakeIn{Fences: f, Batches: []event.Batch{{ID: "b"}, {ID: "ends"}}}))
	require.NoError(t, plain.Settle(ctx, work.Settlement{Fences: f, Items: []work.Item{failed}}))
	_, err := plain.Exclude(ctx, "p", "s", "me")
	require.NoError(t, err)
	for _, e := range []work.Effect{work.EffectOffSale, work.EffectZeroPrice} {
		held, err := plain.Guard(ctx, "s", requests(e, 0, 80), limits)
		require.NoError(t, err)
		require.Len(t, held, 80)
	}
	for name, act := range map[string]func(s *Store) error{
		"retry": func(s *Store) error {
			out, err := s.RetryBatch(ctx, "b", 3, 1)
			require.Equal(t, Retried{Items: 1, Round: 1}, out)
			return err
		},
		"include": func(s *Store) error { return s.Include(ctx, "p", "s", 1) },
		"release": func(s *Store) error { return s.ReleaseHold(ctx, "s", work.EffectOffSale) },
		"reject":  func(s *Store) error { return s.RejectHold(ctx, "s", work.EffectZeroPrice) },
		"cancel":  func(s *Store) error { return s.CancelBatch(ctx, "ends") },
	} {
		var cuts atomic.Int32
		s, err := open(ctx, Config{URL: url}, func(c *pgxpool.Config) {
			dial := c.ConnConfig.DialFunc
			c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				return &cutConn{Conn: conn, mark: []byte("\x0bcommit\x00"), cuts: &cuts, answered: true}, err
			}
		})
		require.NoError(t, err)
		require.NoError(t, act(s), name)
		s.Close()
		require.Equal(t, int32(1), cuts.Load(), name)
	}
}

// TestAWriteWaitsForTheState: a shutdown of the state is waited for, to the end of the caller's patience.
func TestAWriteWaitsForTheState(t *testing.T) {
	s := newStore(t)
	f := own(t, s, work.StagePush, "w", 1)
	exec(t, s, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	require.NoError(t, s.SavePosition(t.Context(), f, map[int32]int64{0: 1}, "id"))

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	gone, err := Open(t.Context(), Config{URL: "postgres://nobody@127.0.0.1:1/none?connect_timeout=1"})
	require.NoError(t, err)
	defer gone.Close()
	require.ErrorContains(t, gone.SavePosition(ctx, f, map[int32]int64{0: 1}, "id"), "save positions: ")
}

// TestAWriteWaitsForAStateThatDoesNotAnswer: a machine that is gone refuses nothing, so that dials time out, which looks
// as if the caller's patience had ended.
func TestAWriteWaitsForAStateThatDoesNotAnswer(t *testing.T) {
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	plain := openStore(t, url)
	require.NoError(t, plain.Migrate(t.Context()))
	f := own(t, plain, work.StagePush, "w", 1)
	var away atomic.Int32
	s, err := open(t.Context(), Config{URL: url}, func(c *pgxpool.Config) {
		c.MinConns = 0
		c.ConnConfig.Fallbacks = nil
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if away.Add(-1) >= 0 {
				return (&net.Dialer{Deadline: time.Unix(1, 0)}).DialContext(ctx, network, addr)
			}
			return dial(ctx, network, addr)
		}
	})
	require.NoError(t, err)
	defer s.Close()
	away.Store(3)
	require.NoError(t, s.SavePosition(t.Context(), f, map[int32]int64{0: 1}, "id"))
	require.Negative(t, away.Load())

	away.Store(math.MaxInt32)
	s.pool.Reset()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.SavePosition(ctx, f, map[int32]int64{0: 1}, "id"), context.Canceled)
}

// TestAWriteThatItsCallerRepeatsIsAppliedOnce: the caller does not know an error that leaves open what became of the
// write, and sends it again under its token, from another process even.
func TestAWriteThatItsCallerRepeatsIsAppliedOnce(t *testing.T) {
	s := newStore(t)
	f := own(t, s, work.StagePush, "w", 1)
	settle := work.Settlement{Token: work.Token{1}, Fences: f, Outbox: records("a"), Park: []work.Parked{{ProductID: "p", Changes: 3}}}
	take := work.TakeIn{Token: work.Token{2}, Fences: f, Outbox: records("b"), Parked: []work.Parked{{ProductID: "q", Changes: 4}}}
	for range 3 {
		require.NoError(t, s.Settle(t.Context(), settle))
		require.NoError(t, s.TakeIn(t.Context(), take))
	}
	require.Equal(t, 2, count(t, s, `SELECT count(*) FROM outbox`))
	require.Equal(t, 7, count(t, s, `SELECT sum(changes) FROM parked`))
	settle.Token = work.Token{}
	require.NoError(t, s.Settle(t.Context(), settle))
	require.NoError(t, s.Settle(t.Context(), settle))
	require.Equal(t, 4, count(t, s, `SELECT count(*) FROM outbox`), "without a token each call is a write of its own")
}
