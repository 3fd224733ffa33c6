package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/parser"

	"github.com/shelfwire/shelfwire/schemas/admin"
	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// shopTap stands in front of the simulated shops and keeps what passes: the benchmark's own witness, which shares
// nothing with the client that is measured.
type shopTap struct {
	sim *shopifysim.Simulator
	// created is closed when the first product stands in a shop.
	created chan struct{}

	mu   sync.Mutex
	once bool
	seen []tapped
}

// tapped is one request that a shop has answered with 200.
type tapped struct {
	shop     string
	body     []byte
	answered time.Time
	took     time.Duration // inside the simulator
}

func newShopTap(sim *shopifysim.Simulator) *shopTap {
	return &shopTap{sim: sim, created: make(chan struct{})}
}

// ServeHTTP passes a request on and notes when it was answered.
func (t *shopTap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // the caller is gone
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	shop, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	answer := &tapWriter{ResponseWriter: w, status: http.StatusOK}
	began := time.Now()
	t.sim.ServeHTTP(answer, r)
	answered := time.Now()
	if answer.status != http.StatusOK {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = append(t.seen, tapped{shop: shop, body: body, answered: answered, took: answered.Sub(began)})
	if !t.once && bytes.Contains(body, []byte("productSet(")) && answer.product {
		t.once = true
		close(t.created)
	}
}

// tapWriter notes the status, and whether the answer names a product.
type tapWriter struct {
	http.ResponseWriter
	status  int
	product bool
}

// WriteHeader notes the status and passes it on.
func (w *tapWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Write passes the body on.
func (w *tapWriter) Write(b []byte) (int, error) {
	w.product = w.product || bytes.Contains(b, []byte("gid://shopify/Product/"))
	return w.ResponseWriter.Write(b)
}

// mark is a place in what has passed; since returns what came after it.
func (t *shopTap) mark() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.seen)
}

func (t *shopTap) since(mark int) []tapped {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.seen[mark:])
}

// graphQL is a request's body.
type graphQL struct {
	Query     string         `json:"query"`
	Variables map[string]any `json:"variables"`
}

// prices returns when each price first stood in a shop.
func prices(requests []tapped) (map[string]time.Time, error) {
	return pricesAt(requests, func(t tapped) time.Time { return t.answered })
}

// pricesAt returns when the first request with each price was where at says.
func pricesAt(requests []tapped, when func(tapped) time.Time) (map[string]time.Time, error) {
	at := map[string]time.Time{}
	var walk func(v any, when time.Time)
	walk = func(v any, when time.Time) {
		switch v := v.(type) {
		case map[string]any:
			if p, ok := v["price"].(string); ok {
				if _, known := at[p]; !known {
					at[p] = when
				}
			}
			for _, e := range v {
				walk(e, when)
			}
		case []any:
			for _, e := range v {
				walk(e, when)
			}
		}
	}
	for _, r := range requests {
		var q graphQL
		if err := json.Unmarshal(r.body, &q); err != nil {
			return nil, fmt.Errorf("decode a request to %s: %w", r.shop, err)
		}
		walk(q.Variables, when(r))
	}
	return at, nil
}

// creation is a product as it was first put into a shop.
type creation struct{ shop, product string }

// creations returns what one productSet of each product in each shop costs, in points: that of the very mutation that
// created it, priced alone.
func creations(requests []tapped) (map[creation]int, error) {
	schema, err := admin.Schema()
	if err != nil {
		return nil, err
	}
	out := map[creation]int{}
	for _, r := range requests {
		if !bytes.Contains(r.body, []byte("productSet(")) {
			continue
		}
		var q graphQL
		if err := json.Unmarshal(r.body, &q); err != nil {
			return nil, fmt.Errorf("decode a creation in %s: %w", r.shop, err)
		}
		doc, err := parser.ParseQuery(&ast.Source{Input: q.Query})
		if err != nil {
			return nil, fmt.Errorf("parse a creation in %s: %w", r.shop, err)
		}
		for _, s := range doc.Operations[0].SelectionSet {
			f, ok := s.(*ast.Field)
			if !ok || f.Name != "productSet" {
				continue
			}
			product, err := customID(f, q.Variables)
			if err != nil {
				return nil, err
			}
			alone := *doc.Operations[0]
			alone.SelectionSet = ast.SelectionSet{f}
			points, err := cost.Requested(schema, doc, &alone, q.Variables)
			if err != nil {
				return nil, fmt.Errorf("price the creation of %s in %s: %w", product, r.shop, err)
			}
			out[creation{r.shop, product}] = points
		}
	}
	return out, nil
}

// customID reads the product id out of productSet(identifier: {customId: {value: ...}}).
func customID(f *ast.Field, variables map[string]any) (string, error) {
	arg := f.Arguments.ForName("identifier")
	if arg == nil {
		return "", fmt.Errorf("%s has no identifier", f.Alias)
	}
	v, err := arg.Value.Value(variables)
	if err != nil {
		return "", fmt.Errorf("read the identifier of %s: %w", f.Alias, err)
	}
	for _, key := range []string{"customId", "value"} {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	id, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%s has no custom id", f.Alias)
	}
	return id, nil
}
