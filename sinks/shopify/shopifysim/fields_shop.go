package shopifysim

import (
	"slices"
	"strconv"
	"strings"
)

// shopNode is the Shop of GraphQL; store has the facts.
type shopNode struct{ store *store }

func (*shopNode) graphqlType() string { return "Shop" }

func shopTypes() map[string]fields {
	return map[string]fields{
		"Shop": merged(shopFields(), ownedMetafields()), "Location": merged(locationFields(), ownedMetafields()),
		"Publication": publicationFields(),
	}
}

// Limits of every shop, as shop.resourceLimits answers them.
const (
	maxVariants  = 2048
	maxOptions   = 3
	maxLocations = 200
)

func shopFields() fields {
	return fields{
		"id":              get(func(s *shopNode) any { return gid("Shop", s.store.shopID()) }),
		"name":            get(func(s *shopNode) any { return s.store.name }),
		"myshopifyDomain": get(func(s *shopNode) any { return s.store.domain }),
		"url":             get(func(s *shopNode) any { return "https://" + s.store.domain }),
		"currencyCode":    get(func(s *shopNode) any { return s.store.currency }),
		"email":           get(func(s *shopNode) any { return "owner@" + s.store.domain }),
		"weightUnit":      get(func(*shopNode) any { return "KILOGRAMS" }),
		"unitSystem":      get(func(*shopNode) any { return "METRIC_SYSTEM" }),
		"ianaTimezone":    get(func(*shopNode) any { return "Etc/UTC" }),
		"taxesIncluded":   get(func(*shopNode) any { return false }),
		"setupRequired":   get(func(*shopNode) any { return false }),
		"primaryDomain": get(func(s *shopNode) any {
			return record{
				"id": gid("Domain", s.store.shopID()), "host": s.store.domain, "url": "https://" + s.store.domain,
				"sslEnabled": true,
			}
		}),
		"plan": get(func(*shopNode) any {
			return record{"displayName": "Simulated", "publicDisplayName": "Simulated", "partnerDevelopment": true, "shopifyPlus": false}
		}),
		"resourceLimits": get(func(*shopNode) any {
			return record{
				"maxProductVariants": maxVariants, "maxProductOptions": maxOptions, "locationLimit": maxLocations,
				"redirectLimitReached": false,
			}
		}),
	}
}

// shopID is a number of the shop that no other object has: ids start above it.
func (s *store) shopID() int64 { return newSequence(s.domain).next / 1000 }

// addLocation adds an active location.
func (s *store) addLocation(name string, address map[string]any, online bool) *location {
	l := &location{
		id: s.ids.take(), name: name, active: true, address: address, fulfillsOnline: online, createdAt: s.now, updatedAt: s.now,
	}
	s.locations = append(s.locations, l)
	return l
}

func locationFields() fields {
	return fields{
		"id":                   get(func(l *location) any { return gid("Location", l.id) }),
		"legacyResourceId":     get(func(l *location) any { return strconv.FormatInt(l.id, 10) }),
		"name":                 get(func(l *location) any { return l.name }),
		"isActive":             get(func(l *location) any { return l.active }),
		"activatable":          get(func(l *location) any { return !l.active }),
		"fulfillsOnlineOrders": get(func(l *location) any { return l.fulfillsOnline }),
		"shipsInventory":       get(func(l *location) any { return l.fulfillsOnline }),
		"hasUnfulfilledOrders": get(func(*location) any { return false }),
		"isFulfillmentService": get(func(*location) any { return false }),
		"fulfillmentService":   get(func(*location) any { return nil }),
		"addressVerified":      get(func(*location) any { return false }),
		"createdAt":            get(func(l *location) any { return l.createdAt }),
		"updatedAt":            get(func(l *location) any { return l.updatedAt }),
		"deactivatedAt":        get(func(*location) any { return nil }),
		"isPrimary": with(func(x *execution, l *location, _ arguments) (any, error) {
			return x.locations[0] == l, nil
		}),
		"address": get(func(l *location) any { return address(l.address) }),
		"hasActiveInventory": with(func(x *execution, l *location, _ arguments) (any, error) {
			return slices.ContainsFunc(x.levelsAt(l, false), func(v *level) bool { return v.quantity("on_hand") != 0 }), nil
		}),
		"inventoryLevel": with(func(x *execution, l *location, a arguments) (any, error) {
			t := x.items[idOf("InventoryItem", a["inventoryItemId"])]
			inactive, _ := a["includeInactive"].(bool)
			if t == nil {
				return nil, nil
			}
			v := t.level(l)
			if v == nil || !v.active && !inactive {
				return nil, nil
			}
			return v, nil
		}),
		"inventoryLevels": with(func(x *execution, l *location, a arguments) (any, error) {
			inactive, _ := a["includeInactive"].(bool)
			return page(a, x.foundLevels(x.levelsAt(l, inactive), a))
		}),
	}
}

func address(a map[string]any) record {
	out := record{"formatted": []any{}}
	for _, name := range []string{
		"address1", "address2", "city", "country", "countryCode", "latitude", "longitude", "phone", "province", "provinceCode", "zip",
	} {
		out[name] = a[name]
	}
	return out
}

// levelsAt lists the levels of a location in the order of their items.
func (s *store) levelsAt(l *location, inactive bool) []*level {
	var out []*level
	for _, id := range s.order {
		for _, v := range s.products[id].variants {
			if e := v.item.level(l); e != nil && (e.active || inactive) {
				out = append(out, e)
			}
		}
	}
	return out
}

func publicationFields() fields {
	return fields{
		"id":                       get(func(p *publication) any { return gid("Publication", p.id) }),
		"name":                     get(func(p *publication) any { return p.name }),
		"autoPublish":              get(func(*publication) any { return false }),
		"supportsFuturePublishing": get(func(p *publication) any { return p.name == "Online Store" }),
		"catalog":                  get(func(*publication) any { return nil }),
		"operation":                get(func(*publication) any { return nil }),
		"includedProductsCount": with(func(x *execution, p *publication, _ arguments) (any, error) {
			return exactly(len(x.includedIn(p))), nil
		}),
		"products":         with(func(x *execution, p *publication, a arguments) (any, error) { return page(a, x.includedIn(p)) }),
		"includedProducts": with(func(x *execution, p *publication, a arguments) (any, error) { return page(a, x.includedIn(p)) }),
	}
}

func (x *execution) includedIn(c *publication) []any {
	list := []any{}
	for _, id := range x.order {
		p := x.products[id]
		if _, ok := p.publications[c.id]; ok {
			list = append(list, p)
		}
	}
	return list
}

func shopQueries() fields {
	return fields{
		"shop": func(x *execution, _ any, _ arguments) (any, error) { return &shopNode{x.store}, nil },
		"location": func(x *execution, _ any, a arguments) (any, error) {
			if a["id"] == nil {
				return x.locations[0], nil
			}
			return x.location(a["id"]), nil
		},
		"locations": func(x *execution, _ any, a arguments) (any, error) {
			inactive, _ := a["includeInactive"].(bool)
			var list []*location
			for _, l := range x.locations {
				if l.active || inactive {
					list = append(list, l)
				}
			}
			if a["sortKey"] == "NAME" || a["sortKey"] == nil {
				slices.SortStableFunc(list, func(p, q *location) int { return strings.Compare(p.name, q.name) })
			}
			return page(a, nodes(list))
		},
		"locationsCount":    func(x *execution, _ any, _ arguments) (any, error) { return exactly(len(x.locations)), nil },
		"publication":       func(x *execution, _ any, a arguments) (any, error) { return x.publication(a["id"]), nil },
		"publications":      func(x *execution, _ any, a arguments) (any, error) { return page(a, nodes(x.channels)) },
		"publicationsCount": func(x *execution, _ any, _ arguments) (any, error) { return exactly(len(x.channels)), nil },
		"node":              func(x *execution, _ any, a arguments) (any, error) { return x.node(a["id"]), nil },
		"nodes": func(x *execution, _ any, a arguments) (any, error) {
			ids, _ := a["ids"].([]any)
			out := make([]any, len(ids))
			for i, id := range ids {
				out[i] = x.node(id)
			}
			return out, nil
		},
	}
}

// node finds any object by its global id; nil where there is none.
func (x *execution) node(v any) any {
	s, _ := v.(string)
	kind, id, ok := parseGID(s)
	if !ok {
		return nil
	}
	switch kind {
	case "Product":
		return x.products[id]
	case "ProductVariant":
		return x.variants[id]
	case "InventoryItem":
		return x.items[id]
	case "InventoryLevel":
		return x.levelByGID(s)
	case "Location":
		return x.location(s)
	case "Publication":
		return x.publication(s)
	case "Collection":
		return x.collections[id]
	case "MediaImage", "Video", "ExternalVideo", "Model3d", "GenericFile":
		if m := x.media[id]; m != nil && m.kind == kind {
			return m
		}
		return nil
	case "Metafield":
		return x.metafield(id)
	case "MetafieldDefinition":
		for _, d := range x.definitions {
			if d.id == id {
				return d
			}
		}
		return nil
	case "ProductOption":
		if p := x.productOfOption(id); p != nil {
			return p.option(id)
		}
		return nil
	case "Shop":
		if id == x.shopID() {
			return &shopNode{x.store}
		}
	}
	return nil
}

// metafield finds a metafield by its id, anywhere in the shop.
func (x *execution) metafield(id int64) *metafield {
	in := func(list []*metafield) *metafield {
		for _, m := range list {
			if m.id == id {
				return m
			}
		}
		return nil
	}
	if m := in(x.metafields); m != nil {
		return m
	}
	for _, p := range x.products {
		if m := in(p.metafields); m != nil {
			return m
		}
		for _, v := range p.variants {
			if m := in(v.metafields); m != nil {
				return m
			}
		}
	}
	return nil
}

// levelByGID finds an inventory level: its item is named in the id's query.
func (s *store) levelByGID(v string) *level {
	_, id, ok := parseGID(v)
	_, query, found := strings.Cut(v, "?inventory_item_id=")
	if !ok || !found {
		return nil
	}
	query, _, _ = strings.Cut(query, "&")
	item, err := strconv.ParseInt(query, 10, 64)
	if err != nil || s.items[item] == nil {
		return nil
	}
	for _, l := range s.items[item].levels {
		if l.id == id {
			return l
		}
	}
	return nil
}
