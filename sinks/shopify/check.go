package shopify

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/shelfwire/shelfwire/schemas/document"
)

// Limits of the Admin API (shopify.dev, limits and schema descriptions of 2026-10). What breaks one is refused before
// a call, with the path of the field.
const (
	maxName       = 255 // characters of title, vendor, type, handle, tag, option name and value, SKU, barcode
	maxTags       = 250
	maxOptions    = 3
	maxValues     = 100 // of one option
	maxVariants   = 2048
	maxImages     = 250
	maxQuantity   = 1_000_000_000
	maxMetafields = 25     // in one metafieldsSet
	maxInputRows  = 250    // in most lists of an input
	maxQuantities = 50_000 // of all variants in one mutation
)

// refusal is a document that no shop would take: the field's path and the sentence for people.
type refusal struct{ field, message string }

func refuse(field, format string, args ...any) *refusal {
	return &refusal{field, fmt.Sprintf(format, args...)}
}

var decimal = regexp.MustCompile(`^[0-9]{1,15}(\.[0-9]{1,6})?$`)

// check finds what is wrong with a document before it costs a call; nil when nothing is.
func check(doc *document.Document) *refusal {
	for _, f := range []struct {
		name  string
		value document.Field[string]
	}{{"title", doc.Title}, {"vendor", doc.Vendor}, {"productType", doc.ProductType}, {"handle", doc.Handle}} {
		if utf8.RuneCountInString(f.value.Value) > maxName {
			return refuse(f.name, "%s has %d characters; Shopify allows %d", f.name, utf8.RuneCountInString(f.value.Value), maxName)
		}
	}
	if doc.Title.Owned && strings.TrimSpace(doc.Title.Value) == "" {
		return refuse("title", "a product needs a title")
	}
	tags := normalTags(doc.Tags.Value)
	if len(tags) > maxTags {
		return refuse("tags", "%d tags; Shopify allows %d", len(tags), maxTags)
	}
	for i, t := range tags {
		if utf8.RuneCountInString(t) > maxName {
			return refuse(fmt.Sprintf("tags[%d]", i), "a tag has more than %d characters", maxName)
		}
	}
	if len(doc.Images.Value) > maxImages {
		return refuse("images", "%d images; Shopify allows %d", len(doc.Images.Value), maxImages)
	}
	for i, image := range doc.Images.Value {
		u, err := url.Parse(image.URL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return refuse(fmt.Sprintf("images[%d].url", i), "%.100q is no URL of an image", image.URL)
		}
	}
	if r := checkMetafields("metafields", doc.Metafields.Value); r != nil {
		return r
	}
	if doc.Options.Owned != doc.Variants.Owned {
		return refuse("options", "options and variants go together: one of them is missing")
	}
	if !doc.Variants.Owned {
		return nil
	}
	if r := checkOptions(doc.Options.Value); r != nil {
		return r
	}
	return checkVariants(doc)
}

func checkOptions(options []document.Option) *refusal {
	if len(options) == 0 || len(options) > maxOptions {
		return refuse("options", "%d options; Shopify needs 1 to %d", len(options), maxOptions)
	}
	seen := map[string]bool{}
	for i, o := range options {
		field := fmt.Sprintf("options[%d]", i)
		switch {
		case strings.TrimSpace(o.Name) == "" || utf8.RuneCountInString(o.Name) > maxName:
			return refuse(field+".name", "an option's name needs 1 to %d characters", maxName)
		case strings.Contains(o.Name, " / "):
			return refuse(field+".name", "%q holds the sequence ' / ', which Shopify keeps for itself", o.Name)
		case seen[strings.ToLower(o.Name)]:
			return refuse(field+".name", "the option %q stands twice", o.Name)
		case len(o.Values) == 0:
			return refuse(field+".values", "the option %q has no values", o.Name)
		case len(o.Values) > maxValues:
			return refuse(field+".values", "%d values of the option %q; Shopify allows %d", len(o.Values), o.Name, maxValues)
		}
		seen[strings.ToLower(o.Name)] = true
		values := map[string]bool{}
		for j, v := range o.Values {
			if strings.TrimSpace(v) == "" || utf8.RuneCountInString(v) > maxName {
				return refuse(fmt.Sprintf("%s.values[%d]", field, j), "an option's value needs 1 to %d characters", maxName)
			}
			if values[v] {
				return refuse(fmt.Sprintf("%s.values[%d]", field, j), "the value %q stands twice", v)
			}
			values[v] = true
		}
	}
	return nil
}

func checkVariants(doc *document.Document) *refusal {
	variants := doc.Variants.Value
	if len(variants) == 0 {
		return refuse("variants", "a product needs at least one variant")
	}
	if len(variants) > maxVariants {
		return refuse("variants", "%d variants; Shopify allows %d", len(variants), maxVariants)
	}
	keys, tuples := map[string]bool{}, map[string]int{}
	for i := range variants {
		v := &variants[i]
		field := fmt.Sprintf("variants[%d]", i)
		if v.Key == "" || keys[v.Key] {
			return refuse(field+".key", "the key %q is empty or stands twice", v.Key)
		}
		keys[v.Key] = true
		if len(v.Options) != len(doc.Options.Value) {
			return refuse(field+".options", "%d values for %d options", len(v.Options), len(doc.Options.Value))
		}
		for j, value := range v.Options {
			if !slices.Contains(doc.Options.Value[j].Values, value) {
				return refuse(fmt.Sprintf("%s.options[%d]", field, j), "%q is no value of the option %q", value, doc.Options.Value[j].Name)
			}
		}
		t := tuple(v.Options)
		if other, twice := tuples[t]; twice {
			return refuse(field+".options", "the same options as variants[%d]: %s", other, strings.Join(v.Options, ", "))
		}
		tuples[t] = i
		if r := checkVariant(field, v); r != nil {
			return r
		}
	}
	return nil
}

func checkVariant(field string, v *document.Variant) *refusal {
	if v.Price.Null {
		return refuse(field+".price", "a price cannot be cleared; leave it out to keep the shop's own")
	}
	for _, f := range []struct{ name, value string }{
		{"price", v.Price.Value}, {"compareAtPrice", v.CompareAtPrice.Value}, {"firstPrice", string(v.FirstPrice)}, {"cost", v.Cost.Value},
	} {
		if f.value != "" && !decimal.MatchString(f.value) {
			return refuse(field+"."+f.name, "%.40q is no amount of money", f.value)
		}
	}
	if price, ok := v.Price.Get(); ok && price == "" {
		return refuse(field+".price", "the price is empty")
	}
	if p, ok := v.Policy.Get(); ok && p != "DENY" && p != "CONTINUE" {
		return refuse(field+".policy", "%.40q is neither DENY nor CONTINUE", p)
	}
	for _, f := range []struct {
		name  string
		value string
	}{{"sku", v.SKU.Value}, {"barcode", v.Barcode.Value}} {
		if utf8.RuneCountInString(f.value) > maxName {
			return refuse(field+"."+f.name, "more than %d characters", maxName)
		}
	}
	if v.WeightGrams.Value < 0 {
		return refuse(field+".weightGrams", "a weight is not negative")
	}
	locations := map[string]bool{}
	for i, l := range v.Stock.Value {
		at := fmt.Sprintf("%s.stock[%d]", field, i)
		switch {
		case l.Location == "" || locations[l.Location]:
			return refuse(at+".location", "the location %q is empty or stands twice", l.Location)
		case l.Quantity < 0 || l.Quantity > maxQuantity:
			return refuse(at+".quantity", "%d is not between 0 and %d", l.Quantity, maxQuantity)
		case l.Name != "" && l.Name != available && l.Name != onHand:
			return refuse(at+".name", "%q is neither available nor on_hand", l.Name)
		}
		locations[l.Location] = true
	}
	return checkMetafields(field+".metafields", v.Metafields.Value)
}

func checkMetafields(field string, list []document.Metafield) *refusal {
	seen := map[string]bool{}
	for i, m := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case m.Namespace == "" || m.Key == "":
			return refuse(at, "a metafield needs a namespace and a key")
		case seen[metafieldKey(m)]:
			return refuse(at, "the metafield %s stands twice", metafieldKey(m))
		case m.Type == "" && !m.Value.Null:
			return refuse(at+".type", "the metafield %s has no type", metafieldKey(m))
		}
		seen[metafieldKey(m)] = true
	}
	return nil
}

// checkCreation finds what a product needs only when it is created.
func checkCreation(doc *document.Document) *refusal {
	if doc.Title.Value == "" {
		return refuse("title", "a new product needs a title")
	}
	if !doc.Variants.Owned {
		return refuse("variants", "a new product needs its variants with a price, so that it is not on sale at 0")
	}
	return checkFirstPrices(doc, func(string) bool { return true })
}

// checkFirstPrices finds a variant without a price among those that are to be created.
func checkFirstPrices(doc *document.Document, created func(key string) bool) *refusal {
	for i, v := range doc.Variants.Value {
		if _, priced := v.Price.Get(); !priced && v.FirstPrice == "" && created(v.Key) {
			return refuse(fmt.Sprintf("variants[%d].firstPrice", i),
				"a new variant needs price or firstPrice, so that it is not on sale at 0")
		}
	}
	return nil
}

// tuple is a variant's options as one comparable value.
func tuple(options []string) string { return strings.Join(options, "\x00") }

func metafieldKey(m document.Metafield) string { return m.Namespace + "." + m.Key }

// normalTags are the tags as a shop keeps them: trimmed, split at commas, one of each whatever its case.
func normalTags(tags []string) []string {
	var out []string
	for _, list := range tags {
		for t := range strings.SplitSeq(list, ",") {
			t = strings.TrimSpace(t)
			if t != "" && !containsFold(out, t) {
				out = append(out, t)
			}
		}
	}
	return out
}

func containsFold(list []string, s string) bool {
	return slices.ContainsFunc(list, func(o string) bool { return strings.EqualFold(o, s) })
}
