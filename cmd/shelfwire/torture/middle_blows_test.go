package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
	"github.com/shelfwire/shelfwire/sinks/state"
)

var errMisfortune = errors.New("misfortune")

// befall is what happens to a hand at a step: nothing, as a rule.
func (m *middle) befall(h *hand, step string) error {
	list := m.unlucky.Load()
	if list == nil {
		return nil
	}
	i := slices.IndexFunc(*list, func(s *misstep) bool { return s.step == step && s.left.Add(-1) >= 0 })
	if i < 0 {
		return nil
	}
	s := (*list)[i]
	m.hits.Add(1)
	_, _ = fmt.Fprintf(&m.log, "%s === %s: %s %s\n", time.Now().Format(time.RFC3339Nano), h.name, s.what, step)
	switch s.what {
	case "kill":
		h.strike()
		return errKilled
	case "freeze":
		h.freeze()
		time.AfterFunc(s.span, h.thaw)
		return nil
	default:
		return fmt.Errorf("%s: %w", step, errMisfortune)
	}
}

// strike does what a blow says.
func (m *middle) strike(b blow) {
	ctx := m.t.Context()
	rng := rand.New(rand.NewPCG(b.pick, 0xb10))
	what, who, _ := strings.Cut(b.kind, " ")
	switch {
	case strings.HasSuffix(b.kind, "at a step"):
		m.doom(what, b.span, rng)
	case b.kind == "kill the server":
		m.server.now().Kill()
		rest(ctx, b.span)
		m.server.start(nil)
	case what == "kill":
		m.hands[m.plan.some(rng, who)].strike()
		rest(ctx, b.span)
	case what == "stop":
		place := m.plan.some(rng, who)
		m.hands[place].stop()
		m.enter(place)
	case what == "freeze":
		h := m.hands[m.plan.some(rng, who)]
		h.freeze()
		rest(ctx, middleLease+b.span)
		h.thaw()
	case b.kind == "storm":
		m.storm(rng)
	case b.kind == "broker errors":
		end := m.broker.trouble(rng)
		rest(ctx, b.span)
		end()
	case b.kind == "end backends":
		m.server.exec("postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN (split_part($1, ' ', 1), split_part($1, ' ', 2))`,
			fmt.Sprintf("source_%d state_%d", m.plan.seed, m.plan.seed))
	case b.kind == "cut connections", b.kind == "silence", b.kind == "delays":
		m.disturb(b, m.hands[m.plan.places[rng.IntN(len(m.plan.places))]], rng)
	default:
		err := m.intervene(ctx, b, rng)
		for tries := 0; err != nil && tries < 3; tries++ { // an earlier blow has ended a connection of ours as well
			err = m.intervene(ctx, b, rng)
		}
		require.NoError(m.t, err, b.kind)
	}
}

// doom draws a few steps that go wrong when somebody comes to them. They stand beside those that were drawn before.
func (m *middle) doom(what string, span time.Duration, rng *rand.Rand) {
	var list []*misstep
	if old := m.unlucky.Load(); old != nil {
		list = slices.Clone(*old)
	}
	for range 1 + rng.IntN(3) {
		s := &misstep{step: []string{"before ", "after "}[rng.IntN(2)] + middleSteps[rng.IntN(len(middleSteps))], what: what, span: middleLease + span}
		s.left.Store(1)
		if what == "fail" {
			s.left.Store(1 + rng.Int64N(4))
		}
		list = append(list, s)
	}
	m.unlucky.Store(&list)
}

// disturb is trouble on a hand's way to Postgres.
func (m *middle) disturb(b blow, h *hand, rng *rand.Rand) {
	switch b.kind {
	case "cut connections":
		h.proxy.drop()
	case "silence":
		h.proxy.cut()
		rest(m.t.Context(), 2*b.span)
		h.proxy.mend()
	default:
		h.proxy.slow(time.Duration(1+rng.IntN(15)) * time.Millisecond)
		rest(m.t.Context(), 2*b.span)
		h.proxy.slow(0)
	}
}

// storm has workers join and leave, by day and by night.
func (m *middle) storm(rng *rand.Rand) {
	for i := range 3 + rng.IntN(3) {
		place := fmt.Sprintf("%s-storm%d", []string{"push", "push", "expand", "relay"}[rng.IntN(4)], i)
		h := m.enter(place)
		rest(m.t.Context(), time.Duration(rng.IntN(300))*time.Millisecond)
		if rng.IntN(2) == 0 {
			h.strike()
		} else {
			h.stop()
		}
		delete(m.hands, place)
	}
}

// intervene is what shops and people do.
func (m *middle) intervene(ctx context.Context, b blow, rng *rand.Rand) error {
	shop := demo.Stores()[rng.IntN(2)].Name
	switch b.kind {
	case "shop dead":
		kinds := []shopifysim.FaultKind{
			shopifysim.Unauthorized, shopifysim.PaymentRequired, shopifysim.Forbidden, shopifysim.Locked, shopifysim.Unavailable, shopifysim.LostResponse,
		}
		m.sim.Shop(shop).SetHealth(kinds[rng.IntN(len(kinds))])
		rest(ctx, 2*b.span)
		m.sim.Shop(shop).SetHealth(shopifysim.Healthy)
	case "shop throttled":
		m.sim.Shop(shop).SetPoints(0)
	case "documents fail":
		m.documents.Store(documentsFail)
		rest(ctx, 2*b.span)
		m.documents.Store(documentsRight)
	case "documents are wrong":
		m.documents.Store(documentsWrong)
		rest(ctx, 300*time.Millisecond+2*b.span)
		m.documents.Store(documentsRight)
		return m.replayAll(ctx)
	case "replay":
		ids, err := query[string](ctx, m.sourceURL, `SELECT id::text FROM catalog.products ORDER BY hashint8(id + $1) LIMIT 5`, rng.IntN(1000))
		if err != nil {
			return err
		}
		return m.replay(ctx, ids)
	case "request a snapshot":
		id := fmt.Sprintf("asked-%d", len(m.asked))
		table := []string{"catalog.products", "catalog.variants", "catalog.stock"}[rng.IntN(3)]
		_, err := query[string](ctx, m.sourceURL, `SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', $1)::text`, fmt.Sprintf(`{"id": %q, "table": %q}`, id, table))
		m.asked = append(m.asked, id)
		return err
	case "touch all":
		_, err := m.state.Touch(ctx, partitions, false)
		return err
	default:
		return m.administer(ctx, b, rng, shop)
	}
	return nil
}

// administer is what people do with what waits.
func (m *middle) administer(ctx context.Context, b blow, rng *rand.Rand, shop string) error {
	switch b.kind {
	case "pause":
		what, err := m.pausable(ctx, rng, shop)
		if err != nil || what == "" {
			return err
		}
		if _, err := m.state.Pause(ctx, what, "torture"); err != nil && !errors.Is(err, state.ErrNoCampaign) {
			return err
		}
		rest(ctx, 2*b.span)
		if rng.IntN(2) == 0 { // else it stays so until the end
			_, err = m.state.Resume(ctx, what)
		}
		return err
	case "cancel":
		open, err := m.state.Campaigns(ctx, state.CampaignFilter{Open: true})
		if err != nil || len(open) == 0 {
			return err
		}
		err = m.state.CancelCampaign(ctx, open[rng.IntN(len(open))].ID)
		if errors.Is(err, state.ErrCampaignEnded) || errors.Is(err, state.ErrBatchEnded) {
			return nil
		}
		if err != nil {
			return err
		}
		return m.replayAll(ctx) // what was cancelled would stay as it is
	case "exclude":
		return m.exclude(ctx, b, rng, shop)
	case "retry":
		ids, err := query[string](ctx, m.stateURL, `SELECT DISTINCT batch_id FROM batch_items WHERE status = 'FAILED'`)
		if err != nil || len(ids) == 0 {
			return err
		}
		_, err = m.state.RetryBatch(ctx, ids[rng.IntN(len(ids))], 3, partitions)
		if errors.Is(err, state.ErrBatchCancelling) {
			err = nil
		}
		return err
	case "release", "reject":
		for _, effect := range []work.Effect{work.EffectOffSale, work.EffectZeroPrice} {
			end := m.state.ReleaseHold
			if b.kind == "reject" {
				end = m.state.RejectHold
			}
			if err := end(ctx, shop, effect); err != nil && !errors.Is(err, state.ErrNoHold) {
				return err
			} else if err == nil && b.kind == "reject" {
				if err := m.replayAll(ctx); err != nil {
					return err
				}
			}
		}
		return nil
	case "clock":
		return m.stepClock(ctx, !m.plan.late && rng.IntN(2) == 0)
	default:
		return fmt.Errorf("no such blow: %s", b.kind)
	}
}

// pausable draws what somebody stops.
func (m *middle) pausable(ctx context.Context, rng *rand.Rand, shop string) (string, error) {
	switch rng.IntN(5) {
	case 0:
		return state.PauseAll, nil
	case 1:
		return state.PauseLane(work.Lane(rng.IntN(4))), nil
	case 2:
		return state.PauseShop(shop), nil
	}
	open, err := m.state.Campaigns(ctx, state.CampaignFilter{Open: true})
	if err != nil || len(open) == 0 {
		return "", err
	}
	return state.PauseCampaign(open[rng.IntN(len(open))].ID), nil
}

func (m *middle) exclude(ctx context.Context, b blow, rng *rand.Rand, shop string) error {
	ids, err := query[string](ctx, m.sourceURL, `SELECT id::text FROM catalog.products ORDER BY id OFFSET $1 LIMIT 1`, rng.IntN(middleProducts/2))
	if err != nil || len(ids) == 0 {
		return err
	}
	if rng.IntN(2) == 0 {
		shop = ""
	}
	if _, err := m.state.Exclude(ctx, ids[0], shop, "torture"); err != nil {
		return err
	}
	rest(ctx, b.span)
	if rng.IntN(2) == 0 { // else until the end
		return m.state.Include(ctx, ids[0], shop, partitions)
	}
	return nil
}

// replay pushes products again, as the command of that name does.
func (m *middle) replay(ctx context.Context, ids []string) error {
	now := time.Now()
	campaign := fmt.Sprintf("replay/%d", now.UnixNano())
	var rows []work.Parked
	for _, id := range ids {
		rows = append(rows, work.Parked{
			ProductID: id, Partition: change.Partition(change.ProductID(id), partitions), Lane: work.LaneCampaign, Due: now, Reason: "REPLAY",
			CampaignID: campaign, Changes: 1, FirstCommit: now, LastCommit: now,
		})
	}
	m.replayed += len(rows)
	return m.state.Park(ctx, rows)
}

// replayAll is what follows a mistake that somebody has mended: everything that is or was is evaluated again.
func (m *middle) replayAll(ctx context.Context) error {
	ids, err := query[string](ctx, m.sourceURL, `SELECT id::text FROM catalog.products`)
	if err == nil {
		err = m.replay(ctx, ids)
	}
	if err == nil {
		_, err = m.state.Touch(ctx, partitions, false)
	}
	return err
}
