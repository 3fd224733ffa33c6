package kafka_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// connect returns our view of a broker, kfake or a real one, with topics created: for what both must do alike.
func connect(t *testing.T) *kafka.Cluster {
	t.Helper()
	b := embeddedtest.Kafka(t)
	return connectTo(t, b, b.Prefix())
}

func connectTo(t *testing.T, b *embeddedtest.Broker, prefix string) *kafka.Cluster {
	t.Helper()
	c, err := kafka.New(kafka.Config{Brokers: []string{b.Addr()}, Prefix: prefix})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	require.NoError(t, c.EnsureTopics(t.Context()))
	return c
}

// open starts kfake and returns it with our view of it, topics created: for tests that have it fail, or look into it.
func open(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, *kafka.Cluster) {
	t.Helper()
	fake, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(fake.Close)
	c := access(t, fake, kafka.Config{})
	require.NoError(t, c.EnsureTopics(t.Context()))
	return fake, c
}

func access(t *testing.T, fake *kfake.Cluster, cfg kafka.Config) *kafka.Cluster {
	t.Helper()
	cfg.Brokers = fake.ListenAddrs()
	c, err := kafka.New(cfg)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func producer(t *testing.T, c *kafka.Cluster, id string) *kafka.Producer {
	t.Helper()
	p, err := c.OpenProducer(t.Context(), id)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

func record(topic, key, value string) event.Record {
	return event.Record{Topic: topic, Partition: -1, Key: []byte(key), Value: []byte(value)}
}

func position(c *kafka.Cluster, n int64) event.Record {
	raw, _ := json.Marshal(event.Position{Writer: "capture/s", Number: n})
	return event.Record{Topic: c.Topic(event.Positions), Partition: kafka.CapturePartition, Key: []byte("capture/s"), Value: raw}
}

// values reads all committed values of a topic, partition by partition.
func values(t *testing.T, c *kafka.Cluster, topic string) []string {
	t.Helper()
	require.NoError(t, embeddedtest.Settle(t.Context(), topic))
	starts, err := c.StartOffsets(t.Context(), topic)
	require.NoError(t, err)
	ends, err := c.EndOffsets(t.Context(), topic)
	require.NoError(t, err)
	var got []string
	for p := range int32(len(ends)) {
		_, err := c.Scan(t.Context(), topic, p, starts[p], ends[p], func(r event.Record) bool {
			got = append(got, string(r.Value))
			return true
		})
		require.NoError(t, err)
	}
	return got
}

func TestTopicsAreCreatedOnceAndNeverWidened(t *testing.T) {
	fake, c := open(t)
	require.NoError(t, c.EnsureTopics(t.Context()), "a second time changes nothing")
	require.Len(t, fake.PartitionInfos("catalog.changes"), 8)
	require.Len(t, fake.PartitionInfos("catalog.batches"), 1)
	require.Len(t, fake.PartitionInfos("catalog.positions"), 8)

	wider := access(t, fake, kafka.Config{Partitions: 12})
	err := wider.EnsureTopics(t.Context())
	var te *kafka.TopicError
	require.ErrorAs(t, err, &te)
	require.Equal(t, "catalog.changes", te.Topic)
	require.ErrorContains(t, err, "set kafka.partitions to 8")
	require.Len(t, fake.PartitionInfos("catalog.changes"), 8)
}

func TestTransactionsAreReadWholeOrNotAtAll(t *testing.T) {
	c := connect(t)
	topic := c.Topic(event.Changes)
	p := producer(t, c, "capture")

	require.NoError(t, p.Begin())
	list := []event.Record{{Topic: topic, Partition: 3, Key: []byte("k"), Value: []byte("one"), Headers: []event.Header{{Key: "h", Value: []byte("one")}}}}
	require.NoError(t, p.ProduceMarked(1, list...))
	clear(list[0].Headers) // the bytes are the producer's until the commit, the lists are not
	clear(list)
	require.NoError(t, p.ProduceMarked(1, event.Record{Topic: topic, Partition: 3, Value: nil}))
	require.NoError(t, p.ProduceMarked(2, event.Record{Topic: topic, Partition: 3, Value: []byte{}}))
	require.NoError(t, p.Produce(event.Record{Topic: topic, Partition: 5, Value: []byte("five")}))
	require.NoError(t, p.Flush(t.Context()))
	require.Equal(t, map[int32]int64{3: 1}, p.Offsets(1, topic))
	require.Equal(t, map[int32]int64{3: 2}, p.Offsets(2, topic))
	ends, err := c.EndOffsets(t.Context(), topic)
	require.NoError(t, err)
	require.Zero(t, ends[3], "nothing is committed yet")
	require.NoError(t, p.Commit(t.Context()))

	require.NoError(t, p.Begin())
	require.NoError(t, p.Produce(event.Record{Topic: topic, Partition: 3, Value: []byte("dropped")}))
	require.NoError(t, p.Flush(t.Context()))
	require.NoError(t, p.Abort(t.Context()))

	r, err := c.NewReader(topic)
	require.NoError(t, err)
	t.Cleanup(r.Close)
	r.Add(3, 0)
	var got []event.Record
	for len(got) < 3 {
		recs, err := r.Poll(t.Context(), 2)
		require.NoError(t, err)
		got = append(got, recs...)
	}
	require.Equal(t, "one", string(got[0].Value))
	h, ok := got[0].Header("h")
	require.True(t, ok)
	require.Equal(t, "one", h)
	require.Nil(t, got[1].Value, "a tombstone")
	require.NotNil(t, got[2].Value, "an empty value is none")
	require.Equal(t, []string{"one", "", "", "five"}, values(t, c, topic))
}

func TestReaderFollowsItsPartitions(t *testing.T) {
	c := connect(t)
	topic := c.Topic(event.Changes)
	p := producer(t, c, "capture")
	for i := range 50 {
		require.NoError(t, p.Begin())
		for part := range int32(2) {
			require.NoError(t, p.Produce(event.Record{Topic: topic, Partition: part, Value: fmt.Appendf(nil, "%d", i)}))
		}
		require.NoError(t, p.Commit(t.Context()))
	}
	r, err := c.NewReader(topic)
	require.NoError(t, err)
	t.Cleanup(r.Close)

	read := func(part int32, n int) []string {
		var got []string
		for len(got) < n {
			recs, err := r.Poll(t.Context(), 7)
			require.NoError(t, err)
			for _, rec := range recs {
				require.Equal(t, part, rec.Partition)
				got = append(got, string(rec.Value))
			}
		}
		return got
	}
	r.Add(0, 0)
	require.Equal(t, "0", read(0, 7)[0])
	// What was fetched ahead must not leak into the second reading of the same partition.
	for range 5 {
		r.Remove(0)
		r.Add(0, 4) // the third record: each transaction takes two offsets
		got := read(0, 14)
		require.Equal(t, []string{"2", "3", "4"}, got[:3])
	}
	r.Remove(0)
	r.Add(1, 0)
	require.Equal(t, "0", read(1, 7)[0])

	// An Add wakes a poll that waits on nothing.
	r.Remove(1)
	done := make(chan string)
	go func() {
		recs, err := r.Poll(t.Context(), 1)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- string(recs[0].Value)
	}()
	r.Add(1, 96)
	require.Equal(t, "48", <-done)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Remove(1)
	_, err = r.Poll(ctx, 1)
	require.ErrorIs(t, err, context.Canceled)
}

func TestARemovedOffsetIsAnErrorThatNamesTheGap(t *testing.T) {
	fake, c := open(t)
	topic := c.Topic(event.Changes)
	p := producer(t, c, "capture")
	require.NoError(t, p.Begin())
	for i := range 10 {
		require.NoError(t, p.Produce(event.Record{Topic: topic, Partition: 0, Value: fmt.Appendf(nil, "%d", i)}))
		require.NoError(t, p.Produce(event.Record{Topic: topic, Partition: 1, Value: fmt.Appendf(nil, "%d", i)}))
	}
	require.NoError(t, p.Commit(t.Context()))
	require.NoError(t, fake.DeleteRecords(topic, 0, 6))

	r, err := c.NewReader(topic)
	require.NoError(t, err)
	t.Cleanup(r.Close)
	r.Add(0, 2)
	r.Add(1, 0)
	var re *kafka.RangeError
	seen := 0
	for re == nil || seen < 10 {
		recs, err := r.Poll(t.Context(), 0)
		if err != nil {
			require.ErrorAs(t, err, &re)
			continue
		}
		for _, rec := range recs {
			require.EqualValues(t, 1, rec.Partition, "the other partition goes on")
		}
		seen += len(recs)
	}
	require.Equal(t, &kafka.RangeError{Topic: topic, Partition: 0, Offset: 2, Start: 6, End: 11}, re)
	require.ErrorContains(t, re, "4 offsets are lost")

	_, err = c.Scan(t.Context(), topic, 0, 2, 8, func(event.Record) bool { return true })
	require.ErrorAs(t, err, &re)
}

// The failing schedule: a predecessor that was stopped in the middle of a transaction wakes up and commits.
func TestAPredecessorIsFencedBeforeThePositionIsRead(t *testing.T) {
	for _, v := range []struct {
		name string
		max  *kversion.Versions
	}{{"KIP-890", nil}, {"before KIP-890", kversion.V3_6_0()}} {
		t.Run(v.name, func(t *testing.T) {
			var c *kafka.Cluster
			if v.max == nil {
				c = connect(t)
			} else {
				_, c = open(t, kfake.MaxVersions(v.max))
			}
			topic := c.Topic(event.Changes)
			old := producer(t, c, "capture/s")
			require.NoError(t, old.Begin())
			require.NoError(t, old.Produce(record(topic, "a", "1"), position(c, 1)))
			require.NoError(t, old.Commit(t.Context()))
			require.NoError(t, old.Begin())
			require.NoError(t, old.Produce(record(topic, "a", "2"), position(c, 2)))
			require.NoError(t, old.Flush(t.Context()))

			fresh := producer(t, c, "capture/s")
			pos, ok, err := c.ReadPosition(t.Context(), kafka.CapturePartition, "capture/s")
			require.NoError(t, err)
			require.True(t, ok)
			require.EqualValues(t, 1, pos.Number)

			err = old.Commit(t.Context())
			require.ErrorIs(t, err, kafka.ErrFenced)
			require.Error(t, old.Begin(), "and it stays out")

			require.NoError(t, fresh.Begin())
			require.NoError(t, fresh.Produce(record(topic, "a", "2 again"), position(c, 2)))
			require.NoError(t, fresh.Commit(t.Context()))
			require.Equal(t, []string{"1", "2 again"}, values(t, c, topic))
		})
	}
}

func TestAPredecessorBetweenTransactionsIsFenced(t *testing.T) {
	c := connect(t)
	topic := c.Topic(event.Changes)
	old := producer(t, c, "capture/s")
	require.NoError(t, old.Begin())
	require.NoError(t, old.Produce(record(topic, "a", "1")))
	require.NoError(t, old.Commit(t.Context()))

	producer(t, c, "capture/s")
	require.NoError(t, old.Begin())
	require.NoError(t, old.Produce(record(topic, "a", "2")))
	require.ErrorIs(t, old.Commit(t.Context()), kafka.ErrFenced)
	require.Equal(t, []string{"1"}, values(t, c, topic))
}

// A broker that has just started answers clients before it may have a replica.
func TestTopicsWaitForTheAdmissionOfABroker(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	require.NoError(t, err)
	t.Cleanup(fake.Close)
	refusals := 0
	fake.ControlKey(kmsg.CreateTopics.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		if refusals++; refusals > 2 {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, asked := range req.(*kmsg.CreateTopicsRequest).Topics {
			answer := kmsg.NewCreateTopicsResponseTopic()
			answer.Topic, answer.ErrorCode = asked.Topic, kerr.InvalidReplicationFactor.Code
			resp.Topics = append(resp.Topics, answer)
		}
		return resp, nil, true
	})
	require.NoError(t, access(t, fake, kafka.Config{}).EnsureTopics(t.Context()))
	require.Greater(t, refusals, 2)
}

// A broker that was asked for a topic just after it was made may not have heard of it yet, or of its leader.
func TestTopicsWaitUntilTheirBrokerKnowsThem(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	require.NoError(t, err)
	t.Cleanup(fake.Close)
	asked := 0
	fake.ControlKey(kmsg.Metadata.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		topics := req.(*kmsg.MetadataRequest).Topics
		if asked++; len(topics) == 0 || asked > 4 {
			return nil, nil, false
		}
		for _, topic := range topics {
			answer := kmsg.NewMetadataResponseTopic()
			answer.Topic, answer.ErrorCode = topic.Topic, kerr.UnknownTopicOrPartition.Code
			if asked > 2 {
				partition := kmsg.NewMetadataResponseTopicPartition()
				partition.ErrorCode = kerr.LeaderNotAvailable.Code
				answer.ErrorCode, answer.Partitions = 0, append(answer.Partitions, partition)
			}
			resp.Topics = append(resp.Topics, answer)
		}
		return resp, nil, true
	})
	require.NoError(t, access(t, fake, kafka.Config{}).EnsureTopics(t.Context()))
	require.Greater(t, asked, 4)
}

// Two deployments on one cluster, each with its own topics, leave each other alone.
func TestProducersOfOtherTopicsAreNotFenced(t *testing.T) {
	b := embeddedtest.Kafka(t)
	c := connectTo(t, b, b.Prefix())
	mine := producer(t, c, "relay")
	require.NoError(t, mine.Begin())
	require.NoError(t, mine.Produce(record(c.Topic(event.Changes), "a", "1")))
	producer(t, connectTo(t, b, b.Prefix()+"staging."), "relay")
	require.NoError(t, mine.Commit(t.Context()))
}

// The failing schedule: the broker commits, and the connection breaks before the answer. Whatever the client makes of
// it, the next producer finds in the topic what is true.
func TestALostCommitAnswerIsSettledByTheTopic(t *testing.T) {
	for _, v := range []struct {
		name string
		max  *kversion.Versions
	}{{"KIP-890", nil}, {"before KIP-890", kversion.V3_6_0()}} {
		t.Run(v.name, func(t *testing.T) {
			var left atomic.Int32
			opts := []kfake.Opt{kfake.ListenFn(func(network, address string) (net.Listener, error) {
				l, err := (&net.ListenConfig{}).Listen(context.Background(), network, address)
				return lossy{Listener: l, key: kmsg.EndTxn.Int16(), left: &left}, err
			})}
			if v.max != nil {
				opts = append(opts, kfake.MaxVersions(v.max))
			}
			_, c := open(t, opts...)
			topic := c.Topic(event.Changes)
			var want []string
			for i := range 4 {
				p := producer(t, c, "capture/s")
				before, _, err := c.ReadPosition(t.Context(), kafka.CapturePartition, "capture/s")
				require.NoError(t, err)
				require.EqualValues(t, i, before.Number)

				require.NoError(t, p.Begin())
				require.NoError(t, p.Produce(record(topic, "a", fmt.Sprint(i)), position(c, int64(i+1))))
				left.Store(1)
				err = p.Commit(t.Context())
				t.Logf("the client says: %v", err)
				require.LessOrEqual(t, left.Load(), int32(0), "the answer was lost")
				p.Close()
				want = append(want, fmt.Sprint(i))
				require.Equal(t, want, values(t, c, topic))
			}
		})
	}
}

func TestADuplicatedProduceIsWrittenOnce(t *testing.T) {
	fake, c := open(t)
	topic := c.Topic(event.Changes)
	p := producer(t, c, "capture/s")
	for i := range 20 {
		fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut})
		require.NoError(t, p.Begin())
		require.NoError(t, p.Produce(record(topic, "a", fmt.Sprint(i))))
		require.NoError(t, p.Commit(t.Context()))
	}
	require.Len(t, values(t, c, topic), 20)
}

func TestARecordThatCannotBeWrittenEndsTheTransaction(t *testing.T) {
	c := connect(t)
	topic := c.Topic(event.Changes)
	p := producer(t, c, "capture/s")
	require.NoError(t, p.Begin())
	_ = p.Produce(record(topic, "a", "1"), record(topic, "b", strings.Repeat("x", 9<<20)))
	require.ErrorIs(t, p.Commit(t.Context()), kerr.MessageTooLarge)
	require.Error(t, p.Begin())
	p.Close()
	producer(t, c, "capture/s")
	require.Empty(t, values(t, c, topic))
}

func TestOffsetsAreCopiedForLagTools(t *testing.T) {
	fake, c := open(t)
	require.NoError(t, c.CopyOffsets(t.Context(), "shelfwire-push", c.Topic(event.Changes), map[int32]int64{0: 5, 3: 9}))
	commits := fake.GroupInfo("shelfwire-push").Commits["catalog.changes"]
	require.EqualValues(t, 5, commits[0].Offset)
	require.EqualValues(t, 9, commits[3].Offset)
}

// Producers of other languages place keys by murmur2; so must we, or a product would stand in two partitions.
func TestPartitionEqualsTheDefaultPartitioner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "key")
		n := rapid.IntRange(1, 64).Draw(t, "partitions")
		want := kgo.StickyKeyPartitioner(nil).ForTopic("t").Partition(&kgo.Record{Key: key}, n)
		require.EqualValues(t, want, change.Partition(change.ProductID(key), int32(n)))
	})
}

// A process that stops must not wait for a broker that is away for as long as the broker would keep the transaction.
func TestAStopDoesNotWaitForABrokerThatIsAway(t *testing.T) {
	for _, end := range []struct {
		name string
		call func(*kafka.Producer, context.Context) error
	}{{"commit", (*kafka.Producer).Commit}, {"abort", (*kafka.Producer).Abort}} {
		t.Run(end.name, func(t *testing.T) {
			fake, c := open(t)
			p := producer(t, c, "capture/s")
			require.NoError(t, p.Begin())
			require.NoError(t, p.Produce(record(c.Topic(event.Changes), "a", "1")))
			require.NoError(t, p.Flush(t.Context()))
			// It takes requests and answers none.
			silent := make(chan struct{})
			t.Cleanup(func() { close(silent) })
			fake.ControlKey(kmsg.EndTxn.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
				fake.KeepControl()
				fake.SleepControl(func() { <-silent })
				return nil, nil, false
			})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			require.Error(t, end.call(p, ctx))
			require.Less(t, time.Since(began), 5*time.Second)
		})
	}
}

// Topics that somebody else has made must be able to hold what we write: a row that the topic refuses stops everything,
// and a position that retention removes costs a whole snapshot.
func TestTopicsOfOthersAreLookedAt(t *testing.T) {
	for _, c := range []struct{ topic, key, value string }{
		{event.Changes, "max.message.bytes", "1048588"},
		{event.Changes, "cleanup.policy", "compact"},
		{event.Positions, "cleanup.policy", "delete"},
		{event.Documents, "cleanup.policy", "compact,delete"},
	} {
		fake, ours := open(t)
		cl, err := kgo.NewClient(kgo.SeedBrokers(fake.ListenAddrs()...))
		require.NoError(t, err)
		defer cl.Close()
		resp, err := kadm.NewClient(cl).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: c.key, Value: &c.value}}, ours.Topic(c.topic))
		require.NoError(t, err)
		require.NoError(t, resp[0].Err)
		err = ours.EnsureTopics(t.Context())
		var trouble *kafka.TopicConfigError
		require.ErrorAs(t, err, &trouble, "%v", c)
		require.Equal(t, ours.Topic(c.topic), trouble.Topic)
		require.Equal(t, c.value, trouble.Have)
	}
}

func TestCompressionIsAsConfigured(t *testing.T) {
	fake, plain := open(t)
	topic := plain.Topic(event.Changes)
	for want, name := range map[uint8]string{0: "none", 1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"} {
		c := access(t, fake, kafka.Config{Compression: name})
		p := producer(t, c, name)
		require.NoError(t, p.Begin())
		require.NoError(t, p.Produce(event.Record{Topic: topic, Partition: int32(want), Value: bytes.Repeat([]byte("row "), 1000)}))
		require.NoError(t, p.Commit(t.Context()))
		cl, err := kgo.NewClient(kgo.SeedBrokers(fake.ListenAddrs()...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {int32(want): kgo.NewOffset().AtStart()}}))
		require.NoError(t, err)
		rec := cl.PollFetches(t.Context()).Records()[0]
		require.Equal(t, want, rec.Attrs.CompressionType(), name)
		require.Len(t, rec.Value, 4000)
		cl.Close()
	}
	_, err := kafka.New(kafka.Config{Brokers: []string{"b"}, Compression: "best"})
	require.ErrorContains(t, err, "want one of gzip, lz4, none, snappy, zstd")
}
