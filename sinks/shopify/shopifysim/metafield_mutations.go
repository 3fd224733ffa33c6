package shopifysim

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func metafieldMutations() fields {
	return fields{"metafieldsSet": metafieldsSet, "metafieldsDelete": metafieldsDelete}
}

// maxMetafields is how many metafields one metafieldsSet takes.
const maxMetafields = 25

// metafieldsSet writes metafields of any owners, all or none.
func metafieldsSet(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	given := asInputs(a["metafields"])
	if len(given) > maxMetafields {
		errs.add("LESS_THAN_OR_EQUAL_TO", fmt.Sprintf("Exceeded the maximum metafields input limit of %d.", maxMetafields), "metafields")
		return x.payload(errs, record{"metafields": nil})
	}
	owners := make([]any, len(given))
	for i, in := range given {
		owner := x.owner(in["ownerId"])
		if owner == nil {
			errs.add("INVALID", "Owner does not exist.", "metafields", i, "ownerId")
			continue
		}
		owners[i] = owner
		x.checkSet(owner, in, i, &errs)
	}
	if len(errs) > 0 {
		for _, e := range errs {
			r := e.(record)
			if path, _ := r["field"].([]any); len(path) > 1 {
				r["elementIndex"], _ = strconv.Atoi(fmt.Sprint(path[1]))
			}
		}
		return x.payload(errs, record{"metafields": nil})
	}
	out := make([]any, len(given))
	for i, in := range given {
		out[i] = x.writeMetafield(owners[i], in)
		touch(owners[i], x.now)
	}
	return x.payload(nil, record{"metafields": out})
}

// owner finds an object that can have metafields; nil where there is none.
func (x *execution) owner(id any) any {
	n := x.node(id)
	if isNil(n) || ownerTypes[typeName(n)] == "" {
		return nil
	}
	return n
}

func touch(owner any, now time.Time) {
	switch o := owner.(type) {
	case *product:
		o.updatedAt = now
	case *variant:
		o.updatedAt = now
	case *collection:
		o.updatedAt = now
	}
}

// checkSet checks one metafield of metafieldsSet.
func (x *execution) checkSet(owner any, in input, i int, errs *userErrors) {
	path := []any{"metafields", i}
	namespace, key := namespaceOf(in), in.text("key")
	kind := x.kindOf(typeName(owner), in)
	old := find(*metafieldsOf(owner), namespace, key)
	if kind == "" && old != nil {
		kind = old.kind
	}
	before := len(*errs)
	x.checkMetafield(typeName(owner), ownerNumber(owner), in, kind, path, func(problem string) string { return problem }, errs)
	if len(*errs) > before || !in.has("compareDigest") {
		return
	}
	if old != nil && old.value == in.text("value") && old.kind == kind {
		return // an identical value is no change, whatever the digest
	}
	switch want := in.optional("compareDigest"); {
	case want != nil && !digestForm.MatchString(*want):
		errs.add("INVALID_COMPARE_DIGEST", "The `compareDigest` value is invalid.", at(path, "compareDigest")...)
	case want == nil && old != nil, want != nil && (old == nil || old.digest() != *want):
		errs.add("STALE_OBJECT", "The resource has been updated since it was loaded. Try again with an updated `compareDigest` value.", path...)
	}
}

// kindOf decides a metafield's type: as given, or its definition's.
func (x *execution) kindOf(ownerKind string, in input) string {
	if t := in.text("type"); t != "" {
		return t
	}
	if d := x.definition(ownerTypes[ownerKind], namespaceOf(in), in.text("key")); d != nil {
		return d.kind
	}
	return ""
}

// checkMetafield checks names, type, value and uniqueness. code maps a rule's code to the one that the mutation has
// for it.
func (x *execution) checkMetafield(ownerKind string, owner int64, in input, kind string, path []any, code func(string) string, errs *userErrors) {
	namespace, key := namespaceOf(in), in.text("key")
	d := x.definition(ownerTypes[ownerKind], namespace, key)
	switch {
	case key == "":
		errs.add(code("BLANK"), "Key can't be blank.", at(path, "key")...)
	case len(key) < 2 && d == nil:
		errs.add(code("TOO_SHORT"), "Key is too short (minimum is 2 characters)", at(path, "key")...)
	case len(key) > 64:
		errs.add(code("TOO_LONG"), "Key is too long (maximum is 64 characters)", at(path, "key")...)
	case len(namespace) > longest:
		errs.add(code("TOO_LONG"), "Namespace is too long (maximum is 255 characters)", at(path, "namespace")...)
	case kind == "":
		errs.add(code("BLANK"), "Type can't be blank", at(path, "type")...)
	case !knownType(kind):
		errs.add(code("INCLUSION"), "Type must be one of the following: "+strings.Join(metafieldKinds, ", ")+".", at(path, "type")...)
	case d != nil && d.kind != kind:
		errs.add(code("INVALID_TYPE"), fmt.Sprintf("Type '%s' must be consistent with the definition's type: '%s'.", kind, d.kind), at(path, "type")...)
	case in.text("value") == "":
		errs.add(code("BLANK"), "Value can't be blank.", at(path, "value")...)
	default:
		if why := invalidValue(kind, in.text("value")); why != "" {
			errs.add(code("INVALID_VALUE"), why, at(path, "value")...)
		}
		id, taken := x.unique[uniqueKey(ownerKind, namespace, key, in.text("value"))]
		if kind == "id" && taken && id != owner {
			errs.add(code("CAPABILITY_VIOLATION"), "Value is already assigned to another metafield. Metafields with the unique values capability must have unique values.", at(path, "value")...)
		}
	}
}

// metafieldKinds are the types that a metafield can have; each but some also as a list.
var metafieldKinds = []string{
	"antenna_gain", "area", "battery_charge_capacity", "boolean", "color", "date", "date_time", "dimension", "id", "json", "link",
	"money", "multi_line_text_field", "number_decimal", "number_integer", "rating", "rich_text_field", "single_line_text_field",
	"url", "volume", "weight", "collection_reference", "file_reference", "metaobject_reference", "mixed_reference",
	"page_reference", "product_reference", "product_taxonomy_value_reference", "variant_reference",
}

func knownType(kind string) bool {
	return slices.Contains(metafieldKinds, strings.TrimPrefix(kind, "list."))
}

var (
	integerForm  = regexp.MustCompile(`^[+-]?\d{1,18}$`)
	decimalValue = regexp.MustCompile(`^[+-]?\d{1,13}(\.\d{1,9})?$`)
	colorForm    = regexp.MustCompile(`^#[0-9a-fA-F]{6}$`)
	digestForm   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	urlForm      = regexp.MustCompile(`^(https?|mailto|sms|tel):.+`)
)

// invalidValue says why a text is no value of a type; "" where it is one.
func invalidValue(kind, value string) string {
	if base, ok := strings.CutPrefix(kind, "list."); ok {
		var list []any
		if json.Unmarshal([]byte(value), &list) != nil {
			return "Value must be an array."
		}
		for _, e := range list {
			text, ok := e.(string)
			if !ok {
				b, err := json.Marshal(e)
				if err != nil {
					return "Value must be an array."
				}
				text = string(b)
			}
			if why := invalidValue(base, text); why != "" {
				return why
			}
		}
		return ""
	}
	var any map[string]any
	switch kind {
	case "single_line_text_field":
		if strings.ContainsAny(value, "\r\n") {
			return "Value must be a single line text string."
		}
	case "id":
		if strings.TrimSpace(value) != value || tooLong(value) {
			return "Value is invalid."
		}
	case "number_integer":
		if !integerForm.MatchString(value) {
			return "Value must be an integer."
		}
	case "number_decimal":
		if !decimalValue.MatchString(value) {
			return "Value must be a decimal."
		}
	case "boolean":
		if value != "true" && value != "false" {
			return "Value must be true or false."
		}
	case "color":
		if !colorForm.MatchString(value) {
			return "Value must be a valid hex color code."
		}
	case "url":
		if !urlForm.MatchString(value) {
			return "Value must have one of the following URL schemes: http, https, mailto, sms, tel."
		}
	case "date":
		if _, err := time.Parse(time.DateOnly, value); err != nil {
			return "Value must be in “YYYY-MM-DD” format. For example: 2022-06-01"
		}
	case "date_time":
		if _, err := time.Parse("2006-01-02T15:04:05Z07:00", value); err != nil {
			if _, err := time.Parse("2006-01-02T15:04:05", value); err != nil {
				return "Value must be in “YYYY-MM-DDTHH:MM:SS” format. For example: 2022-06-01T15:30:00"
			}
		}
	case "json", "rich_text_field":
		if !json.Valid([]byte(value)) {
			return "Value is invalid JSON: unexpected token at '" + value + "'."
		}
	case "money", "rating", "dimension", "weight", "volume", "link":
		if json.Unmarshal([]byte(value), &any) != nil {
			return "Value must be a JSON object."
		}
	default:
		if strings.HasSuffix(kind, "_reference") && !validGID.MatchString(value) {
			return "Value must be a valid reference."
		}
	}
	return ""
}

func ownerNumber(owner any) int64 {
	if s, ok := owner.(*shopNode); ok {
		return s.store.shopID()
	}
	return numberOf(owner)
}

// writeMetafield writes a checked metafield. An identical value leaves it untouched.
func (x *execution) writeMetafield(owner any, in input) *metafield {
	list := metafieldsOf(owner)
	m := find(*list, namespaceOf(in), in.text("key"))
	kind := x.kindOf(typeName(owner), in)
	if m == nil {
		m = &metafield{
			id: x.ids.take(), ownerKind: typeName(owner), owner: ownerNumber(owner), namespace: namespaceOf(in), key: in.text("key"),
			createdAt: x.now,
		}
		*list = append(*list, m)
	}
	if kind == "" {
		kind = m.kind
	}
	if m.kind == kind && m.value == in.text("value") {
		return m
	}
	x.unindexMetafields([]*metafield{m})
	m.kind, m.value, m.updatedAt = kind, in.text("value"), x.now
	x.indexMetafields([]*metafield{m})
	return m
}

// upsertMetafields writes the metafields input of a product or variant draft: others stay.
func (x *execution) upsertMetafields(list *[]*metafield, ownerKind string, owner int64, given []input, path []any, invalid string, errs *userErrors) {
	for i, in := range given {
		x.draftMetafield(list, ownerKind, owner, in, at(path, i), invalid, errs)
	}
}

// replaceMetafields makes the list be what is given: others are deleted.
func (x *execution) replaceMetafields(list *[]*metafield, ownerKind string, owner int64, given []input, path []any, errs *userErrors) {
	kept := map[*metafield]bool{}
	for i, in := range given {
		if m := x.draftMetafield(list, ownerKind, owner, in, at(path, i), "INVALID_METAFIELD", errs); m != nil {
			kept[m] = true
		}
	}
	*list = slices.DeleteFunc(*list, func(m *metafield) bool { return !kept[m] })
}

// draftMetafield writes one metafield of a draft, whose index entries are made when the draft is put back.
func (x *execution) draftMetafield(list *[]*metafield, ownerKind string, owner int64, in input, path []any, invalid string, errs *userErrors) *metafield {
	m := find(*list, namespaceOf(in), in.text("key"))
	if in.given("id") {
		m = nil
		for _, e := range *list {
			if e.id == idOf("Metafield", in["id"]) {
				m = e
			}
		}
		if m == nil {
			errs.add(invalid, "Metafield does not exist", at(path, "id")...)
			return nil
		}
		in = input{"namespace": m.namespace, "key": m.key, "value": in["value"], "type": in["type"]}
	}
	kind := x.kindOf(ownerKind, in)
	if kind == "" && m != nil {
		kind = m.kind
	}
	before := len(*errs)
	code := func(rule string) string {
		if rule == "CAPABILITY_VIOLATION" && invalid != "" {
			return rule
		}
		return invalid
	}
	x.checkMetafield(ownerKind, owner, in, kind, path, code, errs)
	if len(*errs) > before {
		return nil
	}
	if m == nil {
		m = &metafield{
			id: x.ids.take(), ownerKind: ownerKind, owner: owner, namespace: namespaceOf(in), key: in.text("key"), createdAt: x.now,
		}
		*list = append(*list, m)
	}
	if m.kind != kind || m.value != in.text("value") {
		m.kind, m.value, m.updatedAt = kind, in.text("value"), x.now
	}
	return m
}

// metafieldsDelete deletes metafields by owner, namespace and key. One that is not there is null in the answer.
func metafieldsDelete(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	given := asInputs(a["metafields"])
	out := make([]any, len(given))
	for i, in := range given {
		owner := x.owner(in["ownerId"])
		if owner == nil {
			errs.add("", "Owner does not exist.", "metafields", i, "ownerId")
		}
	}
	if len(errs) > 0 {
		return x.payload(errs, record{"deletedMetafields": nil})
	}
	for i, in := range given {
		owner := x.owner(in["ownerId"])
		list := metafieldsOf(owner)
		m := find(*list, namespaceOf(in), in.text("key"))
		if m == nil {
			continue
		}
		x.unindexMetafields([]*metafield{m})
		*list = slices.DeleteFunc(*list, func(e *metafield) bool { return e == m })
		touch(owner, x.now)
		out[i] = record{"ownerId": in.text("ownerId"), "namespace": m.namespace, "key": m.key}
	}
	return x.payload(nil, record{"deletedMetafields": out})
}
