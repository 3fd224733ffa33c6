package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// world is everything around a push worker, in memory and in the bubble's time. It keeps the contracts that the
// worker relies on: fences, generations, forward positions.
type world struct {
	t  *testing.T
	mu sync.Mutex

	// The source.
	docs     map[string][]document.Row
	xid      change.XID   // all transactions below it are visible
	running  []change.XID // but for these
	broken   map[string]bool
	endless  map[string]bool // a query with one of them runs into the statement timeout
	reading  int             // queries that run now
	most     int             // of them at once
	away     bool
	reads    int
	readSize []int

	// Kafka: one partition.
	records []event.Record
	added   chan struct{}
	follows bool
	next    int64

	// The state.
	owner     string
	epoch     int64
	expires   time.Time
	wanted    bool
	leases    int // partitions; 0: one
	position  int64
	positions map[int32]int64
	saves     int // writes of nothing but positions
	takenIn   int64
	known     map[[2]string]work.Known
	items     map[[3]string]work.Item
	parked    map[[2]string]work.Parked
	intents   map[string]work.Intent
	outbox    []event.Record
	health    map[string]work.ShopHealth
	held      map[string]bool // shop: everything with an effect is held
	settleErr error
	// intendTakes is how long the state takes to answer that intents are on record.
	intendTakes time.Duration
	intended    int
	settled     []string // records that were written, "product shop"
	stuck       bool     // positions are not written until their context ends
	renewErr    error
	pollMost    int // records a poll returns at the most; 0: all

	generation int64

	// The shops.
	sent     []string // "shop:product"
	answer   func(shop, product string) work.Result
	inFlight map[string]int
	slow     time.Duration
	pauses   work.Pauses
	excluded map[work.Exclusion]struct{}

	cancelled map[int64]string // campaigns that people have cancelled, with their batch
	onRead    func()           // called by a read of documents, under the lock
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t, docs: map[string][]document.Row{}, xid: 1 << 40, broken: map[string]bool{}, endless: map[string]bool{}, added: make(chan struct{}, 1),
		known: map[[2]string]work.Known{}, items: map[[3]string]work.Item{}, parked: map[[2]string]work.Parked{},
		intents: map[string]work.Intent{}, health: map[string]work.ShopHealth{}, held: map[string]bool{},
		inFlight: map[string]int{}, positions: map[int32]int64{},
	}
}

// put gives a product its document in these shops.
func (w *world) put(product, title string, shops ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.docs[product] = nil
	for _, s := range shops {
		w.docs[product] = append(w.docs[product], document.Row{
			ProductID: product, Shop: s, Document: json.RawMessage(fmt.Sprintf(`{"eligible":true,"title":%q}`, title)),
		})
	}
}

// change appends a record to the topic and returns its offset.
func (w *world) change(product string, xid change.XID, headers ...event.Header) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := event.Record{
		Offset: int64(len(w.records)), Timestamp: time.Now(), Key: []byte(product), Headers: append(headers,
			event.Header{Key: event.HeaderXID, Value: []byte(strconv.FormatUint(uint64(xid), 10))}),
	}
	w.records = append(w.records, r)
	select {
	case w.added <- struct{}{}:
	default:
	}
	return r.Offset
}

// run starts a worker in the bubble and returns how to stop it.
func (w *world) run(owner string) (p *Push, stop func()) {
	p = w.worker(owner, func(*PushConfig) {})
	return p, w.start(p)
}

func (w *world) worker(owner string, change func(*PushConfig)) *Push {
	cfg := PushConfig{
		Lease: LeaseConfig{Owner: owner}, Prefix: "catalog.", Partitions: 1,
		Debounce: debounce.Wait{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second},
	}
	change(&cfg)
	return NewPush(cfg, PushParts{
		Leases: w, Reader: w, Documents: w, State: w, Fenced: w, Shops: w, Sender: w, Log: slog.New(slog.DiscardHandler),
		TellLate: w.tellLate,
	})
}

func (w *world) start(p *Push) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return func() {
		w.t.Helper()
		w.wait(0)
		cancel()
		require.NoError(w.t, <-done)
	}
}

func (w *world) wait(d time.Duration) {
	// An empty section: what the test has read of the world happened before what others write from here on.
	w.mu.Lock()
	w.mu.Unlock() //nolint:staticcheck // an empty section is the point
	time.Sleep(d) // in the bubble
	synctest.Wait()
}

// Renew grants the one lease to whoever asks when it is free.
func (w *world) Renew(_ context.Context, stage work.Stage, owner string, _ int32, ttl time.Duration) ([]work.Lease, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.renewErr != nil {
		return nil, w.renewErr
	}
	if w.owner != owner {
		if w.owner != "" && time.Now().Before(w.expires) {
			return nil, nil
		}
		w.owner = owner
		w.epoch++
	}
	w.expires = time.Now().Add(ttl)
	var out []work.Lease
	for p := range int32(max(w.leases, 1)) {
		l := work.Lease{
			Fence: work.Fence{Stage: stage, Partition: p, Owner: owner, Epoch: w.epoch}, Expires: w.expires, Wanted: w.wanted,
		}
		if p == 0 {
			l.Position, l.TakenIn = w.position, w.takenIn
		}
		out = append(out, l)
	}
	return out, nil
}

func (w *world) Release(_ context.Context, fences []work.Fence) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	fences = slices.DeleteFunc(slices.Clone(fences), func(f work.Fence) bool { return f.Partition == work.AllPartitions })
	if len(fences) == 0 {
		return nil
	}
	if err := w.fenced(fences); err != nil {
		return err
	}
	w.owner, w.wanted = "", false
	return nil
}

func (w *world) fenced(fences []work.Fence) error {
	require.NotEmpty(w.t, fences, "a write without a fence")
	for _, f := range fences {
		if f.Owner != w.owner || f.Epoch != w.epoch || time.Now().After(w.expires) {
			return work.ErrLeaseLost
		}
	}
	return nil
}

func (w *world) Add(_ int32, offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.follows, w.next = true, offset
	select {
	case w.added <- struct{}{}:
	default:
	}
}

func (w *world) Remove(int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.follows = false
}

func (w *world) Poll(ctx context.Context, n int) ([]event.Record, error) {
	for {
		w.mu.Lock()
		if w.pollMost > 0 {
			n = w.pollMost
		}
		if w.follows && w.next < int64(len(w.records)) {
			out := slices.Clone(w.records[w.next:min(w.next+int64(n), int64(len(w.records)))])
			w.next += int64(len(out))
			w.mu.Unlock()
			return out, nil
		}
		w.mu.Unlock()
		select {
		case <-w.added:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type queryError struct{ data bool }

func (e queryError) Error() string { return "division by zero" }
func (e queryError) Data() bool    { return e.data }

// stateError is an error of the server with its SQLSTATE.
type stateError string

func (e stateError) Error() string    { return "canceling statement due to statement timeout" }
func (e stateError) SQLState() string { return string(e) }

func (w *world) Documents(ctx context.Context, ids []change.ProductID) ([]document.Row, change.Snapshot, time.Time, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	w.readSize = append(w.readSize, len(ids))
	if w.onRead != nil {
		w.onRead()
	}
	if slices.ContainsFunc(ids, func(id change.ProductID) bool { return w.endless[string(id)] }) {
		w.reading++
		w.most = max(w.most, w.reading)
		w.mu.Unlock()
		sleep(ctx, 30*time.Second)
		w.mu.Lock()
		w.reading--
		return nil, change.Snapshot{}, time.Time{}, fmt.Errorf("read: %w", stateError("57014"))
	}
	if w.away {
		return nil, change.Snapshot{}, time.Time{}, queryError{}
	}
	var out []document.Row
	for _, id := range ids {
		if w.broken[string(id)] {
			return nil, change.Snapshot{}, time.Time{}, queryError{data: true}
		}
		out = append(out, w.docs[string(id)]...)
	}
	s := change.Snapshot{Xmin: w.xid, Xmax: w.xid, Running: slices.Clone(w.running)}
	for _, x := range w.running {
		s.Xmin = min(s.Xmin, x)
	}
	return out, s, time.Now(), nil
}

func (w *world) Load(_ context.Context, products []string) (work.Loaded, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := make(map[string]bool, len(products))
	for _, id := range products {
		asked[id] = true
	}
	var l work.Loaded
	for k, v := range w.known {
		if asked[k[0]] {
			for _, i := range w.intents {
				if i.Shop == k[1] && slices.Contains(i.ProductIDs, k[0]) {
					v.Intents = append(v.Intents, i)
				}
			}
			l.Known = append(l.Known, v)
		}
	}
	for _, i := range w.intents { // of what is not known otherwise
		for _, id := range i.ProductIDs {
			if _, known := w.known[[2]string{id, i.Shop}]; asked[id] && !known {
				l.Known = append(l.Known, work.Known{ProductID: id, Shop: i.Shop, Intents: []work.Intent{i}})
			}
		}
	}
	for k, v := range w.items {
		if asked[k[1]] && !settledItem(v.Status) {
			l.Items = append(l.Items, v)
		}
	}
	for k, v := range w.parked {
		if asked[k[0]] {
			l.Parked = append(l.Parked, work.ParkedRef{ProductID: k[0], Shop: k[1], Campaign: v.Campaign, Generation: v.Generation, XIDs: v.XIDs})
		}
	}
	for x := range w.excluded {
		if slices.Contains(products, x.ProductID) {
			l.Excluded = append(l.Excluded, x)
		}
	}
	return l, nil
}

func settledItem(s work.ItemStatus) bool {
	return s == work.ItemSuccess || s == work.ItemFailed || s == work.ItemSkipped || s == work.ItemCancelled
}

func (w *world) Pull(_ context.Context, q work.Pull) (work.Pulled, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out work.Pulled
	inHand := map[string]bool{}
	for _, id := range q.InHand {
		inHand[id] = true
	}
	left := maps.Clone(q.Room)
	if left == nil {
		left = map[string]int{}
	}
	for _, p := range w.parked {
		if _, ok := left[p.Shop]; !ok {
			left[p.Shop] = q.Default
		}
		if !p.Due.After(time.Now()) && !slices.Contains(q.Closed, p.Shop) && !inHand[p.ProductID] &&
			left[p.Shop] > 0 && len(out.Parked) < q.N {
			left[p.Shop]--
			out.Parked = append(out.Parked, p)
		}
	}
	return out, nil
}

func (w *world) Cancelled(_ context.Context, campaigns []int64) (out []int64, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, no := range campaigns {
		if _, ok := w.cancelled[no]; ok {
			out = append(out, no)
		}
	}
	return out, nil
}

// cancel stops a campaign as a person does; the caller holds the lock.
func (w *world) cancel(campaign int64, batch string) {
	w.cancelled = map[int64]string{campaign: batch}
	for k, it := range w.items {
		if k[0] == batch && !settledItem(it.Status) && it.Status != work.ItemProcessing {
			it.Status = work.ItemCancelled
			w.items[k] = it
		}
	}
	for k, row := range w.parked {
		if row.Campaign == campaign {
			delete(w.parked, k)
		}
	}
}

func (w *world) Guard(_ context.Context, shop string, reqs []work.GuardRequest, _ work.GuardLimits) (map[work.GuardRequest]bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[work.GuardRequest]bool{}
	for _, r := range reqs {
		out[r] = w.held[shop]
	}
	return out, nil
}

func (w *world) TakeIn(ctx context.Context, t work.TakeIn) error {
	w.mu.Lock()
	if w.stuck {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		defer w.mu.Unlock()
		return ctx.Err()
	}
	defer w.mu.Unlock()
	if err := w.fenced(t.Fences); err != nil {
		return err
	}
	for _, it := range t.Items {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(w.items)), func(k [3]string) bool {
			return k[0] == it.BatchID && k[1] == it.ProductID
		}) {
			w.items[[3]string{it.BatchID, it.ProductID, it.Shop}] = it
		}
	}
	w.park(t.Parked)
	w.outbox = append(w.outbox, t.Outbox...)
	if len(t.Items)+len(t.Parked)+len(t.Outbox) == 0 {
		w.saves++
	}
	w.forward(t.Positions, t.TakenIn)
	return nil
}

func (w *world) park(rows []work.Parked) {
	for _, p := range rows {
		k := [2]string{p.ProductID, p.Shop}
		if old, ok := w.parked[k]; ok {
			if old.Due.Before(p.Due) {
				p.Due, p.Reason = old.Due, old.Reason
			}
			p.Lane, p.XIDs, p.Changes = min(p.Lane, old.Lane), append(p.XIDs, old.XIDs...), p.Changes+old.Changes
		}
		w.generation++
		p.Generation = w.generation
		w.parked[k] = p
	}
}

func (w *world) forward(positions, takenIn map[int32]int64) {
	for p, v := range positions {
		w.positions[p] = max(w.positions[p], v)
	}
	w.position = w.positions[0]
	if v, ok := takenIn[0]; ok {
		w.takenIn = max(w.takenIn, v, w.position)
	}
}

func (w *world) Intend(_ context.Context, fences []work.Fence, intents []work.Intent) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fenced(fences); err != nil {
		return err
	}
	for _, i := range intents {
		w.intents[i.Key] = i
	}
	w.intended++
	slow := w.intendTakes
	w.mu.Unlock()
	time.Sleep(slow) // in the bubble
	w.mu.Lock()
	return nil
}

func (w *world) tellLate(_ context.Context, rows []work.Parked, intents []work.Intent) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.park(rows)
	for _, i := range intents {
		w.intents[i.Key] = i
	}
	w.intended++
	slow := w.intendTakes
	w.mu.Unlock()
	time.Sleep(slow) // in the bubble
	w.mu.Lock()
	return nil
}

func (w *world) Settle(_ context.Context, s work.Settlement) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.settleErr != nil {
		return w.settleErr
	}
	if err := w.fenced(s.Fences); err != nil {
		return err
	}
	for _, p := range s.Products {
		k := [2]string{p.ProductID, p.Shop}
		w.settled = append(w.settled, p.ProductID+" "+p.Shop)
		if p.Shadow == nil {
			p.Shadow = w.known[k].Shadow
		}
		if p.Snapshot.Xmax == 0 {
			p.Snapshot = w.known[k].Snapshot
		}
		w.known[k] = p.Known
	}
	for _, k := range s.Forget {
		delete(w.known, [2]string{k.ProductID, k.Shop})
	}
	for _, it := range s.SplitItems {
		delete(w.items, [3]string{it.BatchID, it.ProductID, ""})
	}
	for _, it := range s.Items {
		k := [3]string{it.BatchID, it.ProductID, it.Shop}
		if slices.Contains(slices.Collect(maps.Values(w.cancelled)), it.BatchID) && !settledItem(it.Status) {
			it.Status = work.ItemCancelled
		}
		if !settledItem(w.items[k].Status) {
			w.items[k] = it
		}
	}
	for _, ref := range s.Unpark {
		k := [2]string{ref.ProductID, ref.Shop}
		if w.parked[k].Generation == ref.Generation {
			delete(w.parked, k)
		}
	}
	w.park(s.Park)
	for _, i := range s.Intents {
		old := w.intents[i.Key]
		old.ProductIDs = slices.DeleteFunc(slices.Clone(old.ProductIDs), func(id string) bool { return slices.Contains(i.ProductIDs, id) })
		if w.intents[i.Key] = old; len(old.ProductIDs) == 0 {
			delete(w.intents, i.Key)
		}
	}
	w.outbox = append(w.outbox, s.Outbox...)
	w.forward(s.Positions, nil)
	return nil
}
