package main

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
)

func TestSlotAlerts(t *testing.T) {
	const limit = 1 << 30
	well := postgres.SlotStatus{Exists: true, Active: true, WALStatus: "reserved", SafeWAL: -1, Restart: 100, Confirmed: 200, End: 300}
	for name, tt := range map[string]struct {
		change func(*postgres.SlotStatus)
		level  slog.Level
		want   string
	}{
		"well":        {func(*postgres.SlotStatus) {}, 0, ""},
		"no slot":     {func(s *postgres.SlotStatus) { s.Exists, s.End = false, 10*limit }, 0, ""},
		"unreserved":  {func(s *postgres.SlotStatus) { s.WALStatus = "unreserved" }, slog.LevelError, "next checkpoint"},
		"near limit":  {func(s *postgres.SlotStatus) { s.End, s.SafeWAL = 1100, 300 }, slog.LevelError, "three quarters"},
		"below limit": {func(s *postgres.SlotStatus) { s.End, s.SafeWAL = 1100, 350 }, 0, ""},
		"nobody":      {func(s *postgres.SlotStatus) { s.End, s.Active = 2*limit, false }, slog.LevelWarn, "nobody reads it"},
		"slow":        {func(s *postgres.SlotStatus) { s.End = 2 * limit }, slog.LevelWarn, "more slowly"},
		"long transaction": {func(s *postgres.SlotStatus) {
			s.End, s.Confirmed, s.OldestTransaction = 2*limit, 2*limit, time.Hour
		}, slog.LevelWarn, "open for long"},
	} {
		t.Run(name, func(t *testing.T) {
			s := well
			tt.change(&s)
			level, text := slotAlert(&s, limit)
			if tt.want == "" {
				require.Empty(t, text)
				return
			}
			require.Contains(t, text, tt.want)
			require.Equal(t, tt.level, level)
		})
	}
}

// An alert is told once, again after a while, and when it is over.
func TestSlotWatchSaysItOnce(t *testing.T) {
	var out bytes.Buffer
	w := &slotWatch{limit: 100, log: slog.New(slog.NewTextHandler(&out, nil))}
	s := postgres.SlotStatus{Exists: true, WALStatus: "reserved", SafeWAL: -1, Restart: 100, Confirmed: 100, End: 900, At: time.Unix(1000, 0)}
	lines := func() int { return bytes.Count(out.Bytes(), []byte("\n")) }
	for range 3 {
		w.take(&s)
	}
	require.Equal(t, 1, lines())
	s.At = s.At.Add(alertEvery)
	w.take(&s)
	require.Equal(t, 2, lines())
	s.Restart, s.Confirmed = 890, 900
	w.take(&s)
	w.take(&s)
	require.Equal(t, 3, lines())
	require.Contains(t, out.String(), "well again")
}

func TestSlotHistoryTellsBytesInTime(t *testing.T) {
	var h slotHistory
	at := time.Unix(1000, 0)
	add := func(after time.Duration, end, confirmed change.LSN) time.Duration {
		at = at.Add(after)
		return h.add(at, end, confirmed)
	}
	require.Zero(t, add(0, 100, 100))
	require.Zero(t, add(time.Hour, 100, 100), "nothing was written")
	require.Equal(t, 5*time.Second, add(5*time.Second, 200, 100), "it was all confirmed 5 s ago")
	require.Equal(t, 10*time.Second, add(5*time.Second, 300, 100))
	require.Equal(t, 10*time.Second, add(5*time.Second, 400, 250), "all but what came after the mark at 200")
	require.Zero(t, add(5*time.Second, 400, 400))
	for i := range 10 * slotMarks {
		add(5*time.Second, change.LSN(500+i), 400)
	}
	require.LessOrEqual(t, len(h.marks), slotMarks)
	require.InDelta(t, (10 * slotMarks * 5 * time.Second).Seconds(), add(0, 500+10*slotMarks, 400).Seconds(), 10)
}
