package state

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// retry calls f until it succeeds, fails for good, or ctx ends. Transactions that Postgres ended for the sake of
// others (deadlock, serialization, shutdown) and lost connections are tried again, after 20 ms at first and every
// second in the end, as are dials that time out while the state is away.
func (s *Store) retry(ctx context.Context, op string, f func() error) error {
	wait := 20 * time.Millisecond
	for {
		err := f()
		if err == nil || ctx.Err() != nil || !transient(err) {
			return err
		}
		s.log.WarnContext(ctx, "state write is tried again", "op", op, "pause", wait, "error", err)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
		wait = min(2*wait, time.Second)
	}
}

// transient reports whether the same statement may succeed a moment later.
func transient(err error) bool {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pe.Code {
		case "40P01", "40001", // deadlock, serialization
			"57P01", "57P02", "57P03", "25P03", // shut down, crashed, starting, idle in transaction
			"53300", "55P03": // too many connections, lock not available
			return true
		}
		return len(pe.Code) == 5 && pe.Code[:2] == "08" // connection exceptions
	}
	// Before the sentinels of contexts: a dial that times out by itself is a context.DeadlineExceeded too.
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var ne net.Error
	return pgconn.SafeToRetry(err) || errors.As(err, &ne) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// apply runs the queued statements as one transaction in one round trip, valid only under the fences.
//
// The statements of a pgx.Batch travel in one pipeline with one Sync at its end, which Postgres runs as one implicit
// transaction: the first error undoes all.
//
// Non-obvious: a connection can break after the commit and before its answer. The write is then tried again with the
// same token; the token's row says whether it was applied, and where the first try is still running in the server,
// inserting the token waits for its end. So appends to the outbox and additions to a parked row happen exactly once.
func (s *Store) apply(ctx context.Context, op string, fences []work.Fence, queue func(b *pgx.Batch)) error {
	return s.applyAs(ctx, op, work.Token{}, fences, queue)
}

// applyAs is apply under a token of the caller's, who may send the same write again after an error that leaves open
// whether it was applied. A zero token is none.
func (s *Store) applyAs(ctx context.Context, op string, token work.Token, fences []work.Fence, queue func(b *pgx.Batch)) error {
	if err := checkFences(fences); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	stages, parts, owners, epochs := fenceColumns(fences)
	return s.applyOnce(ctx, op, token, func(b *pgx.Batch) {
		b.Queue(`SELECT fence($1, $2, $3, $4)`, stages, parts, owners, epochs)
		queue(b)
	})
}

func checkFences(fences []work.Fence) error {
	if len(fences) == 0 {
		return errors.New("no fences")
	}
	for _, f := range fences[1:] {
		if f.Stage != fences[0].Stage {
			return fmt.Errorf("fences of two stages, %s and %s", fences[0].Stage, f.Stage)
		}
	}
	return nil
}

// repeated reports whether a write was applied by an earlier try.
func repeated(err error) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pe.Code == "23505" && pe.ConstraintName == "writes_pkey"
}

// applyOnce is apply without fences.
func (s *Store) applyOnce(ctx context.Context, op string, token work.Token, queue func(b *pgx.Batch)) error {
	if token == (work.Token{}) {
		_, _ = rand.Read(token[:]) // never fails (crypto/rand)
	}
	err := s.retry(ctx, op, func() error {
		var b pgx.Batch
		b.Queue(`INSERT INTO writes (token) VALUES ($1)`, [16]byte(token))
		queue(&b)
		return s.pool.SendBatch(ctx, &b).Close()
	})
	var pe *pgconn.PgError
	switch {
	case err == nil || repeated(err):
		return nil
	case errors.As(err, &pe) && pe.Code == "SW001":
		return &LeaseLostError{Op: op, Leases: pe.Detail}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// transactOnce is applyOnce for a transaction that reads before it writes. What f has found out in the try that was
// applied stands when it returns: a later try ends before f.
func (s *Store) transactOnce(ctx context.Context, op string, f func(tx pgx.Tx) error) error {
	var token work.Token
	_, _ = rand.Read(token[:]) // never fails (crypto/rand)
	err := s.retry(ctx, op, func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO writes (token) VALUES ($1)`, [16]byte(token)); err != nil {
				return err
			}
			return f(tx)
		})
	})
	if repeated(err) {
		return nil
	}
	return err
}
