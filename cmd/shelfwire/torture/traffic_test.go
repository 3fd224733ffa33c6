package torture

import (
	"context"
	"fmt"
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
	// asked are the ids of the snapshots that were asked for, as far as that is known to be committed.
	asked []string
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
		b.ask(ctx)
		for err != nil && ctx.Err() == nil {
			rest(ctx, 100*time.Millisecond)
			_, err = one[int](ctx, b.url, `SELECT 1`)
		}
	}
}

// ask has a table read again, as somebody would who does not trust a copy.
func (b *backOffice) ask(ctx context.Context) {
	id := fmt.Sprintf("office-%d", b.segments)
	_, err := one[string](ctx, b.url, `SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', $1)::text`,
		fmt.Sprintf(`{"id": %q, "table": %q}`, id, []string{"catalog.products", "catalog.variants", "catalog.stock"}[b.segments%3]))
	if err == nil {
		b.asked = append(b.asked, id)
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
