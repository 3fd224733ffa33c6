package document

import (
	"fmt"
	"slices"
	"strings"
)

// check finds what the schema cannot say. Each of these would be refused by the shop, or would make the plan
// ambiguous: two variants with one key are one variant to the state.
func (d *Document) check() error {
	if title, owned := d.Title.Get(); owned && title == "" {
		return blank("title")
	}
	options, _ := d.Options.Get()
	if err := checkOptions(options); err != nil {
		return err
	}
	variants, _ := d.Variants.Get()
	if err := checkVariants(variants, options); err != nil {
		return err
	}
	if err := checkMetafields("metafields", d.Metafields); err != nil {
		return err
	}
	images, _ := d.Images.Get()
	return unique("images", "url", "an image is known by its address; select it once", images,
		func(i Image) string { return i.URL })
}

func checkOptions(options []Option) error {
	// Shopify compares option names without case (DUPLICATED_OPTION_NAME).
	err := unique("options", "name", "give each option its own name", options,
		func(o Option) string { return strings.ToLower(o.Name) })
	if err != nil {
		return err
	}
	for i, o := range options {
		if o.Name == "" {
			return blank(fmt.Sprintf("options[%d].name", i))
		}
		if at := slices.Index(o.Values, ""); at >= 0 {
			return blank(fmt.Sprintf("options[%d].values[%d]", i, at))
		}
		if strings.Contains(o.Name, " / ") {
			return &Error{
				Path:    fmt.Sprintf("options[%d].name", i),
				Message: fmt.Sprintf(`is %q, must not contain " / ": Shopify joins option values by it`, o.Name),
			}
		}
		err := unique(fmt.Sprintf("options[%d].values", i), "", "list each value once", o.Values,
			func(v string) string { return v })
		if err != nil {
			return err
		}
	}
	return nil
}

// blank is a name of nothing but spaces.
func blank(path string) *Error {
	return &Error{Path: path, Message: "has nothing but spaces: give it a text, or leave it out"}
}

func checkVariants(variants []Variant, options []Option) error {
	err := unique("variants", "key", "each variant needs a key of its own; is a join of the documents query too wide?",
		variants, func(v Variant) string { return v.Key })
	if err != nil {
		return err
	}
	menus := make([]map[string]bool, len(options))
	for i, o := range options {
		menus[i] = make(map[string]bool, len(o.Values))
		for _, v := range o.Values {
			menus[i][v] = true
		}
	}
	for i, v := range variants {
		at := fmt.Sprintf("variants[%d]", i)
		if err := checkChoice(at, v, options, menus); err != nil {
			return err
		}
		if err := checkMetafields(at+".metafields", v.Metafields); err != nil {
			return err
		}
		levels, _ := v.Stock.Get()
		err := unique(at+".stock", "location", "sum the warehouses of one location", levels,
			func(l Level) string { return l.Location })
		if err != nil {
			return err
		}
	}
	return unique("variants", "options", "two variants of a product cannot have the same option values", variants,
		func(v Variant) string { return strings.Join(v.Options, "\x00") })
}

// checkChoice checks that a variant picks one value of each option's menu.
func checkChoice(at string, v Variant, options []Option, menus []map[string]bool) error {
	if len(v.Options) != len(options) {
		return &Error{
			Path: at + ".options",
			Message: fmt.Sprintf("has %d values, the product has %d options: give one value for each, in their order",
				len(v.Options), len(options)),
		}
	}
	for i, value := range v.Options {
		if !menus[i][value] {
			return &Error{
				Path: fmt.Sprintf("%s.options[%d]", at, i),
				Message: fmt.Sprintf("is %q, which is not among the values of the option %q: add it to options[%d].values",
					value, options[i].Name, i),
			}
		}
	}
	return nil
}

func checkMetafields(at string, field Field[[]Metafield]) error {
	list, _ := field.Get()
	return unique(at, "key", "name each metafield (namespace and key) once", list,
		func(m Metafield) string { return m.Namespace + "." + m.Key })
}

// unique reports the first entry of a list whose identity stands in the list before it. Field names the part of the
// entry that is repeated, for the path.
func unique[T any](at, field, mend string, list []T, identity func(T) string) error {
	seen := make(map[string]int, len(list))
	for i, entry := range list {
		id := identity(entry)
		if first, again := seen[id]; again {
			path := fmt.Sprintf("%s[%d]", at, i)
			if field != "" {
				path += "." + field
			}
			return &Error{
				Path:    path,
				Message: fmt.Sprintf("repeats %s of [%d]: %s", quote(strings.ReplaceAll(id, "\x00", " / ")), first, mend),
			}
		}
		seen[id] = i
	}
	return nil
}
