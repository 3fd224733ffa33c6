package shopify_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/sinks/shopify"
)

// A request to one of many shops must not begin with a handshake each time: there are thousands of them, and a second of
// quiet between two pushes of one shop.
func TestTheConnectionsToManyShopsAreKept(t *testing.T) {
	var opened atomic.Int64
	cfg := shopify.Config{Budget: &buckets{}, Holder: "test", Shops: map[string]shopify.ShopConfig{}}
	for i := range 150 {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, `{"data":{"m0":{"nodes":[]}}}`)
		}))
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				opened.Add(1)
			}
		}
		s.Start()
		t.Cleanup(s.Close)
		cfg.Shops[fmt.Sprint("shop", i)] = shopify.ShopConfig{
			URL: s.URL, Token: func(context.Context) (string, error) { return "token", nil },
		}
	}
	shops, err := shopify.New(cfg)
	require.NoError(t, err)
	for range 3 {
		for name := range cfg.Shops {
			_ = shops.Probe(t.Context(), name) // what it answers is not the point
		}
	}
	require.Equal(t, int64(150), opened.Load())
}
