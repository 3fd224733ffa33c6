package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// snapshotSource reads chunks of tables beside the stream; connectors/postgres implements it.
type snapshotSource interface {
	// CutTable divides a table into at most so many ranges, none of them for fewer than least rows.
	CutTable(ctx context.Context, sel change.Selection, ranges, least int) (change.Cut, error)
	// ReadChunk writes the low mark and then reads the next rows of a range.
	ReadChunk(ctx context.Context, q change.ChunkQuery) (change.Chunk, error)
	// EmitMessage writes a non-transactional logical message and flushes it.
	EmitMessage(ctx context.Context, prefix string, content []byte) (change.LSN, error)
}

// A table is divided into ranges of at least so many chunks, and into so many for each reader at most: each range stands
// in the position.
const snapshotLeast, snapshotRanges = 4, 4

// snapshotReader reads parts of tables in goroutines beside the stream, each chunk between its two watermarks.
type snapshotReader struct {
	source  snapshotSource
	run     string
	readers int
	limit   int // rows of a chunk
	pace    *snapshotPace
	log     *slog.Logger
	wake    chan struct{} // holds a value while there is something to read and a reader may sleep

	mu       sync.Mutex
	requests []snapshotRequest
	answers  map[int]*snapshotAnswer
}

// snapshotAnswer is what a request has brought. One of the four is set.
type snapshotAnswer struct {
	attempt int
	cut     *change.Cut
	chunk   *change.Chunk
	refused string
	later   bool // it cannot be read now: a row in it must be mended first
}

func newSnapshotReader(source snapshotSource, run string, cfg CaptureConfig, log *slog.Logger) *snapshotReader {
	return &snapshotReader{
		source: source, run: run, readers: cfg.SnapshotReaders, limit: cfg.SnapshotChunk, log: log,
		pace: &snapshotPace{rate: cfg.SnapshotRate}, answers: map[int]*snapshotAnswer{}, wake: make(chan struct{}, 1),
	}
}

// submit hands a request to the readers, after its pause. It never waits for them: whoever calls it owns the stream, and
// what nobody wants any more, of a table that is divided anew, may still be in their hands.
func (r *snapshotReader) submit(req snapshotRequest) {
	if req.pause > 0 {
		pause := req.pause
		req.pause = 0
		time.AfterFunc(pause, func() { r.submit(req) })
		return
	}
	r.mu.Lock()
	r.requests = append(r.requests, req)
	r.mu.Unlock()
	r.rouse()
}

// rouse has a reader look for requests.
func (r *snapshotReader) rouse() {
	select {
	case r.wake <- struct{}{}:
	default: // one is about to
	}
}

// next takes the oldest request; false when ctx ends first.
func (r *snapshotReader) next(ctx context.Context) (snapshotRequest, bool) {
	for {
		r.mu.Lock()
		var req snapshotRequest
		n := len(r.requests)
		if n > 0 {
			req = r.requests[0]
			r.requests = slices.Delete(r.requests, 0, 1)
		}
		r.mu.Unlock()
		if n > 1 {
			r.rouse() // another reader
		}
		if n > 0 {
			return req, true
		}
		select {
		case <-ctx.Done():
			return req, false
		case <-r.wake:
		}
	}
}

// loop serves requests until ctx ends or an error that trying again cannot mend.
func (r *snapshotReader) loop(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range r.readers {
		g.Go(func() error {
			for {
				req, ok := r.next(ctx)
				if !ok {
					return nil
				}
				if err := r.serve(ctx, req); err != nil && ctx.Err() == nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// snapshotUnreadable is how long a part waits that holds a row which the server cannot send, until it is read again.
const snapshotUnreadable = 10 * time.Second

// unreadable asks an error whether it is about such a row.
func unreadable(err error) bool {
	var row interface{ Unreadable() bool }
	return errors.As(err, &row) && row.Unreadable()
}

// serve reads a part, and tries again as long as that may help. An error that stays is an answer where somebody has
// asked for the part or it can be spared, and the end of Capture otherwise. A part with a row that cannot be sent ends
// nothing: it waits for somebody to mend the row, while the reader turns to others.
func (r *snapshotReader) serve(ctx context.Context, req snapshotRequest) error {
	if !req.cut && !r.pace.wait(ctx) {
		return nil
	}
	var tries captureTries
	attempt := 0
	err := retry(ctx, r.log, "snapshot of "+req.query.Table, func(ctx context.Context) error {
		attempt++
		err := r.read(ctx, req, attempt)
		if unreadable(err) {
			return &captureTried{what: "snapshot of " + req.query.Table, err: err, final: true}
		}
		return tries.judge("snapshot of "+req.query.Table, err)
	})
	final, ok := errors.AsType[*captureTried](err)
	var answer snapshotAnswer
	switch {
	case !ok:
		return err
	case req.asked, req.spare:
		answer.refused = final.Error()
	case unreadable(err):
		r.log.ErrorContext(ctx, "a part of a table cannot be read: the rest goes on", "pause", snapshotUnreadable, "error", err)
		answer.later = true
	default:
		return err
	}
	return retry(ctx, r.log, "refusal of a snapshot", func(ctx context.Context) error {
		attempt++
		again := answer
		again.attempt = attempt
		return r.answer(ctx, req, &again)
	})
}

// errSnapshotKey cannot come from a source that keeps to its contract.
var errSnapshotKey = &captureError{"a chunk that is not the last one has no last key"}

func (r *snapshotReader) read(ctx context.Context, req snapshotRequest, attempt int) error {
	if req.cut {
		cut, err := r.source.CutTable(ctx, req.query.Selection, snapshotRanges*r.readers, snapshotLeast*r.limit)
		if err != nil {
			return err
		}
		return r.answer(ctx, req, &snapshotAnswer{attempt: attempt, cut: &cut})
	}
	// The high mark, which is flushed, brings the low one with it.
	req.query.MarkPrefix, req.query.Mark = messageWatermark, r.mark(req, attempt, false)
	req.query.Limit = r.limit
	chunk, err := r.source.ReadChunk(ctx, req.query)
	if err != nil {
		return err
	}
	if !chunk.Done && len(chunk.LastKey) == 0 && chunk.Shape == req.query.Shape {
		return errSnapshotKey
	}
	r.pace.took(len(chunk.Rows))
	return r.answer(ctx, req, &snapshotAnswer{attempt: attempt, chunk: &chunk})
}

// answer lays an answer ready and then writes the mark: whoever sees it in the stream finds the answer here.
func (r *snapshotReader) answer(ctx context.Context, req snapshotRequest, a *snapshotAnswer) error {
	r.mu.Lock()
	r.answers[req.number] = a
	r.mu.Unlock()
	_, err := r.source.EmitMessage(ctx, messageWatermark, []byte(r.mark(req, a.attempt, true)))
	return err
}

func (r *snapshotReader) mark(req snapshotRequest, attempt int, high bool) string {
	return snapshotMark{run: r.run, number: req.number, attempt: attempt, high: high}.String()
}

// take returns the answer that a mark announces, once; nil when there is none, or not any more that of this attempt.
func (r *snapshotReader) take(m snapshotMark) *snapshotAnswer {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.answers[m.number]
	if a == nil || a.attempt != m.attempt {
		return nil
	}
	delete(r.answers, m.number)
	return a
}

// snapshotPace bounds the rows a second of all readers together.
type snapshotPace struct {
	rate int // negative: no bound

	mu   sync.Mutex
	free time.Time // from when on the next chunk is within the rate
}

// wait returns when the next chunk may be read; false: ctx has ended.
func (p *snapshotPace) wait(ctx context.Context) bool {
	p.mu.Lock()
	wait := time.Until(p.free)
	p.mu.Unlock()
	return wait <= 0 || sleep(ctx, wait)
}

func (p *snapshotPace) took(rows int) {
	if p.rate <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(rows) * time.Second / time.Duration(p.rate))
}
