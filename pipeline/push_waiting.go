package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// What a push worker may wait for.
const (
	waitState     = "load what is known of products"
	waitDocuments = "read documents"
	waitSettle    = "settle"
	waitSplit     = "split items"
	waitTakeIn    = "take records in"
	waitPull      = "pull parked products"
	waitShops     = "read the shops' health"
)

// troubles are the services that a worker waits for, each with one line in the log when it begins, one a minute while it
// lasts, and one when it ends. The zero value is none; it is safe for concurrent use.
type troubles struct {
	mu sync.Mutex
	of map[string]trouble
}

type trouble struct {
	reason      string
	since, said time.Time
}

// begin notes that what goes wrong.
func (t *troubles) begin(ctx context.Context, log *slog.Logger, what string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	tr := t.of[what]
	if tr.since.IsZero() {
		tr.since = now
	}
	tr.reason = err.Error()
	if now.Sub(tr.said) >= time.Minute {
		tr.said = now
		log.WarnContext(ctx, "waiting to try again", "what", what, "error", err)
	}
	if t.of == nil {
		t.of = map[string]trouble{}
	}
	t.of[what] = tr
}

// end notes that what goes well.
func (t *troubles) end(ctx context.Context, log *slog.Logger, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tr, ok := t.of[what]; ok {
		log.InfoContext(ctx, "going on", "what", what, "after", time.Since(tr.since))
		delete(t.of, what)
	}
}

// Waiting is what the worker waits for at the moment, the oldest first; empty while all goes well. Shops that take
// nothing are no part of it: their health is in the state.
func (p *Push) Waiting() []work.Waiting {
	p.troubles.mu.Lock()
	defer p.troubles.mu.Unlock()
	var out []work.Waiting
	for what, tr := range p.troubles.of {
		out = append(out, work.Waiting{Stage: work.StagePush, Reason: fmt.Sprintf("%s: %s", what, tr.reason), Since: tr.since})
	}
	slices.SortFunc(out, func(a, b work.Waiting) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Reason, b.Reason)) })
	return out
}

// insist is retry that says what is waited for.
func (p *Push) insist(ctx context.Context, what string, f func(context.Context) error) error {
	return retry(ctx, silent, what, func(ctx context.Context) error {
		err := f(ctx)
		switch {
		case err == nil || errors.Is(err, work.ErrLeaseLost):
			p.troubles.end(ctx, p.log, what)
		case refusesData(err):
			return refused{err}
		case ctx.Err() == nil:
			p.troubles.begin(ctx, p.log, what, err)
		}
		return err
	})
}

// refused is an error that no repetition mends.
type refused struct{ error }

func (refused) Permanent() bool { return true }
func (r refused) Unwrap() error { return r.error }

// silent is for what is told otherwise.
var silent = slog.New(slog.DiscardHandler)

// readPause is how readers wait while what they need is away: all together, for longer and longer, instead of each
// product for itself.
type readPause struct {
	until time.Time
	pause time.Duration
}

const (
	readPauseFirst = 500 * time.Millisecond
	readPauseMost  = 5 * time.Second
)

// hear takes over how a reading went.
func (r *readPause) hear(now time.Time, failed bool) {
	if !failed {
		*r = readPause{}
		return
	}
	if now.Before(r.until) { // it began before the others failed
		return
	}
	r.pause = min(max(2*r.pause, readPauseFirst), readPauseMost)
	r.until = now.Add(r.pause)
}
