// Package admin holds Shopify's Admin GraphQL schema, the version of it that Shelfwire speaks, and nothing else.
//
// The client validates its documents against it in tests, the cost formula walks it, and the simulator executes
// requests by it. The SDL is the 2026-10 introspection published in npm's @shopify/dev-mcp, without descriptions; it
// is embedded compressed (120 KB instead of 780 KB) because every shelfwire binary carries it.
package admin

import (
	"bytes"
	"compress/gzip"
	_ "embed" // the schema
	"fmt"
	"io"
	"sync"

	"github.com/vektah/gqlparser/v2"
	"github.com/vektah/gqlparser/v2/ast"
)

// Version is the Admin API version of the schema, as it stands in request paths and in X-Shopify-API-Version.
const Version = "2026-10"

//go:embed admin-2026-10.graphql.gz
var compressed []byte

// Schema returns the parsed and checked schema. The first call takes about 50 ms and keeps 9 MB; later calls, from any
// goroutine, return the same value, which nobody may change.
func Schema() (*ast.Schema, error) { return load() }

var load = sync.OnceValues(func() (*ast.Schema, error) {
	sdl, err := SDL()
	if err != nil {
		return nil, err
	}
	schema, err := gqlparser.LoadSchema(&ast.Source{Name: "admin-" + Version + ".graphql", Input: sdl, BuiltIn: false})
	if err != nil {
		return nil, fmt.Errorf("parse the Admin schema %s: %w", Version, err)
	}
	return schema, nil
})

// SDL returns the schema's source text.
func SDL() (string, error) {
	r, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return "", fmt.Errorf("open the embedded Admin schema %s: %w", Version, err)
	}
	sdl, err := io.ReadAll(r)
	if err != nil {
		return "", fmt.Errorf("unpack the embedded Admin schema %s: %w", Version, err)
	}
	return string(sdl), nil
}
