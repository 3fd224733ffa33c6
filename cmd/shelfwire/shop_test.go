package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A shop that is named without locations has the one that every new shop has.
func TestShopServesWhatItPrints(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var o output
	done := make(chan int, 1)
	go func() {
		done <- execute(ctx, []string{"shop", "--listen", "127.0.0.1:0", "--shop", "north=Hamburg,Rostock", "--shop", "south"}, &o, &o)
	}()
	var urls [][]string
	require.Eventually(t, func() bool {
		urls = regexp.MustCompile(`(?m)^http://\S+/(north|south)$`).FindAllStringSubmatch(o.String(), -1)
		return len(urls) == 2
	}, 10*time.Second, 10*time.Millisecond)
	for i, want := range []string{"Rostock", "Shop location"} {
		body := `{"query": "{ locations(first: 5) { nodes { name } } }"}`
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, urls[i][0]+"/admin/api/2026-10/graphql.json", bytes.NewReader([]byte(body)))
		require.NoError(t, err)
		req.Header.Set("X-Shopify-Access-Token", "any")
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		answer, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Contains(t, string(answer), `"`+want+`"`)
	}
	cancel()
	require.Equal(t, exitOK, <-done, "%s", &o)
}
