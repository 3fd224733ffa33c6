package clickhouse

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"testing"
	"time"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

func TestMalformedRecordsArePutAside(t *testing.T) {
	db := open(t)
	header := func(key, value string) event.Header { return event.Header{Key: key, Value: []byte(value)} }
	good := event.Record{
		Key: []byte("p1"), Value: []byte(`{"before":null,"after":{"id":1,"name":"ü\u0000"},"op":"c"}`),
		Headers: []event.Header{
			header(event.HeaderPosition, "16/B374D848:12"), header(event.HeaderXID, "4294967297"), header(event.HeaderTable, "public.products"),
			header(event.HeaderOp, "c"), header(event.HeaderPrimaryKey, `{"id":1}`), header(event.HeaderCommitted, "1700000000000001"),
		},
	}
	with := func(value string, headers ...event.Header) event.Record {
		return event.Record{Key: []byte("\xff"), Value: []byte(value), Headers: headers}
	}
	position := header(event.HeaderPosition, "0/1:1")
	rs := records(t, event.Changes, 0, 0,
		good,
		with("", position), with("[]", position), with(`{"a":`, position), with("\x00\xfe", position),
		with("{}"), with("{}", header(event.HeaderPosition, "x")), with("{}", position, header(event.HeaderXID, "-1")),
		with("{}", position, header(event.HeaderCommitted, "yesterday")),
		event.Record{Key: nil, Value: nil, Headers: []event.Header{position}},
		good)
	require.Equal(t, 9, insert(t, db, event.Changes, topicA, rs, "a"))
	insert(t, db, event.Changes, topicA, rs[3:], "b")
	require.EqualValues(t, 2, count(t, db, "changes"))
	require.EqualValues(t, 9, count(t, db, "malformed"))
	require.EqualValues(t, 9, count(t, db, "malformed WHERE reason != '' AND topic = 'changes'"))
	require.EqualValues(t, 1, count(t, db, `malformed WHERE value = '\0\xfe' AND key = '\xff' AND headers['position'] = '0/1:1'`))
	var lsn, ordinal, xid uint64
	var after string
	var committed time.Time
	require.NoError(t, db.conn.QueryRow(t.Context(), "SELECT commit_lsn, ordinal, xid, after, assumeNotNull(committed) FROM changes LIMIT 1").Scan(&lsn, &ordinal, &xid, &after, &committed))
	require.EqualValues(t, 0x16B374D848, lsn)
	require.EqualValues(t, 12, ordinal)
	require.EqualValues(t, 1<<32+1, xid)
	require.JSONEq(t, `{"id":1,"name":"ü\u0000"}`, after)
	require.Equal(t, time.UnixMicro(1700000000000001).UTC(), committed.UTC())

	require.Equal(t, 3, insert(t, db, event.Outcomes, topicA, records(t, event.Outcomes, 0, 0, []byte("{}"), []byte(`{"product_id":"p"}`), []byte(`{"attempt":"x"}`), outcomeOf(1)), "a"))
	require.Equal(t, 2, insert(t, db, event.Batches, topicA, records(t, event.Batches, 0, 0, []byte("{}"), []byte(`{"batch_id":"b"}`)), "a"))
	require.Equal(t, 3, insert(t, db, event.Documents, topicA, records(t, event.Documents, 0, 0, []byte("{}"), event.Record{Key: []byte("nobar")}, []byte("x")), "a"))
	require.Equal(t, 0, insert(t, db, event.DeadLetters, topicA, records(t, event.DeadLetters, 0, 0, event.Record{}, with("\x00", header(event.HeaderReason, "why"))), "a"))
	require.EqualValues(t, 1, count(t, db, "deadletters WHERE reason = 'why'"))
}

func TestRowsKeepAbsurdTimestampsAndNumbers(t *testing.T) {
	db := open(t)
	o := outcomeOf(1)
	o.FirstCommit, o.SettledAt = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1, 2, 3, 0, 0, 0, 0, time.UTC)
	o.PointsActual = math.MaxFloat64
	rs := records(t, event.Outcomes, 0, 0, o, o, o, o)
	rs[0].Timestamp = time.UnixMilli(-1)
	rs[1].Timestamp = time.UnixMilli(math.MaxInt64)
	rs[2].Timestamp = time.Time{}
	rs[3].Offset = math.MaxInt64
	insert(t, db, event.Outcomes, topicA, rs, "a")
	insert(t, db, event.Outcomes, topicA, rs[:2], "b")
	insert(t, db, event.Outcomes, topicA, rs[2:], "c")
	require.EqualValues(t, 4, count(t, db, "outcomes"))
}

func TestABlockMayTouchManyMonths(t *testing.T) {
	db := open(t)
	var values []any
	for n := range 120 {
		values = append(values, outcomeOf(n))
	}
	rs := records(t, event.Outcomes, 0, 0, values...)
	for i := range rs {
		rs[i].Timestamp = noon.AddDate(0, -i, 0)
	}
	insert(t, db, event.Outcomes, topicA, rs, "a")
	insert(t, db, event.Outcomes, topicA, rs, "a")
	insert(t, db, event.Outcomes, topicA, rs[7:], "b")
	require.EqualValues(t, 120, count(t, db, "outcomes"))
}

func TestBeginFindsWhereRowsEnd(t *testing.T) {
	db := open(t)
	ends := func(topic string, id [16]byte) map[int32]int64 {
		ends, err := db.Begin(t.Context(), topic, id)
		require.NoError(t, err)
		return ends
	}
	for i, topic := range Topics() {
		first, second := [16]byte{1, byte(i)}, [16]byte{2, byte(i)} // Kafka gives no id twice
		require.Empty(t, ends(topic, first), topic)
		insert(t, db, topic, first, records(t, topic, 0, 41, []byte("no JSON")), "a")
		insert(t, db, topic, first, records(t, topic, 2, 6, []byte("no JSON")), "b")
		require.Equal(t, map[int32]int64{0: 42, 2: 7}, ends(topic, first), topic)
		require.Empty(t, ends(topic, second), topic)
	}
	_, err := db.Begin(t.Context(), event.Outcomes, [16]byte{})
	require.ErrorContains(t, err, "no id")
	require.EqualValues(t, 2*len(Topics()), count(t, db, "topics"))
	require.EqualValues(t, 2*len(Topics()), count(t, db, "topics_rows"))
}

func TestRetentionForgetsRowsAndKeepsDocuments(t *testing.T) {
	db := open(t, func(c *Config) { c.Retention = 30 * 24 * time.Hour })
	old := records(t, event.Outcomes, 0, 0, outcomeOf(1), outcomeOf(2))
	old[0].Timestamp, old[1].Timestamp = time.Now().AddDate(0, 0, -40), time.Now()
	insert(t, db, event.Outcomes, topicA, old, "a")
	doc := records(t, event.Documents, 0, 0, documentOf(t, "p1", "1", 1))
	doc[0].Timestamp = time.Now().AddDate(-3, 0, 0)
	_, err := db.Begin(t.Context(), event.Documents, topicA)
	require.NoError(t, err)
	insert(t, db, event.Documents, topicA, doc, "a")
	require.NoError(t, db.conn.Exec(t.Context(), "OPTIMIZE TABLE outcomes_rows FINAL"))
	require.NoError(t, db.conn.Exec(t.Context(), "OPTIMIZE TABLE document_versions_rows FINAL"))
	require.EqualValues(t, 1, count(t, db, "outcomes"))
	require.Zero(t, count(t, db, "document_versions"))
	require.EqualValues(t, 1, count(t, db, "documents"))
}

// The server's DateTime ends in 2106 and begins again in 1970, and that of a timestamp before 1970 lies in our time.
func TestRetentionKnowsAbsurdTimestamps(t *testing.T) {
	db := open(t, func(c *Config) { c.Retention = 30 * 24 * time.Hour })
	rs := records(t, event.Outcomes, 0, 0, outcomeOf(1), outcomeOf(2), outcomeOf(3), outcomeOf(4))
	for i, year := range []int{2150, 2299, 1925, time.Now().Year() + 1} {
		rs[i].Timestamp = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	insert(t, db, event.Outcomes, topicA, rs, "a")
	require.NoError(t, db.conn.Exec(t.Context(), "OPTIMIZE TABLE outcomes_rows FINAL"))
	require.EqualValues(t, 3, count(t, db, "outcomes"))
	require.EqualValues(t, 1, count(t, db, "outcomes WHERE toYear(timestamp) = 2150"))
	require.EqualValues(t, 1, count(t, db, "outcomes WHERE toYear(timestamp) = 2261"))
}

// A loader begins with each lease that it gets: the question where rows end must not read the table.
func TestBeginReadsNoTable(t *testing.T) {
	db := open(t)
	require.NoError(t, db.conn.Exec(t.Context(), `INSERT INTO outcomes_rows (topic_id, partition, offset, timestamp, product_id)
		SELECT {id:UUID}, number % 8, intDiv(number, 8), {noon:DateTime} + toIntervalMillisecond(number), toString(number) FROM numbers(200000)`,
		chgo.Named("id", formatUUID(topicA)), chgo.Named("noon", noon.Format(time.DateTime))))
	insert(t, db, event.Outcomes, topicA, records(t, event.Outcomes, 7, 25_000, outcomeOf(1)), "a")
	look := func() {
		t.Helper()
		ends, err := db.Begin(t.Context(), event.Outcomes, topicA)
		require.NoError(t, err)
		require.Len(t, ends, 8)
		require.EqualValues(t, 25_001, ends[7])
		require.EqualValues(t, 25_000, ends[0])
		var marks uint64
		rows, err := db.conn.Query(t.Context(), "EXPLAIN ESTIMATE "+endsSQL("outcomes_rows"), chgo.Named("id", formatUUID(topicA)))
		require.NoError(t, err)
		for rows.Next() {
			var database, table string
			var parts, n, m uint64
			require.NoError(t, rows.Scan(&database, &table, &parts, &n, &m))
			marks += m
		}
		require.NoError(t, rows.Err())
		require.LessOrEqual(t, marks, uint64(4), "one for each part, of 25 of the table")
	}
	look()
	// Equal rows are merged, and what the parts say of their ends with them.
	insert(t, db, event.Outcomes, topicA, records(t, event.Outcomes, 7, 25_000, outcomeOf(1)), "b")
	require.NoError(t, db.conn.Exec(t.Context(), "OPTIMIZE TABLE outcomes_rows FINAL"))
	look()
	require.NoError(t, db.conn.Exec(t.Context(), "DELETE FROM outcomes_rows WHERE product_id = '5'"), "a person may have to be forgotten")
	look()
}

func TestErrorsSayWhatToDo(t *testing.T) {
	db := open(t)
	require.NoError(t, db.conn.Exec(t.Context(), "DROP TABLE outcomes_rows SYNC"))
	_, err := db.Insert(t.Context(), event.Outcomes, topicA, records(t, event.Outcomes, 0, 0, outcomeOf(1)), "a")
	var answer *ServerError
	require.ErrorAs(t, err, &answer)
	require.EqualValues(t, 60, answer.Code)
	require.ErrorContains(t, err, "insert 1 rows into outcomes_rows")
	require.ErrorContains(t, err, "a table is missing")

	cfg := db.cfg
	cfg.Password = "wrong-secret"
	bad, err := Open(cfg)
	require.NoError(t, err)
	err = bad.Migrate(t.Context())
	require.ErrorContains(t, err, "clickhouse.password")
	require.NotContains(t, err.Error(), "wrong-secret")
	require.NoError(t, bad.Close())

	cfg.Addr = []string{"127.0.0.1:1"}
	away, err := Open(cfg)
	require.NoError(t, err)
	require.ErrorContains(t, away.Ping(t.Context()), "127.0.0.1:1")
	_, err = away.Insert(t.Context(), event.Outcomes, topicA, records(t, event.Outcomes, 0, 0, outcomeOf(1)), "a")
	require.ErrorContains(t, err, "does not answer")
	require.NoError(t, away.Close())

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = db.Insert(ctx, event.Batches, topicA, records(t, event.Batches, 0, 0, event.Batch{ID: "b", Type: "opened"}), "a")
	require.ErrorIs(t, err, context.Canceled)
	_, err = db.Insert(t.Context(), event.Positions, topicA, records(t, event.Positions, 0, 0, "x"), "a")
	require.ErrorContains(t, err, "no table")
}

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	for want, cfg := range map[string]Config{
		"no address":       {},
		"retention 1h0m0s": {Addr: []string{"x:1"}, Retention: time.Hour},
		"refresh 1ms":      {Addr: []string{"x:1"}, Refresh: time.Millisecond},
	} {
		_, err := Open(cfg)
		require.ErrorContains(t, err, want)
	}
	_, err := ParseURL("http://user:very-secret@host:8123/db")
	require.ErrorContains(t, err, "native")
	_, err = ParseURL("clickhouse://user:very-secret@ho st:9000/db")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "very-secret")
}

// Whatever bytes a record holds, it becomes exactly one row, and reading it is no error.
func FuzzRecords(f *testing.F) {
	value, err := json.Marshal(outcomeOf(3))
	require.NoError(f, err)
	f.Add([]byte("p|eu"), value, "0/1:1")
	f.Add([]byte("p"), []byte(`{"product_id":"p","shop":"s","document":{"variants":[{"stock":null}]}}`), change.Position{}.String())
	f.Add([]byte(nil), []byte(nil), "")
	f.Fuzz(func(t *testing.T, key, value []byte, position string) {
		if len(value) == 0 {
			value = nil
		}
		r := event.Record{Key: key, Value: value, Headers: []event.Header{{Key: event.HeaderPosition, Value: []byte(position)}}}
		for _, topic := range Topics() {
			rows := map[string]int{}
			for _, b := range tables[topic](formatUUID(topicA), topic, []event.Record{r}) {
				rows[b.table] = b.rows
				for _, c := range b.columns {
					require.NotEmpty(t, c.name)
					require.NotNil(t, c.values)
				}
			}
			require.Equal(t, 1, rows[malformedTable]+rows[tablesOf(topic)[0]], fmt.Sprint(topic, rows))
		}
	})
}
