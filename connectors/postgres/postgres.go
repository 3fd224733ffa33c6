// Package postgres is the source side of Shelfwire: replication slot and stream, snapshot chunks, and the reads
// that turn product ids into documents. It knows Postgres and the shared vocabulary, nothing of Kafka or of the
// stages.
//
// # File map
//
//   - postgres.go: Config, Source, the read transaction that all reads share
//   - slot.go, slot_status.go: history, publication, slot; what the slot costs
//   - published.go: whether the publication is still what it was
//   - stream.go: the replication stream, stream_end.go what ends it; wire.go frames its bytes, gulp.go says when they are fetched, wide.go
//     cuts out what is too large, decode.go decodes pgoutput
//   - keepalive.go: what the server is told, and when
//   - streamed.go, spill.go: transactions that are streamed before their end, and the disk where they wait for it
//   - catalog.go, types.go: what a table and its types look like
//   - chunk.go, chunk_cut.go, chunk_where.go: its rows in chunks, what divides it into ranges, and which rows are selected
//   - lookup.go, documents.go: parent keys, fan-out pages, documents
//   - check.go, check_documents.go, check_reads.go, identity.go, setup.go: what is wrong with a source, and the SQL that
//     sets one up
//   - errors.go: SlotError, QueryError and RowError; pooler.go: what stands between us and the server
//
// # Non-obvious
//
// Values are text everywhere, made by the type's own output function: in the stream because pgoutput does so, in
// queries because they ask for text results and never cast to text (a cast differs for boolean and char(n)). The
// settings in sessionSettings are those that output functions depend on. Stream and chunk agree byte for byte only
// because both sessions have them.
//
// pglogrepl's status message acknowledges the write position where the flush position is zero, which would be received
// but not durable data. Ours is made here, and all three positions are always the confirmed one.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// minVersion is the oldest server: logical messages in pgoutput, pg_current_snapshot and TID range scans came by 14.
const minVersion = 140000

// Config says which database is read, and how gently.
type Config struct {
	// URL is the connection string of the primary ("postgres://user@host/db"). A connection pooler in transaction
	// mode does not pass replication; give the server itself.
	URL string
	// Slot is the replication slot: lower case letters, digits and _. Default "shelfwire".
	Slot string
	// Publication is the publication that the slot is read through. Default "shelfwire".
	Publication string
	// MaxConns bounds the pool of ordinary connections. The stream takes one more, and setup one for a moment.
	// More lets more reads run at the same time. Default 4.
	MaxConns int32
	// StatementTimeout ends a read that takes longer, so that no forgotten query holds back vacuum. Default 30 s.
	StatementTimeout time.Duration
	// SlotTimeout is how long the creation of the slot waits for running transactions. Default 60 s.
	SlotTimeout time.Duration
	// SenderTimeout is the stream's wal_sender_timeout: after so long a silence the server ends it and frees the slot. So
	// it is also how long a standby waits for a process that was stopped or cut off, and how long a pause of this one may
	// last. One in the URL is respected. Default 4 s.
	SenderTimeout time.Duration
	// StatusInterval is the longest time between two status messages; a third of SenderTimeout when that is shorter.
	// Default 10 s.
	StatusInterval time.Duration
	// IdleAfter is how long the stream waits for the server before Next returns an EventIdle, again and again.
	// Shorter lets the caller act sooner in a lull, at the price of wake-ups. Default 100 ms.
	IdleAfter time.Duration
	// ReadBuffer is the size of the stream's buffer in bytes; it grows for a message that is larger, up to
	// 16 MiB, and shrinks again; of larger rows, values over 64 KiB are not kept. Default 1 MiB.
	ReadBuffer int
	// ReadPause is the shortest pause of a busy stream from a server on this machine: with a receive window that is small
	// on purpose, pausing spares the server many small packets and more than doubles the rate of small transactions
	// (gulp.go says why). A stream that only trickles is never paused. Default 1 ms; negative: never pause.
	ReadPause time.Duration
	// SpillDir is where transactions that the server streams before their end wait for it. Default: the system's
	// directory for temporary files. Files in it have no name and end with the process.
	SpillDir string
	// SpillLimit bounds them, in bytes of all open transactions. Beyond it the stream begins once more and has the
	// server keep them, on its own disk. Default 10 GiB; negative: never stream.
	SpillLimit int64
	// MessagePrefix selects the logical messages that are yielded and counted. Those of others are passed over. Default:
	// all are yielded.
	MessagePrefix string
	// OtherMessages yields those of other prefixes as well, uncounted: one in a transaction has the position of the event
	// before it, so that no position depends on this.
	OtherMessages bool
	// DecodingMemory is the walsender's logical_decoding_work_mem, as Postgres writes sizes: what a transaction may take
	// there before it is streamed. Default: the server's own setting.
	DecodingMemory string
	// ApplicationName is what pg_stat_activity shows. Default "shelfwire".
	ApplicationName string
	// Logger gets state changes. Default: none are written.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	setDefault(&c.Slot, "shelfwire")
	setDefault(&c.Publication, "shelfwire")
	setDefault(&c.MaxConns, 4)
	setDefault(&c.StatementTimeout, 30*time.Second)
	setDefault(&c.SlotTimeout, time.Minute)
	setDefault(&c.SenderTimeout, 4*time.Second)
	setDefault(&c.StatusInterval, 10*time.Second)
	setDefault(&c.IdleAfter, 100*time.Millisecond)
	setDefault(&c.ReadBuffer, 1<<20)
	setDefault(&c.ReadPause, time.Millisecond)
	setDefault(&c.SpillDir, os.TempDir())
	setDefault(&c.SpillLimit, 10<<30)
	setDefault(&c.ApplicationName, "shelfwire")
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// sessionSettings are the settings that the text of a value depends on.
func sessionSettings() map[string]string {
	return map[string]string{
		"client_encoding":    "UTF8",
		"DateStyle":          "ISO, YMD",
		"IntervalStyle":      "postgres",
		"TimeZone":           "UTC",
		"extra_float_digits": "3",
		"bytea_output":       "hex",
		"xmloption":          "content",
	}
}

// Source is a Postgres database that changes and documents are read from. It is safe for concurrent use.
type Source struct {
	cfg     Config
	pool    *pgxpool.Pool
	version int  // server_version_num
	ascii   bool // the database has no encoding
	// keepsPlans: statements may be prepared, as a connection is the server's own.
	keepsPlans bool
	shapes     shapes
	types      types

	spillStats SpillStats
	// whole: the next stream has the server keep transactions until their commit.
	whole atomic.Bool
	// published: the publication has held all tables once. unpublished is what was last said of those that it does not.
	published   atomic.Bool
	unpublished atomic.Pointer[string]
	// patience doubles the next stream's wal_sender_timeout so many times.
	patience atomic.Int32
}

// Open connects to the source and refuses a server that is older than 14.
func Open(ctx context.Context, cfg Config) (*Source, error) {
	cfg = cfg.withDefaults()
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("source database: %w", err)
	}
	pc.MaxConns = cfg.MaxConns
	pc.ConnConfig.RuntimeParams["application_name"] = cfg.ApplicationName
	maps.Copy(pc.ConnConfig.RuntimeParams, sessionSettings())
	pc.ConnConfig.RuntimeParams["statement_timeout"] = strconv.FormatInt(cfg.StatementTimeout.Milliseconds(), 10)
	// A read is short, but recursive queries are thought to be so costly that they would be compiled, each time anew.
	pc.ConnConfig.RuntimeParams["jit"] = "off"
	// A reader that lost its process must not hold back vacuum for long.
	pc.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "60000"
	pc.AfterConnect = asBytes
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("source database: %w", err)
	}
	s := &Source{cfg: cfg, pool: pool, keepsPlans: pc.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement}
	var version, encoding string
	err = pool.QueryRow(ctx, "SELECT current_setting('server_version_num'), current_setting('server_encoding')").Scan(&version, &encoding)
	if err != nil {
		pool.Close()
		return nil, s.connectError(ctx, "connect to the source database", err)
	}
	if err := s.settingsKept(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	s.ascii = encoding == noEncoding
	if s.version, err = strconv.Atoi(version); err != nil || s.version < minVersion {
		pool.Close()
		return nil, fmt.Errorf("source database: server version %s is too old: PostgreSQL 14 or newer is needed", version)
	}
	return s, nil
}

// noEncoding is that of a database which holds any bytes. They are taken as they are: asked for UTF-8, the server would
// refuse a value that is none, and the stream would end at its row in every try.
const noEncoding = "SQL_ASCII"

func asBytes(ctx context.Context, conn *pgx.Conn) error {
	if conn.PgConn().ParameterStatus("server_encoding") != noEncoding {
		return nil
	}
	_, err := conn.Exec(ctx, "SET client_encoding = '"+noEncoding+"'")
	return err
}

// Close closes the pool. Streams have their own connection and are closed by themselves.
func (s *Source) Close() { s.pool.Close() }

// Slot is the name of the replication slot.
func (s *Source) Slot() string { return s.cfg.Slot }

// SpillStats are live.
func (s *Source) SpillStats() *SpillStats { return &s.spillStats }

// streaming reports whether the next stream takes transactions before their end. After one that had to be left to the
// server it does not, once: by the time of the next, that transaction may be gone.
func (s *Source) streaming() bool { return s.cfg.SpillLimit > 0 && !s.whole.Load() }

// nextTimeout is the wal_sender_timeout of the next stream.
func (s *Source) nextTimeout() time.Duration { return s.cfg.SenderTimeout << s.patience.Load() }

// mostPatience is 4 s doubled to 68 min.
const mostPatience = 10

// streamFailed draws the conclusions from what has ended a stream.
//
// Until version 16 a walsender that decodes much which concerns nobody, such as the refresh of a large materialized
// view, does not look at its peer's messages and takes it for dead when the timeout is over. It would do so in every
// stream to come. So a stream that is cut off before it has brought anything makes the next one more patient.
func (s *Source) streamFailed(err error, progress bool) {
	switch patience := s.patience.Load(); {
	case progress:
		s.patience.Store(0)
	case connectionEnded(err) && patience < mostPatience:
		s.patience.Store(patience + 1)
	}
	if whole, ok := errors.AsType[*WholeError](err); ok {
		s.whole.Store(true)
		s.spillStats.Left.Add(1)
		s.cfg.Logger.Warn("open transactions are left to the server", "reason", whole.Reason)
	}
}

// replication opens a connection of the replication protocol.
func (s *Source) replication(ctx context.Context) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig(s.cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("source database: %w", err)
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = s.cfg.ApplicationName
	maps.Copy(cfg.RuntimeParams, sessionSettings())
	if s.ascii {
		cfg.RuntimeParams["client_encoding"] = noEncoding
	}
	cfg.RuntimeParams["statement_timeout"] = "0"
	cfg.RuntimeParams["client_min_messages"] = "warning" // one of them tells of a loss, see Stream.notice
	if cfg.RuntimeParams["wal_sender_timeout"] == "" {
		cfg.RuntimeParams["wal_sender_timeout"] = strconv.FormatInt(s.nextTimeout().Milliseconds(), 10)
	}
	if s.cfg.ReadPause > 0 {
		// As the driver's own dialer, which bounds the time by ConnectTimeout itself.
		cfg.DialFunc = (&net.Dialer{KeepAlive: 5 * time.Minute, Control: smallWindow}).DialContext
	}
	if s.cfg.DecodingMemory != "" {
		cfg.RuntimeParams["logical_decoding_work_mem"] = s.cfg.DecodingMemory
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, s.connectError(ctx, "connect for replication", err)
	}
	if err := passedOn(ctx, conn); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx)) // the error at hand says more
		return nil, err
	}
	return conn, nil
}

// moment is when a read transaction saw the database.
type moment struct {
	snapshot change.Snapshot
	at       time.Time // by the database's clock
}

// read runs f in one REPEATABLE READ READ ONLY transaction on the primary and says what that transaction saw. The
// snapshot is taken by the statement that reports it, so every row that f reads belongs to it.
//
// To a snapshot that is older than the locks on its tables, a table that was rewritten meanwhile (ALTER TABLE ... TYPE)
// looks empty. So f reads catalogs only; a table that is known goes through [Source.readTable], which locks it first, and
// somebody's query through [Source.readStatement].
func (s *Source) read(ctx context.Context, op string, f func(*pgconn.PgConn) error) (moment, error) {
	return s.readTable(ctx, op, readAhead{}, f)
}

// readAhead is what comes before the snapshot of a read.
type readAhead struct {
	// table, "schema.name", is locked against a change of its shape: to an older snapshot, a table that has been rewritten
	// looks empty. The lock is that of any SELECT. Empty: none.
	table string
	// statement: the read is one statement, in a READ COMMITTED transaction.
	statement bool
	// mark is the text of a logical message with this prefix; empty: none.
	prefix, mark string
}

// readStatement is read for one statement whose tables are not known here. It has a snapshot of its own, which the
// server takes once the statement has its locks; so it sees all that the snapshot says that is returned, and perhaps more.
func (s *Source) readStatement(ctx context.Context, op, sql string, args [][]byte, each func([]string, [][]byte) error) (moment, error) {
	return s.readTable(ctx, op, readAhead{statement: true}, func(pg *pgconn.PgConn) error { return query(ctx, pg, sql, args, each) })
}

// readTable is read with something done ahead of it.
func (s *Source) readTable(ctx context.Context, op string, ahead readAhead, f func(*pgconn.PgConn) error) (moment, error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return moment{}, wrap(ctx, op, err)
	}
	defer conn.Release()
	pg := conn.Conn().PgConn()
	if err := s.before(ctx, conn.Conn(), ahead); err != nil {
		return moment{}, wrap(ctx, op, err)
	}
	m, err := begin(ctx, pg, ahead)
	if err != nil {
		rollback(ctx, pg)
		if ahead.table != "" && sqlstate(err) == "42P01" {
			return moment{}, fmt.Errorf("%s: %w", op, ErrNoTable)
		}
		return moment{}, wrap(ctx, op, err)
	}
	if err := f(pg); err != nil {
		rollback(ctx, pg)
		return moment{}, fmt.Errorf("%s: %w", op, err)
	}
	if _, err := pg.Exec(ctx, "COMMIT").ReadAll(); err != nil {
		return moment{}, wrap(ctx, op, err)
	}
	return m, nil
}

// before writes the mark, and has the server keep the plan of what describes a table: to make it takes longer than to
// read some hundred rows. Where the URL says that connections are not the server's own (default_query_exec_mode), the
// plan is made each time.
func (s *Source) before(ctx context.Context, conn *pgx.Conn, ahead readAhead) error {
	if ahead.table != "" && s.keepsPlans {
		if _, err := conn.Prepare(ctx, describeStatement, s.describeSQL()); err != nil {
			return err
		}
		conn.PgConn().CustomData()[describeStatement] = true
	}
	if ahead.mark == "" {
		return nil
	}
	return query(ctx, conn.PgConn(), "SELECT pg_logical_emit_message(false, $1, $2::text)", [][]byte{[]byte(ahead.prefix), []byte(ahead.mark)},
		func([]string, [][]byte) error { return nil })
}

// errStandby is temporary: after a failover the address leads to the primary again.
var errStandby = &QueryError{Op: "read", SQLSTATE: "25006", Err: errors.New("the server is a standby; reads need the primary, whose snapshots tell which transactions they saw")}

func begin(ctx context.Context, pg *pgconn.PgConn, ahead readAhead) (moment, error) {
	lock, isolation := "", "REPEATABLE READ"
	if ahead.statement {
		isolation = "READ COMMITTED"
	}
	if ahead.table != "" {
		q, err := quoteTable(ahead.table)
		if err != nil {
			return moment{}, err
		}
		lock = "LOCK TABLE " + q + " IN ACCESS SHARE MODE;"
	}
	res, err := pg.Exec(ctx, `BEGIN ISOLATION LEVEL `+isolation+` READ ONLY;`+lock+`
		SELECT pg_current_snapshot(), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, pg_is_in_recovery()`).ReadAll()
	if err != nil {
		return moment{}, err
	}
	row := res[len(res)-1].Rows[0]
	if string(row[2]) == "t" {
		return moment{}, errStandby
	}
	snap, err := change.ParseSnapshot(string(row[0]))
	if err != nil {
		return moment{}, err
	}
	us, err := strconv.ParseInt(string(row[1]), 10, 64)
	if err != nil {
		return moment{}, fmt.Errorf("clock of the server: %w", err)
	}
	return moment{snapshot: snap, at: time.UnixMicro(us).UTC()}, nil
}

// rollback leaves the connection fit for the pool; the pool drops one that is not.
func rollback(ctx context.Context, pg *pgconn.PgConn) {
	if pg.IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, _ = pg.Exec(ctx, "ROLLBACK").ReadAll() // the first error is the one to report
}

// query runs one statement with text parameters, whose types the server infers, and text results. each gets values
// that are valid only during the call.
func query(ctx context.Context, pg *pgconn.PgConn, sql string, args [][]byte, each func([]string, [][]byte) error) error {
	return eachRow(ctx, pg.ExecParams(ctx, sql, args, nil, nil, nil), each)
}

// eachRow reads a result to its end.
func eachRow(ctx context.Context, rr *pgconn.ResultReader, each func([]string, [][]byte) error) error {
	var names []string
	var failed error
	for rr.NextRow() {
		if names == nil {
			for _, f := range rr.FieldDescriptions() {
				names = append(names, f.Name)
			}
		}
		if failed == nil {
			failed = each(names, rr.Values())
		}
	}
	if _, err := rr.Close(); err != nil {
		return wrap(ctx, "query", err)
	}
	return failed
}

// quoteIdent quotes an identifier.
func quoteIdent(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// quoteLiteral quotes a string. The session has standard_conforming_strings on, as every server since 9.1; a
// backslash in the text makes it an escape string, which reads the same under either setting.
func quoteLiteral(text string) string {
	q := strings.ReplaceAll(text, "'", "''")
	if strings.Contains(q, `\`) {
		return ` E'` + strings.ReplaceAll(q, `\`, `\\`) + `'`
	}
	return "'" + q + "'"
}

// splitTable splits "schema.table" at the first dot.
func splitTable(table string) (schema, name string, err error) {
	schema, name, ok := strings.Cut(table, ".")
	if !ok || schema == "" || name == "" {
		return "", "", fmt.Errorf("%q is no table: want schema.name", table)
	}
	return schema, name, nil
}

func quoteTable(table string) (string, error) {
	schema, name, err := splitTable(table)
	return quoteIdent(schema) + "." + quoteIdent(name), err
}

// arrayLiteral is the text form of a one-dimensional array.
func arrayLiteral(items []string) []byte {
	b := []byte{'{'}
	for i, it := range items {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		for j := range len(it) {
			if it[j] == '"' || it[j] == '\\' {
				b = append(b, '\\')
			}
			b = append(b, it[j])
		}
		b = append(b, '"')
	}
	return append(b, '}')
}
