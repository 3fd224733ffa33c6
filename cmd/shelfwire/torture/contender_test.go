package torture

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"

	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
	source "github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// contender is a capture that could as well be a process.
type contender struct {
	mortal
	trial   *trial
	topics  *kafkatopics.Cluster
	capture *pipeline.Capture
	spilled *atomic.Int64
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

// enter starts a contender.
func (tr *trial) enter(h habits) *contender {
	t := tr.t
	t.Helper()
	tr.contenders++
	c := &contender{trial: tr, mortal: mortal{name: fmt.Sprint("c", tr.contenders), proxy: newProxy(t, tr.server.addr()), fate: tr.misfortune}}
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
	c.start(c.capture.Run, func() {
		src.Close()
		c.topics.Close()
	})
	return c
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
