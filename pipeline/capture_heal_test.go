package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	pg "github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// healRig is a rig with a row from before and one from within a gap, and a count of touches.
type healRig struct {
	*captureRig
	touched, back int
}

func newHealRig(t *testing.T, r *captureRig) *healRig {
	t.Helper()
	h := &healRig{captureRig: r}
	r.touch = func(_ context.Context, back bool) (int64, error) {
		h.touched++
		if back {
			h.back++
		}
		return 7, nil
	}
	c, stop := r.start()
	r.wait(c)
	r.exec(`INSERT INTO products VALUES ('before', 'B', 1), ('deleted', 'D', 1)`)
	r.wait(c)
	require.NoError(t, stop())
	require.Zero(t, h.touched, "a first start heals nothing")
	require.Empty(t, r.healings())
	return h
}

// gap commits what no stream will show.
func (h *healRig) gap() {
	h.exec(`INSERT INTO products VALUES ('within', 'W', 1)`)
	h.exec(`DELETE FROM products WHERE id = 'deleted'`)
}

// A slot that was made beside ALTER TABLE may not know of it, and its maker looks for that. One whose maker has gone
// before it could is made anew by whoever finds it.
func TestCaptureReadsFromNoSlotThatNobodyHasLookedAt(t *testing.T) {
	r := newCaptureRig(t)
	made := 0
	r.renew = func(ctx context.Context, src *pg.Source) error {
		made++
		if err := src.RenewSlot(ctx); err != nil || made > 1 {
			return err
		}
		return errors.New("killed")
	}
	r.exec(`INSERT INTO products VALUES ('a', 'A', 1)`)
	c, stop := r.start()
	r.wait(c)
	r.exec(`INSERT INTO products VALUES ('b', 'B', 1)`)
	r.wait(c)
	require.NoError(t, stop())
	require.Equal(t, 2, made)
	require.Equal(t, []string{"products r a", "products c b"}, brief(r.records(event.Changes)))
	require.Empty(t, r.healings(), "it is a first start all the same")

	// Nor is one found again that is known to be good.
	c, stop = r.start()
	r.wait(c)
	require.NoError(t, stop())
	require.Equal(t, 2, made)
}

func (r *captureRig) healings() []event.Batch {
	var out []event.Batch
	for _, rec := range r.records(event.Batches) {
		var b event.Batch
		require.NoError(r.t, json.Unmarshal(rec.Value, &b))
		if b.Type == event.BatchHealed {
			require.NotNil(r.t, b.Healing)
			out = append(out, b)
		}
	}
	return out
}

// healed runs a capture over the gap and says what stands in the topics afterwards: everything once more, the gap
// named, and what comes later by the stream. A start after that has nothing to heal. first are causes that were found
// before that of the gap.
func (h *healRig) healed(cause string, first ...string) event.Healing {
	t := h.t
	t.Helper()
	before := len(h.records(event.Changes))
	c, stop := h.start()
	h.wait(c)
	h.exec(`INSERT INTO products VALUES ('after', 'A', 1)`)
	h.wait(c)
	require.NoError(t, stop())
	require.EqualValues(t, 1+len(first), c.Stats().Healings.Load())
	require.Equal(t, 1+len(first), h.touched)
	list := h.healings()
	require.Len(t, list, 1+len(first))
	for i, cause := range append(slices.Clone(first), cause) {
		require.Equal(t, cause, list[i].Healing.Cause)
	}
	last := list[len(first)]
	g := last.Healing
	require.NotEmpty(t, g.Reason)
	require.Equal(t, last.ID, g.Snapshot)
	require.NotZero(t, g.To)
	require.False(t, g.At.IsZero())
	require.EqualValues(t, 7, g.Touched)

	ops := map[string]int{}
	for _, line := range brief(h.records(event.Changes)) {
		ops[line]++
	}
	require.Equal(t, 1, ops["products r within"])
	require.Equal(t, 1, ops["products r before"])
	require.Equal(t, 1, ops["products c after"])
	require.Zero(t, ops["products c within"])
	require.Len(t, h.records(event.Changes), before+3)

	again, stop := h.start()
	h.exec(`INSERT INTO products VALUES ('later', 'L', 1)`)
	h.wait(again)
	require.NoError(t, stop())
	require.Zero(t, again.Stats().Healings.Load())
	require.Len(t, h.records(event.Changes), before+4)
	return *g
}

func TestCaptureHealsAMissingSlot(t *testing.T) {
	h := newHealRig(t, newCaptureRig(t))
	h.exec(`SELECT pg_drop_replication_slot($1)`, h.slot())
	h.gap()
	h.cfg.NoHeal = true
	err := h.giveUp()
	require.ErrorContains(t, err, "is missing")
	require.ErrorContains(t, err, "run: shelfwire run --restart-capture")
	require.NotContains(t, err.Error(), "pg_drop", "there is nothing to drop")
	h.cfg.NoHeal = false
	g := h.healed("missing")
	require.NotZero(t, g.From)
	require.False(t, g.FromTime.IsZero())
	require.Greater(t, g.To, g.From)
	require.False(t, g.Back)
}

func healsASlotThatIsLostWhileItRuns(t *testing.T) {
	h := newHealRig(t, newCaptureRig(t))
	c, stop := h.start()
	h.wait(c)
	_, err := h.db.Exec(t.Context(), `DO $$ BEGIN
		LOOP
			BEGIN
				PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '`+h.slot()+`';
				PERFORM pg_drop_replication_slot('`+h.slot()+`');
				RETURN;
			EXCEPTION WHEN object_in_use THEN
			END;
		END LOOP;
	END $$`)
	require.NoError(t, err)
	h.gap()
	require.Eventually(t, func() bool { return c.Stats().Healings.Load() == 1 }, time.Minute, 5*time.Millisecond)
	h.exec(`INSERT INTO products VALUES ('after', 'A', 1)`)
	h.wait(c)
	require.NoError(t, stop())
	require.Equal(t, "missing", h.healings()[0].Healing.Cause)
	require.Contains(t, brief(h.records(event.Changes)), "products c after")
}

func TestCaptureHealsASlotThatSomebodyElseHasRead(t *testing.T) {
	h := newHealRig(t, newCaptureRig(t))
	h.gap()
	h.exec(`SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())`, h.slot())
	require.Equal(t, "passed", h.healed("passed").Cause)
}

func TestCaptureHealsALostPosition(t *testing.T) {
	h := newHealRig(t, newCaptureRig(t))
	h.gap()
	h.exec(`SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())`, h.slot())
	h.kc = newCaptureTopics(t) // the topics are as new
	g := h.healed("position")
	require.Zero(t, g.From, "nobody knows")
}

func healsASlotThatIsOlderThanItsPublication(t *testing.T) {
	h := newHealRig(t, newCaptureRig(t))
	h.exec(`DROP PUBLICATION shelfwire`)
	h.gap()                          // this part of the WAL knows no publication
	h.healed("stale", "unpublished") // the new publication is seen before the stream comes to where there was none
}

// ownHealRig is a healRig on a server of the test's own in dir, which may be stopped, copied and set back.
func ownHealRig(t *testing.T, slot string) (dir string, s *postgres.Server, h *healRig) {
	t.Helper()
	dir = embeddedtest.Dir(t)
	s = ownServer(t, dir, nil)
	r := newCaptureRigOn(t, s.URL("postgres"))
	r.slotName = slot
	return dir, s, newHealRig(t, r)
}

// ownServer starts a Postgres of the test's own, in dir.
func ownServer(t *testing.T, dir string, params map[string]string) *postgres.Server {
	t.Helper()
	return ownServerAt(t, dir, 0, params)
}

// ownServerAt starts it on a port, or with 0 on a free one.
func ownServerAt(t *testing.T, dir string, port int, params map[string]string) *postgres.Server {
	t.Helper()
	s, err := embeddedtest.StartPostgres(t.Context(), postgres.Config{Dir: dir, Port: port, Params: params})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Stop() })
	return s
}

func healsASlotWhoseWALIsGone(t *testing.T) {
	s := ownServer(t, embeddedtest.Dir(t), map[string]string{"max_slot_wal_keep_size": "1MB"})
	r := newCaptureRigOn(t, s.URL("postgres"))
	r.slotName = "lost"
	h := newHealRig(t, r)
	h.gap()
	for range 4 {
		h.exec(`INSERT INTO unrouted VALUES (1)`)
		h.exec(`SELECT pg_switch_wal()`)
	}
	h.exec(`CHECKPOINT`)
	var status string
	require.NoError(t, h.db.QueryRow(t.Context(), `SELECT wal_status FROM pg_replication_slots`).Scan(&status))
	require.Equal(t, "lost", status)
	h.cfg.NoHeal = true
	require.ErrorContains(t, h.giveUp(), `SELECT pg_drop_replication_slot('lost')" && shelfwire run --restart-capture`)
	h.cfg.NoHeal = false
	h.healed("lost")
}

// copyServer copies the directory of a server that has been stopped, as a file system's snapshot does.
func copyServer(t *testing.T, from string) string {
	t.Helper()
	to := embeddedtest.Dir(t)
	out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput() //nolint:noctx // ends by itself
	require.NoError(t, err, string(out))
	return to
}

// A file system's snapshot is put back: system and timeline are the same, and even the slot is there.
func TestCaptureHealsASourceThatWasSetBack(t *testing.T) {
	dir, s, h := ownHealRig(t, "set_back")
	require.NoError(t, s.Stop())
	backup := copyServer(t, dir)
	s = ownServer(t, dir, nil)
	h.connect(s.URL("postgres"))
	c, stop := h.start()
	h.exec(`INSERT INTO products SELECT 'never' || i FROM generate_series(1, 5000) i`)
	h.wait(c)
	require.NoError(t, stop())
	require.NoError(t, s.Stop())

	h.connect(ownServer(t, backup, nil).URL("postgres"))
	h.gap()
	g := h.healed("behind")
	require.Less(t, g.To, g.From)
	require.True(t, g.Back)
	require.Equal(t, 1, h.back)
}

// A server that cannot decode has lost nothing: the slot must not be given up for that.
func TestCaptureDoesNotHealAServerWithoutLogicalDecoding(t *testing.T) {
	dir, s, h := ownHealRig(t, "undecoded")
	h.exec(`SELECT pg_drop_replication_slot($1)`, h.slot()) // a server with one does not start without logical decoding
	require.NoError(t, s.Stop())
	s = ownServer(t, dir, map[string]string{"wal_level": "replica"})
	h.connect(s.URL("postgres"))
	require.ErrorContains(t, h.giveUp(), "wal_level")
	require.Empty(t, h.healings())
	require.Zero(t, h.touched)
}

func TestCaptureTakesAnotherClusterOnlyWhenItIsMeant(t *testing.T) {
	h := newHealRig(t, newCaptureRig(t))
	slot := h.slot()
	other := newCaptureRigOn(t, ownServer(t, embeddedtest.Dir(t), nil).URL("postgres"))
	other.slotName, other.kc = slot, h.kc
	other.touch = h.touch
	h.captureRig = other
	other.exec(`INSERT INTO products VALUES ('before', 'B', 1), ('deleted', 'D', 1)`)
	h.gap()
	require.ErrorContains(t, other.giveUp(), "--accept-source")
	other.cfg.AcceptSource = true
	g := h.healed("system")
	require.True(t, g.Back)
}

// Batches that the gap leaves unfinished are ended, with what stands in the topics.
func TestCaptureEndsBatchesThatItGivesUp(t *testing.T) {
	h := newHealRig(t, newCaptureRig(t))
	h.half()
	require.Eventually(t, func() bool {
		_, err := h.db.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, h.slot())
		return err == nil
	}, time.Minute, 10*time.Millisecond)

	c, stop := h.start()
	h.wait(c)
	require.NoError(t, stop())
	last := map[string]map[int32]int64{}
	for _, rec := range h.records(event.Changes) {
		if id := header(&rec, event.HeaderBatch); id != "" {
			if last[id] == nil {
				last[id] = map[int32]int64{}
			}
			last[id][rec.Partition] = rec.Offset
		}
	}
	var announced []string
	for _, rec := range h.records(event.Batches) {
		var b event.Batch
		require.NoError(t, json.Unmarshal(rec.Value, &b))
		if b.Type == event.BatchAnnounced {
			require.Equal(t, last[b.ID], b.Changes, b.ID)
			require.Equal(t, b.Kind == event.KindTransaction, b.Reason != "", b.ID)
			announced = append(announced, b.Kind)
		}
	}
	slices.Sort(announced)
	require.Equal(t, []string{event.KindSnapshot, event.KindTransaction}, announced)
}

// half captures a part of a large transaction.
func (h *healRig) half() {
	h.cfg.BatchRows, h.cfg.TxRows = 20, 20
	written := 0
	h.faults = func(call string) error {
		if call == "after commit" {
			if written++; written > 4 {
				return errors.New("killed")
			}
		}
		return nil
	}
	h.exec(`INSERT INTO products SELECT 'big' || i FROM generate_series(1, 200) i`)
	_, stop := h.start()
	require.Eventually(h.t, func() bool {
		pos, ok, err := h.kc.ReadPosition(h.t.Context(), kafka.CapturePartition, "capture/"+h.slot())
		return err == nil && ok && pos.Open != nil
	}, time.Minute, 5*time.Millisecond)
	require.NoError(h.t, stop())
	h.faults = nil
}

// A source that was set back has written so much since that its WAL is past the position again. A transaction that was
// half captured does not come to its end then.
func TestCaptureHealsAHalfTransactionWhoseRestIsGone(t *testing.T) {
	dir, s, h := ownHealRig(t, "half")
	require.NoError(t, s.Stop())
	backup := copyServer(t, dir)
	s = ownServer(t, dir, nil)
	h.connect(s.URL("postgres"))
	h.half()
	require.NoError(t, s.Stop())

	h.connect(ownServer(t, backup, nil).URL("postgres"))
	h.exec(`INSERT INTO unrouted SELECT generate_series(1, 50000)`)
	h.gap()
	g := h.healed("half")
	require.True(t, g.Back)
	require.Greater(t, g.To, g.From)
}

// A kill at any step of the healing neither loses it nor does it twice.
func TestCaptureHealsOnceThroughKills(t *testing.T) {
	h := newHealRig(t, newCaptureRig(t))
	rnd := rand.New(rand.NewPCG(1, 1))
	for round := range 6 {
		h.cfg.HealMost = -1
		h.exec(`SELECT pg_drop_replication_slot($1)`, h.slot())
		h.exec(`INSERT INTO products VALUES ($1, 'W', 1)`, "round"+string(rune('0'+round)))
		steps := 0
		h.faults = func(string) error {
			if steps++; steps < 20 && rnd.IntN(3) == 0 {
				return errors.New("killed")
			}
			return nil
		}
		c, stop := h.start()
		h.wait(c)
		require.NoError(t, stop())
		require.Len(t, h.healings(), round+1)
		require.Contains(t, brief(h.records(event.Changes)), "products r round"+string(rune('0'+round)))
	}
}

func TestCaptureStopsWhenGapsDoNotEnd(t *testing.T) {
	h := newHealRig(t, newCaptureRig(t))
	h.cfg.HealMost = 2
	for range 2 {
		h.exec(`SELECT pg_drop_replication_slot($1)`, h.slot())
		c, stop := h.start()
		h.wait(c)
		require.NoError(t, stop())
	}
	h.exec(`SELECT pg_drop_replication_slot($1)`, h.slot())
	require.ErrorContains(t, h.giveUp(), "gap number 3 within an hour")
	h.cfg.Restart = true // a person has looked at it
	c, stop := h.start()
	h.wait(c)
	require.NoError(t, stop())
	require.Len(t, h.healings(), 3)
}
