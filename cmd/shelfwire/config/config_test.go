package config_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
)

const good = `source:
  url: ${DB}
kafka:
  brokers: [127.0.0.1:9092]
state:
  url: postgres://state
shops:
  main:
    url: https://main.myshopify.com
    token: {file: token}
documents: SELECT 1
routes:
  - table: catalog.products
    key: id
    batch: true
  - table: catalog.stock
    parent: {column: variant_id, table: catalog.variants, id: id, key: product_id}
push:
  quiet: 250ms
`

func env(name string) (string, bool) {
	if name == "DB" {
		return "postgres://user:topsecret@db/shop", true
	}
	return "", false
}

func load(t *testing.T, text string) (*config.Config, error) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "token"), []byte("shpat_hidden\n"), 0o600))
	file := filepath.Join(dir, "shelfwire.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return config.Load(file, env)
}

func TestLoad(t *testing.T) {
	c, err := load(t, good)
	require.NoError(t, err)
	require.Equal(t, "postgres://user:topsecret@db/shop", c.Source.URL.Reveal())
	require.Equal(t, "shpat_hidden", c.Shops["main"].Token.Reveal())
	require.Equal(t, 250*time.Millisecond, c.Push.Quiet)
	require.Equal(t, 5*time.Second, c.Push.MaxWait, "default")
	require.Equal(t, config.Wait{Quiet: 250 * time.Millisecond, MaxWait: 5 * time.Second}, c.Push.Content, "the same by default")
	require.Equal(t, []string{"catalog.products", "catalog.stock"}, c.Tables())
	require.Equal(t, "product_id", c.Routes[1].Parent.Key)
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	c, err := load(t, good)
	require.NoError(t, err)
	b, err := json.Marshal(c)
	require.NoError(t, err)
	for _, text := range []string{fmt.Sprintf("%v", c), fmt.Sprintf("%+v", *c), fmt.Sprintf("%#v", *c), string(b)} {
		require.NotContains(t, text, "topsecret")
		require.NotContains(t, text, "shpat_hidden")
	}
}

// Each mistake is told with its line and column, and with the way to mend it.
func TestMistakes(t *testing.T) {
	for name, tt := range map[string]struct{ old, new, want string }{
		"unknown key":       {"  quiet: 250ms", "  quite: 250ms", `shelfwire.yaml:19:3: unknown key "quite" in push; did you mean "quiet"?`},
		"unknown top key":   {"push:", "pusher:", `:18:1: unknown key "pusher" in the file; did you mean "push"?`},
		"far off key":       {"  quiet: 250ms", "  zzzzzzzzzz: 1", `known keys are content, drain, lease, max_wait, quiet, stale_wait`},
		"wrong type":        {"  quiet: 250ms", "  quiet: soon", `:19:10: push.quiet is "soon"; want a duration such as 500ms, 5s or 10m`},
		"list wanted":       {"brokers: [127.0.0.1:9092]", "brokers: 127.0.0.1:9092", `:4:12: kafka.brokers must be a list`},
		"compression":       {"  brokers: [127.0.0.1:9092]\n", "  brokers: [a]\n  compression: best\n", `:5:16: "best" is no compression; use none, gzip`},
		"unset variable":    {"${DB}", "${NO_SUCH}", `:2:8: source.url needs the environment variable NO_SUCH, which is not set`},
		"no token file":     {"{file: token}", "{file: nowhere}", `:10:12: shops.main.token: open`},
		"state in source":   {"postgres://state", "${DB}", `:6:8: the state is in the source database`},
		"two of three":      {"    key: id\n", "    key: id\n    query: SELECT 1\n", `the route of catalog.products has 2 of key, parent and query`},
		"no route":          {"    key: id\n", "", `:13:5: the route of catalog.products has 0 of key, parent and query`},
		"parent incomplete": {", key: product_id}", "}", `the parent of catalog.stock is not complete`},
		"bad url":           {"https://main.myshopify.com", "main.myshopify.com", `shop main has the url "main.myshopify.com"`},
		"key twice":         {"push:\n", "push:\n  quiet: 1s\n", `the key "quiet" stands twice`},
		"no documents":      {"documents: SELECT 1\n", "", `there is no documents query`},
		"broken yaml":       {"kafka:", "kafka: [", `shelfwire.yaml:`},
		"no table":          {"catalog.products", "products", `:13:12: "products" is no table of a route; write schema.table`},
		"unrouted no table": {"push:\n", "unrouted: [countries]\npush:\n", `:18:12: "countries" is no table; write schema.table`},
		"unrouted routed":   {"push:\n", "unrouted: [catalog.stock]\npush:\n", `:18:12: catalog.stock has a route as well`},
		"unrouted twice":    {"push:\n", "unrouted: [a.b, a.b]\npush:\n", `:18:17: a.b stands twice`},
		"content too long":  {"quiet: 250ms", "content: {quiet: 9s, max_wait: 8s}", `:19:34: max_wait is shorter than quiet`},
		"no lane":           {"    key: id\n", "    key: id\n    lane: text\n", `:15:11: "text" is no lane of a route; write content`},
		"lane of a query":   {"    key: id\n", "    query: SELECT 1\n    lane: content\n", `go in the lane of campaigns; leave lane out`},
		"quiet too long":    {"quiet: 250ms", "quiet: 6s", `max_wait is shorter than quiet`},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, tt.old, tt.new, 1)
			require.NotEqual(t, good, text)
			_, err := load(t, text)
			require.ErrorContains(t, err, tt.want)
			require.NotContains(t, err.Error(), "topsecret")
		})
	}
	_, err := load(t, "")
	require.ErrorContains(t, err, "the file is empty")
}

// What shows only on the database is told at its place, in the file that holds it.
func TestPlaces(t *testing.T) {
	c, err := load(t, good)
	require.NoError(t, err)
	require.ErrorContains(t, c.At("routes.1.parent.key", "p", "m"), "shelfwire.yaml:17:72: p; m")
	require.ErrorContains(t, c.At("routes.1.query", "p", "m"), "shelfwire.yaml:16:5: p; m", "the nearest that the file has")
	require.ErrorContains(t, c.AtText("documents", 3, "p", "m"), "shelfwire.yaml:11:12: p; m", "a plain value has the place of its key")

	c, err = load(t, strings.Replace(good, "documents: SELECT 1\n", "documents: |\n  SELECT 1,\n    nope\n", 1))
	require.NoError(t, err)
	require.ErrorContains(t, c.AtText("documents", 13, "p", "m"), "shelfwire.yaml:13:5: p; m")

	dir := t.TempDir()
	for name, text := range map[string]string{
		"documents.sql": "SELECT 1,\n  näme, nope\n", "routes.yaml": "# Mine.\nroutes:\n  - table: a.b\n    query: |\n      SELECT\n        x\n",
		"shelfwire.yaml": "source: {url: a}\nkafka: {brokers: [b]}\nstate: {url: c}\nshops: {s: {url: \"http://d\", token: e}}\n" +
			"documents_file: documents.sql\nroutes_file: routes.yaml\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	c, err = config.Load(filepath.Join(dir, "shelfwire.yaml"), env)
	require.NoError(t, err)
	require.ErrorContains(t, c.At("routes.0.table", "p", "m"), "routes.yaml:3:12: p; m")
	require.ErrorContains(t, c.AtText("routes.0.query", 10, "p", "m"), "routes.yaml:6:9: p; m")
	require.ErrorContains(t, c.AtText("documents", 19, "p", "m"), "documents.sql:2:9: p; m")
	require.ErrorContains(t, c.At("documents", "p", "m"), "documents.sql: p; m")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "routes.yaml"), []byte("routes:\n  - table: b\n    key: x\n"), 0o600))
	_, err = config.Load(filepath.Join(dir, "shelfwire.yaml"), env)
	require.ErrorContains(t, err, `routes.yaml:2:12: "b" is no table of a route`)
}

func TestFilesThatCannotBeRead(t *testing.T) {
	_, err := config.Load(filepath.Join(t.TempDir(), "none.yaml"), env)
	require.ErrorContains(t, err, "none.yaml: there is no such file; name one with -c, or let shelfwire init write one")
	_, err = config.Load(t.TempDir(), env)
	require.ErrorContains(t, err, "is a directory; name a file")
	_, err = load(t, strings.Replace(good, "documents: SELECT 1\n", "documents_file: none.sql\n", 1))
	require.ErrorContains(t, err, ":11:17: ")
	require.ErrorContains(t, err, "none.sql: no such file or directory; name a file with the documents query")
}
