package main

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// buildPassed prepares what happens where records have gone that were never read. Of products, which they may have been of
// is not known: all that the shops have are evaluated again, and a snapshot brings those that nobody has heard of. Of
// announcements, the batches without one fail.
func (a *app) buildPassed() {
	passed := func(heal func(context.Context) (string, error)) *pipeline.Passed {
		return &pipeline.Passed{
			Heal: heal, Off: a.options.noHeal || a.cfg.Source.Heal.Off, State: a.state, Log: a.log,
			Starts: func(ctx context.Context, topic string) (map[int32]int64, error) {
				return a.cluster.StartOffsets(ctx, a.cluster.Topic(topic))
			},
		}
	}
	a.passed = passed(func(ctx context.Context) (string, error) {
		n, err := a.state.Touch(ctx, a.cluster.Partitions(), false)
		if err != nil {
			return "", err
		}
		r := event.SnapshotRequest{ID: "passed-" + rand.Text(), All: true}
		if err := a.requestSnapshot(ctx, &r); err != nil {
			return "", err
		}
		return fmt.Sprintf("%d products that the shops have, and snapshot %s", n, r.ID), nil
	})
	a.passedBatches = passed(func(ctx context.Context) (string, error) {
		n, err := a.state.Unannounced(ctx, "its announcement was removed from Kafka before it was read, so what belongs to it is not known")
		return fmt.Sprintf("%d batches fail", n), err
	})
	a.metrics.counter("positions_passed_total", "Positions that were moved because what comes next has gone from Kafka.", func() int64 {
		return a.passed.Gaps.Load() + a.passedBatches.Gaps.Load()
	})
}

// following opens a topic for a stage that goes on where records have gone.
func (a *app) following(p *pipeline.Passed, stage work.Stage, topic string) (*pipeline.PassedReader, error) {
	r, err := a.reader(topic)
	if err != nil {
		return nil, err
	}
	return p.Reader(r, stage, topic), nil
}
