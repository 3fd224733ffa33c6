package pipeline

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// positionProducer keeps the last position.
type positionProducer struct {
	benchProducer

	last event.Position
}

func (p *positionProducer) ProduceMarked(_ int64, records ...event.Record) error {
	for _, rec := range records {
		if rec.Topic == "catalog."+event.Positions {
			p.last = event.Position{}
			if err := json.Unmarshal(rec.Value, &p.last); err != nil {
				return err
			}
		}
	}
	return nil
}

// A position says how much of the largest open transaction has come, as it is at its time.
func TestPositionsTellOfTheLargestOpenTransaction(t *testing.T) {
	p := &positionProducer{}
	w := newCaptureWriter(CaptureConfig{}.withDefaults(), p, event.Position{}, &CaptureStats{}, func(*captureUnit) {})
	require.NoError(t, w.write(t.Context(), &captureUnit{position: event.Position{Writer: "x"}}))
	require.Zero(t, p.last.LargestOpen)
	for _, bytes := range []int64{5000, 7000, 0} {
		w.largest = func() int64 { return bytes }
		require.NoError(t, w.write(t.Context(), &captureUnit{position: event.Position{Writer: "x"}}))
		require.Equal(t, bytes, p.last.LargestOpen)
	}
}
