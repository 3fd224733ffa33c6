package kafka_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
	"github.com/shelfwire/shelfwire/deploy/embedded/kafka"
)

// crashing is a broker with one topic of two partitions that is killed again and again.
type crashing struct {
	*kafka.Process
	config kafka.Config
}

func newCrashing(t *testing.T) *crashing {
	t.Helper()
	port, err := host.FreePort(t.Context())
	require.NoError(t, err)
	c := &crashing{config: kafka.Config{Dir: t.TempDir(), Port: port, Topics: map[string]int32{"orders": 2}}}
	c.start(t)
	t.Cleanup(func() { c.Kill() })
	return c
}

func (c *crashing) start(t *testing.T) {
	t.Helper()
	var err error
	c.Process, err = kafka.StartProcess(t.Context(), c.config)
	require.NoError(t, err)
}

// producer opens a producer with the one transactional id of these tests, which fences the one before.
func (c *crashing) producer(t *testing.T) *kgo.Client {
	t.Helper()
	return client(t, c.Addr(), kgo.TransactionalID("writer"), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.TransactionTimeout(time.Minute))
}

// write adds one record to each partition in a transaction, and leaves that open.
func write(t *testing.T, p *kgo.Client, value string) {
	t.Helper()
	require.NoError(t, p.BeginTransaction())
	for part := range int32(2) {
		require.NoError(t, p.ProduceSync(t.Context(), &kgo.Record{Topic: "orders", Partition: part, Value: []byte(value)}).FirstErr())
	}
}

func commit(t *testing.T, p *kgo.Client) {
	t.Helper()
	require.NoError(t, p.EndTransaction(t.Context(), kgo.TryCommit))
}

// visible is what a reader of committed records sees of a partition, from its beginning up to a record that is written
// for the purpose.
func (c *crashing) visible(t *testing.T, part int32) []string {
	t.Helper()
	end := client(t, c.Addr(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, end.ProduceSync(t.Context(), &kgo.Record{Topic: "orders", Partition: part, Value: []byte("end")}).FirstErr())
	r := client(t, c.Addr(), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
		"orders": {part: kgo.NewOffset().AtStart()},
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var seen []string
	last := ends(t, c.Addr(), "orders")[part] - 1
	for {
		f := r.PollFetches(ctx)
		require.NoError(t, f.Err0())
		for _, rec := range f.Records() {
			if string(rec.Value) != "end" {
				seen = append(seen, string(rec.Value))
			}
			if rec.Offset == last {
				return seen
			}
		}
	}
}

// What a crash has left open is aborted for good: a reader must not take the same producer's next transactions for a
// part of it, and the next crash must not bring it back.
func TestCrashAbortsWhatWasOpen(t *testing.T) {
	c := newCrashing(t)
	p := c.producer(t)
	write(t, p, "first")
	commit(t, p)
	for range 3 {
		write(t, p, "lost")
		c.Kill()
		c.start(t)
		require.Error(t, p.EndTransaction(t.Context(), kgo.TryCommit), "the transaction is over")
		p = c.producer(t)
		write(t, p, "next")
		commit(t, p)
	}
	for part := range int32(2) {
		require.Equal(t, []string{"first", "next", "next", "next"}, c.visible(t, part))
	}
}

// A crash between the commit markers of two partitions must not leave half of the transaction.
func TestCrashInTheMiddleOfACommitCompletesIt(t *testing.T) {
	c := newCrashing(t)
	p := c.producer(t)
	write(t, p, "first")
	commit(t, p)
	write(t, p, "second")
	commit(t, p)
	c.Kill()
	cutLastBatch(t, filepath.Join(c.config.Dir, "log", "partitions", "orders-1"))
	c.start(t)
	p = c.producer(t)
	write(t, p, "third")
	commit(t, p)
	for part := range int32(2) {
		require.Equal(t, []string{"first", "second", "third"}, c.visible(t, part))
	}
}

// A crash between a batch and its line in the index must not make the batch count as one outside of transactions.
func TestCrashBeforeTheIndexIsWritten(t *testing.T) {
	c := newCrashing(t)
	p := c.producer(t)
	write(t, p, "first")
	commit(t, p)
	write(t, p, "lost")
	c.Kill()
	index := filepath.Join(c.config.Dir, "log", "partitions", "orders-1", "0.idx")
	info, err := os.Stat(index)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(index, info.Size()-15))
	c.start(t)
	p = c.producer(t)
	write(t, p, "second")
	commit(t, p)
	for part := range int32(2) {
		require.Equal(t, []string{"first", "second"}, c.visible(t, part))
	}
}

// cutLastBatch makes a partition look as it did before its last batch was written.
func cutLastBatch(t *testing.T, dir string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "0.dat"))
	require.NoError(t, err)
	at, batches := 0, 0
	for next := 0; next < len(data); next += 12 + int(binary.BigEndian.Uint32(data[next+8:])) {
		at, batches = next, batches+1
	}
	require.NoError(t, os.Truncate(filepath.Join(dir, "0.dat"), int64(at)))
	require.NoError(t, os.Truncate(filepath.Join(dir, "0.idx"), int64(15*(batches-1))), fmt.Sprint(batches))
}
