package kafka

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// What a fetch brings is unpacked at once, and is several times as large then. A stage that reads a backlog must not hold
// more of it in memory than it will soon use.
func TestAReaderHoldsLittleOfABacklog(t *testing.T) {
	const partitions, rows, size = 8, 4000, 2048 // 64 MB
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	require.NoError(t, err)
	t.Cleanup(fake.Close)
	c, err := New(Config{Brokers: fake.ListenAddrs(), Partitions: partitions})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	require.NoError(t, c.EnsureTopics(t.Context()))
	topic := c.Topic(event.Changes)
	p, err := c.OpenProducer(t.Context(), "test")
	require.NoError(t, err)
	t.Cleanup(p.Close)
	rng := rand.New(rand.NewPCG(1, 2))
	require.NoError(t, p.Begin())
	for i := range partitions * rows {
		value := bytes.Repeat(fmt.Appendf(nil, "%016x", rng.Uint64()), 4) // packs to a third
		for len(value) < size {
			value = append(value, value[:64]...)
			value = fmt.Appendf(value, "%064x", rng.Uint64())
		}
		require.NoError(t, p.Produce(event.Record{Topic: topic, Partition: int32(i % partitions), Value: value}))
	}
	large := make([]byte, 6<<20) // more than a fetch is asked for, and does not pack
	for i := range large {
		large[i] = byte(rng.Uint32())
	}
	require.NoError(t, p.Produce(event.Record{Topic: topic, Partition: 3, Value: large}))
	require.NoError(t, p.Commit(t.Context()))

	r, err := c.NewReader(topic)
	require.NoError(t, err)
	t.Cleanup(r.Close)
	for part := range int32(partitions) {
		r.Add(part, 0)
	}
	seen, most := 0, int64(0)
	for seen < partitions*rows+1 {
		recs, err := r.Poll(t.Context(), 1000)
		require.NoError(t, err)
		seen += len(recs)
		most = max(most, r.cl.BufferedFetchBytes())
	}
	require.Equal(t, partitions*rows+1, seen)
	require.LessOrEqual(t, most, int64(24<<20))
}
