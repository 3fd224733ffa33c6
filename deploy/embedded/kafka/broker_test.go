package kafka_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/childtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
	"github.com/shelfwire/shelfwire/deploy/embedded/kafka"
)

func TestMain(m *testing.M) {
	childtest.Hook(func(dir string) (int, error) {
		p, err := kafka.StartProcess(context.Background(), kafka.Config{Dir: dir})
		if err != nil {
			return 0, err
		}
		return p.PID(), nil
	})
	embeddedtest.Main(m)
}

func client(t *testing.T, addr string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(addr))...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// ends are the end offsets of a topic, by partition.
func ends(t *testing.T, addr, topic string) map[int32]int64 {
	t.Helper()
	listed, err := kadm.NewClient(client(t, addr)).ListEndOffsets(t.Context(), topic)
	require.NoError(t, err)
	require.NoError(t, listed.Error())
	found := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { found[o.Partition] = o.Offset })
	return found
}

func TestTopicsSurviveAStop(t *testing.T) {
	dir := t.TempDir()
	c := kafka.Config{Dir: dir, Topics: map[string]int32{"three": 3, "one": 1}}
	b, err := kafka.Start(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, client(t, b.Addr()).ProduceSync(t.Context(), &kgo.Record{Topic: "one", Value: []byte("x")}).FirstErr())
	b.Close()
	b.Close()

	c.Topics["late"] = 1
	b, err = kafka.Start(t.Context(), c)
	require.NoError(t, err)
	defer b.Close()
	require.Len(t, ends(t, b.Addr(), "three"), 3)
	require.Equal(t, map[int32]int64{0: 1}, ends(t, b.Addr(), "one"))
	topics, err := kadm.NewClient(client(t, b.Addr())).ListTopics(t.Context())
	require.NoError(t, err)
	require.False(t, topics.Has("late"), "a later start takes the topics of the directory")
}

func TestTopicsAreNotCreatedByProducing(t *testing.T) {
	b := embeddedtest.Kafka(t)
	c := client(t, b.Addr(), kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(0))
	err := c.ProduceSync(t.Context(), &kgo.Record{Topic: "absent", Value: []byte("x")}).FirstErr()
	require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)
}

// A producer that outlives the crashes of its broker finds it again at its
// address, and everything that was acknowledged is there once.
func TestAcknowledgedRecordsSurviveKills(t *testing.T) {
	dir := t.TempDir()
	p, err := kafka.StartProcess(t.Context(), kafka.Config{Dir: dir, Topics: map[string]int32{"t": 1}})
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(p.Addr())
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	c := client(t, p.Addr(), kgo.DefaultProduceTopic("t"))
	const rounds, each = 4, 200
	for round := range rounds {
		acked := make(chan error, each)
		for i := range each {
			c.Produce(t.Context(), kgo.StringRecord(fmt.Sprintf("%d-%d", round, i)), func(_ *kgo.Record, err error) { acked <- err })
		}
		require.NoError(t, <-acked)
		require.NoError(t, syscall.Kill(p.PID(), syscall.SIGKILL)) // while the others are in flight
		<-p.Done()
		p, err = kafka.StartProcess(t.Context(), kafka.Config{Dir: dir, Port: n})
		require.NoError(t, err)
		for range each - 1 {
			require.NoError(t, <-acked)
		}
	}
	defer func() { require.NoError(t, p.Stop()) }()
	require.Equal(t, map[int32]int64{0: rounds * each}, ends(t, p.Addr(), "t"))
}

func TestSecondStartOnTheSameDirectory(t *testing.T) {
	dir := t.TempDir()
	b, err := kafka.Start(t.Context(), kafka.Config{Dir: dir})
	require.NoError(t, err)
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = kafka.Start(ctx, kafka.Config{Dir: dir})
	require.ErrorIs(t, err, host.ErrLocked)
	_, err = kafka.StartProcess(t.Context(), kafka.Config{Dir: dir})
	require.ErrorContains(t, err, "another one runs in "+dir)
}

func TestPortInUse(t *testing.T) {
	b := embeddedtest.Kafka(t)
	_, port, err := net.SplitHostPort(b.Addr())
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	_, err = kafka.StartProcess(t.Context(), kafka.Config{Dir: t.TempDir(), Port: n})
	require.ErrorContains(t, err, "address already in use")
}

func TestBrokerEndsWithAKilledParent(t *testing.T) {
	dir := t.TempDir()
	childtest.KillParent(t, dir)
	b, err := kafka.Start(t.Context(), kafka.Config{Dir: dir})
	require.NoError(t, err)
	b.Close()
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, kafka.Run(ctx, kafka.Config{Dir: t.TempDir()}, func(addr string) error {
		require.NotEmpty(t, addr)
		cancel()
		return nil
	}))
}
