package config_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMirror(t *testing.T) {
	for text, want := range map[string][]string{
		"mirror: false\n": nil,
		"mirror: true\n":  {"catalog.catalog.products", "catalog.catalog.stock", "catalog.catalog.variants", "catalog.message"},
		"mirror: {prefix: shop, tables: ['sales.größe 1', catalog.stock]}\n": {
			"shop.catalog.products", "shop.catalog.stock", "shop.catalog.variants", "shop.sales.gr__e_1", "shop.message",
		},
	} {
		c, err := load(t, good+text)
		require.NoError(t, err, text)
		topics, err := c.MirrorTopics()
		require.NoError(t, err)
		require.Equal(t, want, topics, text)
	}
	for text, want := range map[string]string{
		"mirror: maybe\n":                        "mirror is \"maybe\"",
		"mirror: {table: [a.b]}\n":               "did you mean \"tables\"?",
		"mirror: {tables: [stock]}\n":            "\"stock\" is no table",
		"mirror: {prefix: 'a b'}\n":              "cannot begin the name of a topic",
		"mirror: {tables: ['a.b c', a.b_c]}\n":   "would be that of a.b c and of a.b_c",
		"mirror: {tables: ['catalog.sto ck']}\n": "",
	} {
		_, err := load(t, good+text)
		if want == "" {
			require.NoError(t, err, text)
			continue
		}
		require.ErrorContains(t, err, want, text)
	}
}
