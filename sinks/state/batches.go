package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// ErrNoBatch says that no batch has this id.
var ErrNoBatch = errors.New("no such batch")

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// summaries reads batches with their counts in one statement. The counts read the index on (batch, status) alone; the
// error summary reads only the failed items.
func summaries(ctx context.Context, q querier, where string, args ...any) ([]Batch, error) {
	rows, err := q.Query(ctx, `SELECT b.id, b.kind, b.name, b.admin, b.xid, b.commit_lsn::text, b.commit_time, b.rows,
			b.status, b.reason, b.round, b.announced, b.cancelling, b.created_at, b.started_at, b.ended_at,
			c.total, c.succeeded, c.failed, c.skipped, c.cancelled, e.errors
		FROM batches b CROSS JOIN LATERAL (SELECT count(*) AS total,
				count(*) FILTER (WHERE i.status = 'SUCCESS') AS succeeded, count(*) FILTER (WHERE i.status = 'FAILED') AS failed,
				count(*) FILTER (WHERE i.status = 'SKIPPED') AS skipped,
				count(*) FILTER (WHERE i.status = 'CANCELLED') AS cancelled
			FROM batch_items i WHERE i.batch_id = b.id) c
		CROSS JOIN LATERAL (SELECT json_agg(f ORDER BY f."Count" DESC, f."Category") AS errors FROM (
			SELECT i.category AS "Category", count(*) AS "Count", (array_agg(i.product_id ORDER BY i.product_id))[1] AS "ProductID",
				(array_agg(i.shop ORDER BY i.product_id))[1] AS "Shop", (array_agg(i.message ORDER BY i.product_id))[1] AS "Message"
			FROM batch_items i WHERE i.batch_id = b.id AND i.status = 'FAILED' GROUP BY i.category) f) e `+where, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanBatch)
}

func scanBatch(row pgx.CollectableRow) (Batch, error) {
	var b Batch
	var x int64
	var lsn, status string
	var commit, started, ended *time.Time
	var errs []byte
	err := row.Scan(&b.ID, &b.Kind, &b.Name, &b.Admin, &x, &lsn, &commit, &b.Rows, &status, &b.Reason, &b.Round, &b.Announced,
		&b.Cancelling, &b.CreatedAt, &started, &ended, &b.Total, &b.Succeeded, &b.Failed, &b.Skipped, &b.Cancelled, &errs)
	if err != nil {
		return b, err
	}
	b.XID, b.Status, b.CommitTime = xid(x), BatchStatus(status), orZero(commit)
	b.CreatedAt, b.StartedAt, b.EndedAt = b.CreatedAt.UTC(), orZero(started), orZero(ended)
	b.Processing = b.Total - b.Succeeded - b.Failed - b.Skipped - b.Cancelled
	if b.CommitLSN, err = change.ParseLSN(lsn); err != nil {
		return b, fmt.Errorf("batch %s: %w", b.ID, err)
	}
	if errs != nil {
		if err := json.Unmarshal(errs, &b.Errors); err != nil {
			return b, fmt.Errorf("error summary of batch %s: %w", b.ID, err)
		}
	}
	return b, nil
}

// BatchFilter narrows a list of batches. The zero value is the newest 50.
type BatchFilter struct {
	Statuses []BatchStatus
	Kind     string
	Admin    string
	// Name is found anywhere in the batch's name, in any case.
	Name string
	// XID finds the batch of one transaction, as pg_current_xact_id() named it.
	XID change.XID
	// Since and Until bound the time at which the batch was first seen; zero is open.
	Since, Until time.Time
	// Before continues a list: the last batch of the page before. Nil begins.
	Before *Batch
	// Limit is 50 when 0.
	Limit int
}

// Batches lists batches, the newest first.
func (s *Store) Batches(ctx context.Context, f BatchFilter) ([]Batch, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	var before *time.Time
	var beforeID string
	if f.Before != nil {
		before, beforeID = &f.Before.CreatedAt, f.Before.ID
	}
	statuses := make([]string, len(f.Statuses))
	for i, v := range f.Statuses {
		statuses[i] = string(v)
	}
	// The page is cut before anything is counted.
	out, err := summaries(ctx, s.pool, `WHERE b.id IN (SELECT id FROM batches
			WHERE (cardinality($1::text[]) = 0 OR status = ANY($1)) AND ($2 = '' OR kind = $2) AND ($3 = '' OR admin = $3)
			AND ($4 = '' OR strpos(lower(name), lower($4)) > 0) AND ($5::bigint = 0 OR xid = $5)
			AND ($6::timestamptz IS NULL OR created_at >= $6) AND ($7::timestamptz IS NULL OR created_at < $7)
			AND ($8::timestamptz IS NULL OR (created_at, id) < ($8, $9)) ORDER BY created_at DESC, id DESC LIMIT $10)
		ORDER BY b.created_at DESC, b.id DESC`,
		statuses, f.Kind, f.Admin, f.Name, int64(f.XID), at(f.Since), at(f.Until), before, beforeID, limit)
	if err != nil {
		return nil, fmt.Errorf("list batches: %w", err)
	}
	return out, nil
}

// Batch returns one batch, or [ErrNoBatch].
func (s *Store) Batch(ctx context.Context, id string) (Batch, error) {
	out, err := summaries(ctx, s.pool, `WHERE b.id = $1`, id)
	if err != nil {
		return Batch{}, fmt.Errorf("read batch %s: %w", id, err)
	}
	if len(out) == 0 {
		return Batch{}, fmt.Errorf("batch %s: %w", id, ErrNoBatch)
	}
	return out[0], nil
}

// ItemFilter narrows the items of a batch. The zero value is the first 100.
type ItemFilter struct {
	Statuses []work.ItemStatus
	Category event.Category
	Shop     string
	// After continues a list: the last item of the page before. Nil begins.
	After *work.Item
	// Limit is 100 when 0.
	Limit int
}

// Items lists the items of a batch in the order of product and shop.
func (s *Store) Items(ctx context.Context, batch string, f ItemFilter) ([]work.Item, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 100
	}
	var after work.Item
	if f.After != nil {
		after = *f.After
	}
	statuses := make([]string, len(f.Statuses))
	for i, v := range f.Statuses {
		statuses[i] = string(v)
	}
	rows, err := s.pool.Query(ctx, itemSelect+` WHERE batch_id = $1 AND (cardinality($2::text[]) = 0 OR status = ANY($2))
			AND ($3 = '' OR category = $3) AND ($4 = '' OR shop = $4)
			AND ($5 OR (product_id, shop) > ($6, $7)) ORDER BY product_id, shop LIMIT $8`,
		batch, statuses, string(f.Category), f.Shop, f.After == nil, after.ProductID, after.Shop, limit)
	if err != nil {
		return nil, fmt.Errorf("list items of batch %s: %w", batch, err)
	}
	out, err := pgx.CollectRows(rows, scanItem)
	if err != nil {
		return nil, fmt.Errorf("list items of batch %s: %w", batch, err)
	}
	return out, nil
}
