package kafka_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
)

func TestPositionIsReadPastAbortsMarkersAndCompaction(t *testing.T) {
	fake, c := open(t)
	_, ok, err := c.ReadPosition(t.Context(), kafka.CapturePartition, "capture/s")
	require.NoError(t, err)
	require.False(t, ok)

	p := producer(t, c, "capture/s")
	write := func(n int64, writer string, commit bool) {
		raw, _ := json.Marshal(event.Position{Writer: writer, Number: n})
		require.NoError(t, p.Begin())
		require.NoError(t, p.Produce(event.Record{Topic: c.Topic(event.Positions), Key: []byte(writer), Value: raw}))
		require.NoError(t, p.Flush(t.Context()))
		if commit {
			require.NoError(t, p.Commit(t.Context()))
		} else {
			require.NoError(t, p.Abort(t.Context()))
		}
	}
	write(7, "capture/s", true)
	for i := range 300 {
		write(int64(i), "capture/other", i%3 == 0)
	}
	write(8, "capture/s", false)
	read := func() int64 {
		pos, ok, err := c.ReadPosition(t.Context(), kafka.CapturePartition, "capture/s")
		require.NoError(t, err)
		require.True(t, ok)
		return pos.Number
	}
	require.EqualValues(t, 7, read())
	fake.Compact()
	require.EqualValues(t, 7, read())
	write(9, "capture/s", true)
	fake.Compact()
	require.EqualValues(t, 9, read())
}

// Who only looks must not wait for a transaction that a killed process has left open.
func TestTheLastPositionIsReadBesideAnOpenTransaction(t *testing.T) {
	c := connect(t)
	p := producer(t, c, "relay")
	write := func(n int64) {
		raw, _ := json.Marshal(event.Position{Writer: "relay", Number: n})
		require.NoError(t, p.Begin())
		require.NoError(t, p.Produce(event.Record{Topic: c.Topic(event.Positions), Partition: kafka.RelayPartition, Key: []byte("relay"), Value: raw}))
	}
	_, ok, err := c.LastPosition(t.Context(), kafka.RelayPartition, "relay")
	require.NoError(t, err)
	require.False(t, ok)
	write(1)
	require.NoError(t, p.Commit(t.Context()))
	require.NoError(t, embeddedtest.Settle(t.Context(), c.Topic(event.Positions)))
	write(2)
	require.NoError(t, p.Flush(t.Context()))
	pos, ok, err := c.LastPosition(t.Context(), kafka.RelayPartition, "relay")
	require.NoError(t, err)
	require.True(t, ok)
	require.EqualValues(t, 1, pos.Number)
	require.NoError(t, p.Commit(t.Context()))
	require.NoError(t, embeddedtest.Settle(t.Context(), c.Topic(event.Positions)))
	pos, _, err = c.LastPosition(t.Context(), kafka.RelayPartition, "relay")
	require.NoError(t, err)
	require.EqualValues(t, 2, pos.Number)
}

func TestScanStopsWhereItIsTold(t *testing.T) {
	c := connect(t)
	topic := c.Topic(event.Outcomes)
	p := producer(t, c, "relay")
	for i := range 30 {
		require.NoError(t, p.Begin())
		require.NoError(t, p.Produce(event.Record{Topic: topic, Partition: 2, Value: fmt.Append(nil, i)}))
		require.NoError(t, p.Commit(t.Context()))
	}
	var got []string
	at, err := c.Scan(t.Context(), topic, 2, 10, 20, func(r event.Record) bool {
		got = append(got, string(r.Value))
		return len(got) < 3
	})
	require.NoError(t, err)
	require.EqualValues(t, 15, at)
	require.Equal(t, []string{"5", "6", "7"}, got)
	at, err = c.Scan(t.Context(), topic, 2, at, 60, func(r event.Record) bool {
		got = append(got, string(r.Value))
		return true
	})
	require.NoError(t, err)
	require.EqualValues(t, 60, at)
	require.Len(t, got, 25)
	_, err = c.Scan(t.Context(), "catalog.nosuch", 0, 0, 1, func(event.Record) bool { return true })
	require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)
}
