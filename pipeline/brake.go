package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// Brake stops new work while the outbox is full: what is pushed while Kafka is away has to be told later, and until then it
// fills the state. Records stay in Kafka then, parked products stay parked, and what is on its way is finished.
type Brake struct {
	// Measure is what waits in the outbox.
	Measure func(context.Context) (rows, bytes int64, err error)
	// Rows and Bytes are when it is full. Default 100,000 and 256 MiB. New work begins again at half of both.
	Rows, Bytes int64
	Log         *slog.Logger

	mu     sync.Mutex
	reason string
	free   chan struct{} // closed when it is released; nil while it is
}

// brakeEvery is how often the outbox is measured.
const brakeEvery = time.Second

// Run measures until ctx ends.
func (b *Brake) Run(ctx context.Context) error {
	if b.Rows == 0 {
		b.Rows = 100_000
	}
	if b.Bytes == 0 {
		b.Bytes = 256 << 20
	}
	for {
		rows, bytes, err := b.Measure(ctx)
		if err == nil { // else the state is away, and nobody writes to it
			b.judge(ctx, rows, bytes)
		}
		if !sleep(ctx, brakeEvery) {
			return nil
		}
	}
}

func (b *Brake) judge(ctx context.Context, rows, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.free == nil && (rows >= b.Rows || bytes >= b.Bytes):
		b.free = make(chan struct{})
		b.reason = fmt.Sprintf("the outbox is full, with %d records of %d MiB: the relay does not bring them to Kafka", rows, bytes>>20)
		b.Log.WarnContext(ctx, "no new work is begun", "reason", b.reason)
	case b.free != nil && rows <= b.Rows/2 && bytes <= b.Bytes/2:
		close(b.free)
		b.free, b.reason = nil, ""
		b.Log.InfoContext(ctx, "new work is begun again", "outbox_records", rows)
	}
}

// Waiting says why no new work is begun; empty while it is.
func (b *Brake) Waiting() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reason
}

// wait returns when new work may begin.
func (b *Brake) wait(ctx context.Context) error {
	b.mu.Lock()
	free := b.free
	b.mu.Unlock()
	if free == nil {
		return nil
	}
	select {
	case <-free:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Reader returns a reader that returns nothing while the brake is on.
func (b *Brake) Reader(r recordReader) *BrakedReader { return &BrakedReader{r, b} }

// BrakedReader is a reader that a Brake holds.
type BrakedReader struct {
	recordReader
	brake *Brake
}

// Poll returns what has come, once new work may begin.
func (r *BrakedReader) Poll(ctx context.Context, n int) ([]event.Record, error) {
	if err := r.brake.wait(ctx); err != nil {
		return nil, err
	}
	return r.recordReader.Poll(ctx, n)
}
