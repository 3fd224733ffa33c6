package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// While Kafka takes no outcomes, neither records nor parked products become new ones; what was begun is finished, and all
// of it goes on afterwards.
func TestAFullOutboxStopsNewWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var rows atomic.Int64
		b := &Brake{
			Measure: func(context.Context) (int64, int64, error) { return rows.Load(), 0, nil },
			Rows:    10, Log: slog.New(slog.DiscardHandler),
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = b.Run(ctx) }()
		p := w.worker("a", func(*PushConfig) {})
		p.parts.Reader, p.parts.Hold = b.Reader(w), b.Waiting
		stop := sync.OnceFunc(w.start(p))
		defer stop()
		w.put("first", "T", "one")
		w.change("first", 10)
		w.wait(10 * time.Second)
		require.Equal(t, []string{"one:first"}, w.sent)

		rows.Store(10)
		w.wait(2 * time.Second)
		require.Contains(t, b.Waiting(), "the outbox is full, with 10 records")
		w.put("begun", "T", "one")
		w.change("begun", 10) // the poll had begun before
		w.wait(time.Minute)
		for i := range 20 {
			id := fmt.Sprintf("p%02d", i)
			w.put(id, "T", "one")
			if i%2 == 0 {
				w.change(id, 10)
				continue
			}
			w.mu.Lock()
			w.generation++
			w.parked[[2]string{id, ""}] = work.Parked{ProductID: id, Lane: work.LaneCampaign, Due: time.Now(), Reason: "REPLAY", Generation: w.generation}
			w.mu.Unlock()
		}
		w.wait(time.Hour)
		w.mu.Lock()
		sent := len(w.sent)
		w.mu.Unlock()
		require.Equal(t, 2, sent)

		rows.Store(6)
		w.wait(time.Minute)
		require.NotEmpty(t, b.Waiting(), "not before half of it is gone")
		rows.Store(5)
		w.wait(time.Minute)
		require.Empty(t, b.Waiting())
		require.Len(t, w.sent, 22)
		stop()
		require.GreaterOrEqual(t, len(w.outbox), 22)
	})
}
