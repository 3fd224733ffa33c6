package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/event"
)

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how far everything is, what waits, and for what",
		Long: "Shows what does not answer, the replication slot with what of the WAL is not captured yet, a running snapshot, the\n" +
			"last gap that was healed, how far each stage is, and what waits in the state and why. It looks at the database for\n" +
			"--for, and changes nothing. As JSON it is one object; times are RFC 3339 in UTC, durations are seconds, sizes are\n" +
			"bytes. Exits with 1 when somebody should look: a service or a shop does not answer, the slot cannot be read, a\n" +
			"table is not captured that should be, or the guard holds something.",
		Args: noArgs,
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	span := cmd.Flags().Duration("for", time.Second, "how long the rate is measured")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := loadApp(*file)
		if err != nil {
			return err
		}
		defer a.close()
		v, err := a.status(cmd.Context(), *span)
		if err != nil {
			return err
		}
		return errors.Join(show(cmd.OutOrStdout(), *asJSON, v, statusSheet(&v)), v.err())
	}
	return cmd
}

// statusView is what this command prints. Its names are a promise: programs read them.
type statusView struct {
	// Away is what the pipeline waits for.
	Away []awayView `json:"away"`
	Slot slotView   `json:"slot"`
	// Unpublished are tables that should be captured and are not: dropped, renamed or taken out of the publication.
	Unpublished []string `json:"unpublished_tables"`
	// Capture is absent before the first position is on record.
	Capture   *captureView   `json:"capture,omitempty"`
	Snapshots []snapshotView `json:"snapshots"`
	Healed    *healedView    `json:"last_healing,omitempty"`
	// Pipeline is absent while the state does not answer, or is not there yet.
	Pipeline *pipelineView `json:"pipeline,omitempty"`
}

type slotView struct {
	Name   string `json:"name"`
	Exists bool   `json:"exists"`
	Active bool   `json:"active"`
	PID    int32  `json:"active_pid,omitempty"`
	// State is the walsender's, WALStatus the slot's; Reason is why it was invalidated.
	State     string `json:"walsender_state,omitempty"`
	WALStatus string `json:"wal_status,omitempty"`
	Reason    string `json:"invalidation_reason,omitempty"`
	End       string `json:"wal_end"`
	Confirmed string `json:"confirmed,omitempty"`
	Restart   string `json:"restart,omitempty"`
	// Lag is not acknowledged; Held is kept by the server for the slot; Safe may still be written, absent without a limit.
	Lag  int64  `json:"lag_bytes"`
	Held int64  `json:"held_bytes"`
	Safe *int64 `json:"safe_wal_bytes,omitempty"`
	// Rate is how fast the slot was acknowledged while the command looked, Written how fast the database wrote WAL.
	Rate    float64 `json:"confirmed_bytes_per_second"`
	Written float64 `json:"written_bytes_per_second"`
	// Spilled and SpilledTransactions are what the server has written to its disk for the slot.
	Spilled             int64 `json:"server_spilled_bytes"`
	SpilledTransactions int64 `json:"server_spilled_transactions"`
	Streamed            int64 `json:"streamed_transactions"`
	// Oldest is the age of the oldest open transaction that writes.
	Oldest      float64 `json:"oldest_transaction_seconds"`
	Connections int     `json:"connections"`
	ClockOffset float64 `json:"clock_offset_seconds"`
}

type captureView struct {
	Position string    `json:"position"`
	Timeline int32     `json:"timeline"`
	At       time.Time `json:"at"`
	// Lag is for how long WAL has not been captured; 0 when all is.
	Lag float64 `json:"lag_seconds"`
	// InTransaction is the batch of a large transaction whose rows are on their way, and Rows how many of them are there.
	InTransaction string `json:"in_transaction,omitempty"`
	Rows          int64  `json:"in_transaction_rows,omitempty"`
	// LargestOpen is what has been streamed of the largest transaction that had not ended at the time of the position.
	LargestOpen int64 `json:"largest_open_transaction_bytes"`
}

// snapshotView is a snapshot that runs.
type snapshotView struct {
	ID     string   `json:"batch_id"`
	Tables []string `json:"tables"` // that are not complete
	Rows   int64    `json:"rows"`
	// Estimate is about how many rows there are in the tables that were looked at. Rate is the mean since the beginning.
	Estimate int64      `json:"estimated_rows"`
	Began    *time.Time `json:"began_at,omitempty"`
	Rate     float64    `json:"rows_per_second"`
	Left     float64    `json:"left_seconds,omitempty"`
}

func viewSnapshot(p *event.SnapshotProgress, now time.Time) snapshotView {
	v := snapshotView{ID: p.ID, Tables: []string{}, Rows: p.Rows, Estimate: p.Estimate, Began: timeView(p.Began)}
	for i := range p.Tables {
		v.Tables = append(v.Tables, p.Tables[i].Table)
	}
	if took := now.Sub(p.Began).Seconds(); took > 0 && !p.Began.IsZero() {
		v.Rate = float64(p.Rows) / took
	}
	if v.Rate > 0 {
		v.Left = max(float64(p.Estimate-p.Rows), 0) / v.Rate
	}
	return v
}

type healedView struct {
	Cause    string     `json:"cause"`
	Reason   string     `json:"reason"`
	Begun    bool       `json:"begun"` // and not ended yet
	From     string     `json:"from"`
	FromTime *time.Time `json:"from_time,omitempty"`
	To       string     `json:"to"`
	At       *time.Time `json:"at,omitempty"`
	Snapshot string     `json:"snapshot_batch_id,omitempty"`
	Touched  int64      `json:"touched_products"`
}

// status looks at every service, at the slot twice, span apart. What does not answer is told, and stops nothing else.
func (a *app) status(ctx context.Context, span time.Duration) (statusView, error) {
	v := statusView{Away: []awayView{}, Snapshots: []snapshotView{}, Unpublished: []string{}, Slot: slotView{Name: a.cfg.Source.Slot}}
	var slot postgres.SlotStatus
	for _, part := range []struct {
		service, key string
		look         func(context.Context) error
	}{
		{"source", "source.url", func(ctx context.Context) (err error) { slot, err = v.source(ctx, a, span); return err }},
		{"kafka", "kafka.brokers", func(ctx context.Context) error { return v.kafka(ctx, a, &slot) }},
		{"state", "state.url", func(ctx context.Context) error {
			if err := a.checkState(ctx); err != nil {
				return err
			}
			if _, err := a.state.Incarnation(ctx); noTable(err) {
				return nil // the first run makes it
			}
			return v.pipeline(ctx, a)
		}},
		{"clickhouse", "clickhouse.url", a.checkTables},
	} {
		err := a.reach(ctx, part.key, part.look)
		if ctx.Err() != nil {
			return v, ctx.Err()
		}
		if e, ok := errors.AsType[*exitCode](err); ok && e.code == exitUsage { // a mistake in the configuration
			return v, err
		}
		if err != nil {
			v.away(part.service, err)
		}
	}
	return v, nil
}

// source looks at the slot and at what is captured.
func (v *statusView) source(ctx context.Context, a *app, span time.Duration) (now postgres.SlotStatus, err error) {
	if err := a.openSource(ctx); err != nil {
		return now, err
	}
	before, err := a.source.SlotStatus(ctx)
	if err != nil {
		return now, err
	}
	select {
	case <-time.After(span):
	case <-ctx.Done():
		return now, ctx.Err()
	}
	if now, err = a.source.SlotStatus(ctx); err != nil {
		return now, err
	}
	v.Slot = viewSlot(a.cfg.Source.Slot, &before, &now)
	published, _, err := a.source.PublishedTables(ctx)
	if err != nil {
		return now, err
	}
	for _, t := range a.captureTables() {
		if !slices.Contains(published, t) {
			v.Unpublished = append(v.Unpublished, t)
		}
	}
	return now, nil
}

// kafka looks at what capture has on record.
func (v *statusView) kafka(ctx context.Context, a *app, now *postgres.SlotStatus) error {
	c, err := kafka.New(kafkaConfig(a.cfg, nil))
	if err != nil {
		return err
	}
	if err := attempt(ctx, c.Ping); err != nil {
		c.Close()
		return err
	}
	a.cluster = c
	if _, err := c.EndOffsets(ctx, c.Topic(event.Positions)); err != nil {
		return nil //nolint:nilerr // the brokers answer, so it is the topic that is not there: the first run makes it
	}
	pos, found, err := c.LastPosition(ctx, kafka.CapturePartition, "capture/"+a.cfg.Source.Slot)
	if found {
		v.position(&pos, now)
	}
	return err
}

func viewSlot(name string, before, now *postgres.SlotStatus) slotView {
	v := slotView{
		Name: name, Exists: now.Exists, Active: now.Active, PID: now.ActivePID, State: now.State, WALStatus: now.WALStatus, Reason: now.Reason,
		End: now.End.String(), Lag: now.Lag(), Held: now.Held(), Spilled: now.SpillBytes, SpilledTransactions: now.SpillTransactions,
		Streamed: now.Streamed, Oldest: now.OldestTransaction.Seconds(), Connections: now.Connections, ClockOffset: now.ClockOffset.Seconds(),
	}
	if now.Exists {
		v.Confirmed, v.Restart = now.Confirmed.String(), now.Restart.String()
		if now.SafeWAL >= 0 {
			v.Safe = &now.SafeWAL
		}
	}
	if s := now.At.Sub(before.At).Seconds(); s > 0 {
		v.Written = float64(now.End-before.End) / s
		if before.Confirmed != 0 && now.Confirmed > before.Confirmed {
			v.Rate = float64(now.Confirmed-before.Confirmed) / s
		}
	}
	return v
}

// position adds what is on record in Kafka. A position moves at least every few seconds, so its age is for how long
// nothing was captured, as long as there is something to capture.
func (v *statusView) position(pos *event.Position, now *postgres.SlotStatus) {
	v.Capture = &captureView{Position: pos.CommitLSN.String(), Timeline: pos.Timeline, At: pos.At.UTC()}
	if pos.CommitLSN < now.End {
		v.Capture.Lag = max(now.At.Sub(pos.At).Seconds(), 0)
	}
	v.Capture.LargestOpen = pos.LargestOpen
	if pos.Open != nil {
		v.Capture.InTransaction, v.Capture.Rows = pos.Open.BatchID, pos.Open.Rows
	}
	for i := range pos.Snapshots {
		v.Snapshots = append(v.Snapshots, viewSnapshot(&pos.Snapshots[i], now.At))
	}
	if h := pos.Healed; h != nil {
		v.Healed = &healedView{
			Cause: h.Cause, Reason: h.Reason, Begun: h.To == 0, From: h.From.String(), FromTime: timeView(h.FromTime), To: h.To.String(),
			At: timeView(h.At), Snapshot: h.Snapshot, Touched: h.Touched,
		}
	}
}

// err is not nil when somebody should look.
func (v *statusView) err() error {
	away := func(service string) bool {
		return slices.ContainsFunc(v.Away, func(w awayView) bool { return service == "" || w.Service == service })
	}
	switch {
	case away("source"):
	case !v.Slot.Exists && v.Capture == nil:
		return fmt.Errorf("there is no slot %s yet: shelfwire run makes it", v.Slot.Name)
	case !v.Slot.Exists:
		return fmt.Errorf("the slot %s is gone: shelfwire run heals it by a whole snapshot", v.Slot.Name)
	case v.Slot.WALStatus == "lost":
		return fmt.Errorf("the slot %s is lost: shelfwire run heals it by a whole snapshot", v.Slot.Name)
	case len(v.Unpublished) > 0:
		return fmt.Errorf("not captured, as they are not there or not published: %s; shelfwire check says more", strings.Join(v.Unpublished, ", "))
	}
	services := "a service does"
	if len(v.Away) > 1 {
		services = fmt.Sprintf("%d services do", len(v.Away))
	}
	switch {
	case away(""):
		return fmt.Errorf("%s not answer as it should; the rest goes on, and nothing is lost", services)
	case v.Pipeline != nil && len(v.Pipeline.Holds) > 0:
		return fmt.Errorf("the guard waits for a decision: shelfwire holds")
	}
	return nil
}

func statusSheet(v *statusView) *table {
	t := &table{}
	line := func(name, value string) {
		if value != "" {
			t.add(name, value)
		}
	}
	for _, text := range awayText(v.Away) {
		line("AWAY", text)
	}
	s := &v.Slot
	switch {
	case s.End == "":
		line("slot", s.Name+": not known")
	case !s.Exists:
		line("slot", s.Name+": there is none")
	case s.Active:
		state := ""
		if s.State != "" { // a role without pg_monitor does not see it
			state = " (" + s.State + ")"
		}
		line("slot", fmt.Sprintf("%s, read by server process %d%s, %s", s.Name, s.PID, state, s.WALStatus))
	default:
		line("slot", fmt.Sprintf("%s, read by nobody, %s", s.Name, s.WALStatus))
	}
	line("invalidated", s.Reason)
	line("not captured", strings.Join(v.Unpublished, ", "))
	if s.Exists {
		lag := bytesText(s.Lag)
		if v.Capture != nil {
			lag += fmt.Sprintf(", %.1f s", v.Capture.Lag)
		}
		line("lag", lag)
		held := bytesText(s.Held) + " of WAL"
		if s.Safe != nil {
			held += ", " + bytesText(*s.Safe) + " until the server's limit"
		}
		line("held back", held)
		line("rate", fmt.Sprintf("%s/s captured, %s/s written", bytesText(int64(s.Rate)), bytesText(int64(s.Written))))
		if s.Streamed+s.SpilledTransactions > 0 {
			line("large", fmt.Sprintf("%d transactions streamed before their commit; %d spilled by the server, %s", s.Streamed, s.SpilledTransactions, bytesText(s.Spilled)))
		}
	}
	if s.Oldest > 0 {
		line("oldest", fmt.Sprintf("a transaction that writes is open for %.0f s", s.Oldest))
	}
	if s.End != "" {
		line("connections", fmt.Sprint(s.Connections))
	}
	if c := v.Capture; c != nil {
		line("position", fmt.Sprintf("%s on timeline %d, of %s", c.Position, c.Timeline, c.At.Format(time.RFC3339)))
		if c.LargestOpen > 0 {
			line("largest open", bytesText(c.LargestOpen)+" of a transaction that has not ended")
		}
		if c.InTransaction != "" {
			line("in", fmt.Sprintf("%s, %d rows so far", c.InTransaction, c.Rows))
		}
	}
	for i := range v.Snapshots {
		p := &v.Snapshots[i]
		text := fmt.Sprintf("%s: %d rows of about %d, %.0f a second", p.ID, p.Rows, p.Estimate, p.Rate)
		if p.Left > 0 {
			text += fmt.Sprintf(", %.0f s left", p.Left)
		}
		line("snapshot", text+"; to do: "+strings.Join(p.Tables, ", "))
	}
	if v.Healed != nil {
		line("last healing", v.Healed.text())
	}
	if v.Pipeline != nil {
		v.Pipeline.sheet(line)
	}
	return t
}

func (h *healedView) text() string {
	snapshot := ""
	if h.Snapshot != "" {
		snapshot = ", " + h.Snapshot
	}
	when := "begun"
	if h.At != nil {
		when = h.At.Format(time.RFC3339)
	}
	return fmt.Sprintf("%s: %s; from %s to %s, %d products touched%s", when, h.Reason, h.From, h.To, h.Touched, snapshot)
}
