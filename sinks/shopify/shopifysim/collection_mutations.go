package shopifysim

import (
	"slices"
	"strings"
	"time"
)

func collectionMutations() fields {
	return fields{
		"collectionCreate": collectionCreate, "collectionUpdate": collectionUpdate, "collectionDelete": collectionDelete,
	}
}

func collectionInput(a arguments) input {
	if in := input(a).object("collection"); in != nil {
		return in
	}
	return input(a).object("input")
}

// collectionCreate makes a manual collection. Rules and sources are not kept.
func collectionCreate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	in := collectionInput(a)
	switch {
	case in.given("id"):
		errs.add("", "id cannot be specified on collection creation", "id")
	case strings.TrimSpace(in.text("title")) == "":
		errs.add("", "Title can't be blank", "title")
	case in.given("ruleSet") || in.given("sources"):
		return nil, notImplemented("collections by rule")
	}
	if len(errs) > 0 {
		return x.payload(errs, record{"collection": nil})
	}
	c := &collection{id: x.ids.take(), title: in.text("title"), publications: map[int64]time.Time{}, updatedAt: x.now}
	c.descriptionHTML = in.text("descriptionHtml")
	c.handle = handleOf(in.text("handle"))
	if c.handle == "" {
		c.handle = handleOf(c.title)
	}
	for _, id := range in.list("products") {
		if p := x.products[idOf("Product", id)]; p != nil {
			c.products = append(c.products, p.id)
		}
	}
	x.collections[c.id] = c
	x.collOrder = append(x.collOrder, c.id)
	return x.payload(nil, record{"collection": c})
}

func collectionUpdate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	in := collectionInput(a)
	c := x.collections[idOf("Collection", in["id"])]
	if c == nil {
		errs.add("", "Collection does not exist", "id")
		return x.payload(errs, record{"collection": nil, "job": nil})
	}
	if in.given("title") {
		c.title = in.text("title")
	}
	if in.given("handle") {
		c.handle = handleOf(in.text("handle"))
	}
	if in.has("descriptionHtml") {
		c.descriptionHTML = in.text("descriptionHtml")
	}
	c.updatedAt = x.now
	return x.payload(nil, record{"collection": c, "job": nil})
}

func collectionDelete(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	id := input(a).object("input").text("id")
	c := x.collections[idOf("Collection", id)]
	done := record{"deletedCollectionId": nil, "shop": &shopNode{x.store}}
	if c == nil {
		errs.add("", "Collection does not exist", "id")
		return x.payload(errs, done)
	}
	delete(x.collections, c.id)
	x.collOrder = slices.DeleteFunc(x.collOrder, func(e int64) bool { return e == c.id })
	done["deletedCollectionId"] = id
	return x.payload(nil, done)
}
