package main

import (
	"context"
	"fmt"
)

// queries shows what an analyst would ask ClickHouse, with the answers.
func (d *demoRun) queries(ctx context.Context) error {
	db := d.app.tables
	if db == nil {
		d.say("questions  left out: there is no ClickHouse to ask")
		return nil
	}
	failures, err := db.Failures(ctx)
	if err != nil {
		return err
	}
	t := &table{head: []string{"CATEGORY", "SHOP", "FAILED", "RETRIED", "PRODUCTS", "EXAMPLE"}}
	for _, f := range failures {
		t.add(f.Category, f.Shop, fmt.Sprint(f.Failed), fmt.Sprint(f.Retried), fmt.Sprint(f.Products), f.ExampleProduct+": "+firstLine(f.Example))
	}
	if err := d.showQuery("What fails, where, and an example?", t); err != nil {
		return err
	}
	latencies, err := db.Latencies(ctx)
	if err != nil {
		return err
	}
	t = &table{head: []string{"STEP", "PUSHES", "P50 MS", "P90 MS", "P99 MS"}}
	for _, l := range latencies {
		t.add(l.Step, fmt.Sprint(l.Pushes), fmt.Sprintf("%.0f", l.P50), fmt.Sprintf("%.0f", l.P90), fmt.Sprintf("%.0f", l.P99))
	}
	if err := d.showQuery("How long does each step take?", t); err != nil {
		return err
	}
	points, err := db.Points(ctx)
	if err != nil {
		return err
	}
	t = &table{head: []string{"SHOP", "LANE", "PUSHES", "CHANGES", "CHANGES/PUSH", "POINTS", "POINTS/PUSH"}}
	for _, p := range points {
		t.add(p.Shop, p.Lane, fmt.Sprint(p.Pushes), fmt.Sprint(p.Changes), fmt.Sprintf("%.2f", p.ChangesPerPush),
			fmt.Sprintf("%.0f", p.Points), fmt.Sprintf("%.2f", p.PointsPerPush))
	}
	return d.showQuery("What do the shops charge, and how much is coalesced?", t)
}

func (d *demoRun) showQuery(question string, t *table) error {
	_, _ = fmt.Fprintf(d.out, "\n%s\n", question)
	if len(t.rows) == 0 {
		_, err := fmt.Fprintln(d.out, "Nothing.")
		return err
	}
	return t.write(d.out)
}
