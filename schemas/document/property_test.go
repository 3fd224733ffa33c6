package document_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/document"
)

// field draws the states of a field: absent, a value and, where the contract has it, null.
func field[T any](t *rapid.T, name string, nullable bool, value *rapid.Generator[T]) document.Field[T] {
	switch rapid.IntRange(0, 3).Draw(t, name+" state") {
	case 0:
		return document.Field[T]{}
	case 1:
		if nullable {
			return document.Cleared[T]()
		}
	}
	return document.Of(value.Draw(t, name))
}

var (
	line     = rapid.StringMatching(`[A-Za-zäß 0-9<>&"\\ 😀]{1,20}`)
	heading  = rapid.StringMatching(`[A-Zäß😀]([A-Za-zäß 0-9<>&"\\ 😀]{0,18}[a-z"])?`)
	decimals = rapid.StringMatching(`(0|[1-9][0-9]{0,6})(\.[0-9]{1,4})?`)
)

// documents draws documents that keep the contract.
func documents() *rapid.Generator[document.Document] {
	return rapid.Custom(func(t *rapid.T) document.Document {
		if rapid.IntRange(0, 9).Draw(t, "ineligible") == 0 {
			return document.Document{Reason: rapid.StringMatching(`[A-Z][A-Z_0-9]{0,12}`).Draw(t, "reason")}
		}
		d := document.Document{
			Eligible:        true,
			Title:           field(t, "title", false, heading),
			DescriptionHTML: field(t, "html", true, line),
			Vendor:          field(t, "vendor", true, line),
			Handle:          field(t, "handle", false, rapid.StringMatching(`[a-z][a-z0-9-]{0,9}`)),
			Tags:            field(t, "tags", true, rapid.SliceOfN(rapid.StringMatching(`[a-z ]{1,9}`), 0, 5)),
			Metafields:      metafields(t, "metafields"),
			Images:          field(t, "images", true, images()),
			Publications:    field(t, "publications", true, rapid.SliceOfNDistinct(line, 0, 3, rapid.ID)),
			SEO: field(t, "seo", true, rapid.Custom(func(t *rapid.T) document.SEO {
				return document.SEO{Title: field(t, "seo title", true, line), Description: field(t, "seo text", true, line)}
			})),
		}
		if rapid.Bool().Draw(t, "with variants") {
			options, list := variants(t)
			d.Options, d.Variants = document.Of(options), document.Of(list)
		}
		return d
	})
}

func images() *rapid.Generator[[]document.Image] {
	return rapid.Custom(func(t *rapid.T) []document.Image {
		out := []document.Image{}
		for i := range rapid.IntRange(0, 3).Draw(t, "images") {
			out = append(out, document.Image{URL: fmt.Sprintf("https://x/%d", i), Alt: line.Draw(t, "alt")})
		}
		return out
	})
}

func metafields(t *rapid.T, name string) document.Field[[]document.Metafield] {
	return field(t, name, true, rapid.Custom(func(t *rapid.T) []document.Metafield {
		out := []document.Metafield{}
		for i := range rapid.IntRange(0, 3).Draw(t, "count") {
			value := field(t, "value", true, line)
			value.Owned = true // the value of a metafield is always named
			if value.Value == "" {
				value.Null = true
			}
			out = append(out, document.Metafield{Namespace: "custom", Key: fmt.Sprintf("k%d", i), Type: "boolean", Value: value})
		}
		return out
	}))
}

func variants(t *rapid.T) ([]document.Option, []document.Variant) {
	options := []document.Option{{Name: "Size", Values: []string{"S", "M"}}, {Name: "Colour", Values: []string{"red", "blue", "tan"}}}
	out := []document.Variant{}
	for i := range rapid.IntRange(1, 6).Draw(t, "variants") {
		v := document.Variant{
			Key:              fmt.Sprint(i),
			Options:          []string{options[0].Values[i%2], options[1].Values[i/2]},
			SKU:              field(t, "sku", true, line),
			Price:            field(t, "price", false, decimals),
			CompareAtPrice:   field(t, "compare", true, decimals),
			Cost:             field(t, "cost", true, decimals),
			Policy:           field(t, "policy", false, rapid.SampledFrom([]string{"DENY", "CONTINUE"})),
			Taxable:          field(t, "taxable", false, rapid.Bool()),
			RequiresShipping: field(t, "shipping", false, rapid.Bool()),
			WeightGrams:      field(t, "weight", true, rapid.Float64Range(0, 1.9e9)),
			Metafields:       metafields(t, "variant metafields"),
		}
		if rapid.Bool().Draw(t, "first price") {
			v.FirstPrice = document.Decimal(decimals.Draw(t, "first"))
		}
		v.Stock = field(t, "stock", false, rapid.Custom(func(t *rapid.T) []document.Level {
			levels := []document.Level{}
			for j := range rapid.IntRange(0, 2).Draw(t, "levels") {
				levels = append(levels, document.Level{
					Location: fmt.Sprint("L", j), Quantity: rapid.IntRange(0, 1e9).Draw(t, "quantity"),
					Name: rapid.SampledFrom([]string{"", "available", "on_hand"}).Draw(t, "name"),
				})
			}
			return levels
		}))
		out = append(out, v)
	}
	return options, out
}

func TestEncodedDocumentsDecodeToThemselves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := documents().Draw(t, "document")
		raw, err := json.Marshal(d)
		require.NoError(t, err)
		again, err := document.Parse(raw)
		require.NoError(t, err, string(raw))
		require.Equal(t, d, again)
		require.Equal(t, document.Hash(d), document.Hash(again))
	})
}

func TestHashesOfDifferentDocumentsDiffer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := documents().Draw(t, "document")
		raw, err := json.Marshal(d)
		require.NoError(t, err)
		before := document.Hash(d)
		after, err := json.Marshal(d)
		require.NoError(t, err)
		require.Equal(t, raw, after, "hashing must not reorder the caller's lists")
		d.Title = document.Of("another title that no generator draws")
		d.Eligible = true
		require.NotEqual(t, before, document.Hash(d))
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(`{"eligible": false, "reason": "NO_SHOP"}`))
	f.Add([]byte(`{"eligible": true, "title": null, "variants": [{"key": "1", "options": [1e9999]}]}`))
	f.Add([]byte("{\"eligible\": true, \"title\": \"\xff\\u0000\\ud800\"}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := document.Parse(raw)
		if err != nil {
			var e *document.Error
			require.ErrorAs(t, err, &e)
			require.NotEmpty(t, e.Message)
			return
		}
		encoded, err := json.Marshal(d)
		require.NoError(t, err)
		again, err := document.Parse(encoded)
		require.NoError(t, err, string(encoded))
		require.Equal(t, document.Hash(d), document.Hash(again))
	})
}
