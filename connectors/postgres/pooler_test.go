package postgres_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
)

// between stands before a server, as a pooler does. Neither TLS nor cancel requests go through.
type between struct {
	// startup answers a startup message by an error, or, with an empty text, changes it. Nil: nothing.
	startup func(parameters map[string]string) string
	// data changes what the server sends within a copy. Nil: nothing.
	data func(body []byte) []byte
	// end ends a connection as an administrator does, in the place of a message of the client. Nil: never.
	end func() bool
}

// url is where a server is reached through it.
func (m *between) url(t *testing.T, target string) string {
	t.Helper()
	u, err := url.Parse(target)
	require.NoError(t, err)
	host := u.Host
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go m.serve(t.Context(), client, host)
		}
	}()
	u.Host = l.Addr().String()
	return u.String()
}

func (m *between) serve(ctx context.Context, client net.Conn, host string) {
	defer func() { _ = client.Close() }()
	b := pgproto3.NewBackend(client, client)
	msg, err := b.ReceiveStartupMessage()
	if _, ssl := msg.(*pgproto3.SSLRequest); ssl {
		if _, err = client.Write([]byte{'N'}); err == nil {
			msg, err = b.ReceiveStartupMessage()
		}
	}
	start, ok := msg.(*pgproto3.StartupMessage)
	if err != nil || !ok {
		return
	}
	if m.startup != nil {
		if text := m.startup(start.Parameters); text != "" {
			b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "08P01", Message: text})
			_ = b.Flush()
			return
		}
	}
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	raw, err := start.Encode(nil)
	if err == nil {
		_, err = server.Write(raw)
	}
	if err != nil {
		return
	}
	go func() {
		m.ask(server, client)
		_ = server.Close()
	}()
	m.pass(client, bufio.NewReader(server))
}

// ask hands the client's messages on until one of the two has gone.
func (m *between) ask(server io.Writer, client net.Conn) {
	if m.end == nil {
		_, _ = io.Copy(server, client)
		return
	}
	in := bufio.NewReader(client)
	for {
		if _, err := in.Peek(1); err != nil {
			return
		}
		if m.end() {
			e := pgproto3.ErrorResponse{
				Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "57P01", Message: "terminating connection due to administrator command",
			}
			if raw, err := e.Encode(nil); err == nil {
				_, _ = client.Write(raw)
			}
			return
		}
		head, err := in.Peek(5)
		if err != nil {
			return
		}
		if _, err := io.CopyN(server, in, 1+int64(binary.BigEndian.Uint32(head[1:]))); err != nil {
			return
		}
	}
}

// pass hands the server's messages on until one of the two has gone.
func (m *between) pass(client net.Conn, server io.Reader) {
	var head [5]byte
	for {
		if _, err := io.ReadFull(server, head[:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return
		}
		if head[0] == 'd' && m.data != nil {
			body = m.data(body)
			binary.BigEndian.PutUint32(head[1:], uint32(4+len(body)))
		}
		if _, err := client.Write(append(head[:], body...)); err != nil {
			return
		}
	}
}

// A pooler is recognised, named, and not waited for: nothing that is done later makes it pass replication on.
func TestPoolerInBetweenIsNamed(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	direct := d.capture("public.p")
	permanent := func(err error, texts ...string) {
		t.Helper()
		var q *postgres.QueryError
		require.ErrorAs(t, err, &q)
		require.False(t, q.Temporary(), "%v", err)
		for _, text := range append(texts, "let source.url lead to the server itself") {
			require.ErrorContains(t, err, text)
		}
	}
	cfg := d.config()
	unknown := func(names ...string) func(map[string]string) string {
		return func(p map[string]string) string {
			for _, name := range names {
				if p[name] != "" {
					return "unsupported startup parameter: " + name
				}
			}
			return ""
		}
	}
	ignored := func(names ...string) func(map[string]string) string {
		return func(p map[string]string) string {
			for _, name := range names {
				delete(p, name)
			}
			return ""
		}
	}

	cfg.URL = (&between{startup: unknown("bytea_output")}).url(t, d.url)
	_, err := postgres.Open(t.Context(), cfg)
	permanent(err, "unsupported startup parameter: bytea_output")

	cfg.URL = (&between{startup: ignored("IntervalStyle")}).url(t, d.url)
	d.exec(`ALTER DATABASE ` + d.text("SELECT current_database()") + ` SET IntervalStyle = 'iso_8601'`)
	_, err = postgres.Open(t.Context(), cfg)
	permanent(err, `IntervalStyle was asked for as "postgres", and is "iso_8601"`)

	for name, behaviour := range map[string]func(map[string]string) string{
		"unsupported startup parameter: replication":           unknown("replication"),
		"replication=database was not passed on to the server": ignored("replication"),
	} {
		cfg.URL = (&between{startup: behaviour}).url(t, d.url)
		src := d.open(cfg)
		_, err = src.Stream(t.Context(), 0)
		permanent(err, name)
		_, err = src.History(t.Context())
		permanent(err, name)
		require.Contains(t, texts(src.Check(t.Context(), postgres.Declared{})), name)
	}

	// One that passes everything on is none of our business.
	cfg.URL = (&between{startup: ignored()}).url(t, d.url)
	st := stream(t, d.open(cfg), 0)
	d.exec(`INSERT INTO p VALUES (1)`)
	require.Len(t, d.rows(st), 1)
	require.NoError(t, direct.CheckSlot(t.Context()))
}

// What a pooler says in passing, by the same code, is waited for.
func TestPoolerThatIsBusyIsWaitedFor(t *testing.T) {
	d := newDatabase(t)
	cfg := d.config()
	cfg.URL = (&between{startup: func(map[string]string) string { return "no more connections allowed (max_client_conn)" }}).url(t, d.url)
	_, err := postgres.Open(t.Context(), cfg)
	var q *postgres.QueryError
	require.True(t, errors.As(err, &q) && q.Temporary(), "%v", err)
}

// A role that may read and not replicate is told so where the stream begins.
func TestRoleThatMayNotReplicate(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	d.capture("public.p")
	role := "reader_" + d.text("SELECT current_database()")
	d.exec(`CREATE ROLE ` + role + ` LOGIN PASSWORD 'x'`)
	t.Cleanup(func() { d.exec(`DROP ROLE ` + role) })
	cfg := d.config()
	cfg.URL = withUser(t, d.url, role, "x")
	_, err := d.open(cfg).Stream(t.Context(), 0)
	require.ErrorContains(t, err, `ALTER ROLE "`+role+`" REPLICATION`)
	var q *postgres.QueryError
	require.True(t, errors.As(err, &q) && !q.Temporary(), "%v", err)
	require.NotContains(t, err.Error(), "pooler")
}
