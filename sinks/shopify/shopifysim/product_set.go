package shopifysim

import (
	"fmt"
	"slices"
	"strings"
)

func productSetMutations() fields { return fields{"productSet": productSet} }

// operation is a productSet that was asked for asynchronously.
type operation struct {
	id      int64
	product int64
	errs    userErrors
}

// productSet makes the product be what the input says: list fields that are given replace the list, and what they
// omit is deleted; fields that are not given stay.
func productSet(x *execution, _ any, a arguments) (any, error) {
	in := input(a).object("input")
	identifier := input(a).object("identifier")
	var errs userErrors
	old, err := x.setTarget(identifier, in, &errs)
	if err != nil {
		return nil, err
	}
	var draft *product
	if len(errs) == 0 {
		draft, err = x.setDraft(old, in, &errs)
		if err != nil {
			return nil, err
		}
	}
	synchronous, given := a["synchronous"].(bool)
	done := record{"product": nil, "productSetOperation": nil}
	if len(errs) == 0 {
		x.put(draft)
		x.setCollections(draft, in)
		done["product"] = x.products[draft.id]
	}
	if given && !synchronous {
		op := &operation{id: x.ids.take(), errs: errs}
		if len(errs) == 0 {
			op.product = draft.id
		}
		x.operations[op.id] = op
		return x.payload(nil, record{"product": nil, "productSetOperation": record{
			"__typename": "ProductSetOperation", "id": gid("ProductSetOperation", op.id), "status": "CREATED",
			"product": nil, "userErrors": []any{},
		}})
	}
	return x.payload(errs, done)
}

// productOperation answers a poll. The work was done when it was asked for, so every poll finds it complete.
func productOperation(x *execution, _ any, a arguments) (any, error) {
	op := x.operations[idOf("ProductSetOperation", a["id"])]
	if op == nil {
		return nil, nil
	}
	return record{
		"__typename": "ProductSetOperation", "id": gid("ProductSetOperation", op.id), "status": "COMPLETE",
		"product": x.products[op.product], "userErrors": op.errs.list(),
	}, nil
}

// setTarget finds the product that an identifier means; nil to create one.
func (x *execution) setTarget(identifier, in input, errs *userErrors) (*product, error) {
	if identifier != nil && in.given("id") {
		errs.add("ID_NOT_ALLOWED", "The id field is not allowed if identifier is provided.", "input")
		return nil, nil
	}
	if in.given("id") {
		identifier = input{"id": in["id"]}
	}
	if identifier == nil {
		return nil, nil
	}
	if identifier.given("handle") {
		if !in.given("handle") {
			errs.add("MISSING_FIELD_REQUIRED", "The input field corresponding to the identifier is required.", "input")
			return nil, nil
		}
		if in.text("handle") != identifier.text("handle") {
			errs.add("INPUT_MISMATCH", "The identifier value does not match the value of the corresponding field in the input.", "input")
			return nil, nil
		}
	}
	id, err := x.identified("Product", identifier)
	if err != nil {
		return nil, err
	}
	// The schema says "if present": an update may leave metafields alone, a creation must bring its custom id.
	if c := identifier.object("customId"); c != nil && !carries(in, c) && (in.given("metafields") || x.products[id] == nil) {
		errs.add("METAFIELD_MISMATCH", "The input argument `metafields` (if present) must contain the `customId` value.", "input", "metafields")
		return nil, nil
	}
	if identifier.given("id") && x.products[id] == nil {
		if in.given("id") {
			errs.add("PRODUCT_DOES_NOT_EXIST", "Product does not exist", "input", "id")
		} else {
			errs.add("NOT_FOUND", "Resource matching the identifier was not found.", "identifier", "id")
		}
		return nil, nil
	}
	return x.products[id], nil
}

// carries says whether the input's metafields hold the custom id.
func carries(in, custom input) bool {
	return slices.ContainsFunc(in.objects("metafields"), func(m input) bool {
		return namespaceOf(m) == namespaceOf(custom) && m.text("key") == custom.text("key") && m.text("value") == custom.text("value")
	})
}

// setDraft builds the product as the input wants it, without touching the shop's own.
func (x *execution) setDraft(old *product, in input, errs *userErrors) (*product, error) {
	creating := old == nil
	draft := old
	if creating {
		draft = x.newProduct()
	} else {
		draft = old.clone()
	}
	prefix := []any{"input"}
	if err := x.applyCategory(draft, in); err != nil {
		return nil, err
	}
	x.applyProduct(draft, in, creating, prefix, errs)
	for i, c := range in.list("collections") {
		if x.collections[idOf("Collection", c)] == nil {
			errs.add("NOT_FOUND", "Collection does not exist", "input", "collections", i)
		}
	}
	if in.given("files") {
		x.setFiles(draft, in.objects("files"), errs)
	}
	x.setShape(draft, in, creating, errs)
	if in.given("metafields") {
		list := in.objects("metafields")
		x.replaceMetafields(&draft.metafields, "Product", draft.id, list, at(prefix, "metafields"), errs)
	}
	return draft, nil
}

// setShape sets options and variants, which go together.
func (x *execution) setShape(p *product, in input, creating bool, errs *userErrors) {
	options, variants := in.given("productOptions"), in.given("variants")
	switch {
	case options && !variants && !creating:
		errs.add("VARIANTS_INPUT_MISSING", "Variants input is required when updating product options", "input", "variants")
	case variants && !options:
		errs.add("PRODUCT_OPTIONS_INPUT_MISSING", "Product options input is required when updating variants", "input", "productOptions")
	case !options && creating:
		x.addDefaultOption(p)
	case options:
		before := len(*errs)
		x.setOptions(p, in.objects("productOptions"), errs)
		if len(*errs) > before {
			return
		}
		if variants {
			x.setVariants(p, in.objects("variants"), errs)
			return
		}
		first := make([]*optionValue, len(p.options))
		for i, o := range p.options {
			first[i] = o.values[0]
		}
		v := x.newVariant(p, first)
		x.stock(v.item, x.locations[0])
		p.variants = []*variant{v}
	}
}

// maxOptionValues is what productSet's validator allows per option.
const maxOptionValues = 100

// setOptions replaces the options: matched by id or name they are kept, the others are new or gone.
func (x *execution) setOptions(p *product, given []input, errs *userErrors) {
	if len(given) > maxOptions {
		errs.add("OPTIONS_OVER_LIMIT", "Can only specify a maximum of 3 options", "input", "productOptions")
		return
	}
	given = positioned(given)
	var out []*option
	for i, in := range given {
		path := []any{"input", "productOptions", i}
		o := p.optionNamed(in.text("name"))
		if in.given("id") {
			if o = p.option(idOf("ProductOption", in["id"])); o == nil {
				errs.add("OPTION_DOES_NOT_EXIST", "Option does not exist", at(path, "id")...)
				continue
			}
		}
		if o == nil {
			o = &option{id: x.ids.take()}
		}
		if in.given("name") {
			o.name = in.text("name")
		}
		switch {
		case strings.TrimSpace(o.name) == "":
			errs.add("INVALID_INPUT", "Option name can't be blank", at(path, "name")...)
		case tooLong(o.name):
			errs.add("INVALID_INPUT", "Option name is too long.", at(path, "name")...)
		case strings.Contains(o.name, reservedSequence):
			errs.add("INVALID_INPUT", reservedMessage, at(path, "name")...)
		case slices.ContainsFunc(out, func(e *option) bool { return e == o || strings.EqualFold(e.name, o.name) }):
			errs.add("DUPLICATED_OPTION_NAME", "Duplicated option name.", path...)
		}
		if in.given("values") || len(o.values) == 0 {
			x.setOptionValues(o, in.objects("values"), path, errs)
		}
		out = append(out, o)
	}
	p.options = out
}

// reservedSequence joins option names in titles, so no name may have it.
const (
	reservedSequence = " / "
	reservedMessage  = "The name contains unsupported sequence ' / '"
)

func (x *execution) setOptionValues(o *option, given []input, path []any, errs *userErrors) {
	if len(given) == 0 {
		errs.add("OPTION_VALUES_MISSING", fmt.Sprintf("Option '%s' must specify at least one option value.", o.name), path...)
		return
	}
	if len(given) > maxOptionValues {
		errs.add("OPTION_VALUES_OVER_LIMIT", "Can only specify a maximum of 100 option values", at(path, "values")...)
		return
	}
	var out []*optionValue
	for i, in := range given {
		v := o.valueNamed(in.text("name"))
		if in.given("id") {
			if v = o.value(idOf("ProductOptionValue", in["id"])); v == nil {
				errs.add("OPTION_VALUE_DOES_NOT_EXIST", "Option value does not exist", at(path, "values", i, "id")...)
				continue
			}
		}
		if v == nil {
			v = &optionValue{id: x.ids.take()}
		}
		if in.given("name") {
			v.name = in.text("name")
		}
		switch {
		case strings.TrimSpace(v.name) == "":
			errs.add("INVALID_INPUT", "Option value name can't be blank", at(path, "values", i, "name")...)
		case tooLong(v.name):
			errs.add("INVALID_INPUT", "Option value name is too long.", at(path, "values", i, "name")...)
		case slices.ContainsFunc(out, func(e *optionValue) bool { return e == v || strings.EqualFold(e.name, v.name) }):
			errs.add("DUPLICATED_OPTION_VALUE", "Duplicated option value.", at(path, "values", i)...)
		}
		out = append(out, v)
	}
	o.values = out
}

// positioned orders inputs by their position where they have one.
func positioned(given []input) []input {
	out := slices.Clone(given)
	slices.SortStableFunc(out, func(a, b input) int {
		p, ok := a["position"].(int64)
		q, also := b["position"].(int64)
		if !ok || !also {
			return 0
		}
		return cmpInt(p, q)
	})
	return out
}

// setVariants replaces the variants: matched by id or option values they are kept, the others are new or gone.
func (x *execution) setVariants(p *product, given []input, errs *userErrors) {
	if len(given) > maxVariants {
		errs.add("VARIANTS_OVER_LIMIT", "Can only specify a maximum of 2048 variants", "input", "variants")
		return
	}
	quantities := 0
	for _, in := range given {
		quantities += len(in.list("inventoryQuantities"))
	}
	if quantities > maxQuantities {
		errs.add("INVENTORY_QUANTITIES_LIMIT_EXCEEDED", "Inventory quantity input exceeds the limit of 50000. Consider using separate `inventorySetQuantities` mutations.", "input", "variants")
		return
	}
	var out []*variant
	kept := map[*variant]bool{}
	seen := map[string]bool{}
	for i, in := range positioned(given) {
		path := []any{"input", "variants", i}
		var v *variant
		if in.given("id") {
			if v = p.variant(idOf("ProductVariant", in["id"])); v == nil {
				errs.add("PRODUCT_VARIANT_DOES_NOT_EXIST", "Product variant does not exist", at(path, "id")...)
				continue
			}
		}
		values := x.valuesOf(p, in, path, setCodes, errs)
		if values == nil {
			continue
		}
		key := valueKey(values)
		if seen[key] || v != nil && kept[v] {
			errs.add("INVALID_VARIANT", fmt.Sprintf("The variant '%s' already exists. Please change at least one option value.", titleOf(values)), path...)
			continue
		}
		seen[key] = true
		if v == nil {
			v = p.withValues(values)
		}
		creating := v == nil || kept[v]
		if creating {
			v = x.newVariant(p, values)
		}
		v.values = values
		kept[v] = true
		x.applyVariant(v, in, path, setCodes, errs)
		x.setVariantExtras(v, in, creating, path, errs)
		out = append(out, v)
	}
	if len(out) == 0 && len(*errs) == 0 {
		errs.add("VARIANTS_INPUT_MISSING", "At least one variant is required", "input", "variants")
	}
	p.variants = out
}

// maxQuantities is how many inventory quantities one productSet takes over all its variants.
const maxQuantities = 50_000

func valueKey(values []*optionValue) string {
	var b strings.Builder
	for _, v := range values {
		fmt.Fprintf(&b, "%d/", v.id)
	}
	return b.String()
}

func titleOf(values []*optionValue) string {
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = v.name
	}
	return strings.Join(names, " / ")
}

// setVariantExtras sets what only productSet has on a variant: file, quantities, and metafields as a whole list.
func (x *execution) setVariantExtras(v *variant, in input, creating bool, path []any, errs *userErrors) {
	if in.has("sku") {
		v.item.sku = in.optional("sku")
	}
	if in.given("metafields") {
		x.replaceMetafields(&v.metafields, "ProductVariant", v.id, in.objects("metafields"), at(path, "metafields"), errs)
	}
	if in.has("file") {
		v.media = nil
		if f := in.object("file"); f != nil {
			if m := x.fileFor(v.product, f, at(path, "file"), errs); m != nil {
				v.media = []int64{m.id}
			}
		}
	}
	quantities := in.objects("inventoryQuantities")
	if len(quantities) > defaultInputLimit {
		errs.add("INVENTORY_QUANTITIES_LIMIT_EXCEEDED", "Inventory quantities can't be more than 250 per variant", at(path, "inventoryQuantities")...)
		return
	}
	for i, q := range quantities {
		x.setQuantity(v, q, creating, at(path, "inventoryQuantities", i), errs)
	}
	if creating && len(quantities) == 0 {
		x.stock(v.item, x.locations[0])
	}
}

// setQuantity sets one quantity of a variant; an existing variant's only where it is stocked already.
func (x *execution) setQuantity(v *variant, q input, creating bool, path []any, errs *userErrors) {
	l := x.location(q["locationId"])
	name := q.text("name")
	if l == nil || !l.active {
		errs.add("NOT_FOUND", "Location does not exist", at(path, "locationId")...)
		return
	}
	if name != "available" && name != "on_hand" {
		errs.add("INVALID_INPUT", "The quantity name must be either 'available' or 'on_hand'.", at(path, "name")...)
		return
	}
	have := v.item.level(l)
	if !creating && (have == nil || !have.active) {
		errs.add("INVALID_INPUT", "The inventory item is not stocked at the location.", at(path, "locationId")...)
		return
	}
	n, _ := q["quantity"].(int64)
	x.stock(v.item, l).set(name, n, x.now)
}

// setFiles replaces the product's media.
func (x *execution) setFiles(p *product, given []input, errs *userErrors) {
	old := p.media
	p.media = nil
	for i, in := range given {
		path := []any{"input", "files", i}
		m := x.fileFrom(old, in, path, errs)
		if m != nil && !slices.Contains(p.media, m) {
			p.media = append(p.media, m)
		}
	}
	p.dropLostMedia()
}

// dropLostMedia takes from the variants the media that the product no longer has.
func (p *product) dropLostMedia() {
	for _, v := range p.variants {
		v.media = slices.DeleteFunc(v.media, func(id int64) bool {
			return !slices.ContainsFunc(p.media, func(m *media) bool { return m.id == id })
		})
	}
}

// fileFrom resolves one file of a productSet: an existing file by id, else a new one from its source. A source that
// the product has already is fetched again and becomes another file, which is why callers pass ids.
func (x *execution) fileFrom(_ []*media, in input, path []any, errs *userErrors) *media {
	if in.given("id") {
		m := x.mediaByGID(in["id"])
		if m == nil {
			errs.add("NOT_FOUND", fmt.Sprintf("File id %s does not exist", lastPart(in.text("id"))), at(path, "id")...)
			return nil
		}
		if in.has("alt") {
			x.later = append(x.later, func() { m.alt = in.text("alt") })
		}
		return m
	}
	source := in.text("originalSource")
	if !downloadable(source) {
		errs.add("INVALID_INPUT", "Image URL is invalid", at(path, "originalSource")...)
		return nil
	}
	return x.newMedia(kindOf(in.text("contentType")), source, in.text("alt"), in.text("filename"))
}

// fileFor resolves a variant's file: one of the product's media by id or source, or a new one that the product gets.
func (x *execution) fileFor(p *product, in input, path []any, errs *userErrors) *media {
	for _, m := range p.media {
		if in.given("id") && gid(m.kind, m.id) == in.text("id") || !in.given("id") && m.source == in.text("originalSource") {
			return m
		}
	}
	m := x.fileFrom(p.media, in, path, errs)
	if m != nil {
		p.media = append(p.media, m)
	}
	return m
}

// setCollections replaces the product's manual collections.
func (x *execution) setCollections(p *product, in input) {
	if !in.given("collections") {
		return
	}
	wanted := map[int64]bool{}
	for _, c := range in.list("collections") {
		wanted[idOf("Collection", c)] = true
	}
	for id, c := range x.collections {
		has := slices.Contains(c.products, p.id)
		if wanted[id] && !has {
			c.products = append(c.products, p.id)
		}
		if !wanted[id] && has {
			c.products = slices.DeleteFunc(c.products, func(e int64) bool { return e == p.id })
		}
	}
}
