package event

import (
	"encoding/json"
	"time"
)

// Status is what became of a push.
type Status string

// The outcomes.
const (
	Success   Status = "SUCCESS"
	Failed    Status = "FAILED"
	Skipped   Status = "SKIPPED"
	Retrying  Status = "RETRYING"
	Cancelled Status = "CANCELLED"
	Held      Status = "HELD"
)

// Category is the cause of a failure, which decides who acts and when it is tried again.
type Category string

// The categories.
const (
	APILimit     Category = "API_LIMIT"
	Network      Category = "NETWORK"
	ShopifyError Category = "SHOPIFY_ERROR"
	Validation   Category = "VALIDATION"
	Duplicate    Category = "DUPLICATE"
	Unknown      Category = "UNKNOWN"
)

// Outcome is the value of catalog.outcomes, keyed by product id: what became of one push of one product to one shop.
type Outcome struct {
	ID        string   `json:"id"` // unique; the same push redelivered carries the same id
	ProductID string   `json:"product_id"`
	Shop      string   `json:"shop"`
	Status    Status   `json:"status"`
	Category  Category `json:"category,omitempty"`
	// Reason is the word behind SKIPPED and HELD: UNCHANGED, NOT_APPROVED, NO_SHOP, GUARD, ...
	Reason string `json:"reason,omitempty"`
	// Message is a sentence for people.
	Message string `json:"message,omitempty"`
	// Field is the path of the field that was refused.
	Field      string   `json:"field,omitempty"`
	ShopifyID  string   `json:"shopify_id,omitempty"`
	VariantIDs []string `json:"variant_ids,omitempty"`
	BatchIDs   []string `json:"batch_ids,omitempty"`
	Lane       string   `json:"lane"`
	Attempt    int      `json:"attempt"`
	// Plan says in words what was planned and why: "update price of 2 variants; stock of 1".
	Plan string `json:"plan,omitempty"`
	// Sent is what was sent, up to 64 KB; beyond that SentHash is set and Sent is its head.
	Sent     string `json:"sent,omitempty"`
	SentHash string `json:"sent_hash,omitempty"`
	// Points are the product's share of the requests' costs.
	PointsRequested float64 `json:"points_requested"`
	PointsActual    float64 `json:"points_actual"`
	// Changes counts the changes that this push coalesced.
	Changes      int       `json:"changes"`
	FirstCommit  time.Time `json:"first_commit,omitzero"`
	LastCommit   time.Time `json:"last_commit,omitzero"`
	CapturedAt   time.Time `json:"captured_at,omitzero"`
	DueAt        time.Time `json:"due_at,omitzero"`
	ReadAt       time.Time `json:"read_at,omitzero"`
	SentAt       time.Time `json:"sent_at,omitzero"`
	AnsweredAt   time.Time `json:"answered_at,omitzero"`
	SettledAt    time.Time `json:"settled_at"`
	DocumentHash string    `json:"document_hash,omitempty"`
	NextAttempt  time.Time `json:"next_attempt,omitzero"`
}

// Inserted says what became of records that were made rows.
type Inserted struct {
	// Malformed counts those that could not be read and were put aside.
	Malformed int
	// SettledAt are the times at which the pushes among them that a shop took were settled; nil but for outcomes.
	SettledAt []time.Time
}

// Document is the value of catalog.documents, keyed by product id and shop ("product|shop"): the last document
// evaluated, whatever its outcome.
type Document struct {
	ProductID string          `json:"product_id"`
	Shop      string          `json:"shop"`
	Hash      string          `json:"hash"`
	Document  json.RawMessage `json:"document"`
	// Snapshot is the Postgres snapshot that it was read at.
	Snapshot string    `json:"snapshot"`
	ReadAt   time.Time `json:"read_at"`
}
