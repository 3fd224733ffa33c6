// Package document is what a shop shall have of one product: the contract between the user's documents query and
// the Shopify sink.
//
// The documents query returns one row for each shop that a product belongs to: (product_id, shop, document). The
// document owns exactly the fields that it names. An absent field is not owned and is never written; null clears it;
// an empty list empties what the document put there before, never what a merchant added.
//
// The published JSON Schema stands beside this file (document.schema.json); [Parse] checks a document against it, and
// what a schema cannot say besides: that variants and options fit each other, that keys are unique.
package document

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Field is a value of a document with its three states. The zero Field is absent: not owned. A Field must carry the
// JSON option omitzero, so that an absent field stays absent.
type Field[T any] struct {
	// Owned says that the document names the field.
	Owned bool
	// Null says that the document clears the field. Value is the zero value then.
	Null bool
	// Value is what the shop shall have when the field is owned and not null.
	Value T
}

// Of returns an owned field with a value.
func Of[T any](v T) Field[T] { return Field[T]{Owned: true, Value: v} }

// Cleared returns an owned field that is null.
func Cleared[T any]() Field[T] { return Field[T]{Owned: true, Null: true} }

// IsZero reports whether the field is absent; encoders ask it for omitzero.
func (f Field[T]) IsZero() bool { return !f.Owned }

// Get returns the value and whether there is one: owned and not null.
func (f Field[T]) Get() (T, bool) { return f.Value, f.Owned && !f.Null }

// UnmarshalJSONFrom is called only for a field that is present, with null included.
func (f *Field[T]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*f = Field[T]{Owned: true}
	if dec.PeekKind() == 'n' {
		f.Null = true
		return dec.SkipValue()
	}
	return json.UnmarshalDecode(dec, &f.Value)
}

// MarshalJSONTo writes the value, or null where the field is cleared or absent. A list that is owned and nil is the
// empty list: written as null it would say cleared.
func (f Field[T]) MarshalJSONTo(enc *jsontext.Encoder) error {
	if f.Null || !f.Owned {
		return enc.WriteToken(jsontext.Null)
	}
	return json.MarshalEncode(enc, f.Value, json.FormatNilSliceAsNull(false))
}

// UnmarshalJSON is UnmarshalJSONFrom for encoding/json.
func (f *Field[T]) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, f, lenient) }

// MarshalJSON is MarshalJSONTo for encoding/json.
func (f Field[T]) MarshalJSON() ([]byte, error) { return json.Marshal(f) }

// Document is one product as one shop shall have it.
type Document struct {
	// Eligible says whether the product may be on sale in this shop. False needs a Reason and takes a live product
	// off sale; a product that the shop never had is skipped.
	Eligible bool `json:"eligible"`
	// Reason is why the product is not eligible: NOT_APPROVED, NOT_NORMAL, NO_SHOP or a word of the user's own in
	// upper case. Empty where the product is eligible.
	Reason string `json:"reason,omitempty"`

	Title           Field[string]      `json:"title,omitzero"`
	DescriptionHTML Field[string]      `json:"descriptionHtml,omitzero"`
	Vendor          Field[string]      `json:"vendor,omitzero"`
	ProductType     Field[string]      `json:"productType,omitzero"`
	Handle          Field[string]      `json:"handle,omitzero"`
	SEO             Field[SEO]         `json:"seo,omitzero"`
	Tags            Field[[]string]    `json:"tags,omitzero"`
	Options         Field[[]Option]    `json:"options,omitzero"`
	Variants        Field[[]Variant]   `json:"variants,omitzero"`
	Metafields      Field[[]Metafield] `json:"metafields,omitzero"`
	Images          Field[[]Image]     `json:"images,omitzero"`
	// Publications are the names of the sales channels that the product is published to. Only the channels named
	// here or in the document before are touched.
	Publications Field[[]string] `json:"publications,omitzero"`
}

// SEO is the search listing of a product. Both fields follow the rules of Field.
type SEO struct {
	Title       Field[string] `json:"title,omitzero"`
	Description Field[string] `json:"description,omitzero"`
}

// Option is a product option such as Size, with its values in the order of the shop's menu. A product has 1 to 3.
// Parse takes off the spaces around names and values, here and in variants.
type Option struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}

// Variant is one variant. Variants are identified by Key, which is the source's own id and never changes; it is
// unique in the document. Options without variants, and variants without options, are refused: a product without
// real options has the option Title with the value Default Title.
type Variant struct {
	Key string `json:"key"`
	// Options holds one value for each option of the document, in the same order.
	Options []string      `json:"options"`
	SKU     Field[string] `json:"sku,omitzero"`
	Barcode Field[string] `json:"barcode,omitzero"`
	// Price and CompareAtPrice are decimals in the shop's currency ("12.50"). Absent: the shop keeps its own.
	Price          Field[string] `json:"price,omitzero"`
	CompareAtPrice Field[string] `json:"compareAtPrice,omitzero"`
	// FirstPrice is the price that a creation carries when Price is absent, so that nothing is ever on sale at 0.
	FirstPrice Decimal `json:"firstPrice,omitempty"`
	// Cost is the unit cost as a decimal.
	Cost Field[string] `json:"cost,omitzero"`
	// Policy is DENY or CONTINUE: whether the shop sells below zero.
	Policy           Field[string]      `json:"policy,omitzero"`
	Taxable          Field[bool]        `json:"taxable,omitzero"`
	RequiresShipping Field[bool]        `json:"requiresShipping,omitzero"`
	WeightGrams      Field[float64]     `json:"weightGrams,omitzero"`
	Metafields       Field[[]Metafield] `json:"metafields,omitzero"`
	// Stock is a level for each location. Absent: the shop's levels are left alone, also at the creation. A variant
	// with stock is tracked.
	Stock Field[[]Level] `json:"stock,omitzero"`
}

// Level is the stock of a variant at one location.
type Level struct {
	// Location is the name of a location of the shop.
	Location string `json:"location"`
	// Quantity is in units, 0 to 1,000,000,000. A numeric of SQL may have zeros behind its point (5.000).
	Quantity int `json:"quantity"`
	// Name is which of the shop's quantities is meant: "available" (the default, also for "") or "on_hand".
	Name string `json:"name,omitempty"`
}

// Metafield is one metafield of a product or variant. A null value deletes it; a metafield that leaves the document
// is deleted too, as it was ours.
type Metafield struct {
	Namespace string        `json:"namespace"`
	Key       string        `json:"key"`
	Type      string        `json:"type"`
	Value     Field[string] `json:"value"`
}

// Image is a picture by URL. It is uploaded once; the URL is its identity.
type Image struct {
	URL string `json:"url"`
	Alt string `json:"alt,omitempty"`
}
