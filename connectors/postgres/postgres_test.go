package postgres_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/change"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// database is one database of the shared server with a connection for the test's own statements.
type database struct {
	t    *testing.T
	url  string
	conn *pgx.Conn
	ends int
}

func newDatabase(t *testing.T, sql ...string) *database {
	t.Helper()
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	d := &database{t: t, url: url, conn: conn}
	for _, s := range sql {
		d.exec(s)
	}
	return d
}

// exec runs one or more statements; without BEGIN each is a transaction of its own only when given alone.
func (d *database) exec(sql string) {
	d.t.Helper()
	_, err := d.conn.PgConn().Exec(context.WithoutCancel(d.t.Context()), sql).ReadAll() // also in a cleanup
	require.NoError(d.t, err, sql)
}

func (d *database) text(sql string) string {
	d.t.Helper()
	var s string
	require.NoError(d.t, d.conn.QueryRow(d.t.Context(), sql).Scan(&s), sql)
	return s
}

// config names a slot after the database, as slots belong to the whole server.
func (d *database) config() postgres.Config {
	return postgres.Config{URL: d.url, Slot: d.text("SELECT current_database()"), IdleAfter: 20 * time.Millisecond}
}

func (d *database) open(cfg postgres.Config) *postgres.Source {
	d.t.Helper()
	src, err := postgres.Open(d.t.Context(), cfg)
	require.NoError(d.t, err)
	d.t.Cleanup(src.Close)
	return src
}

// capture opens a source with publication and slot for these tables.
func (d *database) capture(tables ...string) *postgres.Source {
	d.t.Helper()
	return d.captureWith(func(*postgres.Config) {}, tables...)
}

func (d *database) captureWith(mod func(*postgres.Config), tables ...string) *postgres.Source {
	d.t.Helper()
	cfg := d.config()
	mod(&cfg)
	src := d.open(cfg)
	require.NoError(d.t, src.EnsurePublication(d.t.Context(), tables))
	_, err := src.EnsureSlot(d.t.Context())
	require.NoError(d.t, err)
	return src
}

func stream(t *testing.T, src *postgres.Source, from change.LSN) *postgres.Stream {
	t.Helper()
	st, err := src.Stream(t.Context(), from)
	require.NoError(t, err)
	t.Cleanup(func() { _ = st.Close(context.WithoutCancel(t.Context())) })
	return st
}

// row is a change made comparable: texts, with NULL, unchanged and missing spelled out.
type row struct {
	Op            string
	Table         string
	Before, After map[string]string
	Position      change.Position
	LSN           change.LSN
	XID           change.XID
	EndLSN        change.LSN // of its transaction
	Message       string     // prefix=content, for a message
}

func images(rel *change.Relation, t change.Tuple) map[string]string {
	if t == nil {
		return nil
	}
	m := map[string]string{}
	for i, v := range t {
		switch v.Kind {
		case change.Null:
			m[rel.Columns[i].Name] = "NULL"
		case change.Unchanged:
			m[rel.Columns[i].Name] = "UNCHANGED"
		case change.Text:
			m[rel.Columns[i].Name] = string(v.Data)
		default:
		}
	}
	return m
}

// until reads whole transactions until one has carried the message "end" with this content, which is not returned.
func until(t *testing.T, st *postgres.Stream, end string) []row {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var rows []row
	start, done := 0, false
	for {
		ev, err := st.Next(ctx)
		require.NoError(t, err)
		switch ev.Kind {
		case change.EventBegin:
			start = len(rows)
		case change.EventChange:
			c := ev.Change
			rows = append(rows, row{
				Op: string(c.Op), Table: c.Relation.Table(), Before: images(c.Relation, c.Before), After: images(c.Relation, c.After),
				Position: c.Position, LSN: c.LSN, XID: ev.Transaction.XID,
			})
		case change.EventMessage:
			r := row{Op: "m", Message: ev.Message.Prefix + "=" + string(ev.Message.Content), Position: ev.Message.Position, LSN: ev.Message.LSN}
			if ev.Transaction != nil {
				r.XID = ev.Transaction.XID
			}
			if ev.Message.Prefix == "end" {
				done = string(ev.Message.Content) == end
				continue
			}
			rows = append(rows, r)
		case change.EventCommit:
			for i := range rows[start:] {
				rows[start+i].EndLSN = ev.EndLSN
			}
			if done {
				return rows
			}
		default:
		}
	}
}

// end is the content of the last message that ended the traffic.
func (d *database) end() string { return fmt.Sprint("here ", d.ends) }

// rows ends the traffic so far and reads it.
func (d *database) rows(st *postgres.Stream) []row {
	d.t.Helper()
	d.ends++
	d.exec("SELECT pg_logical_emit_message(true, 'end', '" + d.end() + "')")
	return until(d.t, st, d.end())
}
