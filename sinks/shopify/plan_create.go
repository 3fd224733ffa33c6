package shopify

import (
	"fmt"
	"maps"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
)

// creation is one productSet that brings a whole product into the shop. What would make it dearer than a request may
// be is left out in this order: metafields of variants, metafields, images; the next round adds it by id, and so it
// does with lists that are too long for one input. The keys of variants go last: without them a lost answer to this
// creation is resolved by the variants' options.
func creation(p work.Push) (*op, string) {
	doc := p.Document
	words := fmt.Sprintf("create with %s", count(len(doc.Variants.Value), "variant"))
	levels := 0
	for i := range doc.Variants.Value {
		levels += len(doc.Variants.Value[i].Stock.Value)
	}
	c := creationParts{
		variantMetafields: true, metafields: len(doc.Metafields.Value) < maxInputRows, images: true, keys: true,
		stock: levels <= maxQuantities,
	}
	o := c.op(p)
	for _, drop := range []*bool{&c.variantMetafields, &c.metafields, &c.images, &c.keys} {
		if o.points <= cost.MaxPerRequest {
			break
		}
		*drop = false
		o = c.op(p)
	}
	return o, words
}

// creationParts says which of the optional parts a creation carries.
type creationParts struct{ variantMetafields, metafields, images, keys, stock bool }

// carries reports whether a variant's metafields fit into one input, beside its key.
func carries(v *document.Variant) bool { return len(v.Metafields.Value) < maxInputRows }

func (c creationParts) op(p work.Push) *op {
	doc := p.Document
	customID := map[string]any{
		"namespace": ref{refCustomID, "namespace"}, "key": ref{refCustomID, "key"}, "value": p.ProductID,
	}
	input := map[string]any{
		"status":         statusActive,
		"productOptions": optionInput(doc.Options.Value, nil),
	}
	for _, f := range scalars(doc) {
		if f.field.Owned && (f.name != "handle" || !f.field.Null) { // cleared is sent too: the shop's name is the default vendor
			f.put(input, f.field.Value)
		}
	}
	if tags := normalTags(doc.Tags.Value); len(tags) > 0 {
		input["tags"] = anys(tags)
	}
	own := maps.Clone(customID)
	own["type"] = "id"
	metafields := []any{own}
	if c.metafields {
		metafields = append(metafields, metafieldInput(doc.Metafields)...)
	}
	input["metafields"] = metafields
	images := uniqueImages(doc.Images.Value)
	if !c.images {
		images = nil
	}
	if len(images) > 0 {
		var files []any
		for _, image := range images {
			f := map[string]any{"originalSource": image.URL, "contentType": "IMAGE"}
			if image.Alt != "" {
				f["alt"] = image.Alt
			}
			files = append(files, f)
		}
		input["files"] = files
	}
	variants := make([]any, 0, len(doc.Variants.Value))
	for i := range doc.Variants.Value {
		v := &doc.Variants.Value[i]
		in := variantInput(v, nil)
		in["optionValues"] = optionValues(doc.Options.Value, v.Options)
		var own []any
		if c.keys {
			own = identity(v)
		}
		if c.variantMetafields && carries(v) {
			own = append(own, metafieldInput(v.Metafields)...)
		}
		if len(own) > 0 {
			in["metafields"] = own
		}
		if levels := v.Stock.Value; c.stock && len(levels) > 0 {
			in["inventoryQuantities"] = setQuantities(levels)
		}
		variants = append(variants, in)
	}
	input["variants"] = variants
	o := newOp("productSet", map[string]any{
		"identifier": map[string]any{"customId": customID}, "input": input,
		"variants": min(maxInputRows, len(variants)), "images": max(1, len(images)), "withImages": len(images) > 0,
	})
	o.heavy = true
	o.adds = c.adds(doc, images)
	o.done = func(s *Shadow, payload map[string]any) { c.created(s, doc, images, payload) }
	return o
}

// adds is what a creation puts into lists. Publications follow by an op of their own.
func (c creationParts) adds(doc *document.Document, images []document.Image) additions {
	out := additions{}
	out.merge(additions{addedTags: normalTags(doc.Tags.Value), addedImages: imageURLs(images)})
	if c.metafields {
		out.merge(additions{addedMetafields: metafieldKeys(doc.Metafields.Value)})
	}
	for i := range doc.Variants.Value {
		v := &doc.Variants.Value[i]
		if c.variantMetafields {
			out.merge(additions{addedVariantMetafields: metafieldKeys(v.Metafields.Value)})
		}
		for _, l := range v.Stock.Value {
			out.merge(additions{addedStock: {stockPlace("", l.Location, levelName(l.Name))}})
		}
	}
	return out
}

// created fills an empty shadow with what a creation has put into the shop.
func (c creationParts) created(s *Shadow, doc *document.Document, images []document.Image, payload map[string]any) {
	product := object(payload["product"])
	s.ID = text(product["id"])
	s.Status = statusActive
	for _, f := range scalars(doc) {
		if f.field.Owned {
			s.Fields[f.name] = scalarMark(f)
		}
	}
	s.Tags = normalTags(doc.Tags.Value)
	if c.metafields {
		markMetafields(s.Metafields, doc.Metafields)
	}
	ids := nodeIDs(payload, "product", "media")
	for i, image := range images {
		in := ShadowImage{URL: image.URL, Alt: image.Alt}
		if len(ids) == len(images) {
			in.ID = ids[i]
		}
		s.Images = append(s.Images, in)
	}
	s.Options = readOptions(list(product["options"]))
	byTitle := nodesByTitle(list(object(product["variants"])["nodes"]))
	for i := range doc.Variants.Value {
		v := &doc.Variants.Value[i]
		node := byTitle[strings.Join(v.Options, " / ")]
		if node == nil {
			s.Doubt = true // more variants than an answer lists, or another title than expected: read them
			continue
		}
		s.Variants[v.Key] = createdVariant(v, node, c.variantMetafields)
		if !c.stock {
			s.Variants[v.Key].Stock = map[string]ShadowLevel{}
		}
	}
}

// createdVariant is the shadow of a variant that was created just now.
func createdVariant(v *document.Variant, node map[string]any, metafields bool) *ShadowVariant {
	sv := &ShadowVariant{
		ID: text(node["id"]), Item: text(object(node["inventoryItem"])["id"]),
		Options: append([]string(nil), v.Options...), Fields: map[string]string{}, Metafields: map[string]string{},
		Stock: map[string]ShadowLevel{},
	}
	for _, f := range variantFields {
		if m, owned := f.mark(v); owned {
			sv.Fields[f.name] = m
		}
	}
	if metafields && carries(v) {
		markMetafields(sv.Metafields, v.Metafields)
	}
	for _, l := range v.Stock.Value {
		sv.Stock[l.Location] = shadowLevel(l)
	}
	return sv
}

func markMetafields(marks map[string]string, f document.Field[[]document.Metafield]) {
	for _, m := range f.Value {
		marks[metafieldKey(m)] = metafieldMark(m)
	}
}

// metafieldInput lists the metafields that have a value.
func metafieldInput(f document.Field[[]document.Metafield]) []any {
	var out []any
	for _, m := range f.Value {
		if !m.Value.Null && m.Value.Value != "" {
			out = append(out, map[string]any{"namespace": m.Namespace, "key": m.Key, "type": m.Type, "value": m.Value.Value})
		}
	}
	return out
}

// optionInput is a product's options for productSet. ids, where given, keep options and values that the shop has.
func optionInput(options []document.Option, ids func(option int, value string) (optionID, valueID string)) []any {
	var out []any
	for i, o := range options {
		in := map[string]any{"name": o.Name, "position": i + 1}
		var values []any
		for _, v := range o.Values {
			value := map[string]any{"name": v}
			if ids != nil {
				optionID, valueID := ids(i, v)
				if optionID != "" {
					in["id"] = optionID
				}
				if valueID != "" {
					value["id"] = valueID
				}
			}
			values = append(values, value)
		}
		in["values"] = values
		out = append(out, in)
	}
	return out
}

// optionValues are a variant's options by name.
func optionValues(options []document.Option, values []string) []any {
	out := make([]any, 0, len(values))
	for i, v := range values {
		out = append(out, map[string]any{"optionName": options[i].Name, "name": v})
	}
	return out
}

func setQuantities(levels []document.Level) []any {
	out := make([]any, 0, len(levels))
	for _, l := range levels {
		out = append(out, map[string]any{
			"locationId": ref{refLocation, l.Location}, "name": levelName(l.Name), "quantity": l.Quantity,
		})
	}
	return out
}
