package shopifysim

import (
	"maps"
	"sync"

	"github.com/vektah/gqlparser/v2/ast"
)

// api is what all shops of a simulator share: the schema, what is implemented of it, and parsed documents.
type api struct {
	schema             *ast.Schema
	types              map[string]fields
	queries, mutations fields

	mu   sync.Mutex
	docs map[string]*document
}

// document is a parsed and validated request text, or why it is refused.
type document struct {
	doc  *ast.QueryDocument
	errs []*apiError
}

// maxDocuments bounds the cache of parsed documents: clients send few texts, and one that sends many loses only time.
const maxDocuments = 4096

func newAPI(schema *ast.Schema) *api {
	a := &api{schema: schema, types: map[string]fields{}, docs: map[string]*document{}}
	for _, group := range []map[string]fields{
		productTypes(), variantTypes(), inventoryTypes(), metafieldTypes(), mediaTypes(), shopTypes(), collectionTypes(),
	} {
		maps.Copy(a.types, group)
	}
	a.queries = merged(productQueries(), inventoryQueries(), metafieldQueries(), shopQueries(), collectionQueries(), mediaQueries())
	a.mutations = merged(
		productSetMutations(), productMutations(), variantMutations(), optionMutations(), metafieldMutations(),
		definitionMutations(), tagMutations(), inventoryMutations(), publicationMutations(), fileMutations(),
		collectionMutations(),
	)
	return a
}

func merged(groups ...fields) fields {
	out := fields{}
	for _, g := range groups {
		maps.Copy(out, g)
	}
	return out
}

// applies says whether a fragment with a type condition selects on a concrete type.
func (a *api) applies(condition string, def *ast.Definition) bool {
	if condition == "" || condition == def.Name {
		return true
	}
	cond := a.schema.Types[condition]
	if cond == nil || !cond.IsAbstractType() {
		return false
	}
	for _, p := range a.schema.GetPossibleTypes(cond) {
		if p.Name == def.Name {
			return true
		}
	}
	return false
}

// missing finds the first selection that the simulator cannot answer, before anything is executed. Types without
// resolvers are value objects and payloads, which are checked when they are rendered.
func (a *api) missing(doc *ast.QueryDocument, set ast.SelectionSet, def *ast.Definition) *apiError {
	for _, s := range set {
		var err *apiError
		switch s := s.(type) {
		case *ast.Field:
			err = a.missingField(doc, s, def)
		case *ast.InlineFragment:
			on := def
			if s.TypeCondition != "" {
				on = a.schema.Types[s.TypeCondition]
			}
			err = a.missing(doc, s.SelectionSet, on)
		case *ast.FragmentSpread:
			if f := doc.Fragments.ForName(s.Name); f != nil {
				err = a.missing(doc, f.SelectionSet, a.schema.Types[f.TypeCondition])
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *api) missingField(doc *ast.QueryDocument, f *ast.Field, def *ast.Definition) *apiError {
	if f.Definition == nil || len(f.Name) > 1 && f.Name[:2] == "__" {
		if f.Name == "__schema" || f.Name == "__type" {
			return notImplemented("introspection; the schema is in schemas/admin")
		}
		return nil
	}
	known, typed := a.types[def.Name]
	switch def {
	case a.schema.Query:
		known, typed = a.queries, true
	case a.schema.Mutation:
		known, typed = a.mutations, true
	}
	if typed && known[f.Name] == nil {
		e := notImplemented(def.Name + "." + f.Name)
		e.Locations, e.whole = locations(f.Position), true
		return e
	}
	return a.missing(doc, f.SelectionSet, a.schema.Types[f.Definition.Type.Name()])
}
