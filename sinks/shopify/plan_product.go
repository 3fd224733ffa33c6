package shopify

import (
	"maps"
	"slices"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/document"
)

// scalar is a field of the product itself.
type scalar struct {
	name  string // in the shadow and in words
	field document.Field[string]
	put   func(product map[string]any, v string)
}

// scalars lists the product's own fields in the form that productSet and productUpdate share.
func scalars(doc *document.Document) []scalar {
	plain := func(name string) func(map[string]any, string) {
		return func(p map[string]any, v string) { p[name] = v }
	}
	seo := func(name string) func(map[string]any, string) {
		return func(p map[string]any, v string) {
			in, ok := p["seo"].(map[string]any)
			if !ok {
				in = map[string]any{}
				p["seo"] = in
			}
			in[name] = v
		}
	}
	listing := doc.SEO.Value
	if doc.SEO.Null {
		listing = document.SEO{Title: document.Cleared[string](), Description: document.Cleared[string]()}
	}
	return []scalar{
		{"title", doc.Title, plain("title")},
		{"descriptionHtml", doc.DescriptionHTML, plain("descriptionHtml")},
		{"vendor", doc.Vendor, plain("vendor")},
		{"productType", doc.ProductType, plain("productType")},
		{"handle", doc.Handle, plain("handle")},
		{"seo.title", listing.Title, seo("title")},
		{"seo.description", listing.Description, seo("description")},
	}
}

// scalarMark is the mark of a scalar; a cleared text is the empty one.
func scalarMark(f scalar) string {
	if f.field.Null {
		return mark("")
	}
	return mark(f.field.Value)
}

// product compares scalars and status, and sends them with the new images in one productUpdate.
func (u *update) product(images []document.Image) {
	input := map[string]any{}
	marks := map[string]string{}
	var names []string
	for _, f := range scalars(u.doc) {
		if !f.field.Owned || f.name == "handle" && f.field.Null { // every product has a handle: it cannot be cleared
			delete(u.d.shadow.Fields, f.name)
			continue
		}
		if m := scalarMark(f); u.old.Fields[f.name] != m {
			f.put(input, f.field.Value)
			marks[f.name] = m
			names = append(names, f.name)
		}
	}
	status := u.old.Status
	if !u.old.onSale() {
		input["status"] = statusActive
		status = statusActive
		u.say("back on sale")
		u.urgent()
	}
	if len(names) > 0 {
		u.say("%s", strings.Join(names, ", "))
	}
	if len(images) > 0 {
		u.say("%s", count(len(images), "new image"))
	}
	if len(input) == 0 && len(images) == 0 {
		return
	}
	o := updateOp(u.old.ID, input, mediaInput(images), func(s *Shadow, payload map[string]any) {
		maps.Copy(s.Fields, marks)
		s.Status = status
		ids := nodeIDs(payload, "product", "media")
		for i, image := range images {
			added := ShadowImage{URL: image.URL, Alt: image.Alt}
			if len(ids) == len(images) {
				added.ID = ids[i]
			}
			s.Images = append(s.Images, added)
		}
	})
	o.adds = additions{addedImages: imageURLs(images)}
	u.add(o)
}

func mediaInput(images []document.Image) []any {
	var media []any
	for _, image := range images {
		in := map[string]any{"originalSource": image.URL, "mediaContentType": "IMAGE"}
		if image.Alt != "" {
			in["alt"] = image.Alt
		}
		media = append(media, in)
	}
	return media
}

// tags adds and removes only our own: the merchant's stand in no list that is sent.
func (u *update) tags() {
	if !u.doc.Tags.Owned {
		u.d.shadow.release("tags", len(u.old.Tags) > 0)
		return
	}
	want := normalTags(u.doc.Tags.Value)
	again := u.old.Released["tags"]
	var added []string
	var removed []any
	for _, t := range want {
		if again || !containsFold(u.old.Tags, t) {
			added = append(added, t)
		}
	}
	for _, t := range u.old.Tags {
		if !containsFold(want, t) {
			removed = append(removed, t)
		}
	}
	id := u.old.ID
	if len(removed) > 0 {
		o := newOp("tagsRemove", map[string]any{"id": id, "tags": removed})
		o.done = func(s *Shadow, _ map[string]any) {
			s.Tags = slices.DeleteFunc(s.Tags, func(t string) bool { return slices.Contains(removed, any(t)) })
		}
		u.add(o)
		u.say("%s removed", count(len(removed), "tag"))
	}
	if len(added) > 0 {
		o := newOp("tagsAdd", map[string]any{"id": id, "tags": anys(added)})
		o.adds = additions{addedTags: added}
		o.done = func(s *Shadow, _ map[string]any) {
			for _, t := range added {
				if !containsFold(s.Tags, t) {
					s.Tags = append(s.Tags, t)
				}
			}
			delete(s.Released, "tags")
		}
		u.add(o)
		u.say("%s added", count(len(added), "tag"))
	}
}

// metafieldChange is one metafield that differs, of the product or of a variant.
type metafieldChange struct {
	owner   string // gid
	variant string // key; empty for the product
	field   document.Metafield
}

func (c metafieldChange) marks(s *Shadow) map[string]string {
	if c.variant == "" {
		return s.Metafields
	}
	if v := s.Variants[c.variant]; v != nil {
		return v.Metafields
	}
	return map[string]string{}
}

// metafields sets and deletes owned metafields of the product and of variants that exist.
func (u *update) metafields() {
	var set, remove []metafieldChange
	compare := func(owner, variant string, want document.Field[[]document.Metafield], have, next map[string]string) {
		if !want.Owned {
			for key := range next {
				next[key] = unknown
			}
			return
		}
		for _, m := range want.Value {
			switch mark := have[metafieldKey(m)]; {
			case metafieldMark(m) == mark:
			case metafieldMark(m) == nothing: // also where nobody knows whether it is there
				remove = append(remove, metafieldChange{owner, variant, m})
			default:
				set = append(set, metafieldChange{owner, variant, m})
			}
		}
		for _, key := range slices.Sorted(maps.Keys(have)) {
			if slices.ContainsFunc(want.Value, func(m document.Metafield) bool { return metafieldKey(m) == key }) {
				continue
			}
			if delete(next, key); have[key] != nothing {
				next[key] = have[key] // until it is deleted
				namespace, name := splitMetafieldKey(key)
				remove = append(remove, metafieldChange{owner, variant, document.Metafield{Namespace: namespace, Key: name}})
			}
		}
	}
	compare(u.old.ID, "", u.doc.Metafields, u.old.Metafields, u.d.shadow.Metafields)
	for i := range u.doc.Variants.Value {
		v := &u.doc.Variants.Value[i]
		if sv := u.d.shadow.Variants[v.Key]; sv != nil && sv.ID != "" {
			compare(sv.ID, v.Key, v.Metafields, cloneMap(sv.Metafields), sv.Metafields)
		}
	}
	for chunk := range slices.Chunk(remove, maxMetafields) {
		u.add(metafieldsDelete(chunk))
	}
	for chunk := range slices.Chunk(set, maxMetafields) {
		u.add(metafieldsSet(chunk))
	}
	if n := len(set) + len(remove); n > 0 {
		u.say("%s", count(n, "metafield"))
	}
}

func metafieldsSet(changes []metafieldChange) *op {
	list := make([]any, 0, len(changes))
	for _, c := range changes {
		list = append(list, map[string]any{
			"ownerId": c.owner, "namespace": c.field.Namespace, "key": c.field.Key, "type": c.field.Type, "value": c.field.Value.Value,
		})
	}
	o := newOp("metafieldsSet", map[string]any{"metafields": list})
	o.adds = additions{}
	for _, c := range changes {
		part := addedMetafields
		if c.variant != "" {
			part = addedVariantMetafields
		}
		o.adds.merge(additions{part: {metafieldKey(c.field)}})
	}
	o.done = func(s *Shadow, _ map[string]any) {
		for _, c := range changes {
			c.marks(s)[metafieldKey(c.field)] = metafieldMark(c.field)
		}
	}
	return o
}

func metafieldsDelete(changes []metafieldChange) *op {
	list := make([]any, 0, len(changes))
	for _, c := range changes {
		list = append(list, map[string]any{"ownerId": c.owner, "namespace": c.field.Namespace, "key": c.field.Key})
	}
	o := newOp("metafieldsDelete", map[string]any{"metafields": list})
	o.done = func(s *Shadow, _ map[string]any) {
		for _, c := range changes {
			if c.field.Type == "" && !c.field.Value.Owned { // it has left the document
				delete(c.marks(s), metafieldKey(c.field))
				continue
			}
			c.marks(s)[metafieldKey(c.field)] = nothing
		}
	}
	return o
}

// metafieldMark covers the type too: another type is another value. An empty value is none, as Shopify keeps none.
func metafieldMark(m document.Metafield) string {
	if m.Value.Null || m.Value.Value == "" {
		return nothing
	}
	return mark(m.Type + ":" + m.Value.Value)
}

// splitMetafieldKey splits at the last dot: keys have none, namespaces may.
func splitMetafieldKey(k string) (namespace, key string) {
	i := strings.LastIndexByte(k, '.')
	return k[:max(i, 0)], k[i+1:]
}

// publications publishes to the channels that are new in the document and leaves those that left it.
func (u *update) publications() {
	if !u.doc.Publications.Owned {
		u.d.shadow.release("publications", len(u.old.Publications) > 0)
		return
	}
	want := u.doc.Publications.Value
	again := u.old.Released["publications"]
	var added, removed []string
	for _, name := range want {
		if (again || !slices.Contains(u.old.Publications, name)) && !slices.Contains(added, name) {
			added = append(added, name)
		}
	}
	for _, name := range u.old.Publications {
		if !slices.Contains(want, name) {
			removed = append(removed, name)
		}
	}
	if len(removed) > 0 {
		u.add(unpublishOp(u.old.ID, removed))
		u.say("unpublish from %s", strings.Join(removed, ", "))
	}
	if len(added) > 0 {
		o := newOp("publishablePublish", map[string]any{"id": u.old.ID, "input": publicationInput(added)})
		o.adds = additions{addedPublications: added}
		o.done = func(s *Shadow, _ map[string]any) {
			for _, name := range added {
				if !slices.Contains(s.Publications, name) {
					s.Publications = append(s.Publications, name)
				}
			}
			delete(s.Released, "publications")
		}
		u.add(o)
		u.say("publish to %s", strings.Join(added, ", "))
	}
}

func unpublishOp(id string, names []string) *op {
	o := newOp("publishableUnpublish", map[string]any{"id": id, "input": publicationInput(names)})
	o.done = func(s *Shadow, _ map[string]any) {
		s.Publications = slices.DeleteFunc(s.Publications, func(n string) bool { return slices.Contains(names, n) })
	}
	return o
}

// publicationNames reads back what publicationInput has written.
func publicationNames(o *op) []string {
	var names []string
	for _, in := range list(o.vars["input"]) {
		if r, ok := object(in)["publicationId"].(ref); ok {
			names = append(names, r.name)
		}
	}
	return names
}

func publicationInput(names []string) []any {
	var in []any
	for _, n := range names {
		in = append(in, map[string]any{"publicationId": ref{refPublication, n}})
	}
	return in
}
