package pipeline

import "github.com/shelfwire/shelfwire/schemas/change"

// routerCache remembers, for the rows of parent tables that were used last, the product that each belongs to.
type routerCache struct {
	limit   int
	entries map[routerCacheKey]*routerCacheEntry
	root    routerCacheEntry // ring: root.next is the entry used last, root.prev the next to go
}

type routerCacheKey struct {
	parent int
	id     string
}

type routerCacheEntry struct {
	key        routerCacheKey
	product    change.ProductID
	prev, next *routerCacheEntry
}

func newRouterCache(limit int) *routerCache {
	c := &routerCache{limit: limit, entries: map[routerCacheKey]*routerCacheEntry{}}
	c.root.prev, c.root.next = &c.root, &c.root
	return c
}

func (c *routerCache) clear() {
	clear(c.entries)
	c.root.prev, c.root.next = &c.root, &c.root
}

func (c *routerCache) get(parent *routerParent, id []byte) (change.ProductID, bool) {
	e := c.entries[routerCacheKey{parent.index, string(id)}]
	if e == nil {
		return "", false
	}
	c.first(e)
	return e.product, true
}

func (c *routerCache) put(parent *routerParent, id string, product change.ProductID) {
	key := routerCacheKey{parent.index, id}
	if e := c.entries[key]; e != nil {
		e.product = product
		c.first(e)
		return
	}
	for len(c.entries) >= c.limit {
		c.drop(c.root.prev)
	}
	e := &routerCacheEntry{key: key, product: product}
	e.prev, e.next = e, e
	c.entries[key] = e
	c.first(e)
}

func (c *routerCache) remove(parent *routerParent, id []byte) {
	if e := c.entries[routerCacheKey{parent.index, string(id)}]; e != nil {
		c.drop(e)
	}
}

func (c *routerCache) drop(e *routerCacheEntry) {
	e.prev.next, e.next.prev = e.next, e.prev
	delete(c.entries, e.key)
}

func (c *routerCache) first(e *routerCacheEntry) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = &c.root, c.root.next
	e.prev.next, e.next.prev = e, e
}
