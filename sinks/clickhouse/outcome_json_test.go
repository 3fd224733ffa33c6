package clickhouse

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// fullOutcome has a value in every field, so that one that is added later is not left to the slow way.
func fullOutcome(tb testing.TB, text string) event.Outcome {
	tb.Helper()
	var o event.Outcome
	v := reflect.ValueOf(&o).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(noon.Add(time.Duration(i) * 1_234_567)))
		case []string:
			f.Set(reflect.ValueOf([]string{text, "", "gid://shopify/ProductVariant/1"}))
		case int:
			f.SetInt(int64(-3 + i))
		case float64:
			f.SetFloat(float64(i) * 1.25)
		default:
			require.Equal(tb, reflect.String, f.Kind(), "a type that readOutcome does not know")
			f.SetString(text)
		}
	}
	return o
}

func TestOutcomesOfOurOwnAreReadTheFastWay(t *testing.T) {
	for _, text := range []string{"", "plain", "a \"quoted\" {\"x\":1}\n\ttext\\ with <html> & ümläut \U0001f600 \u2028 \x01\x7f", "\\", "/"} {
		o := fullOutcome(t, text)
		b, err := json.Marshal(o)
		require.NoError(t, err)
		var fast, slow event.Outcome
		require.True(t, readOutcome(b, &fast), string(b))
		require.NoError(t, json.Unmarshal(b, &slow))
		require.Equal(t, slow, fast)
		require.Equal(t, o, fast)
	}
	for _, n := range []int{1, 2, 3} {
		b, err := json.Marshal(outcomeOf(n))
		require.NoError(t, err)
		require.True(t, readOutcome(b, &event.Outcome{}), string(b))
	}
	// These are for package json to judge.
	for _, s := range []string{
		``, `null`, `[]`, `{"id":null}`, `{"ID":"x"}`, `{"new":1}`, `{"attempt":1.0}`, `{"attempt":01}`, `{"attempt":1e3}`, `{"points_actual":-}`,
		`{"points_actual":1.}`, `{"id":"x"} x`, `{"id":"x",}`, `{"id":"` + "\xff" + `"}`, `{"id":"` + "\n" + `"}`, `{"id":"\x"}`, `{"id":"\u12"}`,
		`{"id":"x`, `{"id":"\`, `{"settled_at":"today"}`, `{"variant_ids":["a",]}`, `{"variant_ids":null}`, `{"attempt":99999999999999999999}`,
	} {
		require.False(t, readOutcome([]byte(s), &event.Outcome{}), s)
	}
}

// What the fast way reads, package json reads too, and alike.
func FuzzReadOutcome(f *testing.F) {
	b, err := json.Marshal(fullOutcome(f, "a \"quoted\" \\u text \u2028"))
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(` { "id" : "\ud800\u0041" , "batch_ids" : [ ] , "points_actual" : -0.50 , "settled_at":"2026-11-20T12:00:00.5+01:00","id":"2"} `))
	f.Add([]byte(`{"variant_ids":["a"],"variant_ids":["b","\/\b"],"changes":-0}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var fast, slow event.Outcome
		if !readOutcome(b, &fast) {
			return
		}
		require.NoError(t, json.Unmarshal(b, &slow), string(b))
		require.Equal(t, slow, fast)
	})
}

func BenchmarkReadOutcome(b *testing.B) {
	o := outcomeOf(1)
	o.Sent = `{"productId":"gid://shopify/Product/1","variants":[{"id":"gid://shopify/ProductVariant/2","price":"12.50"}]}`
	value, err := json.Marshal(o)
	require.NoError(b, err)
	r := event.Record{Value: value}
	b.ReportAllocs()
	for b.Loop() {
		_, err := decodeOutcome(&r)
		require.NoError(b, err)
	}
}
