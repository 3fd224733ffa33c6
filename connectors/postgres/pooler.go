package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// errPooler says what is to be done about anything between us and the server that does not pass on what was asked for.
var errPooler = errors.New("it looks as if a connection pooler stood between: let source.url lead to the server itself")

// connectError says of an error that a connection was refused with what can be done about it, where that is known.
func (s *Source) connectError(ctx context.Context, op string, err error) error {
	switch {
	case refusedParameter(err):
		err = fmt.Errorf("%w: %w", errPooler, err)
	case sqlstate(err) == "42501": // of the replication protocol only
		role := quoteIdent(s.pool.Config().ConnConfig.User)
		err = fmt.Errorf("role %s may not replicate: let a superuser run ALTER ROLE %[1]s REPLICATION: %w", role, err)
	}
	return wrap(ctx, op, err)
}

// refusedParameter recognises the answer of PgBouncer to a startup parameter that it does not know, such as
// replication or bytea_output.
func refusedParameter(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "08P01" && strings.Contains(pg.Message, "startup parameter")
}

// passedOn makes sure that a connection is one of the replication protocol. A pooler that is told to ignore what it does
// not know (ignore_startup_parameters) drops the wish and gives an ordinary one.
func passedOn(ctx context.Context, conn *pgconn.PgConn) error {
	const op = "connect for replication"
	res, err := conn.Exec(ctx, "SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()").ReadAll()
	if err != nil {
		return wrap(ctx, op, err)
	}
	if rows := res[0].Rows; len(rows) != 1 || string(rows[0][0]) != "walsender" {
		return &QueryError{Op: op, SQLSTATE: featureNotSupported, Err: fmt.Errorf("replication=database was not passed on to the server: %w", errPooler)}
	}
	return nil
}

const featureNotSupported = "0A000"

// settingsKept makes sure that the pool's connections have the settings that the text of a value depends on. Without
// them a snapshot would write values in another form than the stream, and nothing would say so.
func (s *Source) settingsKept(ctx context.Context) error {
	const op = "connect to the source database"
	want := sessionSettings()
	delete(want, "client_encoding") // is set later where the database has no encoding, and spelled in many ways
	names := slices.Sorted(maps.Keys(want))
	rows, err := s.pool.Query(ctx, "SELECT n, current_setting(n) FROM unnest($1::text[]) n", names)
	if err != nil {
		return wrap(ctx, op, err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, have string
		if err := rows.Scan(&name, &have); err != nil {
			return wrap(ctx, op, err)
		}
		if have != want[name] {
			return &QueryError{Op: op, SQLSTATE: featureNotSupported, Err: fmt.Errorf("the setting %s was asked for as %q, and is %q: %w", name, want[name], have, errPooler)}
		}
	}
	return wrap(ctx, op, rows.Err())
}
