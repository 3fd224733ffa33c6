package shopifysim

import (
	"slices"
	"strings"
)

func definitionMutations() fields {
	return fields{
		"metafieldDefinitionCreate": metafieldDefinitionCreate,
		"metafieldDefinitionDelete": metafieldDefinitionDelete,
	}
}

// maxDefinitions is how many definitions an owner type can have.
const maxDefinitions = 256

func metafieldDefinitionCreate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	in := input(a).object("definition")
	d := &definition{
		name: in.text("name"), namespace: namespaceOf(in), key: in.text("key"), kind: in.text("type"),
		ownerType: in.text("ownerType"), description: in.optional("description"), unique: in.text("type") == "id",
	}
	enabled, stated := in.object("capabilities").object("uniqueValues")["enabled"].(bool)
	if stated && enabled {
		d.unique = true
	}
	same := 0
	for _, e := range x.definitions {
		if e.ownerType == d.ownerType {
			same++
		}
	}
	switch {
	case strings.TrimSpace(d.name) == "":
		errs.add("BLANK", "Name can't be blank", "definition", "name")
	case tooLong(d.name):
		errs.add("TOO_LONG", "Name is too long (maximum is 255 characters)", "definition", "name")
	case d.key == "":
		errs.add("BLANK", "Key can't be blank", "definition", "key")
	case !knownType(d.kind):
		errs.add("INCLUSION", "Type name "+d.kind+" is not a valid type. Valid types are: "+strings.Join(metafieldKinds, ", ")+".", "definition", "type")
	case d.kind == "id" && stated && !enabled:
		errs.add("CAPABILITY_REQUIRED_BUT_DISABLED", "The unique values capability must be enabled for definitions of type id.", "definition")
	case x.definition(d.ownerType, d.namespace, d.key) != nil:
		errs.add("TAKEN", "Key is in use for "+strings.ToLower(d.ownerType)+" metafields on the '"+d.namespace+"' namespace.", "definition", "key")
	case same >= maxDefinitions:
		errs.add("RESOURCE_TYPE_LIMIT_EXCEEDED", "Stores can only have 256 definitions for each store resource.", "definition")
	}
	for _, v := range in.objects("validations") {
		d.validations = append(d.validations, record{"name": v.text("name"), "value": v.text("value"), "type": d.kind})
	}
	if len(errs) > 0 {
		return x.payload(errs, record{"createdDefinition": nil})
	}
	d.id = x.ids.take()
	if pin, _ := in["pin"].(bool); pin {
		d.pinned = same + 1
	}
	x.definitions = append(x.definitions, d)
	return x.payload(nil, record{"createdDefinition": d})
}

func metafieldDefinitionDelete(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	var d *definition
	if id := input(a).object("identifier"); id != nil {
		d = x.definition(id.text("ownerType"), namespaceOf(id), id.text("key"))
	}
	for _, e := range x.definitions {
		if e.id == idOf("MetafieldDefinition", a["id"]) {
			d = e
		}
	}
	if d == nil {
		errs.add("NOT_FOUND", "Definition not found.", "id")
		return x.payload(errs, record{"deletedDefinitionId": nil, "deletedDefinition": nil})
	}
	if all, _ := a["deleteAllAssociatedMetafields"].(bool); all {
		for _, m := range x.definedBy(d) {
			x.unindexMetafields([]*metafield{m})
			list := metafieldsOf(x.node(gid(m.ownerKind, m.owner)))
			*list = slices.DeleteFunc(*list, func(e *metafield) bool { return e == m })
		}
	}
	x.definitions = slices.DeleteFunc(x.definitions, func(e *definition) bool { return e == d })
	return x.payload(nil, record{
		"deletedDefinitionId": gid("MetafieldDefinition", d.id),
		"deletedDefinition":   record{"ownerType": d.ownerType, "namespace": d.namespace, "key": d.key},
	})
}
