package torture

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// findings collects what a comparison has found wrong, and how much it has compared.
type findings struct {
	compared map[string]int
	wrong    []string
}

// most is how many findings of one run are worth reading.
const most = 60

// report fails the test with what is wrong, the first so many of it.
func (f *findings) report(t *testing.T, first int) {
	t.Helper()
	for i, wrong := range f.wrong {
		if i == first {
			t.Errorf("... and %d more", len(f.wrong)-first)
			break
		}
		t.Error(tail(wrong, 1500))
	}
}

func (f *findings) add(wrong string) { f.wrong = append(f.wrong, wrong) }

func (f *findings) count(what string, n int) {
	if f.compared == nil {
		f.compared = map[string]int{}
	}
	f.compared[what] += n
}

// topic reads all committed records of a topic, partition by partition, each in order.
func (w *world) topic(ctx context.Context, name string) ([]event.Record, error) {
	return readTopic(ctx, w.cluster, name)
}

func readTopic(ctx context.Context, cluster *kafka.Cluster, name string) ([]event.Record, error) {
	full := cluster.Topic(name)
	starts, err := cluster.StartOffsets(ctx, full)
	if err != nil {
		return nil, err
	}
	ends, err := cluster.EndOffsets(ctx, full)
	if err != nil {
		return nil, err
	}
	var out []event.Record
	for _, part := range slices.Sorted(maps.Keys(ends)) {
		_, err := cluster.Scan(ctx, full, part, starts[part], ends[part], func(r event.Record) bool {
			r.Key, r.Value, r.Headers = slices.Clone(r.Key), slices.Clone(r.Value), slices.Clone(r.Headers)
			for i := range r.Headers {
				r.Headers[i].Value = slices.Clone(r.Headers[i].Value)
			}
			out = append(out, r)
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// topics reads every topic that holds data of the pipeline.
func (w *world) topics(ctx context.Context) (map[string][]event.Record, error) {
	out := map[string][]event.Record{}
	for _, name := range []string{event.Changes, event.Fanouts, event.Batches, event.Outcomes, event.Documents, event.DeadLetters} {
		var err error
		if out[name], err = w.topic(ctx, name); err != nil {
			return nil, err
		}
	}
	return out, nil
}
