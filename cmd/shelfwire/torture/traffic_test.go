package torture

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
)

// backOffice is traffic that goes on when its database was killed, which a program of a back office does too: what was
// open then is lost to it, and it connects anew.
type backOffice struct {
	url  string
	seed uint64

	mu       sync.Mutex
	marks    demo.Marks
	stats    demo.Stats
	segments int
	// broken are the errors that ended segments.
	broken []error
}

// run writes until ctx ends, in segments: each holds the whole story of the demo once.
func (b *backOffice) run(ctx context.Context) {
	rng := rand.New(rand.NewPCG(b.seed, 0x70ad))
	for ctx.Err() == nil {
		t := demo.NewTraffic(demo.TrafficConfig{
			URL: b.url, Duration: 8 * time.Second, Seed: rng.Uint64() >> 1, Rate: 20, Import: 30, RuleProducts: 80,
		})
		err := t.Run(ctx)
		if ctx.Err() != nil {
			err = nil // it ended because we wanted it to
		}
		b.book(t, err)
		for err != nil && ctx.Err() == nil {
			rest(ctx, 100*time.Millisecond)
			_, err = one[int](ctx, b.url, `SELECT 1`)
		}
	}
}

func (b *backOffice) book(t *demo.Traffic, err error) {
	m, s := t.Marks(), t.Stats()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.segments++
	if err != nil {
		b.broken = append(b.broken, err)
	}
	b.marks.RolledBack = append(b.marks.RolledBack, m.RolledBack...)
	b.marks.Batches = append(b.marks.Batches, m.Batches...)
	b.stats.Committed += s.Committed
	b.stats.RolledBack += s.RolledBack
	b.stats.Rows += s.Rows
}
