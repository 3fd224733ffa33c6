package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// captureWriter writes units, one Kafka transaction each.
type captureWriter struct {
	producer  captureProducer
	prefix    string
	partition int32
	stats     *CaptureStats
	confirm   func(*captureUnit)
	largest   func() int64 // nil: not known
	// told is when it was last told how far snapshots have come.
	told time.Time
	// offsets holds, for each batch whose end is not written yet, the last offsets of what is.
	offsets map[int64]*captureOffsets
}

// captureOffsets are the last offsets of a batch, by partition.
type captureOffsets struct{ changes, fanouts map[int32]int64 }

// newCaptureWriter goes on from a position: the offsets of what its predecessor left open are in it.
func newCaptureWriter(cfg CaptureConfig, producer captureProducer, pos event.Position, stats *CaptureStats, confirm func(*captureUnit)) *captureWriter {
	w := &captureWriter{
		producer: producer, prefix: cfg.Prefix, partition: cfg.PositionPartition, stats: stats, confirm: confirm,
		offsets: map[int64]*captureOffsets{},
	}
	if pos.Open != nil {
		w.offsets[captureResumed] = &captureOffsets{changes: maps.Clone(pos.Open.Changes), fanouts: maps.Clone(pos.Open.Fanouts)}
	}
	for i, p := range pos.Snapshots {
		w.offsets[captureResumed+1+int64(i)] = &captureOffsets{changes: maps.Clone(p.Changes)}
	}
	return w
}

// run writes what it is given until units is closed or a unit cannot be written.
func (w *captureWriter) run(ctx context.Context, units <-chan *captureUnit) error {
	for u := range units {
		if err := w.write(ctx, u); err != nil {
			// Readers of committed records wait behind what is open; the successor's fence would end it too.
			actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			_ = w.producer.Abort(actx)
			cancel()
			return fmt.Errorf("write to Kafka at %s: %w", u.position.Position, err)
		}
	}
	return nil
}

func (w *captureWriter) write(ctx context.Context, u *captureUnit) error {
	if err := w.producer.Begin(); err != nil {
		return err
	}
	for i := 0; i < len(u.records); {
		j := i + 1
		for j < len(u.records) && u.groups[j] == u.groups[i] {
			j++
		}
		if err := w.producer.ProduceMarked(u.groups[i], u.records[i:j]...); err != nil {
			return err
		}
		i = j
	}
	if len(u.announce) > 0 || u.open != 0 || u.snapshot {
		// What announcements and the position say of offsets is known only now.
		if err := w.producer.Flush(ctx); err != nil {
			return err
		}
	}
	for _, a := range u.announce {
		o := w.collect(a.group)
		delete(w.offsets, a.group)
		a.batch.Changes, a.batch.Fanouts, a.batch.At = o.changes, o.fanouts, time.Now().UTC()
		if err := w.json(event.Batches, -1, a.batch.ID, a.batch); err != nil {
			return err
		}
	}
	for _, group := range u.ended {
		delete(w.offsets, group)
	}
	pos := u.position
	pos.At = time.Now().UTC()
	if w.largest != nil {
		pos.LargestOpen = w.largest()
	}
	if u.open != 0 {
		o := w.collect(u.open)
		open := *pos.Open
		open.Changes, open.Fanouts = maps.Clone(o.changes), maps.Clone(o.fanouts)
		pos.Open = &open
	}
	if err := w.snapshots(u, &pos); err != nil {
		return err
	}
	if err := w.json(event.Positions, w.partition, pos.Writer, pos); err != nil {
		return err
	}
	if err := w.producer.Commit(ctx); err != nil {
		return err
	}
	w.stats.KafkaTransactions.Add(1)
	w.stats.Records.Add(int64(len(u.records)))
	// Invariant: only here, after the commit, may the source forget.
	w.confirm(u)
	return nil
}

// captureTell is how often it is told how far a snapshot has come.
const captureTell = 10 * time.Second

// snapshots completes what the position says of the snapshots that run, and tells of it now and then.
func (w *captureWriter) snapshots(u *captureUnit, pos *event.Position) error {
	if len(pos.Snapshots) == 0 || len(u.snapshots) == 0 {
		return nil // a position that only marks a place takes its snapshots as they are
	}
	if w.told.IsZero() {
		w.told = pos.At
	}
	tell := pos.At.Sub(w.told) >= captureTell
	if tell {
		w.told = pos.At
	}
	pos.Snapshots = slices.Clone(pos.Snapshots)
	for i, group := range u.snapshots {
		p := &pos.Snapshots[i]
		if u.snapshot {
			w.collect(group)
		}
		if o := w.offsets[group]; o != nil {
			p.Changes = maps.Clone(o.changes)
		}
		if !tell {
			continue
		}
		if err := w.json(event.Batches, -1, p.ID, w.stats.meter.batch(p, pos.At)); err != nil {
			return err
		}
	}
	return nil
}

// collect adds the offsets of the open Kafka transaction to those that the batch has from earlier ones.
func (w *captureWriter) collect(group int64) *captureOffsets {
	o := w.offsets[group]
	if o == nil {
		o = &captureOffsets{}
		w.offsets[group] = o
	}
	merge := func(dst *map[int32]int64, topic string) {
		got := w.producer.Offsets(group, w.prefix+topic)
		if *dst == nil {
			*dst = got
			return
		}
		maps.Copy(*dst, got) // later offsets are higher
	}
	merge(&o.changes, event.Changes)
	merge(&o.fanouts, event.Fanouts)
	return o
}

func (w *captureWriter) json(topic string, partition int32, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", topic, key, err)
	}
	return w.producer.ProduceMarked(0, event.Record{Topic: w.prefix + topic, Partition: partition, Key: []byte(key), Value: raw})
}
