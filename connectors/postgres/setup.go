package postgres

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/route"
)

// Setup says what [SetupSQL] is written for. Every field but Routes has a default.
type Setup struct {
	// Database is the source database. Default: the one that the script is run in.
	Database string
	// Role is the login that Shelfwire reads and replicates with. Default "shelfwire".
	Role string
	// Publication is its publication. Default "shelfwire".
	Publication string
	Routes      []route.Route
	// Mirrored are tables that are published beside those of the routes. Default: none.
	Mirrored []string
	// Identities are the statements of [Source.Identities]. Nil: they are derived from the routes alone, without
	// knowing keys and indexes.
	Identities []string
	// StateDatabase and StateRole are the database of Shelfwire's own and its owner. Default "shelfwire_state".
	StateDatabase, StateRole string
}

// SetupSQL returns a commented script that an administrator runs once in the source database, with psql and as a
// superuser or the owner of the tables: a role with the least privileges, the replica identities that the routes
// need, the publication, and the state database. It holds no password and says how to set one. It adds no trigger and
// no table to the source.
func SetupSQL(s Setup) (string, error) {
	setDefault(&s.Role, "shelfwire")
	setDefault(&s.Publication, "shelfwire")
	setDefault(&s.StateDatabase, "shelfwire_state")
	setDefault(&s.StateRole, "shelfwire_state")
	tables := published(s.Routes, s.Mirrored)
	var quoted, schemas []string
	for _, t := range tables {
		schema, _, err := splitTable(t)
		if err != nil {
			return "", fmt.Errorf("setup: %w", err)
		}
		q, _ := quoteTable(t) // splitTable has accepted it
		quoted = append(quoted, q)
		if schema = quoteIdent(schema); !slices.Contains(schemas, schema) {
			schemas = append(schemas, schema)
		}
	}
	if len(tables) == 0 {
		return "", fmt.Errorf("setup: no table is routed")
	}
	if s.Identities == nil {
		s.Identities = plainIdentities(s.Routes)
	}
	role := quoteIdent(s.Role)
	var b strings.Builder
	fmt.Fprintf(&b, `-- What Shelfwire needs of the source database. Run it once, in that database, with psql, as a superuser or as the
-- owner of the tables with CREATEROLE and CREATEDB.
--
-- The server must run with wal_level = logical (a restart after a change), and pg_hba.conf must let the role in:
--   host  %s  %s  <address>  scram-sha-256
-- So that a Shelfwire that is away for days cannot fill the disk, set max_slot_wal_keep_size to what the disk can bear.

-- A role that may replicate and read. REPLICATION lets it read every change of the database's publications.
CREATE ROLE %s LOGIN REPLICATION;
\echo 'Give the role a password:  \\password %s'
`, orAny(s.Database), s.Role, role, s.Role)
	if s.Database != "" {
		fmt.Fprintf(&b, "GRANT CONNECT ON DATABASE %s TO %s;\n", quoteIdent(s.Database), role)
	}
	fmt.Fprintf(&b, `
-- Snapshots, parent look-ups and the documents query read these. Grant what else the documents query reads.
GRANT USAGE ON SCHEMA %s TO %s;
GRANT SELECT ON ALL TABLES IN SCHEMA %s TO %s;

-- What the WAL must hold of a row that is updated or deleted, so that the product that it leaves is found.
`, strings.Join(schemas, ", "), role, strings.Join(schemas, ", "), role)
	for _, stmt := range s.Identities {
		b.WriteString(stmt + "\n")
	}
	if len(s.Identities) == 0 {
		b.WriteString("-- (every table has what its routes need)\n")
	}
	fmt.Fprintf(&b, `
-- The publication, before the slot: a slot that is older than its publication can never be read. Shelfwire creates
-- the slot itself at its first start; DROP it when Shelfwire goes for good, or it keeps WAL for ever.
CREATE PUBLICATION %s FOR TABLE
  %s
  WITH (%s);

-- Shelfwire's own database. It may stand on another server, and must not be the source database: its rows would be
-- decoded for the slot.
CREATE ROLE %s LOGIN;
\echo 'Give the role a password:  \\password %s'
CREATE DATABASE %s OWNER %s;
`, quoteIdent(s.Publication), strings.Join(quoted, ",\n  "), publicationOptions,
		quoteIdent(s.StateRole), s.StateRole, quoteIdent(s.StateDatabase), quoteIdent(s.StateRole))
	return b.String(), nil
}

func orAny(database string) string {
	if database == "" {
		return "<database>"
	}
	return database
}

// plainIdentities says what can be known without the catalog.
func plainIdentities(routes []route.Route) []string {
	var stmts []string
	by := needs(routes)
	for _, table := range Tables(routes) {
		n := by[table]
		q, _ := quoteTable(table) // checked by the caller
		if n.all {
			stmts = append(stmts, "-- Its route reads the whole old row; each update and delete then writes it to the WAL.\nALTER TABLE "+q+" REPLICA IDENTITY FULL;")
			continue
		}
		stmts = append(stmts, fmt.Sprintf("-- Needed unless %s %s part of its primary key. A unique index on the key and these columns, all NOT NULL, costs less\n"+
			"-- WAL than FULL: CREATE UNIQUE INDEX ... ; ALTER TABLE ... REPLICA IDENTITY USING INDEX ...\nALTER TABLE %s REPLICA IDENTITY FULL;",
			strings.Join(n.columns, " and "), map[bool]string{true: "is", false: "are"}[len(n.columns) == 1], q))
	}
	return stmts
}
