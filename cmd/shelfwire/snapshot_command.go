package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/state"
)

func snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot [TABLE]",
		Short: "Read a table, some of its rows, or products again while capture runs",
		Long: "Asks the running capture for a snapshot, by a logical message in the source: the rows come as reads (r) between\n" +
			"the changes of the stream, and make a batch. A condition is tried on the database first. Whoever runs no capture\n" +
			"now gets the snapshot with the next start.\n\n" +
			"With --wait it shows how far the snapshot is, and exits when the batch is complete: with 1 when it cannot be\n" +
			"had, or when a product of it has failed.",
		Example: "  shelfwire snapshot catalog.products --where \"updated_at > now() - interval '1 day'\" --wait\n" +
			"  shelfwire snapshot --product 123,456",
		Args: atMostOne("table"),
	}
	file := configFlag(cmd)
	where := cmd.Flags().String("where", "", "condition in SQL on the columns of the table")
	products := cmd.Flags().StringSlice("product", nil, "only rows that lead to these products, of the table or of all tables")
	all := cmd.Flags().Bool("all", false, "every routed table")
	wait := cmd.Flags().Bool("wait", false, "show how far it is, until its batch is complete")
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := loadApp(*file)
		if err != nil {
			return err
		}
		defer a.close()
		r := event.SnapshotRequest{ID: "cli-" + rand.Text(), All: *all, Where: *where, Products: *products}
		if len(args) == 1 {
			r.Table = args[0]
		}
		tables, err := pipeline.CheckSnapshotRequest(&r, pipeline.CaptureConfig{Routes: a.cfg.Routes, Mirror: a.mirror()})
		if err != nil {
			return usageError(cmd, "%s", err)
		}
		v, err := a.askSnapshot(cmd.Context(), &r, tables)
		if err != nil || !*wait {
			return errors.Join(err, showSnapshot(cmd.OutOrStdout(), *asJSON, &v, err))
		}
		b, err := a.followSnapshot(cmd.Context(), &v, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		return errors.Join(showSnapshot(cmd.OutOrStdout(), *asJSON, &v, nil), snapshotError(b))
	}
	return cmd
}

// askedView is what this command prints. Its names are a promise: programs read them.
type askedView struct {
	Request  string   `json:"request"`
	Tables   []string `json:"tables"`
	Estimate int64    `json:"estimated_rows"`
	// Batch and Rows are known when the command has waited; Status is absent where the snapshot found no rows.
	Batch  string            `json:"batch_id,omitempty"`
	Rows   *int64            `json:"rows,omitempty"`
	Status state.BatchStatus `json:"status,omitempty"`
}

func showSnapshot(w io.Writer, asJSON bool, v *askedView, failed error) error {
	if failed != nil {
		return nil
	}
	t := &table{head: []string{"REQUEST", "TABLES", "ABOUT", "BATCH", "ROWS", "STATUS"}, elastic: []string{"TABLES"}}
	rows := ""
	if v.Rows != nil {
		rows = fmt.Sprint(*v.Rows)
	}
	t.add(v.Request, strings.Join(v.Tables, " "), fmt.Sprint(v.Estimate), v.Batch, rows, string(v.Status))
	return show(w, asJSON, v, t)
}

// snapshotError is not nil when somebody should look at the batch.
func snapshotError(b *state.Batch) error {
	if b == nil || b.Failed == 0 {
		return nil
	}
	return fmt.Errorf("%s of %s failed; shelfwire batches %s shows why", count(b.Failed, "product"), b.ID, b.ID)
}

// askSnapshot tries the request on the database and sends it.
func (a *app) askSnapshot(ctx context.Context, r *event.SnapshotRequest, tables []string) (askedView, error) {
	v := askedView{Request: r.ID, Tables: tables}
	if err := a.reach(ctx, "source.url", a.openSource); err != nil {
		return v, err
	}
	for _, t := range tables {
		cut, err := a.source.CutTable(ctx, change.Selection{Table: t, Where: r.Where, Products: r.Products, Routes: a.cfg.Routes}, 1, 1)
		if err != nil {
			return v, err
		}
		v.Estimate += cut.Rows
	}
	return v, a.requestSnapshot(ctx, r)
}

// requestSnapshot hands a request to capture by a logical message.
func (a *app) requestSnapshot(ctx context.Context, r *event.SnapshotRequest) error {
	content, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("request of a snapshot: %w", err)
	}
	_, err = a.source.EmitMessage(ctx, pipeline.MessageSnapshot, content)
	return err
}

// How often it is looked how far a snapshot is, and how often that is told.
const (
	snapshotLook = 250 * time.Millisecond
	snapshotTell = time.Second
)

// followSnapshot tells how far a snapshot is until its batch is complete. It returns no batch where there were no rows.
func (a *app) followSnapshot(ctx context.Context, v *askedView, w io.Writer) (*state.Batch, error) {
	c, err := kafka.New(kafkaConfig(a.cfg, nil))
	if err != nil {
		return nil, err
	}
	a.cluster = c
	if err := a.reach(ctx, "kafka.brokers", func(ctx context.Context) error { return attempt(ctx, c.Ping) }); err != nil {
		return nil, err
	}
	if err := a.reach(ctx, "state.url", a.checkState); err != nil {
		return nil, err
	}
	var told time.Time
	tell := func(format string, args ...any) {
		if time.Since(told) >= snapshotTell {
			told = time.Now()
			_, _ = fmt.Fprintf(w, format+"\n", args...)
		}
	}
	tick := time.NewTicker(snapshotLook)
	defer tick.Stop()
	for {
		b, done, err := a.lookAtSnapshot(ctx, v, tell)
		if err != nil || done {
			return b, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// lookAtSnapshot looks once: at the position of capture until the snapshot is read, and then at its batch.
func (a *app) lookAtSnapshot(ctx context.Context, v *askedView, tell func(string, ...any)) (*state.Batch, bool, error) {
	if v.Rows != nil {
		b, err := a.state.Batch(ctx, v.Batch)
		switch {
		case errors.Is(err, state.ErrNoBatch):
			tell("%d rows are read; the batch is not known yet", *v.Rows)
			return nil, false, nil
		case err != nil:
			return nil, false, err
		}
		v.Status = b.Status
		if !b.EndedAt.IsZero() {
			return &b, true, nil
		}
		tell("%d rows are read; of %s %d are settled", *v.Rows, count(b.Total, "item"), b.Total-b.Processing)
		return &b, false, nil
	}
	pos, _, err := a.cluster.ReadPosition(ctx, kafka.CapturePartition, "capture/"+a.cfg.Source.Slot)
	if err != nil {
		return nil, false, err
	}
	if i := slices.IndexFunc(pos.Ended, func(e event.SnapshotEnd) bool { return e.Request == v.Request }); i >= 0 {
		e := pos.Ended[i]
		if e.Refused != "" {
			return nil, false, fmt.Errorf("the snapshot cannot be had: %s", e.Refused)
		}
		v.Batch, v.Rows = e.ID, &e.Rows
		return nil, e.Rows == 0, nil
	}
	i := slices.IndexFunc(pos.Snapshots, func(p event.SnapshotProgress) bool { return p.Request != nil && p.Request.ID == v.Request })
	if i < 0 {
		tell("waiting for capture to take the request (does shelfwire run?)")
		return nil, false, nil
	}
	p := viewSnapshot(&pos.Snapshots[i], time.Now())
	left := ""
	if p.Left > 0 {
		left = fmt.Sprintf(", %s left", time.Duration(p.Left*float64(time.Second)).Round(time.Second))
	}
	tell("%s: %d of about %d rows, %.0f a second%s", p.ID, p.Rows, p.Estimate, p.Rate, left)
	return nil, false, nil
}
