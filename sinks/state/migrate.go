package state

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// lockMigrate and lockRelay are advisory lock keys. Such locks belong to a database, and the state has one of its own.
const (
	lockMigrate = 0x5348464d // "SHFM"
	lockRelay   = 0x53484652 // "SHFR"
)

// Create makes the database name in the cluster of adminURL, unless it stands, and returns the URL of it with the
// same credentials. A role that may not create databases gets an error that holds the SQL for someone who may.
func Create(ctx context.Context, adminURL, name string) (string, error) {
	conf, err := pgx.ParseConfig(adminURL)
	if err != nil {
		return "", fmt.Errorf("read the admin URL: %w", err)
	}
	target, err := withDatabase(adminURL, name)
	if err != nil {
		return "", err
	}
	conn, err := pgx.ConnectConfig(ctx, conf)
	if err != nil {
		return "", fmt.Errorf("connect to create the state database %s: %w", name, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var stands bool
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&stands)
	if err != nil {
		return "", fmt.Errorf("look for the state database %s: %w", name, err)
	}
	if stands {
		return target, nil
	}
	statement := "CREATE DATABASE " + pgx.Identifier{name}.Sanitize()
	_, err = conn.Exec(ctx, statement)
	var pe *pgconn.PgError
	switch {
	case err == nil:
		return target, nil
	case errors.As(err, &pe) && (pe.Code == "42P04" || pe.Code == "23505"):
		return target, nil // another process was quicker
	case errors.As(err, &pe) && pe.Code == "42501":
		return "", fmt.Errorf("role %s may not create the state database; let an administrator run: %s OWNER %s;: %w",
			conf.User, statement, pgx.Identifier{conf.User}.Sanitize(), err)
	}
	return "", fmt.Errorf("create the state database %s: %w", name, err)
}

// withDatabase replaces the database of a connection string in either of its two forms.
func withDatabase(conn, name string) (string, error) {
	if !strings.HasPrefix(conn, "postgres://") && !strings.HasPrefix(conn, "postgresql://") {
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(name)
		return conn + " dbname='" + quoted + "'", nil // the last of two settings holds
	}
	u, err := url.Parse(conn)
	if err != nil {
		return "", fmt.Errorf("read the admin URL: %w", err)
	}
	u.Path, u.RawPath = "/"+name, ""
	q := u.Query()
	q.Del("dbname")
	q.Del("database")
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// Migrate brings the schema up to what this binary knows. Processes that start together take turns.
func (s *Store) Migrate(ctx context.Context) error {
	// goose's own locker polls every second or more; waiting in the server costs nothing and ends at once.
	turn, err := s.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to migrate the state: %w", err)
	}
	defer turn.Release()
	// Another process may be at it for minutes, and a migration waits for whoever is working.
	if _, err = turn.Exec(ctx, `SET lock_timeout = 0`); err == nil {
		_, err = turn.Exec(ctx, `SELECT pg_advisory_lock($1)`, lockMigrate)
	}
	if err != nil {
		_ = turn.Conn().Close(context.WithoutCancel(ctx))
		return fmt.Errorf("wait to migrate the state: %w", err)
	}
	defer func() {
		_, err := turn.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, lockMigrate)
		if err == nil {
			_, err = turn.Exec(context.WithoutCancel(ctx), `RESET lock_timeout`)
		}
		if err != nil {
			// The lock lives as long as the session: end it rather than return it to the pool with the lock held.
			_ = turn.Conn().Close(context.WithoutCancel(ctx))
		}
	}()
	p, end, err := s.provider()
	if err != nil {
		return err
	}
	defer end()
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the state's schema version: %w", err)
	}
	if have > want {
		return fmt.Errorf("the state's schema has version %d and this binary knows %d: run the newer binary", have, want)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate the state from version %d to %d: %w", have, want, err)
	}
	return nil
}

// provider knows the migrations. end is to be called after its last use.
func (s *Store) provider() (p *goose.Provider, end func(), err error) {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, nil, fmt.Errorf("open the state's migrations: %w", err)
	}
	cfg := s.pool.Config().ConnConfig
	cfg.RuntimeParams["lock_timeout"] = "0"
	db := stdlib.OpenDB(*cfg)
	p, err = goose.NewProvider(goose.DialectPostgres, db, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		_ = db.Close()
		return nil, nil, fmt.Errorf("read the state's migrations: %w", err)
	}
	return p, func() { _ = db.Close() }, nil
}

// Remove drops everything that Migrate has made, with all that stands in it. What else is in the database stays. It is
// no error when there is nothing.
func (s *Store) Remove(ctx context.Context) error {
	p, end, err := s.provider()
	if err != nil {
		return err
	}
	defer end()
	if _, err := p.DownTo(ctx, 0); err != nil {
		return fmt.Errorf("remove the state: %w", err)
	}
	if _, err := s.pool.Exec(ctx, `DROP TABLE IF EXISTS `+goose.DefaultTablename); err != nil {
		return fmt.Errorf("remove the state: %w", err)
	}
	return nil
}

// Contents says how much the state knows; false when there is no state in the database.
func (s *Store) Contents(ctx context.Context) (products, batches int64, ok bool, err error) {
	if err = s.pool.QueryRow(ctx, `SELECT to_regclass('batch_items') IS NOT NULL`).Scan(&ok); err == nil && ok {
		err = s.pool.QueryRow(ctx, `SELECT (SELECT count(DISTINCT product_id) FROM products), (SELECT count(*) FROM batches)`).Scan(&products, &batches)
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("look into the state: %w", err)
	}
	return products, batches, ok, nil
}
