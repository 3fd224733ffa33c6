package shopifysim

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// appID is the app whose reserved namespace an omitted namespace means.
const appID = "347082227713"

// namespaceOf resolves a metafield namespace: none and "$app" are the app's own.
func namespaceOf(in input) string {
	n := in.text("namespace")
	switch {
	case n == "" || n == "$app":
		return "app--" + appID
	case strings.HasPrefix(n, "$app:"):
		return "app--" + appID + "--" + strings.TrimPrefix(n, "$app:")
	default:
		return n
	}
}

func metafieldTypes() map[string]fields {
	return map[string]fields{"Metafield": metafieldFields(), "MetafieldDefinition": definitionFields()}
}

func metafieldFields() fields {
	return fields{
		"id":               get(func(m *metafield) any { return gid("Metafield", m.id) }),
		"legacyResourceId": get(func(m *metafield) any { return strconv.FormatInt(m.id, 10) }),
		"namespace":        get(func(m *metafield) any { return m.namespace }),
		"key":              get(func(m *metafield) any { return cmp.Or(m.shown, m.key) }),
		"type":             get(func(m *metafield) any { return m.kind }),
		"value":            get(func(m *metafield) any { return m.value }),
		"jsonValue":        get(func(m *metafield) any { return m.jsonValue() }),
		"compareDigest":    get(func(m *metafield) any { return m.digest() }),
		"sizeInBytes":      get(func(m *metafield) any { return len(m.value) }),
		"createdAt":        get(func(m *metafield) any { return m.createdAt }),
		"updatedAt":        get(func(m *metafield) any { return m.updatedAt }),
		"ownerType":        get(func(m *metafield) any { return ownerTypes[m.ownerKind] }),
		"description":      get(func(*metafield) any { return nil }),
		"owner": with(func(x *execution, m *metafield, _ arguments) (any, error) {
			return x.node(gid(m.ownerKind, m.owner)), nil
		}),
		"definition": with(func(x *execution, m *metafield, _ arguments) (any, error) {
			return x.definition(ownerTypes[m.ownerKind], m.namespace, m.key), nil
		}),
	}
}

// ownerTypes are the owners that hold metafields here, by GID type.
var ownerTypes = map[string]string{
	"Product": "PRODUCT", "ProductVariant": "PRODUCTVARIANT", "Collection": "COLLECTION", "Shop": "SHOP", "Location": "LOCATION",
}

// digest identifies a value for compare-and-set. Shopify's is opaque; this one is too.
func (m *metafield) digest() string {
	sum := sha256.Sum256([]byte(m.kind + "\x00" + m.value))
	return hex.EncodeToString(sum[:])
}

// jsonValue renders the value as its type means it.
func (m *metafield) jsonValue() any {
	base := strings.TrimPrefix(m.kind, "list.")
	switch {
	case base != m.kind, base == "json", base == "money", base == "rating", base == "dimension", base == "weight",
		base == "volume", base == "rich_text_field", base == "link", base == "boolean", base == "number_integer":
		var v any
		if json.Unmarshal([]byte(m.value), &v) == nil {
			return v
		}
	}
	return m.value
}

func definitionFields() fields {
	return fields{
		"id":          get(func(d *definition) any { return gid("MetafieldDefinition", d.id) }),
		"name":        get(func(d *definition) any { return d.name }),
		"namespace":   get(func(d *definition) any { return d.namespace }),
		"key":         get(func(d *definition) any { return d.key }),
		"description": get(func(d *definition) any { return d.description }),
		"ownerType":   get(func(d *definition) any { return d.ownerType }),
		"validations": get(func(d *definition) any {
			if d.validations == nil {
				return []any{}
			}
			return d.validations
		}),
		"type": get(func(d *definition) any {
			return record{"name": d.kind, "category": categoryOf(d.kind), "supportsDefinitionMigrations": true}
		}),
		"capabilities": get(func(d *definition) any {
			off := record{"enabled": false, "eligible": true}
			return record{
				"adminFilterable": record{"enabled": false, "eligible": true, "status": "NOT_FILTERABLE"},
				"uniqueValues":    record{"enabled": d.unique, "eligible": true}, "smartCollectionCondition": off,
			}
		}),
		"pinnedPosition": get(func(d *definition) any {
			if d.pinned == 0 {
				return nil
			}
			return d.pinned
		}),
		"metafieldsCount": with(func(x *execution, d *definition, _ arguments) (any, error) {
			return len(x.definedBy(d)), nil
		}),
		"metafields": with(func(x *execution, d *definition, a arguments) (any, error) {
			return page(a, nodes(x.definedBy(d)))
		}),
		"validationStatus":         get(func(*definition) any { return "ALL_VALID" }),
		"useAsCollectionCondition": get(func(*definition) any { return false }),
		"standardTemplate":         get(func(*definition) any { return nil }),
	}
}

func categoryOf(kind string) string {
	switch base := strings.TrimPrefix(kind, "list."); {
	case strings.HasPrefix(base, "number") || base == "rating":
		return "NUMBER"
	case strings.HasPrefix(base, "date"):
		return "DATE_TIME"
	case strings.HasSuffix(base, "_reference"):
		return "REFERENCE"
	case base == "id":
		return "ID"
	case base == "boolean":
		return "TRUE_FALSE"
	case base == "json":
		return "JSON"
	default:
		return "TEXT"
	}
}

// definition finds a definition; nil where there is none.
func (s *store) definition(ownerType, namespace, key string) *definition {
	for _, d := range s.definitions {
		if d.ownerType == ownerType && d.namespace == namespace && d.key == key {
			return d
		}
	}
	return nil
}

// definedBy lists the metafields that a definition covers.
func (x *execution) definedBy(d *definition) []*metafield {
	var out []*metafield
	take := func(list []*metafield) {
		for _, m := range list {
			if m.namespace == d.namespace && m.key == d.key {
				out = append(out, m)
			}
		}
	}
	for _, id := range x.order {
		p := x.products[id]
		if d.ownerType == "PRODUCT" {
			take(p.metafields)
		}
		for _, v := range p.variants {
			if d.ownerType == "PRODUCTVARIANT" {
				take(v.metafields)
			}
		}
	}
	return out
}

// ownedMetafields are the fields of HasMetafields.
func ownedMetafields() fields {
	return fields{
		"metafield": func(_ *execution, self any, a arguments) (any, error) {
			in := input(a)
			return find(*metafieldsOf(self), namespaceOf(in), in.text("key")), nil
		},
		"metafields": func(_ *execution, self any, a arguments) (any, error) {
			list := *metafieldsOf(self)
			if n, ok := a["namespace"].(string); ok {
				list = slices.DeleteFunc(slices.Clone(list), func(m *metafield) bool {
					return m.namespace != namespaceOf(input{"namespace": n})
				})
			}
			if a["keys"] != nil {
				return page(a, qualified(list, texts(a["keys"])))
			}
			return page(a, nodes(list))
		},
	}
}

// qualified selects metafields by "namespace.key", in the order of the keys, and shows them under the key as it was
// asked for. A key without its namespace finds nothing.
func qualified(list []*metafield, keys []string) []any {
	out := []any{}
	for _, k := range keys {
		for _, m := range list {
			if m.namespace+"."+m.key == k {
				shown := *m
				shown.shown = k
				out = append(out, &shown)
			}
		}
	}
	return out
}

// metafieldsOf returns where an owner's metafields are kept.
func metafieldsOf(owner any) *[]*metafield {
	switch o := owner.(type) {
	case *product:
		return &o.metafields
	case *variant:
		return &o.metafields
	case *collection:
		return &o.metafields
	case *location:
		return &o.metafields
	case *shopNode:
		return &o.store.metafields
	default:
		none := []*metafield{}
		return &none
	}
}

// find returns an owner's metafield; nil where there is none.
func find(list []*metafield, namespace, key string) *metafield {
	for _, m := range list {
		if m.namespace == namespace && m.key == key {
			return m
		}
	}
	return nil
}

func metafieldQueries() fields {
	return fields{
		"metafieldDefinition": func(x *execution, _ any, a arguments) (any, error) {
			if id := input(a).object("identifier"); id != nil {
				return x.definition(id.text("ownerType"), namespaceOf(id), id.text("key")), nil
			}
			for _, d := range x.definitions {
				if d.id == idOf("MetafieldDefinition", a["id"]) {
					return d, nil
				}
			}
			return nil, nil
		},
		"metafieldDefinitions": func(x *execution, _ any, a arguments) (any, error) {
			in := input(a)
			list := []any{}
			for _, d := range x.definitions {
				switch {
				case d.ownerType != in.text("ownerType"):
				case in.given("namespace") && d.namespace != namespaceOf(in):
				case in.given("key") && d.key != in.text("key"):
				case in.text("pinnedStatus") == "PINNED" && d.pinned == 0, in.text("pinnedStatus") == "UNPINNED" && d.pinned != 0:
				default:
					list = append(list, d)
				}
			}
			return page(a, list)
		},
	}
}
