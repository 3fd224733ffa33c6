package shopifysim_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkPriceUpdate measures one productVariantsBulkUpdate through the round tripper, in a shop of 2,000 products:
// what the simulator itself adds to an end-to-end measurement.
func BenchmarkPriceUpdate(b *testing.B) {
	s := newBench(b)
	for range 2000 {
		s.now = s.now.Add(time.Minute)
		a := s.post(productSetDoc, vars{"in": s.tee("Tee")})
		require.Empty(b, a.Errors)
	}
	p := s.shop.Products()[1000]
	b.ResetTimer()
	for b.Loop() {
		s.now = s.now.Add(time.Second)
		a := s.post(bulkUpdateDoc, vars{"p": p.ID, "v": []any{vars{"id": p.Variants[0].ID, "price": "3"}}})
		require.Empty(b, a.Errors)
	}
}
