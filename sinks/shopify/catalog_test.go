package shopify_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/sinks/shopify"
)

func TestTheCatalogHoldsWhatIsOurs(t *testing.T) {
	w := newWorld(t)
	for i := range 23 {
		w.mustPush(fmt.Sprint(i), shirt(1+i%3))
	}
	w.mustPush("many", shirt(90))
	w.api(`mutation { productCreate(product: {title: "The merchant's"}) { userErrors { message } } }`, nil)
	w.wire.take()

	got := map[string]shopify.ShopProduct{}
	require.NoError(t, w.client.ReadCatalog(t.Context(), testShop, func(p shopify.ShopProduct) bool {
		got[p.ProductID] = p
		return true
	}))
	require.Len(t, got, 24)
	require.Empty(t, mutations(w.wire.take()))
	many := got["many"]
	require.Len(t, many.Variants, 90)
	require.Equal(t, "v89", many.Variants[89].Key)
	require.Equal(t, "99.50", many.Variants[89].Price)
	require.Equal(t, shopify.ShopLevel{Location: "Main", Available: 94, OnHand: 94}, many.Variants[89].Levels[0])
	one := got["1"]
	require.Equal(t, "Shirt", one.Title)
	require.Equal(t, "ACTIVE", one.Status)
	require.ElementsMatch(t, []string{"summer", "cotton"}, one.Tags)
	require.Equal(t, []string{"Online Store"}, one.Publications)
	require.Equal(t, "cotton", one.Metafields["pim.material"].Value)
	require.Equal(t, []shopify.ShopOption{{Name: "Size", Values: []string{"S0", "S1"}}}, one.Options)
	require.Len(t, one.Images, 2)

	seen := 0
	require.NoError(t, w.client.ReadCatalog(t.Context(), testShop, func(shopify.ShopProduct) bool { seen++; return false }))
	require.Equal(t, 1, seen)
	require.ErrorContains(t, w.client.ReadCatalog(t.Context(), "elsewhere", nil), "elsewhere")
}
