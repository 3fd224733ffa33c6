package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// OutOfRange is an error of a reader whose partition holds no record at the offset that comes next: retention has removed
// it, or the topic was made anew. [start, end) are the offsets that it holds.
type OutOfRange interface {
	error
	Range() (partition int32, start, end int64)
}

// passedStore moves positions; sinks/state implements it.
type passedStore interface {
	// Positions are those of a stage, by partition.
	Positions(ctx context.Context, stage work.Stage) (map[int32]int64, error)
	// Pass sets positions of a stage that stand where from says, forward or back, and ends the leases of their partitions:
	// who takes them reads from there. It fails, and changes nothing, where one has moved.
	Pass(ctx context.Context, stage work.Stage, from, to map[int32]int64) error
}

// Passed has stages go on where records have gone that they have never read. What these said is not known any more, so
// everything is evaluated again; the positions are moved after that, so that a crash forgets neither.
type Passed struct {
	// Heal has every product evaluated again, known or not, and returns how.
	Heal func(ctx context.Context) (how string, err error)
	// Starts are the offsets of the first records that are left, by partition.
	Starts func(ctx context.Context, topic string) (map[int32]int64, error)
	// Off has such a gap end the stage instead.
	Off bool
	// Gaps counts since the start.
	Gaps atomic.Int64

	State passedStore
	Log   *slog.Logger

	mu     sync.Mutex
	healed time.Time
}

// passedAgain is how long a healing stands for gaps that are found after it: those of the other partitions, mostly. What
// they have lost was written before.
const passedAgain = time.Minute

// Reader returns a reader that heals instead of failing. topic is the name without a prefix.
func (p *Passed) Reader(r recordReader, stage work.Stage, topic string) *PassedReader {
	return &PassedReader{recordReader: r, p: p, stage: stage, topic: topic}
}

// PassedReader is a reader of a stage that heals instead of failing.
type PassedReader struct {
	recordReader
	p     *Passed
	stage work.Stage
	topic string
}

// Poll returns what has come. Where the next record of a partition has gone, it heals and then goes on with the others:
// the lease of that partition is taken anew, by whoever comes first, with a position that has records.
func (r *PassedReader) Poll(ctx context.Context, n int) ([]event.Record, error) {
	for {
		recs, err := r.recordReader.Poll(ctx, n)
		var gap OutOfRange
		if !errors.As(err, &gap) {
			return recs, err
		}
		if r.p.Off {
			return recs, fmt.Errorf("%w; healing is off: without --no-heal, everything would be evaluated again", err)
		}
		err = retry(ctx, r.p.Log, "go on behind records that have gone", func(ctx context.Context) error { return r.p.pass(ctx, r, gap) })
		if err != nil || len(recs) > 0 {
			return recs, err
		}
	}
}

// pass heals one gap, and those of the topic's other partitions that retention has passed as well.
func (p *Passed) pass(ctx context.Context, r *PassedReader, gap OutOfRange) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	partition, start, end := gap.Range()
	at, err := p.State.Positions(ctx, r.stage)
	if err != nil {
		return err
	}
	starts, err := p.Starts(ctx, r.topic)
	if err != nil {
		return fmt.Errorf("first offsets of %s: %w", r.topic, err)
	}
	to := map[int32]int64{partition: at[partition]}
	lost := at[partition] < start || at[partition] > end // else another worker has healed it
	if lost {
		to[partition] = start
	}
	for other, first := range starts {
		if pos, known := at[other]; known && pos < first {
			to[other], lost = first, true
		}
	}
	if lost && time.Since(p.healed) >= passedAgain {
		how, err := p.Heal(ctx)
		if err != nil {
			return err
		}
		p.healed = time.Now()
		p.Log.ErrorContext(ctx, "records have gone that were never read: everything is evaluated again", "stage", string(r.stage),
			"topic", r.topic, "partition", partition, "position", at[partition], "first_left", start, "end", end, "healed_by", how)
	}
	if err := p.State.Pass(ctx, r.stage, at, to); err != nil {
		return err
	}
	if lost {
		p.Gaps.Add(1)
	}
	return nil
}
