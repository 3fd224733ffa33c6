package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// memoryStream yields scripted events. Each row is a new parent's, so that its product is looked up, where orphans says
// so.
type memoryStream struct {
	benchStream

	events []change.Event
	calm   []bool // nothing is buffered before this event
	at     int
}

func (s *memoryStream) NextUntil(context.Context, time.Time) (change.Event, error) {
	if s.at == len(s.events) {
		return change.Event{}, errBenchEnd
	}
	s.at++
	return s.events[s.at-1], nil
}

func (s *memoryStream) Buffered() bool { return s.at == len(s.events) || !s.calm[s.at] }

// memoryParents knows every parent.
type memoryParents struct{ captureSource }

func (memoryParents) ParentKeys(_ context.Context, _ route.Parent, ids []string) (map[string]change.ParentRow, change.Snapshot, error) {
	out := map[string]change.ParentRow{}
	for _, id := range ids {
		out[id] = change.ParentRow{ID: id, Product: change.ProductID("of-" + id)}
	}
	return out, change.Snapshot{Xmin: 1 << 40, Xmax: 1 << 40}, nil
}

func (memoryParents) Snapshot(context.Context) (change.Snapshot, error) {
	return change.Snapshot{Xmin: 1 << 40, Xmax: 1 << 40}, nil
}

// add appends a transaction of rows, each with a parent of its own if so wished, and messages for the mirror between them.
func (s *memoryStream) add(rows int, parents bool, calm func() bool, message func() bool) {
	s.tx.XID++
	s.tx.CommitLSN += 100
	tx := &change.Transaction{XID: s.tx.XID, CommitLSN: s.tx.CommitLSN, CommitTime: time.UnixMicro(int64(1000 + s.tx.XID))}
	put := func(ev change.Event) {
		ev.Transaction = tx
		s.events, s.calm = append(s.events, ev), append(s.calm, calm())
	}
	put(change.Event{Kind: change.EventBegin})
	ordinal := uint64(0)
	for i := range rows {
		if message() {
			put(change.Event{Kind: change.EventMessage, Message: &change.Message{
				Transactional: true, Prefix: "outbox", Content: []byte("m"), Position: change.Position{CommitLSN: tx.CommitLSN, Ordinal: ordinal},
			}})
		}
		ordinal++
		parent := "7"
		if parents {
			parent = fmt.Sprint(tx.XID, "-", i)
		}
		var row change.Tuple
		for _, text := range []string{strconv.Itoa(int(tx.XID)*1000 + i), parent, strings.Repeat("h", i%40), "t", "1", "2", "2026-01-02 03:04:05+00", "b"} {
			row = append(row, change.Value{Kind: change.Text, Data: []byte(text)})
		}
		put(change.Event{Kind: change.EventChange, Change: &change.Change{
			Op: change.Create, Relation: s.relation, After: row, Position: change.Position{CommitLSN: tx.CommitLSN, Ordinal: ordinal},
		}})
	}
	put(change.Event{Kind: change.EventCommit, EndLSN: tx.CommitLSN + 50})
}

func newMemorySession(t require.TestingT, s *memoryStream, mirror bool) *captureSession {
	cfg := CaptureConfig{
		Heartbeat: -1, TxEvery: 1, IdleEvery: 1, BatchProducts: 8, BatchRows: 20, TxRows: 30, TxBytes: 1 << 20,
		Mirror: MirrorConfig{On: mirror},
		Routes: []route.Route{{Table: "public.products", Parent: &route.Parent{Column: "shop", Table: "public.shops", ID: "id", Key: "product"}}},
	}
	c := NewCapture(cfg, CaptureParts{Source: memoryParents{}})
	session := c.newSession(s, event.Position{Writer: "x"})
	var err error
	session.mirror, err = newCaptureMirror(c.cfg)
	require.NoError(t, err)
	return session
}

// Whatever is held or waits while units leave and their memory is used again, every record that the writer gets is of one
// piece. What it has given back is made worthless at once.
func TestMemoryIsUsedAgainOnlyWhenNothingLiesInIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &memoryStream{benchStream: *newBenchStream(0, 0)}
		mirror := rapid.Bool().Draw(t, "mirror")
		for range rapid.IntRange(1, 40).Draw(t, "transactions") {
			calm := rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "calm")
			draw := func(share int) func() bool {
				return func() bool { return share > 0 && rapid.IntRange(0, 4).Draw(t, "now") < share }
			}
			messages := 0
			if mirror {
				messages = rapid.IntRange(0, 2).Draw(t, "messages")
			}
			s.add(rapid.SampledFrom([]int{1, 2, 7, 25, 90}).Draw(t, "rows"), rapid.Bool().Draw(t, "parents"), draw(calm), draw(messages))
		}
		session := newMemorySession(t, s, mirror)
		lag := rapid.IntRange(0, 2).Draw(t, "lag") // units that the writer is behind by
		done := make(chan error, 1)
		go func() { done <- writeMemory(session, lag) }()
		require.ErrorIs(t, session.read(context.Background()), errBenchEnd)
		close(session.units)
		require.NoError(t, <-done)
	})
}

// writeMemory is a writer that looks at each record.
func writeMemory(s *captureSession, lag int) error {
	var units []*captureUnit
	write := func() error {
		u := units[0]
		units = units[1:]
		for i := range u.records {
			if err := soundRecord(&u.records[i]); err != nil {
				return err
			}
		}
		for _, m := range u.memories {
			for _, c := range m.bytes.chunks {
				copy(c, bytes.Repeat([]byte{'#'}, len(c)))
			}
			for _, c := range m.headers.chunks {
				clear(c)
			}
			for _, c := range m.rows.chunks {
				clear(c)
			}
			for _, c := range m.pairs.chunks {
				clear(c)
			}
		}
		s.written(u)
		return nil
	}
	var failed error
	for u := range s.units {
		if units = append(units, u); len(units) > lag && failed == nil {
			failed = write()
		}
	}
	for len(units) > 0 && failed == nil {
		failed = write()
	}
	return failed
}

func soundRecord(r *event.Record) error {
	if strings.HasSuffix(r.Topic, ".message") {
		return nil
	}
	var value struct {
		After struct {
			ID   int64           `json:"id"`
			Shop json.RawMessage `json:"shop"`
		} `json:"after"`
	}
	if err := json.Unmarshal(r.Value, &value); err != nil {
		return fmt.Errorf("%s: %w: %s", r.Topic, err, r.Value)
	}
	id := value.After.ID
	if !strings.HasSuffix(r.Topic, "changes") {
		return nil
	}
	xid := id / 1000
	for key, want := range map[string]string{
		event.HeaderXID: fmt.Sprint(xid), event.HeaderCommitted: fmt.Sprint(1000 + xid), event.HeaderPrimaryKey: fmt.Sprintf(`{"id":%d}`, id),
		event.HeaderTable: "public.products", event.HeaderOp: "c",
		event.HeaderPosition: change.Position{CommitLSN: change.LSN(xid * 100), Ordinal: uint64(id%1000 + 1)}.String(),
	} {
		if got, _ := r.Header(key); got != want {
			return fmt.Errorf("row %d: header %s is %q, want %q", id, key, got, want)
		}
	}
	if want := "of-" + strings.Trim(string(value.After.Shop), `"`); string(r.Key) != want {
		return fmt.Errorf("row %d: key %q, want %q", id, r.Key, want)
	}
	return nil
}

// Memory does not grow with what has passed: neither where a lull follows each small transaction, nor in a large one
// whose rows all wait for their products.
func TestMemoryStaysBounded(t *testing.T) {
	never := func() bool { return false }
	for name, fill := range map[string]func(s *memoryStream, n int){
		"lull": func(s *memoryStream, n int) {
			for range n {
				first := true
				s.add(1, false, func() bool { now := first; first = false; return now }, never)
			}
		},
		"parents": func(s *memoryStream, n int) { s.add(n, true, never, never) },
	} {
		t.Run(name, func(t *testing.T) {
			s := &memoryStream{benchStream: *newBenchStream(0, 0)}
			fill(s, 20_000)
			session := newMemorySession(t, s, false)
			most := 0
			go func() {
				for u := range session.units {
					session.written(u)
				}
			}()
			go func() { _ = session.prover.run(t.Context(), session.c) }()
			for {
				ev, err := session.next(t.Context())
				if err != nil {
					require.ErrorIs(t, err, errBenchEnd)
					break
				}
				require.NoError(t, session.take(&ev))
				require.NoError(t, session.after(t.Context()))
				chunks := 0
				for _, m := range append(session.batcher.memory.full, session.batcher.memory.captureMemory) {
					chunks += len(m.bytes.chunks)
				}
				most = max(most, chunks)
			}
			close(session.units)
			require.Less(t, most, 100, "chunks of 64 KiB")
			require.LessOrEqual(t, len(session.book.recent), captureUnseenMost)
		})
	}
}
