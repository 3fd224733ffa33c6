package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// A transaction of nothing but messages of others, as an outbox without a table makes them, is in the hands of the writer
// in pieces: it may have any number of them, and all have the position of the event before them.
func TestMessagesOfOthersAreNotHeldWithoutBound(t *testing.T) {
	for name, first := range map[string]change.Kind{"alone": change.Null, "behind a row": change.Text} {
		t.Run(name, func(t *testing.T) {
			s := &memoryStream{benchStream: *newBenchStream(0, 0)}
			session := newMemorySession(t, s, true)
			tx := &change.Transaction{XID: 5, CommitLSN: 0x100, CommitTime: time.Unix(1, 0)}
			require.NoError(t, session.take(&change.Event{Kind: change.EventBegin, Transaction: tx}))
			at := change.Position{CommitLSN: 0x100}
			if first == change.Text {
				at.Ordinal++
				require.NoError(t, session.take(&change.Event{Kind: change.EventChange, Transaction: tx, Change: &change.Change{
					Op: change.Create, Relation: s.relation, After: s.images[0], Position: at,
				}}))
			}
			left := 0
			done := make(chan struct{})
			go func() {
				defer close(done)
				for u := range session.units {
					left += len(u.records)
					session.written(u)
				}
			}()
			most := 0
			for range 10_000 {
				require.NoError(t, session.take(&change.Event{Kind: change.EventMessage, Transaction: tx, Message: &change.Message{
					Transactional: true, Prefix: "outbox", Content: make([]byte, 200), Position: at,
				}}))
				require.NoError(t, session.after(t.Context()))
				b := session.batcher
				most = max(most, len(b.tx.held)+len(b.tx.mirrored)+len(session.backlog)+len(b.unit.records))
			}
			close(session.units)
			<-done
			require.Less(t, most, 1100, "records of one transaction in memory")
			require.Greater(t, left, 8000)
		})
	}
}

// Wherever a session ends, among messages of one position too, the next one goes on with the record behind the last.
func TestMessagesComeOnceWhereverASessionEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &memoryStream{benchStream: *newBenchStream(0, 0)}
		now := func(name string, of int) func() bool {
			return func() bool { return rapid.IntRange(0, of).Draw(t, name) == 0 }
		}
		messages := now("message", rapid.IntRange(0, 3).Draw(t, "messages"))
		for range rapid.IntRange(1, 3).Draw(t, "transactions") {
			s.add(rapid.SampledFrom([]int{0, 1, 3, 25}).Draw(t, "rows"), now("parents", 3)(), now("calm", 3), messages)
		}
		// Many at one position, and those that the stream counts.
		var events []change.Event
		for _, ev := range s.events {
			events = append(events, ev)
			if ev.Kind == change.EventMessage {
				for range rapid.SampledFrom([]int{0, 0, 1, 30}).Draw(t, "more") {
					events = append(events, ev)
				}
			}
		}
		for i := range events {
			if m := events[i].Message; m != nil {
				numbered := *m
				numbered.Content = fmt.Append(nil, i)
				events[i].Message = &numbered
			}
		}
		s.events, s.calm = events, slices.Repeat([]bool{false}, len(events))
		whole, positions := readMessages(t, s, event.Position{Writer: "x"})
		i := rapid.IntRange(0, len(positions)-1).Draw(t, "end")
		raw, err := json.Marshal(positions[i])
		require.NoError(t, err)
		var from event.Position
		require.NoError(t, json.Unmarshal(raw, &from))
		rest, _ := readMessages(t, s, from)
		want, got := slices.Concat(whole[i+1:]...), slices.Concat(rest...)
		for j := range min(len(want), len(got)) { // one by one: a list of thousands is no message
			require.Equal(t, want[j], got[j], "from %s", raw)
		}
		require.Empty(t, want[min(len(want), len(got)):], "from %s: missing", raw)
		require.Empty(t, got[min(len(want), len(got)):], "from %s: too many", raw)
	})
}

// readMessages gives what each unit writes, from a position on, and the positions of the units.
func readMessages(t *rapid.T, s *memoryStream, from event.Position) (units [][]string, positions []event.Position) {
	s.at = 0
	session := newMemorySession(t, s, true)
	session.resume = from
	session.batcher = newCaptureBatcher(session.batcher.limits, from, &session.c.stats)
	session.encoder.memory = session.batcher.memory
	session.batcher.limits.unitRows, session.batcher.limits.rows = 20, 20
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range session.units {
			var names []string
			for _, rec := range u.records {
				at, _ := rec.Header(event.HeaderPosition)
				if strings.HasSuffix(rec.Topic, event.MirrorMessages) {
					var e struct{ Message struct{ Content string } }
					if err := json.Unmarshal(rec.Value, &e); err != nil {
						e.Message.Content = err.Error()
					}
					at = "message " + e.Message.Content
				}
				names = append(names, rec.Topic+" "+string(rec.Key)+" "+at)
			}
			units, positions = append(units, names), append(positions, u.position)
			session.written(u)
		}
	}()
	require.ErrorIs(t, session.read(context.Background()), errBenchEnd)
	require.NoError(t, session.drain(context.Background()))
	require.NoError(t, session.handOver(context.Background()))
	close(session.units)
	<-done
	return units, positions
}
