package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"

	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
	source "github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// contender is a capture that could as well be a process: it reaches the source through a proxy of its own, and can be
// killed without a goodbye, or frozen and woken up.
type contender struct {
	trial   *trial
	name    string
	proxy   *proxy
	topics  *kafkatopics.Cluster
	capture *pipeline.Capture
	spilled *atomic.Int64
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // of Run; valid once done is closed
	dead    atomic.Bool

	mu     sync.Mutex
	awake  chan struct{} // closed while it runs
	frozen bool
}

// habits are the settings of one start. They differ from start to start: nothing may depend on them.
type habits struct {
	Rows, TxRows, Chunk, Readers int
	Every                        time.Duration
	Memory                       string // of decoding
	Spill                        int64
}

// senderTimeout is after how long a silence the server takes the slot away from a contender.
const senderTimeout = 1500 * time.Millisecond

var errKilled = errors.New("killed")

// enter starts a contender.
func (tr *trial) enter(h habits) *contender {
	t := tr.t
	t.Helper()
	tr.contenders++
	c := &contender{
		trial: tr, name: fmt.Sprint("c", tr.contenders), proxy: newProxy(t, tr.server.addr()), done: make(chan struct{}), awake: make(chan struct{}),
	}
	close(c.awake)
	var err error
	c.topics, err = kafkatopics.New(kafkatopics.Config{Brokers: tr.broker.addrs, Partitions: trialPartitions})
	require.NoError(t, err)
	through, err := url.Parse(tr.server.url(tr.database))
	require.NoError(t, err)
	through.Host = c.proxy.addr()
	log := slog.New(slog.NewTextHandler(&tr.log, nil)).With("contender", c.name)
	src, err := source.Open(t.Context(), source.Config{
		URL: through.String(), Slot: tr.slot(), MessagePrefix: pipeline.MessagePrefix, SenderTimeout: senderTimeout, SpillDir: tr.server.dir,
		DecodingMemory: h.Memory, SpillLimit: h.Spill, Logger: log,
	})
	require.NoError(t, err)
	c.spilled = &src.SpillStats().Transactions
	cfg := pipeline.CaptureConfig{
		Routes: trialRoutes, TxEvery: h.Every, IdleEvery: 50 * time.Millisecond, SnapshotRate: -1, BatchRows: h.Rows, TxRows: h.TxRows,
		SnapshotChunk: h.Chunk, SnapshotReaders: h.Readers, HealMost: -1, Heartbeat: 300 * time.Millisecond,
	}
	c.capture = pipeline.NewCapture(cfg, pipeline.CaptureParts{
		Source: src,
		Open: func(ctx context.Context) (pipeline.CaptureStream, error) {
			if err := src.EnsurePublication(ctx, pipeline.PublishedTables(cfg)); err != nil {
				return nil, err
			}
			return src.Stream(ctx, 0)
		},
		Fence: func(ctx context.Context) (pipeline.CaptureProducer, error) {
			if err := c.step("fence"); err != nil {
				return nil, err
			}
			p, err := c.topics.OpenProducer(ctx, "capture/"+tr.slot())
			if err != nil {
				return nil, err
			}
			return &contenderProducer{p, c}, nil
		},
		Position: func(ctx context.Context, writer string) (event.Position, bool, error) {
			if err := c.step("position"); err != nil {
				return event.Position{}, false, err
			}
			return c.topics.ReadPosition(ctx, kafkatopics.CapturePartition, writer)
		},
		Touch:  func(context.Context, bool) (int64, error) { return 1, c.step("touch") },
		Logger: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	go func() {
		c.err = c.capture.Run(ctx)
		src.Close()
		c.topics.Close()
		close(c.done)
	}()
	return c
}

// step is a point at which a contender can be dead, asleep or unlucky.
func (c *contender) step(call string) error {
	c.mu.Lock()
	awake := c.awake
	c.mu.Unlock()
	<-awake
	if c.dead.Load() {
		return errKilled
	}
	return c.trial.misfortune(call)
}

// kill ends a contender as SIGKILL does: its connections break, and what it has not sent is never sent.
func (c *contender) kill() {
	c.dead.Store(true)
	c.proxy.sever()
	c.thaw()
	c.cancel()
	<-c.done
}

// stop ends it as SIGTERM does.
func (c *contender) stop() {
	c.thaw()
	c.cancel()
	<-c.done
	c.proxy.sever()
}

func (c *contender) freeze() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.frozen {
		c.frozen, c.awake = true, make(chan struct{})
		c.proxy.cut()
	}
}

func (c *contender) thaw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen {
		c.frozen = false
		close(c.awake)
		c.proxy.mend()
	}
}

// contenderProducer has its steps before and after what it is asked to do.
type contenderProducer struct {
	pipeline.CaptureProducer
	c *contender
}

func (p *contenderProducer) Begin() error {
	if err := p.c.step("begin"); err != nil {
		return err
	}
	return p.CaptureProducer.Begin()
}

func (p *contenderProducer) ProduceMarked(group int64, records ...event.Record) error {
	if err := p.c.step("produce"); err != nil {
		return err
	}
	return p.CaptureProducer.ProduceMarked(group, records...)
}

func (p *contenderProducer) Flush(ctx context.Context) error {
	if err := p.c.step("flush"); err != nil {
		return err
	}
	return p.CaptureProducer.Flush(ctx)
}

func (p *contenderProducer) Commit(ctx context.Context) error {
	if err := p.c.step("before commit"); err != nil {
		return err
	}
	if err := p.CaptureProducer.Commit(ctx); err != nil {
		return err
	}
	return p.c.step("after commit")
}

// Abort of a killed contender leaves the transaction open.
func (p *contenderProducer) Abort(ctx context.Context) error {
	if p.c.dead.Load() {
		return nil
	}
	return p.CaptureProducer.Abort(ctx)
}

// safeLog is written by many.
type safeLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
