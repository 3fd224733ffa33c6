package document_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
)

func TestNamesThatTheShopComparesCarryNoSpacesAround(t *testing.T) {
	d, err := document.Parse([]byte(`{"eligible": true, "title": " Shirt ", "options": [{"name": "Size ", "values": ["S ", "M"]}],
		"variants": [{"key": " 1", "options": ["S"], "sku": " A "}, {"key": "2", "options": [" M"]}]}`))
	require.NoError(t, err)
	require.Equal(t, "Shirt", d.Title.Value)
	require.Equal(t, []document.Option{{Name: "Size", Values: []string{"S", "M"}}}, d.Options.Value)
	require.Equal(t, []string{"S"}, d.Variants.Value[0].Options)
	require.Equal(t, []string{"M"}, d.Variants.Value[1].Options)
	require.Equal(t, " 1", d.Variants.Value[0].Key, "an identity stays as it is")
	require.Equal(t, " A ", d.Variants.Value[0].SKU.Value, "so does what others look things up by")
}

func TestNamesThatAreTheSameWithoutSpacesAreRefused(t *testing.T) {
	for _, c := range []struct{ body, path string }{
		{`"options": [{"name": "Size", "values": ["S", "S "]}], "variants": [{"key": "1", "options": ["S"]}]`, "options[0].values[1]"},
		{`"options": [{"name": "Size", "values": ["S", "  "]}], "variants": [{"key": "1", "options": ["S"]}]`, "options[0].values[1]"},
		{`"options": [{"name": " ", "values": ["S"]}], "variants": [{"key": "1", "options": ["S"]}]`, "options[0].name"},
		{`"title": "  "`, "title"},
	} {
		_, err := document.Parse([]byte(`{"eligible": true, ` + c.body + `}`))
		var e *document.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, c.path, e.Path)
	}
}
