package shopify

import (
	"slices"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
)

// optionPlan is how the options change without replacing a variant.
type optionPlan struct {
	ops []*op
	// renames is, for each option, the new name of a value.
	renames []map[string]string
}

// renamed is what a variant's options are after the renames.
func (p *optionPlan) renamed(values []string) []string {
	out := slices.Clone(values)
	for i := range min(len(out), len(p.renames)) {
		if to, ok := p.renames[i][out[i]]; ok {
			out[i] = to
		}
	}
	return out
}

// sameOptions reports whether names, values and their order are what the document wants. Values that no variant has
// are not seen by buyers and do not count.
func (u *update) sameOptions() bool {
	have := u.d.shadow.Options
	if len(have) != len(u.doc.Options.Value) {
		return false
	}
	for i, o := range u.doc.Options.Value {
		if have[i].Name != o.Name || !slices.Equal(kept(have[i].Values, nil, o.Values), o.Values) {
			return false
		}
	}
	return true
}

// kept are the values after the renames that the document still has, in the shop's order.
func kept(values []ShadowValue, renames map[string]string, want []string) []string {
	var out []string
	for _, v := range values {
		name := v.Name
		if to, ok := renames[name]; ok {
			name = to
		}
		if slices.Contains(want, name) {
			out = append(out, name)
		}
	}
	return out
}

// planOptions finds the option mutations that lead from the shop's options to the document's: names and values are
// renamed in place, new values appended. False where that is not enough: another number or order of options, values
// that come in between, variants that trade their options.
func (u *update) planOptions(c *variantChanges) (*optionPlan, bool) {
	have, want := u.d.shadow.Options, u.doc.Options.Value
	if len(have) != len(want) {
		return nil, false
	}
	plan := &optionPlan{}
	for i := range want {
		plan.renames = append(plan.renames, u.valueRenames(i))
	}
	if u.trading(plan, c) {
		return nil, false
	}
	for i, o := range want {
		if have[i].Name != o.Name && slices.ContainsFunc(have, func(h ShadowOption) bool { return h.Name == o.Name }) {
			return nil, false
		}
		stay := kept(have[i].Values, plan.renames[i], o.Values)
		if !slices.Equal(stay, o.Values[:len(stay)]) {
			return nil, false
		}
		fresh := o.Values[len(stay):]
		if slices.Equal(fresh, u.occurring(plan, c, i, stay)) {
			fresh = nil // the variants bring their values along, in this order
		}
		if have[i].Name == o.Name && len(plan.renames[i]) == 0 && len(fresh) == 0 {
			continue
		}
		op, ok := u.optionUpdate(i, o, plan.renames[i], fresh)
		if !ok {
			return nil, false
		}
		plan.ops = append(plan.ops, op)
		u.say("option %s", o.Name)
	}
	return plan, true
}

// valueRenames finds values of one option that all their variants trade for the same new one.
func (u *update) valueRenames(i int) map[string]string {
	want := u.doc.Options.Value[i].Values
	targets := map[string]map[string]bool{}
	for k := range u.doc.Variants.Value {
		v := &u.doc.Variants.Value[k]
		sv := u.d.shadow.Variants[v.Key]
		if sv == nil || i >= len(sv.Options) {
			continue
		}
		if targets[sv.Options[i]] == nil {
			targets[sv.Options[i]] = map[string]bool{}
		}
		targets[sv.Options[i]][v.Options[i]] = true
	}
	out := map[string]string{}
	taken := map[string]bool{}
	for _, have := range u.d.shadow.Options[i].Values {
		taken[have.Name] = true
	}
	for _, have := range u.d.shadow.Options[i].Values {
		to := targets[have.Name]
		if len(to) != 1 || slices.Contains(want, have.Name) {
			continue
		}
		for name := range to {
			if !taken[name] {
				out[have.Name] = name
				taken[name] = true
			}
		}
	}
	return out
}

// trading reports whether a variant wants options that another one, which stays, still has.
func (u *update) trading(plan *optionPlan, c *variantChanges) bool {
	now := map[string]string{}
	for key, sv := range u.d.shadow.Variants {
		if !slices.Contains(c.removed, key) {
			now[tuple(plan.renamed(sv.Options))] = key
		}
	}
	for i := range u.doc.Variants.Value {
		v := &u.doc.Variants.Value[i]
		// A new variant comes after the updates: whoever had its options has left them by then. (One that is being
		// removed cannot have them, as it would have been given to the new key.)
		holder, held := now[tuple(v.Options)]
		if held && holder != v.Key && u.d.shadow.Variants[v.Key] != nil {
			return true
		}
	}
	return false
}

// occurring lists the new values of an option in the order in which updates and creations mention them.
func (u *update) occurring(plan *optionPlan, c *variantChanges, i int, stay []string) []string {
	var out []string
	note := func(v *document.Variant) {
		if name := v.Options[i]; !slices.Contains(stay, name) && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	for _, key := range c.keys {
		if v := u.variant(key); !slices.Equal(plan.renamed(u.d.shadow.Variants[key].Options), v.Options) {
			note(v)
		}
	}
	for _, v := range c.created {
		note(v)
	}
	return out
}

// optionUpdate renames an option and its values and appends new ones. False where an id is missing even after a read.
func (u *update) optionUpdate(i int, want document.Option, renames map[string]string, fresh []string) (*op, bool) {
	have := u.d.shadow.Options[i]
	option := map[string]any{"id": have.ID}
	missing := have.ID == ""
	if have.Name != want.Name {
		option["name"] = want.Name
	}
	vars := map[string]any{"productId": u.old.ID, "option": option}
	var updates, adds []any
	for _, v := range have.Values {
		if to, ok := renames[v.Name]; ok {
			missing = missing || v.ID == ""
			updates = append(updates, map[string]any{"id": v.ID, "name": to})
		}
	}
	for _, v := range fresh {
		adds = append(adds, map[string]any{"name": v})
	}
	if len(updates) > 0 {
		vars["update"] = updates
	}
	if len(adds) > 0 {
		vars["add"] = adds
	}
	if missing {
		if u.fresh {
			return nil, false
		}
		u.read()
	}
	o := newOp("productOptionUpdate", vars)
	o.done = func(s *Shadow, payload map[string]any) {
		for _, sv := range s.Variants {
			if to, ok := renames[sv.Options[i]]; ok {
				sv.Options[i] = to
			}
		}
		s.takeOptions(payload)
	}
	return o, true
}

// restructure replaces options and variants by one productSet. Its lists delete what they omit, so it is sent only
// when a read made a moment ago shows that every variant of the product is ours.
func (u *update) restructure(c *variantChanges) {
	u.say("new structure of the options")
	if !u.fresh {
		u.read()
		return
	}
	if n := u.old.foreign; n > 0 {
		u.d.refused = refuse("options", "the options cannot be changed in this way while the shop has %s that %s not ours",
			count(n, "variant"), map[bool]string{true: "is", false: "are"}[n == 1])
		return
	}
	// Shopify takes an entry without an id for the variant that has its options now. Where a new variant gets the
	// options that another one leaves, it has to wait for the next round.
	later := u.inherits()
	created := c.created
	if later {
		created = nil
	}
	parts := creationParts{variantMetafields: true, keys: true}
	o := u.setVariants(c, created, parts)
	for _, drop := range []*bool{&parts.variantMetafields, &parts.keys} {
		if o.points <= cost.MaxPerRequest {
			break
		}
		*drop = false
		o = u.setVariants(c, created, parts)
	}
	doc, fields := u.doc, c.fields
	o.done = func(s *Shadow, payload map[string]any) {
		restructured(s, doc, created, fields, parts.variantMetafields, payload)
	}
	u.add(o)
}

// setVariants is the productSet of a new structure. New variants come without stock: a productSet that updates takes
// quantities only at locations where the item is stocked already. The next round sets it.
func (u *update) setVariants(c *variantChanges, created []*document.Variant, parts creationParts) *op {
	have, want := u.d.shadow.Options, u.doc.Options.Value
	var variants []any
	adds := additions{}
	for i := range u.doc.Variants.Value {
		v := &u.doc.Variants.Value[i]
		var in map[string]any
		switch sv := u.d.shadow.Variants[v.Key]; {
		case sv != nil:
			in = variantInput(v, append([]string{}, c.fields[v.Key]...))
			in["id"] = sv.ID
		case !slices.Contains(created, v):
			continue
		default:
			in = variantInput(v, nil)
			var own []any
			if parts.keys {
				own = identity(v)
			}
			if parts.variantMetafields && carries(v) {
				own = append(own, metafieldInput(v.Metafields)...)
				adds.merge(additions{addedVariantMetafields: metafieldKeys(v.Metafields.Value)})
			}
			if len(own) > 0 {
				in["metafields"] = own
			}
		}
		in["optionValues"] = optionValues(want, v.Options)
		variants = append(variants, in)
	}
	o := newOp("productSet", map[string]any{
		"identifier": map[string]any{"id": u.old.ID},
		"input":      map[string]any{"productOptions": optionInput(want, optionIDs(have, want)), "variants": variants},
		"variants":   min(maxInputRows, len(variants)), "images": 1, "withImages": false,
	})
	o.heavy, o.adds = true, adds
	return o
}

// inherits reports whether a new variant gets options that a variant of the shop has and leaves.
func (u *update) inherits() bool {
	for i := range u.doc.Variants.Value {
		v := &u.doc.Variants.Value[i]
		if u.d.shadow.Variants[v.Key] != nil {
			continue
		}
		for _, sv := range u.d.shadow.Variants {
			if slices.Equal(sv.Options, v.Options) {
				return true
			}
		}
	}
	return false
}

// restructured brings a productSet by id into the shadow.
func restructured(s *Shadow, doc *document.Document, created []*document.Variant, fields map[string][]string, metafields bool, payload map[string]any) {
	product := object(payload["product"])
	s.Options = readOptions(list(product["options"]))
	nodes := map[string]map[string]any{}
	for _, n := range list(object(product["variants"])["nodes"]) {
		nodes[text(object(n)["id"])] = object(n)
	}
	byTitle := nodesByTitle(list(object(product["variants"])["nodes"]))
	next := map[string]*ShadowVariant{}
	for i := range doc.Variants.Value {
		v := &doc.Variants.Value[i]
		if sv := s.Variants[v.Key]; sv != nil {
			sv.update(v, fields[v.Key])
			next[v.Key] = sv
			if nodes[sv.ID] == nil {
				s.Doubt = true // the shop has replaced it, or the answer lists only the first of many
			}
		}
	}
	for _, v := range created {
		node := byTitle[strings.Join(v.Options, " / ")]
		if node == nil {
			s.Doubt = true
			continue
		}
		next[v.Key] = createdVariant(v, node, metafields)
		next[v.Key].Stock = map[string]ShadowLevel{}
	}
	s.Variants = next
}

// optionIDs finds the shop's ids of options and values that the document keeps: options by name, else by place.
func optionIDs(have []ShadowOption, want []document.Option) func(option int, value string) (string, string) {
	match := make([]int, len(want))
	used := map[int]bool{}
	for i, o := range want {
		match[i] = slices.IndexFunc(have, func(h ShadowOption) bool { return h.Name == o.Name })
		used[match[i]] = true
	}
	for i := range want {
		if match[i] < 0 && i < len(have) && !used[i] {
			match[i] = i
			used[i] = true
		}
	}
	return func(option int, value string) (string, string) {
		if match[option] < 0 {
			return "", ""
		}
		h := have[match[option]]
		for _, v := range h.Values {
			if v.Name == value {
				return h.ID, v.ID
			}
		}
		return h.ID, ""
	}
}
