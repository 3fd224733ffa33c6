package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// Scan reads the committed records of one partition with offsets in [from, to) in order and gives each to keep, until
// keep returns false. Records are valid during the call only. It returns the offset at which it stopped: to, or the
// offset after the last record that keep has seen. It waits for transactions that are open below to. A range that
// retention has cut gives a [*RangeError].
func (c *Cluster) Scan(ctx context.Context, topic string, partition int32, from, to int64, keep func(event.Record) bool) (int64, error) {
	at, leader := from, int32(-1)
	var id [16]byte
	for at < to {
		if leader < 0 {
			var err error
			if leader, id, err = c.leader(ctx, topic, partition); err != nil {
				return at, fmt.Errorf("scan %s/%d at %d: %w", topic, partition, at, err)
			}
		}
		part, err := c.fetch(ctx, leader, topic, id, partition, at)
		switch {
		case errors.Is(err, kerr.OffsetOutOfRange):
			return at, c.rangeError(ctx, topic, partition, at)
		case kerr.IsRetriable(err), kgo.IsRetryableBrokerErr(err):
			leader = -1 // it moved or went away; metadata says where to
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return at, err
			}
			continue
		case err != nil:
			return at, fmt.Errorf("scan %s/%d at %d: %w", topic, partition, at, err)
		}
		// ProcessFetchPartition moves past markers, aborted records and gaps, none of which it returns.
		fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
			Offset: at, IsolationLevel: kgo.ReadCommitted(), Topic: topic, Partition: partition,
		}, part, kgo.DefaultDecompressor(), nil)
		if fp.Err != nil {
			return at, fmt.Errorf("scan %s/%d at %d: %w", topic, partition, at, fp.Err)
		}
		for _, r := range fp.Records {
			if r.Offset >= to {
				return to, nil
			}
			if !keep(incoming(r)) {
				return r.Offset + 1, nil
			}
		}
		if next <= at && part.LastStableOffset >= to {
			return to, nil // nothing is left below to: the rest was compacted away
		}
		at = max(at, next)
	}
	return to, nil
}

// fetch asks the leader of a partition for records from an offset on, and waits up to half a second for some.
func (c *Cluster) fetch(ctx context.Context, leader int32, topic string, id [16]byte, partition int32, at int64) (*kmsg.FetchResponseTopicPartition, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis = 500
	req.MinBytes = 1
	req.MaxBytes = 16 << 20
	req.IsolationLevel = 1
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = partition, at, 16<<20
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = topic, id
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, c.cl.Broker(int(leader)))
	if err != nil {
		return nil, err
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, fmt.Errorf("the broker answered %d topics to a fetch of one partition", len(resp.Topics))
	}
	part := &resp.Topics[0].Partitions[0]
	return part, kerr.ErrorForCode(part.ErrorCode)
}

func (c *Cluster) leader(ctx context.Context, topic string, partition int32) (int32, [16]byte, error) {
	for {
		md, err := c.adm.Metadata(ctx, topic)
		if err != nil {
			return -1, [16]byte{}, err
		}
		t := md.Topics[topic]
		if t.Err != nil && (!kerr.IsRetriable(t.Err) || errors.Is(t.Err, kerr.UnknownTopicOrPartition)) {
			return -1, [16]byte{}, t.Err
		}
		p, ok := t.Partitions[partition]
		if t.Err == nil && !ok {
			return -1, [16]byte{}, fmt.Errorf("the topic has %d partitions", len(t.Partitions))
		}
		if t.Err == nil && p.Err == nil && p.Leader >= 0 {
			return p.Leader, t.ID, nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return -1, [16]byte{}, err
		}
	}
}

// ReadPosition returns the last committed position of a writer, read to the high watermark of its partition; false
// when it has written none. Call it after [Cluster.OpenProducer]: before, a predecessor could still commit another. It
// waits for transactions that are open.
func (c *Cluster) ReadPosition(ctx context.Context, partition int32, writer string) (event.Position, bool, error) {
	return c.readPosition(ctx, partition, writer, c.adm.ListEndOffsets)
}

// LastPosition is the last position of a writer that can be read without waiting: what stands behind the beginning of a
// transaction that is still open, perhaps that of a process that was killed, is not seen.
func (c *Cluster) LastPosition(ctx context.Context, partition int32, writer string) (event.Position, bool, error) {
	return c.readPosition(ctx, partition, writer, c.adm.ListCommittedOffsets)
}

func (c *Cluster) readPosition(
	ctx context.Context, partition int32, writer string, list func(context.Context, ...string) (kadm.ListedOffsets, error),
) (event.Position, bool, error) {
	var pos event.Position
	topic := c.Topic(event.Positions)
	starts, err := c.adm.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return pos, false, fmt.Errorf("read the position of %s: %w", writer, err)
	}
	ends, err := list(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return pos, false, fmt.Errorf("read the position of %s: %w", writer, err)
	}
	first, _ := starts.Lookup(topic, partition)
	end, ok := ends.Lookup(topic, partition)
	if !ok {
		return pos, false, fmt.Errorf("read the position of %s: %s has no partition %d", writer, topic, partition)
	}
	// The last one stands near the end. Going back in growing steps spares reading what compaction has left.
	for back := int64(64); ; back *= 16 {
		from := max(first.Offset, end.Offset-back)
		var raw []byte
		_, err := c.Scan(ctx, topic, partition, from, end.Offset, func(r event.Record) bool {
			if string(r.Key) == writer {
				raw = append(raw[:0], r.Value...)
			}
			return true
		})
		if err != nil {
			return pos, false, fmt.Errorf("read the position of %s: %w", writer, err)
		}
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &pos); err != nil {
				return pos, false, fmt.Errorf("read the position of %s: decode %q: %w", writer, raw, err)
			}
			return pos, true, nil
		}
		if from <= first.Offset {
			return pos, false, nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
