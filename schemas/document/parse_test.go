package document_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
)

const full = `{
  "eligible": true, "reason": null,
  "title": "Wool coat", "descriptionHtml": null, "vendor": "Nord", "productType": "Coat", "handle": "wool-coat",
  "seo": {"title": "Wool coat", "description": null}, "tags": [],
  "options": [{"name": "Size", "values": ["S", "M"]}, {"name": "Colour", "values": ["Red"]}],
  "variants": [
    {"key": "1", "options": ["S", "Red"], "sku": "W-S", "barcode": null, "price": "12.50", "compareAtPrice": null,
     "cost": "4", "policy": "DENY", "taxable": true, "requiresShipping": false, "weightGrams": 850.5,
     "stock": [{"location": "Berlin", "quantity": 5.000}, {"location": "Oslo", "quantity": 0, "name": "on_hand"}]},
    {"key": "2", "options": ["M", "Red"], "firstPrice": "13.00", "stock": [], "metafields": null}
  ],
  "metafields": [{"namespace": "custom", "key": "material", "type": "single_line_text_field", "value": null}],
  "images": [{"url": "https://cdn.example.com/a.jpg", "alt": null}],
  "publications": ["Online Store"]
}`

func TestParseKeepsAbsentNullAndEmptyApart(t *testing.T) {
	d, err := document.Parse([]byte(full))
	require.NoError(t, err)
	require.True(t, d.Eligible)
	require.Empty(t, d.Reason)
	require.Equal(t, document.Of("Wool coat"), d.Title)
	require.Equal(t, document.Cleared[string](), d.DescriptionHTML)
	require.Equal(t, document.Of([]string{}), d.Tags)
	seo, _ := d.SEO.Get()
	require.True(t, seo.Description.Null)
	variants, _ := d.Variants.Get()
	require.Equal(t, document.Of("12.50"), variants[0].Price)
	require.False(t, variants[1].Price.Owned, "an absent price is not owned")
	require.Equal(t, document.Decimal("13.00"), variants[1].FirstPrice)
	require.Equal(t, document.Of([]document.Level{}), variants[1].Stock)
	require.False(t, variants[1].SKU.Owned)
	stock, _ := variants[0].Stock.Get()
	require.Equal(t, 5, stock[0].Quantity, "5.000 is a whole number")

	encoded, err := json.Marshal(d)
	require.NoError(t, err)
	again, err := document.Parse(encoded)
	require.NoError(t, err)
	require.Equal(t, d, again)
}

func TestParseTakesTheSmallestNumbersForZero(t *testing.T) {
	d, err := document.Parse([]byte(change(t, `850.5`, `1e-999999999`)))
	require.NoError(t, err)
	require.Equal(t, document.Of(0.0), d.Variants.Value[0].WeightGrams)
	_, err = document.Parse([]byte(change(t, `"weightGrams"`, `"WeightGrams": 1e-9999999, "weightGrams"`)))
	require.ErrorContains(t, err, "WeightGrams", "the schema is asked, and has not calculated long")
}

func TestParseOfWhatIsNotEligibleReadsOnlyTheReason(t *testing.T) {
	d, err := document.Parse([]byte(`{"eligible": false, "reason": "NOT_APPROVED", "title": 7, "variants": null, "x": 1}`))
	require.NoError(t, err, "a broken part must not keep a product on sale")
	require.Equal(t, document.Document{Reason: "NOT_APPROVED"}, d)
}

// change replaces one piece of the full document.
func change(t *testing.T, before, after string) string {
	t.Helper()
	require.Equal(t, 1, strings.Count(full, before), "ambiguous test: %s", before)
	return strings.Replace(full, before, after, 1)
}

func TestParseSaysWhereAndHowToMend(t *testing.T) {
	long := strings.Repeat("ö", 256)
	for name, c := range map[string]struct{ raw, path, words string }{
		"endless":        {change(t, `850.5`, `-1E+0999999999`), "variants[0].weightGrams", "so large a number"},
		"not JSON":       {`{"eligible": tru`, "", "is not JSON"},
		"two values":     {`{"eligible": false, "reason": "A"} {}`, "", "something follows"},
		"a list":         {`[]`, "", "is array, must be object"},
		"nothing":        {`{}`, "", "lacks eligible"},
		"no reason":      {`{"eligible": false}`, "", "add one such as NOT_APPROVED"},
		"null reason":    {`{"eligible": false, "reason": null}`, "reason", "must be string"},
		"lower reason":   {`{"eligible": false, "reason": "no shop"}`, "reason", "upper case"},
		"eligible text":  {`{"eligible": "yes"}`, "eligible", "must be boolean"},
		"unknown":        {change(t, `"vendor"`, `"Vendor"`), "Vendor", "known here: descriptionHtml, eligible"},
		"unknown deep":   {change(t, `"barcode"`, `"ean"`), "variants[0].ean", "known here: barcode, compareAtPrice"},
		"number price":   {change(t, `"12.50"`, `12.50`), "variants[0].price", "cast it with ::text"},
		"comma price":    {change(t, `"12.50"`, `"12,50"`), "variants[0].price", `must be a decimal such as "12.50"`},
		"negative price": {change(t, `"12.50"`, `"-1"`), "variants[0].price", "not negative"},
		"null price":     {change(t, `"12.50"`, `null`), "variants[0].price", "cannot be cleared"},
		"null title":     {change(t, `"title": "Wool coat", "descriptionHtml"`, `"title": null, "descriptionHtml"`), "title", "cannot be cleared"},
		"long title":     {change(t, `"title": "Wool coat", "descriptionHtml"`, `"title": "`+long+`", "descriptionHtml"`), "title", "has 256 characters, at most 255"},
		"policy":         {change(t, `"DENY"`, `"deny"`), "variants[0].policy", `must be one of "DENY", "CONTINUE"`},
		"half a unit":    {change(t, `5.000`, `5.5`), "variants[0].stock[0].quantity", "round it"},
		"below zero":     {change(t, `5.000`, `-5`), "variants[0].stock[0].quantity", "greatest(value, 0)"},
		"too many units": {change(t, `5.000`, `1000000001`), "variants[0].stock[0].quantity", "at most 1000000000"},
		"a huge number":  {change(t, `5.000`, `1e999999999`), "variants[0].stock[0].quantity", "is"},
		"null stock":     {change(t, `"stock": []`, `"stock": null`), "variants[1].stock", "cannot be cleared"},
		"one location":   {change(t, `"Oslo"`, `"Berlin"`), "variants[0].stock[1].location", "sum the warehouses"},
		"tag comma":      {change(t, `"tags": []`, `"tags": ["a,b"]`), "tags[0]", "no comma"},
		"image path":     {change(t, `https://cdn.example.com`, `//cdn.example.com`), "images[0].url", "http:// or https://"},
		"same image":     {change(t, `"alt": null}`, `"alt": null}, {"url": "https://cdn.example.com/a.jpg"}`), "images[1].url", "select it once"},
		"same channel":   {change(t, `["Online Store"]`, `["A", "A"]`), "publications", "DISTINCT"},
		"same key":       {change(t, `"key": "2"`, `"key": "1"`), "variants[1].key", "join"},
		"same choice":    {change(t, `["M", "Red"]`, `["S", "Red"]`), "variants[1].options", `"S / Red"`},
		"few values":     {change(t, `["M", "Red"]`, `["M"]`), "variants[1].options", "has 1 values, the product has 2 options"},
		"no such value":  {change(t, `["M", "Red"]`, `["L", "Red"]`), "variants[1].options[0]", `add it to options[0].values`},
		"same option":    {change(t, `"Colour"`, `"size"`), "options[1].name", "its own name"},
		"slash option":   {change(t, `"Colour"`, `"A / B"`), "options[1].name", "joins option values"},
		"same value":     {change(t, `["S", "M"]`, `["S", "M", "S"]`), "options[0].values[2]", "once"},
		"four options":   {change(t, `{"name": "Colour"`, `{"name":"a","values":["a"]},{"name":"b","values":["a"]},{"name": "Colour"`), "options", "at most 3"},
		"no variants":    {`{"eligible": true, "variants": [], "options": []}`, "options", "make the product not eligible"},
		"options alone":  {`{"eligible": true, "options": [{"name": "A", "values": ["b"]}]}`, "", "go together"},
		"same metafield": {change(t, `"value": null}`, `"value": null}, {"namespace": "custom", "key": "material", "type": "boolean", "value": "true"}`), "metafields[1].key", "once"},
		"several":        {`{"eligible": true, "title": "", "vendor": 1, "tags": [1]}`, "tags[0]", "(and 2 more places)"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := document.Parse([]byte(c.raw))
			var e *document.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.path, e.Path, e.Message)
			require.Contains(t, e.Message, c.words)
			for range 3 { // one document, one message: it becomes part of an outcome
				_, again := document.Parse([]byte(c.raw))
				require.EqualError(t, again, err.Error())
			}
		})
	}
}

func TestParseTakesTheLargestProduct(t *testing.T) {
	for _, n := range []int{document.MaxVariants, document.MaxVariants + 1} {
		d := document.Document{Eligible: true, Title: document.Of("Many")}
		option := document.Option{Name: "Size"}
		var variants []document.Variant
		for i := range n {
			value := fmt.Sprint(i)
			if i < document.MaxVariants {
				option.Values = append(option.Values, value)
			}
			variants = append(variants, document.Variant{Key: value, Options: []string{value}, Price: document.Of("1.00")})
		}
		d.Options, d.Variants = document.Of([]document.Option{option}), document.Of(variants)
		raw, err := json.Marshal(d)
		require.NoError(t, err)
		_, err = document.Parse(raw)
		if n <= document.MaxVariants {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, "variants has 2049 entries")
	}
}

func TestHashIgnoresOnlyTheOrderOfSets(t *testing.T) {
	hash := func(raw string) string {
		t.Helper()
		d, err := document.Parse([]byte(raw))
		require.NoError(t, err)
		return document.Hash(d)
	}
	base := hash(full)
	swapped := strings.Replace(full, `{"location": "Berlin", "quantity": 5.000}, {"location": "Oslo", "quantity": 0, "name": "on_hand"}`,
		`{"location": "Oslo", "quantity": 0, "name": "on_hand"}, {"location": "Berlin", "quantity": 5, "name": "available"}`, 1)
	require.NotEqual(t, full, swapped)
	require.Equal(t, base, hash(swapped))
	require.Equal(t, base, hash(strings.Replace(full, `"reason": null,`, ``, 1)))
	for name, other := range map[string]string{
		"absent for null":  change(t, `"descriptionHtml": null, `, ``),
		"null for empty":   change(t, `"tags": []`, `"tags": null`),
		"price":            change(t, `"12.50"`, `"12.51"`),
		"order of values":  change(t, `["S", "M"]`, `["M", "S"]`),
		"quantity meant":   change(t, `"on_hand"`, `"available"`),
		"price not owned":  change(t, `"price": "12.50", `, ``),
		"metafield's type": change(t, `single_line`, `multi_line`),
	} {
		require.NotEqual(t, base, hash(other), name)
	}
}

func TestAnOwnedNilListIsEmptyNotCleared(t *testing.T) {
	a := document.Document{Eligible: true, Tags: document.Of([]string(nil))}
	raw, err := json.Marshal(a)
	require.NoError(t, err)
	require.JSONEq(t, `{"eligible": true, "tags": []}`, string(raw))
	b, err := document.Parse(raw)
	require.NoError(t, err)
	require.Equal(t, document.Hash(b), document.Hash(a))
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := document.Parse([]byte(full)); err != nil {
			b.Fatal(err)
		}
	}
}
