package shopify

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// settings is what a shop's own configuration tells: ids behind the names that documents use.
type settings struct {
	locations    map[string]string // gid by name
	names        map[string]string // location name by gid
	publications map[string]string // gid by name
	channels     map[string]string // publication name by gid
	at           time.Time
}

const (
	// settingsAge is how soon settings are read again when a name is not among them, or an id is refused.
	settingsAge = time.Minute
	// settingsLife is how long settings are trusted. A merchant may give the name of one location to another: stock
	// would go to the wrong one for so long. Reading them costs two requests.
	settingsLife = 10 * time.Minute
)

// learnSettings returns the shop's settings, reading them and ensuring the custom id's definition on the first use.
// fresh asks for settings that are not older than settingsAge; otherwise older ones serve where the shop does not tell.
func (s *Shops) learnSettings(ctx context.Context, sh *shop, lane work.Lane, fresh bool) (*settings, *failure) {
	select { // one reader at a time, and the others find its result
	case sh.learn <- struct{}{}:
		defer func() { <-sh.learn }()
	case <-ctx.Done():
		return nil, unsent(ctx.Err().Error())
	}
	sh.mu.Lock()
	known := sh.settings
	sh.mu.Unlock()
	life := settingsLife
	if fresh {
		life = settingsAge
	}
	if known != nil && time.Since(known.at) < life {
		return known, nil
	}
	if known == nil {
		if f := s.ensureDefinition(ctx, sh, lane); f != nil {
			return nil, f
		}
	}
	next, f := s.readSettings(ctx, sh, lane)
	if f != nil {
		if known == nil || fresh {
			return nil, f
		}
		// A shop in trouble: what it says to the push itself decides. It is asked again in a minute, not each time.
		old := *known
		old.at = time.Now().Add(settingsAge - settingsLife)
		next = &old
	}
	sh.mu.Lock()
	sh.settings = next
	sh.mu.Unlock()
	return next, nil
}

func (s *Shops) readSettings(ctx context.Context, sh *shop, lane work.Lane) (*settings, *failure) {
	next := &settings{at: time.Now()}
	var f *failure
	if next.locations, f = s.names(ctx, sh, lane, "locations"); f != nil {
		return nil, f
	}
	if next.publications, f = s.names(ctx, sh, lane, "publications"); f != nil {
		return nil, f
	}
	next.names, next.channels = invert(next.locations), invert(next.publications)
	return next, nil
}

func invert(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[v] = k
	}
	return out
}

// names reads a whole connection of things with id and name.
func (s *Shops) names(ctx context.Context, sh *shop, lane work.Lane, document string) (map[string]string, *failure) {
	out := map[string]string{}
	vars := map[string]any{}
	for {
		fields, err := s.query(ctx, sh, lane, []*op{newOp(document, vars)})
		if err != nil {
			return nil, err
		}
		for _, n := range list(fields[0]["nodes"]) {
			if name := text(object(n)["name"]); out[name] == "" { // of two with one name the first is meant
				out[name] = text(object(n)["id"])
			}
		}
		info := object(fields[0]["pageInfo"])
		after := text(info["endCursor"])
		if !truth(info["hasNextPage"]) || after == "" || after == text(vars["after"]) {
			return out, nil
		}
		vars = map[string]any{"after": after}
	}
}

// forget makes the next Send read the settings again and ensure the custom id's definition.
func (sh *shop) forget() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.settings = nil
}

// query sends reads and returns the answers' fields in the order of ops.
func (s *Shops) query(ctx context.Context, sh *shop, lane work.Lane, ops []*op) ([]map[string]any, *failure) {
	a := s.call(ctx, sh, lane, ops, nil, 0)
	if a.whole != nil {
		a.whole.unanswered = false // a read leaves nothing behind
		return nil, a.whole
	}
	out := make([]map[string]any, len(ops))
	for i := range ops {
		fields, f := a.of(fmt.Sprintf("m%d", i))
		if f != nil && !f.reread {
			f.unanswered = false
			return nil, f
		}
		out[i] = fields
	}
	return out, nil
}

// ensureDefinition creates the definition of the metafield that identifies our products, unless it is there. Shopify
// keeps its values unique, which is what makes a second product of the same id impossible.
func (s *Shops) ensureDefinition(ctx context.Context, sh *shop, lane work.Lane) *failure {
	o := newOp("metafieldDefinitionCreate", map[string]any{"definition": map[string]any{
		"name": "Product id of the source (Shelfwire)", "namespace": sh.cfg.Namespace, "key": sh.cfg.Key,
		"type": "id", "ownerType": "PRODUCT",
	}})
	a := s.call(ctx, sh, lane, []*op{o}, nil, 0)
	if a.whole == nil {
		a.whole = a.problems["m0"]
	}
	if a.whole != nil {
		a.whole.unanswered = false // asked again next time; a second creation says TAKEN
		return a.whole
	}
	for _, e := range userErrors(a.fields["m0"]) {
		if e.code != "TAKEN" {
			f := classifyUser("metafieldDefinitionCreate", e)
			f.dead = true // nothing can be created safely in this shop
			f.message = "The definition of the product id's metafield was refused: " + f.message
			return f
		}
	}
	s.cfg.Logger.Info("the product id's metafield is defined", "shop", sh.name, "namespace", sh.cfg.Namespace, "key", sh.cfg.Key)
	return nil
}

// identityTaken finds a metafield of the document that is the one by which the product, or a variant, is known again.
func (sh *shop) identityTaken(doc *document.Document) *refusal {
	if doc == nil {
		return nil
	}
	find := func(at string, list []document.Metafield) *refusal {
		for i, m := range list {
			if m.Namespace == sh.cfg.Namespace && (m.Key == sh.cfg.Key || m.Key == variantKey) {
				return refuse(fmt.Sprintf("%s[%d]", at, i), "%s is the metafield by which Shelfwire knows its products again; name yours otherwise", metafieldKey(m))
			}
		}
		return nil
	}
	if r := find("metafields", doc.Metafields.Value); r != nil {
		return r
	}
	for i := range doc.Variants.Value {
		if r := find(fmt.Sprintf("variants[%d].metafields", i), doc.Variants.Value[i].Metafields.Value); r != nil {
			return r
		}
	}
	return nil
}

// resolve replaces the refs in an op's variables by the shop's ids. It returns a copy.
func (sh *shop) resolve(o *op, set *settings) (map[string]any, *refusal) {
	var missing *refusal
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			out := make(map[string]any, len(v))
			for k, e := range v {
				out[k] = walk(e)
			}
			return out
		case []any:
			out := make([]any, len(v))
			for i, e := range v {
				out[i] = walk(e)
			}
			return out
		case ref:
			id, r := sh.lookup(v, set)
			if r != nil {
				missing = r
			}
			return id
		}
		return v
	}
	out, _ := walk(o.vars).(map[string]any)
	return out, missing
}

func (sh *shop) lookup(r ref, set *settings) (string, *refusal) {
	switch r.kind {
	case refLocation:
		if id := set.locations[r.name]; id != "" {
			return id, nil
		}
		return "", refuse("stock.location", "the shop has no location %q; it has %s", r.name, quoted(set.locations))
	case refPublication:
		if id := set.publications[r.name]; id != "" {
			return id, nil
		}
		return "", refuse("publications", "the shop has no sales channel %q; it has %s", r.name, quoted(set.publications))
	}
	if r.name == "namespace" {
		return sh.cfg.Namespace, nil
	}
	return sh.cfg.Key, nil
}

func quoted(m map[string]string) string {
	var names []string
	for _, n := range slices.Sorted(maps.Keys(m)) {
		names = append(names, fmt.Sprintf("%q", n))
	}
	return strings.Join(names, ", ")
}
