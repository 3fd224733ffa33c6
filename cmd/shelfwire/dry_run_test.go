package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Somebody tries the pipeline on live traffic before it may touch a shop.
func TestADryRunTellsWhatWouldBeSentAndSendsNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the whole pipeline")
	}
	s := newSite(t, 5)
	ctx, cancel := context.WithCancel(t.Context())
	var o output
	done := make(chan int, 1)
	go func() {
		done <- execute(ctx, []string{"run", "-c", s.file, "--dry-run", "--only", "capture,push"}, &o, &o)
	}()
	require.Eventually(t, func() bool { return strings.Contains(o.String(), "dry run: would send") }, time.Minute, 100*time.Millisecond)
	cancel()
	require.Equal(t, exitOK, <-done, o.String())
	require.Equal(t, "0 0 0 0", s.value(s.parts.stateURL, `SELECT (SELECT count(*) FROM products) || ' ' || (SELECT count(*) FROM intents)
		|| ' ' || (SELECT count(*) FROM outbox) || ' ' || (SELECT count(*) FROM leases WHERE stage = 'push' AND owner <> '')`))
	code, _ := s.audit()
	require.NotEqual(t, exitOK, code, "the shops have nothing yet")
}
