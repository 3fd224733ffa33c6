package shopifysim_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/sinks/shopify/internal/recordings"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// recording is one exchange of a real shop, with its answer decoded.
type recording struct {
	recordings.Exchange
	Response map[string]any
}

// recorded returns the exchanges by file, in the order of the files.
func recorded(t *testing.T) [][]recording {
	t.Helper()
	var files [][]recording
	at := map[string]int{}
	for _, e := range recordings.Read(t) {
		r := recording{Exchange: e}
		if json.Unmarshal(e.Response, &r.Response) != nil {
			continue // a response that is no object is no answer of the API
		}
		if _, ok := at[r.File]; !ok {
			at[r.File] = len(files)
			files = append(files, nil)
		}
		files[at[r.File]] = append(files[at[r.File]], r)
	}
	return files
}

// verdict is what became of one replayed exchange.
type verdict string

const (
	alike      verdict = "alike"
	differs    verdict = "differs"
	older      verdict = "older"      // valid in the recording's API version only
	unprepared verdict = "unprepared" // speaks of objects whose creation was not recorded
	foreign    verdict = "foreign"    // a root field that is not simulated
)

// TestRecordedExchangesAreAnsweredAlike replays what real shops answered, each file in a shop of its own, and prints
// the shares. What Shelfwire's own mutations answer is proved by the rule tests; recordings of them are few.
func TestRecordedExchangesAreAnsweredAlike(t *testing.T) {
	counts := map[string]map[verdict]int{}
	total := map[verdict]int{}
	for _, file := range recorded(t) {
		r := newReplay(t, file)
		for _, rec := range file {
			v, roots, why := r.replay(rec)
			key := strings.Join(roots, "+")
			if counts[key] == nil {
				counts[key] = map[verdict]int{}
			}
			counts[key][v]++
			total[v]++
			if v == differs {
				t.Logf("differs: %s %s %s: %s", rec.File, rec.Step, key, why)
			}
		}
	}
	keys := make([]string, 0, len(counts))
	for k, c := range counts {
		if c[alike]+c[differs] > 0 {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b][alike]+counts[b][differs], counts[a][alike]+counts[a][differs]), cmp.Compare(a, b))
	})
	for _, k := range keys {
		t.Logf("%4d of %4d alike: %s", counts[k][alike], counts[k][alike]+counts[k][differs], k)
	}
	t.Logf("alike %d, differs %d; not compared: of older versions %d, about unrecorded objects %d, not simulated %d",
		total[alike], total[differs], total[older], total[unprepared], total[foreign])
	require.GreaterOrEqual(t, float64(total[alike])/float64(total[alike]+total[differs]), floorAlike)
}

// floorAlike is the share measured when it was last raised.
const floorAlike = 0.88

// replay is one shop with the ids that recordings use for its objects.
type replay struct {
	*bench
	ids     map[string]string
	numbers map[string]string // the same by their numbers
	behind  bool              // a mutation of an older version could not be replayed
}

// newReplay founds a shop with the domain and the locations that a file's answers show and its steps do not make.
func newReplay(t *testing.T, file []recording) *replay {
	t.Helper()
	own := shopifysim.ShopConfig{Domain: domain, Token: token}
	var ids []string
	made := map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			if d, ok := v["myshopifyDomain"].(string); ok {
				own.Domain = d
			}
			if c, ok := v["currencyCode"].(string); ok && v["id"] != nil {
				own.Currency = c
			}
			id, _ := v["id"].(string)
			name, _ := v["name"].(string)
			if strings.HasPrefix(id, "gid://shopify/Location/") && name != "" && !slices.Contains(ids, id) && !made[id] {
				ids, own.Locations = append(ids, id), append(own.Locations, name)
			}
			for _, e := range v {
				walk(e)
			}
		}
	}
	for _, rec := range file {
		if id, ok := dig(rec.Response, "data", "locationAdd", "location", "id").(string); ok {
			made[id] = true
			continue
		}
		walk(rec.Response)
	}
	b := newBench(t, func(c *shopifysim.Config) { c.Shops, c.MediaDelay = []shopifysim.ShopConfig{own}, time.Minute })
	b.domain, b.shop = own.Domain, b.sim.Shop(own.Domain)
	r := &replay{bench: b, ids: map[string]string{}, numbers: map[string]string{}}
	for i, id := range ids {
		r.ids[id] = b.shop.Locations()[i].ID
	}
	return r
}

var numberForm = regexp.MustCompile(`\b\d{9,}\b`)

var gidForm = regexp.MustCompile(`gid://shopify/(\w+)/(\d+)`)

// absent are numbers that recorders used for objects that do not exist.
var absent = regexp.MustCompile(`/(0|1|123|9{6,})$`)

// known rewrites the recorded ids of a value; false where one of them stands for an object that was not recorded.
func (r *replay) known(v any) (any, bool) {
	b, err := json.Marshal(v)
	require.NoError(r.t, err)
	ok := true
	out := gidForm.ReplaceAllStringFunc(string(b), func(id string) string {
		kind := gidForm.FindStringSubmatch(id)[1]
		switch {
		case r.ids[id] != "":
			return r.ids[id]
		case kind == "Location":
			return r.shop.Locations()[0].ID
		case kind == "TaxonomyCategory" || absent.MatchString(id):
			return id
		default:
			ok = false
			return id
		}
	})
	// Searches name objects by number.
	out = numberForm.ReplaceAllStringFunc(out, func(n string) string { return cmp.Or(r.numbers[n], n) })
	var back any
	require.NoError(r.t, json.Unmarshal([]byte(out), &back))
	return back, ok
}

func (r *replay) replay(rec recording) (verdict, []string, string) {
	r.now = r.now.Add(20 * time.Second)
	query, known := r.known(rec.Query)
	variables, also := r.known(rec.Variables)
	vars, _ := variables.(map[string]any)
	a := r.post(query.(string), vars)
	roots := rootsOf(rec)
	codes := map[string]bool{}
	for _, e := range a.Errors {
		code, _ := dig(e, "extensions", "code").(string)
		codes[code] = true
	}
	if codes["SIMULATOR_NOT_IMPLEMENTED"] {
		return foreign, roots, ""
	}
	var got map[string]any
	require.NoError(r.t, json.Unmarshal(a.raw, &got))
	why := r.compare("", stripped(rec.Response), stripped(got))
	if why == "" {
		if cost(rec.Response) != cost(got) && slices.Equal(roots, []string{"metafieldsSet"}) {
			return older, roots, "" // charged by owner since 2026-09-15
		}
		if dig(rec.Response, "extensions") == nil && len(a.Errors) == 0 {
			return alike, roots, "" // the recorder did not keep the cost
		}
		if cost(rec.Response) != cost(got) {
			return differs, roots, fmt.Sprintf("cost %v, recorded %v", cost(got), cost(rec.Response))
		}
		return alike, roots, ""
	}
	for _, code := range []string{"undefinedField", "argumentNotAccepted", "INVALID_VARIABLE", "BAD_REQUEST", "INVALID_FIELD_ARGUMENTS"} {
		if codes[code] && rec.Response["data"] != nil || codes["undefinedField"] {
			// What follows depends on what an older version has done.
			r.behind = r.behind || strings.Contains(rec.Query, "mutation")
			return older, roots, ""
		}
	}
	// What a proxy fetched for itself ("upstream") was asked at an instant that the recording does not tell, and of a
	// shop with more in it than the file made.
	if !known || !also || r.behind || strings.Contains(rec.Step, "upstreamCalls") {
		return unprepared, roots, ""
	}
	return differs, roots, why
}

var rootForm = regexp.MustCompile(`(?s)(?:query|mutation)[^{]*\{\s*(?:\w+:\s*)?(\w+)`)

func rootsOf(rec recording) []string {
	if data, ok := rec.Response["data"].(map[string]any); ok && len(data) > 0 {
		keys := make([]string, 0, len(data))
		for k := range data {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		return keys
	}
	if m := rootForm.FindStringSubmatch(rec.Query); m != nil {
		return []string{m[1]}
	}
	return []string{"?"}
}

// stripped leaves data and errors of an answer; locations depend on line breaks that recordings do not keep.
func stripped(a map[string]any) map[string]any {
	out := map[string]any{}
	for _, k := range []string{"data", "errors"} {
		if v, ok := a[k]; ok {
			out[k] = v
		}
	}
	if list, ok := out["errors"].([]any); ok {
		for _, e := range list {
			if m, ok := e.(map[string]any); ok {
				delete(m, "locations")
			}
		}
	}
	return out
}

func cost(a map[string]any) any { return dig(a, "extensions", "cost", "requestedQueryCost") }

var (
	timeForm   = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`)
	digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
	opaqueForm = regexp.MustCompile(`^(eyJ|https?://)`)
)

// compare says where two values differ; ids are learned on the way, times and opaque texts only have to be alike in
// kind.
func (r *replay) compare(path string, want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s: %s, recorded %s", path, short(got), short(want))
		}
		for k := range g {
			if _, ok := w[k]; !ok {
				return fmt.Sprintf("%s.%s: %s, recorded nothing", path, k, short(g[k]))
			}
		}
		for _, k := range slices.Sorted(mapKeys(w)) {
			if why := r.compare(path+"."+k, w[k], g[k]); why != "" {
				return why
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Sprintf("%s: %s, recorded %s", path, short(got), short(want))
		}
		for i := range w {
			if why := r.compare(fmt.Sprintf("%s.%d", path, i), w[i], g[i]); why != "" {
				return why
			}
		}
		return ""
	case string:
		g, ok := got.(string)
		if ok && r.sameText(w, g) {
			return ""
		}
		return fmt.Sprintf("%s: %s, recorded %s", path, short(got), short(want))
	default:
		if want != got {
			return fmt.Sprintf("%s: %s, recorded %s", path, short(got), short(want))
		}
		return ""
	}
}

func mapKeys(m map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (r *replay) sameText(want, got string) bool {
	w, g := gidForm.FindStringSubmatch(want), gidForm.FindStringSubmatch(got)
	switch {
	case want == got:
		return true
	case w != nil && g != nil && strings.HasPrefix(want, "gid:"):
		if r.ids[w[0]] == "" && w[1] == g[1] {
			r.ids[w[0]], r.numbers[w[2]] = g[0], g[2]
		}
		return r.ids[w[0]] == g[0]
	case timeForm.MatchString(want):
		return timeForm.MatchString(got)
	case digestForm.MatchString(want):
		return digestForm.MatchString(got)
	case opaqueForm.MatchString(want):
		return opaqueForm.MatchString(got)
	default:
		// Messages name locations of the recorded shop, and ids.
		back := gidForm.ReplaceAllStringFunc(want, func(id string) string { return cmp.Or(r.ids[id], id) })
		return back == got
	}
}

func short(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	if len(b) > 300 {
		return string(b[:300]) + "…"
	}
	return string(b)
}
