package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
)

// checkCatalog reads the file of --catalog before anything is started, so that a mistake in it is told at once.
// LoadCSV reads the whole file before its first statement; here that statement finds nobody.
func (d *demoRun) checkCatalog(ctx context.Context) error {
	if d.catalog == "" {
		return nil
	}
	f, err := os.Open(d.catalog)
	if err != nil {
		return &exitCode{exitUsage, fmt.Errorf("--catalog: %w", err)}
	}
	defer func() { _ = f.Close() }()
	if i, err := f.Stat(); err == nil && i.IsDir() {
		return &exitCode{exitUsage, fmt.Errorf("--catalog: %s is a directory; name a CSV file", d.catalog)}
	}
	conn, err := closedConn(ctx)
	if err != nil {
		return err
	}
	_, err = demo.LoadCSV(ctx, conn, f, d.catalog)
	if wrong, ok := errors.AsType[*demo.CSVError](err); ok {
		return wrong
	}
	return ctx.Err()
}

// closedConn is a connection that has been closed: no statement reaches anything. The driver makes none without a
// server, so one shakes hands with it, over memory.
func closedConn(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig("host=127.0.0.1 user=nobody sslmode=disable")
	if err != nil {
		return nil, err
	}
	cfg.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			defer func() { _ = far.Close() }()
			b := pgproto3.NewBackend(far, far)
			if _, err := b.ReceiveStartupMessage(); err != nil {
				return
			}
			b.Send(&pgproto3.AuthenticationOk{})
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			if b.Flush() == nil {
				_, _ = io.Copy(io.Discard, far) // until the driver hangs up
			}
		}()
		return near, nil
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	return conn, conn.Close(ctx)
}

// loadCatalog fills the reference schema, unless a kept directory holds one already.
func (d *demoRun) loadCatalog(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, d.parts.sourceURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var there bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('catalog.products') IS NOT NULL`).Scan(&there); err != nil {
		return err
	}
	if there && os.Getenv(envPostgres) != "" {
		return &exitCode{exitUsage, fmt.Errorf("%s names a database that has a schema catalog already, and the demo writes random "+
			"traffic into it: give an empty database, or unset the variable", envPostgres)}
	}
	if there {
		d.say("catalog    found in %s", d.parts.dir)
		if d.catalog != "" {
			d.say("           %s is not loaded: for that, give another --data", d.catalog)
		}
		return nil
	}
	if err := demo.Install(ctx, conn); err != nil {
		return err
	}
	if d.catalog == "" {
		if err := demo.Generate(ctx, conn, demo.Config{Products: d.products, Seed: d.seed}); err != nil {
			return err
		}
		d.say("catalog    %d products generated (seed %d)", d.products, d.seed)
		return nil
	}
	f, err := os.Open(d.catalog)
	if err != nil {
		return &exitCode{exitUsage, fmt.Errorf("--catalog: %w", err)}
	}
	defer func() { _ = f.Close() }()
	n, err := demo.LoadCSV(ctx, conn, f, d.catalog)
	if err != nil {
		return err
	}
	d.say("catalog    %s: %d products (%d approved), %d variants, %d images", filepath.Base(d.catalog), n.Products, n.Approved, n.Variants, n.Images)
	for _, note := range n.Notes {
		d.say("           %s", note)
	}
	return nil
}
