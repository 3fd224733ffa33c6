package main

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/sinks/state"
)

// A table, some of its rows, or products are read again while capture runs; what cannot be had is told at once.
func TestSnapshotCommand(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the whole pipeline")
	}
	s := newSite(t, 12)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "neither a table nor products"},
		{[]string{"catalog.nowhere"}, "there is no route for a table catalog.nowhere"},
		{[]string{"--where", "true"}, "a condition needs a table"},
		{[]string{"catalog.products", "--all"}, `"all" goes with no table`},
	} {
		code, out := shelfwire(t, append([]string{"snapshot", "-c", s.file}, c.args...)...)
		require.Equal(t, exitUsage, code, out)
		require.Contains(t, out, c.want)
	}
	stop := s.run()
	require.Eventually(t, func() bool { code, _ := s.audit(); return code == exitOK }, time.Minute, time.Second, "the first snapshot")

	code, out := shelfwire(t, "snapshot", "-c", s.file, "catalog.products", "--where", "no_such_column > 1")
	require.Equal(t, exitError, code)
	require.Contains(t, out, "no_such_column")

	for _, c := range []struct {
		args []string
		rows int64
	}{
		{[]string{"catalog.products", "--where", "id <= 5", "--wait"}, 5},
		{[]string{"catalog.products", "--product", "1,2", "--wait"}, 2},
		{[]string{"catalog.products", "--where", "false", "--wait"}, 0},
	} {
		var stdout, stderr bytes.Buffer
		code := execute(t.Context(), append([]string{"snapshot", "-c", s.file}, c.args...), &stdout, &stderr)
		require.Equal(t, exitOK, code, stderr.String())
		var v askedView
		require.NoError(t, json.Unmarshal(stdout.Bytes(), &v), stdout.String())
		require.Equal(t, c.rows, *v.Rows)
		require.Equal(t, []string{"catalog.products"}, v.Tables)
		if c.rows > 0 {
			require.Equal(t, state.BatchStatus("COMPLETED"), v.Status)
		}
	}
	_, body := s.get("/metrics")
	require.Contains(t, body, "shelfwire_capture_snapshot_estimated_rows 0")
	require.NotContains(t, body, "shelfwire_capture_snapshot_rows_total 0\n")

	// Evaluated there, it fails: tried by the planner alone it looks well.
	code, out = shelfwire(t, "snapshot", "-c", s.file, "catalog.products", "--where", "1 / (id - 5) < 9", "--wait")
	require.Equal(t, exitError, code, out)
	require.Contains(t, out, "cannot be had")
	require.Contains(t, out, "division by zero")
	stop()
}
