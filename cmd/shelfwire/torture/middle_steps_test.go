package torture

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
	source "github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// do calls f between two steps. What goes wrong at the second one goes wrong after the deed: its answer is lost.
func do(m *mortal, call string, f func() error) error {
	_, err := ask(m, call, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// ask is do for what answers.
func ask[T any](m *mortal, call string, f func() (T, error)) (T, error) {
	var none T
	if err := m.step("before " + call); err != nil {
		return none, err
	}
	v, err := f()
	if lost := m.step("after " + call); lost != nil {
		return none, lost
	}
	return v, err
}

// stepStore is the state with a step before and after each thing that a stage asks of it.
type stepStore struct {
	*state.Store
	m *mortal
}

func (s stepStore) Renew(ctx context.Context, stage work.Stage, owner string, n int32, ttl time.Duration) ([]work.Lease, error) {
	return ask(s.m, "renew", func() ([]work.Lease, error) { return s.Store.Renew(ctx, stage, owner, n, ttl) })
}

func (s stepStore) Release(ctx context.Context, fences []work.Fence) error {
	return do(s.m, "release", func() error { return s.Store.Release(ctx, fences) })
}

func (s stepStore) Load(ctx context.Context, products []string) (work.Loaded, error) {
	return ask(s.m, "load", func() (work.Loaded, error) { return s.Store.Load(ctx, products) })
}

func (s stepStore) Pull(ctx context.Context, q work.Pull) (work.Pulled, error) {
	return ask(s.m, "pull", func() (work.Pulled, error) { return s.Store.Pull(ctx, q) })
}

func (s stepStore) Guard(ctx context.Context, shop string, reqs []work.GuardRequest, l work.GuardLimits) (map[work.GuardRequest]bool, error) {
	return ask(s.m, "guard", func() (map[work.GuardRequest]bool, error) { return s.Store.Guard(ctx, shop, reqs, l) })
}

func (s stepStore) TakeIn(ctx context.Context, t work.TakeIn) error {
	return do(s.m, "take in", func() error { return s.Store.TakeIn(ctx, t) })
}

func (s stepStore) Intend(ctx context.Context, fences []work.Fence, intents []work.Intent) error {
	return do(s.m, "intend", func() error { return s.Store.Intend(ctx, fences, intents) })
}

func (s stepStore) Settle(ctx context.Context, t work.Settlement) error {
	return do(s.m, "settle", func() error { return s.Store.Settle(ctx, t) })
}

func (s stepStore) TellLate(ctx context.Context, parked []work.Parked, intents []work.Intent) error {
	return do(s.m, "park", func() error { return s.Store.TellLate(ctx, parked, intents) })
}

func (s stepStore) ClaimProbe(ctx context.Context, shop string, next time.Time) (bool, error) {
	return ask(s.m, "claim probe", func() (bool, error) { return s.Store.ClaimProbe(ctx, shop, next) })
}

func (s stepStore) SetShopDead(ctx context.Context, shop, reason string, dead bool, next time.Time) error {
	return do(s.m, "set dead", func() error { return s.Store.SetShopDead(ctx, shop, reason, dead, next) })
}

func (s stepStore) Announce(ctx context.Context, fences []work.Fence, batches []event.Batch, positions map[int32]int64) error {
	return do(s.m, "announce", func() error { return s.Store.Announce(ctx, fences, batches, positions) })
}

func (s stepStore) Complete(ctx context.Context) ([]event.Batch, error) {
	return ask(s.m, "complete", func() ([]event.Batch, error) { return s.Store.Complete(ctx) })
}

func (s stepStore) LockRelay(ctx context.Context) (*state.RelayLock, error) {
	return ask(s.m, "lock", func() (*state.RelayLock, error) { return s.Store.LockRelay(ctx) })
}

func (s stepStore) TakeOutbox(ctx context.Context, l *state.RelayLock, limit int) ([]work.Numbered, error) {
	return ask(s.m, "take outbox", func() ([]work.Numbered, error) { return s.Store.TakeOutbox(ctx, l, limit) })
}

func (s stepStore) DeleteOutbox(ctx context.Context, l *state.RelayLock, upTo int64) error {
	return do(s.m, "delete outbox", func() error { return s.Store.DeleteOutbox(ctx, l, upTo) })
}

func (s stepStore) SavePosition(ctx context.Context, fences []work.Fence, positions map[int32]int64, of string) error {
	return do(s.m, "save position", func() error { return s.Store.SavePosition(ctx, fences, positions, of) })
}

// stepReader is a topic. It can fail, but never lose what it has read.
type stepReader struct {
	*kafkatopics.Reader
	m *mortal
}

func (r stepReader) Poll(ctx context.Context, n int) ([]event.Record, error) {
	if err := r.m.step("before poll"); err != nil {
		return nil, err
	}
	return r.Reader.Poll(ctx, n)
}

// stepProducer is the relay's.
type stepProducer struct {
	*kafkatopics.Producer
	m *mortal
}

func (p stepProducer) Begin() error { return do(p.m, "begin", p.Producer.Begin) }

func (p stepProducer) Produce(records ...event.Record) error {
	return do(p.m, "produce", func() error { return p.Producer.Produce(records...) })
}

func (p stepProducer) Commit(ctx context.Context) error {
	return do(p.m, "commit", func() error { return p.Producer.Commit(ctx) })
}

// stepTables is ClickHouse.
type stepTables struct {
	*clickhouse.DB
	m *mortal
}

func (d stepTables) Begin(ctx context.Context, topic string, id [16]byte) (map[int32]int64, error) {
	return ask(d.m, "first row", func() (map[int32]int64, error) { return d.DB.Begin(ctx, topic, id) })
}

func (d stepTables) Insert(ctx context.Context, topic string, id [16]byte, records []event.Record, token string) (event.Inserted, error) {
	return ask(d.m, "insert", func() (event.Inserted, error) { return d.DB.Insert(ctx, topic, id, records, token) })
}

// stepSource is the source as Push and Expand read it.
type stepSource struct {
	*source.Source
	h *hand
}

// What is wrong with the documents query.
const (
	documentsRight int32 = iota
	documentsFail        // it asks for a table that is not there
	documentsWrong       // it finds no product eligible
)

func (s stepSource) Documents(ctx context.Context, ids []change.ProductID) (rows []document.Row, snap change.Snapshot, at time.Time, err error) {
	sql := s.h.trial.cfg.Documents
	switch s.h.trial.documents.Load() {
	case documentsFail:
		sql = strings.Replace(sql, "catalog.products p", "catalog.no_products p", 1)
	case documentsWrong:
		sql = `SELECT product_id, shop, '{"eligible": false, "reason": "NOT_APPROVED"}'::jsonb AS document FROM (` + sql + `) d`
	default:
	}
	err = do(&s.h.mortal, "documents", func() (err error) {
		rows, snap, at, err = s.Source.Documents(ctx, sql, ids)
		return err
	})
	return rows, snap, at, err
}

func (s stepSource) Page(ctx context.Context, sql string, image map[string]*string, after string, limit int) (change.Page, error) {
	return ask(&s.h.mortal, "page", func() (change.Page, error) { return s.Source.Page(ctx, sql, image, after, limit) })
}

// door is a hand's way to the shops. It holds requests up, and delivers some twice before it answers with what came of the
// first: who answered that a repeated one was throttled would say of the first that it never was. Where the second was cut
// off, it may be late: then the answer is lost, as no proxy lets a copy land long after the answer.
type door struct{ h *hand }

func (d door) RoundTrip(r *http.Request) (*http.Response, error) {
	m := d.h.trial
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(m.plan.seed, uint64(m.requests.Add(1))))
	if n := rng.IntN(30); n < 10 && !m.calmShops.Load() {
		rest(r.Context(), time.Duration(n*n)*time.Millisecond)
	}
	if err := d.h.step("before request"); err != nil {
		return nil, err
	}
	// Who was asleep sends what it was about to, or finds that its time is over.
	if r.Context().Err() != nil && !m.plan.late {
		return nil, r.Context().Err()
	}
	send := func() (*http.Response, error) {
		again := r.Clone(r.Context())
		again.Body = io.NopCloser(bytes.NewReader(body))
		return m.sim.RoundTripper().RoundTrip(again)
	}
	resp, err := send()
	if rng.IntN(25) == 0 && !m.calmShops.Load() {
		m.doubled.Add(1)
		echo, cut := send()
		if cut != nil {
			if err == nil {
				_ = resp.Body.Close()
			}
			return nil, cut
		}
		_ = echo.Body.Close()
	}
	if lost := d.h.step("after request"); lost != nil {
		return nil, lost
	}
	return resp, err
}
