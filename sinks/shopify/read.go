package shopify

import (
	"maps"
	"math"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// reading is one product that is being read from the shop, over as many pages as its variants need.
type reading struct {
	doc   *document.Document
	old   *Shadow
	set   *settings
	node  map[string]any // the product as the first page gave it
	nodes []any          // the variants of all pages
	after string
	// keys and variantKeys are the metafields that were asked for.
	keys, variantKeys []string
}

// readVariants is the page of a product's variants; 100 keep a product of 2,048 variants at 21 requests.
const readVariants = 100

// op is the read of the next page.
func (r *reading) op(id string) *op {
	keys, variantKeys := r.metafieldKeys()
	expected := max(len(r.doc.Variants.Value), len(r.old.Variants)) + 1
	vars := map[string]any{
		"id": id, "variants": min(expected, readVariants),
		"levels": max(1, min(maxInputRows, len(r.set.locations))), "withLevels": r.ownsStock(),
		"images": maxImages, "withImages": r.doc.Images.Owned && r.after == "",
		"metafields": max(1, len(keys)), "keys": anys(keys), "withMetafields": len(keys) > 0 && r.after == "",
		"variantMetafields": max(1, len(variantKeys)), "variantKeys": anys(variantKeys), "withVariantMetafields": len(variantKeys) > 0,
		"publications":     max(1, min(maxInputRows, len(r.set.publications))),
		"withPublications": r.doc.Publications.Owned && r.after == "",
		"namespace":        ref{refCustomID, "namespace"}, "variantKey": variantKey,
	}
	if r.after != "" {
		vars["after"] = r.after
	}
	return newOp("product", vars)
}

// take adds a page; true when there are more.
func (r *reading) take(product map[string]any) bool {
	if r.node == nil {
		r.node = product
	}
	variants := object(product["variants"])
	r.nodes = append(r.nodes, list(variants["nodes"])...)
	info := object(variants["pageInfo"])
	next := text(info["endCursor"])
	more := truth(info["hasNextPage"]) && next != "" && next != r.after
	r.after = next
	return more
}

// ownsStock reports whether levels are ours: by the document, or by the last one where this one is off sale.
func (r *reading) ownsStock() bool {
	if !r.doc.Variants.Owned {
		for _, v := range r.old.Variants {
			if len(v.Stock) > 0 {
				return true
			}
		}
	}
	return slices.ContainsFunc(r.doc.Variants.Value, func(v document.Variant) bool { return v.Stock.Owned })
}

// metafieldKeys lists the metafields that are ours: those of the document, and then those that were pushed before or
// may have been. A read takes maxInputRows of them; of the others nobody knows more than that they were ours.
func (r *reading) metafieldKeys() (product, variant []string) {
	ofProduct, ofVariants := map[string]bool{}, map[string]bool{}
	oldProduct, oldVariants := map[string]bool{}, map[string]bool{}
	if r.doc.Metafields.Owned {
		for _, m := range r.doc.Metafields.Value {
			ofProduct[metafieldKey(m)] = true
		}
		for k := range r.old.Metafields {
			oldProduct[k] = true
		}
		for _, k := range r.old.Former[addedMetafields] {
			oldProduct[k] = true
		}
	}
	for _, v := range r.doc.Variants.Value {
		for _, m := range v.Metafields.Value {
			ofVariants[metafieldKey(m)] = true
		}
	}
	for _, v := range r.old.Variants {
		for k := range v.Metafields {
			oldVariants[k] = true
		}
	}
	for _, k := range r.old.Former[addedVariantMetafields] {
		oldVariants[k] = true
	}
	return asked(ofProduct, oldProduct), asked(ofVariants, oldVariants)
}

func asked(wanted, others map[string]bool) []string {
	maps.DeleteFunc(others, func(k string, _ bool) bool { return wanted[k] })
	keys := append(slices.Sorted(maps.Keys(wanted)), slices.Sorted(maps.Keys(others))...)
	return keys[:min(len(keys), maxInputRows)]
}

// unread marks what was ours and was not among the keys of a read.
func unread(into, old map[string]string, keys []string) {
	if len(keys) < maxInputRows {
		return
	}
	for k := range old {
		if !slices.Contains(keys, k) {
			into[k] = unknown
		}
	}
}

// shadow is what the shop has of what the document owns. What was ours before and is still there stays ours; what the
// shop has beyond that is the merchant's.
func (r *reading) shadow() *Shadow {
	s := newShadow(text(r.node["id"]))
	s.Former = cloneMap(r.old.Former)
	s.Status = text(r.node["status"])
	for _, f := range scalars(r.doc) {
		if f.field.Owned {
			s.Fields[f.name] = mark(productText(r.node, f.name))
		}
	}
	ours := slices.Concat(normalTags(r.doc.Tags.Value), r.old.Tags, r.old.Former[addedTags])
	for _, t := range list(r.node["tags"]) {
		if tag := text(t); r.doc.Tags.Owned && containsFold(ours, tag) {
			s.Tags = append(s.Tags, tag)
		}
	}
	readMetafields(s.Metafields, r.doc.Metafields, object(r.node["metafields"]))
	r.keys, r.variantKeys = r.metafieldKeys()
	unread(s.Metafields, r.old.Metafields, r.keys)
	s.Options = readOptions(list(r.node["options"]))
	r.images(s)
	ours = slices.Concat(r.doc.Publications.Value, r.old.Publications, r.old.Former[addedPublications])
	for _, n := range list(object(r.node["resourcePublicationsV2"])["nodes"]) {
		name := r.set.channels[text(object(object(n)["publication"])["id"])]
		if truth(object(n)["isPublished"]) && slices.Contains(ours, name) {
			s.Publications = append(s.Publications, name)
		}
	}
	r.variants(s)
	r.released(s)
	return s
}

// released keeps on record what the document does not own now: it was not read.
func (r *reading) released(s *Shadow) {
	if !r.doc.Tags.Owned {
		s.Tags = r.old.Tags
		s.release("tags", len(s.Tags) > 0)
	}
	if !r.doc.Images.Owned {
		s.Images = r.old.Images
		s.release("images", true)
	}
	if !r.doc.Publications.Owned {
		s.Publications = r.old.Publications
		s.release("publications", len(s.Publications) > 0)
	}
	if !r.doc.Metafields.Owned {
		for key := range r.old.Metafields {
			s.Metafields[key] = unknown
		}
	}
}

func productText(node map[string]any, field string) string {
	if name, ok := strings.CutPrefix(field, "seo."); ok {
		return text(object(node["seo"])[name])
	}
	return text(node[field])
}

// readMetafields marks a connection's metafields, and those that are wanted gone and are. Asked for by keys, Shopify answers keys in the form that they were
// asked for in: "namespace.key".
func readMetafields(into map[string]string, wanted document.Field[[]document.Metafield], connection map[string]any) {
	for _, m := range wanted.Value {
		if metafieldMark(m) == nothing {
			into[metafieldKey(m)] = nothing
		}
	}
	for _, n := range list(connection["nodes"]) {
		m := object(n)
		namespace := text(m["namespace"])
		key := strings.TrimPrefix(text(m["key"]), namespace+".")
		into[namespace+"."+key] = mark(text(m["type"]) + ":" + text(m["value"]))
	}
}

func readOptions(options []any) []ShadowOption {
	var out []ShadowOption
	for _, o := range options {
		option := ShadowOption{ID: text(object(o)["id"]), Name: text(object(o)["name"])}
		for _, v := range list(object(o)["optionValues"]) {
			option.Values = append(option.Values, ShadowValue{ID: text(object(v)["id"]), Name: text(object(v)["name"])})
		}
		out = append(out, option)
	}
	return out
}

// variants finds our variants among the shop's: by id where the id is known, else by the key that they carry, else by
// their options, which are unique in a product. What none of these finds is the merchant's.
func (r *reading) variants(s *Shadow) {
	byID := map[string]string{}
	for key, v := range r.old.Variants {
		byID[v.ID] = key
	}
	byOptions := map[string]string{}
	var rest []map[string]any
	for _, n := range r.nodes {
		node := object(n)
		key, ok := byID[text(node["id"])]
		if !ok {
			key = text(object(node["ours"])["value"])
		}
		if key != "" && s.Variants[key] == nil {
			s.Variants[key] = r.variant(key, node)
		} else {
			rest = append(rest, node)
		}
	}
	for _, v := range r.doc.Variants.Value {
		if s.Variants[v.Key] == nil {
			byOptions[tuple(v.Options)] = v.Key
		}
	}
	for _, node := range rest {
		key, ok := byOptions[tuple(selectedOptions(node))]
		switch {
		case ok && s.Variants[key] == nil:
			s.Variants[key] = r.variant(key, node)
		case text(object(node["ours"])["value"]) != "":
			// A second one with the same key: ours, and wanted by nobody.
			s.Variants["~"+text(node["id"])] = r.variant("", node)
		default:
			s.foreign++
		}
	}
}

func selectedOptions(node map[string]any) []string {
	var out []string
	for _, o := range list(node["selectedOptions"]) {
		out = append(out, text(object(o)["value"]))
	}
	return out
}

func (r *reading) variant(key string, node map[string]any) *ShadowVariant {
	item := object(node["inventoryItem"])
	sv := &ShadowVariant{
		ID: text(node["id"]), Item: text(item["id"]), Options: selectedOptions(node),
		Fields: readVariantFields(node, item), Metafields: map[string]string{}, Stock: map[string]ShadowLevel{},
	}
	old := r.old.Variants[key]
	if old == nil {
		old = &ShadowVariant{}
	}
	// One that has left the document may get another key of it (rebind): all that is ours of it counts.
	want := document.Variant{Metafields: document.Of[[]document.Metafield](nil)}
	if at := slices.IndexFunc(r.doc.Variants.Value, func(v document.Variant) bool { return v.Key == key }); at >= 0 {
		want = r.doc.Variants.Value[at]
	}
	r.variantMetafields(sv, &want, old, object(node["metafields"]))
	names := r.old.Former.stockPlaces(key, sv.Item) // of the quantity that is ours, by location
	for location, l := range old.Stock {
		names[location] = levelName(l.Name)
	}
	for _, l := range want.Stock.Value {
		names[l.Location] = levelName(l.Name)
	}
	for _, n := range list(object(item["inventoryLevels"])["nodes"]) {
		location := r.set.names[text(object(object(n)["location"])["id"])]
		name, ours := names[location]
		if !ours {
			continue
		}
		if q, ok := quantity(object(n), name); ok {
			sv.Stock[location] = shadowLevel(document.Level{Quantity: q, Name: name})
		}
	}
	return sv
}

// variantMetafields keeps what is ours of this variant: the page holds the keys of all of them.
func (r *reading) variantMetafields(sv *ShadowVariant, want *document.Variant, old *ShadowVariant, page map[string]any) {
	if !want.Metafields.Owned {
		for key := range old.Metafields {
			sv.Metafields[key] = unknown
		}
		return
	}
	readMetafields(sv.Metafields, want.Metafields, page)
	unread(sv.Metafields, old.Metafields, r.variantKeys)
	maps.DeleteFunc(sv.Metafields, func(key, _ string) bool {
		_, before := old.Metafields[key]
		before = before || slices.Contains(r.old.Former[addedVariantMetafields], key)
		return !before && !slices.ContainsFunc(want.Metafields.Value, func(m document.Metafield) bool { return metafieldKey(m) == key })
	})
}

// quantity finds one named quantity of a level.
func quantity(level map[string]any, name string) (int, bool) {
	for _, q := range list(level["quantities"]) {
		if text(object(q)["name"]) == name {
			return int(number(object(q)["quantity"])), true
		}
	}
	return 0, false
}

// readVariantFields are the marks of what the shop has, in the form of variantFields.
func readVariantFields(node, item map[string]any) map[string]string {
	optional := func(v any, as func(string) string) string {
		if s := text(v); s != "" {
			return as(s)
		}
		return nothing
	}
	weight := object(object(item["measurement"])["weight"])
	return map[string]string{
		"price":            markDecimal(text(node["price"])),
		"compareAtPrice":   optional(node["compareAtPrice"], markDecimal),
		"barcode":          optional(node["barcode"], mark),
		"sku":              optional(item["sku"], mark),
		"cost":             optional(object(item["unitCost"])["amount"], markDecimal),
		"policy":           mark(text(node["inventoryPolicy"])),
		"taxable":          boolMark(truth(node["taxable"])),
		"requiresShipping": boolMark(truth(item["requiresShipping"])),
		"weight":           weightMark(grams(number(weight["value"]), text(weight["unit"]))),
		"tracked":          boolMark(truth(item["tracked"])),
	}
}

// grams converts a weight. Rounded to a milligram, so that a conversion makes no difference.
func grams(value float64, unit string) float64 {
	factor := map[string]float64{"KILOGRAMS": 1000, "OUNCES": 28.349523125, "POUNDS": 453.59237}[unit]
	if factor == 0 {
		factor = 1
	}
	return math.Round(value*factor*1000) / 1000
}

// images finds our images among the product's media. Ids decide where they are known. Otherwise (the answer to an
// upload was lost) the file's name does, which Shopify keeps, with a suffix where it was taken; a picture that is
// still being processed has none yet and is recognised by its alt text.
func (r *reading) images(s *Shadow) {
	if !r.doc.Images.Owned {
		return
	}
	there := nodeIDs(r.node, "media")
	byID := map[string]ShadowImage{}
	var open []document.Image // those of ours whose id is not known or not there
	have := func(url string) bool {
		return slices.ContainsFunc(r.old.Images, func(o ShadowImage) bool { return o.URL == url && byID[o.ID].URL == url })
	}
	add := func(i document.Image) {
		if !have(i.URL) && !slices.ContainsFunc(open, func(o document.Image) bool { return o.URL == i.URL }) {
			open = append(open, i)
		}
	}
	for _, i := range r.old.Images {
		if i.ID != "" && slices.Contains(there, i.ID) {
			byID[i.ID] = i
		}
	}
	for _, i := range r.doc.Images.Value {
		add(i)
	}
	for _, o := range r.old.Images {
		add(document.Image{URL: o.URL, Alt: o.Alt})
	}
	for _, u := range r.old.Former[addedImages] {
		add(document.Image{URL: u})
	}
	for _, n := range list(object(r.node["media"])["nodes"]) {
		node := object(n)
		id, alt := text(node["id"]), text(node["alt"])
		if ours, ok := byID[id]; ok {
			s.Images = append(s.Images, ShadowImage{URL: ours.URL, Alt: alt, ID: id})
			continue
		}
		at := slices.IndexFunc(open, func(i document.Image) bool { return sameImage(i, node) })
		if at >= 0 {
			s.Images = append(s.Images, ShadowImage{URL: open[at].URL, Alt: alt, ID: id})
			open = slices.Delete(open, at, at+1)
		} else if again := r.copyOf(node); again != "" {
			s.Images = append(s.Images, ShadowImage{URL: again, Alt: alt, ID: id})
		}
	}
}

// copyOf returns the URL that a request without an answer has uploaded once more; empty for a picture that is not ours.
func (r *reading) copyOf(node map[string]any) string {
	if text(object(node["image"])["url"]) == "" {
		return ""
	}
	for _, u := range r.old.Former[addedImages] {
		if sameImage(document.Image{URL: u}, node) {
			return u
		}
	}
	return ""
}

func sameImage(image document.Image, node map[string]any) bool {
	served := text(object(node["image"])["url"])
	if served == "" {
		return text(node["status"]) != "FAILED" && text(node["alt"]) == image.Alt
	}
	want, have := stem(image.URL), stem(served)
	suffix, named := strings.CutPrefix(have, want)
	return want != "" && named && (suffix == "" || appended.MatchString(suffix))
}

// appended is what Shopify puts behind a file's name that is taken.
var appended = regexp.MustCompile(`^_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// stem is the file name of a URL without its extension.
func stem(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	base := path.Base(u.Path)
	return strings.TrimSuffix(base, path.Ext(base))
}

// customID addresses a product by our metafield.
func (sh *shop) customID(p work.Push) map[string]any {
	return map[string]any{"customId": map[string]any{
		"namespace": sh.cfg.Namespace, "key": sh.cfg.Key, "value": p.ProductID,
	}}
}
