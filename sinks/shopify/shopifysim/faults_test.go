package shopifysim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

const shopDoc = `{ shop { name resourceLimits { maxProductVariants } } }`

func TestEveryAnswerCarriesCostAndVersion(t *testing.T) {
	b := newBench(t)
	a := b.post(`{ products(first: 250) { nodes { id variants(first: 10) { nodes { id } } } } }`, nil)
	require.Equal(t, "2026-10", a.header.Get("X-Shopify-API-Version"))
	// 2 + 11·(1 + 2 + 4·1) by the formula.
	require.EqualValues(t, 79, dig(a.Extensions, "cost", "requestedQueryCost"))
	require.EqualValues(t, 2000, dig(a.Extensions, "cost", "throttleStatus", "maximumAvailable"))
	used, _ := dig(a.Extensions, "cost", "actualQueryCost").(float64)
	require.Less(t, used, 79.0)
	require.InDelta(t, 2000-used, dig(a.Extensions, "cost", "throttleStatus", "currentlyAvailable"), 0, "what is not used comes back")
}

func TestThrottledWhenTheBucketHasLessThanTheRequestedCost(t *testing.T) {
	b := newBench(t)
	b.shop.SetPoints(5)
	a := b.post(productSetDoc, vars{"in": b.tee("Tee")})
	require.Equal(t, http.StatusOK, a.status)
	require.NotContains(t, string(a.raw), `"data"`)
	require.Equal(t, "THROTTLED", dig(a.Errors[0], "extensions", "code"))
	require.Nil(t, dig(a.Extensions, "cost", "actualQueryCost"))
	require.EqualValues(t, 5, dig(a.Extensions, "cost", "throttleStatus", "currentlyAvailable"))
	require.Empty(t, b.shop.Products())
	b.now = b.now.Add(time.Second)
	require.InDelta(t, 105, b.shop.Points(), 0)
	require.Empty(t, b.post(productSetDoc, vars{"in": b.tee("Tee")}).Errors)
}

func TestPlansDifferInBucketAndRate(t *testing.T) {
	for plan, rate := range map[shopifysim.Plan]float64{
		shopifysim.Standard: 100, shopifysim.Advanced: 200, shopifysim.Plus: 1000, shopifysim.Enterprise: 2000,
	} {
		b := newBench(t, func(c *shopifysim.Config) { c.Shops[0].Plan = plan })
		a := b.post(shopDoc, nil)
		require.InDelta(t, rate, dig(a.Extensions, "cost", "throttleStatus", "restoreRate"), 0)
		require.InDelta(t, 20*rate, dig(a.Extensions, "cost", "throttleStatus", "maximumAvailable"), 0)
	}
}

func TestMaxCostExceededIsRefusedWithoutCharge(t *testing.T) {
	b := newBench(t)
	a := b.post(`{ products(first: 250) { nodes { variants(first: 250) { nodes { metafields(first: 250) { nodes { id } } } } } } }`, nil)
	require.Equal(t, "MAX_COST_EXCEEDED", dig(a.Errors[0], "extensions", "code"))
	require.EqualValues(t, 1000, dig(a.Errors[0], "extensions", "maxCost"))
	require.Nil(t, a.Extensions)
	require.InDelta(t, 2000, b.shop.Points(), 0)
}

func TestTooLargeAnInputIsChargedInFull(t *testing.T) {
	b := newBench(t)
	rows := make([]any, 2049)
	for i := range rows {
		rows[i] = vars{"optionValues": []any{vars{"optionName": "Size", "name": "S"}}}
	}
	a := b.post(productSetDoc, vars{"in": vars{"title": "t", "variants": rows}})
	require.Equal(t, "MAX_INPUT_SIZE_EXCEEDED", dig(a.Errors[0], "extensions", "code"))
	require.Equal(t, "The input array size of 2049 is greater than the maximum allowed of 2048.", a.Errors[0]["message"])
	requested, _ := dig(a.Extensions, "cost", "requestedQueryCost").(float64)
	require.InDelta(t, 2000-requested, b.shop.Points(), 0)
}

func TestUnknownFieldsAreRefusedAndUnimplementedOnesNamed(t *testing.T) {
	b := newBench(t)
	a := b.post(`query Q { shop { nonsense } }`, nil)
	require.Equal(t, "Field 'nonsense' doesn't exist on type 'Shop'", a.Errors[0]["message"])
	require.Equal(t, []any{"query Q", "shop", "nonsense"}, a.Errors[0]["path"])
	a = b.post(`mutation($in: [PriceRuleCreateInput!]!) { x }`, nil)
	require.NotEmpty(t, a.Errors)
	a = b.post(`mutation { productSet(input: {title: "t"}) { userErrors { code } } orderClose(input: {id: "gid://shopify/Order/1"}) { order { id } } }`, nil)
	require.Equal(t, "SIMULATOR_NOT_IMPLEMENTED", dig(a.Errors[0], "extensions", "code"))
	require.Contains(t, a.Errors[0]["message"], "Mutation.orderClose")
	require.Empty(t, b.shop.Products(), "nothing of such a request is executed")
}

func TestTokensAndShopsAreChecked(t *testing.T) {
	b := newBench(t)
	send := func(url, token string) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader([]byte(`{"query":"{ shop { name } }"}`)))
		require.NoError(t, err)
		r.Header.Set("X-Shopify-Access-Token", token)
		res, err := b.sim.Client().Do(r)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode
	}
	const path = "/admin/api/2026-10/graphql.json"
	require.Equal(t, 200, send("https://"+domain+path, token))
	require.Equal(t, 200, send("http://127.0.0.1:9/acme"+path, token), "the first label of the domain names the shop")
	require.Equal(t, 200, send("http://127.0.0.1:9/"+domain+path, token))
	require.Equal(t, 401, send("https://"+domain+path, "wrong"))
	require.Equal(t, 401, send("https://"+domain+path, ""))
	require.Equal(t, 404, send("https://other.myshopify.com"+path, token))
}

func TestInjectedFaultsHitExactlyTheRequestsTheyName(t *testing.T) {
	b := newBench(t)
	for kind, status := range map[shopifysim.FaultKind]int{
		shopifysim.ServerError: 500, shopifysim.BadGateway: 502, shopifysim.Unavailable: 503, shopifysim.Unauthorized: 401,
		shopifysim.PaymentRequired: 402, shopifysim.Forbidden: 403, shopifysim.Locked: 423, shopifysim.TooMany: 429,
	} {
		b.shop.Inject(shopifysim.Fault{Kind: kind, Field: "productSet"})
		require.Equal(t, 200, b.post(shopDoc, nil).status, "another field is not hit")
		require.Equal(t, status, b.post(productSetDoc, vars{"in": b.tee("Tee")}).status)
	}
	require.Empty(t, b.shop.Products())
	b.shop.Inject(shopifysim.Fault{Kind: shopifysim.Throttle, Skip: 1, Count: 2})
	require.Empty(t, b.post(shopDoc, nil).Errors)
	require.NotEmpty(t, b.post(shopDoc, nil).Errors)
	require.NotEmpty(t, b.post(shopDoc, nil).Errors)
	b.now = b.now.Add(time.Second)
	require.Empty(t, b.post(shopDoc, nil).Errors)
}

func TestAnswersThatAreLostHaveBeenExecuted(t *testing.T) {
	b := newBench(t)
	for i, kind := range []shopifysim.FaultKind{shopifysim.LostResponse, shopifysim.InternalError, shopifysim.GatewayTimeout, shopifysim.Truncated} {
		b.shop.Inject(shopifysim.Fault{Kind: kind})
		_, err := b.try(productSetDoc, vars{"in": b.tee("Tee")})
		require.Equal(t, kind == shopifysim.LostResponse, err != nil)
		require.Len(t, b.shop.Products(), i+1)
	}
	for _, kind := range []shopifysim.FaultKind{shopifysim.LostRequest, shopifysim.InternalRefused, shopifysim.Garbage} {
		b.shop.Inject(shopifysim.Fault{Kind: kind})
		_, _ = b.try(productSetDoc, vars{"in": b.tee("Tee")})
		require.Len(t, b.shop.Products(), 4)
	}
}

func TestAShopIsSickUntilItIsHealed(t *testing.T) {
	b := newBench(t)
	b.shop.SetHealth(shopifysim.Locked)
	require.Equal(t, 423, b.post(shopDoc, nil).status)
	require.Equal(t, 423, b.post(shopDoc, nil).status)
	b.shop.SetHealth(shopifysim.Healthy)
	require.Equal(t, 200, b.post(shopDoc, nil).status)
}

func TestFaultsBySeedRepeat(t *testing.T) {
	run := func(seed uint64) (out []string) {
		b := newBench(t, func(c *shopifysim.Config) {
			c.Faults = shopifysim.Faults{Seed: seed, ThrottleRate: 0.2, ServerErrorRate: 0.2, LostResponseRate: 0.1, GarbageRate: 0.1}
		})
		for range 60 {
			a, err := b.try(shopDoc, nil)
			b.now = b.now.Add(time.Minute)
			if err != nil {
				out = append(out, "cut")
				continue
			}
			out = append(out, http.StatusText(a.status)+string(a.raw[:min(9, len(a.raw))]))
		}
		return out
	}
	first, second := run(1), run(1)
	require.Equal(t, first, second)
	require.NotEqual(t, run(1), run(2))
}

func TestHangsAndLateRequestsInFakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, err := shopifysim.New(shopifysim.Config{
			Shops: []shopifysim.ShopConfig{{Domain: domain, Token: token}}, Latency: shopifysim.Latency{Min: 50 * time.Millisecond, Max: 50 * time.Millisecond},
		})
		require.NoError(t, err)
		b := &bench{t: t, sim: sim, shop: sim.Shop(domain), domain: domain}
		start := time.Now()
		b.post(shopDoc, nil)
		require.Equal(t, 50*time.Millisecond, time.Since(start))

		b.shop.SetHealth(shopifysim.Hang)
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+domain+"/admin/api/2026-10/graphql.json", bytes.NewReader([]byte(`{"query":"{ shop { name } }"}`)))
		require.NoError(t, err)
		r.Header.Set("X-Shopify-Access-Token", token)
		res, err := sim.Client().Do(r)
		if err == nil {
			require.NoError(t, res.Body.Close())
		}
		require.ErrorIs(t, err, context.DeadlineExceeded)
		b.shop.SetHealth(shopifysim.Healthy)

		b.shop.Inject(shopifysim.Fault{Kind: shopifysim.Late})
		_, err = b.try(productSetDoc, vars{"in": vars{"title": "Late"}})
		require.Error(t, err)
		require.Empty(t, b.shop.Products())
		<-time.After(6 * time.Second) // fake time: the clock of the bubble jumps
		require.Len(t, b.shop.Products(), 1)
		require.NoError(t, sim.Close())
	})
}

// serverEnv makes the test binary a simulator in a process of its own.
const serverEnv = "SHOPIFYSIM_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serverEnv); dir != "" {
		serveForever(dir)
	}
	os.Exit(m.Run())
}

func serveForever(dir string) {
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "address.tmp"), []byte(ln.Addr().String()), 0o600)
	}
	if err == nil {
		err = os.Rename(filepath.Join(dir, "address.tmp"), filepath.Join(dir, "address"))
	}
	if err == nil {
		err = shopifysim.Run(context.Background(), ln, shopifysim.Config{
			Dir: filepath.Join(dir, "shops"), Shops: []shopifysim.ShopConfig{{Domain: domain, Token: token}},
		})
	}
	_, _ = io.WriteString(os.Stderr, errors.Join(err).Error())
	os.Exit(1)
}

// TestKilledSimulatorLosesNoAcknowledgedMutation kills a simulator's process with SIGKILL while it is being written
// to, three times over, and finds every acknowledged product, with the same ids.
func TestKilledSimulatorLosesNoAcknowledgedMutation(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[string]string{} // title to id
	for round := range 3 {
		address, kill := startServer(t, dir)
		client := &http.Client{}
		for i := range 20 {
			title := string(rune('a'+round)) + string(rune('a'+i))
			id := createOver(t, client, address, title)
			acknowledged[title] = id
		}
		kill()
	}
	sim, err := shopifysim.New(shopifysim.Config{Dir: filepath.Join(dir, "shops")})
	require.NoError(t, err)
	defer func() { require.NoError(t, sim.Close()) }()
	got := map[string]string{}
	for _, p := range sim.Shop(domain).Products() {
		got[p.Title] = p.ID
	}
	require.Equal(t, acknowledged, got)
}

func startServer(t *testing.T, dir string) (address string, kill func()) {
	t.Helper()
	_ = os.Remove(filepath.Join(dir, "address"))
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+dir)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "address"))
		address = string(b)
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	return address, func() {
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait() // reports the kill
	}
}

func createOver(t *testing.T, client *http.Client, address, title string) string {
	t.Helper()
	body, err := json.Marshal(vars{
		"query":     `mutation($in: ProductSetInput!) { productSet(input: $in) { product { id } userErrors { message } } }`,
		"variables": vars{"in": vars{"title": title}},
	})
	require.NoError(t, err)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/"+domain+"/admin/api/2026-10/graphql.json", bytes.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("X-Shopify-Access-Token", token)
	res, err := client.Do(r)
	require.NoError(t, err)
	var out map[string]any
	require.NoError(t, json.NewDecoder(res.Body).Decode(&out))
	require.NoError(t, res.Body.Close())
	id, _ := dig(out, "data", "productSet", "product", "id").(string)
	require.NotEmpty(t, id, "%v", out)
	return id
}

// TestJournalReplayGivesTheSameShop runs many kinds of mutations and compares the shop with its restored twin.
func TestJournalReplayGivesTheSameShop(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, func(c *shopifysim.Config) { c.Dir = dir })
	b.defineCustomID("PRODUCT")
	p := dig(b.ok(productSetDoc, vars{"id": custom("1"), "in": withCustom(b.tee("Tee"), "1")}), "product", "id")
	b.do(productSetDoc, vars{"in": vars{"title": ""}}) // a refused one may take ids
	b.newTee("Other")
	v := b.quantities("available", b.row(0, 0, 9, 5))
	b.ok(setQuantitiesDoc, v)
	b.ok(bulkUpdateDoc, vars{"p": p, "v": []any{vars{"id": b.shop.Products()[0].Variants[0].ID, "price": "3"}}})
	want := b.shop.Products()

	twin, err := shopifysim.New(shopifysim.Config{Dir: dir, Now: func() time.Time { return b.now }})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, twin.Close()) })
	require.Equal(t, want, twin.Shop(domain).Products())
	c := *b
	c.sim, c.shop = twin, twin.Shop(domain)
	require.NotNil(t, c.ok(setQuantitiesDoc, v), "idempotency keys are restored too")
	require.EqualValues(t, 9, c.stock(0, "available"))
}

func TestATornJournalLineIsCutOff(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, func(c *shopifysim.Config) { c.Dir = dir })
	b.newTee("Tee")
	path := filepath.Join(dir, domain+".journal.jsonl")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = f.WriteString(`{"at":"2026-11-02T09:`)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	twin, err := shopifysim.New(shopifysim.Config{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, twin.Close()) })
	require.Equal(t, b.shop.Products(), twin.Shop(domain).Products())
}

func TestSearchAndPages(t *testing.T) {
	b := newBench(t)
	for _, title := range []string{"Red Tee", "Blue Tee", "Red Cap"} {
		in := b.tee(title)
		in["tags"], in["status"] = []any{title[:3]}, "DRAFT"
		b.ok(productSetDoc, vars{"in": in})
	}
	find := func(q string) []string {
		out := b.do(`query($q: String) { products(first: 50, query: $q) { nodes { title } } }`, vars{"q": q})
		var titles []string
		for _, n := range out["nodes"].([]any) {
			titles = append(titles, n.(map[string]any)["title"].(string))
		}
		return titles
	}
	require.Equal(t, []string{"Red Tee", "Red Cap"}, find("tag:Red"))
	require.Equal(t, []string{"Red Cap"}, find("tag:Red -title:Tee"))
	require.Equal(t, []string{"Blue Tee", "Red Cap"}, find("title:Blue OR title:Cap"))
	require.Equal(t, []string{"Blue Tee"}, find(`sku:"Blue Tee-S"`))
	require.Empty(t, find("sku:none"))
	require.Equal(t, []string{"Red Tee"}, find("handle:red-tee"))
	require.Len(t, find("status:draft"), 3)
	require.Empty(t, find("updated_at:>2027-01-01"))
	require.Len(t, find("nonsense:x"), 3, "an unknown field is ignored")

	after, seen := any(nil), 0
	for range 3 {
		out := b.do(`query($a: String) { products(first: 1, after: $a) { edges { cursor node { id } } pageInfo { hasNextPage } } }`, vars{"a": after})
		after = dig(out, "edges", 0, "cursor")
		seen++
		require.Equal(t, seen < 3, dig(out, "pageInfo", "hasNextPage"))
	}
	a := b.post(`{ products { nodes { id } } }`, nil)
	require.Equal(t, "you must provide one of first or last", a.Errors[0]["message"])
}

func TestAliasedMutationsAddUpAndRunInOrder(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	a := b.post(`mutation($id: ID!) {
		a: tagsAdd(id: $id, tags: ["x"]) { userErrors { message } }
		b: tagsRemove(id: $id, tags: ["x"]) { userErrors { message } }
		c: tagsAdd(id: $id, tags: ["y"]) { node { ... on Product { tags } } userErrors { message } }
	}`, vars{"id": p["id"]})
	require.EqualValues(t, 30, dig(a.Extensions, "cost", "requestedQueryCost"))
	require.Equal(t, []any{"y"}, dig(a.Data, "c", "node", "tags"))
	require.Equal(t, 2, b.shop.Stats().Mutations["tagsAdd"])
}

func TestMetafieldsByKeysAreQualifiedAndInTheirOrder(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	for _, key := range []string{"one", "two"} {
		b.ok(metafieldsSetDoc, vars{"m": []any{vars{"ownerId": p["id"], "namespace": "spec", "key": key, "type": "single_line_text_field", "value": key}}})
	}
	out := b.do(`query($id: ID!) { product(id: $id) { metafields(first: 5, keys: ["spec.two", "spec.one", "one"]) { nodes { key value } } } }`, vars{"id": p["id"]})
	require.Equal(t, []any{map[string]any{"key": "spec.two", "value": "two"}, map[string]any{"key": "spec.one", "value": "one"}}, dig(out, "metafields", "nodes"))
}

func TestControlAPI(t *testing.T) {
	b := newBench(t)
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.sim.Serve(ctx, ln) }()
	post := func(path, body string) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+ln.Addr().String()+path, bytes.NewReader([]byte(body)))
		require.NoError(t, err)
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode
	}
	require.Equal(t, 200, post("/_sim/acme/health", `{"kind":"locked"}`))
	require.Equal(t, 423, b.post(shopDoc, nil).status)
	require.Equal(t, 200, post("/_sim/acme/health", `{"kind":""}`))
	require.Equal(t, 200, post("/_sim/acme/inject", `{"kind":"server_error","field":"shop"}`))
	require.Equal(t, 500, b.post(shopDoc, nil).status)
	require.Equal(t, 404, post("/_sim/none/inject", `{}`))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+ln.Addr().String()+"/_sim/shops", nil)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Contains(t, string(body), domain)
	cancel()
	require.NoError(t, <-done)
}
