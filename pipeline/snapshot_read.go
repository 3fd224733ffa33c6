package pipeline

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// snapshotSource reads chunks of tables beside the stream; connectors/postgres implements it.
type snapshotSource interface {
	// ReadChunk reads up to limit rows in primary key order after a key.
	ReadChunk(ctx context.Context, table string, after []string, limit int) (change.Chunk, error)
	// EmitMessage writes a non-transactional logical message and flushes it.
	EmitMessage(ctx context.Context, prefix string, content []byte) (change.LSN, error)
}

// snapshotRequest asks for one chunk.
type snapshotRequest struct {
	number int
	table  string
	after  []string
	// pause is waited before the first mark.
	pause time.Duration
}

// snapshotReader reads chunks in a goroutine beside the stream, each between its two watermarks. It may run ahead of
// the stream as far as one chunk.
type snapshotReader struct {
	source   snapshotSource
	run      string
	limit    int
	rate     int // rows a second; negative: no bound
	log      *slog.Logger
	requests chan snapshotRequest

	mu     sync.Mutex
	number int // of the chunk that is ready
	chunk  *change.Chunk
}

// loop serves requests until ctx ends or an error that trying again cannot mend.
func (r *snapshotReader) loop(ctx context.Context) error {
	free := time.Now() // from when on the next chunk is within the rate
	for {
		var req snapshotRequest
		select {
		case <-ctx.Done():
			return nil
		case req = <-r.requests:
		}
		if wait := max(time.Until(free), req.pause); wait > 0 && !sleep(ctx, wait) {
			return nil
		}
		var rows int
		var tries captureTries
		err := retry(ctx, r.log, "chunk of a snapshot", func(ctx context.Context) (err error) {
			rows, err = r.read(ctx, req)
			return tries.judge("snapshot of "+req.table, err)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if r.rate > 0 {
			free = time.Now().Add(time.Duration(rows) * time.Second / time.Duration(r.rate))
		}
	}
}

// errSnapshotKey cannot come from a source that keeps to its contract.
var errSnapshotKey = &captureError{"a chunk that is not the last one has no last key"}

func (r *snapshotReader) read(ctx context.Context, req snapshotRequest) (int, error) {
	mark := snapshotMark{run: r.run, number: req.number}
	if _, err := r.source.EmitMessage(ctx, messageWatermark, []byte(mark.String())); err != nil {
		return 0, err
	}
	chunk, err := r.source.ReadChunk(ctx, req.table, req.after, r.limit)
	if err != nil {
		return 0, err
	}
	if !chunk.Done && len(chunk.LastKey) == 0 {
		return 0, errSnapshotKey
	}
	// Before the mark is written: whoever sees it in the stream finds the chunk here.
	r.mu.Lock()
	r.number, r.chunk = req.number, &chunk
	r.mu.Unlock()
	mark.high = true
	_, err = r.source.EmitMessage(ctx, messageWatermark, []byte(mark.String()))
	return len(chunk.Rows), err
}

// take returns the chunk of this number once.
func (r *snapshotReader) take(number int) *change.Chunk {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.chunk == nil || r.number != number {
		return nil
	}
	c := r.chunk
	r.chunk = nil
	return c
}
