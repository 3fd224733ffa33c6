package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// How fast rows come into ClickHouse depends on the machine; that all of them come, and are counted, does not.
func TestBenchMeasuresLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("starts PostgreSQL, Kafka and ClickHouse")
	}
	b := newBench(&benchFlags{quick: true}, t.Output())
	figures, err := measureLoad(t.Context(), b)
	require.NoError(t, err)
	require.Len(t, figures, 1)
	require.Positive(t, figures[0].Value)
	require.Equal(t, "≥ 0.5", figures[0].Goal)
}
