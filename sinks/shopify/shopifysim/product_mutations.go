package shopifysim

import (
	"slices"
	"strconv"
	"strings"
)

func productMutations() fields {
	return fields{
		"productCreate":       productCreate,
		"productUpdate":       productUpdate,
		"productDelete":       productDelete,
		"productChangeStatus": productChangeStatus,
		"productCreateMedia":  productCreateMedia,
		"productDeleteMedia":  productDeleteMedia,
		"productReorderMedia": productReorderMedia,
	}
}

// productInput returns the input of productCreate and productUpdate, by its present or its old name.
func productInput(a arguments) input {
	if in := input(a).object("product"); in != nil {
		return in
	}
	return input(a).object("input")
}

func productCreate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	failed := record{"product": nil, "shop": &shopNode{x.store}}
	in := productInput(a)
	if in.given("id") {
		errs.add("", "id cannot be specified during creation", "input")
		return x.payload(errs, failed)
	}
	p := x.newProduct()
	if err := x.applyCategory(p, in); err != nil {
		return nil, err
	}
	x.applyProduct(p, in, true, nil, &errs)
	x.createOptions(p, in, &errs)
	if in.given("metafields") {
		x.upsertMetafields(&p.metafields, "Product", p.id, in.objects("metafields"), []any{"metafields"}, "", &errs)
	}
	x.appendMedia(p, a, &errs)
	joins := x.collectionsOf(in, "collectionsToJoin", &errs)
	if len(errs) > 0 {
		return x.payload(errs, failed)
	}
	x.put(p)
	for _, c := range joins {
		c.products = append(c.products, p.id)
	}
	return x.payload(nil, record{"product": p, "shop": &shopNode{x.store}})
}

// createOptions makes the options of productCreate and the one variant of their first values.
func (x *execution) createOptions(p *product, in input, errs *userErrors) {
	given := positioned(in.objects("productOptions"))
	if len(given) == 0 {
		x.addDefaultOption(p)
		return
	}
	if len(given) > maxOptions {
		errs.add("", "Can only specify a maximum of 3 options", "options")
		return
	}
	var first []*optionValue
	for _, o := range given {
		name := o.text("name")
		switch {
		case strings.Contains(name, reservedSequence):
			errs.add("", `Name cannot contain the character sequence " / "`, "options")
			return
		case p.optionNamed(name) != nil:
			errs.add("", "Option names must be unique", "options")
			return
		case strings.TrimSpace(name) == "" || tooLong(name):
			errs.add("", "Option name is invalid", "options")
			return
		}
		made := &option{id: x.ids.take(), name: name}
		for _, v := range o.objects("values") {
			if made.valueNamed(v.text("name")) == nil {
				made.values = append(made.values, &optionValue{id: x.ids.take(), name: v.text("name")})
			}
		}
		if len(made.values) == 0 {
			made.values = []*optionValue{{id: x.ids.take(), name: "Default " + name}}
		}
		first = append(first, made.values[0])
		p.options = append(p.options, made)
	}
	v := x.newVariant(p, first)
	x.stock(v.item, x.locations[0])
	p.variants = []*variant{v}
}

func (x *execution) collectionsOf(in input, field string, errs *userErrors) []*collection {
	var out []*collection
	for i, id := range in.list(field) {
		c := x.collections[idOf("Collection", id)]
		if c == nil {
			errs.add("", "Collection does not exist", field, i)
			continue
		}
		out = append(out, c)
	}
	return out
}

// appendMedia adds the media argument's files to a product. Nothing is replaced.
func (x *execution) appendMedia(p *product, a arguments, errs *userErrors) []any {
	var made []any
	for i, in := range asInputs(a["media"]) {
		source := in.text("originalSource")
		if !downloadable(source) {
			errs.add("INVALID_INPUT", "Image URL is invalid", "media", i, "originalSource")
			continue
		}
		m := x.newMedia(kindOf(in.text("mediaContentType")), source, in.text("alt"), "")
		p.media = append(p.media, m)
		made = append(made, m)
	}
	return made
}

func productUpdate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	in := productInput(a)
	identifier := input(a).object("identifier")
	if identifier == nil {
		identifier = input{"id": in["id"]}
	}
	id, err := x.identified("Product", identifier)
	if err != nil {
		return nil, err
	}
	old := x.products[id]
	if old == nil {
		errs.add("", "Product does not exist", "id")
		return x.payload(errs, record{"product": nil})
	}
	p := old.clone()
	if err := x.applyCategory(p, in); err != nil {
		return nil, err
	}
	x.applyProduct(p, in, false, nil, &errs)
	if in.given("metafields") {
		x.upsertMetafields(&p.metafields, "Product", p.id, in.objects("metafields"), []any{"metafields"}, "", &errs)
	}
	x.appendMedia(p, a, &errs)
	join := x.collectionsOf(in, "collectionsToJoin", &errs)
	leave := x.collectionsOf(in, "collectionsToLeave", &errs)
	if len(errs) > 0 {
		return x.payload(errs, record{"product": old})
	}
	x.put(p)
	for _, c := range leave {
		c.products = slices.DeleteFunc(c.products, func(e int64) bool { return e == p.id })
	}
	for _, c := range join {
		if !slices.Contains(c.products, p.id) {
			c.products = append(c.products, p.id)
		}
	}
	return x.payload(nil, record{"product": p})
}

func productDelete(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	id := input(a).object("input").text("id")
	p := x.products[idOf("Product", id)]
	done := record{"deletedProductId": nil, "shop": &shopNode{x.store}, "productDeleteOperation": nil}
	if p == nil {
		errs.add("", "Product does not exist", "id")
		return x.payload(errs, done)
	}
	x.remove(p)
	done["deletedProductId"] = gid("Product", p.id)
	return x.payload(nil, done)
}

func productChangeStatus(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	p := x.products[idOf("Product", a["productId"])]
	if p == nil {
		errs.add("PRODUCT_NOT_FOUND", "Product does not exist", "productId")
		return x.payload(errs, record{"product": nil})
	}
	p.status, _ = a["status"].(string)
	p.updatedAt = x.now
	return x.payload(nil, record{"product": p})
}

func productCreateMedia(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	done := record{"media": []any{}, "product": nil, "mediaUserErrors": []any{}}
	old := x.products[idOf("Product", a["productId"])]
	if old == nil {
		errs.add("PRODUCT_DOES_NOT_EXIST", "Product does not exist", "productId")
		done["media"], done["mediaUserErrors"] = nil, errs.list()
		return x.payload(errs, done)
	}
	p := old.clone()
	made := x.appendMedia(p, a, &errs)
	if len(made) > 0 {
		p.updatedAt = x.now
		x.put(p)
		done["media"] = made
	}
	done["product"], done["mediaUserErrors"] = p, errs.list()
	return x.payload(errs, done)
}

func productDeleteMedia(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	done := record{"deletedMediaIds": nil, "deletedProductImageIds": nil, "product": nil, "mediaUserErrors": []any{}}
	old := x.products[idOf("Product", a["productId"])]
	if old == nil {
		errs.add("PRODUCT_DOES_NOT_EXIST", "Product does not exist", "productId")
		done["mediaUserErrors"] = errs.list()
		return x.payload(errs, done)
	}
	p := old.clone()
	deleted := []any{}
	for i, id := range texts(a["mediaIds"]) {
		m := x.mediaByGID(id)
		if m == nil || !slices.Contains(p.media, m) {
			errs.add("MEDIA_DOES_NOT_EXIST", "Media id "+id+" does not exist", "mediaIds", i)
			continue
		}
		deleted = append(deleted, id)
		p.media = slices.DeleteFunc(p.media, func(e *media) bool { return e == m })
	}
	if len(errs) == 0 {
		p.dropLostMedia()
		x.put(p)
		done["deletedMediaIds"], done["deletedProductImageIds"] = deleted, []any{}
	}
	done["product"], done["mediaUserErrors"] = x.products[p.id], errs.list()
	return x.payload(errs, done)
}

// productReorderMedia moves media one after the other to their new positions, counted from 0. At Shopify a job does
// it; here it is done when it is answered.
func productReorderMedia(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	done := record{"job": nil}
	p := x.products[idOf("Product", a["id"])]
	if p == nil {
		errs.add("PRODUCT_DOES_NOT_EXIST", "Product does not exist", "id")
		done["mediaUserErrors"] = errs.list()
		return x.payload(errs, done)
	}
	order := slices.Clone(p.media)
	for i, move := range asInputs(a["moves"]) {
		m := x.mediaByGID(move["id"])
		from := slices.Index(order, m)
		if m == nil || from < 0 {
			errs.add("MEDIA_DOES_NOT_EXIST", "Media does not exist", "moves", i, "id")
			continue
		}
		to, err := strconv.Atoi(move.text("newPosition"))
		if err != nil {
			to = len(order)
		}
		order = slices.Delete(order, from, from+1)
		order = slices.Insert(order, min(to, len(order)), m)
	}
	if len(errs) == 0 {
		p.media, p.updatedAt = order, x.now
		done["job"] = record{"id": gid("Job", x.ids.take()), "done": true}
	}
	done["mediaUserErrors"] = errs.list()
	return x.payload(errs, done)
}
