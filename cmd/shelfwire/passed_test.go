package main

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// forget removes all that topics hold, as retention does.
func (s *site) forget(topics ...string) {
	s.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.parts.kafkaAddr))
	require.NoError(s.t, err)
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for _, topic := range topics {
		ends, err := adm.ListEndOffsets(s.t.Context(), "catalog."+topic)
		require.NoError(s.t, err)
		gone, err := adm.DeleteRecords(s.t.Context(), ends.Offsets())
		require.NoError(s.t, err)
		require.NoError(s.t, gone.Error())
	}
}

// Retention takes what was captured before anybody has pushed it, and later the state is lost as well: the shops are true
// to the database all the same.
func TestWhatKafkaHasForgottenIsHealed(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the whole pipeline")
	}
	s := newSite(t, 30)
	clean := func() bool { code, _ := s.audit(); return code == exitOK }
	passed := func() bool {
		_, body := s.get("/metrics")
		return strings.Contains(body, "shelfwire_positions_passed_total ") && !strings.Contains(body, "shelfwire_positions_passed_total 0")
	}
	stop := s.run()
	require.Eventually(t, clean, time.Minute, 500*time.Millisecond, "the first snapshot")
	stop()

	stop = s.run("--only", "capture")
	s.exec(`UPDATE catalog.variants SET price = 1234 WHERE product_id IN (SELECT product_id FROM catalog.variants LIMIT 3)`)
	s.exec(`DELETE FROM catalog.products WHERE id = (SELECT min(id) FROM catalog.products)`)
	s.exec(`UPDATE catalog.price_rules SET percent = 17`)
	require.Eventually(t, func() bool {
		return s.value(s.parts.sourceURL, `SELECT (confirmed_flush_lsn > (SELECT pg_current_wal_insert_lsn() - 100000))::text FROM pg_replication_slots`) == "true"
	}, time.Minute, 100*time.Millisecond)
	stop()
	s.forget(event.Changes, event.Fanouts, event.Batches)
	require.False(t, clean())
	stop = s.run()
	require.Eventually(t, clean, 2*time.Minute, 500*time.Millisecond)
	require.True(t, passed())
	stop()

	s.forget(event.Changes, event.Fanouts, event.Batches)
	s.exec(`UPDATE catalog.variants SET price = 4321 WHERE product_id IN (SELECT product_id FROM catalog.variants LIMIT 3)`)
	conn, err := pgx.Connect(t.Context(), s.parts.stateURL)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `DROP SCHEMA public CASCADE; CREATE SCHEMA public`)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	for _, command := range []string{"check", "run"} {
		code, out := shelfwire(t, command, "-c", s.file)
		require.Equal(t, exitUsage, code, out)
		text := strings.Join(strings.Fields(out), " ")
		require.Contains(t, text, "the topics beside catalog.positions belong to another state", "nobody knows whether that one is gone, or only away")
		require.Contains(t, text, "shelfwire run --accept-topics")
	}
	stop = s.run("--accept-topics")
	require.Eventually(t, clean, 2*time.Minute, 500*time.Millisecond, "an empty state, and topics that have forgotten what was before")
	require.True(t, passed())
	stop()
}
