package demo_test

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
)

// wide is a large export with 80 columns, in the disorder of real ones.
func wide(t *testing.T, products int) string {
	t.Helper()
	var b strings.Builder
	w := csv.NewWriter(&b)
	columns := []string{
		"Handle", "Title", "Body (HTML)", "Vendor", "Type", "Tags", "Published", "Option1 Name", "Option1 Value", "Option2 Name",
		"Option2 Value", "Variant SKU", "Variant Grams", "Variant Inventory Qty", "Variant Inventory Policy", "Variant Price",
		"Variant Compare At Price", "Image Src", "Image Position", "Image Alt Text", "Gift Card", "Variant Image", "Status",
	}
	for i := len(columns); i < 80; i++ {
		columns = append(columns, fmt.Sprintf("Feature %d (product.metafields.custom.f%d)", i, i))
	}
	require.NoError(t, w.Write(columns))
	row := func(cells map[string]string) {
		line := make([]string, len(columns))
		for i, name := range columns {
			line[i] = cells[name]
			if i >= 23 && cells["Title"] != "" {
				line[i] = "{\"größe\": \"5\" x 3\"}\nline"
			}
		}
		require.NoError(t, w.Write(line))
	}
	for i := range products {
		handle := fmt.Sprintf("P.%d", i) // as somebody has typed it; the shop writes p-7
		row(map[string]string{
			"Handle": handle, "Title": fmt.Sprintf("Prødukt  № %d 👩\u200d👩\u200d👧 „Zwölf“ \u202eقميص\u202c", i), "Body (HTML)": "<table>\n<tr><td>\"x\",</td></tr>\n</table>",
			"Type": []string{"Coats", "Lamps", "Mugs"}[i%3], "Tags": "a, ä, 🧥", "Published": "true", "Option1 Name": "Size", "Option1 Value": "S",
			"Variant Price": "10", "Variant Inventory Qty": "3", "Image Src": "https://x/" + handle, "Image Position": "1",
		})
		for _, size := range []string{"M", "L / XL"} {
			row(map[string]string{
				"Handle": handle, "Option1 Value": size, "Variant Price": "1,011.5", "Variant SKU": "'" + handle + size,
				"Variant Inventory Qty": "-2",
			})
		}
		row(map[string]string{"Handle": handle, "Image Src": "https://x/" + handle + "-2", "Image Position": "2"})
		if i > 10 {
			row(map[string]string{"Handle": fmt.Sprintf("p.%d", i-10), "Image Src": fmt.Sprint("https://y/", i)})
		}
	}
	w.Flush()
	return b.String()
}

func TestLoadCSVOfThousandsOfProducts(t *testing.T) {
	conn, _ := install(t)
	loaded, err := demo.LoadCSV(t.Context(), conn, strings.NewReader(wide(t, 3000)), "wide.csv")
	require.NoError(t, err)
	require.Equal(t, 3000, loaded.Products)
	require.Equal(t, 9000, loaded.Variants)
	require.Equal(t, 8989, loaded.Images)
	counts := map[int]int{}
	for _, n := range loaded.Notes {
		counts[n.Count]++
		require.NotZero(t, n.Line, n)
	}
	require.Equal(t, map[int]int{3000: 1, 6000: 3}, counts, "handles; codes, numbers, levels below zero: %v", loaded.Notes)
	compared, _ := checkCatalog(t, conn)
	require.Equal(t, 12000, compared, "a third in the north, a third in the south, a third in both")
}

// TestLoadCSVOfLargeProducts has the largest product that Shopify takes, and one with more pictures than it takes.
func TestLoadCSVOfLargeProducts(t *testing.T) {
	conn, _ := install(t)
	var b strings.Builder
	b.WriteString("Handle,Title,Option1 Name,Option1 Value,Option2 Name,Option2 Value,Option3 Name,Option3 Value,Variant Price,Image Src\n")
	for i := range 2048 {
		fmt.Fprintf(&b, "large,Large,A,a%d,B,b / %d,C,c%d,9.99,\n", i%32, i/32%32, i/1024)
	}
	for i := range 251 {
		fmt.Fprintf(&b, "gallery,Gallery,,,,,,,9.99,https://x/%d\n", i)
	}
	loaded, err := demo.LoadCSV(t.Context(), conn, strings.NewReader(b.String()), "large.csv")
	require.NoError(t, err)
	require.Equal(t, []int{2, 2049, 250}, []int{loaded.Products, loaded.Variants, loaded.Images})
	compared, _ := checkCatalog(t, conn)
	require.Equal(t, 4098, compared)
}

func TestLoadCSVWritesNothingOfABadFile(t *testing.T) {
	conn, _ := install(t)
	_, err := demo.LoadCSV(t.Context(), conn, strings.NewReader(wide(t, 20)+"bad,B,,,,,maybe\n"), "bad.csv")
	require.ErrorContains(t, err, `bad.csv:`)
	require.ErrorContains(t, err, `column "Published"`)
	var products int
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM catalog.products`).Scan(&products))
	require.Zero(t, products)
}

// samples are the published catalogs that lie beside the checkout of a developer.
func samples(t *testing.T) []string {
	t.Helper()
	dir := os.Getenv("SHELFWIRE_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "shared")
	}
	files, err := filepath.Glob(filepath.Join(dir, "catalogs", "*.csv"))
	require.NoError(t, err)
	if len(files) == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no sample catalogs in %s", dir)
		}
		t.Skipf("no sample catalogs in %s", dir)
	}
	return files
}

func TestLoadCSVOfPublishedCatalogs(t *testing.T) {
	for _, file := range samples(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := os.Open(file)
			require.NoError(t, err)
			defer func() { require.NoError(t, f.Close()) }()
			conn, _ := install(t)
			loaded, err := demo.LoadCSV(t.Context(), conn, f, file)
			require.NoError(t, err)
			require.Equal(t, 20, loaded.Products)
			require.Zero(t, loaded.Repeated)
			require.NotZero(t, loaded.Approved)
			shops := map[string]bool{}
			require.NoError(t, demo.Expectations(t.Context(), conn, func(e demo.Expectation) error { shops[e.Shop] = true; return nil }))
			require.Len(t, shops, 2)
			checkCatalog(t, conn)
		})
	}
}
