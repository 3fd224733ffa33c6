package shopifysim

import (
	"fmt"
	"slices"
	"strings"
)

// variantCodes are the error codes for one rule in the mutations that share it.
type variantCodes struct {
	optionMissing, optionUnknown, valueUnknown, negativePrice, tooLong, unknownOptions string
	createValues                                                                       bool // an unknown option value is made
	metafield                                                                          string
}

var (
	setCodes = variantCodes{
		optionMissing: "INVALID_VARIANT", optionUnknown: "OPTION_DOES_NOT_EXIST", valueUnknown: "OPTION_VALUE_DOES_NOT_EXIST",
		negativePrice: "INVALID_VARIANT", tooLong: "INVALID_VARIANT", unknownOptions: "OPTION_DOES_NOT_EXIST", metafield: "INVALID_METAFIELD",
	}
	createCodes = variantCodes{
		optionMissing: "NEED_TO_ADD_OPTION_VALUES", optionUnknown: "OPTION_VALUES_FOR_NUMBER_OF_UNKNOWN_OPTIONS",
		valueUnknown: "INVALID_INPUT", negativePrice: "NEGATIVE_PRICE_VALUE", tooLong: "INVALID",
		unknownOptions: "OPTION_VALUES_FOR_NUMBER_OF_UNKNOWN_OPTIONS", createValues: true, metafield: "INVALID",
	}
	updateCodes = variantCodes{
		optionMissing: "NEED_TO_ADD_OPTION_VALUES", optionUnknown: "OPTION_DOES_NOT_EXIST", valueUnknown: "OPTION_VALUE_DOES_NOT_EXIST",
		negativePrice: "NEGATIVE_PRICE_VALUE", tooLong: "TOO_LONG", unknownOptions: "OPTION_VALUES_FOR_NUMBER_OF_UNKNOWN_OPTIONS",
		createValues: true, metafield: "INVALID_INPUT",
	}
)

func variantMutations() fields {
	return fields{
		"productVariantsBulkCreate":  variantsBulkCreate,
		"productVariantsBulkUpdate":  variantsBulkUpdate,
		"productVariantsBulkDelete":  variantsBulkDelete,
		"productVariantsBulkReorder": variantsBulkReorder,
	}
}

// valuesOf resolves a variant's option values, one for each option of the product in its order; nil after an error.
func (x *execution) valuesOf(p *product, in input, path []any, codes variantCodes, errs *userErrors) []*optionValue {
	before := len(*errs)
	out := make([]*optionValue, len(p.options))
	for i, ov := range in.objects("optionValues") {
		at := at(path, "optionValues", i)
		o := p.optionNamed(ov.text("optionName"))
		if ov.given("optionId") {
			o = p.option(idOf("ProductOption", ov["optionId"]))
		}
		if ov.given("id") && o == nil {
			id := idOf("ProductOptionValue", ov["id"])
			o = x.optionWithValue(p, id)
		}
		if o == nil && !ov.given("optionName") && !ov.given("optionId") && len(p.options) == 1 {
			o = p.options[0]
		}
		if o == nil {
			errs.add(codes.optionUnknown, "Option does not exist", at...)
			continue
		}
		v := o.valueNamed(ov.text("name"))
		if ov.given("id") {
			v = o.value(idOf("ProductOptionValue", ov["id"]))
		}
		if v == nil && codes.createValues && ov.text("name") != "" && !ov.given("id") {
			if tooLong(ov.text("name")) {
				errs.add(codes.tooLong, "Option value name is too long.", at...)
				continue
			}
			v = &optionValue{id: x.ids.take(), name: ov.text("name")}
			o.values = append(o.values, v)
		}
		if v == nil {
			errs.add(codes.valueUnknown, "Option value does not exist", at...)
			continue
		}
		out[slices.Index(p.options, o)] = v
	}
	for i, v := range out {
		if v == nil && len(*errs) == before {
			errs.add(codes.optionMissing, fmt.Sprintf("You need to add option values for %s", p.options[i].name), path...)
		}
	}
	if len(*errs) > before {
		return nil
	}
	return out
}

func (x *execution) optionWithValue(p *product, id int64) *option {
	for _, o := range p.options {
		if o.value(id) != nil {
			return o
		}
	}
	return nil
}

// applyVariant writes the fields that productSet and the bulk mutations share.
func (x *execution) applyVariant(v *variant, in input, path []any, codes variantCodes, errs *userErrors) {
	if s := in.optional("price"); s != nil {
		if negative(*s) {
			errs.add(codes.negativePrice, "Price must be greater than or equal to 0", at(path, "price")...)
		} else {
			v.price = money(*s)
		}
	}
	if in.has("compareAtPrice") {
		v.compareAt = nil
		if s := in.optional("compareAtPrice"); s != nil {
			if negative(*s) {
				errs.add(codes.negativePrice, "Compare at price must be greater than or equal to 0", at(path, "compareAtPrice")...)
			} else {
				m := money(*s)
				v.compareAt = &m
			}
		}
	}
	in.setText("barcode", &v.barcode)
	if v.barcode != nil && tooLong(*v.barcode) {
		errs.add(codes.tooLong, "Barcode is too long (maximum is 255 characters)", at(path, "barcode")...)
	}
	if in.given("inventoryPolicy") {
		v.policy = in.text("inventoryPolicy")
	}
	for name, to := range map[string]*bool{
		"taxable": &v.taxable, "showUnitPrice": &v.showUnitPrice, "requiresComponents": &v.requiresComponents,
	} {
		if b, ok := in[name].(bool); ok {
			*to = b
		}
	}
	in.setText("taxCode", &v.taxCode)
	if item := in.object("inventoryItem"); item != nil {
		x.applyItem(v.item, item)
	}
	for _, sku := range []string{in.text("sku"), in.object("inventoryItem").text("sku")} {
		if tooLong(sku) {
			errs.add(codes.tooLong, "SKU is too long (maximum is 255 characters)", at(path, "sku")...)
		}
	}
	v.updatedAt = x.now
}

// applyItem writes an InventoryItemInput.
func (x *execution) applyItem(t *inventoryItem, in input) {
	if in.has("sku") {
		t.sku = in.optional("sku")
	}
	if b, ok := in["tracked"].(bool); ok {
		t.tracked = b
	}
	if b, ok := in["requiresShipping"].(bool); ok {
		t.requiresShipping = b
	}
	if in.has("cost") {
		t.cost = nil
		if s := in.optional("cost"); s != nil {
			m := money(*s)
			t.cost = &m
		}
	}
	in.setText("countryCodeOfOrigin", &t.country)
	in.setText("provinceCodeOfOrigin", &t.province)
	in.setText("harmonizedSystemCode", &t.harmonizedCode)
	if w := in.object("measurement").object("weight"); w != nil {
		t.weight, _ = w["value"].(float64)
		t.weightUnit = w.text("unit")
	}
	t.updatedAt = x.now
}

// bulkTarget clones the product of a bulk mutation; nil after an error.
func (x *execution) bulkTarget(a arguments, errs *userErrors) *product {
	p := x.products[idOf("Product", a["productId"])]
	if p == nil {
		errs.add("PRODUCT_DOES_NOT_EXIST", "Product does not exist", "productId")
		return nil
	}
	return p.clone()
}

func variantsBulkCreate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	failed := record{"product": nil, "productVariants": nil}
	p := x.bulkTarget(a, &errs)
	if p == nil {
		return x.payload(errs, failed)
	}
	x.appendMedia(p, a, &errs)
	// DEFAULT removes the variant that a product starts with, REMOVE a standalone one of any title.
	var standalone *variant
	strategy, _ := a["strategy"].(string)
	if p.onlyDefault() && strategy != "PRESERVE_STANDALONE_VARIANT" || len(p.variants) == 1 && strategy == "REMOVE_STANDALONE_VARIANT" {
		standalone = p.variants[0]
	}
	var made []any
	for i, in := range asInputs(a["variants"]) {
		path := []any{"variants", i}
		if in.given("id") {
			errs.add("NO_KEY_ON_CREATE", "No key on create.", at(path, "id")...)
			continue
		}
		values := x.valuesOf(p, in, path, createCodes, &errs)
		if values == nil {
			continue
		}
		if old := p.withValues(values); old != nil && old != standalone {
			errs.add("VARIANT_ALREADY_EXISTS_CHANGE_OPTION_VALUE",
				fmt.Sprintf("The variant '%s' already exists. Please change at least one option value.", titleOf(values)), path...)
			continue
		}
		v := x.newVariant(p, values)
		x.applyVariant(v, in, path, createCodes, &errs)
		x.bulkExtras(v, in, true, path, createCodes, &errs)
		p.variants = append(p.variants, v)
		made = append(made, v)
	}
	if standalone != nil && len(made) > 0 {
		p.variants = slices.DeleteFunc(p.variants, func(v *variant) bool { return v == standalone })
		p.pruneDefault()
	}
	if len(p.variants) > maxVariants {
		errs.add("INVALID", fmt.Sprintf("Product has reached maximum number of variants (%d)", maxVariants), "variants")
	}
	if len(errs) > 0 {
		return x.payload(errs, failed)
	}
	p.updatedAt = x.now
	x.put(p)
	return x.payload(nil, record{"product": p, "productVariants": made})
}

// pruneDefault drops the value "Default Title" once no variant has it.
func (p *product) pruneDefault() {
	for _, o := range p.options {
		o.values = slices.DeleteFunc(o.values, func(w *optionValue) bool {
			return w.name == defaultValue && len(o.values) > 1 &&
				!slices.ContainsFunc(p.variants, func(v *variant) bool { return slices.Contains(v.values, w) })
		})
	}
}

// bulkExtras sets what the bulk mutations have on a variant: media, metafields, first quantities.
func (x *execution) bulkExtras(v *variant, in input, creating bool, path []any, codes variantCodes, errs *userErrors) {
	if in.given("metafields") {
		x.upsertMetafields(&v.metafields, "ProductVariant", v.id, in.objects("metafields"), at(path, "metafields"), codes.metafield, errs)
	}
	if in.given("mediaId") {
		m := x.mediaByGID(in["mediaId"])
		if m == nil || !slices.Contains(v.product.media, m) {
			errs.add("MUST_BE_FOR_THIS_PRODUCT", "Media must be for this product", at(path, "mediaId")...)
		} else {
			v.media = []int64{m.id}
		}
	}
	for _, source := range texts(in["mediaSrc"]) {
		if m := v.product.mediaFrom(source); m != nil {
			v.media = []int64{m.id}
		} else {
			errs.add("MUST_BE_FOR_THIS_PRODUCT", "Media must be for this product", at(path, "mediaSrc")...)
		}
	}
	quantities := in.objects("inventoryQuantities")
	if !creating {
		if in.given("inventoryQuantities") {
			errs.add("NO_INVENTORY_QUANTITIES_ON_VARIANTS_UPDATE",
				"Inventory quantities can only be provided during create. To update inventory for existing variants, use inventoryAdjustQuantities.",
				at(path, "inventoryQuantities")...)
		}
		return
	}
	for i, q := range quantities {
		l := x.location(q["locationId"])
		if l == nil || !l.active {
			errs.add("TRACKED_VARIANT_LOCATION_NOT_FOUND", "Quantity for "+v.title()+" couldn't be set because the location was deleted.", at(path, "inventoryQuantities", i)...)
			continue
		}
		n, _ := q["availableQuantity"].(int64)
		x.stock(v.item, l).set("available", n, x.now)
	}
	if len(quantities) == 0 {
		x.stock(v.item, x.locations[0])
	}
}

func (p *product) mediaFrom(source string) *media {
	for _, m := range p.media {
		if m.source == source {
			return m
		}
	}
	return nil
}

// variantsBulkUpdate changes variants by id; all or none, unless partial updates are allowed.
func variantsBulkUpdate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	p := x.bulkTarget(a, &errs)
	if p == nil {
		return x.payload(errs, record{"product": nil, "productVariants": nil})
	}
	x.appendMedia(p, a, &errs)
	partial, _ := a["allowPartialUpdates"].(bool)
	var changed []int64
	for i, in := range asInputs(a["variants"]) {
		path := []any{"variants", i}
		draft := p
		if partial {
			draft = p.clone()
		}
		before := len(errs)
		x.updateVariant(draft, in, path, &errs)
		if len(errs) == before {
			p = draft
			changed = append(changed, idOf("ProductVariant", in["id"]))
		}
	}
	if len(errs) > 0 && (!partial || len(changed) == 0) {
		return x.payload(errs, record{"product": x.products[p.id], "productVariants": nil})
	}
	p.updatedAt = x.now
	x.put(p)
	list := make([]any, len(changed))
	for i, id := range changed {
		list[i] = x.variants[id]
	}
	return x.payload(errs, record{"product": p, "productVariants": list})
}

func (x *execution) updateVariant(p *product, in input, path []any, errs *userErrors) {
	if !in.given("id") {
		errs.add("PRODUCT_VARIANT_ID_MISSING", "Product variant is missing ID attribute", at(path, "id")...)
		return
	}
	v := p.variant(idOf("ProductVariant", in["id"]))
	if v == nil {
		errs.add("PRODUCT_VARIANT_DOES_NOT_EXIST", "Product variant does not exist", at(path, "id")...)
		return
	}
	if given := in.objects("optionValues"); len(given) > 0 {
		// Only the options that are named change.
		full := input{"optionValues": completed(p, v, given)}
		values := x.valuesOf(p, full, path, updateCodes, errs)
		if values == nil {
			return
		}
		if other := p.withValues(values); other != nil && other != v {
			errs.add("VARIANT_ALREADY_EXISTS",
				fmt.Sprintf("The variant '%s' already exists. Please change at least one option value.", titleOf(values)), path...)
			return
		}
		v.values = values
	}
	x.applyVariant(v, in, path, updateCodes, errs)
	x.bulkExtras(v, in, false, path, updateCodes, errs)
}

// completed adds the variant's present values for the options that an update does not name.
func completed(p *product, v *variant, given []input) []any {
	out := make([]any, 0, len(p.options))
	named := map[string]bool{}
	for _, in := range given {
		name := in.text("optionName")
		if o := p.option(idOf("ProductOption", in["optionId"])); o != nil {
			name = o.name
		}
		named[strings.ToLower(name)] = true
		out = append(out, map[string]any(in))
	}
	for i, o := range p.options {
		if !named[strings.ToLower(o.name)] && len(given) < len(p.options) {
			out = append(out, map[string]any{"optionName": o.name, "name": v.values[i].name})
		}
	}
	return out
}

func variantsBulkDelete(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	p := x.bulkTarget(a, &errs)
	if p == nil {
		return x.payload(errs, record{"product": nil})
	}
	gone := map[int64]bool{}
	for i, id := range texts(a["variantsIds"]) {
		n := idOf("ProductVariant", id)
		if p.variant(n) == nil {
			errs.add("AT_LEAST_ONE_VARIANT_DOES_NOT_BELONG_TO_THE_PRODUCT", "At least one variant does not belong to the product", "variantsIds", i)
			continue
		}
		gone[n] = true
	}
	if len(errs) == 0 && len(gone) == len(p.variants) {
		errs.add("CANNOT_DELETE_LAST_VARIANT", "Cannot delete the last variant of a product", "variantsIds")
	}
	if len(errs) > 0 {
		return x.payload(errs, record{"product": x.products[p.id]})
	}
	p.variants = slices.DeleteFunc(p.variants, func(v *variant) bool { return gone[v.id] })
	p.dropUnusedValues()
	p.updatedAt = x.now
	x.put(p)
	return x.payload(nil, record{"product": p})
}

// dropUnusedValues deletes option values that lost their last variant.
func (p *product) dropUnusedValues() {
	for _, o := range p.options {
		o.values = slices.DeleteFunc(o.values, func(w *optionValue) bool {
			return !slices.ContainsFunc(p.variants, func(v *variant) bool { return slices.Contains(v.values, w) })
		})
	}
}

func variantsBulkReorder(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	p := x.bulkTarget(a, &errs)
	if p == nil {
		return x.payload(errs, record{"product": nil})
	}
	for i, in := range asInputs(a["positions"]) {
		v := p.variant(idOf("ProductVariant", in["id"]))
		if v == nil {
			errs.add("MISSING_VARIANT", "At least one variant does not exist", "positions", i, "id")
			continue
		}
		to, _ := in["position"].(int64)
		if to < 1 {
			errs.add("INVALID_POSITION", "Position must be greater than 0", "positions", i, "position")
			continue
		}
		p.variants = slices.DeleteFunc(p.variants, func(e *variant) bool { return e == v })
		p.variants = slices.Insert(p.variants, min(int(to)-1, len(p.variants)), v)
	}
	if len(errs) > 0 {
		return x.payload(errs, record{"product": x.products[p.id]})
	}
	x.put(p)
	return x.payload(nil, record{"product": p})
}
