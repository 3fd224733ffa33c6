package shopify

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
)

// Names of quantities.
const (
	available = "available"
	onHand    = "on_hand"
)

// variantField is a field of a variant that is compared by its mark.
type variantField struct {
	name string
	// mark returns what the document wants, and whether it owns the field.
	mark func(v *document.Variant) (string, bool)
	// put writes it into an input; item is the input of the variant's inventory item.
	put func(v *document.Variant, in, item map[string]any)
}

// variantFields are the fields of a variant, in the form that productSet and productVariantsBulk* share.
var variantFields = []variantField{
	{
		"price",
		func(v *document.Variant) (string, bool) {
			p, ok := v.Price.Get()
			return markDecimal(p), ok
		},
		func(v *document.Variant, in, _ map[string]any) { in["price"] = v.Price.Value },
	},
	{
		"compareAtPrice",
		func(v *document.Variant) (string, bool) { return decimalMark(v.CompareAtPrice), v.CompareAtPrice.Owned },
		func(v *document.Variant, in, _ map[string]any) { in["compareAtPrice"] = orNull(v.CompareAtPrice) },
	},
	{
		"barcode",
		func(v *document.Variant) (string, bool) { return textMark(v.Barcode), v.Barcode.Owned },
		func(v *document.Variant, in, _ map[string]any) { in["barcode"] = orNull(v.Barcode) },
	},
	{
		"sku",
		func(v *document.Variant) (string, bool) { return textMark(v.SKU), v.SKU.Owned },
		func(v *document.Variant, _, item map[string]any) { item["sku"] = v.SKU.Value },
	},
	{
		"cost",
		func(v *document.Variant) (string, bool) { return decimalMark(v.Cost), v.Cost.Owned },
		func(v *document.Variant, _, item map[string]any) { item["cost"] = orNull(v.Cost) },
	},
	{
		"policy", // cleared: what Shopify does by itself, DENY
		func(v *document.Variant) (string, bool) { return mark(policy(v)), v.Policy.Owned },
		func(v *document.Variant, in, _ map[string]any) { in["inventoryPolicy"] = policy(v) },
	},
	{
		"taxable", // cleared: Shopify's default, true
		func(v *document.Variant) (string, bool) { return boolMark(orTrue(v.Taxable)), v.Taxable.Owned },
		func(v *document.Variant, in, _ map[string]any) { in["taxable"] = orTrue(v.Taxable) },
	},
	{
		"requiresShipping", // cleared: Shopify's default, true
		func(v *document.Variant) (string, bool) {
			return boolMark(orTrue(v.RequiresShipping)), v.RequiresShipping.Owned
		},
		func(v *document.Variant, _, item map[string]any) {
			item["requiresShipping"] = orTrue(v.RequiresShipping)
		},
	},
	{
		"weight",
		func(v *document.Variant) (string, bool) { return weightMark(v.WeightGrams.Value), v.WeightGrams.Owned },
		func(v *document.Variant, _, item map[string]any) {
			item["measurement"] = map[string]any{"weight": map[string]any{"unit": "GRAMS", "value": v.WeightGrams.Value}}
		},
	},
	{
		"tracked", // a variant with stock is tracked; nothing here ever ends the tracking
		func(v *document.Variant) (string, bool) { return boolMark(true), len(v.Stock.Value) > 0 },
		func(_ *document.Variant, _, item map[string]any) { item["tracked"] = true },
	},
}

func policy(v *document.Variant) string {
	if p, ok := v.Policy.Get(); ok {
		return p
	}
	return "DENY"
}

func orNull(f document.Field[string]) any {
	if f.Null || f.Value == "" {
		return nil
	}
	return f.Value
}

func orTrue(f document.Field[bool]) bool { return f.Null || f.Value }

func boolMark(b bool) string { return "=" + strconv.FormatBool(b) }

// roundsToZero reports an amount that a shop, which keeps two places, keeps as 0.
func roundsToZero(amount string) bool {
	f, err := strconv.ParseFloat(amount, 64)
	return err == nil && f < 0.005
}

func weightMark(grams float64) string { return "=" + strconv.FormatFloat(grams, 'f', -1, 64) }

// textMark and decimalMark treat null and the empty text alike: both are cleared.
func textMark(f document.Field[string]) string {
	if orNull(f) == nil {
		return nothing
	}
	return mark(f.Value)
}

func decimalMark(f document.Field[string]) string {
	if orNull(f) == nil {
		return nothing
	}
	return markDecimal(f.Value)
}

// variantInput is the input of a variant with the fields that only names, or with all that a creation needs when only
// is nil: then the price is the first price where the document owns none.
func variantInput(v *document.Variant, only []string) map[string]any {
	in, item := map[string]any{}, map[string]any{}
	for _, f := range variantFields {
		_, owned := f.mark(v)
		if owned && (only == nil || slices.Contains(only, f.name)) {
			f.put(v, in, item)
		}
	}
	if _, priced := v.Price.Get(); !priced && only == nil {
		in["price"] = string(v.FirstPrice)
	}
	if len(item) > 0 {
		in["inventoryItem"] = item
	}
	return in
}

// variantKey is the metafield, beside the product id's, that carries a variant's key. By it a variant is known again
// when an answer was lost or the state is empty, and told from one that a merchant has added.
const variantKey = "variant_key"

func identity(v *document.Variant) []any {
	return []any{map[string]any{
		"namespace": ref{refCustomID, "namespace"}, "key": variantKey, "type": "single_line_text_field", "value": v.Key,
	}}
}

func levelName(name string) string {
	if name == "" {
		return available
	}
	return name
}

func shadowLevel(l document.Level) ShadowLevel {
	s := ShadowLevel{Quantity: l.Quantity}
	if levelName(l.Name) != available {
		s.Name = l.Name
	}
	return s
}

// variants compares options, variants and stock.
func (u *update) variants() {
	next := u.d.shadow
	if !u.doc.Variants.Owned {
		for _, sv := range next.Variants { // ids stay: they are needed when the variants are ours again
			sv.Fields, sv.Stock = map[string]string{}, map[string]ShadowLevel{}
			for key := range sv.Metafields {
				sv.Metafields[key] = unknown
			}
		}
		return
	}
	u.rebind()
	c := u.compareVariants()
	if r := checkFirstPrices(u.doc, func(key string) bool { return next.Variants[key] == nil }); r != nil {
		u.d.refused = r
		return
	}
	c.say(u)
	if !c.changed() && u.sameOptions() {
		u.stock()
		return
	}
	if plan, ok := u.planOptions(c); ok {
		c.send(u, plan)
	} else {
		u.restructure(c)
	}
	u.stock()
}

// rebind gives a variant of the shop to a new key where the options are those of a variant that left the document:
// the source has replaced the row, the shop need not replace the variant and lose its stock history.
func (u *update) rebind() {
	next := u.d.shadow
	leaving := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(next.Variants)) {
		if !slices.ContainsFunc(u.doc.Variants.Value, func(v document.Variant) bool { return v.Key == key }) {
			leaving[tuple(next.Variants[key].Options)] = key
		}
	}
	for _, v := range u.doc.Variants.Value {
		old, found := leaving[tuple(v.Options)]
		if next.Variants[v.Key] == nil && found {
			next.Variants[v.Key] = next.Variants[old]
			delete(next.Variants, old)
			// The old key may come back as another variant: the shop's own record has to say so, too.
			u.add(newOp("metafieldsSet", map[string]any{"metafields": []any{map[string]any{
				"ownerId": next.Variants[v.Key].ID, "namespace": ref{refCustomID, "namespace"}, "key": variantKey,
				"type": "single_line_text_field", "value": v.Key,
			}}}))
			u.say("a new key for the variant %s", strings.Join(v.Options, " / "))
		}
	}
}

// variantChanges is how the document's variants differ from the shop's.
type variantChanges struct {
	created []*document.Variant
	removed []string // keys
	fields  map[string][]string
	moved   map[string]bool // keys whose options differ
	keys    []string        // of the changed ones, in the document's order
}

func (u *update) compareVariants() *variantChanges {
	c := &variantChanges{fields: map[string][]string{}, moved: map[string]bool{}}
	wanted := map[string]bool{}
	for i := range u.doc.Variants.Value {
		v := &u.doc.Variants.Value[i]
		wanted[v.Key] = true
		sv := u.d.shadow.Variants[v.Key]
		if sv == nil {
			c.created = append(c.created, v)
			continue
		}
		for _, f := range variantFields {
			m, owned := f.mark(v)
			if !owned {
				delete(sv.Fields, f.name)
			} else if sv.Fields[f.name] != m {
				c.fields[v.Key] = append(c.fields[v.Key], f.name)
				if f.name == "price" && roundsToZero(v.Price.Value) {
					u.effect(work.EffectZeroPrice)
				}
			}
		}
		if !slices.Equal(sv.Options, v.Options) {
			c.moved[v.Key] = true
		}
		if c.moved[v.Key] || len(c.fields[v.Key]) > 0 {
			c.keys = append(c.keys, v.Key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(u.d.shadow.Variants)) {
		if !wanted[key] {
			c.removed = append(c.removed, key)
		}
	}
	return c
}

func (c *variantChanges) changed() bool { return len(c.created)+len(c.removed)+len(c.keys) > 0 }

// say explains the changes and finds the lane that they deserve.
func (c *variantChanges) say(u *update) {
	if n := len(c.created); n > 0 {
		u.say("add %s", count(n, "variant"))
	}
	if n := len(c.removed); n > 0 {
		u.say("remove %s", count(n, "variant"))
	}
	by := map[string]int{}
	for _, fields := range c.fields {
		for _, f := range fields {
			by[f]++
		}
	}
	for _, f := range variantFields {
		if by[f.name] == 0 {
			continue
		}
		u.say("%s of %s", f.name, count(by[f.name], "variant"))
		if f.name == "price" || f.name == "compareAtPrice" {
			u.urgent()
		}
	}
}

func (u *update) variant(key string) *document.Variant {
	i := slices.IndexFunc(u.doc.Variants.Value, func(v document.Variant) bool { return v.Key == key })
	return &u.doc.Variants.Value[i]
}

// send emits the mutations of the variants: removals first, so that a new variant may have the options of an old one,
// except where nothing would be left for a moment, which Shopify refuses.
func (c *variantChanges) send(u *update, plan *optionPlan) {
	u.d.ops = append(u.d.ops, plan.ops...)
	survivors := len(u.d.shadow.Variants) - len(c.removed)
	if survivors > 0 {
		c.sendRemovals(u)
	}
	c.sendUpdates(u, plan)
	c.sendCreations(u)
	if survivors == 0 {
		c.sendRemovals(u)
	}
}

func (c *variantChanges) sendRemovals(u *update) {
	for keys := range slices.Chunk(c.removed, maxInputRows) {
		var ids []any
		for _, key := range keys {
			ids = append(ids, u.d.shadow.Variants[key].ID)
		}
		o := newOp("productVariantsBulkDelete", map[string]any{"productId": u.old.ID, "variantsIds": ids, "withOptions": true})
		o.done = func(s *Shadow, payload map[string]any) {
			for _, key := range keys {
				delete(s.Variants, key)
			}
			s.takeOptions(payload)
		}
		u.add(o)
	}
}

func (c *variantChanges) sendUpdates(u *update, plan *optionPlan) {
	type change struct {
		variant *document.Variant
		input   map[string]any
		fields  []string
		moves   bool
	}
	var changes []change
	for _, key := range c.keys {
		v := u.variant(key)
		in := variantInput(v, append([]string{}, c.fields[key]...))
		moves := !slices.Equal(plan.renamed(u.d.shadow.Variants[key].Options), v.Options)
		if moves {
			in["optionValues"] = optionValues(u.doc.Options.Value, v.Options)
		} else if len(c.fields[key]) == 0 {
			continue // the renamed option value has moved it
		}
		in["id"] = u.d.shadow.Variants[key].ID
		changes = append(changes, change{v, in, c.fields[key], moves})
	}
	for chunk := range slices.Chunk(changes, maxInputRows) {
		var variants []any
		moves := false
		for _, ch := range chunk {
			variants = append(variants, ch.input)
			moves = moves || ch.moves
		}
		o := newOp("productVariantsBulkUpdate", map[string]any{"productId": u.old.ID, "variants": variants, "withOptions": moves})
		o.done = func(s *Shadow, payload map[string]any) {
			for _, ch := range chunk {
				s.Variants[ch.variant.Key].update(ch.variant, ch.fields)
			}
			s.takeOptions(payload)
		}
		u.add(o)
	}
}

func (sv *ShadowVariant) update(v *document.Variant, fields []string) {
	for _, f := range variantFields {
		if slices.Contains(fields, f.name) {
			sv.Fields[f.name], _ = f.mark(v)
		}
	}
	sv.Options = slices.Clone(v.Options)
}

func (c *variantChanges) sendCreations(u *update) {
	for _, chunk := range affordable(c.created) {
		var variants []any
		for _, v := range chunk {
			in := variantInput(v, nil)
			in["optionValues"] = optionValues(u.doc.Options.Value, v.Options)
			in["metafields"] = identity(v)
			if carries(v) {
				in["metafields"] = append(identity(v), metafieldInput(v.Metafields)...)
			}
			// A new variant has nothing committed, so on hand and available are the same number.
			var levels []any
			for _, l := range v.Stock.Value {
				levels = append(levels, map[string]any{"locationId": ref{refLocation, l.Location}, "availableQuantity": l.Quantity})
			}
			if len(levels) > 0 {
				in["inventoryQuantities"] = levels
			}
			variants = append(variants, in)
		}
		o := newOp("productVariantsBulkCreate", map[string]any{"productId": u.old.ID, "variants": variants, "withOptions": true})
		o.heavy = len(variants) > 10
		o.adds = variantAdditions(chunk)
		o.done = func(s *Shadow, payload map[string]any) {
			byTitle := nodesByTitle(list(payload["productVariants"]))
			for _, v := range chunk {
				node := byTitle[strings.Join(v.Options, " / ")]
				if node == nil {
					s.Doubt = true
					continue
				}
				s.Variants[v.Key] = createdVariant(v, node, true)
			}
			s.takeOptions(payload)
		}
		u.add(o)
	}
}

// affordable splits new variants into lists that one request can carry.
func affordable(created []*document.Variant) [][]*document.Variant {
	var out [][]*document.Variant
	var list []*document.Variant
	points := 0.0
	for _, v := range created {
		own := cost.PerVariant + cost.PerVariantMetafield*float64(1+len(v.Metafields.Value))
		if len(list) == maxInputRows || len(list) > 0 && points+own > creationPoints {
			out, list, points = append(out, list), nil, 0
		}
		list, points = append(list, v), points+own
	}
	if len(list) > 0 {
		out = append(out, list)
	}
	return out
}

// creationPoints leaves room for the mutation itself and for what it answers.
const creationPoints = cost.MaxPerRequest - 50

// variantAdditions is what the creation of variants puts into their lists.
func variantAdditions(created []*document.Variant) additions {
	out := additions{}
	for _, v := range created {
		out.merge(additions{addedVariantMetafields: metafieldKeys(v.Metafields.Value)})
		for _, l := range v.Stock.Value {
			out.merge(additions{addedStock: {stockPlace(v.Key, l.Location, levelName(l.Name))}})
		}
	}
	return out
}

func nodesByTitle(nodes []any) map[string]map[string]any {
	out := make(map[string]map[string]any, len(nodes))
	for _, n := range nodes {
		out[text(object(n)["title"])] = object(n)
	}
	return out
}

// takeOptions takes over the options of a payload that has them: values come and go with the variants, in an order
// that only the shop knows.
func (s *Shadow) takeOptions(payload map[string]any) {
	if options := readOptions(list(object(payload["product"])["options"])); len(options) > 0 {
		s.Options = options
	}
}

// stock finds the levels that differ. They are set by compare-and-set from what the shop was left with.
func (u *update) stock() {
	levels := 0
	for i := range u.doc.Variants.Value {
		v := &u.doc.Variants.Value[i]
		sv := u.d.shadow.Variants[v.Key]
		if sv == nil { // it is created with its stock
			continue
		}
		if !v.Stock.Owned {
			sv.Stock = map[string]ShadowLevel{}
			continue
		}
		for _, l := range v.Stock.Value {
			if u.level(v.Key, sv, l, true) {
				levels++
			}
		}
		for _, location := range slices.Sorted(maps.Keys(sv.Stock)) {
			have := sv.Stock[location]
			listed := slices.ContainsFunc(v.Stock.Value, func(l document.Level) bool { return l.Location == location })
			switch {
			case listed:
			case have.Quantity == 0:
				if u.quiet { // it is empty, stays so, and is the merchant's from now on
					delete(sv.Stock, location)
				}
			case u.level(v.Key, sv, document.Level{Location: location, Name: have.Name}, false):
				levels++
			}
		}
	}
	if levels > 0 {
		u.say("stock of %s", count(levels, "level"))
		u.urgent()
	}
}

// level adds a row for one level where it differs. listed says whether the document names the level.
func (u *update) level(key string, sv *ShadowVariant, want document.Level, listed bool) bool {
	have, there := sv.Stock[want.Location]
	same := there && !have.Unknown && levelName(have.Name) == levelName(want.Name)
	if same && have.Quantity == want.Quantity {
		return false
	}
	if sv.Item == "" {
		u.read()
		return true
	}
	row := stockRow{
		variant: key, item: sv.Item, location: want.Location, name: levelName(want.Name), quantity: want.Quantity, listed: listed,
	}
	if same {
		from := have.Quantity
		row.from = &from
	}
	u.d.rows = append(u.d.rows, row)
	return true
}

// stockPoints is what rows cost when they travel alone: one mutation for each name of quantity and 250 rows.
func stockPoints(rows []stockRow) int {
	by := map[string]int{}
	for _, r := range rows {
		by[r.name]++
	}
	points := 0
	for _, n := range by {
		points += (n + maxInputRows - 1) / maxInputRows * stockMutationPoints
	}
	return points
}

// stockMutationPoints is what one inventorySetQuantities costs, whatever its rows (a test holds it against the price).
const stockMutationPoints = 10
