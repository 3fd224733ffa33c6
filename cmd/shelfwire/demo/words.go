package demo

// group is the middle level of the generated tree.
type group struct {
	name   string
	leaves []leaf
}

// assortment is the generated category tree: departments, groups, leaves.
var assortment = []struct {
	name   string
	stores []int64
	groups []group
}{
	{"Apparel", []int64{northID}, []group{
		{"Outerwear", []leaf{
			{name: "Coats", nouns: []string{"Coat", "Parka", "Trench Coat"}, kind: sized},
			{name: "Jackets", nouns: []string{"Jacket", "Blouson", "Windbreaker"}, kind: sized},
		}},
		{"Tops", []leaf{
			{name: "Shirts", nouns: []string{"Shirt", "Blouse", "T-Shirt"}, kind: sized},
			{name: "Knitwear", nouns: []string{"Jumper", "Cardigan", "Vest"}, kind: sized},
		}},
		{"Accessories", []leaf{
			{name: "Scarves", nouns: []string{"Scarf", "Shawl"}, kind: coloured},
			{name: "Belts", nouns: []string{"Belt"}, kind: coloured},
		}},
	}},
	{"Home", []int64{southID}, []group{
		{"Living", []leaf{
			{name: "Lamps", nouns: []string{"Floor Lamp", "Table Lamp", "Pendant"}, kind: coloured},
			{name: "Cushions", nouns: []string{"Cushion", "Throw"}, kind: coloured},
		}},
		{"Kitchen", []leaf{
			{name: "Pans", nouns: []string{"Pan", "Wok", "Casserole"}, kind: plain},
			{name: "Tableware", nouns: []string{"Plate", "Bowl", "Mug"}, kind: coloured},
		}},
	}},
	{"Outdoor", []int64{northID, southID}, []group{
		{"Camping", []leaf{
			{name: "Tents", nouns: []string{"Tent", "Tarp"}, kind: coloured},
			{name: "Cookers", nouns: []string{"Stove", "Kettle"}, kind: plain},
		}},
	}},
	{"Archive", nil, []group{ // sold nowhere: its products are listed as NO_SHOP
		{"Discontinued", []leaf{{name: "Remainders", nouns: []string{"Remainder", "Sample Piece"}, kind: plain}}},
	}},
}

var (
	adjectives = []string{"Classic", "Light", "Sturdy", "Foldable", "Everyday", "Northern", "Handmade", "Slim", "Café"}
	materials  = []string{"Wool", "Cotton", "Linen", "Oak", "Steel", "Leather", "Bamboo", "Recycled"}
	vendors    = []string{"Nordlicht", "Atelier Süd", "Field & Sons", "Møbler", "Kairos", "O'Hara"}
	seasons    = []string{"new in", "sale", "bestseller", "gift idea"}
	colours    = []string{"Black", "White", "Navy", "Olive", "Sand", "Brick Red", "Grün", "Petrol"}
	sizes      = []string{"S", "M", "L", "XL"}
	admins     = []string{"anna@shop.example", "ben@shop.example", "chris@shop.example"}
	sentences  = []string{
		"Made in small series.", "Machine washable at 30 °C.", "Comes with a two year guarantee.",
		"Ships in paper & card only.", "Tested for 10,000 openings.", "Colours may differ from the picture.",
	}
)
