package budget_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify/budget"
)

// memory is the state's table of buckets.
type memory struct {
	mu      sync.Mutex
	bucket  work.Bucket
	updates int
	err     error
}

func (m *memory) UpdateBucket(_ context.Context, _ string, f func(now time.Time, b *work.Bucket)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.updates++
	f(time.Now(), &m.bucket)
	return nil
}

func TestASliceServesManyRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{bucket: work.Bucket{Maximum: 2000, Restore: 100, Level: 2000, At: time.Now()}}
		l := budget.NewLimiter(budget.Config{Shop: "a", Holder: "p", Store: store})
		for range 10 {
			require.NoError(t, l.Acquire(t.Context(), work.LaneLive, 10))
			require.NoError(t, l.Settle(t.Context(), 10, 10, nil))
		}
		require.Equal(t, 1, store.updates)
	})
}

func TestRequestsWaitForTheRestoreRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{bucket: work.Bucket{Maximum: 2000, Restore: 100, Level: 0, At: time.Now()}}
		one := budget.NewLimiter(budget.Config{Shop: "a", Holder: "one", Store: store})
		two := budget.NewLimiter(budget.Config{Shop: "a", Holder: "two", Store: store})
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 40 {
			l := one
			if i%2 == 0 {
				l = two
			}
			wg.Go(func() {
				if l.Acquire(t.Context(), work.LaneContent, 50) == nil {
					_ = l.Settle(t.Context(), 50, 50, nil)
				}
			})
		}
		wg.Wait()
		took := time.Since(start)
		// 40 x 50 points at 100 a second, and the headroom of the lane (100 points) once.
		require.GreaterOrEqual(t, took, 20*time.Second)
		require.LessOrEqual(t, took, 24*time.Second)
	})
}

func TestAHigherLaneOvertakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{bucket: work.Bucket{Maximum: 2000, Restore: 100, Level: 0, At: time.Now()}}
		l := budget.NewLimiter(budget.Config{Shop: "a", Holder: "p", Store: store})
		var mu sync.Mutex
		var order []work.Lane
		var wg sync.WaitGroup
		for _, lane := range []work.Lane{work.LaneCampaign, work.LaneCampaign, work.LaneLive} {
			wg.Go(func() {
				if l.Acquire(t.Context(), lane, 200) == nil {
					mu.Lock()
					order = append(order, lane)
					mu.Unlock()
					_ = l.Settle(t.Context(), 200, 200, nil)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		require.Equal(t, []work.Lane{work.LaneLive, work.LaneCampaign, work.LaneCampaign}, order)
	})
}

func TestIdlePointsGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{bucket: work.Bucket{Maximum: 2000, Restore: 100, Level: 2000, At: time.Now()}}
		l := budget.NewLimiter(budget.Config{Shop: "a", Holder: "p", Store: store})
		require.NoError(t, l.Acquire(t.Context(), work.LaneLive, 10))
		require.NoError(t, l.Settle(t.Context(), 10, 10, nil))
		require.NoError(t, l.ReturnIdle(t.Context()))
		require.NotEmpty(t, store.bucket.Leases)
		<-time.After(2 * time.Second)
		require.NoError(t, l.ReturnIdle(t.Context()))
		require.Empty(t, store.bucket.Leases)
		require.InDelta(t, 1990, store.bucket.Level, 0.1, "what is left of the slice; time brings the rest")
	})
}

func TestAcquireEndsWithItsContextAndItsStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{bucket: work.Bucket{Maximum: 2000, Restore: 0, Level: 0, At: time.Now()}}
		l := budget.NewLimiter(budget.Config{Shop: "a", Holder: "p", Store: store})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.ErrorIs(t, l.Acquire(ctx, work.LaneLive, 10), context.DeadlineExceeded)
		require.ErrorIs(t, l.Acquire(t.Context(), work.LaneLive, 2001), budget.ErrTooDear)
		store.err = errors.New("the state is away")
		require.ErrorIs(t, l.Acquire(t.Context(), work.LaneLive, 10), store.err)
	})
}

func TestALowerRateIsSharedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{bucket: work.Bucket{Maximum: 2000, Restore: 100, Level: 2000, At: time.Now()}}
		l := budget.NewLimiter(budget.Config{Shop: "a", Holder: "p", Store: store})
		require.NoError(t, l.Acquire(t.Context(), work.LaneLive, 10))
		require.NoError(t, l.Settle(t.Context(), 10, 10, &budget.Reported{Maximum: 1000, Available: 400, Restore: 50}))
		require.InDelta(t, 50, store.bucket.Restore, 0.1)
		require.InDelta(t, 1000, store.bucket.Maximum, 0.1)
		require.LessOrEqual(t, store.bucket.Level, 400.0)
	})
}
