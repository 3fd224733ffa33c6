package admin_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vektah/gqlparser/v2"
	"github.com/vektah/gqlparser/v2/validator/rules"

	"github.com/shelfwire/shelfwire/schemas/admin"
)

func TestSchemaLoadsOnceAndKnowsWhatShelfwireSends(t *testing.T) {
	schema, err := admin.Schema()
	require.NoError(t, err)
	again, err := admin.Schema()
	require.NoError(t, err)
	require.Same(t, schema, again)
	for _, field := range []string{
		"productSet", "productUpdate", "productVariantsBulkUpdate", "inventorySetQuantities", "metafieldsSet",
		"publishablePublish", "fileUpdate",
	} {
		require.NotNil(t, schema.Mutation.Fields.ForName(field), field)
	}
}

func TestSchemaValidatesIdempotentMutations(t *testing.T) {
	schema, err := admin.Schema()
	require.NoError(t, err)
	_, errs := gqlparser.LoadQueryWithRules(schema, `mutation($key: String!, $input: InventorySetQuantitiesInput!) {
		inventorySetQuantities(input: $input) @idempotent(key: $key) { userErrors { code field message } }
	}`, rules.NewDefaultRules())
	require.Empty(t, errs)
	_, errs = gqlparser.LoadQueryWithRules(schema, `{ product(id: "gid://shopify/Product/1") { noSuchField } }`, rules.NewDefaultRules())
	require.NotEmpty(t, errs)
}
