package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// measureParking lets Push park a campaign of a million products, and work it off.
func measureParking(ctx context.Context, b *bench) ([]figure, error) {
	r, err := newMiddleRig(ctx, b)
	defer r.close()
	if err != nil {
		return nil, err
	}
	products := b.few(1_000_000, 10_000)
	if err := r.know(ctx, products); err != nil {
		return nil, err
	}
	err = r.write(ctx, products, func(i int) int { return i + 1 }, event.Header{Key: event.HeaderOrigin, Value: []byte(event.KindReplay)})
	if err != nil {
		return nil, fmt.Errorf("write the campaign: %w", err)
	}
	b.say("parking: a campaign of %d products is written", products)
	count := func(ctx context.Context) (int64, error) {
		return query[int64](ctx, r.url, `SELECT count(*) FROM parked`)
	}
	pause := func(sql string) error {
		_, err := query[bool](ctx, r.url, sql+` RETURNING true`)
		return err
	}
	if err := pause(`INSERT INTO pauses (what) VALUES ('lane/campaign')`); err != nil {
		return nil, err
	}
	m := parkingTimes{products: products}
	err = r.run(ctx, func(ctx context.Context, p *pipeline.Push) error {
		ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("the campaign was not worked off after 5 minutes"))
		defer cancel()
		before, err := r.used(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := r.passed(ctx); err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		m.parked = time.Since(began)
		after, err := r.used(ctx)
		if err != nil {
			return err
		}
		m.parkUse = after.since(before, products)
		n, err := count(ctx)
		if err == nil && n != int64(products) {
			err = fmt.Errorf("%d products are parked, want %d", n, products)
		}
		if err != nil {
			return err
		}
		b.say("parking: %.1f s", m.parked.Seconds())
		if err := pause(`DELETE FROM pauses`); err != nil {
			return err
		}
		began = time.Now()
		err = poll(ctx, 100*time.Millisecond, func(ctx context.Context) (bool, error) {
			if p.Stats().Skipped.Load() < int64(products) {
				return false, nil
			}
			n, err := count(ctx)
			return n == 0, err
		})
		m.pulled, m.answered = time.Since(began), p.Stats().Skipped.Load()
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		done, err := r.used(ctx)
		m.pullUse = done.since(after, products)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.figures(), nil
}

// parkingTimes are how long a campaign took to be parked and to be worked off, and what that cost.
type parkingTimes struct {
	products         int
	parked, pulled   time.Duration
	answered         int64 // unchanged, while it was worked off
	parkUse, pullUse string
}

func (m *parkingTimes) figures() []figure {
	rig := fmt.Sprintf("one push worker as `shelfwire run` builds it, %d partitions, a broker (kfake) in a process of its own, state in an embedded PostgreSQL "+
		"that knows all of them", middlePartitions)
	return []figure{
		atMost("park a campaign of 1,000,000 products", m.parked.Seconds()*1e6/float64(m.products), "s", 60, fmt.Sprintf(
			"%d records of a replay, written before, each of a product of its own; from the worker's start to the last position, all rows counted; %s for each; %s",
			m.products, m.parkUse, rig)),
		atLeast("pull them", float64(m.products)/m.pulled.Seconds(), "1/s", 20_000, fmt.Sprintf(
			"the same products, from the end of a pause of the lane until none is parked: pulled, read (documents from memory), compared, answered "+
				"\"unchanged\" %d times and settled; no request to the shop; every product had been answered so once before; %s for each; %s", m.answered, m.pullUse, rig)),
	}
}
