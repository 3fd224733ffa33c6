package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Config is what a generated catalog shall be like.
type Config struct {
	// Products is how many products to make; below 3 it is 3. 1000 products have some 4500 variants.
	Products int
	// Seed decides everything: the same seed gives the same rows.
	Seed uint64
}

// chunk is how many products are held in memory and copied at once.
const chunk = 1000

// epoch is the day on which the generated approvals begin. A fixed day, so that a seed always gives the same rows.
var epoch = time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC)

// Generate fills the empty reference schema with a catalog: a category tree of three levels, two stores (one
// department sold in each, one in both, one in none), products of 1 to 12 variants with stock in two warehouses.
// About 70 % are approved. It is one transaction.
func Generate(ctx context.Context, conn *pgx.Conn, c Config) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := insertStores(ctx, tx); err != nil {
			return err
		}
		tree, leaves := departments()
		if err := insertCategories(ctx, tx, tree); err != nil {
			return err
		}
		g := newGenerator(c.Seed, leaves)
		for left := max(c.Products, 3); left > 0; left -= chunk {
			list := make([]product, 0, min(left, chunk))
			for range min(left, chunk) {
				list = append(list, g.product())
			}
			if err := insertProducts(ctx, tx, list); err != nil {
				return err
			}
		}
		return moveSequences(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("generate a catalog of %d products: %w", c.Products, err)
	}
	return analyze(ctx, conn)
}

// leaf is a category that holds products, with the words that its products are named by.
type leaf struct {
	id    int64
	name  string
	nouns []string
	kind  shape
}

// shape is which options the products of a category have.
type shape int

const (
	plain shape = iota // no options
	sized              // sizes and colours
	coloured
)

// departments returns the tree, parents first, and its leaves.
func departments() (tree []category, leaves []leaf) {
	next := int64(1)
	add := func(parent category, name string, stores ...int64) category {
		c := category{id: next, parent: parent.id, name: name, stores: stores}
		if parent.id != 0 {
			c.depth = parent.depth + 1
		}
		next++
		tree = append(tree, c)
		return c
	}
	for _, department := range assortment {
		top := add(category{}, department.name, department.stores...)
		for _, group := range department.groups {
			middle := add(top, group.name)
			for _, l := range group.leaves {
				l.id = add(middle, l.name).id
				leaves = append(leaves, l)
			}
		}
	}
	return tree, leaves
}

// generator draws products. It is not safe for concurrent use.
type generator struct {
	rng         *rand.Rand
	leaves      []leaf
	nextProduct int64
	nextVariant int64
}

func newGenerator(seed uint64, leaves []leaf) *generator {
	return &generator{rng: rand.New(rand.NewPCG(seed, 0x5e1f)), leaves: leaves, nextProduct: 1, nextVariant: 1}
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

// product draws the next product.
func (g *generator) product() product {
	l := pick(g.rng, g.leaves)
	material := pick(g.rng, materials)
	p := product{
		id:       g.nextProduct,
		category: l.id,
		kind:     g.kind(),
		vendor:   pick(g.rng, vendors),
		typ:      l.name,
		title:    strings.Join([]string{pick(g.rng, adjectives), material, pick(g.rng, l.nouns)}, " "),
		material: material,
		tags:     g.tags(material),
	}
	g.nextProduct++
	p.handle = slug(p.title) + fmt.Sprintf("-%d", p.id)
	p.html = g.html(p)
	if g.rng.IntN(3) == 0 {
		p.seoTitle, p.seoDescription = p.title+" | "+p.vendor, "Buy the "+p.title+" from "+p.vendor+"."
	}
	if g.rng.IntN(10) < 7 {
		p.approvedAt = epoch.Add(time.Duration(p.id) * time.Minute)
		p.author = pick(g.rng, admins)
	}
	for i := range g.rng.IntN(4) {
		p.images = append(p.images, image{url: fmt.Sprintf("https://images.shelfwire.example/%d/%d.jpg", p.id, i+1), alt: p.title})
	}
	g.addVariants(&p, l.kind)
	return p
}

func (g *generator) kind() string {
	switch n := g.rng.IntN(100); {
	case n < 3:
		return "gift"
	case n < 5:
		return "sample"
	case n < 6:
		return "service"
	}
	return "normal"
}

func (g *generator) tags(material string) []string {
	tags := []string{strings.ToLower(material)}
	for _, tag := range seasons {
		if g.rng.IntN(4) == 0 {
			tags = append(tags, tag)
		}
	}
	return tags
}

func (g *generator) html(p product) string {
	var b strings.Builder
	fmt.Fprintf(&b, "<p>The <strong>%s</strong> by %s.</p>\n<ul>\n", p.title, p.vendor)
	for range 1 + g.rng.IntN(4) {
		fmt.Fprintf(&b, "  <li>%s</li>\n", pick(g.rng, sentences))
	}
	b.WriteString("</ul>")
	return b.String()
}

// addVariants gives the product its options and 1 to 12 variants.
func (g *generator) addVariants(p *product, s shape) {
	p.options = []string{"Title"}
	choices := [][]string{{"Default Title"}}
	switch s {
	case plain:
	case sized:
		p.options, choices = []string{"Size", "Colour"}, nil
		shades := g.rng.IntN(len(colours) - 3)
		for i := range 1 + g.rng.IntN(3) {
			for _, size := range sizes[:1+g.rng.IntN(4)] {
				choices = append(choices, []string{size, colours[shades+i]})
			}
		}
	case coloured:
		p.options, choices = []string{"Colour"}, nil
		for _, colour := range colours[:1+g.rng.IntN(6)] {
			choices = append(choices, []string{colour})
		}
	}
	cents := 500 + g.rng.IntN(200)*100
	for i, options := range choices {
		v := variant{
			id:      g.nextVariant,
			options: options,
			sku:     fmt.Sprintf("SW-%06d-%02d", p.id, i+1),
			barcode: fmt.Sprintf("40%011d", g.nextVariant),
			price:   money(cents + i*100 - 1),
			cost:    money(cents / 2),
			grams:   float64(50 + g.rng.IntN(4000)),
			main:    g.rng.IntN(60),
			reserve: g.rng.IntN(200),
		}
		g.nextVariant++
		v.reserved = g.rng.IntN(max(v.main/4, 1))
		v.withoutStock, v.withoutStockOther = g.rng.IntN(30) == 0, g.rng.IntN(10) < 3
		if g.rng.IntN(5) == 0 {
			v.compareAt = money(cents*5/4 + i*100)
		}
		// The first variant of an approved product is always for sale; of the others one in twenty waits.
		if !p.approvedAt.IsZero() && (i == 0 || g.rng.IntN(20) > 0) {
			v.approvedAt = p.approvedAt
		}
		p.variants = append(p.variants, v)
	}
}

// money writes cents as a decimal.
func money(cents int) string { return fmt.Sprintf("%d.%02d", cents/100, cents%100) }

// slug makes a handle of a title: lower case, hyphens for what is no ASCII letter or digit.
func slug(title string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(title) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	return strings.Trim(b.String(), "-")
}
