package pipeline

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

func testBatcher(pos event.Position) *captureBatcher {
	return newCaptureBatcher(captureLimits{
		products: 3, rows: 5, unitRows: 8, unitBytes: 4000, maxRecord: 2000, changes: "changes", deadletters: "dead",
	}, pos, &CaptureStats{})
}

func testRow(pos change.Position, product string) *captureRowStep {
	return &captureRowStep{
		position: pos, op: change.Update, whole: []byte(product),
		pairs: []routerPair{{
			old: routerTarget{kind: routerProduct, product: change.ProductID(product)},
			new: routerTarget{kind: routerProduct, product: change.ProductID(product)},
		}},
	}
}

func testBatch(rec event.Record) string {
	id, _ := rec.Header(event.HeaderBatch)
	return id
}

func TestBatchIsDecidedBeforeItsFirstRecord(t *testing.T) {
	tx := change.Transaction{XID: 7, CommitLSN: 0x100, CommitTime: time.Unix(1, 0)}
	for _, c := range []struct {
		name  string
		rows  string // a product a letter; upper case: the row triggers a batch
		named bool
		batch bool
	}{
		{"one", "a", false, false},
		{"two products", "aabb", false, false},
		{"three products", "aabbc", false, true},
		{"five rows", "aaaaa", false, true},
		{"declared", "aB", false, true},
		{"named after its rows", "ab", true, true},
		{"named and empty", "", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := testBatcher(event.Position{History: change.History{Timeline: 2}})
			b.apply(&captureStep{kind: captureBegin, tx: tx})
			var ord uint64
			for _, p := range c.rows {
				ord++
				row := testRow(change.Position{CommitLSN: 0x100, Ordinal: ord}, strings.ToLower(string(p)))
				row.batch = strings.ToUpper(string(p)) == string(p)
				b.apply(&captureStep{kind: captureRow, row: row})
			}
			if c.named {
				b.apply(&captureStep{kind: captureName, position: change.Position{CommitLSN: 0x100, Ordinal: ord + 1}, name: "n"})
			}
			b.apply(&captureStep{kind: captureCommit, end: 0x120})
			u := b.seal()
			require.Len(t, u.records, len(c.rows))
			for i, rec := range u.records {
				require.Equal(t, c.batch, testBatch(rec) == "tx-2-100", "record %d", i)
				require.Equal(t, strings.ToLower(c.rows[i:i+1]), string(rec.Key))
			}
			if !c.batch {
				require.Empty(t, u.announce)
				return
			}
			require.Len(t, u.announce, 1)
			require.EqualValues(t, len(c.rows), u.announce[0].batch.Rows)
		})
	}
}

func TestDeadLettersKeepTheBytes(t *testing.T) {
	b := testBatcher(event.Position{})
	b.apply(&captureStep{kind: captureBegin, tx: change.Transaction{CommitLSN: 1}})
	row := testRow(change.Position{CommitLSN: 1, Ordinal: 1}, "a")
	row.leave = []byte("left")
	row.pairs[0].new = routerTarget{kind: routerBad, reason: "because"}
	b.apply(&captureStep{kind: captureRow, row: row})
	large := testRow(change.Position{CommitLSN: 1, Ordinal: 2}, strings.Repeat("x", 3000))
	b.apply(&captureStep{kind: captureRow, row: large})
	b.apply(&captureStep{kind: captureCommit, end: 2})
	u := b.seal()
	require.Len(t, u.records, 3)
	require.Equal(t, "changes", u.records[0].Topic)
	require.Equal(t, "left", string(u.records[0].Value), "the product that it leaves is told")
	require.Equal(t, "dead", u.records[1].Topic)
	require.Equal(t, "a", string(u.records[1].Value))
	reason, _ := u.records[1].Header(event.HeaderReason)
	require.Equal(t, "because", reason)
	require.Equal(t, "dead", u.records[2].Topic)
	reason, _ = u.records[2].Header(event.HeaderReason)
	require.Contains(t, reason, "at most 2000 are taken")
}

// testSource is a sequence of transactions and keepalives, as the stream would bring them.
type testSource struct {
	steps []captureStep
	rows  int
}

func drawSource(t *rapid.T) testSource {
	var s testSource
	lsn := change.LSN(0x10)
	for range rapid.IntRange(1, 8).Draw(t, "transactions") {
		if rapid.Bool().Draw(t, "keepalive") {
			lsn += 5
			s.steps = append(s.steps, captureStep{kind: captureAdvance, end: lsn})
		}
		// The next commit record may stand exactly where the last transaction ended.
		lsn += change.LSN(rapid.IntRange(0, 1).Draw(t, "gap"))
		tx := change.Transaction{XID: change.XID(lsn), CommitLSN: lsn}
		s.steps = append(s.steps, captureStep{kind: captureBegin, tx: tx})
		for ord := range rapid.SampledFrom([]int{0, 1, 2, 4, 6, 20}).Draw(t, "rows") {
			product := fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "product"))
			s.steps = append(s.steps, captureStep{kind: captureRow, row: testRow(change.Position{CommitLSN: lsn, Ordinal: uint64(ord + 1)}, product)})
			s.rows++
		}
		lsn += 3
		s.steps = append(s.steps, captureStep{kind: captureCommit, end: lsn})
	}
	return s
}

// play feeds a batcher from the beginning of the source, dropping what is at or below its position, as a session does.
// It calls cut after each step and hands over when that says so; it stops when that says so.
func (s testSource) play(pos event.Position, cut func() (hand, stop bool)) (units []*captureUnit) {
	b := testBatcher(pos)
	skip := false
	for i := range s.steps {
		st := s.steps[i]
		switch st.kind {
		case captureBegin:
			skip = st.tx.CommitLSN < pos.CommitLSN
		case captureRow:
			if st.row.position.Compare(pos.Position) <= 0 {
				continue
			}
		default:
		}
		if skip && st.kind != captureAdvance {
			continue
		}
		b.apply(&st)
		hand, stop := cut()
		if hand || b.full() {
			units = append(units, b.seal())
			b.renew(nil)
		}
		if stop {
			return units
		}
	}
	u := b.seal()
	b.renew(nil)
	return append(units, u)
}

// Wherever units are cut and however often a session dies between two units, the records of all of them are those of
// one undisturbed session, once each, and every record of a batch carries it.
func TestUnitsSurviveAnyCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		source := drawSource(t)
		describe := func(units []*captureUnit) (all []string) {
			for _, u := range units {
				for _, rec := range u.records {
					all = append(all, string(rec.Key)+" "+testBatch(rec))
				}
				for _, a := range u.announce {
					all = append(all, fmt.Sprint("announce ", a.batch.ID, " ", a.batch.Rows))
				}
			}
			return all
		}
		sorted := func(all []string) map[string]int {
			n := map[string]int{}
			for _, s := range all {
				n[s]++
			}
			return n
		}
		want := sorted(describe(source.play(event.Position{}, func() (bool, bool) { return false, false })))

		var done []*captureUnit
		var pos event.Position
		var last change.LSN
		for deaths := rapid.IntRange(0, 4).Draw(t, "deaths"); ; deaths-- {
			units := source.play(pos, func() (hand, stop bool) {
				return rapid.IntRange(0, 3).Draw(t, "hand") == 0, deaths > 0 && rapid.IntRange(0, 15).Draw(t, "die") == 0
			})
			for _, u := range units {
				require.GreaterOrEqual(t, u.position.Compare(pos.Position), 0, "a position never goes back")
				if u.confirm != 0 {
					require.GreaterOrEqual(t, u.confirm, last)
					last = u.confirm
				}
				require.LessOrEqual(t, last, u.position.CommitLSN, "nothing is confirmed that Kafka has not")
				pos = u.position
			}
			done = append(done, units...)
			if deaths <= 0 {
				break
			}
		}
		require.Equal(t, want, sorted(describe(done)))
	})
}

// A failover in the middle of a transaction must not give its second half another batch.
func TestCaptureNamesABatchAsItWasBegun(t *testing.T) {
	pos := event.Position{History: change.History{Timeline: 3}}
	require.EqualValues(t, 3, captureNames(pos).Timeline)
	pos.Open = &event.OpenTransaction{BatchID: captureBatchID(change.History{Timeline: 2}, change.Transaction{CommitLSN: 0x1F})}
	require.EqualValues(t, 2, captureNames(pos).Timeline)
	pos.Open.BatchID = "" // not a batch
	require.EqualValues(t, 3, captureNames(pos).Timeline)
}

// A transaction that is half in Kafka and does not come again is a gap, whatever comes in its place.
func TestHalfATransactionIsNotPassedInSilence(t *testing.T) {
	half := event.Position{Writer: "x", Position: change.Position{CommitLSN: 100, Ordinal: 3}, Open: &event.OpenTransaction{BatchID: "tx-1-64", Rows: 3}}
	for name, ev := range map[string]change.Event{
		"another transaction": {Kind: change.EventBegin, Transaction: &change.Transaction{XID: 9, CommitLSN: 500}},
		"a keepalive":         {Kind: change.EventKeepalive, EndLSN: 500},
		"a message":           {Kind: change.EventMessage, Message: &change.Message{LSN: 500, Prefix: MessageSnapshot, Content: []byte(`{}`)}},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewCapture(CaptureConfig{Routes: []route.Route{{Table: "public.products", Key: "id"}}}, CaptureParts{}).newSession(&memoryStream{}, half)
			require.NoError(t, s.take(&change.Event{Kind: change.EventKeepalive, EndLSN: 90}), "before it")
			var gap *captureGap
			require.ErrorAs(t, s.take(&ev), &gap)
			require.Equal(t, gapHalf, gap.cause)
		})
	}
}
