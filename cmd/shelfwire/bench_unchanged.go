package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shelfwire/shelfwire/pipeline"
)

// unchangedHot is how many products change at the same time, ten times each, one after the other.
const unchangedHot = 2500

// measureUnchanged lets Push work off changes that leave every document as the shop has it.
func measureUnchanged(ctx context.Context, b *bench) ([]figure, error) {
	r, err := newMiddleRig(ctx, b)
	defer r.close()
	if err != nil {
		return nil, err
	}
	const each = 10
	products := b.few(100_000, unchangedHot)
	if err := r.know(ctx, products); err != nil {
		return nil, err
	}
	changes := each * products
	err = r.write(ctx, changes, func(i int) int { return i/(each*unchangedHot)*unchangedHot + i%unchangedHot + 1 })
	if err != nil {
		return nil, fmt.Errorf("write the changes: %w", err)
	}
	b.say("unchanged: %d changes of %d products are written", changes, products)
	requests := r.sim.Shop(middleShop).Stats().Requests
	var took time.Duration
	var used string
	var answered, consumed int64
	err = r.run(ctx, func(ctx context.Context, p *pipeline.Push) error {
		ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("the changes were not worked off after 3 minutes"))
		defer cancel()
		began := time.Now()
		before, err := r.used(ctx)
		if err != nil {
			return err
		}
		if err := r.passed(ctx); err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		took = time.Since(began)
		after, err := r.used(ctx)
		used = after.since(before, changes)
		answered, consumed = p.Stats().Skipped.Load(), p.Stats().Consumed.Load()
		return err
	})
	if err != nil {
		return nil, err
	}
	if n := r.sim.Shop(middleShop).Stats().Requests - requests; n > 0 || answered == 0 || consumed != int64(changes) {
		return nil, fmt.Errorf("%d changes consumed of %d, %d answers, %d requests to the shop: want none", consumed, changes, answered, n)
	}
	how := fmt.Sprintf("%d changes of %d products, %d of each in a row of %d that change by turns, written before; documents from memory: they cost the "+
		"source nothing here; one push worker as `shelfwire run` builds it, %d partitions, a broker (kfake) in a process of its own, state in an embedded PostgreSQL "+
		"that knows %d products; from the worker's start over reading, debounce and comparison to the last settled position; %d answers \"unchanged\", one for %.1f "+
		"changes; no request to the shop; %s for each change; every product had been answered so once before",
		changes, products, each, unchangedHot, middlePartitions, products, answered, float64(changes)/float64(answered), used)
	return []figure{atLeast("changes consumed, debounced and answered as unchanged, 10:1", float64(changes)/took.Seconds(), "1/s", 50_000, how)}, nil
}
