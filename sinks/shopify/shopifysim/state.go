package shopifysim

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// store is what one shop holds. It is guarded by its shop's mutex.
type store struct {
	ids          *sequence
	now          time.Time // of the request that is being executed
	name, domain string
	currency     string
	mediaDelay   time.Duration // how long a new file takes to be ready

	products    map[int64]*product
	order       []int64 // product ids, ascending: the order of creation
	variants    map[int64]*variant
	items       map[int64]*inventoryItem
	handles     map[string]int64   // product by handle
	skus        map[string][]int64 // variants by SKU
	unique      map[string]int64   // owner id by type, namespace, key and value of metafields of type id
	media       map[int64]*media
	mediaOrder  []int64
	locations   []*location
	channels    []*publication
	collections map[int64]*collection
	collOrder   []int64
	definitions []*definition
	metafields  []*metafield          // of the shop itself
	keys        map[string]idempotent // @idempotent keys of the last 24 hours
	keyOrder    []string              // the same, oldest first
	redirects   []redirect
	operations  map[int64]*operation
}

func newStore(domain, name, currency string) *store {
	return &store{
		ids: newSequence(domain), name: name, domain: domain, currency: currency,
		products: map[int64]*product{}, variants: map[int64]*variant{}, items: map[int64]*inventoryItem{},
		handles: map[string]int64{}, skus: map[string][]int64{}, unique: map[string]int64{},
		media: map[int64]*media{}, collections: map[int64]*collection{}, keys: map[string]idempotent{},
		operations: map[int64]*operation{},
	}
}

type product struct {
	id                                           int64
	title, handle, descriptionHTML, vendor, kind string // kind is productType
	status                                       string
	tags                                         []string
	templateSuffix, seoTitle, seoDescription     *string
	category, giftCardTemplateSuffix             *string
	giftCard, requiresSellingPlan                bool
	createdAt, updatedAt                         time.Time
	publishedAt                                  *time.Time
	options                                      []*option
	variants                                     []*variant
	media                                        []*media
	metafields                                   []*metafield
	publications                                 map[int64]time.Time // publication id to publish date
}

type option struct {
	id     int64
	name   string
	values []*optionValue
}

type optionValue struct {
	id   int64
	name string
}

type variant struct {
	id                   int64
	product              *product
	values               []*optionValue // one for each option of the product, in its order
	price                string
	compareAt            *string
	barcode, taxCode     *string
	policy               string
	taxable              bool
	showUnitPrice        bool
	requiresComponents   bool
	media                []int64
	item                 *inventoryItem
	metafields           []*metafield
	createdAt, updatedAt time.Time
	unpublished          map[int64]bool
}

type inventoryItem struct {
	id                                      int64
	variant                                 *variant
	sku                                     *string
	tracked, requiresShipping               bool
	cost, country, province, harmonizedCode *string
	weight                                  float64
	weightUnit                              string
	levels                                  []*level
	createdAt, updatedAt                    time.Time
}

type level struct {
	id                   int64
	item                 *inventoryItem
	location             *location
	active               bool
	quantities           map[string]int64
	changed              map[string]time.Time // when each quantity last changed
	createdAt, updatedAt time.Time
}

type location struct {
	id                   int64
	name                 string
	active               bool
	address              map[string]any
	fulfillsOnline       bool
	createdAt, updatedAt time.Time
	metafields           []*metafield
}

type publication struct {
	id   int64
	name string
}

type media struct {
	id                   int64
	kind                 string // MediaImage, Video, ExternalVideo, Model3d, GenericFile
	alt                  string
	source               string
	filename             string
	status               string
	createdAt, updatedAt time.Time
	imageID              int64
}

type metafield struct {
	id                   int64
	ownerKind            string // GID type of the owner
	owner                int64
	namespace, key       string
	kind, value          string
	shown                string // the key under which a query by keys shows it
	createdAt, updatedAt time.Time
}

type definition struct {
	id                                    int64
	name, namespace, key, kind, ownerType string
	description                           *string
	unique                                bool
	pinned                                int
	validations                           []any
}

type collection struct {
	id                             int64
	title, handle, descriptionHTML string
	products                       []int64
	updatedAt                      time.Time
	metafields                     []*metafield
	publications                   map[int64]time.Time
}

type redirect struct{ path, target string }

// kinds name the GraphQL type of each value, for the executor.
func (*product) graphqlType() string       { return "Product" }
func (*option) graphqlType() string        { return "ProductOption" }
func (*optionValue) graphqlType() string   { return "ProductOptionValue" }
func (*variant) graphqlType() string       { return "ProductVariant" }
func (*inventoryItem) graphqlType() string { return "InventoryItem" }
func (*level) graphqlType() string         { return "InventoryLevel" }
func (*location) graphqlType() string      { return "Location" }
func (*publication) graphqlType() string   { return "Publication" }
func (m *media) graphqlType() string       { return m.kind }
func (*metafield) graphqlType() string     { return "Metafield" }
func (*definition) graphqlType() string    { return "MetafieldDefinition" }
func (*collection) graphqlType() string    { return "Collection" }

// clone copies a product with everything below it, so that a mutation that fails half way leaves no trace. Media,
// locations and publications belong to the shop and are shared.
func (p *product) clone() *product {
	c := *p
	c.tags = slices.Clone(p.tags)
	c.media = slices.Clone(p.media)
	c.publications = maps.Clone(p.publications)
	c.metafields = cloneMetafields(p.metafields)
	values := map[*optionValue]*optionValue{}
	c.options = make([]*option, len(p.options))
	for i, o := range p.options {
		n := &option{id: o.id, name: o.name, values: make([]*optionValue, len(o.values))}
		for j, v := range o.values {
			w := *v
			n.values[j] = &w
			values[v] = &w
		}
		c.options[i] = n
	}
	c.variants = make([]*variant, len(p.variants))
	for i, v := range p.variants {
		n := *v
		n.product = &c
		n.values = make([]*optionValue, len(v.values))
		for j, w := range v.values {
			n.values[j] = values[w]
		}
		n.media = slices.Clone(v.media)
		n.unpublished = maps.Clone(v.unpublished)
		n.metafields = cloneMetafields(v.metafields)
		n.item = v.item.clone(&n)
		c.variants[i] = &n
	}
	return &c
}

func (t *inventoryItem) clone(v *variant) *inventoryItem {
	c := *t
	c.variant = v
	c.levels = make([]*level, len(t.levels))
	for i, l := range t.levels {
		n := *l
		n.item = &c
		n.quantities = maps.Clone(l.quantities)
		n.changed = maps.Clone(l.changed)
		c.levels[i] = &n
	}
	return &c
}

func cloneMetafields(list []*metafield) []*metafield {
	out := make([]*metafield, len(list))
	for i, m := range list {
		c := *m
		out[i] = &c
	}
	return out
}

// put makes p the shop's product of its id, new or not, and indexes it.
func (s *store) put(p *product) {
	if old := s.products[p.id]; old != nil {
		s.unindex(old)
	} else {
		at, _ := slices.BinarySearch(s.order, p.id)
		s.order = slices.Insert(s.order, at, p.id)
	}
	s.products[p.id] = p
	s.handles[p.handle] = p.id
	s.keep(p.media...)
	s.indexMetafields(p.metafields)
	for _, v := range p.variants {
		s.variants[v.id] = v
		s.items[v.item.id] = v.item
		s.indexSKU(v)
		s.indexMetafields(v.metafields)
	}
}

// remove deletes a product and what belongs to it.
func (s *store) remove(p *product) {
	s.unindex(p)
	delete(s.products, p.id)
	if at, ok := slices.BinarySearch(s.order, p.id); ok {
		s.order = slices.Delete(s.order, at, at+1)
	}
	for _, c := range s.collections {
		c.products = slices.DeleteFunc(c.products, func(id int64) bool { return id == p.id })
	}
}

func (s *store) unindex(p *product) {
	delete(s.handles, p.handle)
	s.unindexMetafields(p.metafields)
	for _, v := range p.variants {
		delete(s.variants, v.id)
		delete(s.items, v.item.id)
		s.unindexSKU(v)
		s.unindexMetafields(v.metafields)
	}
}

func (s *store) indexSKU(v *variant) {
	if v.item.sku != nil {
		s.skus[*v.item.sku] = append(s.skus[*v.item.sku], v.id)
	}
}

func (s *store) unindexSKU(v *variant) {
	if v.item.sku == nil {
		return
	}
	rest := slices.DeleteFunc(s.skus[*v.item.sku], func(id int64) bool { return id == v.id })
	if len(rest) == 0 {
		delete(s.skus, *v.item.sku)
		return
	}
	s.skus[*v.item.sku] = rest
}

// uniqueKey addresses a metafield of type id by its value.
func uniqueKey(ownerKind, namespace, key, value string) string {
	return strings.Join([]string{ownerKind, namespace, key, value}, "\x00")
}

func (s *store) indexMetafields(list []*metafield) {
	for _, m := range list {
		if m.kind == "id" {
			s.unique[uniqueKey(m.ownerKind, m.namespace, m.key, m.value)] = m.owner
		}
	}
}

func (s *store) unindexMetafields(list []*metafield) {
	for _, m := range list {
		if m.kind == "id" {
			delete(s.unique, uniqueKey(m.ownerKind, m.namespace, m.key, m.value))
		}
	}
}

// location returns an active or inactive location by its global id, or nil.
func (s *store) location(v any) *location {
	id := idOf("Location", v)
	for _, l := range s.locations {
		if l.id == id {
			return l
		}
	}
	return nil
}

func (s *store) publication(v any) *publication {
	id := idOf("Publication", v)
	for _, p := range s.channels {
		if p.id == id {
			return p
		}
	}
	return nil
}

// level returns the item's level at a location, or nil.
func (t *inventoryItem) level(l *location) *level {
	for _, v := range t.levels {
		if v.location == l {
			return v
		}
	}
	return nil
}
