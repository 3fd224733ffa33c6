package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// screen shows the run while it lasts.
type screen struct {
	d       *demoRun
	traffic atomic.Pointer[demo.Traffic] // nil until it begins
	// batches are the states that have been said, by batch; only follow uses them, and tell after its end.
	batches map[string]state.BatchStatus
}

// start shows the run until stop is called, which waits for the last line. A quiet screen shows a line only when
// something has happened.
func (s *screen) start(ctx context.Context, quiet bool) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	before := s.events()
	var shown sync.WaitGroup
	shown.Go(func() { s.run(ctx, quiet, before) })
	shown.Go(func() { s.follow(ctx) })
	return func() {
		cancel()
		shown.Wait()
	}
}

// run prints a line a second, or one for each second in which something has happened.
func (s *screen) run(ctx context.Context, quiet bool, before [5]int64) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			now := s.events()
			if !quiet || now != before {
				s.d.say("%s", s.line(ctx))
			}
			before = now
		case <-ctx.Done():
			return
		}
	}
}

// follow says each new state of the batches that the back office's admins would look at.
func (s *screen) follow(ctx context.Context) {
	_ = poll(ctx, 100*time.Millisecond, func(ctx context.Context) (bool, error) {
		s.tell(ctx)
		return false, nil
	})
}

// tell says the states of named batches that have not been said. The screen is no place to fail: what cannot be read
// is not said.
func (s *screen) tell(ctx context.Context) {
	list, err := s.d.app.state.Batches(ctx, state.BatchFilter{Kind: event.KindTransaction, Limit: 50})
	if err != nil {
		return
	}
	for _, b := range list {
		if b.Name != "" && s.batches[b.ID] != b.Status && (b.EndedAt.IsZero() || b.EndedAt.After(s.d.began)) { // not those of an earlier run
			s.batches[b.ID] = b.Status
			s.d.say("batch      %q by %s is %s (%d items, %d succeeded, %d failed)", b.Name, b.Admin, b.Status, b.Total, b.Succeeded, b.Failed)
		}
	}
}

// events counts what a line would show as news.
func (s *screen) events() [5]int64 {
	p := s.d.app.push.Stats()
	return [...]int64{s.d.app.capture.Stats().Records.Load(), p.Succeeded.Load(), p.Skipped.Load(), p.Failed.Load(), p.Retried.Load()}
}

// line says what has happened so far.
func (s *screen) line(ctx context.Context) string {
	a := s.d.app
	p, c := a.push.Stats(), a.capture.Stats()
	var b strings.Builder
	if traffic := s.traffic.Load(); traffic != nil {
		t := traffic.Stats()
		fmt.Fprintf(&b, "committed %d (rolled back %d)  ", t.Committed, t.RolledBack)
	}
	fmt.Fprintf(&b, "captured %d  coalesced %d  pushed %d  skipped %d  failed %d  retried %d  ",
		c.Records.Load(), p.Coalesced.Load(), p.Succeeded.Load(), p.Skipped.Load(), p.Failed.Load(), p.Retried.Load())
	b.WriteString("points left")
	for _, st := range demo.Stores() {
		if bucket := a.shops.Bucket(st.Name); bucket.Maximum > 0 {
			fmt.Fprintf(&b, " %s %.0f", st.Name, bucket.Level)
		} else {
			fmt.Fprintf(&b, " %s ?", st.Name) // it has not answered yet
		}
	}
	waiting := p.Hot.Load() + p.Flying.Load()
	if n, err := s.d.parked(ctx); err == nil {
		waiting += n
	}
	fmt.Fprintf(&b, "  waiting %d  lag %.1fs", waiting, time.Duration(p.Lag.Load()).Seconds())
	return b.String()
}
