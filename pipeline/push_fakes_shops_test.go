package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

func (w *world) Shops(context.Context) ([]work.ShopHealth, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.health)), nil
}

func (w *world) Pauses(context.Context) (work.Pauses, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pauses, nil
}

func (w *world) ClaimProbe(_ context.Context, shop string, next time.Time) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.health[shop]
	if h.DeadSince.IsZero() || time.Now().Before(h.NextProbe) {
		return false, nil
	}
	h.NextProbe = next
	w.health[shop] = h
	return true, nil
}

func (w *world) SetShopDead(_ context.Context, shop, reason string, dead bool, next time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := work.ShopHealth{Shop: shop}
	if dead {
		h.DeadSince, h.Reason, h.NextProbe = time.Now(), reason, next
	} else {
		for k, p := range w.parked {
			if p.Shop == shop && p.Reason == "SHOP_DEAD" {
				p.Due = time.Now()
				w.parked[k] = p
			}
		}
	}
	w.health[shop] = h
	return nil
}

// Same is as quick as Plan would be right.
func (w *world) Same(k *work.Known, raw json.RawMessage) bool {
	var d struct{ Title string }
	return json.Unmarshal(raw, &d) == nil && k.LastStatus == event.Skipped && k.LastReason == "UNCHANGED" && k.Attempt == 0 &&
		len(k.Intents) == 0 && string(k.Shadow) == strconv.Quote(d.Title)
}

// Plan sends whatever differs from what was sent last; a title OFF takes the product off sale.
func (w *world) Plan(p work.Push) work.Plan {
	plan := work.Plan{Push: p, Words: "update", Points: 10}
	title := ""
	if p.Document != nil {
		title = p.Document.Title.Value
	}
	if string(p.Known.Shadow) == strconv.Quote(title) && len(p.Known.Intents) == 0 {
		plan.Nothing = true
		plan.Result = work.Result{ProductID: p.ProductID, Shop: p.Shop, Status: event.Skipped, Reason: "UNCHANGED"}
	}
	if title == "OFF" || p.Gone || p.Moved {
		plan.Effects = []work.Effect{work.EffectOffSale}
	}
	plan.Steps = title
	return plan
}

func (w *world) Send(ctx context.Context, shop string, plans []work.Plan, intend func(context.Context, []work.Intent) error) []work.Result {
	out := make([]work.Result, len(plans))
	key := fmt.Sprintf("%s-%d", shop, time.Now().UnixNano())
	in := work.Intent{Key: key, Shop: shop, At: time.Now()}
	for i, p := range plans {
		in.ProductIDs = append(in.ProductIDs, p.Push.ProductID)
		out[i] = work.Result{ProductID: p.Push.ProductID, Shop: shop, Status: event.Retrying, Category: event.Unknown}
	}
	if err := intend(ctx, []work.Intent{in}); err != nil {
		if !errors.Is(err, work.ErrLeaseLost) {
			w.t.Errorf("intend: %v", err)
		}
		return out
	}
	w.mu.Lock()
	for _, p := range plans {
		k := shop + ":" + p.Push.ProductID
		w.sent = append(w.sent, k)
		w.inFlight[k]++
		if w.inFlight[k] > 1 {
			w.t.Errorf("%s is pushed twice at once", k)
		}
	}
	slow, answer := w.slow, w.answer
	w.mu.Unlock()
	time.Sleep(slow) // in the bubble
	for i, p := range plans {
		res := work.Result{
			Status: event.Success, ShopifyID: "gid://" + p.Push.ProductID, SentAt: time.Now(), AnsweredAt: time.Now(),
			Shadow: json.RawMessage(strconv.Quote(p.Steps.(string))),
		}
		if answer != nil {
			res = answer(shop, p.Push.ProductID)
		}
		res.ProductID, res.Shop = p.Push.ProductID, shop
		out[i] = res
		w.mu.Lock()
		w.inFlight[shop+":"+p.Push.ProductID]--
		w.mu.Unlock()
	}
	return out
}

// outcomes lists "product shop STATUS REASON" in order.
func (w *world) outcomes() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.outbox {
		var o event.Outcome
		if r.Topic == "catalog."+event.Outcomes && json.Unmarshal(r.Value, &o) == nil {
			out = append(out, fmt.Sprintf("%s %s %s %s", o.ProductID, o.Shop, o.Status, o.Reason))
		}
	}
	return out
}
