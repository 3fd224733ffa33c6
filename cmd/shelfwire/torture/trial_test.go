package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
	source "github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
)

const trialPartitions = 4

// trial is one schedule in this process: a source, a broker and captures of their own, blows, and a comparison.
type trial struct {
	t          *testing.T
	plan       trialPlan
	server     *sourceServer
	database   string
	broker     *broker
	clerks     *clerks
	contenders int
	// active is who captures, second whoever else is there.
	active, second *contender
	log            safeLog
	unlucky        atomic.Pointer[mishap]

	evidence evidence
	blows    map[string]int // how many of each kind there were
}

// mishap is a step that fails, so many times.
type mishap struct {
	call string
	left atomic.Int64
}

// misfortune fails a step that is to fail.
func (tr *trial) misfortune(call string) error {
	m := tr.unlucky.Load()
	if m == nil || m.call != call || m.left.Add(-1) < 0 {
		return nil
	}
	return errors.New("misfortune at " + call)
}

// TestCaptureTorture runs schedules against Capture: kills, takeovers, cuts, delays, errors of the broker, kills of the
// server, lost slots, restored backups, failovers and changed tables, during random transactions. Then it holds the
// topics row by row against the history that the source itself has written.
func TestCaptureTorture(t *testing.T) {
	seeds := trialSeeds(t, 3)
	server := newSourceServer(t)
	results := openResults(t)
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			began := time.Now()
			tr := newTrial(t, planTrial(seed), server)
			f := &findings{}
			defer func() { results.add(t, seed, tr.line(f, time.Since(began))) }() // also of one that gives up
			tr.run(f)
		})
	}
}

// trialSeeds are those of this run: SEED alone, or SCHEDULES of them, from SEED or any other one on.
func trialSeeds(t *testing.T, few int) []uint64 {
	t.Helper()
	number := func(name string) (uint64, bool) {
		s := os.Getenv(name)
		if s == "" {
			return 0, false
		}
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, name)
		return n, true
	}
	from, chosen := number("SEED")
	n, counted := number("SCHEDULES")
	switch {
	case chosen && !counted:
		n = 1
	case !counted && os.Getenv("SHELFWIRE_TORTURE") != "":
		n = 50
	case !counted:
		n = uint64(few)
	}
	if !chosen {
		from = 1
		if os.Getenv("SHELFWIRE_TORTURE") != "" {
			from = rand.Uint64() >> 20
		}
	}
	var out []uint64
	for i := range n {
		out = append(out, from+i)
	}
	return out
}

func newTrial(t *testing.T, p trialPlan, server *sourceServer) *trial {
	t.Helper()
	tr := &trial{t: t, plan: p, server: server, database: fmt.Sprintf("trial_%d", p.seed), blows: map[string]int{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("SEED=%d repeats this schedule:\n%s", p.seed, &p)
			t.Log(tail(tr.log.String(), 12_000))
		}
	})
	server.t = t
	server.revive()
	server.exec("postgres", "CREATE DATABASE "+tr.database)
	t.Cleanup(tr.clear)
	server.exec(tr.database, trialTables)
	tr.evidence.witness = witness{slot: tr.slot() + "_w", commits: map[uint32]change.LSN{}}
	server.exec(tr.database, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, tr.evidence.witness.slot)
	tr.broker = newBroker(t)
	var err error
	tr.evidence.topics, err = kafkatopics.New(kafkatopics.Config{Brokers: tr.broker.addrs, Partitions: trialPartitions})
	require.NoError(t, err)
	t.Cleanup(tr.evidence.topics.Close)
	require.NoError(t, tr.evidence.topics.EnsureTopics(t.Context()))
	tr.clerks = &clerks{seed: p.seed, ddl: p.ddl, truncates: p.truncates}
	return tr
}

func (tr *trial) slot() string { return fmt.Sprintf("trial_%d", tr.plan.seed) }

// clear ends what runs, and leaves the server as it was.
func (tr *trial) clear() {
	tr.clerks.stop()
	for _, c := range []*contender{tr.active, tr.second} {
		if c != nil {
			c.kill()
		}
	}
	if err := tr.server.drop(tr.database); err != nil {
		tr.t.Error(err)
	}
}

// run strikes, waits until everything is captured, and compares.
func (tr *trial) run(f *findings) {
	tr.begin()
	for _, b := range tr.plan.blows {
		rest(tr.t.Context(), b.after)
		tr.blows[b.kind]++
		_, _ = fmt.Fprintf(&tr.log, "%s === %s\n", time.Now().Format(time.RFC3339Nano), b.kind)
		tr.strike(b)
		tr.alive()
	}
	rest(tr.t.Context(), 200*time.Millisecond)
	tr.clerks.stop()
	require.NoError(tr.t, tr.clerks.fatal)
	tr.unlucky.Store(nil)
	tr.settle()
	for _, c := range []*contender{tr.active, tr.second} {
		if c != nil {
			c.stop()
		}
	}
	require.NoError(tr.t, tr.evidence.compare(tr.t.Context(), f, tr.server.url(tr.database)))
	f.report(tr.t, 12)
}

// begin starts the first capture. Where the first slot begins is told by the healing that a slot without a position
// calls for, or is a place before which nobody has written.
func (tr *trial) begin() {
	t := tr.t
	if tr.plan.early {
		src, err := source.Open(t.Context(), source.Config{URL: tr.server.url(tr.database), Slot: tr.slot()})
		require.NoError(t, err)
		defer src.Close()
		require.NoError(t, src.EnsurePublication(t.Context(), pipeline.RoutedTables(trialRoutes)))
		_, err = src.EnsureSlot(t.Context())
		require.NoError(t, err)
		tr.work()
		rest(t.Context(), 50*time.Millisecond)
	}
	tr.active = tr.enter(tr.plan.first)
	// A slot that is lost before there is a position takes nothing along: then another first start would be right.
	require.Eventually(t, func() bool {
		pos, ok, err := tr.evidence.topics.ReadPosition(t.Context(), kafkatopics.CapturePartition, "capture/"+tr.slot())
		return err == nil && ok && pos.CommitLSN != 0
	}, 30*time.Second, time.Millisecond, "no position")
	if !tr.plan.early {
		tr.evidence.first = tr.end()
		tr.work()
	}
}

// end is how far the WAL reaches.
func (tr *trial) end() (end change.LSN) {
	tr.server.with(tr.database, func(ctx context.Context, conn *pgx.Conn) error {
		var text string
		if err := conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&text); err != nil {
			return err
		}
		var err error
		end, err = change.ParseLSN(text)
		return err
	})
	return end
}

// alive fails when a capture has ended by itself.
func (tr *trial) alive() {
	for _, c := range []*contender{tr.active, tr.second} {
		if c == nil {
			continue
		}
		select {
		case <-c.done:
			require.FailNow(tr.t, "a capture has ended by itself", "%s: %v", c.name, c.err)
		default:
		}
	}
}

// settle waits until everything that was committed is in Kafka, and no snapshot runs.
func (tr *trial) settle() {
	tr.t.Helper()
	for _, c := range []*contender{tr.active, tr.second} {
		if c != nil {
			c.thaw()
			c.proxy.mend()
		}
	}
	end := tr.end()
	tr.server.exec(tr.database, `INSERT INTO unrouted VALUES (1)`) // so that a keepalive passes the mark
	limited, cancel := context.WithTimeout(tr.t.Context(), time.Minute)
	defer cancel()
	for {
		tr.alive()
		for _, c := range []*contender{tr.active, tr.second} {
			if c == nil {
				continue
			}
			s := c.capture.Stats()
			if s.Active.Load() && change.LSN(s.Confirmed.Load()) >= end && !s.Snapshotting.Load() {
				return
			}
		}
		require.True(tr.t, rest(limited, 2*time.Millisecond), "capture does not come to %s", end)
	}
}

// line is what the results say of a trial.
func (tr *trial) line(f *findings, took time.Duration) string {
	var kinds []string
	for kind, n := range tr.blows {
		kinds = append(kinds, fmt.Sprintf("%s x%d", kind, n))
	}
	slices.Sort(kinds)
	return fmt.Sprintf("%d committed, %d rolled back, %d refused; %d rows owed, %d rows in gaps, %d records, %d rows compared; %d captures, %d healings, %d snapshots asked for; %s; %.1f s",
		tr.clerks.commits.Load(), tr.clerks.rolls.Load(), tr.clerks.fails.Load(), f.compared["rows of the history"], f.compared["rows in gaps"],
		f.compared["records of the stream"], f.compared["rows of the tables"], tr.contenders, f.compared["healings"], len(tr.evidence.asked), kinds, took.Seconds())
}
