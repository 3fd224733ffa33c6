package pipeline

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// loadTables is where records become rows; sinks/clickhouse implements it.
type loadTables interface {
	// Migrate makes the tables, or brings them up to date.
	Migrate(ctx context.Context) error
	// Begin is called before partitions are read. It returns, by partition, the offset after the last row that stands;
	// partitions without rows are absent.
	Begin(ctx context.Context, topic string, topicID [16]byte) (ends map[int32]int64, err error)
	// Insert returns when all records are rows for good. The same token always comes with the same records of a topic.
	Insert(ctx context.Context, topic string, topicID [16]byte, records []event.Record, token string) (event.Inserted, error)
}

// loadTopics tells what a position is worth; connectors/kafka implements it.
type loadTopics interface {
	// TopicID is the id of a topic by its full name. A topic that is deleted and created again has a new one.
	TopicID(ctx context.Context, topic string) ([16]byte, error)
	// StartOffsets are, by partition, the offsets of the first records that retention has left.
	StartOffsets(ctx context.Context, topic string) (map[int32]int64, error)
}

// loadPositions keeps how far each leased partition is loaded; sinks/state implements it.
type loadPositions interface {
	// SavePosition moves positions forward, by the partitions of the fences, or fails with [work.ErrLeaseLost]. of
	// names the topic that they count and becomes the cursor of the leases; positions of another one are replaced.
	SavePosition(ctx context.Context, fences []work.Fence, positions map[int32]int64, of string) error
}

// LoadConfig configures the loader.
type LoadConfig struct {
	Lease LeaseConfig
	// MaxRows and MaxBytes cut a block: what one INSERT writes for one topic. Larger blocks cost ClickHouse less and
	// this process more memory: keys and values count here, and the driver holds each several times over in its columns
	// and their compressed form. A first snapshot of 1,000 products peaks at about 230 MB with the defaults, 4,000 and 4 MiB,
	// and 80 MB higher with 20,000 rows. What one poll brings beyond MaxBytes makes several blocks; a block of one record
	// may be larger.
	MaxRows  int
	MaxBytes int
	// Linger is how long the first record of a block waits for more. Shorter shows records sooner and makes more,
	// smaller parts, which ClickHouse must merge. Default 1 s.
	Linger time.Duration
	// Drain bounds the last insert of a stop. What it does not reach is loaded by the next owner. Default 3 s.
	Drain time.Duration
}

func (c LoadConfig) withDefaults() LoadConfig {
	c.Lease = c.Lease.withDefaults()
	if c.MaxRows == 0 {
		c.MaxRows = 4_000
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 4 << 20
	}
	if c.Linger == 0 {
		c.Linger = time.Second
	}
	if c.Drain == 0 {
		c.Drain = 3 * time.Second
	}
	return c
}

// LoadReader reads explicit partitions of one topic.
type LoadReader interface {
	// Add begins to read a partition at an offset, Remove ends it: no record of it is returned afterwards.
	Add(partition int32, offset int64)
	Remove(partition int32)
	// Poll returns what has come, at most n records, and waits while nothing has.
	Poll(ctx context.Context, n int) ([]event.Record, error)
	Close()
}

// LoadTopic is a topic that is loaded.
type LoadTopic struct {
	// Kind is its name as in package event, which decides its table.
	Kind string
	// Name is its full name.
	Name       string
	Partitions int32
	// Open makes a reader of the topic. It is called again after the reader has failed: a reader may never notice that
	// its topic was deleted and made anew.
	Open func() (LoadReader, error)
}

// Load copies topics into tables. It inserts blocks of records and then saves the positions after them, so that a
// record may come again after a crash but never stays away; the rows know their records, and a record that comes again
// is the same row.
//
// One lease stands for each partition of each topic, numbered through all topics in the order in which they are given:
// a topic that is added later goes to the end, and the partition count of none ever changes.
type Load struct {
	cfg    LoadConfig
	keeper leaseKeeper
	tables loadTables
	topics []*loadTopic
	log    *slog.Logger

	migrating atomic.Pointer[string]

	// Rows, Malformed, Inserts and Retries count since the start: rows that were acknowledged, those of them that no
	// table could take, inserts that were acknowledged, and inserts that were not.
	Rows, Malformed, Inserts, Retries atomic.Int64

	// Step is called when a row is acknowledged of a push that a shop took, with the time since its settlement; nil is
	// fine. A row that is inserted again after a crash is measured again. It must be set before Run.
	Step func(step string, d time.Duration)
}

// StepSettledToClickHouse follows the last of [PushSteps]: until a settled push can be queried.
const StepSettledToClickHouse = "settled_to_clickhouse"

// NewLoad returns a stage that does nothing until Run.
func NewLoad(cfg LoadConfig, topics []LoadTopic, leases leaseStore, positions loadPositions, broker loadTopics,
	tables loadTables, log *slog.Logger,
) *Load {
	l := &Load{cfg: cfg.withDefaults(), tables: tables, log: log.With("stage", "load")}
	var first int32
	for _, t := range topics {
		l.topics = append(l.topics, &loadTopic{
			LoadTopic: t, load: l, first: first, broker: broker, positions: positions, leases: leases,
			log:  l.log.With("topic", t.Name),
			held: make(chan []heldLease, 1),
			open: map[int32]*loadPartition{},
		})
		first += t.Partitions
	}
	l.keeper = leaseKeeper{store: leases, stage: work.StageLoad, partitions: first, cfg: l.cfg.Lease, log: l.log}
	return l
}

// Run loads until ctx ends, then inserts what it has gathered and gives its leases back. Services that are away are
// waited for.
func (l *Load) Run(ctx context.Context) error {
	if !l.migrate(ctx) {
		return nil
	}
	held := make(chan []heldLease)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.keeper.run(ctx, held) })
	g.Go(func() error { return l.distribute(ctx, held) })
	for _, t := range l.topics {
		g.Go(func() error { return t.run(ctx) })
	}
	err := g.Wait()
	l.keeper.release(context.WithoutCancel(ctx))
	return err
}

// migrate reports whether the tables stand; false when ctx ended before.
func (l *Load) migrate(ctx context.Context) bool {
	defer l.migrating.Store(nil)
	for pause := loadFirstPause; ; pause = loadNextPause(pause) {
		err := l.tables.Migrate(ctx)
		if err == nil {
			return true
		}
		reason := err.Error()
		if ctx.Err() == nil && l.migrating.Swap(&reason) == nil {
			l.log.WarnContext(ctx, "waiting for the tables", "error", err)
		}
		if !sleep(ctx, pause) {
			return false
		}
	}
}

// distribute hands each topic its own leases. A topic that is busy finds the newest ones when it looks.
func (l *Load) distribute(ctx context.Context, held <-chan []heldLease) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case all := <-held:
			for _, t := range l.topics {
				mine := []heldLease{}
				for _, h := range all {
					if p := h.Partition - t.first; p >= 0 && p < t.Partitions {
						mine = append(mine, h)
					}
				}
				select {
				case <-t.held: // older than these
				default:
				}
				t.held <- mine
			}
		}
	}
}

// Waiting says why loading stands still, by topic; topics that go on are absent. The key of what concerns all of them
// is empty.
func (l *Load) Waiting() map[string]string {
	m := map[string]string{}
	if r := l.migrating.Load(); r != nil {
		m[""] = *r
	}
	for _, t := range l.topics {
		if r := t.waiting.Load(); r != nil {
			m[t.Name] = *r
		}
	}
	return m
}

// The pauses between attempts at a service that is away: long enough that it is not hammered while it starts, short
// enough that nobody waits for us once it is back.
const (
	loadFirstPause = 250 * time.Millisecond
	loadLastPause  = 5 * time.Second
)

func loadNextPause(d time.Duration) time.Duration { return min(2*d, loadLastPause) }
