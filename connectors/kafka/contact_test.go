package kafka_test

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	embeddedkafka "github.com/shelfwire/shelfwire/deploy/embedded/kafka"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// Clients wait for a broker without a word.
func TestABrokerThatIsAwayIsNoticed(t *testing.T) {
	dir := t.TempDir()
	b, err := embeddedkafka.Start(t.Context(), embeddedkafka.Config{Dir: dir})
	require.NoError(t, err)
	c, err := kafka.New(kafka.Config{Brokers: []string{b.Addr()}})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	require.NoError(t, c.EnsureTopics(t.Context()))
	r, err := c.NewReader(c.Topic(event.Changes))
	require.NoError(t, err)
	t.Cleanup(r.Close)
	away := func() bool { reason, since := c.Away(); return reason != "" && !since.IsZero() }
	require.False(t, away())
	_, port, err := net.SplitHostPort(b.Addr())
	require.NoError(t, err)
	b.Close()
	require.Eventually(t, func() bool { return c.Ping(t.Context()) != nil && away() }, 30*time.Second, 50*time.Millisecond)
	reason, _ := c.Away()
	require.Contains(t, reason, "refused")
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	b, err = embeddedkafka.Start(t.Context(), embeddedkafka.Config{Dir: dir, Port: n})
	require.NoError(t, err)
	t.Cleanup(b.Close)
	require.NoError(t, c.Ping(t.Context()))
	require.False(t, away())
}
