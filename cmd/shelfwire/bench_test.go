package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The counts and the points are properties of the pipeline, not of the machine: their goals hold on any. What takes
// seconds is not measured here.
func TestBenchCountsAndPoints(t *testing.T) {
	if testing.Short() {
		t.Skip("starts PostgreSQL, Kafka and ClickHouse")
	}
	out := filepath.Join(t.TempDir(), "bench.json")
	var table, progress bytes.Buffer
	err := runBench(t.Context(), &benchFlags{out: out, only: []string{"requests", "points"}, seed: 1, quick: true}, &table, &progress)
	require.NoError(t, err, progress.String())

	raw, err := os.ReadFile(out)
	require.NoError(t, err)
	var figures []figure
	require.NoError(t, json.Unmarshal(raw, &figures))
	names := map[string]bool{}
	for _, f := range figures {
		names[f.Name] = true
		require.True(t, f.Holds, "%s is %g %s, goal %s: %s", f.Name, f.Value, f.Unit, f.Goal, f.Conditions)
		require.Contains(t, table.String(), f.Name)
		require.Positive(t, f.Value, f.Name)
	}
	for _, name := range []string{
		"ten prices of one product", "ten products of one shop", "50 products of three shops", "50 products of three shops, documents",
		"points, stock bookings in waves", "points, price bursts", "points, stock bookings one by one",
	} {
		require.True(t, names[name], "no figure %q", name)
	}
}

// How fast a snapshot is depends on the machine; that it is measured, and all of it comes, does not.
func TestBenchMeasuresASnapshot(t *testing.T) {
	if testing.Short() {
		t.Skip("starts PostgreSQL and Kafka")
	}
	b := newBench(&benchFlags{quick: true}, t.Output())
	figures, err := measureSnapshot(t.Context(), b)
	require.NoError(t, err)
	require.Len(t, figures, 2)
	for _, f := range figures {
		require.Positive(t, f.Value, f.Name)
	}
	require.Equal(t, "≥ 0.3", figures[0].Goal)

	var table, progress bytes.Buffer
	require.ErrorContains(t, runBench(t.Context(), &benchFlags{rows: 100}, &table, &progress), "--rows")
}

// Likewise: that products are answered from the state, parked and worked off without a request is checked by the
// measurements themselves.
func TestBenchMeasuresTheMiddle(t *testing.T) {
	if testing.Short() {
		t.Skip("starts PostgreSQL and Kafka")
	}
	b := newBench(&benchFlags{quick: true}, t.Output())
	for goal, measure := range map[string]func(context.Context, *bench) ([]figure, error){
		"≥ 50000": measureUnchanged, "≤ 60": measureParking,
	} {
		figures, err := measure(t.Context(), b)
		require.NoError(t, err)
		require.Equal(t, goal, figures[0].Goal)
		for _, f := range figures {
			require.Positive(t, f.Value, f.Name)
		}
	}
}

func TestBenchSaysWhatItCannotMeasure(t *testing.T) {
	var table, progress bytes.Buffer
	err := runBench(t.Context(), &benchFlags{only: []string{"warmth"}}, &table, &progress)
	var code *exitCode
	require.ErrorAs(t, err, &code)
	require.Equal(t, exitUsage, code.code)
	require.ErrorContains(t, err, "latency")

	t.Setenv(envPostgres, "postgres://elsewhere")
	require.ErrorContains(t, runBench(t.Context(), &benchFlags{}, &table, &progress), "unset it")

	// A measurement that fails leaves the others standing, and is an error at the end.
	b := newBench(&benchFlags{}, &progress)
	b.book(t.Context(), "one", func(context.Context) ([]figure, error) {
		return []figure{atMost("kept", 2, "s", 1, "always")}, context.DeadlineExceeded
	})
	require.Len(t, b.missing, 1)
	require.ErrorIs(t, b.missing[0], context.DeadlineExceeded)
	require.Len(t, b.figures, 1)
	require.False(t, b.figures[0].Holds)
	require.Equal(t, "≤ 1", b.figures[0].Goal)

	// A goal that is missed is an error for whoever asks for that.
	require.NoError(t, b.missed())
	b.strict = true
	require.EqualError(t, b.missed(), "missed: kept: 2 s, goal ≤ 1")
	b.figures[0] = atMost("kept", 1, "s", 1, "always")
	require.NoError(t, b.missed())
}

func TestQuantileIsReachedByItsShare(t *testing.T) {
	var list []time.Duration
	for i := range 100 {
		list = append(list, time.Duration(i+1))
	}
	require.Equal(t, time.Duration(50), quantile(list, 0.5))
	require.Equal(t, time.Duration(99), quantile(list, 0.99))
	require.Equal(t, time.Duration(1), quantile(list[:1], 0.99))
}

func TestSpreadTakesShopsInTurn(t *testing.T) {
	byShop := map[string][]int64{"a": {1, 2, 3, 4}, "b": {10}, "c": {20, 21}}
	require.Equal(t, []int64{1, 10, 20, 2, 21}, spread(byShop, 5))
	require.Len(t, spread(byShop, 100), 7)
}
