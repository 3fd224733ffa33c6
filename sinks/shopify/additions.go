package shopify

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// additions names what a request adds to lists that a product's other owners may add to as well, by the part of the
// shadow that it would stand in. A request without an answer may have added it, or may yet: where a read finds it, it
// is ours, although neither the last shadow nor the present document names it. Everything else that a request writes
// is compared with the document by the read.
//
// The intent carries it (see intentText), because a worker that is killed leaves nothing else behind; the shadow's
// Former keeps it from the first read until no request is in flight any more.
type additions map[string][]string

// The parts. Metafields of variants are named without the variant: it was the mapping that has put such a key on one
// of our variants, and a merchant's own variants are not looked at.
const (
	addedTags              = "tags"
	addedImages            = "images" // URLs
	addedPublications      = "publications"
	addedMetafields        = "metafields" // namespace.key
	addedVariantMetafields = "variantMetafields"
	addedStock             = "stock" // see stockPlace
)

// maxAdditions bounds each list; the newest stay. A product has at most 250 of what is counted by product.
const maxAdditions = 1000

// merge adds b to a and returns a.
func (a additions) merge(b additions) additions {
	for part, names := range b {
		if len(names) == 0 {
			continue
		}
		seen := map[string]bool{}
		for _, n := range a[part] {
			seen[n] = true
		}
		list := slices.Clip(a[part]) // it may be shared
		for _, n := range names {
			if !seen[n] {
				seen[n] = true
				list = append(list, n)
			}
		}
		a[part] = list[max(0, len(list)-maxAdditions):]
	}
	return a
}

// placeSeparator stands in no key and in no location's name.
const placeSeparator = "\x1f"

// stockPlace names a level. The variant is an inventory item's gid; the key of one that is being created; or empty for
// all of a new product.
func stockPlace(variant, location, name string) string {
	return variant + placeSeparator + location + placeSeparator + name
}

// stockPlaces lists the levels that additions name for a variant: names of quantities by location.
func (a additions) stockPlaces(key, item string) map[string]string {
	out := map[string]string{}
	for _, place := range a[addedStock] {
		parts := strings.Split(place, placeSeparator)
		if len(parts) == 3 && (parts[0] == "" || parts[0] == key || parts[0] == item) {
			out[parts[1]] = parts[2]
		}
	}
	return out
}

func metafieldKeys(list []document.Metafield) []string {
	var keys []string
	for _, m := range list {
		if metafieldMark(m) != nothing {
			keys = append(keys, metafieldKey(m))
		}
	}
	return keys
}

func imageURLs(images []document.Image) []string {
	var urls []string
	for _, i := range images {
		urls = append(urls, i.URL)
	}
	return urls
}

// additionsFor is what a request adds to one product's lists.
func (r *request) additionsFor(j *job) additions {
	out := additions{}
	var places []string
	for _, i := range r.items {
		if i.rows == nil {
			if i.jobs[0] == j {
				out.merge(i.op.adds)
			}
			continue
		}
		for _, row := range i.rows {
			if row.job == j && !j.onRecord(row.stockRow) {
				places = append(places, stockPlace(row.item, row.location, row.name))
			}
		}
	}
	return out.merge(additions{addedStock: places})
}

// onRecord reports whether the state's own record names a level, so that an intent need not: what this Send has read
// meanwhile would be lost with the worker.
func (j *job) onRecord(row stockRow) bool {
	st, ok := j.plan.Steps.(*steps)
	if !ok || st.known.shadow == nil {
		return false
	}
	sv := st.known.shadow.Variants[row.variant]
	if sv == nil || sv.Item != row.item {
		return false
	}
	_, named := sv.Stock[row.location]
	return named
}

// intentText is an intent's Mutation: the names of the root fields and, behind a space, the additions as JSON.
func intentText(mutations []string, adds additions) string {
	text := strings.Join(mutations, "+")
	if len(adds) == 0 {
		return text
	}
	b, err := json.Marshal(adds)
	if err != nil { // a map of texts: it has no such value
		return text
	}
	return text + " " + string(b)
}

// intended are the additions of requests without an answer.
func intended(intents []work.Intent) additions {
	out := additions{}
	for _, in := range intents {
		_, text, found := strings.Cut(in.Mutation, " ")
		var adds additions
		if found && json.Unmarshal([]byte(text), &adds) == nil {
			out.merge(adds)
		}
	}
	return out
}
