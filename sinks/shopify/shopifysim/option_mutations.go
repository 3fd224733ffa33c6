package shopifysim

import (
	"fmt"
	"slices"
	"strings"
)

func optionMutations() fields {
	return fields{
		"productOptionsCreate":  optionsCreate,
		"productOptionUpdate":   optionUpdate,
		"productOptionsDelete":  optionsDelete,
		"productOptionsReorder": optionsReorder,
	}
}

// settle puts an option mutation's draft back, or shows the product as it was.
func (x *execution) settle(p *product, errs userErrors, more record) (any, error) {
	if len(errs) == 0 {
		p.updatedAt = x.now
		x.put(p)
	}
	if more == nil {
		more = record{}
	}
	more["product"] = x.products[p.id]
	return x.payload(errs, more)
}

func optionsCreate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	p := x.bulkTarget(a, &errs)
	if p == nil {
		return x.payload(errs, record{"product": nil})
	}
	given := asInputs(a["options"])
	existing := p.options
	if p.onlyDefault() {
		existing = nil
	}
	checkNewOptions(p, existing, given, &errs)
	if len(errs) > 0 {
		return x.settle(p, errs, nil)
	}
	p.options = slices.Clone(existing)
	if existing == nil {
		p.variants[0].values = nil
	}
	for _, in := range given {
		o := &option{id: x.ids.take(), name: in.text("name")}
		for _, v := range in.objects("values") {
			o.values = append(o.values, &optionValue{id: x.ids.take(), name: v.text("name")})
		}
		for _, v := range p.variants { // what exists takes the first value of a new option
			v.values = append(v.values, o.values[0])
		}
		p.options = append(p.options, o)
	}
	if a["variantStrategy"] == "CREATE" {
		x.fillVariants(p, &errs)
	}
	return x.settle(p, errs, nil)
}

func checkNewOptions(p *product, existing []*option, given []input, errs *userErrors) {
	if len(existing)+len(given) > maxOptions {
		errs.add("OPTIONS_OVER_LIMIT", "Can only specify a maximum of 3 options", "options")
		return
	}
	for i, in := range given {
		name := in.text("name")
		same := func(o input) bool { return strings.EqualFold(o.text("name"), name) }
		switch {
		case strings.TrimSpace(name) == "":
			errs.add("OPTION_NAME_MISSING", "Each option must have a name specified.", "options", i)
		case tooLong(name):
			errs.add("OPTION_NAME_TOO_LONG", "Option name is too long.", "options", i)
		case strings.Contains(name, reservedSequence):
			errs.add("INVALID_NAME", reservedMessage, "options", i, "name")
		case slices.ContainsFunc(given[:i], same):
			errs.add("DUPLICATED_OPTION_NAME", "Duplicated option name.", "options", i)
		case slices.ContainsFunc(existing, func(o *option) bool { return strings.EqualFold(o.name, name) }):
			errs.add("OPTION_ALREADY_EXISTS", fmt.Sprintf("Option '%s' already exists.", name), "options", i)
		case len(in.list("values")) == 0:
			errs.add("OPTION_VALUES_MISSING", fmt.Sprintf("Option '%s' must specify at least one option value.", name), "options", i)
		case len(in.list("values")) > maxVariants:
			errs.add("OPTION_VALUES_OVER_LIMIT", "Can only specify a maximum of 2048 option values", "options", i)
		}
		checkNewValues(in, i, errs)
	}
}

func checkNewValues(in input, i int, errs *userErrors) {
	seen := map[string]bool{}
	for j, v := range in.objects("values") {
		name := v.text("name")
		switch {
		case tooLong(name):
			errs.add("OPTION_VALUE_NAME_TOO_LONG", "Option value name is too long.", "options", i, "values", j)
		case seen[strings.ToLower(name)]:
			errs.add("DUPLICATED_OPTION_VALUE", "Duplicated option value.", "options", i, "values", j)
		}
		seen[strings.ToLower(name)] = true
	}
}

// fillVariants makes a variant for every combination of option values that has none.
func (x *execution) fillVariants(p *product, errs *userErrors) {
	total := 1
	for _, o := range p.options {
		total *= len(o.values)
		if total > maxVariants {
			errs.add("TOO_MANY_VARIANTS_CREATED", "The number of created variants would exceed the 2048 variants per product limit", "options")
			return
		}
	}
	model := p.variants[0]
	combination := make([]*optionValue, len(p.options))
	var fill func(i int)
	fill = func(i int) {
		if i < len(p.options) {
			for _, v := range p.options[i].values {
				combination[i] = v
				fill(i + 1)
			}
			return
		}
		values := slices.Clone(combination)
		if p.withValues(values) == nil {
			v := x.newVariant(p, values)
			v.price, v.compareAt, v.policy, v.taxable = model.price, model.compareAt, model.policy, model.taxable
			v.item.tracked = model.item.tracked
			x.stock(v.item, x.locations[0])
			p.variants = append(p.variants, v)
		}
	}
	fill(0)
}

func optionUpdate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	p := x.bulkTarget(a, &errs)
	if p == nil {
		return x.payload(errs, record{"product": nil})
	}
	in := input(a).object("option")
	o := p.option(idOf("ProductOption", in["id"]))
	if o == nil {
		errs.add("OPTION_DOES_NOT_EXIST", "Option does not exist", "option")
		return x.settle(p, errs, nil)
	}
	if in.given("name") {
		renameOption(p, o, in.text("name"), &errs)
	}
	if to, ok := in["position"].(int64); ok {
		if to < 1 || int(to) > len(p.options) {
			errs.add("INVALID_POSITION", "Invalid option position provided", "option", "position")
		} else {
			p.moveOption(o, int(to)-1)
		}
	}
	for i, v := range asInputs(a["optionValuesToUpdate"]) {
		renameValue(o, v, i, &errs)
	}
	x.deleteValues(p, o, texts(a["optionValuesToDelete"]), a["variantStrategy"] == "MANAGE", &errs)
	for i, v := range asInputs(a["optionValuesToAdd"]) {
		name := v.text("name")
		switch {
		case tooLong(name):
			errs.add("OPTION_VALUE_NAME_TOO_LONG", "Option value name is too long.", "optionValuesToAdd", i)
		case o.valueNamed(name) != nil:
			errs.add("OPTION_VALUE_ALREADY_EXISTS", "Option value already exists", "optionValuesToAdd", i)
		default:
			o.values = append(o.values, &optionValue{id: x.ids.take(), name: name})
		}
	}
	if a["variantStrategy"] == "MANAGE" && len(errs) == 0 && len(asInputs(a["optionValuesToAdd"])) > 0 {
		x.fillVariants(p, &errs)
	}
	return x.settle(p, errs, nil)
}

func renameOption(p *product, o *option, name string, errs *userErrors) {
	switch other := p.optionNamed(name); {
	case strings.Contains(name, reservedSequence):
		errs.add("INVALID_NAME", reservedMessage, "option", "name")
	case tooLong(name):
		errs.add("OPTION_NAME_TOO_LONG", "Option name is too long.", "option", "name")
	case strings.TrimSpace(name) == "":
		errs.add("INVALID_NAME", "The name provided is not valid.", "option", "name")
	case other != nil && other != o:
		errs.add("OPTION_ALREADY_EXISTS", fmt.Sprintf("Option '%s' already exists.", name), "option", "name")
	default:
		o.name = name
	}
}

func renameValue(o *option, in input, i int, errs *userErrors) {
	v := o.value(idOf("ProductOptionValue", in["id"]))
	name := in.text("name")
	switch {
	case v == nil:
		errs.add("OPTION_VALUE_DOES_NOT_EXIST", "Option value does not exist", "optionValuesToUpdate", i)
	case tooLong(name):
		errs.add("OPTION_VALUE_NAME_TOO_LONG", "Option value name is too long.", "optionValuesToUpdate", i)
	case o.valueNamed(name) != nil && o.valueNamed(name) != v:
		errs.add("OPTION_VALUE_ALREADY_EXISTS", "Option value already exists", "optionValuesToUpdate", i)
	case in.given("name"):
		v.name = name
	}
}

// moveOption changes an option's position; the variants' values follow.
func (p *product) moveOption(o *option, to int) {
	from := slices.Index(p.options, o)
	p.options = slices.Insert(slices.Delete(p.options, from, from+1), to, o)
	for _, v := range p.variants {
		w := v.values[from]
		v.values = slices.Insert(slices.Delete(v.values, from, from+1), to, w)
	}
}

// deleteValues deletes option values: with manage their variants go too, without they must have none.
func (x *execution) deleteValues(p *product, o *option, ids []string, manage bool, errs *userErrors) {
	for i, id := range ids {
		w := o.value(idOf("ProductOptionValue", id))
		if w == nil {
			errs.add("OPTION_VALUE_DOES_NOT_EXIST", "Option value does not exist", "optionValuesToDelete", i)
			continue
		}
		uses := func(v *variant) bool { return slices.Contains(v.values, w) }
		if slices.ContainsFunc(p.variants, uses) {
			if !manage {
				errs.add("OPTION_VALUE_HAS_VARIANTS", "Cannot delete option value associated with variants", "optionValuesToDelete", i)
				continue
			}
			p.variants = slices.DeleteFunc(p.variants, uses)
		}
		o.values = slices.DeleteFunc(o.values, func(e *optionValue) bool { return e == w })
	}
	if len(ids) > 0 && len(o.values) == 0 {
		errs.add("CANNOT_DELETE_ALL_OPTION_VALUES_IN_OPTION", "Cannot delete all option values in an option", "optionValuesToDelete")
	}
	if len(p.variants) == 0 {
		errs.add("CANNOT_LEAVE_OPTIONS_WITHOUT_VARIANTS", "Cannot leave options without variants", "optionValuesToDelete")
	}
}

func optionsDelete(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	deleted := []any{}
	p := x.bulkTarget(a, &errs)
	if p == nil {
		return x.payload(errs, record{"product": nil, "deletedOptionsIds": deleted})
	}
	strategy, _ := a["strategy"].(string)
	for i, id := range texts(a["options"]) {
		o := p.option(idOf("ProductOption", id))
		if o == nil {
			errs.add("OPTION_DOES_NOT_EXIST", "Option does not exist", "options", i)
			continue
		}
		if len(o.values) > 1 && strategy == "DEFAULT" {
			errs.add("CANNOT_DELETE_OPTION_WITH_MULTIPLE_VALUES", "Cannot delete an option with multiple values", "options", i)
			continue
		}
		before := len(p.variants)
		p.removeOption(o)
		if len(p.variants) < before && strategy == "NON_DESTRUCTIVE" {
			errs.add("CANNOT_USE_NON_DESTRUCTIVE_STRATEGY", "The option cannot be deleted without deleting variants", "options", i)
		}
		deleted = append(deleted, id)
	}
	if len(errs) > 0 {
		return x.settle(p, errs, record{"deletedOptionsIds": []any{}})
	}
	if len(p.options) == 0 {
		p.variants = p.variants[:1]
		x.addDefaultOption(p)
		p.variants[0].values = []*optionValue{p.options[0].values[0]}
	}
	return x.settle(p, nil, record{"deletedOptionsIds": deleted})
}

// removeOption takes an option from the product; of variants that become equal the first stays.
func (p *product) removeOption(o *option) {
	at := slices.Index(p.options, o)
	p.options = slices.Delete(p.options, at, at+1)
	seen := map[string]bool{}
	p.variants = slices.DeleteFunc(p.variants, func(v *variant) bool {
		v.values = slices.Delete(v.values, at, at+1)
		key := valueKey(v.values)
		again := seen[key]
		seen[key] = true
		return again
	})
}

func optionsReorder(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	p := x.bulkTarget(a, &errs)
	if p == nil {
		return x.payload(errs, record{"product": nil})
	}
	for i, in := range asInputs(a["options"]) {
		o := p.optionNamed(in.text("name"))
		if in.given("id") {
			o = p.option(idOf("ProductOption", in["id"]))
		}
		if o == nil {
			code := "OPTION_NAME_DOES_NOT_EXIST"
			if in.given("id") {
				code = "OPTION_ID_DOES_NOT_EXIST"
			}
			errs.add(code, "Option does not exist", "options", i)
			continue
		}
		if i < len(p.options) {
			p.moveOption(o, i)
		}
		reorderValues(o, in.objects("values"), i, &errs)
	}
	if len(errs) == 0 {
		p.sortVariants()
	}
	return x.settle(p, errs, nil)
}

func reorderValues(o *option, given []input, i int, errs *userErrors) {
	for j, in := range given {
		v := o.valueNamed(in.text("name"))
		if in.given("id") {
			v = o.value(idOf("ProductOptionValue", in["id"]))
		}
		if v == nil {
			errs.add("OPTION_VALUE_DOES_NOT_EXIST", "Option value does not exist", "options", i, "values", j)
			continue
		}
		from := slices.Index(o.values, v)
		o.values = slices.Insert(slices.Delete(o.values, from, from+1), min(j, len(o.values)-1), v)
	}
}

// sortVariants orders the variants by the order of their option values, as reordering options does.
func (p *product) sortVariants() {
	slices.SortStableFunc(p.variants, func(a, b *variant) int {
		for i, o := range p.options {
			if c := slices.Index(o.values, a.values[i]) - slices.Index(o.values, b.values[i]); c != 0 {
				return c
			}
		}
		return 0
	})
}
