package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// Config says where the state is. The zero value of every field but URL has a default.
type Config struct {
	// URL of the state's own database, as pgx reads it (postgres://... or key=value).
	URL string
	// MaxConns bounds the pooled connections of this process; 0 is 8. The relay's lock holds one more, and renewals of
	// leases have two of their own. More
	// connections let more settlements wait for their commit at once; a guest takes few.
	MaxConns int32
	// ApplicationName is what pg_stat_activity shows; empty is "shelfwire-state".
	ApplicationName string
	// BatchTopic is the full name of the topic to which batch events go; empty is "catalog.batches".
	BatchTopic string
	// Log hears of writes that are tried again; nil is silence.
	Log *slog.Logger
}

// Store is the state. Its methods are safe for concurrent use.
type Store struct {
	pool *pgxpool.Pool
	// leases are connections for renewals alone: eight settlements that wait for a lock, or a disk that is slow, must not
	// cost a worker its leases.
	leases     *pgxpool.Pool
	ahead      leasesAhead
	batchTopic string
	log        *slog.Logger
	// relayTimeout is [relaySilence], or shorter in tests.
	relayTimeout time.Duration
}

// Open prepares the pool. It connects only when the first method needs it, so that an unreachable state is reported by
// the operation that needs it. The schema must have been brought up by [Store.Migrate].
func Open(ctx context.Context, c Config) (*Store, error) {
	return open(ctx, c, func(*pgxpool.Config) {})
}

func open(ctx context.Context, c Config, tune func(*pgxpool.Config)) (*Store, error) {
	pc, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("read the state's URL: %w", err)
	}
	pc.MaxConns = c.MaxConns
	if pc.MaxConns <= 0 {
		pc.MaxConns = 8
	}
	name := c.ApplicationName
	if name == "" {
		name = "shelfwire-state"
	}
	params := pc.ConnConfig.RuntimeParams
	params["application_name"] = name
	params["timezone"] = "UTC"
	// A process that is stopped (SIGSTOP, a long pause of its machine) inside a transaction holds lease rows. After
	// this time the server rolls it back, well before the 30 s of a lease, so that others can take over.
	params["idle_in_transaction_session_timeout"] = "5s"
	// A machine that is gone sends nothing: the server finds out after 10 + 3 * 5 s and ends its session, and with it
	// the relay's lock.
	params["tcp_keepalives_idle"] = "10"
	params["tcp_keepalives_interval"] = "5"
	params["tcp_keepalives_count"] = "3"
	// Tables grow from nothing to millions and back within minutes, and a plan that was cached while they were empty
	// stays until the next ANALYZE: it takes any index, or none, and settling 100 products of a batch of 6,000 took
	// 65 ms instead of 5. So each execution is planned anew (0.1 ms a statement), and what is planned is what every
	// statement here is written for: from a few keys through an index. JIT would be lured by the penalty that Postgres
	// puts on what is switched off.
	params["plan_cache_mode"] = "force_custom_plan"
	for _, off := range []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"} {
		params[off] = "off"
	}
	// A lock that is not had in this time is waited for anew, in a transaction that others can read past.
	params["lock_timeout"] = "10s"
	tune(pc)
	lc := pc.Copy()
	lc.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("open the state: %w", err)
	}
	leases, err := pgxpool.NewWithConfig(ctx, lc)
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("open the state: %w", err)
	}
	topic := c.BatchTopic
	if topic == "" {
		topic = "catalog.batches"
	}
	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Store{pool: pool, leases: leases, batchTopic: topic, log: log, relayTimeout: relaySilence}, nil
}

// Close waits for the connections in use and closes all.
func (s *Store) Close() {
	s.leases.Close()
	s.pool.Close()
}

// Ping reports whether the state answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		return fmt.Errorf("ping the state: %w", err)
	}
	return nil
}

// Incarnation names this state: a new one is made when the schema is first created, and when a restored state is
// recognised. The relay writes it beside its numbers, so that numbers of another state are not taken for its own.
func (s *Store) Incarnation(ctx context.Context) (work.Incarnation, error) {
	var i work.Incarnation
	if err := s.pool.QueryRow(ctx, `SELECT incarnation::text, coalesce(former::text, '') FROM meta`).Scan(&i.ID, &i.Former); err != nil {
		return i, fmt.Errorf("read the state's incarnation: %w", err)
	}
	return i, nil
}

// SourceError says that the state belongs to another source, or to a later history of the same one.
type SourceError struct {
	// Bound is what the state was filled from, Given what it was offered now.
	BoundSystemID, GivenSystemID string
	BoundTimeline, GivenTimeline int32
}

func (e *SourceError) Error() string {
	if e.BoundSystemID == e.GivenSystemID {
		return fmt.Sprintf("the state was filled from timeline %d of source %s, which is now on timeline %d: the source was "+
			"set back (restored?); --accept-source rebuilds what is known from the shops",
			e.BoundTimeline, e.BoundSystemID, e.GivenTimeline)
	}
	return fmt.Sprintf("the state belongs to source %s and not to %s: use another state, or --accept-source to rebuild "+
		"what is known from the shops", e.BoundSystemID, e.GivenSystemID)
}

// Permanent says that trying again is of no use.
func (e *SourceError) Permanent() bool { return true }

// BindSource ties the state to the source with this system id. The first call binds; later ones with the same id pass
// and carry a newer timeline over. Another id, or an older timeline, is a [*SourceError] unless accept: then the state
// is bound anew and everything that was true only of the old source is void: hashes, shadows, snapshots and the
// transaction ids that waiting rows want to see. Shopify ids stay, so that no product is created twice.
func (s *Store) BindSource(ctx context.Context, systemID string, timeline int32, accept bool) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var bound string
		var tl int32
		if err := tx.QueryRow(ctx, `SELECT system_id, timeline FROM meta FOR UPDATE`).Scan(&bound, &tl); err != nil {
			return err
		}
		foreign := bound != "" && (bound != systemID || timeline < tl)
		if foreign && !accept {
			return &SourceError{BoundSystemID: bound, GivenSystemID: systemID, BoundTimeline: tl, GivenTimeline: timeline}
		}
		var b pgx.Batch
		if foreign {
			queueForgetSource(&b)
		}
		if bound != systemID || timeline != tl {
			b.Queue(`UPDATE meta SET system_id = $1, timeline = $2`, systemID, timeline)
		}
		return tx.SendBatch(ctx, &b).Close()
	})
	if err != nil {
		if se, ok := errors.AsType[*SourceError](err); ok {
			return se
		}
		return fmt.Errorf("bind the state to source %s: %w", systemID, err)
	}
	return nil
}

// at turns a time into a parameter: the zero time is NULL.
func at(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// orZero turns NULL back into the zero time, in UTC.
func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
