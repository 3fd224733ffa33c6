package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
)

func TestACheckIsReadAtAnyWidth(t *testing.T) {
	found := []problem{
		{postgres.FindingMistake, "conf/routes.yaml:20:72", "route catalog.stock: column productid of catalog.variants does not exist, is generated, or is not published", "correct the name: columns that are computed are not in the WAL"},
		{postgres.FindingNote, "conf/shelfwire.yaml:37:5", "note", "nothing"},
	}
	for _, columns := range []int{40, 80, 120} {
		var out bytes.Buffer
		r := &checkReport{out: &out, width: columns}
		r.part("source", found)
		r.part("kafka", nil)
		for line := range strings.Lines(out.String()) {
			require.LessOrEqual(t, len([]rune(strings.TrimSuffix(line, "\n"))), columns)
		}
		text := strings.Join(strings.Fields(out.String()), " ")
		require.Contains(t, text, "✗ conf/routes.yaml:20:72 route catalog.stock: column productid")
		require.Contains(t, text, "→ correct the name")
		require.Contains(t, text, "· conf/shelfwire.yaml:37:5 note")
		require.Contains(t, text, "✓ kafka")
		require.EqualError(t, r.result(), "1 problem must be mended before shelfwire run")
	}
	require.Equal(t, "  a\n  long-word-that-stays\n", wrap("a long-word-that-stays", 10, "  "))
}

// What only the services can show is told at its place, with exit code 2 where the configuration is to be mended.
func TestCheckAsAUserSeesIt(t *testing.T) {
	if testing.Short() {
		t.Skip("starts all services")
	}
	s := newSite(t, 10)
	dir := filepath.Dir(s.file)
	check := func(code int, wants ...string) {
		t.Helper()
		got, out := shelfwire(t, "check", "-c", s.file)
		require.Equal(t, code, got, out)
		text := strings.Join(strings.Fields(out), " ")
		for _, want := range wants {
			require.Contains(t, text, want, out)
		}
	}
	spoil := func(file, old, new string) (mend func()) {
		t.Helper()
		path := filepath.Join(dir, file)
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Contains(t, string(text), old)
		require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(text), old, new, 1)), 0o600))
		return func() { require.NoError(t, os.WriteFile(path, text, 0o600)) }
	}
	check(exitOK, "✓ source, routes and documents query ✓ kafka ✓ state ✓ clickhouse ✓ shops")

	mend := spoil("routes.yaml", "key: product_id}", "key: productid}")
	check(exitUsage, "routes.yaml:22:72 route catalog.stock: column productid of catalog.variants does not exist", "1 problem must be mended")
	code, out := shelfwire(t, "run", "-c", s.file)
	require.Equal(t, exitUsage, code, "run refuses it as well")
	require.Contains(t, out, "routes.yaml:22:72: route catalog.stock: column productid")
	mend()

	mend = spoil("documents.sql", "j.store_id", "j.storeid")
	check(exitUsage, "documents.sql:135:40 documents query: the server does not take it: ERROR: column j.storeid does not exist")
	mend()

	mend = spoil("routes.yaml", "  - table: catalog.images\n    key: product_id\n    lane: content\n", "")
	check(exitUsage, "! "+filepath.Join(dir, "routes.yaml:6:3"), "it reads catalog.images, which no route names", "unrouted: [catalog.images]")
	also := spoil("shelfwire.yaml", "# unrouted: [catalog.countries]", "unrouted: [catalog.images]")
	check(exitOK)
	also()
	mend()

	mend = spoil("shelfwire.yaml", "  south:", "  west:")
	check(exitUsage, `it sends products to shop "south", such as product`, "belongs to shop west")
	mend()

	for name, tt := range map[string]struct {
		value, want string
		code        int
	}{
		"SOURCE_URL":     {"postgres://x@127.0.0.1:1/x", "connection refused → start the service, or correct host and port in source.url ✓ kafka", exitError},
		"KAFKA_BROKER":   {"127.0.0.1:1", "→ start the service, or correct host and port in kafka.brokers", exitError},
		"STATE_URL":      {strings.Replace(s.parts.stateURL, "/shelfwire", "/nowhere", 1), "→ create the database", exitError},
		"CLICKHOUSE_URL": {"clickhouse://x@127.0.0.1:1/d", "→ start the service, or correct host and port in clickhouse.url", exitError},
		"SHOP_TOKEN":     {"wrong", "The shop refuses the access token. (HTTP 401", exitError},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, tt.value)
			check(tt.code, tt.want)
		})
	}
	check(exitOK)
}
