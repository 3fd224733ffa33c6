package shopifysim

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// term is one condition of a search query. Terms are joined by AND; OR and parentheses make groups.
type term struct {
	field, value string // field "" searches the text
	compare      string // "", ">", ">=", "<", "<="
	not          bool
}

// query is a disjunction of conjunctions, enough for what "a b OR c" and "-tag:x" say.
type query [][]term

// parseQuery reads Shopify's search syntax: field:value, quoted values, comparisons, a leading - or NOT, OR between
// groups. Parentheses are read as spaces: they do not nest here.
func parseQuery(s string) query {
	var out query
	var group []term
	not := false
	for _, word := range words(s) {
		switch word {
		case "OR":
			out, group = append(out, group), nil
			continue
		case "AND":
			continue
		case "NOT":
			not = true
			continue
		}
		t := term{not: not}
		not = false
		if rest, ok := strings.CutPrefix(word, "-"); ok && len(rest) > 0 {
			t.not, word = true, rest
		}
		if field, value, ok := strings.Cut(word, ":"); ok && field != "" && !strings.ContainsAny(field, `"' `) {
			t.field, word = field, value
			for _, c := range []string{">=", "<=", ">", "<"} {
				if rest, ok := strings.CutPrefix(word, c); ok {
					t.compare, word = c, rest
					break
				}
			}
		}
		t.value = unquote(word)
		group = append(group, t)
	}
	return append(out, group)
}

// words splits at spaces outside quotes.
func words(s string) []string {
	var out []string
	var b strings.Builder
	var quote rune
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			b.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case quote != 0:
			b.WriteRune(r)
			if r == quote {
				quote = 0
			}
		case r == '"' || r == '\'' && (b.Len() == 0 || strings.HasSuffix(b.String(), ":")):
			quote = r
			b.WriteRune(r)
		case r == ' ' || r == '(' || r == ')':
			if b.Len() > 0 {
				out = append(out, b.String())
				b.Reset()
			}
		default:
			b.WriteRune(r)
		}
	}
	if b.Len() > 0 {
		out = append(out, b.String())
	}
	return out
}

func unquote(s string) string {
	for _, q := range []string{`"`, `'`} {
		if len(s) >= 2 && strings.HasPrefix(s, q) && strings.HasSuffix(s, q) {
			return s[1 : len(s)-1]
		}
	}
	return s
}

// matches evaluates the query with a function that says whether one term, without its negation, holds.
func (q query) matches(holds func(t term) bool) bool {
	return slices.ContainsFunc(q, func(group []term) bool {
		for _, t := range group {
			if holds(t) == t.not {
				return false
			}
		}
		return true
	})
}

// equal compares a text without regard to case; a trailing * is a prefix.
func equal(have, want string) bool {
	if want == "*" {
		return have != ""
	}
	have, want = strings.ToLower(have), strings.ToLower(want)
	if p, ok := strings.CutSuffix(want, "*"); ok {
		return strings.HasPrefix(have, p)
	}
	return have == want
}

// hasWord says whether a text contains the words of want, the last as a prefix where it ends in *.
func hasWord(have, want string) bool {
	have, want = strings.ToLower(have), strings.ToLower(want)
	if p, ok := strings.CutSuffix(want, "*"); ok {
		return slices.ContainsFunc(strings.Fields(have), func(w string) bool { return strings.HasPrefix(w, p) }) || strings.HasPrefix(have, p)
	}
	return strings.Contains(" "+have+" ", " "+want+" ")
}

func compareNumber(have int64, t term) bool {
	want, err := strconv.ParseInt(lastPart(t.value), 10, 64)
	if err != nil {
		return false
	}
	return compared(t.compare, cmpInt(have, want))
}

func lastPart(s string) string { return s[strings.LastIndex(s, "/")+1:] }

func cmpInt(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return 0
	}
}

func compareTime(have, now time.Time, t term) bool {
	want, err := time.Parse(time.RFC3339, t.value)
	if err != nil {
		want, err = time.Parse(time.DateOnly, t.value)
	}
	if err != nil && t.value == "now" {
		want, err = now, nil
	}
	if err != nil {
		return false
	}
	return compared(t.compare, have.Truncate(time.Second).Compare(want))
}

func compared(op string, c int) bool {
	switch op {
	case ">":
		return c > 0
	case ">=":
		return c >= 0
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	default:
		return c == 0
	}
}

// holdsProduct evaluates one term on a product. An unknown field is ignored, as Shopify does: it matches.
func (x *execution) holdsProduct(p *product, t term) bool {
	switch t.field {
	case "":
		return hasWord(p.title, t.value) || hasWord(p.vendor, t.value) || hasWord(p.kind, t.value) ||
			slices.ContainsFunc(p.tags, func(g string) bool { return equal(g, t.value) }) || anySKU(p, t.value)
	case "id":
		return compareNumber(p.id, t)
	case "title":
		return hasWord(p.title, t.value)
	case "handle":
		return equal(p.handle, t.value)
	case "status":
		return slices.ContainsFunc(strings.Split(t.value, ","), func(s string) bool { return equal(p.status, s) })
	case "tag":
		return slices.ContainsFunc(p.tags, func(g string) bool { return equal(g, t.value) })
	case "tag_not":
		return !slices.ContainsFunc(p.tags, func(g string) bool { return equal(g, t.value) })
	case "vendor":
		return equal(p.vendor, t.value)
	case "product_type":
		return equal(p.kind, t.value)
	case "sku":
		return anySKU(p, t.value)
	case "barcode":
		return slices.ContainsFunc(p.variants, func(v *variant) bool { return v.barcode != nil && equal(*v.barcode, t.value) })
	case "variant_id":
		return slices.ContainsFunc(p.variants, func(v *variant) bool { return compareNumber(v.id, t) })
	case "inventory_total":
		return compareNumber(p.totalInventory(), t)
	case "created_at":
		return compareTime(p.createdAt, x.now, t)
	case "updated_at":
		return compareTime(p.updatedAt, x.now, t)
	case "collection_id":
		id, err := strconv.ParseInt(t.value, 10, 64)
		c := x.collections[id]
		return err == nil && c != nil && slices.Contains(c.products, p.id)
	case "published_at":
		return p.publishedAt != nil && compareTime(*p.publishedAt, x.now, t)
	default:
		return x.holdsMetafield(p.metafields, t)
	}
}

func anySKU(p *product, want string) bool {
	return slices.ContainsFunc(p.variants, func(v *variant) bool { return v.item.sku != nil && equal(*v.item.sku, want) })
}

// holdsMetafield evaluates metafields.namespace.key:value; another unknown field matches.
func (x *execution) holdsMetafield(list []*metafield, t term) bool {
	rest, ok := strings.CutPrefix(t.field, "metafields.")
	if !ok {
		return !t.not
	}
	namespace, key, _ := strings.Cut(rest, ".")
	m := find(list, namespaceOf(input{"namespace": namespace}), key)
	return m != nil && equal(m.value, t.value)
}

// holdsVariant evaluates one term on a variant.
func (x *execution) holdsVariant(v *variant, t term) bool {
	switch t.field {
	case "":
		return hasWord(v.title(), t.value) || v.item.sku != nil && equal(*v.item.sku, t.value) || hasWord(v.product.title, t.value)
	case "id":
		return compareNumber(v.id, t)
	case "sku":
		return v.item.sku != nil && equal(*v.item.sku, t.value)
	case "barcode":
		return v.barcode != nil && equal(*v.barcode, t.value)
	case "title":
		return hasWord(v.title(), t.value)
	case "product_id":
		return compareNumber(v.product.id, t)
	case "product_ids":
		return slices.ContainsFunc(strings.Split(t.value, ","), func(s string) bool { return compareNumber(v.product.id, term{value: s}) })
	case "inventory_quantity":
		return compareNumber(v.available(), t)
	case "updated_at":
		return compareTime(v.updatedAt, x.now, t)
	case "product_status":
		return equal(v.product.status, t.value)
	default:
		return x.holdsMetafield(v.metafields, t)
	}
}

// holdsItem evaluates one term on an inventory item.
func (x *execution) holdsItem(i *inventoryItem, t term) bool {
	switch t.field {
	case "", "sku":
		return i.sku != nil && equal(*i.sku, t.value)
	case "id":
		return compareNumber(i.id, t)
	case "tracked":
		return strconv.FormatBool(i.tracked) == strings.ToLower(t.value)
	case "created_at":
		return compareTime(i.createdAt, x.now, t)
	case "updated_at":
		return compareTime(i.updatedAt, x.now, t)
	default:
		return !t.not
	}
}

// holdsLevel evaluates one term on an inventory level.
func (x *execution) holdsLevel(l *level, t term) bool {
	switch t.field {
	case "id":
		return compareNumber(l.id, t)
	case "inventory_item_id":
		return compareNumber(l.item.id, t)
	case "location_id":
		return compareNumber(l.location.id, t)
	case "created_at":
		return compareTime(l.createdAt, x.now, t)
	case "updated_at":
		return compareTime(l.updatedAt, x.now, t)
	default:
		return !t.not
	}
}

// foundLevels filters levels by a search.
func (x *execution) foundLevels(list []*level, a arguments) []any {
	text, _ := a["query"].(string)
	if strings.TrimSpace(text) == "" {
		return nodes(list)
	}
	q := parseQuery(text)
	return nodes(slices.DeleteFunc(list, func(l *level) bool {
		return !q.matches(func(t term) bool { return x.holdsLevel(l, t) })
	}))
}
