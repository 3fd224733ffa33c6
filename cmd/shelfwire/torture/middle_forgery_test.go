package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// forgery changes one copy of the data behind the back of all others.
type forgery struct {
	what string
	do   func(ctx context.Context) error
	// found is part of what the comparison must say of it, and says of no other one of its round.
	found string
}

// TestMiddleOracleFindsForgeries shows that the comparison after a schedule finds what it is there to find: in a run that
// has ended clean, one copy after the other is doctored.
func TestMiddleOracleFindsForgeries(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	p := planMiddle(3)
	p.blows, p.tables, p.guarded, p.late = nil, true, false, false
	p.places = []string{"capture", "push-a", "expand-a", "relay-a", "load-a"}
	m := newMiddle(t, p, newMiddleGround(t))
	m.play()
	topics, err := m.topics(t.Context())
	require.NoError(t, err)
	clean := &findings{}
	require.NoError(t, m.collect(t.Context(), clean, topics))
	require.Empty(t, clean.wrong)
	for _, round := range [][]forgery{m.forgedTopics(topics), m.forgedState(), m.forgedShops(topics)} {
		for _, f := range round {
			require.NoError(t, f.do(t.Context()), f.what)
		}
		got := &findings{}
		require.NoError(t, m.collect(t.Context(), got, topics))
		for _, f := range round {
			require.True(t, slices.ContainsFunc(got.wrong, func(w string) bool { return strings.Contains(w, f.found) }),
				"%s: not found among %d findings", f.what, len(got.wrong))
		}
	}
}

// edited has a topic read as something else.
func edited(topics map[string][]event.Record, name string, change func([]event.Record) []event.Record) func(context.Context) error {
	return func(context.Context) error {
		topics[name] = change(slices.Clone(topics[name]))
		return nil
	}
}

// forgedTopics are forgeries of what the topics are read as.
func (m *middle) forgedTopics(topics map[string][]event.Record) []forgery {
	last := func(r []event.Record) []event.Record { return r[:len(r)-1] }
	twice := func(r []event.Record) []event.Record { return append(r, r[len(r)/2]) }
	return []forgery{
		{"an outcome is not there", edited(topics, event.Outcomes, last), "is missing"},
		{"an outcome is there twice", edited(topics, event.Outcomes, twice), "stands there twice"},
		{"a change is not there", edited(topics, event.Changes, last), "ClickHouse: changes has"},
		{"a document is another", edited(topics, event.Documents, func(r []event.Record) []event.Record {
			r[len(r)-1].Value = []byte(`{"hash": "forged"}`)
			return r
		}), `in the topic "forged"`},
		{"a batch has ended twice", edited(topics, event.Batches, func(r []event.Record) []event.Record {
			i := slices.IndexFunc(r, func(r event.Record) bool { return decoded[event.Batch](&r).Type == event.BatchCompleted })
			return append(r, r[i])
		}), "ended 2 times"},
		{"what was rolled back", edited(topics, event.Outcomes, func(r []event.Record) []event.Record {
			r[0].Value = []byte(`{"message": "` + neverCommitted + `"}`)
			return r
		}), "was rolled back and is there"},
	}
}

// forgedState are forgeries of the state.
func (m *middle) forgedState() []forgery {
	sql := func(sql string) func(context.Context) error {
		return func(ctx context.Context) error {
			rows, err := query[int](ctx, m.stateURL, sql+" RETURNING 1")
			if err == nil && len(rows) == 0 {
				return fmt.Errorf("nothing to forge by %s", sql)
			}
			return err
		}
	}
	const some = `(product_id, shop) = (SELECT product_id, shop FROM products WHERE shopify_id <> '' AND NOT off_sale ORDER BY 1, 2 OFFSET %d LIMIT 1)`
	const gone = `SELECT batch_id, product_id FROM batch_items JOIN batches b ON b.id = batch_id WHERE b.kind = 'snapshot' ORDER BY 1, 2 LIMIT 1`
	return []forgery{
		{"a row was never in the outbox", sql(`DELETE FROM emitted WHERE id = (SELECT max(id) FROM emitted WHERE topic LIKE '%outcomes')`), "never in the outbox"},
		{"another last outcome", sql(`UPDATE products SET last_status = 'FAILED' WHERE ` + fmt.Sprintf(some, 0)), "the last outcome of"},
		{"another last document", sql(`UPDATE products SET document_hash = 'forged too' WHERE ` + fmt.Sprintf(some, 1)), `is "forged too"`},
		{"a shadow is lost", sql(`UPDATE products SET shadow = NULL WHERE ` + fmt.Sprintf(some, 2)), "still needs"},
		{"another product's id", sql(`UPDATE products SET shopify_id = 'gid://shopify/Product/1' WHERE ` + fmt.Sprintf(some, 3)), "is not in the shop"},
		{"an item is open", sql(`UPDATE batch_items SET status = 'PENDING' WHERE (batch_id, product_id, shop) =
			(SELECT batch_id, product_id, shop FROM batch_items WHERE status = 'SUCCESS' AND (batch_id, product_id) <> (` + gone + `) LIMIT 1)`), "an unsettled item"},
		{"an item is gone", sql(`DELETE FROM batch_items WHERE (batch_id, product_id) = (` + gone + `)`), "is no item of it"},
		{"a batch has ended too early", sql(`UPDATE endings SET open = 1 WHERE batch_id = (SELECT max(batch_id) FROM batch_items)`), "too early"},
		{"a product is parked", sql(`INSERT INTO parked (product_id, shop, partition, lane, due, generation, reason) VALUES ('1', '', 0, 3, now(), 1, 'REPLAY')`), "a parked product"},
		{"an intent stands", sql(`INSERT INTO intents (product_id, shop, key, mutation) VALUES ('2', 'north', 'k', 'productSet')`), "an intent that nobody"},
	}
}

// forgedShops are forgeries of the shops, and of the source, which the shops then do not follow; and one of a topic, as its
// finding would be taken for that of another.
func (m *middle) forgedShops(topics map[string][]event.Record) []forgery {
	return []forgery{
		{"two outcomes of a product have changed places", edited(topics, event.Outcomes, func(r []event.Record) []event.Record {
			for i := range r {
				for j := range i {
					if string(r[i].Key) == string(r[j].Key) && decoded[event.Outcome](&r[i]).Status != decoded[event.Outcome](&r[j]).Status {
						r[i].Value, r[j].Value = r[j].Value, r[i].Value
						return r
					}
				}
			}
			return r
		}), "out of order"},
		{"another price", func(ctx context.Context) error {
			p, err := m.onSale(ctx)
			if err != nil {
				return err
			}
			return m.mutate(ctx, `mutation($id: ID!, $v: [ProductVariantsBulkInput!]!) { productVariantsBulkUpdate(productId: $id, variants: $v) { userErrors { message } } }`,
				map[string]any{"id": p.ID, "v": []any{map[string]any{"id": p.Variants[0].ID, "price": "123456.78"}}})
		}, "123456.78"},
		{"another title", func(ctx context.Context) error {
			p, err := m.onSale(ctx)
			if err != nil {
				return err
			}
			return m.mutate(ctx, `mutation($p: ProductUpdateInput!) { productUpdate(product: $p) { userErrors { message } } }`,
				map[string]any{"p": map[string]any{"id": p.ID, "title": "forged"}})
		}, "forged"},
		{"off sale", func(ctx context.Context) error {
			p, err := m.onSale(ctx)
			if err != nil {
				return err
			}
			return m.mutate(ctx, `mutation($p: ProductUpdateInput!) { productUpdate(product: $p) { userErrors { message } } }`,
				map[string]any{"p": map[string]any{"id": p.ID, "status": "DRAFT"}})
		}, "is not on sale"},
		{"a product that nobody has made", func(ctx context.Context) error {
			p, err := m.onSale(ctx)
			if err != nil {
				return err
			}
			return m.mutate(ctx, `mutation($p: ProductSetInput!) { productSet(input: $p) { userErrors { message } } }`,
				map[string]any{"p": map[string]any{"title": p.Title, "metafields": []any{map[string]any{
					"namespace": "shelfwire", "key": "product_id", "type": "id", "value": "forged-id",
				}}}})
		}, "forged-id"},
		{"a product is deleted", func(ctx context.Context) error {
			p, err := m.onSale(ctx)
			if err != nil {
				return err
			}
			return m.mutate(ctx, `mutation($p: ProductDeleteInput!) { productDelete(input: $p) { userErrors { message } } }`,
				map[string]any{"p": map[string]any{"id": p.ID}})
		}, "MISSING"},
		{"a change that nobody has seen", func(ctx context.Context) error {
			_, err := query[int](ctx, m.sourceURL, `UPDATE catalog.products SET title = 'unheard' RETURNING 1`)
			return err
		}, "unheard"},
	}
}

// onSale is a product that the north sells.
func (m *middle) onSale(ctx context.Context) (shopifysim.Product, error) {
	_, products, err := m.shopProducts(ctx, "north")
	if err != nil {
		return shopifysim.Product{}, err
	}
	i := slices.IndexFunc(products, func(p shopifysim.Product) bool { return p.Status == "ACTIVE" && p.Title != "forged" })
	if i < 0 {
		return shopifysim.Product{}, fmt.Errorf("the north sells nothing")
	}
	return products[i], nil
}

// mutate changes a shop as somebody else's app would.
func (m *middle) mutate(ctx context.Context, mutation string, variables map[string]any) error {
	body, err := json.Marshal(map[string]any{"query": mutation, "variables": variables})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.shopURL("north/admin/api/2026-01/graphql.json"), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-Shopify-Access-Token", "simulated")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && (bytes.Contains(answer, []byte(`"message"`)) || bytes.Contains(answer, []byte(`"errors"`))) {
		return fmt.Errorf("the shop answers %s", answer)
	}
	return err
}
