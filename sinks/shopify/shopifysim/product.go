package shopifysim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The option and value that a product without options has.
const (
	defaultOption = "Title"
	defaultValue  = "Default Title"
)

// newProduct makes a product that is not yet in the shop, with Shopify's defaults and without options.
func (x *execution) newProduct() *product {
	return &product{
		id: x.ids.take(), vendor: x.name, status: "ACTIVE", tags: []string{}, createdAt: x.now, updatedAt: x.now,
		publications: map[int64]time.Time{},
	}
}

// newVariant makes a variant with its inventory item, not stocked anywhere.
func (x *execution) newVariant(p *product, values []*optionValue) *variant {
	v := &variant{
		id: x.ids.take(), product: p, values: values, price: "0.00", policy: "DENY", taxable: true, createdAt: x.now, updatedAt: x.now,
	}
	v.item = &inventoryItem{
		id: x.ids.take(), variant: v, requiresShipping: true, weightUnit: "KILOGRAMS", createdAt: x.now, updatedAt: x.now,
	}
	return v
}

// stock returns the item's level at a location, activating it where it is not.
func (x *execution) stock(t *inventoryItem, l *location) *level {
	if v := t.level(l); v != nil {
		v.active = true
		return v
	}
	v := &level{
		id: x.ids.take(), item: t, location: l, active: true, quantities: map[string]int64{}, changed: map[string]time.Time{},
		createdAt: x.now, updatedAt: x.now,
	}
	v.changed["available"] = x.now
	t.levels = append(t.levels, v)
	return v
}

// addDefaultOption gives a product the one option and variant that it has without options of its own.
func (x *execution) addDefaultOption(p *product) {
	value := &optionValue{id: x.ids.take(), name: defaultValue}
	p.options = []*option{{id: x.ids.take(), name: defaultOption, values: []*optionValue{value}}}
	if len(p.variants) == 0 {
		v := x.newVariant(p, []*optionValue{value})
		x.stock(v.item, x.locations[0])
		p.variants = []*variant{v}
	}
}

// applyProduct writes the scalar fields that productSet, productCreate and productUpdate share. prefix is what
// stands before the field in errors.
func (x *execution) applyProduct(p *product, in input, creating bool, prefix []any, errs *userErrors) {
	if title := in.text("title"); in.has("title") || creating {
		switch {
		case strings.TrimSpace(title) == "":
			errs.add("", "Title can't be blank", at(prefix, "title")...)
		case tooLong(title):
			errs.add("", "Title is too long (maximum is 255 characters)", at(prefix, "title")...)
		default:
			p.title = title
		}
	}
	for _, f := range []struct {
		name, label string
		to          *string
	}{{"vendor", "Vendor", &p.vendor}, {"productType", "Product type", &p.kind}} {
		if !in.given(f.name) {
			continue
		}
		if tooLong(in.text(f.name)) {
			errs.add("", f.label+" is too long (maximum is 255 characters)", at(prefix, f.name)...)
			continue
		}
		*f.to = in.text(f.name)
	}
	if in.has("descriptionHtml") {
		p.descriptionHTML = in.text("descriptionHtml")
	}
	if in.given("status") {
		p.status = in.text("status")
	}
	if in.has("requiresSellingPlan") {
		p.requiresSellingPlan, _ = in["requiresSellingPlan"].(bool)
	}
	if creating {
		p.giftCard, _ = in["giftCard"].(bool)
	}
	in.setText("templateSuffix", &p.templateSuffix)
	in.setText("giftCardTemplateSuffix", &p.giftCardTemplateSuffix)
	if seo := in.object("seo"); seo != nil {
		seo.setText("title", &p.seoTitle)
		seo.setText("description", &p.seoDescription)
	}
	if in.has("tags") {
		p.setTags(texts(in["tags"]), prefix, errs)
	}
	x.applyHandle(p, in, creating, errs)
	p.updatedAt = x.now
}

func (p *product) setTags(given []string, prefix []any, errs *userErrors) {
	tags := normalTags(given)
	switch {
	case slices.ContainsFunc(tags, tooLong):
		errs.add("", "Product tags is invalid", at(prefix, "tags")...)
	case len(tags) > defaultInputLimit:
		errs.add("", "Product tags can't be more than 250", at(prefix, "tags")...)
	default:
		p.tags = tags
	}
}

// applyHandle sets a given handle, which must be free, or generates one for a new product, which is numbered until it
// is.
func (x *execution) applyHandle(p *product, in input, creating bool, errs *userErrors) {
	raw := in.text("handle")
	if handle := handleOf(raw); handle != "" {
		if tooLong(handle) {
			errs.add("", "Handle is too long (maximum is 255 characters)", "input", "handle")
			return
		}
		if id, taken := x.handles[handle]; taken && id != p.id {
			errs.add("", fmt.Sprintf("Handle '%s' already in use. Please provide a new handle.", raw), "input", "handle")
			return
		}
		if redirectNew, _ := in["redirectNewHandle"].(bool); redirectNew && p.handle != "" && p.handle != handle {
			x.redirects = append(x.redirects, redirect{path: "/products/" + p.handle, target: "/products/" + handle})
		}
		p.handle = handle
		return
	}
	if creating {
		p.handle = x.freeHandle(handleOf(p.title))
	}
}

func (x *execution) freeHandle(base string) string {
	if base == "" {
		base = "product"
	}
	handle := base
	for n := 1; ; n++ {
		if _, taken := x.handles[handle]; !taken {
			return handle
		}
		handle = fmt.Sprintf("%s-%d", base, n)
	}
}

// applyCategory sets the taxonomy category. Which categories exist is not known here: any well-formed id is one.
func (x *execution) applyCategory(p *product, in input) error {
	if !in.has("category") {
		return nil
	}
	id := in.optional("category")
	if id != nil && !strings.HasPrefix(*id, "gid://shopify/TaxonomyCategory/") {
		return coded("INVALID_PRODUCT_TAXONOMY_NODE_ID", "Invalid product_taxonomy_node_id")
	}
	p.category = id
	return nil
}

func (p *product) option(id int64) *option {
	for _, o := range p.options {
		if o.id == id {
			return o
		}
	}
	return nil
}

// optionNamed finds an option by name; Shopify compares names without regard to case.
func (p *product) optionNamed(name string) *option {
	for _, o := range p.options {
		if strings.EqualFold(o.name, name) {
			return o
		}
	}
	return nil
}

func (o *option) value(id int64) *optionValue {
	for _, v := range o.values {
		if v.id == id {
			return v
		}
	}
	return nil
}

func (o *option) valueNamed(name string) *optionValue {
	for _, v := range o.values {
		if v.name == name {
			return v
		}
	}
	return nil
}

func (p *product) variant(id int64) *variant {
	for _, v := range p.variants {
		if v.id == id {
			return v
		}
	}
	return nil
}

// withValues finds the variant that has exactly these option values.
func (p *product) withValues(values []*optionValue) *variant {
	for _, v := range p.variants {
		if slices.Equal(v.values, values) {
			return v
		}
	}
	return nil
}

// payload is what a mutation answers; errors are counted, and void what was put off until there are none.
func (x *execution) payload(errs userErrors, rest record) (any, error) {
	x.failed += len(errs)
	if len(errs) == 0 {
		for _, change := range x.later {
			change()
		}
	}
	if rest == nil {
		rest = record{}
	}
	rest["userErrors"] = errs.list()
	return rest, nil
}
