package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// The prefixes of the logical messages that Capture reads. Batch and Snapshot are for users; the others are its own.
const (
	// MessagePrefix begins all of them. The stream should yield no others, as each has an ordinal.
	MessagePrefix = "shelfwire."
	// MessageBatch names the transaction that it belongs to: {"name": ..., "admin": ...}.
	MessageBatch = "shelfwire.batch"
	// MessageSnapshot asks for a snapshot: an event.SnapshotRequest as JSON. In a transaction it is taken at the commit.
	MessageSnapshot  = "shelfwire.snapshot"
	messageWatermark = "shelfwire.watermark"
	messageHeartbeat = "shelfwire.heartbeat"
)

// captureStream is the replication stream; connectors/postgres implements it. One goroutine calls all but Confirm.
type captureStream interface {
	// NextUntil returns the next event, valid until the next call; an idle one at the given time, if that is not zero
	// and nothing else has come. An ended ctx leaves the stream usable.
	NextUntil(ctx context.Context, until time.Time) (change.Event, error)
	// Buffered reports whether NextUntil would return without waiting for the server.
	Buffered() bool
	// Attend runs work and keeps the connection alive meanwhile.
	Attend(ctx context.Context, work func(context.Context) error) error
	// Confirm says that everything before lsn is durable. Confirmed is the highest such position.
	Confirm(lsn change.LSN)
	Confirmed() change.LSN
	Close(ctx context.Context) error
}

// captureProducer writes one Kafka transaction after the other; connectors/kafka implements it. Any error is final.
type captureProducer interface {
	Begin() error
	ProduceMarked(group int64, records ...event.Record) error
	// Flush waits for all offsets; Offsets are the last ones of a group's records, by partition of a topic.
	Flush(ctx context.Context) error
	Offsets(group int64, topic string) map[int32]int64
	// Commit makes the transaction visible. When it fails it is unknown whether it did.
	Commit(ctx context.Context) error
	Abort(ctx context.Context) error
	Close()
}

// captureSource answers what the stream does not say; connectors/postgres implements it.
type captureSource interface {
	captureHistory
	captureSlot
	capturePublication
	// ParentKeys finds the rows of a parent table for ids, and says which transactions it has seen. An id without a row
	// is not in the result. An error that says Data() is about one of the ids.
	ParentKeys(ctx context.Context, p route.Parent, ids []string) (map[string]change.ParentRow, change.Snapshot, error)
	// Snapshot says which transactions a read that begins now would see.
	Snapshot(ctx context.Context) (change.Snapshot, error)
	snapshotSource
}

// CaptureParts are what Capture works with.
type CaptureParts struct {
	Source captureSource
	// Open makes sure of the publication and begins to read from where the slot has been confirmed. While another
	// process reads from the slot it gives an error that is Temporary: whoever has the slot is the one that captures. A
	// slot that is not there or of no use is an error that says so by Gone; Capture makes it by Source.RenewSlot.
	Open func(ctx context.Context) (captureStream, error)
	// Fence opens the producer. When it returns, no earlier producer of this capture can commit anything more.
	Fence func(ctx context.Context) (captureProducer, error)
	// Position reads the last position of this writer; false when there is none.
	Position func(ctx context.Context, writer string) (event.Position, bool, error)
	// Touch has every product evaluated again that a shop may have, and returns how many. It is called when a gap is
	// healed, and may be called twice for one. back: the source's history went back, so that what was noted of it (what
	// a read has seen, transaction ids) is void. Nil: there is no state, and products that are gone are not noticed.
	Touch func(ctx context.Context, back bool) (int64, error)
	// Largest is how many bytes of the largest open transaction have come so far. Nil: not known.
	Largest func() int64
	Logger  *slog.Logger
}

// CaptureConfig configures the stage. The zero value of every field but Routes is usable.
type CaptureConfig struct {
	Routes []route.Route
	// Mirror writes tables once more, into topics of the Debezium connector's form. Default: none.
	Mirror MirrorConfig
	// Prefix stands before the names of the topics. Default "catalog.".
	Prefix string
	// PositionPartition is the partition of catalog.positions that is Capture's. Default 0.
	PositionPartition int32
	// Version, Name and Database are what the envelope's source block says. Name defaults to "shelfwire".
	Version, Name, Database string
	// BatchProducts and BatchRows make a transaction a batch that nobody declared one. Defaults 50 and 1,000. So many
	// rows are held in memory before the decision.
	BatchProducts, BatchRows int
	// TxRows and TxBytes bound a Kafka transaction; a larger transaction of the source is split. Defaults 10,000 and
	// 4 MiB. Larger ones cost less each, hold back readers of committed records longer, and leave the processor's caches
	// before they are sent. TxRows is never below BatchRows, so that what is split is a batch.
	TxRows, TxBytes int
	// TxEvery is the shortest time between the beginnings of two Kafka transactions. Under load it is how long small
	// transactions gather; a change that comes almost alone waits for 1 ms at the most. Default 20 ms.
	TxEvery time.Duration
	// IdleEvery is how often the position moves when only WAL of others passes. Default 1 s.
	IdleEvery time.Duration
	// MaxRecordBytes is what Kafka takes as one record, key, value and headers together. Default 8 MiB - 4 KiB.
	MaxRecordBytes int
	// SnapshotChunk is how many rows a snapshot reads at once, in one short transaction. Default 1,000.
	SnapshotChunk int
	// SnapshotRate bounds the rows a second that a snapshot reads, so that it stays a good guest. Default 20,000;
	// negative: no bound.
	SnapshotRate int
	// SnapshotReaders is how many chunks are read at a time. The rate bounds all of them together. Default 2.
	SnapshotReaders int
	// Heartbeat is after what silence a logical message is written, so that the slot moves past WAL that concerns
	// nobody here. Default 10 s; negative: never.
	Heartbeat time.Duration
	// PublicationEvery is how often it is looked at whether the tables are still published. Default 5 s.
	PublicationEvery time.Duration
	// Restart gives up the position on record, whatever history it is of, and takes a whole snapshot. What was
	// committed between that position and the slot's is then in no record of its own.
	Restart bool
	// NoHeal stops at a gap instead of healing it, with an error that says what to run.
	NoHeal bool
	// HealMost is how many gaps are healed within an hour; one more stops Capture, as snapshots do not mend their cause.
	// Default 3; negative: no bound.
	HealMost int
	// AcceptSource heals also over to another cluster. The caller has made sure that it is meant.
	AcceptSource bool
}

func (c CaptureConfig) withDefaults() CaptureConfig {
	c.Prefix = cmp.Or(c.Prefix, "catalog.")
	c.Name = cmp.Or(c.Name, "shelfwire")
	c.BatchProducts = cmp.Or(c.BatchProducts, 50)
	c.BatchRows = cmp.Or(c.BatchRows, 1000)
	c.TxRows = max(cmp.Or(c.TxRows, 10_000), c.BatchRows)
	c.TxBytes = cmp.Or(c.TxBytes, 4<<20)
	c.TxEvery = cmp.Or(c.TxEvery, 20*time.Millisecond)
	c.IdleEvery = cmp.Or(c.IdleEvery, time.Second)
	c.MaxRecordBytes = cmp.Or(c.MaxRecordBytes, 8<<20-4<<10)
	c.SnapshotChunk = cmp.Or(c.SnapshotChunk, 1000)
	c.SnapshotRate = cmp.Or(c.SnapshotRate, 20_000)
	c.SnapshotReaders = cmp.Or(c.SnapshotReaders, 2)
	c.Heartbeat = cmp.Or(c.Heartbeat, 10*time.Second)
	c.PublicationEvery = cmp.Or(c.PublicationEvery, 5*time.Second)
	c.HealMost = cmp.Or(c.HealMost, 3)
	return c
}

// CaptureStats counts what Capture has done since the start of the process.
type CaptureStats struct {
	// Transactions and Rows are of the source and have passed the routes; Records, Fanouts, Batches and DeadLetters
	// were written; KafkaTransactions were committed.
	Transactions, Rows, Records, Fanouts, Batches, DeadLetters, KafkaTransactions atomic.Int64
	// Orphans are images whose parent row was gone: its own deletion has touched the product.
	Orphans atomic.Int64
	// Lookups counts queries for parent rows. Rereads counts snapshot chunks that had to be read again.
	Lookups, Rereads, SnapshotRows atomic.Int64
	// Confirmed is the LSN up to which everything is in Kafka. NewestCommit is the commit time, in µs since 1970 by
	// the source's clock, of the last transaction that is. LastEvent is when the stream last said anything, in ns.
	// NewestDurable is when that transaction came to be in Kafka, in ns by the clock of this process.
	Confirmed, NewestCommit, NewestDurable, LastEvent atomic.Int64
	// Healings counts gaps that were healed, Healed is when the last one was, in ns; 0: none since the start.
	Healings, Healed atomic.Int64
	// Unpublished is how many tables should be captured and are not: dropped, renamed or taken out of the publication.
	Unpublished atomic.Int64
	// Active says whether this process has the slot. Snapshotting says whether a snapshot is running.
	Active, Snapshotting atomic.Bool
	// Snapshots are those that run, as they are in Kafka; nil for none.
	Snapshots atomic.Pointer[[]SnapshotStatus]

	meter snapshotMeter
}

// Capture turns the committed changes of the source into records of catalog.changes and catalog.fanouts, each exactly
// once, in commit order per product.
//
// It never keeps a position of its own: each Kafka transaction carries the position that it describes, and a new
// session drops what is at or below the one it finds. Sessions end at any error; nothing that a session had in memory
// is needed by the next.
type Capture struct {
	cfg   CaptureConfig
	parts CaptureParts
	log   *slog.Logger
	stats CaptureStats
	// restarted: the position that cfg.Restart asks for is in Kafka, and is the one to go on from.
	restarted bool
}

// NewCapture returns a stage that does nothing until Run.
func NewCapture(cfg CaptureConfig, parts CaptureParts) *Capture {
	if parts.Logger == nil {
		parts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Capture{cfg: cfg.withDefaults(), parts: parts, log: parts.Logger.With("stage", "capture")}
}

// Stats are live.
func (c *Capture) Stats() *CaptureStats { return &c.stats }

// Run captures until ctx ends, and then returns nil. It begins a new session after every error but those that trying
// again cannot mend: these it returns. While another process has the slot it stands by.
func (c *Capture) Run(ctx context.Context) error {
	const first, standby, last = 100 * time.Millisecond, 500 * time.Millisecond, 5 * time.Second
	pause, said := first, ""
	for {
		done := c.stats.KafkaTransactions.Load()
		err := c.session(ctx)
		c.stats.Active.Store(false)
		if gap := captureGapOf(err); gap != nil && ctx.Err() == nil {
			if err = c.reopen(ctx, gap); err == nil {
				if !sleep(ctx, first) {
					return nil
				}
				continue
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case captureFinal(err):
			return fmt.Errorf("capture: %w", err)
		case c.stats.KafkaTransactions.Load() > done:
			pause, said = first, ""
		}
		if captureStandby(err) {
			// Whoever has the slot may be gone the next moment, and looking costs one connection.
			pause = standby
		}
		level := slog.LevelWarn
		if err.Error() == said { // a process may stand by for weeks
			level = slog.LevelDebug
		}
		said = err.Error()
		var used interface{ InUse() string }
		if errors.As(err, &used) && used.InUse() != "" {
			c.log.Log(ctx, min(level, slog.LevelInfo), "standing by", "why", used.InUse())
		} else {
			c.log.Log(ctx, level, "capture begins again", "pause", pause, "error", err)
		}
		if !sleep(ctx, pause) {
			return nil
		}
		pause = min(2*pause, last)
	}
}

// captureStandby asks an error whether it says of itself that it will pass.
func captureStandby(err error) bool {
	var temp interface{ Temporary() bool }
	return errors.As(err, &temp) && temp.Temporary()
}

// captureFinal asks an error whether trying again is pointless.
func captureFinal(err error) bool {
	var perm interface{ Permanent() bool }
	var temp interface{ Temporary() bool }
	switch {
	case errors.As(err, &perm):
		return perm.Permanent()
	case errors.As(err, &temp):
		// The network's errors have the method too, and mean something else by it.
		var network interface{ Timeout() bool }
		return !temp.Temporary() && !errors.As(err, &network)
	}
	return false
}

// captureTries counts how often in a row a read has failed with an error that is final.
type captureTries int

// judge passes on what is worth another try, and gives up an error that is final for the third time. A statement that
// fails beside DDL is right the next moment: it is parsed by the catalog as it is, and was written by the catalog as its
// transaction's snapshot has it.
func (n *captureTries) judge(what string, err error) error {
	switch {
	case err == nil || !captureFinal(err):
		return err
	case *n < 2:
		*n++
		return &captureTried{what: what, err: err}
	}
	return &captureTried{what: what, err: err, final: true}
}

// captureTried is an error that is final by itself, of something that has been tried. It says whether that is given up.
type captureTried struct {
	what  string
	err   error
	final bool
}

func (e *captureTried) Error() string { return e.what + ": " + e.err.Error() }

// Unwrap returns what has gone wrong.
func (e *captureTried) Unwrap() error { return e.err }

// Permanent overrules what the error says of itself.
func (e *captureTried) Permanent() bool { return e.final }

// captureError is an error that only a person can mend.
type captureError struct{ text string }

func (e *captureError) Error() string { return e.text }

// Permanent says that trying again does not help.
func (*captureError) Permanent() bool { return true }

// session captures until something goes wrong or ctx ends.
//
// The order of its beginning is what makes it safe. The slot comes first: Postgres gives it to one process, so that a
// process that only stands by never fences the one that works. The fence comes second: from here on no predecessor
// that lost the slot can commit what it still had in flight. Only then is the position read, and nothing of the stream
// before that.
func (c *Capture) session(ctx context.Context) error {
	stream, err := c.parts.Open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = stream.Close(ctx) // the slot is freed by the end of the connection as well
	}()
	var producer captureProducer
	var pos event.Position
	err = stream.Attend(ctx, func(ctx context.Context) error {
		p, err := c.parts.Fence(ctx)
		if err != nil {
			return err // p may be a nil of the connector's type, which is not nil here
		}
		producer = p
		pos, err = c.resume(ctx, producer, stream.Confirmed())
		return err
	})
	if producer != nil {
		defer producer.Close()
	}
	if err != nil {
		return err
	}
	c.stats.Active.Store(true)
	c.log.InfoContext(ctx, "capture goes on", "position", pos.String(), "slot", pos.Slot,
		"in_transaction", pos.Open != nil, "snapshots", len(pos.Snapshots))
	return c.work(ctx, stream, producer, pos)
}
