package clickhouse

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

//go:embed sql/*.sql
var migrations embed.FS

// migration is one file of sql/, which is never changed once it was released: columns are only ever added, by a later
// file, so that programs of two versions can load into one database.
type migration struct {
	version uint32
	name    string
	sql     string
}

// Migrate makes the database, its tables and its views, or brings them up to date, and applies retention and refresh
// intervals. It may be called by several processes at once and be killed at any step: every statement can be repeated.
// A database that a newer program has migrated is left as it is.
func (d *DB) Migrate(ctx context.Context) error {
	if err := d.createDatabase(ctx); err != nil {
		return err
	}
	err := d.conn.Exec(ctx, `CREATE TABLE IF NOT EXISTS migrations
		(version UInt32, name String, applied_at DateTime64(3, 'UTC'))
		ENGINE = ReplacingMergeTree ORDER BY version`)
	if err != nil {
		return fmt.Errorf("create table migrations: %w", explain(err))
	}
	var have uint32
	if err := d.conn.QueryRow(ctx, "SELECT max(version) FROM migrations").Scan(&have); err != nil {
		return fmt.Errorf("read the version of database %s: %w", d.cfg.Database, explain(err))
	}
	all, err := readMigrations(migrations)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.version <= have {
			continue
		}
		if err := d.apply(ctx, m); err != nil {
			return err
		}
	}
	if err := d.applyRetention(ctx); err != nil {
		return err
	}
	return d.applyRefresh(ctx)
}

// createDatabase needs a connection that does not name the database.
func (d *DB) createDatabase(ctx context.Context) error {
	opts := d.cfg.options("")
	opts.MaxOpenConns, opts.MaxIdleConns = 1, 1
	conn, err := clickhouse.Open(opts)
	if err != nil {
		return fmt.Errorf("clickhouse: %w", err)
	}
	err = conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+quoteName(d.cfg.Database))
	if cerr := conn.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("create database %s: %w", d.cfg.Database, explain(err))
	}
	return nil
}

// apply runs a file and then notes its version; killed between, it runs again, which changes nothing.
func (d *DB) apply(ctx context.Context, m migration) error {
	for i, stmt := range statements(m.sql) {
		if err := d.conn.Exec(ctx, stmt); err != nil {
			return fmt.Errorf("migrate database %s: %s, statement %d: %w", d.cfg.Database, m.name, i+1, explain(err))
		}
	}
	err := d.conn.Exec(ctx, "INSERT INTO migrations SELECT {version:UInt32}, {name:String}, now64(3)",
		clickhouse.Named("version", strconv.FormatUint(uint64(m.version), 10)), clickhouse.Named("name", m.name))
	if err != nil {
		return fmt.Errorf("note migration %s: %w", m.name, explain(err))
	}
	return nil
}

// readMigrations returns the files in order of their versions, the number before the first underscore.
func readMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "sql/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	all := make([]migration, 0, len(names))
	for _, path := range names {
		name := strings.TrimSuffix(strings.TrimPrefix(path, "sql/"), ".sql")
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("migration %s: its name begins with no version", path)
		}
		text, err := fs.ReadFile(files, path)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", path, err)
		}
		all = append(all, migration{version: uint32(version), name: name, sql: string(text)})
	}
	slices.SortFunc(all, func(a, b migration) int { return int(a.version) - int(b.version) })
	return all, nil
}

// statements splits a file at semicolons that end a line, which is how our files end every statement.
func statements(sql string) []string {
	var out []string
	for s := range strings.SplitSeq(sql, ";\n") {
		code := false
		for line := range strings.SplitSeq(s, "\n") {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "--") {
				code = true
			}
		}
		if code {
			out = append(out, strings.TrimSpace(s))
		}
	}
	return out
}

// retained are the tables with a retention. documents_rows is none of them: like its topic, it keeps the last row of
// each key for ever.
var retained = []string{
	"changes_rows", "outcomes_rows", "batches_rows", "document_versions_rows", "deadletters_rows", "malformed_rows",
}

// applyRetention changes only tables whose retention is another one, as the change rewrites parts.
func (d *DB) applyRetention(ctx context.Context) error {
	days := int(d.cfg.Retention / (24 * time.Hour))
	for _, table := range retained {
		var engine string
		err := d.conn.QueryRow(ctx,
			"SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
			clickhouse.Named("table", table)).Scan(&engine)
		if err != nil {
			return fmt.Errorf("read the retention of %s: %w", table, explain(err))
		}
		ttl := retention(days)
		change := ""
		switch {
		case days > 0 && !strings.Contains(engine, " TTL "+ttl+" "):
			change = "MODIFY TTL " + ttl
		case days == 0 && strings.Contains(engine, " TTL "):
			change = "REMOVE TTL"
		default:
			continue
		}
		if err := d.conn.Exec(ctx, "ALTER TABLE "+table+" "+change); err != nil {
			return fmt.Errorf("set the retention of %s to %d days: %w", table, days, explain(err))
		}
	}
	return nil
}

// retention is the time at which a row may go, in the server's own form, so that an equal one is recognised. It must be a
// DateTime, which ends in 2106 and begins in 1970 and goes round beyond that: a record with an absurd timestamp would come
// out as an old one.
func retention(days int) string {
	last := time.Date(2106, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, -days)
	return fmt.Sprintf("toDateTime(greatest(least(timestamp, toDateTime64('%s', 3, 'UTC')), toDateTime64('1970-01-01 00:00:00', 3, 'UTC'))) + toIntervalDay(%d)",
		last.Format(time.DateTime), days)
}

// Aggregates lists the tables that are computed anew at every refresh, each from its view.
var Aggregates = []string{"hourly_failures", "hourly_latency", "hourly_points"}

func (d *DB) applyRefresh(ctx context.Context) error {
	after := "REFRESH AFTER " + interval(d.cfg.Refresh)
	for _, name := range Aggregates {
		var made string
		err := d.conn.QueryRow(ctx,
			"SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = {name:String}",
			clickhouse.Named("name", name)).Scan(&made)
		if err != nil {
			return fmt.Errorf("read the refresh interval of %s: %w", name, explain(err))
		}
		if strings.Contains(made, after+" (") {
			continue
		}
		if err := d.conn.Exec(ctx, "ALTER TABLE "+name+" MODIFY "+after); err != nil {
			return fmt.Errorf("set the refresh interval of %s: %w", name, explain(err))
		}
	}
	return nil
}

// interval writes a duration in the server's own form, largest unit first, so that an equal one is recognised.
func interval(d time.Duration) string {
	var parts []string
	for _, u := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "DAY"}, {time.Hour, "HOUR"}, {time.Minute, "MINUTE"}, {time.Second, "SECOND"}} {
		if n := d / u.size; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, u.name))
			d -= n * u.size
		}
	}
	return strings.Join(parts, " ")
}

// Refresh computes the aggregates anew and waits until they are done. Nothing needs it: they refresh by themselves.
func (d *DB) Refresh(ctx context.Context) error {
	for _, name := range Aggregates {
		for _, what := range []string{"SYSTEM REFRESH VIEW ", "SYSTEM WAIT VIEW "} {
			if err := d.conn.Exec(ctx, what+name); err != nil {
				return fmt.Errorf("refresh %s: %w", name, explain(err))
			}
		}
	}
	return nil
}

func quoteName(s string) string {
	return "`" + strings.NewReplacer("\\", "\\\\", "`", "\\`").Replace(s) + "`"
}
