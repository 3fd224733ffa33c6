// Package reference holds a complete source: a Postgres schema of stores, categories, products, variants, stock and
// orders, with the two declarations that Shelfwire needs of any source, its routes and its documents query.
//
// The demo and the tests run on it, and it is the example that users copy. Nothing else of Shelfwire knows its names.
package reference

import (
	"bytes"
	_ "embed" // the SQL and YAML of the schema
	"fmt"

	"go.yaml.in/yaml/v3"

	"github.com/shelfwire/shelfwire/schemas/route"
)

//go:embed schema.sql
var schemaSQL string

//go:embed replica-identity.sql
var replicaIdentitySQL string

//go:embed documents.sql
var documentsSQL string

//go:embed routes.yaml
var routesYAML []byte

// SchemaSQL returns the statements that create the schema "catalog" in an empty database. They take no parameters and
// may be sent as one script.
func SchemaSQL() string { return schemaSQL }

// ReplicaIdentitySQL returns the statements that let the routes be taken for old rows too, with what each costs.
func ReplicaIdentitySQL() string { return replicaIdentitySQL }

// DocumentsSQL returns the documents query: $1 is a text[] of product ids; its rows are (product_id text, shop text,
// document jsonb). It reads by index for 1 to 1000 ids.
func DocumentsSQL() string { return documentsSQL }

// RoutesYAML returns the routes as they stand in a configuration file, under the key "routes".
func RoutesYAML() []byte { return bytes.Clone(routesYAML) }

// Routes returns the decoded routes, in the order of the file.
func Routes() ([]route.Route, error) {
	var file struct {
		Routes []route.Route `yaml:"routes"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(routesYAML))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("read the reference routes: %w", err)
	}
	return file.Routes, nil
}
