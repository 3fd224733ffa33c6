package pipeline

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// tooLong is how the state refuses a key that no row of an index can hold.
type tooLong struct{}

func (tooLong) Error() string    { return "index row size 2712 exceeds btree version 4 maximum 2704" }
func (tooLong) SQLState() string { return "54000" }

// narrow is a state whose keys are as short as those of Postgres.
func narrow(t *testing.T) *ledger {
	t.Helper()
	l := &ledger{world: newWorld(t)}
	l.refuse = func(s work.Settlement) error {
		for _, p := range s.Products {
			if len(p.ProductID)+len(p.Shop) > 2700 {
				return tooLong{}
			}
		}
		for _, it := range s.Items {
			if len(it.BatchID)+len(it.ProductID)+len(it.Shop) > 2700 {
				return tooLong{}
			}
		}
		return nil
	}
	return l
}

func (l *ledger) TakeIn(ctx context.Context, t work.TakeIn) error {
	if l.refuse != nil {
		if err := l.refuse(work.Settlement{Items: t.Items}); err != nil {
			return err
		}
	}
	return l.world.TakeIn(ctx, t)
}

func TestAProductIDThatNoIndexCanHoldIsADeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := narrow(t)
		stop := l.run(func(*PushConfig) {})
		long := strings.Repeat("x", 3000)
		table := event.Header{Key: event.HeaderTable, Value: []byte("catalog.products")}
		l.put(long, "1", "north")
		l.put("p1", "1", "north")
		l.change(long, 100, table)
		l.change(long, 100, table, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		l.change("p1", 100)
		l.change("p1", 100, event.Header{Key: event.HeaderBatch, Value: []byte(long)})
		l.wait(time.Minute)
		require.Equal(t, []string{"north:p1"}, l.sent)
		require.Equal(t, int64(4), l.position)
		var reasons []string
		for _, r := range l.outbox {
			if r.Topic == "catalog.deadletters" {
				reason, _ := r.Header(event.HeaderReason)
				reasons = append(reasons, reason)
			}
		}
		require.Len(t, reasons, 3)
		require.Contains(t, reasons[0], "3000 bytes")
		require.Contains(t, reasons[0], `"catalog.products"`)
		require.Contains(t, reasons[2], event.HeaderBatch)
		stop()
	})
}

// The longest that is taken is an ordinary product.
func TestAProductIDOf512BytesIsPushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := narrow(t)
		stop := l.run(func(*PushConfig) {})
		id, shop := strings.Repeat("é", 256), strings.Repeat("s", 255)
		l.put(id, "1", shop)
		l.change(id, 100)
		l.wait(time.Minute)
		require.Equal(t, []string{shop + ":" + id}, l.sent)
		require.Equal(t, int64(1), l.position)
		stop()
	})
}

// What shop a product belongs to is unknown then: it is neither sent there, nor taken away from where it is.
func TestAShopNameThatNoIndexCanHoldFailsTheProductAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := narrow(t)
		stop := l.run(func(*PushConfig) {})
		l.put("p1", "1", "north", "south")
		l.change("p1", 100)
		l.wait(10 * time.Second)
		require.Len(t, l.sent, 2)
		long := strings.Repeat("x", 3000)
		l.put("p1", "2", "north", long, long+"y")
		l.put("p2", "1", "north")
		batch := event.Header{Key: event.HeaderBatch, Value: []byte("b1")}
		l.change("p1", 100, batch)
		l.change("p2", 100, batch)
		l.wait(time.Minute)
		slices.Sort(l.sent)
		require.Equal(t, []string{"north:p1", "north:p1", "north:p2", "south:p1"}, l.sent)
		require.Equal(t, work.ItemSuccess, l.items[[3]string{"b1", "p1", "north"}].Status)
		require.Equal(t, work.ItemFailed, l.items[[3]string{"b1", "p1", "south"}].Status)
		require.Equal(t, work.ItemSuccess, l.items[[3]string{"b1", "p2", "north"}].Status)
		failed := l.items[[3]string{"b1", "p1", ""}]
		require.Equal(t, work.ItemFailed, failed.Status)
		require.Equal(t, event.Validation, failed.Category)
		require.Contains(t, failed.Message, "3000 bytes")
		require.Equal(t, int64(3), l.position)
		stop()
	})
}

// said keeps what is logged.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A partition whose intake is refused is read again and again: somebody must be told.
func TestAnIntakeThatTheStateRefusesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := narrow(t)
		refused := l.refuse
		l.refuse = func(s work.Settlement) error {
			if len(s.Items) > 0 {
				return tooLong{}
			}
			return refused(s)
		}
		var out said
		p := l.worker("a", func(*PushConfig) {})
		p.parts.Fenced, p.log = l, slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelError}))
		stop := l.start(p)
		l.wait(time.Second)
		l.put("p1", "1", "north")
		l.change("p1", 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		l.wait(time.Minute)
		require.Contains(t, out.String(), "exceeds btree")
		require.Contains(t, out.String(), "partitions=[0]")
		stop()
	})
}
