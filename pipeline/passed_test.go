package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// gone is what a reader says of a partition whose next record is not there.
type gone struct {
	partition  int32
	start, end int64
}

func (g *gone) Error() string {
	return fmt.Sprintf("partition %d holds [%d, %d)", g.partition, g.start, g.end)
}
func (g *gone) Permanent() bool              { return true }
func (g *gone) Range() (int32, int64, int64) { return g.partition, g.start, g.end }

// gapWorld is a topic with gaps, and the positions of those who read it.
type gapWorld struct {
	errs   []error // of the polls to come; then records
	at     map[int32]int64
	starts map[int32]int64
	events []string
	fail   map[string]error // once
}

func (w *gapWorld) do(what string) error {
	w.events = append(w.events, what)
	err := w.fail[what]
	delete(w.fail, what)
	return err
}

func (w *gapWorld) Add(int32, int64) {}
func (w *gapWorld) Remove(int32)     {}
func (w *gapWorld) Poll(context.Context, int) ([]event.Record, error) {
	if len(w.errs) == 0 {
		return []event.Record{{Offset: 100}}, nil
	}
	err := w.errs[0]
	w.errs = w.errs[1:]
	return nil, err
}

func (w *gapWorld) Positions(context.Context, work.Stage) (map[int32]int64, error) {
	return maps.Clone(w.at), nil
}

func (w *gapWorld) Pass(_ context.Context, _ work.Stage, from, to map[int32]int64) error {
	for part := range to {
		if from[part] != w.at[part] {
			return errors.New("it has moved")
		}
	}
	if err := w.do("pass"); err != nil {
		return err
	}
	maps.Copy(w.at, to)
	return nil
}

func (w *gapWorld) reader(off bool) (*Passed, *PassedReader) {
	p := &Passed{
		Heal:   func(context.Context) (string, error) { return "a snapshot", w.do("heal") },
		Starts: func(context.Context, string) (map[int32]int64, error) { return w.starts, nil },
		Off:    off, State: w, Log: slog.New(slog.DiscardHandler),
	}
	return p, p.Reader(w, work.StagePush, event.Changes)
}

// Records that were removed before they were read end nothing: everything is evaluated again, once for all partitions,
// and only then do the positions move.
func TestWhatRetentionTookIsEvaluatedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &gapWorld{
			errs:   []error{&gone{0, 50, 90}, &gone{1, 60, 90}, &gone{2, 0, 10}},
			at:     map[int32]int64{0: 20, 1: 30, 2: 40, 3: 70},
			starts: map[int32]int64{0: 50, 1: 60, 2: 0, 3: 70},
			fail:   map[string]error{"heal": errors.New("the source is away"), "pass": errors.New("the state is away")},
		}
		p, r := w.reader(false)
		recs, err := r.Poll(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, recs, 1)
		require.Equal(t, map[int32]int64{0: 50, 1: 60, 2: 0, 3: 70}, w.at, "the third was made anew")
		require.Equal(t, []string{"heal", "heal", "pass", "pass", "pass", "pass"}, w.events)
		require.EqualValues(t, 2, p.Gaps.Load())

		time.Sleep(time.Hour)
		w.errs, w.at[3], w.starts[3] = []error{&gone{3, 200, 300}}, 100, 200
		_, err = r.Poll(t.Context(), 10)
		require.NoError(t, err)
		require.Equal(t, []string{"heal", "pass"}, w.events[6:], "another gap, another healing")
	})
}

// Another worker has healed it already: the lease is only taken anew.
func TestAGapThatAnotherHasHealedIsNotHealedAgain(t *testing.T) {
	w := &gapWorld{errs: []error{&gone{0, 50, 90}}, at: map[int32]int64{0: 55}, starts: map[int32]int64{0: 50}}
	p, r := w.reader(false)
	_, err := r.Poll(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, []string{"pass"}, w.events)
	require.Equal(t, map[int32]int64{0: 55}, w.at)
	require.Zero(t, p.Gaps.Load())
}

func TestAGapEndsTheStageWhereHealingIsOff(t *testing.T) {
	w := &gapWorld{errs: []error{&gone{0, 50, 90}}, at: map[int32]int64{0: 20}}
	_, r := w.reader(true)
	_, err := r.Poll(t.Context(), 10)
	require.ErrorContains(t, err, "holds [50, 90)")
	require.Empty(t, w.events)
}
