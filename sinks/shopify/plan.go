package shopify

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Reasons of SKIPPED and of what takes a product off sale, beside the document's own.
const (
	ReasonUnchanged = "UNCHANGED"
	ReasonNoRow     = "NO_ROW" // the source has no row any more
	ReasonMoved     = "MOVED"  // the product belongs to other shops now
)

// steps is what Plan hands to Send in work.Plan.Steps.
type steps struct {
	known knowledge
	first decision
}

// knowledge is what is known of one product in one shop.
type knowledge struct {
	// shadow is nil where the shop has no such product, as far as is known.
	shadow *Shadow
	// memory is what a creation without an answer may have put into the shop; nil where there was none.
	memory *Shadow
	// sure is false where the shop must be read before anything is written.
	sure bool
	// fresh says that shadow was read from the shop for this very push.
	fresh bool
}

// decision is what has to happen to one product next.
type decision struct {
	// read: what to do depends on what the shop has; the rest of the decision is what is expected.
	read bool
	ops  []*op
	// rows are the stock rows; they share inventorySetQuantities with those of other products.
	rows    []stockRow
	words   []string
	effects []work.Effect
	lane    work.Lane
	// refused says why the document cannot be pushed at all.
	refused *refusal
	// shadow is the shadow without what the document does not own any more; ops change it further.
	shadow *Shadow
	// reason stands in the outcome: NOT_APPROVED for a product that was taken off sale.
	reason string
	// skipped: nothing happens for this reason.
	skipped string
}

func (d *decision) idle() bool { return !d.read && len(d.ops) == 0 && len(d.rows) == 0 }

// Plan decides what a push sends: the cheapest set of mutations that brings the shop from the last shadow to the
// document. It is pure. Where the state does not know what the shop has (no record, or a request without an answer),
// the plan is to read the shop first; Words, Effects and Points then say what is expected.
func Plan(p work.Push) work.Plan {
	known := knowledge{shadow: parseShadow(p.Known.Shadow)}
	if known.shadow != nil && known.shadow.ID == "" {
		known.memory, known.shadow = known.shadow, nil
	}
	if known.shadow == nil && p.Known.ShopifyID != "" {
		known.shadow = newShadow(p.Known.ShopifyID)
		known.shadow.Doubt = true
	}
	if adds := intended(p.Known.Intents); len(adds) > 0 {
		if known.shadow == nil && known.memory == nil {
			known.memory = newShadow("")
		}
		for _, s := range []*Shadow{known.shadow, known.memory} {
			if s != nil {
				s.maybe(adds)
			}
		}
	}
	known.sure = len(p.Known.Intents) == 0 && known.shadow != nil && !known.shadow.Doubt
	d := decide(p, known)
	plan := work.Plan{Push: p, Words: strings.Join(d.words, "; "), Effects: d.effects, Lane: d.lane}
	for _, o := range d.ops {
		plan.Points += o.points
	}
	plan.Points += stockPoints(d.rows)
	if d.refused != nil || d.idle() {
		plan.Nothing = true
		plan.Result = finish(p, known.shadow, &d)
		return plan
	}
	if d.read {
		plan.Words = strings.TrimPrefix("read the shop; "+plan.Words, "; ")
		plan.Points++ // the look-up by custom id; the whole product is read only when it is there
	}
	plan.Steps = &steps{known: known, first: d}
	return plan
}

// decide is the planner proper. It is asked again after each round of a Send until nothing is left to do.
func decide(p work.Push, k knowledge) decision {
	switch {
	case p.Gone:
		return decideOff(p, k, statusArchived, ReasonNoRow)
	case p.Moved:
		return decideOff(p, k, statusDraft, ReasonMoved)
	case p.Document == nil:
		return decision{refused: refuse("", "the documents query returned no document")}
	case !p.Document.Eligible:
		return decideOff(p, k, statusDraft, p.Document.Reason)
	}
	if r := check(p.Document); r != nil {
		return decision{refused: r, shadow: k.shadow}
	}
	if k.shadow == nil || k.shadow.Doubt && len(k.shadow.Variants) == 0 {
		d := decision{read: !k.sure, lane: work.LaneContent}
		if k.shadow != nil { // only its id is known: it will be compared when it is read
			d.words = []string{"compare all"}
			return d
		}
		if r := checkCreation(p.Document); r != nil {
			if k.sure {
				return decision{refused: r}
			}
			return d // the shop may have it already
		}
		o, words := creation(p)
		d.ops, d.words = []*op{o}, []string{words}
		return d
	}
	d := decideUpdate(p, k)
	if !k.sure {
		d.read = true
	}
	return d
}

// decideOff takes a product off sale: DRAFT where it may come back, ARCHIVED where it is gone.
func decideOff(p work.Push, k knowledge, status, reason string) decision {
	if k.shadow == nil {
		// Nobody has ever pushed it. Only a creation without an answer may have left something in the shop.
		if !k.sure && len(p.Known.Intents) > 0 {
			return decision{read: true, words: []string{"look whether it was created"}, lane: work.LaneContent}
		}
		return decision{skipped: reason}
	}
	if k.sure && (k.shadow.Status == status || k.shadow.Status == statusArchived) {
		return decision{skipped: reason, shadow: k.shadow}
	}
	d := decision{read: !k.sure, shadow: k.shadow, reason: reason, lane: work.LaneLive}
	if k.shadow.onSale() || !k.sure && !p.Known.OffSale {
		d.effects = []work.Effect{work.EffectOffSale}
	}
	d.words = []string{fmt.Sprintf("set to %s (%s)", status, reason)}
	d.ops = []*op{updateOp(k.shadow.ID, map[string]any{"status": status}, nil, func(s *Shadow, _ map[string]any) {
		s.Status = status
	})}
	return d
}

// decideUpdate compares a product that the shop has with its document, part by part. The order of the mutations is
// the order in which they are sent: variants before what refers to them, going on sale last.
func decideUpdate(p work.Push, k knowledge) decision {
	doc := p.Document
	d := decision{shadow: k.shadow.clone(), lane: work.LaneContent}
	d.shadow.foreign = k.shadow.foreign
	u := &update{doc: doc, old: k.shadow, d: &d, fresh: k.fresh, quiet: len(p.Known.Intents) == 0 && k.sure}
	if u.quiet {
		d.shadow.Former = additions{}
	}
	u.variants()
	if d.refused != nil {
		return d
	}
	u.metafields()
	u.tags()
	images := u.images()
	u.publications()
	u.product(images)
	if d.idle() {
		d.skipped = ReasonUnchanged
	}
	return d
}

// update is one comparison of a document with what was pushed last.
type update struct {
	doc   *document.Document
	old   *Shadow // what the shop has
	d     *decision
	fresh bool
	// quiet: no request is on its way that could still add something of ours.
	quiet bool
}

func (u *update) add(o *op) { u.d.ops = append(u.d.ops, o) }
func (u *update) say(format string, args ...any) {
	u.d.words = append(u.d.words, fmt.Sprintf(format, args...))
}
func (u *update) urgent() { u.d.lane = work.LaneLive }

// read gives up what was decided: ids are missing that only the shop knows.
func (u *update) read() { u.d.read = true }

func (u *update) effect(e work.Effect) {
	if !slices.Contains(u.d.effects, e) {
		u.d.effects = append(u.d.effects, e)
	}
}

// updateOp is a productUpdate of some fields, with images to append.
func updateOp(id string, product map[string]any, media []any, done func(*Shadow, map[string]any)) *op {
	product["id"] = id
	vars := map[string]any{"product": product, "images": max(1, len(media)), "withImages": len(media) > 0}
	if len(media) > 0 {
		vars["media"] = media
	}
	o := newOp("productUpdate", vars)
	o.done = done
	return o
}

// finish is the result of a push for which nothing (more) is to be sent.
func finish(p work.Push, s *Shadow, d *decision) work.Result {
	r := work.Result{ProductID: p.ProductID, Shop: p.Shop, ShopifyID: p.Known.ShopifyID, OffSale: p.Known.OffSale}
	if s != nil {
		r.ShopifyID = s.ID
		r.VariantIDs = s.variantIDs(p.Document)
		if s.Status != "" {
			r.OffSale = !s.onSale()
		}
	}
	if d.refused != nil {
		r.Status, r.Category = event.Failed, event.Validation
		r.Message, r.Field = d.refused.message, d.refused.field
		r.Unanswered = len(p.Known.Intents) > 0 // nobody has read yet what became of them
		return r
	}
	r.Status, r.Reason = event.Skipped, d.skipped
	if d.shadow != nil && d.skipped == ReasonUnchanged {
		// What is not owned any more leaves the shadow although nothing is sent.
		marked := *d.shadow
		if p.Raw != nil && len(p.Known.Intents) == 0 && len(d.shadow.Former) == 0 {
			marked.Same = markSame(p.Raw)
		}
		if raw, err := marked.encode(); err == nil && string(raw) != string(p.Known.Shadow) {
			r.Shadow = raw
		}
	}
	return r
}
