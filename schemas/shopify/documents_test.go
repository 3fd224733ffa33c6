package shopify_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vektah/gqlparser/v2"
	"github.com/vektah/gqlparser/v2/validator/rules"

	"github.com/shelfwire/shelfwire/schemas/admin"
	"github.com/shelfwire/shelfwire/schemas/shopify"
)

func TestEveryDocumentIsValidAgainstTheSchema(t *testing.T) {
	schema, err := admin.Schema()
	require.NoError(t, err)
	require.NotEmpty(t, shopify.Names())
	for _, name := range shopify.Names() {
		t.Run(name, func(t *testing.T) {
			text, err := shopify.Document(name)
			require.NoError(t, err)
			doc, problems := gqlparser.LoadQueryWithRules(schema, text, rules.NewDefaultRules())
			require.Empty(t, problems)
			require.Len(t, doc.Operations, 1)
			require.Len(t, doc.Operations[0].SelectionSet, 1, "one root field, as requests are composed by aliasing it")
			require.Equal(t, name, doc.Operations[0].Name)
			require.Empty(t, doc.Fragments)
		})
	}
}

func TestUnknownDocumentIsAnError(t *testing.T) {
	_, err := shopify.Document("productEat")
	require.ErrorContains(t, err, "productEat")
}
