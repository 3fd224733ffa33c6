package shopifysim

import (
	"slices"
	"strings"
	"time"
)

func tagMutations() fields { return fields{"tagsAdd": tagsAdd, "tagsRemove": tagsRemove} }

// taggable finds the object of a tag mutation. Orders, customers and articles have tags at Shopify; they are not
// kept here.
func (x *execution) taggable(a arguments, errs *userErrors) *product {
	p := x.products[idOf("Product", a["id"])]
	if p == nil {
		errs.add("", "Product does not exist", "id")
	}
	return p
}

func tagsAdd(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	p := x.taggable(a, &errs)
	if p == nil {
		return x.payload(errs, record{"node": nil})
	}
	p.setTags(append(slices.Clone(p.tags), texts(a["tags"])...), nil, &errs)
	if len(errs) == 0 {
		p.updatedAt = x.now
	}
	return x.payload(errs, record{"node": p})
}

func tagsRemove(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	p := x.taggable(a, &errs)
	if p == nil {
		return x.payload(errs, record{"node": nil})
	}
	gone := normalTags(texts(a["tags"]))
	p.tags = slices.DeleteFunc(p.tags, func(t string) bool {
		return slices.ContainsFunc(gone, func(g string) bool { return strings.EqualFold(g, t) })
	})
	p.updatedAt = x.now
	return x.payload(nil, record{"node": p})
}

func publicationMutations() fields {
	return fields{
		"publishablePublish":   publishablePublish,
		"publishableUnpublish": publishableUnpublish,
	}
}

// publishTargets checks the publications of a publish mutation.
func (x *execution) publishTargets(a arguments, errs *userErrors) []*publication {
	var out []*publication
	for i, in := range asInputs(a["input"]) {
		p := x.publication(in["publicationId"])
		if p == nil {
			errs.add("", "Publication does not exist or is not publishable", "input", i, "publicationId")
			continue
		}
		out = append(out, p)
	}
	return out
}

func publishablePublish(x *execution, _ any, a arguments) (any, error) {
	return x.publish(a, func(self any, p *publication, in input) {
		when := x.now
		if t, err := time.Parse(time.RFC3339, in.text("publishDate")); err == nil {
			when = t.UTC()
		}
		switch v := self.(type) {
		case *product:
			v.publications[p.id] = when
			if v.publishedAt == nil {
				v.publishedAt = &when
			}
		case *collection:
			v.publications[p.id] = when
		case *variant:
			delete(v.unpublished, p.id)
		}
	})
}

func publishableUnpublish(x *execution, _ any, a arguments) (any, error) {
	return x.publish(a, func(self any, p *publication, _ input) {
		switch v := self.(type) {
		case *product:
			delete(v.publications, p.id)
			if len(v.publications) == 0 {
				v.publishedAt = nil
			}
		case *collection:
			delete(v.publications, p.id)
		case *variant:
			if v.unpublished == nil {
				v.unpublished = map[int64]bool{}
			}
			v.unpublished[p.id] = true
		}
	})
}

func (x *execution) publish(a arguments, change func(self any, p *publication, in input)) (any, error) {
	var errs userErrors
	self := x.node(a["id"])
	switch self.(type) {
	case *product, *collection, *variant:
	default:
		self = nil
	}
	if isNil(self) {
		return nil, notFound(a["id"])
	}
	targets := x.publishTargets(a, &errs)
	if len(errs) > 0 {
		return x.payload(errs, record{"publishable": self, "shop": &shopNode{x.store}})
	}
	for i, in := range asInputs(a["input"]) {
		change(self, targets[i], in)
	}
	touch(self, x.now)
	return x.payload(nil, record{"publishable": self, "shop": &shopNode{x.store}})
}
