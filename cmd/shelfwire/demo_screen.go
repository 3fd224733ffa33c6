package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
)

// screen prints a line a second.
type screen struct {
	d       *demoRun
	traffic *demo.Traffic
}

func (s *screen) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.d.say("%s", s.line(ctx))
		case <-ctx.Done():
			return
		}
	}
}

// line says what has happened so far.
func (s *screen) line(ctx context.Context) string {
	a := s.d.app
	p, c := a.push.Stats(), a.capture.Stats()
	var b strings.Builder
	if s.traffic != nil {
		t := s.traffic.Stats()
		fmt.Fprintf(&b, "committed %d (rolled back %d)  ", t.Committed, t.RolledBack)
	}
	fmt.Fprintf(&b, "captured %d  coalesced %d  pushed %d  skipped %d  failed %d  retried %d  ",
		c.Records.Load(), p.Coalesced.Load(), p.Succeeded.Load(), p.Skipped.Load(), p.Failed.Load(), p.Retried.Load())
	b.WriteString("points left")
	for _, st := range demo.Stores() {
		bucket := a.shops.Bucket(st.Name)
		fmt.Fprintf(&b, " %s %.0f", st.Name, bucket.Level)
	}
	waiting := p.Hot.Load() + p.Flying.Load()
	if n, err := s.d.parked(ctx); err == nil {
		waiting += n
	}
	fmt.Fprintf(&b, "  waiting %d  lag %.1fs", waiting, time.Duration(p.Lag.Load()).Seconds())
	return b.String()
}
