package pipeline

import (
	"bytes"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// RoutedTables lists, sorted, the tables that must be published: those with a route and those that a parent route
// leads through, whose rows keep the router's cache current.
func RoutedTables(routes []route.Route) []string {
	var tables []string
	for _, r := range routes {
		tables = append(tables, r.Table)
		if r.Parent != nil {
			tables = append(tables, r.Parent.Table)
		}
	}
	slices.Sort(tables)
	return slices.Compact(tables)
}

// SnapshotTables lists, in the order of the routes, the tables whose rows a snapshot captures: those that lead to one
// product each. A row of a query route concerns products that have rows of their own.
func SnapshotTables(routes []route.Route) []string {
	var tables []string
	for _, r := range routes {
		if r.Query == "" && !slices.Contains(tables, r.Table) {
			tables = append(tables, r.Table)
		}
	}
	return tables
}

// routerKind says what is known of where an image leads.
type routerKind byte

const (
	// routerNone: the image concerns no product: there is no image, its reference is NULL, or its parent is gone.
	routerNone routerKind = iota
	// routerProduct: product is known.
	routerProduct
	// routerPending: the parent's row id must be looked up.
	routerPending
	// routerBad: the image cannot be routed; reason says why.
	routerBad
)

// routerTarget is where one image of a row leads by one route.
type routerTarget struct {
	kind    routerKind
	product change.ProductID
	parent  *routerParent
	id      string
	reason  string
}

// routerPair is where the old and the new image of a row lead by one route.
type routerPair struct{ old, new routerTarget }

// routerWaits reports whether one of them waits for a look-up.
func routerWaits(pairs []routerPair) bool {
	for i := range pairs {
		if pairs[i].old.kind == routerPending || pairs[i].new.kind == routerPending {
			return true
		}
	}
	return false
}

// routed is what the routes say of one change.
type routed struct {
	// pairs holds one entry for each column or parent route of the table.
	pairs []routerPair
	// fanout: the table has a query route.
	fanout bool
	// batch: the change makes its transaction a batch. admin names who is behind it.
	batch bool
	admin string
}

// router leads changes to products. It decides from the stream alone and says what it needs to have looked up; it
// does no I/O. One goroutine uses it.
type router struct {
	tables map[string]*routerTable
	plans  map[*change.Relation]*routerPlan
	cache  *routerCache
	ids    captureIDs
}

// routerTable is what the configuration says of one table.
type routerTable struct {
	routes []route.Route
	// leads holds the parent of each route, nil for column and query routes.
	leads []*routerParent
	// parents are the declarations whose parent table this is.
	parents []*routerParent
	// changed are, of a parent table, the transactions of the stream that have changed it and that nothing has proved
	// visible, the newest last: the stream is ahead of what is visible, by hours where a commit waits for a standby.
	changed change.XIDs
}

// routerParent is one declared way through a parent table. Equal declarations share one.
type routerParent struct {
	route.Parent
	index int
	table *routerTable
}

// change notes a transaction that has changed a parent table.
func (t *routerTable) change(xid change.XID) {
	if n := len(t.changed); n == 0 || t.changed[n-1] != xid {
		t.changed = append(t.changed, xid)
	}
}

// ahead reports whether the stream has told of changes that a look-up has not seen.
func (t *routerTable) ahead(s change.Snapshot) bool {
	t.changed = unproved(t.changed, s)
	return len(t.changed) > 0
}

// routerPlan is a routerTable with the places of its columns in one shape of the table.
type routerPlan struct {
	table *routerTable
	// columns[i] is the place of the column that routes[i] reads, -1 for query routes. covered[i] says that the old
	// image always has it: it belongs to the replica identity.
	columns []int
	covered []bool
	when    [][]int
	admin   []int
	// ids and keys are the places of each parent declaration's columns.
	ids, keys []int
	problem   error
}

// routerCacheRows is how many rows of parent tables are remembered: about 100 bytes each.
const routerCacheRows = 200_000

func newRouter(routes []route.Route) *router {
	r := &router{tables: map[string]*routerTable{}, plans: map[*change.Relation]*routerPlan{}, cache: newRouterCache(routerCacheRows)}
	at := func(name string) *routerTable {
		t := r.tables[name]
		if t == nil {
			t = &routerTable{}
			r.tables[name] = t
		}
		return t
	}
	var parents []*routerParent
	for _, rt := range routes {
		t := at(rt.Table)
		t.routes = append(t.routes, rt)
		var lead *routerParent
		if rt.Parent != nil {
			// The column of the child plays no part in what the parent's row says.
			i := slices.IndexFunc(parents, func(p *routerParent) bool {
				return p.Table == rt.Parent.Table && p.ID == rt.Parent.ID && p.Key == rt.Parent.Key
			})
			if i < 0 {
				i = len(parents)
				pt := at(rt.Parent.Table)
				p := &routerParent{Parent: *rt.Parent, index: i, table: pt}
				parents = append(parents, p)
				pt.parents = append(pt.parents, p)
			}
			lead = parents[i]
		}
		t.leads = append(t.leads, lead)
	}
	return r
}

// behind takes from a position what a predecessor has streamed and nothing has proved visible. A table that was no parent
// to it may have been changed by any of these transactions.
func (r *router) behind(unseen change.XIDs, parents map[string]change.XIDs) {
	for name, t := range r.tables {
		if len(t.parents) == 0 {
			continue
		}
		list, known := parents[name]
		if !known {
			list = unseen
		}
		t.changed = slices.Clone(list)
	}
}

// unseen is what a position must say of the changes of parent tables: of each of them, also where it is nothing.
func (r *router) unseen() map[string]change.XIDs {
	var out map[string]change.XIDs
	for name, t := range r.tables {
		if len(t.parents) == 0 {
			continue
		}
		if out == nil {
			out = map[string]change.XIDs{}
		}
		out[name] = slices.Clip(t.changed)
	}
	return out
}

// proved forgets the transactions that a snapshot sees.
func (r *router) proved(s change.Snapshot) {
	for _, t := range r.tables {
		t.changed = unproved(t.changed, s)
	}
}

// doubt forgets what look-ups have found in a table: they may have missed changes that the stream does not bring.
func (r *router) doubt(table string) {
	if t := r.tables[table]; t != nil && len(t.parents) > 0 {
		r.cache.clear()
	}
}

// known reports whether the configuration says anything about the table.
func (r *router) known(rel *change.Relation) bool {
	return r.plan(rel).table != nil
}

// routed reports whether the table has a route of its own.
func (r *router) routed(rel *change.Relation) bool {
	p := r.plan(rel)
	return p.table != nil && len(p.table.routes) > 0
}

// alone reports whether every row of a table says itself where it leads.
func (r *router) alone(rel *change.Relation) bool {
	p := r.plan(rel)
	return p.table == nil || !slices.ContainsFunc(p.table.leads, func(l *routerParent) bool { return l != nil })
}

// problem returns, once for each shape of a table, why its old images cannot be routed.
func (r *router) problem(rel *change.Relation) error {
	p := r.plan(rel)
	err := p.problem
	p.problem = nil
	return err
}

func (r *router) plan(rel *change.Relation) *routerPlan {
	if p := r.plans[rel]; p != nil {
		return p
	}
	if len(r.plans) > 1000 { // a table altered in a loop must not fill the memory
		clear(r.plans)
	}
	p := &routerPlan{table: r.tables[rel.Table()]}
	r.plans[rel] = p
	if p.table == nil {
		return p
	}
	for i, rt := range p.table.routes {
		column := rt.Key
		if rt.Parent != nil {
			column = rt.Parent.Column
		}
		at, covered := rel.Index(column), false
		switch {
		case rt.Query != "":
			covered = rel.ReplicaIdentity == 'f'
		case at < 0:
			p.problem = fmt.Errorf("table %s has no column %q, which its route reads", rel.Table(), column)
		default:
			covered = rel.Columns[at].Identity
		}
		if !covered && p.problem == nil {
			p.problem = fmt.Errorf("table %s: the replica identity lacks what route %d reads, so deletes and moved rows cannot be "+
				"led to the product that they leave: run ALTER TABLE %s REPLICA IDENTITY FULL", rel.Table(), i+1, rel.Table())
		}
		p.columns, p.covered = append(p.columns, at), append(p.covered, covered)
		p.admin = append(p.admin, rel.Index(rt.Admin))
		var when []int
		for _, c := range rt.BatchWhen {
			when = append(when, rel.Index(c))
		}
		p.when = append(p.when, when)
	}
	if rel.Mixed && p.problem == nil && len(p.table.routes) > 0 {
		p.problem = fmt.Errorf("table %s: a partition has another replica identity than FULL, so deletes and moved rows of it cannot be "+
			"led to the product that they leave: run ALTER TABLE ... REPLICA IDENTITY FULL for the partition too", rel.Table())
	}
	for _, par := range p.table.parents {
		p.ids, p.keys = append(p.ids, rel.Index(par.ID)), append(p.keys, rel.Index(par.Key))
	}
	return p
}

// learn keeps the cache current from a change of a parent table, by a transaction. It must see every change of the
// stream, in order, also those that are captured already.
func (r *router) learn(c *change.Change, xid change.XID) {
	p := r.plan(c.Relation)
	if p.table == nil {
		return
	}
	if len(p.table.parents) > 0 {
		p.table.change(xid)
	}
	for i, par := range p.table.parents {
		if c.Op == change.Truncate {
			r.cache.clear()
			return
		}
		id, key := p.ids[i], p.keys[i]
		if id < 0 || key < 0 {
			continue
		}
		if old := routerValue(c.Before, id); old.Kind == change.Text {
			r.cache.remove(par, old.Data)
		}
		if now := routerValue(c.After, id); now.Kind == change.Text {
			if v := routerNewValue(c, key); v.Kind == change.Text && routerReason(v.Data) == "" {
				r.cache.put(par, string(now.Data), change.ProductID(v.Data))
			} else {
				r.cache.remove(par, now.Data)
			}
		}
	}
}

// route says where a change leads. pairs is reused memory for the result.
func (r *router) route(c *change.Change, pairs []routerPair) routed {
	p := r.plan(c.Relation)
	out := routed{pairs: pairs[:0]}
	if p.table == nil || c.Op == change.Truncate {
		return out
	}
	for i := range p.table.routes {
		rt := &p.table.routes[i]
		if rt.Batch && c.Op != change.Read && p.triggers(i, c) {
			out.batch = true
		}
		if v := routerNewValue(c, p.admin[i]); out.admin == "" && v.Kind == change.Text {
			out.admin = captureLabel(string(v.Data[:min(len(v.Data), captureLabelBytes)]))
		}
		if rt.Query != "" {
			out.fanout = out.fanout || c.Op != change.Read
			continue
		}
		pair := routerPair{new: r.target(p, i, c.After, c.Before)}
		switch {
		case c.Op == change.Create || c.Op == change.Read:
		case p.covered[i] && c.Before != nil:
			pair.old = r.target(p, i, c.Before, nil)
		case c.Op == change.Update:
			// No old image was sent: its identity is unchanged, and the route's column is part of it. Where it is not,
			// problem has said so.
			pair.old = pair.new
		default:
			pair.old = routerTarget{kind: routerBad, reason: "the replica identity lacks the route's column"}
		}
		out.pairs = append(out.pairs, pair)
	}
	return out
}

// target is where one image leads by route i. fill is the image that unchanged values are taken from.
func (r *router) target(p *routerPlan, i int, image, fill change.Tuple) routerTarget {
	if image == nil {
		return routerTarget{}
	}
	rt := &p.table.routes[i]
	v := routerValue(image, p.columns[i])
	if v.Kind == change.Unchanged {
		v = routerValue(fill, p.columns[i])
	}
	parent := p.table.leads[i]
	switch {
	case v.Kind == change.Text && parent != nil:
		if id, ok := r.cache.get(parent, v.Data); ok {
			return routerTarget{kind: routerProduct, product: id}
		}
		return routerTarget{kind: routerPending, parent: parent, id: string(v.Data)}
	case v.Kind == change.Text:
		if reason := routerReason(v.Data); reason != "" {
			return routerTarget{kind: routerBad, reason: "product id " + rt.Key + " " + reason}
		}
		return routerTarget{kind: routerProduct, product: r.ids.id(v.Data)}
	case v.Kind == change.Null && parent != nil:
		return routerTarget{} // it belongs to no parent
	case v.Kind == change.Null:
		return routerTarget{kind: routerBad, reason: fmt.Sprintf("product id %s is NULL", rt.Key)}
	case v.Kind == change.Wide:
		return routerTarget{kind: routerBad, reason: "the value of the route's column is too large"}
	}
	return routerTarget{kind: routerBad, reason: "the row came without the route's column"}
}

// triggers reports whether a change makes its transaction a batch by route i. An old value that was not sent, because
// its column is outside the replica identity, counts as another: better a batch too many than one that is not listed.
func (p *routerPlan) triggers(i int, c *change.Change) bool {
	if len(p.when[i]) == 0 {
		return true
	}
	for _, col := range p.when[i] {
		now, was := routerNewValue(c, col), routerValue(c.Before, col)
		switch {
		case col < 0 || now.Kind == change.Missing || now.Kind == change.Unchanged:
		case c.Op == change.Update && c.Before == nil && c.Relation.Columns[col].Identity:
			// No old image was sent: nothing of the identity has changed.
		case c.Op == change.Create:
			if now.Kind == change.Text {
				return true
			}
		case was.Kind != now.Kind || !bytes.Equal(was.Data, now.Data):
			return true
		}
	}
	return false
}

// routerIDBytes bounds a product id: it is a key of Kafka, and of indexes of the state together with a shop, which hold
// 2,700 bytes.
const routerIDBytes = 1000

// routerReason says why a text can be no product id: "is empty"; it gives nothing when it can.
func routerReason(id []byte) string {
	switch {
	case len(id) == 0:
		return "is empty"
	case len(id) > routerIDBytes:
		return fmt.Sprintf("has %d bytes, and at most %d are taken", len(id), routerIDBytes)
	case !utf8.Valid(id):
		return "is not UTF-8"
	}
	return ""
}

// resolve takes the answer of a look-up. What the stream has said meanwhile is newer and stays. A row that was found by
// another text of its id (1.50 for 1.5, or by a collation) is not remembered: the stream will name it by its own.
func (r *router) resolve(parent *routerParent, id string, row change.ParentRow) {
	if row.ID != id || routerReason([]byte(row.Product)) != "" {
		return
	}
	if _, ok := r.cache.get(parent, []byte(id)); !ok {
		r.cache.put(parent, id, row.Product)
	}
}

// routerValue is a value of an image, Missing where there is none.
func routerValue(t change.Tuple, i int) change.Value {
	if i < 0 || i >= len(t) {
		return change.Value{}
	}
	return t[i]
}

// routerNewValue is a value of the new image, taken from the old one where it was too large to be sent again.
func routerNewValue(c *change.Change, i int) change.Value {
	v := routerValue(c.After, i)
	if v.Kind == change.Unchanged {
		if old := routerValue(c.Before, i); old.Kind == change.Text || old.Kind == change.Null {
			return old
		}
	}
	return v
}
