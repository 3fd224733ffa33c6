package pipeline

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// recordReader reads explicit partitions of one topic; connectors/kafka implements it.
type recordReader interface {
	// Add begins to read a partition at an offset, Remove ends it: no record of it is returned afterwards.
	Add(partition int32, offset int64)
	Remove(partition int32)
	// Poll returns what has come, at most n records, and waits while nothing has.
	Poll(ctx context.Context, n int) ([]event.Record, error)
}

// documentSource reads what the shops shall have.
type documentSource interface {
	// Documents reads the current documents of all these products in one snapshot.
	Documents(ctx context.Context, products []change.ProductID) ([]document.Row, change.Snapshot, time.Time, error)
}

// pushStore is the state as a push reads it.
type pushStore interface {
	// Load returns what is known of the products before their read begins.
	Load(ctx context.Context, products []string) (work.Loaded, error)
	// Pull returns due parked products; it claims nothing.
	Pull(ctx context.Context, q work.Pull) (work.Pulled, error)
	// Guard tells which of these effects must be held.
	Guard(ctx context.Context, shop string, reqs []work.GuardRequest, limits work.GuardLimits) (map[work.GuardRequest]bool, error)
	// Cancelled returns which of these campaigns people have cancelled.
	Cancelled(ctx context.Context, campaigns []int64) ([]int64, error)
}

// fencedStore is the state as a push writes it. Every write is rolled back with [work.ErrLeaseLost] unless its
// fences hold.
type fencedStore interface {
	TakeIn(ctx context.Context, t work.TakeIn) error
	Intend(ctx context.Context, fences []work.Fence, intents []work.Intent) error
	Settle(ctx context.Context, s work.Settlement) error
}

// shopStore knows which shops take nothing at the moment.
type shopStore interface {
	Shops(ctx context.Context) ([]work.ShopHealth, error)
	// Pauses tells what people have stopped.
	Pauses(ctx context.Context) (work.Pauses, error)
	SetShopDead(ctx context.Context, shop, reason string, dead bool, nextProbe time.Time) error
	// ClaimProbe lets one worker of all try a dead shop whose probe is due, and sets the next one.
	ClaimProbe(ctx context.Context, shop string, next time.Time) (bool, error)
}

// shopSender plans and sends; sinks/shopify implements it.
type shopSender interface {
	// Same reports whether the document would be skipped again, as it was the last time, for the same reason and with the
	// same record: it need not even be parsed then.
	Same(known *work.Known, document json.RawMessage) bool
	Plan(p work.Push) work.Plan
	// Send carries plans of one shop out and returns one result a plan, in order. It calls intend before each
	// request that writes, and does not send when that returns an error.
	Send(ctx context.Context, shop string, plans []work.Plan, intend func(context.Context, []work.Intent) error) []work.Result
}

// PushConfig configures a push worker.
type PushConfig struct {
	Lease LeaseConfig
	// Prefix is put before the topics' names.
	Prefix string
	// Partitions of catalog.changes.
	Partitions int32
	// Debounce: quiet 500 ms and max wait 5 s by default. A longer quiet coalesces more changes into one push and
	// delays each by as much.
	Debounce debounce.Wait
	// Content is the same for changes of ContentTables ("schema.table"), which may wait longer than prices and stock:
	// they go in the lane of content. The zero value is Debounce. What a campaign asks for has waited in the state.
	Content       debounce.Wait
	ContentTables []string
	// RequestTimeout bounds one request to a shop. No request is sent by a lease that ends sooner. Default 15 s.
	RequestTimeout time.Duration
	// Round is how many due products share one documents query at the most. Default 250.
	Round int
	// Hot is how many products may wait or fly in memory; beyond that, reading pauses. Default 50,000.
	Hot int
	// Flying is how many pushes may stand in the shops' queues at once, campaigns not counted: those have half as many
	// places of their own. A shop never holds more of them than are still free, so that slow shops, however many, leave
	// places to all others; what finds none waits in the state. More needs memory for as many documents. Default 2,000.
	Flying int
	// FlyingPerShop bounds a single shop's places of either kind. More lets a burst of one shop fly without a way
	// through the state; what waits there has an older document. Default 250.
	FlyingPerShop int
	// NotYetVisible is how long a product waits in memory for its transaction to become visible before it is parked.
	// Default 5 s.
	NotYetVisible time.Duration
	// LateRequest is how long a request may still reach a shop after its answer was given up. Default 2 min.
	LateRequest time.Duration
	// Group is how many products of a shop are sent and settled together. More share requests and round trips; fewer
	// are settled sooner, and fewer must be read again after a crash. Default 50.
	Group int
	// Drain bounds how long a stop or a hand-over waits for what is on its way. Default 20 s.
	Drain time.Duration
	// Guard holds what would take too much off sale at once.
	Guard work.GuardLimits
}

// wait is how long a change waits that came in a lane.
func (c *PushConfig) wait(l work.Lane) debounce.Wait {
	if l == work.LaneContent {
		return c.Content
	}
	return c.Debounce
}

func (c PushConfig) withDefaults() PushConfig {
	c.Lease = c.Lease.withDefaults()
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	if c.Debounce == (debounce.Wait{}) {
		c.Debounce = debounce.Wait{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second}
	}
	if c.Content == (debounce.Wait{}) {
		c.Content = c.Debounce
	}
	set(&c.RequestTimeout, 15*time.Second)
	set(&c.NotYetVisible, 5*time.Second)
	set(&c.LateRequest, 2*time.Minute)
	set(&c.Drain, 20*time.Second)
	set(&c.Guard.Window, 10*time.Minute)
	num(&c.Round, 250)
	num(&c.Hot, 50_000)
	num(&c.Flying, 2_000)
	num(&c.FlyingPerShop, 250)
	num(&c.Group, 50)
	num(&c.Guard.Floor, 50)
	if c.Guard.Share == 0 {
		c.Guard.Share = 0.20
	}
	return c
}

// PushParts are what a push worker works with.
type PushParts struct {
	Leases    leaseStore
	Reader    recordReader
	Documents documentSource
	State     pushStore
	Fenced    fencedStore
	Shops     shopStore
	Sender    shopSender
	// Snapshot tells what a read that began now would see. It spares documents of products whose transactions are not
	// visible yet; nil: their documents are read to find out.
	Snapshot func(ctx context.Context) (change.Snapshot, error)
	// TellLate records, without a lease, requests that were sent under a lease that is lost: their intents, and the rows
	// by which the next owner looks at their products again. Nil: they are left to the intents that it finds.
	TellLate func(ctx context.Context, parked []work.Parked, intents []work.Intent) error
	// Hold says why no parked product is to be pulled now, empty when they may; nil: they always may.
	Hold func() string
	Log  *slog.Logger
}
