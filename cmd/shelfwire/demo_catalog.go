package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
)

// readCatalog reads the file of --catalog before anything is started, so that a mistake in it is told at once. It
// returns nil where there is none.
func readCatalog(file string) (*demo.Catalog, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, &exitCode{exitUsage, fmt.Errorf("--catalog: %w", err)}
	}
	defer func() { _ = f.Close() }()
	if i, err := f.Stat(); err == nil && i.IsDir() {
		return nil, &exitCode{exitUsage, fmt.Errorf("--catalog: %s is a directory; name a CSV file", file)}
	}
	return demo.ReadCSV(f, file)
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
		if d.export != nil {
			d.say("           %s is not loaded: for that, give another --data", d.catalog)
		}
		return nil
	}
	if err := demo.Install(ctx, conn); err != nil {
		return err
	}
	if d.export == nil {
		if err := demo.Generate(ctx, conn, demo.Config{Products: d.products, Seed: d.seed}); err != nil {
			return err
		}
		d.say("catalog    %d products generated (seed %d)", d.products, d.seed)
		return nil
	}
	if err := d.export.Load(ctx, conn); err != nil {
		return err
	}
	n := d.export.Loaded()
	d.say("catalog    %s: %d products (%d approved), %d variants, %d images", filepath.Base(d.catalog), n.Products, n.Approved, n.Variants, n.Images)
	for _, note := range n.Notes {
		d.say("           %s", note)
	}
	return nil
}
