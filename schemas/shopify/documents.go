// Package shopify holds every GraphQL document that Shelfwire can send to a shop, one operation in a file, named after
// its root field or its purpose. They are text, not code, so that a person can paste one into GraphiQL and so that a
// test can hold each of them against the schema and its cost.
//
// The sink sends several operations in one request by giving each an alias and its variables a suffix; therefore each
// file has exactly one root field and no fragment definitions.
package shopify

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed *.graphql
var files embed.FS

// Document returns the text of one document by its file's name without extension.
func Document(name string) (string, error) {
	b, err := files.ReadFile(name + ".graphql")
	if err != nil {
		return "", fmt.Errorf("read the GraphQL document %s: %w", name, err)
	}
	return string(b), nil
}

// Names returns the names of all documents, sorted.
func Names() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil // the directory is embedded: it is always there
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".graphql"))
	}
	return names
}
