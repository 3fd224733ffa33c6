package main

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/audit"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// Programs read these names: a change of one breaks somebody.
func TestTheNamesOfWhatIsPrintedAsJSON(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("x", 3600))
	b := state.Batch{
		ID: "b1", Kind: event.KindTransaction, Name: "Spring import", Admin: "chris@example.com", XID: 742, CommitLSN: 0x16B3748,
		CommitTime: at, Rows: 3, Status: state.BatchCompleted, Round: 1, Announced: true,
		CreatedAt: at, StartedAt: at, EndedAt: at.Add(1500 * time.Millisecond),
		Total: 4, Succeeded: 3, Failed: 1,
		Errors: []state.BatchErrors{{Category: "VALIDATION", Count: 1, ProductID: "7", Shop: "main", Message: "no title"}},
	}
	for name, tt := range map[string]struct {
		value any
		want  string
	}{
		"batch": {viewBatch(&b, at), `{"id": "b1", "kind": "transaction", "name": "Spring import", "admin": "chris@example.com",
			"xid": "742", "commit_lsn": "0/16B3748", "committed_at": "2026-03-01T11:00:00Z", "rows": 3, "status": "COMPLETED", "round": 1,
			"announced": true, "cancelling": false, "created_at": "2026-03-01T11:00:00Z", "started_at": "2026-03-01T11:00:00Z",
			"ended_at": "2026-03-01T11:00:01.5Z", "duration_seconds": 1.5, "total": 4, "succeeded": 3, "failed": 1, "skipped": 0,
			"cancelled": 0, "processing": 0, "success_rate": 0.75,
			"errors": [{"category": "VALIDATION", "count": 1, "product_id": "7", "shop": "main", "message": "no title"}]}`},
		"batch that waits": {viewBatch(&state.Batch{ID: "b2", Kind: event.KindReplay, Status: state.BatchPending}, at), `{"id": "b2",
			"kind": "replay", "rows": 0, "status": "PENDING", "round": 0, "announced": false, "cancelling": false, "duration_seconds": 0,
			"total": 0, "succeeded": 0, "failed": 0, "skipped": 0, "cancelled": 0, "processing": 0, "errors": []}`},
		"hold": {
			viewHold(&state.Hold{Shop: "main", Effect: "OFF_SALE", Since: at, Products: 60, Live: 200, Threshold: 50}),
			`{"hold": "main/OFF_SALE", "shop": "main", "effect": "OFF_SALE", "since": "2026-03-01T11:00:00Z", "products": 60, "live": 200, "threshold": 50, "examples": []}`,
		},
		"pause":   {viewPause(state.Pause{What: "shop/main", By: "ada", At: at}), `{"kind": "shop", "name": "main", "since": "2026-03-01T11:00:00Z", "by": "ada"}`},
		"exclude": {excludedView{Product: "7", Since: at.UTC()}, `{"product_id": "7", "since": "2026-03-01T11:00:00Z"}`},
		"campaign": {
			viewCampaign(&state.Campaign{ID: "replay/1", Kind: "replay", CreatedAt: at, Whole: true, Total: 30, Done: 10, Parked: 20, Rate: 2}),
			`{"id": "replay/1", "kind": "replay", "status": "RUNNING", "created_at": "2026-03-01T11:00:00Z", "whole": true, "total": 30,
			"done": 10, "parked": 20, "rate": 2, "left_seconds": 10}`,
		},
		"away": {
			awayView{Service: "shop/main", Reason: "402", Since: timeView(at), Probe: timeView(at)},
			`{"service": "shop/main", "reason": "402", "since": "2026-03-01T11:00:00Z", "next_probe": "2026-03-01T11:00:00Z"}`,
		},
		"pipeline": {
			pipelineView{
				Stages:     []stageView{{Stage: "push", Topic: "catalog.changes", Workers: 2, Held: 7, Partitions: 8, Behind: 12}},
				Parked:     []parkedView{{Lane: "campaign", Shop: "main", Reason: "SHOP_BUSY", Products: 5, Due: 4, OldestDue: 1.5}},
				ParkedMore: 9, Outbox: 3, OutboxBytes: 2048, OutboxOldest: 0.5, Intents: 6, Unanswered: 2.5,
				Campaigns: []campaignView{}, Pauses: []pauseView{}, Holds: []holdView{},
			},
			`{"stages": [{"stage": "push", "topic": "catalog.changes", "workers": 2, "held": 7, "partitions": 8, "behind": 12}],
			"parked": [{"lane": "campaign", "shop": "main", "reason": "SHOP_BUSY", "products": 5, "due": 4, "oldest_due_seconds": 1.5}],
			"parked_more": 9, "outbox_records": 3, "outbox_bytes": 2048, "outbox_oldest_seconds": 0.5, "unanswered_requests": 6,
			"oldest_unanswered_seconds": 2.5, "campaigns": [], "pauses": [], "holds": []}`,
		},
		"audit": {
			&audit.Report{
				Shops: 1, Products: 2, Variants: 3, Prices: 3, Levels: 4,
				Drifts:   []audit.Drift{{Shop: "main", ProductID: "7", Kind: audit.Price, Field: "variant 1 price", Want: "1", Have: "2"}},
				Excluded: []audit.Drift{{Shop: "main", ProductID: "8", Kind: audit.Field, Field: "title", Want: "a", Have: "b"}}, Cancelled: []audit.Drift{},
			},
			`{"shops": 1, "products": 2, "variants": 3, "prices": 3, "levels": 4, "foreign": 0,
			"drifts": [{"shop": "main", "product_id": "7", "kind": "PRICE", "field": "variant 1 price", "want": "1", "have": "2"}],
			"excluded": [{"shop": "main", "product_id": "8", "kind": "FIELD", "field": "title", "want": "a", "have": "b"}], "cancelled": []}`,
		},
		"replay": {[]replayed{{Product: "7", Shop: "main", Status: "SKIPPED", Reason: "UNCHANGED"}}, `[{"product_id": "7", "shop": "main", "status": "SKIPPED", "reason": "UNCHANGED"}]`},
	} {
		var out bytes.Buffer
		require.NoError(t, show(&out, true, tt.value, nil))
		require.JSONEq(t, tt.want, out.String(), name)
	}
	none, err := json.Marshal([]batchView{})
	require.NoError(t, err)
	require.Equal(t, "[]", string(none), "no batch is an empty list, not null")
}

func TestAnAuditTellsApartWhatPeopleWanted(t *testing.T) {
	r := &audit.Report{Shops: 1, Products: 9, Prices: 9, Drifts: []audit.Drift{}, Excluded: []audit.Drift{
		{Shop: "main", ProductID: "7", Kind: audit.Price, Field: "variant 1 price", Want: "1", Have: "2"},
		{Shop: "main", ProductID: "7", Kind: audit.Field, Field: "title", Want: "a", Have: "b"},
	}, Cancelled: []audit.Drift{{Shop: "main", ProductID: "8", Kind: audit.Missing, Field: "product", Want: "in the shop", Have: "absent"}}}
	require.True(t, r.Clean())
	require.Contains(t, auditSentence(r), ": no drift; excluded: 2 differences of 1 product; cancelled: 1 difference of 1 product")
	var out bytes.Buffer
	require.NoError(t, auditTable(r, 1).write(&out))
	require.Regexp(t, `7 +PRICE \(excluded\)`, out.String())
	require.Contains(t, out.String(), "... and 1 more (excluded)")
	require.Regexp(t, `8 +MISSING \(cancelled\)`, out.String())
}

func TestABatchIsShownWithWhatFailed(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	v := viewBatch(&state.Batch{
		ID: "b1", Status: state.BatchCompleted, Total: 2, Succeeded: 1, Failed: 1, StartedAt: at, EndedAt: at.Add(time.Second),
		Errors: []state.BatchErrors{{Category: "VALIDATION", Count: 1, ProductID: "7", Shop: "main", Message: "no title"}},
	}, at)
	var out bytes.Buffer
	require.NoError(t, batchSheet(&v).write(&out))
	require.Contains(t, out.String(), "items    2: 1 succeeded, 1 failed, 0 skipped")
	require.Contains(t, out.String(), "failed   1 VALIDATION, such as product 7 in shop main: no title")
	out.Reset()
	require.NoError(t, batchTable([]batchView{v}).write(&out))
	require.Contains(t, out.String(), "1s    ")
	require.Contains(t, out.String(), "1 VALIDATION\n")

	v = viewBatch(&state.Batch{ID: "b2", Status: state.BatchFailed, Reason: "not whole: the slot is gone"}, at)
	out.Reset()
	require.NoError(t, batchSheet(&v).write(&out))
	require.Contains(t, out.String(), "reason  not whole: the slot is gone\n")
}

func TestReplaySaysWhatToLookAt(t *testing.T) {
	out := []replayed{{Product: "1", Status: "SUCCESS"}, {Product: "2", Status: replayParked}, {Product: "3", Shop: "a", Status: "FAILED"}, {Product: "3", Shop: "b", Status: "FAILED"}}
	require.NoError(t, replayError(out, 0), "without waiting, parked is how it should be")
	require.EqualError(t, replayError(out, time.Second), "1 product still parked after 1s (does shelfwire run?): 2; 1 product failed: 3")
	out = append(out, replayed{Product: "4", Status: replayUnknown}, replayed{Product: "5", Status: replayUnknown})
	require.EqualError(t, replayError(out, 0), "2 products unknown to the source and to every shop: 4, 5")
}
