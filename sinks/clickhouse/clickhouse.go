// Package clickhouse keeps the analytic copy of the topics, and the views that people query.
//
// What makes every view equal its topic, whatever happens to the loader:
//
//   - A row is known by the topic's id, its partition and its offset, which end the sorting key of a
//     ReplacingMergeTree. A record that is inserted again is the same row, and all views read through FINAL.
//   - The month of the record's own timestamp is the partition, so that all copies of a row meet in one. Everything in
//     the sorting key comes from the record's position and timestamp, never from its content: a later program that reads
//     a value in another way still writes the same row.
//   - Inserts carry a deduplication token, which only keeps repeats rare: a loader that was killed cuts its blocks in
//     another way afterwards, and FINAL does the rest.
//   - Aggregates are refreshed as a whole from the views. There is no table that an insert increments.
//
// Non-obvious:
//
//   - One INSERT is atomic only within a month, so the highest offset found in a table says nothing about those below
//     it. [DB.Begin] uses it only to find that rows are lost, never to skip any.
//   - A record that does not fit its table goes to the view malformed with the reason and its bytes; it never stops the
//     load. A row of a table and a row of malformed may both stand for one record after a program has learned to read it.
package clickhouse

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Config says how to reach ClickHouse and how long it keeps rows.
type Config struct {
	// Addr lists the servers, host:port of the native protocol (9000, or 9440 with TLS). The first that answers is used.
	Addr []string
	// Database is made by [DB.Migrate] when it is missing. Default "shelfwire".
	Database string
	User     string
	Password string
	// TLS is used for every connection when it is set.
	TLS *tls.Config
	// Retention is how long changes, outcomes, batches, document versions, dead letters and malformed records are kept,
	// by the timestamp of their record, in whole days; the last row of each document is always kept. Default 0: for
	// ever. A shorter one saves disk and makes the aggregates forget.
	Retention time.Duration
	// Refresh is how often the hourly_ aggregates are computed anew, in whole seconds. Default 10 min. Each refresh
	// reads all rows that are kept, so that it should stay well above the seconds that takes.
	Refresh time.Duration
	// DialTimeout bounds connecting. Default 5 s.
	DialTimeout time.Duration
	// InsertTimeout bounds one insert, after which it counts as unanswered and is sent again. Default 2 min.
	InsertTimeout time.Duration
	// MaxConnections bounds the open connections. Default 8: one for each topic that is loaded, and a few for queries.
	MaxConnections int
}

// DB is a ClickHouse database with our tables. Its methods may be called concurrently.
type DB struct {
	cfg  Config
	conn driver.Conn
}

// Open prepares access to a database. It does not connect; [DB.Ping] and [DB.Migrate] do.
func Open(cfg Config) (*DB, error) {
	if len(cfg.Addr) == 0 {
		return nil, errors.New("clickhouse: no address is configured")
	}
	cfg.Database = cmp.Or(cfg.Database, "shelfwire")
	cfg.Refresh = cmp.Or(cfg.Refresh, 10*time.Minute)
	cfg.DialTimeout = cmp.Or(cfg.DialTimeout, 5*time.Second)
	cfg.InsertTimeout = cmp.Or(cfg.InsertTimeout, 2*time.Minute)
	cfg.MaxConnections = cmp.Or(cfg.MaxConnections, 8)
	if cfg.Retention < 0 || cfg.Retention > 0 && cfg.Retention < 24*time.Hour {
		return nil, fmt.Errorf("clickhouse: retention %v: want at least a day (24h), or 0 to keep everything", cfg.Retention)
	}
	if cfg.Refresh < time.Second {
		return nil, fmt.Errorf("clickhouse: refresh %v: want at least a second", cfg.Refresh)
	}
	conn, err := clickhouse.Open(cfg.options(cfg.Database))
	if err != nil {
		return nil, fmt.Errorf("clickhouse: %w", err)
	}
	return &DB{cfg: cfg, conn: conn}, nil
}

// options are those of the driver. An empty database is the user's default one.
func (c Config) options(database string) *clickhouse.Options {
	return &clickhouse.Options{
		Protocol:     clickhouse.Native,
		Addr:         c.Addr,
		Auth:         clickhouse.Auth{Database: database, Username: c.User, Password: c.Password},
		TLS:          c.TLS,
		DialTimeout:  c.DialTimeout,
		MaxOpenConns: c.MaxConnections,
		MaxIdleConns: c.MaxConnections,
		Compression:  &clickhouse.Compression{Method: clickhouse.CompressionLZ4},
		// An idle connection would keep the buffers of its largest insert: 30 MB after a snapshot.
		FreeBufOnConnRelease: true,
		ClientInfo: clickhouse.ClientInfo{Products: []struct{ Name, Version string }{
			{Name: "shelfwire", Version: "1"},
		}},
	}
}

// Close ends all connections.
func (d *DB) Close() error { return d.conn.Close() }

// Ping asks the server for a sign of life.
func (d *DB) Ping(ctx context.Context) error {
	if err := d.conn.Ping(ctx); err != nil {
		return fmt.Errorf("reach ClickHouse at %v: %w", d.cfg.Addr, explain(err))
	}
	return nil
}

// ParseURL reads clickhouse://user:password@host:9000/database, the driver's own form, several hosts and secure=true
// included. The error never holds the password.
func ParseURL(url string) (Config, error) {
	o, err := clickhouse.ParseDSN(url)
	if err != nil {
		return Config{}, fmt.Errorf("clickhouse: read the address: %w", err)
	}
	if o.Protocol != clickhouse.Native {
		return Config{}, errors.New("clickhouse: read the address: only the native protocol is used: clickhouse://host:9000/database")
	}
	return Config{
		Addr: o.Addr, Database: o.Auth.Database, User: o.Auth.Username, Password: o.Auth.Password,
		TLS: o.TLS, DialTimeout: o.DialTimeout,
	}, nil
}
