package document

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	jsonv1 "github.com/go-json-experiment/json/v1"
)

// Hash returns the hash of a document's content: 64 hexadecimal digits, equal for documents that ask the same of a
// shop. The order of tags, publications, metafields and stock levels does not count, because jsonb_agg without ORDER
// BY may return another order each time; the order of options, values, variants and images is shown to customers and
// does. Absent, null and empty differ.
func Hash(d Document) string {
	d.Tags = sorted(d.Tags, strings.Compare)
	d.Publications = sorted(d.Publications, strings.Compare)
	d.Metafields = sorted(d.Metafields, compareMetafields)
	if variants, ok := d.Variants.Get(); ok {
		variants = slices.Clone(variants)
		for i := range variants {
			variants[i].Metafields = sorted(variants[i].Metafields, compareMetafields)
			variants[i].Stock = sorted(namedLevels(variants[i].Stock), func(a, b Level) int {
				return strings.Compare(a.Location, b.Location)
			})
		}
		d.Variants.Value = variants
	}
	// Struct fields are encoded in their order, so equal values give equal bytes. Encoding cannot fail: a document
	// holds strings, numbers that came from JSON, booleans and lists of these.
	b, err := jsonv2.Marshal(d, jsonv1.DefaultOptionsV1())
	if err != nil {
		panic("document: encode for the hash: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// sorted returns the field with a sorted copy of its list.
func sorted[T any](f Field[[]T], compare func(a, b T) int) Field[[]T] {
	if list, ok := f.Get(); ok {
		f.Value = slices.Clone(list)
		if f.Value == nil {
			f.Value = []T{} // an empty list written in Go hashes as one that was decoded
		}
		slices.SortStableFunc(f.Value, compare)
	}
	return f
}

// namedLevels writes the default quantity's name out.
func namedLevels(f Field[[]Level]) Field[[]Level] {
	if list, ok := f.Get(); ok {
		f.Value = slices.Clone(list)
		for i := range f.Value {
			if f.Value[i].Name == "" {
				f.Value[i].Name = "available"
			}
		}
	}
	return f
}

func compareMetafields(a, b Metafield) int {
	return strings.Compare(a.Namespace+"."+a.Key, b.Namespace+"."+b.Key)
}
