package pipeline

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

func TestDryRunSendsAndSettlesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("before", "1", "north")
		w.change("before", 100)
		w.put("new", "1", "north", "south")
		w.put("same", "1", "north")
		w.put("off", "OFF", "north")
		w.known[[2]string{"same", "north"}] = work.Known{ProductID: "same", Shop: "north", Shadow: []byte(`"1"`)}
		w.xid = 150
		var shown []Shown
		d := NewDryRun(PushConfig{Debounce: debounce.Wait{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second}}, PushParts{
			Reader: w, Documents: w, State: w, Sender: w, Log: slog.New(slog.DiscardHandler), // nothing to write with
		}, map[int32]int64{0: 1}, func(s Shown) { shown = append(shown, s) })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		w.wait(time.Second)
		for range 3 {
			w.change("new", 100)
		}
		w.change("same", 100)
		w.change("off", 200) // not visible yet
		w.wait(time.Second)
		require.ElementsMatch(t, []Shown{
			{ProductID: "new", Shop: "north", Changes: 3, Words: "update", Points: 10},
			{ProductID: "new", Shop: "south", Changes: 3, Words: "update", Points: 10},
			{ProductID: "same", Shop: "north", Changes: 1, Status: event.Skipped, Reason: "UNCHANGED"},
		}, timeless(shown))
		w.mu.Lock()
		w.xid = 201
		w.mu.Unlock()
		shown = nil
		w.wait(10 * time.Second)
		require.Equal(t, []Shown{
			{ProductID: "off", Shop: "north", Changes: 1, Words: "update", Points: 10, Effects: []work.Effect{work.EffectOffSale}},
		}, timeless(shown))
		cancel()
		require.NoError(t, <-done)
		require.Empty(t, w.sent)
		require.Empty(t, w.outbox)
		require.Empty(t, w.intents)
		require.Zero(t, w.position)
		require.Empty(t, w.owner, "it takes no lease")
		require.Len(t, w.known, 1)
		require.Equal(t, change.XID(201), w.xid)
	})
}

func timeless(shown []Shown) []Shown {
	out := make([]Shown, len(shown))
	for i, s := range shown {
		s.FirstCommit, s.Message = time.Time{}, ""
		out[i] = s
	}
	return out
}
