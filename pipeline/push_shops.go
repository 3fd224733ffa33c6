package pipeline

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// probeEvery is how often a dead shop is tried.
const probeEvery = time.Minute

// healthMap is what is known of the shops, replaced as a whole.
type healthMap struct {
	p atomic.Pointer[map[string]work.ShopHealth]
}

func (h *healthMap) get(shop string) work.ShopHealth {
	if m := h.p.Load(); m != nil {
		return (*m)[shop]
	}
	return work.ShopHealth{}
}

// holdNews remembers which holds were told of.
type holdNews struct {
	mu   sync.Mutex
	said map[string]time.Time
}

// say tells of a hold, once a minute while products join it.
func (n *holdNews) say(ctx context.Context, log *slog.Logger, shop string, effect work.Effect) {
	n.mu.Lock()
	defer n.mu.Unlock()
	key, now := shop+"/"+string(effect), time.Now()
	if at, ok := n.said[key]; ok && now.Sub(at) < time.Minute {
		return
	}
	if n.said == nil {
		n.said = map[string]time.Time{}
	}
	n.said[key] = now
	log.WarnContext(ctx, "the guard holds pushes until somebody releases or rejects them: shelfwire holds", "hold", key)
}

// watchShops keeps the picture of the shops' health fresh: other workers and people change it too.
func (p *Push) watchShops(ctx context.Context) error {
	for {
		shops, err := p.parts.Shops.Shops(ctx)
		var pauses work.Pauses
		if err == nil {
			pauses, err = p.parts.Shops.Pauses(ctx)
		}
		switch {
		case err == nil:
			m := make(map[string]work.ShopHealth, len(shops))
			for _, s := range shops {
				m[s.Shop] = s
			}
			p.health.p.Store(&m)
			p.pauses.Store(&pauses)
			p.troubles.end(ctx, p.log, waitShops)
		case ctx.Err() == nil:
			p.troubles.begin(ctx, p.log, waitShops, err)
		}
		if !sleep(ctx, time.Second) {
			return nil
		}
	}
}

// paused reports whether people have stopped pushes to the shop in this lane. Before the first look everything is: a
// process that starts again sends nothing that was stopped.
func (p *Push) paused(shop string, lane work.Lane) bool {
	z := p.pauses.Load()
	return z == nil || z.Stops(shop, lane)
}

// closed says why a shop takes nothing now ("" when it does), and whether this caller may probe a dead one.
func (p *Push) closed(shop string, now time.Time) (reason string, probe bool) {
	h := p.health.get(shop)
	switch {
	case h.Paused:
		return "PAUSED", false
	case h.DeadSince.IsZero():
		return "", false
	case now.Before(h.NextProbe):
		return "SHOP_DEAD", false
	}
	return "", true
}

// closedShops are the shops whose parked products wait. A dead shop whose probe is due is open.
func (p *Push) closedShops() []string {
	var out []string
	if m := p.health.p.Load(); m != nil {
		for shop := range *m {
			if reason, _ := p.closed(shop, time.Now()); reason != "" {
				out = append(out, shop)
			}
		}
	}
	return out
}

// claimProbe lets one product of all workers' through to a dead shop, and keeps all others back for a minute.
func (p *Push) claimProbe(ctx context.Context, shop string) bool {
	now := time.Now()
	mine, err := p.parts.Shops.ClaimProbe(ctx, shop, now.Add(probeEvery))
	wait := time.Second // another worker has it, or the state is away: the next look tells
	if err == nil && mine {
		wait = probeEvery
	}
	p.changeHealth(shop, func(h *work.ShopHealth) { h.NextProbe = now.Add(wait) })
	return err == nil && mine
}

func (p *Push) markDead(ctx context.Context, shop, reason string) error {
	next := time.Now().Add(probeEvery)
	if err := p.parts.Shops.SetShopDead(ctx, shop, reason, true, next); err != nil {
		return err
	}
	p.changeHealth(shop, func(h *work.ShopHealth) {
		if h.DeadSince.IsZero() {
			h.DeadSince = time.Now()
		}
		h.Reason, h.NextProbe = reason, next
	})
	return nil
}

func (p *Push) changeHealth(shop string, f func(*work.ShopHealth)) {
	for {
		old := p.health.p.Load()
		m := map[string]work.ShopHealth{}
		if old != nil {
			maps.Copy(m, *old)
		}
		h := m[shop]
		h.Shop = shop
		f(&h)
		m[shop] = h
		if p.health.p.CompareAndSwap(old, &m) {
			return
		}
	}
}

// noteHealth draws the conclusion from a shop's answers: dead when it refused everything or answers nothing, alive at any real answer.
func (p *Push) noteHealth(ctx context.Context, shop string, results []work.Result) {
	dead, alive, reason := false, false, ""
	for i := range results {
		switch {
		case results[i].ShopDead:
			dead, reason = true, results[i].Message
		case results[i].Status == event.Success, results[i].Status == event.Failed, results[i].Status == event.Skipped:
			alive = true
		}
	}
	was := !p.health.get(shop).DeadSince.IsZero()
	switch {
	case dead && !alive:
		if !was {
			p.log.ErrorContext(ctx, "shop takes nothing; its products wait, and one a minute tries it", "shop", shop, "reason", reason)
		}
		if err := p.markDead(ctx, shop, reason); err != nil {
			p.log.WarnContext(ctx, "dead shop not noted", "shop", shop, "error", err)
		}
	case alive && was:
		p.log.InfoContext(ctx, "shop answers again", "shop", shop)
		if err := p.parts.Shops.SetShopDead(ctx, shop, "", false, time.Time{}); err != nil {
			p.log.WarnContext(ctx, "revived shop not noted", "shop", shop, "error", err)
			return
		}
		p.changeHealth(shop, func(h *work.ShopHealth) { h.DeadSince, h.Reason = time.Time{}, "" })
	}
}
