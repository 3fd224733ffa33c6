package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// cutSource divides tables, and counts how often.
type cutSource struct {
	snapshotSource

	mu   sync.Mutex
	cuts map[string]int
}

func (s *cutSource) CutTable(_ context.Context, sel change.Selection, _, _ int) (change.Cut, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cuts[sel.Table]++
	return change.Cut{}, nil
}

func (*cutSource) EmitMessage(context.Context, string, []byte) (change.LSN, error) { return 1, nil }

// Who asks for parts of a snapshot owns the stream, and must not wait for those who read them, however many are asked for
// and however busy they are.
func TestSnapshotRequestsWaitForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &cutSource{cuts: map[string]int{}}
		r := newSnapshotReader(source, "r", CaptureConfig{SnapshotReaders: 3, SnapshotRate: -1}, slog.New(slog.DiscardHandler))
		const many = 4 * snapshotTasks
		for i := range many {
			req := snapshotRequest{number: i, cut: true}
			req.query.Table = string(rune('a' + i%26))
			if i%3 == 0 {
				req.pause = time.Duration(i) * time.Millisecond
			}
			r.submit(req)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.loop(ctx) }()
		time.Sleep(time.Minute) // of the bubble
		synctest.Wait()
		sum := 0
		for _, n := range source.cuts {
			sum += n
		}
		require.Equal(t, many, sum)
		r.submit(snapshotRequest{number: many, cut: true, pause: time.Hour}) // its time comes when nobody reads any more
		cancel()
		require.NoError(t, <-done)
		time.Sleep(2 * time.Hour)
	})
}

// wideSource cannot send a row of one table, for a while.
type wideSource struct {
	cutSource

	tries int
}

type wideRow struct{}

func (wideRow) Error() string    { return "a row larger than 1 GB" }
func (wideRow) Unreadable() bool { return true }

func (s *wideSource) ReadChunk(_ context.Context, q change.ChunkQuery) (change.Chunk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tries++; q.Table == "wide" && s.tries < 20 {
		return change.Chunk{}, fmt.Errorf("read: %w", wideRow{})
	}
	s.cuts[q.Table]++
	return change.Chunk{Done: true}, nil
}

// A row that the server cannot send stops neither Capture nor the only reader, and is read once it is mended. Who has
// asked for it is told.
func TestSnapshotsGoOnBesideARowThatCannotBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &wideSource{cutSource: cutSource{cuts: map[string]int{}}}
		r := newSnapshotReader(source, "r", CaptureConfig{SnapshotReaders: 1, SnapshotRate: -1}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.loop(ctx) }()
		for number, table := range []string{"wide", "wide", "narrow"} {
			req := snapshotRequest{number: number, asked: number == 1}
			req.query.Table = table
			r.submit(req)
		}
		synctest.Wait()
		require.Equal(t, map[string]int{"narrow": 1}, source.cuts)
		answer := r.take(snapshotMark{run: "r", number: 1, attempt: 2, high: true})
		require.Equal(t, "snapshot of wide: read: a row larger than 1 GB", answer.refused)
		// The book puts it off, again and again, until it is mended.
		for answer = r.take(snapshotMark{run: "r", number: 0, attempt: 2, high: true}); answer != nil; {
			require.True(t, answer.later)
			req := snapshotRequest{number: 0, pause: snapshotUnreadable}
			req.query.Table = "wide"
			r.submit(req)
			time.Sleep(snapshotUnreadable + time.Second)
			synctest.Wait()
			answer = r.take(snapshotMark{run: "r", number: 0, attempt: 2, high: true})
		}
		require.Equal(t, map[string]int{"narrow": 1, "wide": 1}, source.cuts)
		require.NotNil(t, r.take(snapshotMark{run: "r", number: 0, attempt: 1, high: true}))
		cancel()
		require.NoError(t, <-done)
	})
}

// A snapshot that has ended without a row leaves nothing behind.
func TestSnapshotsWithoutRowsAreForgotten(t *testing.T) {
	b := testBatcher(event.Position{})
	w := newCaptureWriter(CaptureConfig{}.withDefaults(), benchProducer{}, event.Position{}, &CaptureStats{}, func(*captureUnit) {})
	for i := range 10 {
		id := string(rune('a' + i))
		for _, running := range [][]event.SnapshotProgress{{{ID: "long"}, {ID: id}}, {{ID: "long"}}} {
			b.apply(&captureStep{kind: captureProgress, progress: &captureSnapshotStep{running: running}})
			u := b.seal()
			require.Len(t, u.snapshots, len(running))
			require.NoError(t, w.write(t.Context(), u))
			b.renew(nil)
		}
	}
	require.Len(t, b.snapshots, 1)
	require.Len(t, w.offsets, 1)
}

// What is tried again is known by its type nevertheless, and is given up when it has failed for the third time.
func TestErrorsThatAreTriedKeepTheirType(t *testing.T) {
	var tries captureTries
	cause := &captureError{"gone"}
	for try := range 3 {
		err := tries.judge("read", fmt.Errorf("table: %w", cause))
		require.ErrorIs(t, err, cause)
		require.EqualError(t, err, "read: table: gone")
		require.Equal(t, try == 2, captureFinal(err), "try %d", try+1)
	}
	other := errors.New("network")
	require.Equal(t, other, tries.judge("read", other))
}
