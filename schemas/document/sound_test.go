package document_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/document"
)

// requireSoundIsValid decodes a document in both ways.
func requireSoundIsValid(t interface {
	require.TestingT
	Helper()
}, raw []byte,
) (sound bool) {
	t.Helper()
	fast, sound := document.DecodeSound(raw)
	if !sound {
		return false
	}
	slow, err := document.DecodeBySchema(raw)
	require.NoError(t, err, "the schema refuses what is taken for sound: %s", raw)
	require.Equal(t, slow, fast, "%s", raw)
	return true
}

// What Parse lets pass without asking the schema, the schema lets pass, and reads alike.
func FuzzWhatIsSoundIsValid(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(`{"eligible": true, "eligible": false}`))
	f.Add([]byte(`{"eligible": true, "title": "\ud800", "vendor": "` + "\xff" + `"}`))
	f.Add([]byte(`{"eligible": true, "options": [{"name": "a", "values": ["b"]}], "variants": [{"key": "1", "options": ["b"], "firstPrice": "", "weightGrams": 1e3}]}`))
	for _, quantity := range []string{"5.0000000000000000001", "5.0000000000000000000", "5e0", "0.5e1", "5.0000000000000001e0", "-0", "-0.0", "1e400", "1e9", "1000000001", "null", `"5"`, "1e999999999", "1e-999999999"} {
		f.Add([]byte(strings.Replace(full, "5.000", quantity, 1)))
	}
	for _, weight := range []string{"2000000000.0000001", "2e9", "-1e-400", "-0", "0", "0.0"} {
		f.Add([]byte(strings.Replace(full, "850.5", weight, 1)))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { requireSoundIsValid(t, raw) })
}

// Every way to spoil a value is tried at every place of a document that has everything.
func TestWhatIsSoundIsValidWhereverItIsSpoilt(t *testing.T) {
	long := func(n int) string { return strings.Repeat("ö", n) }
	var values []any
	for _, n := range []int{64, 65, 100, 101, 255, 256, 512, 513, 2048, 2049, 5000, 5001} {
		values = append(values, long(n), strings.Repeat("a", n), "https://"+strings.Repeat("a", n-8), slices.Repeat([]any{"a"}, n))
	}
	values = append(values, nil, "", " ", "a", "a,b", "a/b", "a b", "A", "1", "-1", "1.", ".5", "1e3", "00000000000000000001", "1.0000000001", "x\n", "\u0000",
		true, false, 0, -1, 0.5, 1e9, 1e9+1, 2e9, 2e9+1, []any{}, []any{nil}, []any{"a", "a"}, map[string]any{}, map[string]any{"a": "b"}, "DENY", "on_hand", "available")
	var doc any
	require.NoError(t, json.Unmarshal([]byte(full), &doc))
	tried, sound := 0, 0
	try := func() {
		raw, err := json.Marshal(doc)
		require.NoError(t, err)
		tried++
		if requireSoundIsValid(t, raw) {
			sound++
		} else if d, err := document.DecodeBySchema(raw); err == nil {
			require.True(t, !d.Eligible || strings.Contains(string(raw), `"weightGrams":2000000000`), "valid, and not taken for sound: %s", raw)
		}
	}
	var spoil func(at any)
	spoil = func(at any) {
		switch at := at.(type) {
		case map[string]any:
			for _, key := range append(keysOf(at), "strange") {
				was, there := at[key]
				for _, v := range values {
					at[key] = v
					try()
				}
				delete(at, key)
				try()
				if there {
					at[key] = was
					spoil(was)
				}
			}
		case []any:
			for i, was := range at {
				for _, v := range values {
					at[i] = v
					try()
				}
				at[i] = was
				spoil(was)
			}
		}
	}
	spoil(doc)
	t.Logf("%d documents, %d of them sound", tried, sound)
	require.Greater(t, sound, 500)
}

// keysOf are the keys that a map has now.
func keysOf(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func TestEveryEligibleDocumentIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := documents().Draw(t, "document")
		raw, err := json.Marshal(d)
		require.NoError(t, err)
		require.Equal(t, d.Eligible, requireSoundIsValid(t, raw), "%s", raw)
	})
}

func TestSoundnessKnowsEveryPatternOfTheSchema(t *testing.T) {
	var want []string
	for _, m := range regexp.MustCompile(`"pattern": ("(?:[^"\\]|\\.)*")`).FindAllSubmatch(document.Schema(), -1) {
		var p string
		require.NoError(t, json.Unmarshal(m[1], &p))
		if p != `^[A-Z][A-Z0-9_]{0,63}$` { // of a reason, which only a document has that is not eligible
			want = append(want, p)
		}
	}
	slices.Sort(want)
	got := document.Patterns()
	slices.Sort(got)
	require.Equal(t, slices.Compact(want), got)
}

// The hash is on record in states that exist: it must not change with the encoder.
func TestHashStaysTheSame(t *testing.T) {
	d, err := document.Parse([]byte(strings.Replace(full, "Wool coat", `Wool <coat> & \"é\" \u2028 😀`, 1)))
	require.NoError(t, err)
	require.Equal(t, "ef0a3132577a2b7f1761108edb8a5fc82ee0b35bdeb3451483f653f7c16cb484", document.Hash(d))
}
