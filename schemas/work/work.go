// Package work holds the rows that pass between the stages and the state: leases, parked products, items, intents
// and settlements. It is vocabulary only; sinks/state keeps it, pipeline decides over it, sinks/shopify fills results.
package work

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// Stage names a stage that works by leases.
type Stage string

// The stages with leases, one for each partition of the topic that they read.
const (
	StagePush    Stage = "push"    // catalog.changes
	StageExpand  Stage = "expand"  // catalog.fanouts
	StageBatches Stage = "batches" // catalog.batches
	StageLoad    Stage = "load"    // all topics; Partition counts topic partitions in the loader's own order
)

// StageRelay has no leases; it is named in what waits.
const StageRelay Stage = "relay"

// Fence names a lease as its holder believes to hold it. Every write of a stage carries the fences of the partitions
// that it is about, and is rolled back as a whole unless owner and epoch of each are still these.
type Fence struct {
	Stage     Stage
	Partition int32
	Owner     string
	Epoch     int64
}

// AllPartitions in a fence that is released stands for the owner as a whole: all that it holds of the stage is given back,
// and what it waits for is left to others.
const AllPartitions int32 = -1

// ErrLeaseLost says that a write was rolled back because a fence of it is not valid any more: the lease has ended or
// another worker has it. The holder must drop what it holds of the partition and must not try again.
var ErrLeaseLost = errors.New("lease lost: another worker may own the partition")

// Lease is a fence with its end and where the stage continues.
type Lease struct {
	Fence
	// Expires is by the state's clock; a holder counts TTL from before the request that renewed it.
	Expires time.Time
	// Position is the offset of the first record that is not finished.
	Position int64
	// TakenIn is the offset of the first record that is not taken in: its items are written and its product stands
	// in the window or is parked. It is never below Position.
	TakenIn int64
	// Cursor is how far a stage has come inside the record at Position (Expand: the last product id parked of the
	// fan-out), empty at a record's beginning; or what Position counts (Load: the topic's id).
	Cursor string
	// Wanted says that another worker has fewer leases and waits for this one: drain and release it.
	Wanted bool
}

// Lane is the order in which waiting products are served; a lower number goes first.
type Lane int16

// The lanes.
const (
	LaneLive     Lane = 0 // live stock and prices
	LaneContent  Lane = 1 // live content
	LaneRetry    Lane = 2
	LaneCampaign Lane = 3 // snapshots, fan-outs, replays, re-syncs
)

func (l Lane) String() string {
	switch l {
	case LaneLive:
		return "live"
	case LaneContent:
		return "content"
	case LaneRetry:
		return "retry"
	default:
		return "campaign"
	}
}

// Parked is a product that waits in the state instead of in memory.
type Parked struct {
	ProductID string
	// Shop is empty where the product waits for all its shops.
	Shop string
	// Partition is the product's partition of catalog.changes: its lease holder pulls the row.
	Partition int32
	Lane      Lane
	Due       time.Time
	// Generation rises with each parking. A settlement deletes the row only at the generation that it was pulled at
	// or that stood before its read began.
	Generation int64
	// Reason is why it waits: SNAPSHOT, FANOUT, REPLAY, RESTORED, HEALED, INCLUDED, RETRY, LATE_REQUEST, SHOP_DEAD,
	// SHOP_BUSY, PAUSED, NOT_YET_VISIBLE, SLOW_READ, GUARD_UNKNOWN, HELD; more may come.
	Reason string
	// Campaign is the number of the campaign that wants it; 0 is none. A product that several want has a row for each,
	// so that none of them is paused, cancelled or counted with another. What is parked for a cancelled campaign is
	// dropped.
	Campaign int64
	// CampaignID names the campaign where its number is not known: the batch's id. The state gives the number, makes
	// the campaign where it has none of this id yet, and never returns this field.
	CampaignID string
	// Attempt counts the failed automatic attempts behind it.
	Attempt int
	// XIDs are the transactions that the next read must see: all of them, as a higher one may become visible first.
	XIDs []change.XID
	// Changes counts the changes that it stands for.
	Changes     int
	FirstCommit time.Time
	LastCommit  time.Time
}

// ItemStatus is the state of an item of a batch.
type ItemStatus string

// The states of an item. SUCCESS, FAILED, SKIPPED and CANCELLED are settled.
const (
	ItemPending    ItemStatus = "PENDING"
	ItemProcessing ItemStatus = "PROCESSING"
	ItemRetrying   ItemStatus = "RETRYING"
	ItemHeld       ItemStatus = "HELD"
	ItemSuccess    ItemStatus = "SUCCESS"
	ItemFailed     ItemStatus = "FAILED"
	ItemSkipped    ItemStatus = "SKIPPED"
	ItemCancelled  ItemStatus = "CANCELLED"
)

// Token names a write to the state. Sixteen random bytes.
type Token [16]byte

// Item is a product in a shop as part of a batch. Shop is empty until the first read has split it.
type Item struct {
	BatchID   string
	ProductID string
	Shop      string
	// XID is the transaction whose effect a read must see to settle the item; zero for batches that are none.
	XID        change.XID
	Status     ItemStatus
	Category   event.Category
	Reason     string
	Message    string
	Field      string
	ShopifyID  string
	VariantIDs []string
	// Attempt counts automatic attempts.
	Attempt int
	// Payload is what was sent.
	Payload     string
	ProcessedAt time.Time
}

// TakeIn records what a stage has read but not yet pushed: one transaction.
type TakeIn struct {
	// Token names the write, so that it is applied once however often its caller sends it. The zero value: the state
	// draws one, and only its own repetitions are recognised.
	Token  Token
	Fences []Fence
	// Batches are opened (inserted as PENDING) where the state does not have them yet.
	Batches []event.Batch
	// Spoilt names batches of which something can never be seen, with the reason: they end as FAILED. The first reason
	// stands.
	Spoilt map[string]string
	// Items are inserted unless they stand already, in any shop.
	Items  []Item
	Parked []Parked
	// TakenIn and Positions move forward only.
	TakenIn   map[int32]int64
	Positions map[int32]int64
	// Cursors replace a lease's Cursor; a position that moves without one clears it.
	Cursors map[int32]string
	// Outbox rows go to Kafka by the relay, in this order.
	Outbox []event.Record
}

// Known is what the state knows of one product in one shop.
type Known struct {
	ProductID string
	Shop      string
	// ShopifyID is the product's gid; empty before the creation.
	ShopifyID string
	// Shadow is the sink's own record of what it pushed last (ids and hashes), opaque to everything else.
	Shadow json.RawMessage
	// Snapshot is the snapshot of the last settled read; zero before the first.
	Snapshot change.Snapshot
	// DocumentHash is the hash of the last settled document.
	DocumentHash string
	// OffSale says that the product was last set to DRAFT or ARCHIVED.
	OffSale bool
	// LastStatus is the status of the last outcome; an equal SKIPPED is not written again.
	LastStatus event.Status
	LastReason string
	// Attempt counts failed automatic attempts since the last settled success.
	Attempt int
	// Intents are requests that were begun for the product and have no answer on record.
	Intents []Intent
}

// Intent says, before a request goes out, that it may have reached the shop. A request of several products has one for
// each, with the same key.
type Intent struct {
	// Key identifies the request; it is the idempotency key where the mutation takes one.
	Key        string
	Shop       string
	ProductIDs []string
	// Mutation names the root fields: "productSet", "productUpdate+metafieldsSet". A space and JSON may follow: what the
	// request adds to lists that a merchant shares, in a form that is the sender's own.
	Mutation string
	At       time.Time
}

// Push is one product for one shop, ready to be planned.
type Push struct {
	ProductID string
	Shop      string
	// Document is what the shop shall have. Gone and Moved leave it nil.
	Document *document.Document
	// Raw is the document as it was read, for the outcome and catalog.documents.
	Raw json.RawMessage
	// Hash is the canonical hash of the document.
	Hash string
	// Gone: the source has no row any more: archive. Moved: the product is routed to other shops now: draft.
	Gone, Moved bool
	Known       Known
}

// Effect is what a plan would do to a live shop that the guard counts.
type Effect string

// The guarded effects.
const (
	EffectOffSale   Effect = "off_sale"
	EffectZeroPrice Effect = "zero_price"
)

// Plan is what a push would send, decided and not yet sent.
type Plan struct {
	Push Push
	// Nothing says that no call is needed; Result then holds the outcome (SKIPPED, or FAILED VALIDATION).
	Nothing bool
	Result  Result
	// Words explains the plan: "create with 3 variants", "price of 2 variants; stock of 1 level".
	Words   string
	Effects []Effect
	// Lane is the lane that the content of the plan deserves: stock and prices before content.
	Lane Lane
	// Points is the requested cost of its mutations.
	Points int
	// Steps are the sink's own.
	Steps any
}

// Result is what became of one plan.
type Result struct {
	ProductID  string
	Shop       string
	Status     event.Status
	Category   event.Category
	Reason     string
	Message    string
	Field      string
	ShopifyID  string
	VariantIDs []string
	// Shadow replaces Known.Shadow; nil leaves it (nothing is known to have changed).
	Shadow  json.RawMessage
	OffSale bool
	// RetryAfter is when a RETRYING product should be tried again; zero: by the attempts table.
	RetryAfter time.Duration
	// Counts says whether the attempt counts against the product.
	Counts bool
	// ShopDead says that the shop refused everything: all its products are to be parked.
	ShopDead bool
	// Unanswered says that the request may have reached the shop: its intent must stand.
	Unanswered      bool
	Sent            string
	PointsRequested float64
	PointsActual    float64
	SentAt          time.Time
	AnsweredAt      time.Time
}

// Settled is the part of a settlement that concerns one product in one shop.
type Settled struct {
	Known // the new record; Shadow nil leaves the old one
	// Attempted says that the product was on its way to the shop: its time of the last attempt moves.
	Attempted bool
}

// ParkedRef names a parked row at the generation that a push has seen.
type ParkedRef struct {
	ProductID string
	Shop      string
	// Campaign is that of the row. A push that must wait again parks the product once for each of them.
	Campaign   int64
	Generation int64
	// XIDs are the transactions that the row waits for: a read that does not see each must leave the row standing.
	XIDs []change.XID
}

// Settlement is everything that a group of finished pushes changes: one transaction, valid only under its fences.
type Settlement struct {
	// Token is as that of [TakeIn].
	Token    Token
	Fences   []Fence
	Products []Settled
	// Forget removes the records of products that left a shop for good.
	Forget []Known
	// Items are upserted; an item that was split (Shop was empty) is replaced by its shops' items.
	Items []Item
	// SplitItems are the (batch, product) whose item without a shop is removed.
	SplitItems []Item
	Park       []Parked
	Unpark     []ParkedRef
	// Intents are closed for the products that they list: the answer of their request is known now, or it can no
	// longer land.
	Intents   []Intent
	Outbox    []event.Record
	Positions map[int32]int64
}

// Bucket is the model of one shop's rate budget, shared by all processes through the state. Times are the state
// database's.
type Bucket struct {
	// Level is what is available at At, in points, after everything leased was taken off.
	Level float64 `json:"level"`
	// Maximum is the bucket's size and Restore what it regains, in points a second. Zero: not known yet.
	Maximum float64   `json:"maximum"`
	Restore float64   `json:"restore"`
	At      time.Time `json:"at"`
	// Leases are slices that processes hold, by holder. A lease that has ended returns to the bucket.
	Leases map[string]BucketLease `json:"leases,omitempty"`
}

// BucketLease is a slice of a bucket.
type BucketLease struct {
	Points float64   `json:"points"`
	Until  time.Time `json:"until"`
}

// ShopHealth is what the workers know together of one shop.
type ShopHealth struct {
	Shop string
	// DeadSince is set while the shop refuses everything; one probe a minute goes out.
	DeadSince time.Time
	Reason    string
	NextProbe time.Time
	Paused    bool
	// Bucket is the last known budget.
	Bucket Bucket
}

// GuardLimits are the bounds of the guard, for each shop over a sliding window.
type GuardLimits struct {
	Window time.Duration // 10 min
	Share  float64       // of the shop's live products: 0.20
	Floor  int           // never below this many products: 50
}

// GuardRequest asks whether a plan with an effect may be sent.
type GuardRequest struct {
	ProductID string
	Effect    Effect
}

// Loaded is what the state knows of some products before their read begins.
type Loaded struct {
	// Known has a record for each shop, and one with an empty Shop for the product itself: its Snapshot is that of
	// the last read of which every shop has been settled.
	Known []Known
	// Items are those that are not settled.
	Items []Item
	// Parked are all parked rows of the products, at the generation that stands now.
	Parked []ParkedRef
	// Excluded are those that a person has taken out: nothing is sent for them until they are included again.
	Excluded []Exclusion
}

// Exclusion is a product that a person keeps from being pushed; an empty Shop is every shop.
type Exclusion struct {
	ProductID, Shop string
}

// Waiting is what a stage waits for, for status and metrics.
type Waiting struct {
	Stage Stage
	// Topic is what the stage reads or writes; empty where it waits as a whole.
	Topic  string
	Reason string
	// Since is when the waiting began.
	Since time.Time
}
