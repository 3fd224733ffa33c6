package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/sinks/state"
)

// findBatch takes the id of a batch, or the name of one: of several, the youngest.
func findBatch(ctx context.Context, st *state.Store, what string) (state.Batch, error) {
	b, err := st.Batch(ctx, what)
	if !errors.Is(err, state.ErrNoBatch) {
		return b, err
	}
	list, listErr := st.Batches(ctx, state.BatchFilter{Name: what})
	if listErr != nil {
		return b, listErr
	}
	for _, named := range list { // the youngest first; the filter also finds parts of names
		if named.Name == what {
			return named, nil
		}
	}
	return b, err
}

func batchesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "batches [ID or NAME]",
		Short: "List upload batches, or show one with what failed in it; cancel or retry it",
		Long: "Lists the newest 50 batches, or shows one. Cancelling stops what has not been sent: a product that another batch\n" +
			"or a later change wants is still pushed. Retrying pushes again what has failed, up to three times an item. As JSON\n" +
			"a list is an array and one batch an object; times are RFC 3339 in UTC and absent while unknown, durations are\n" +
			"seconds.",
		Args: atMostOne("batch id"),
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	cancel := cmd.Flags().Bool("cancel", false, "cancel the batch")
	again := cmd.Flags().Bool("retry", false, "push again what has failed in the batch")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case *cancel && *again:
			return usageError(cmd, "--cancel and --retry: give one of them")
		case (*cancel || *again) && len(args) == 0:
			return usageError(cmd, "--cancel and --retry: name the batch")
		}
		a, err := openState(cmd.Context(), *file)
		defer a.close()
		if err != nil {
			return err
		}
		now := time.Now()
		if len(args) == 1 {
			b, err := findBatch(cmd.Context(), a.state, args[0])
			if errors.Is(err, state.ErrNoBatch) {
				return fmt.Errorf("there is no batch with the id or the name %q; shelfwire batches lists them", args[0])
			}
			if err != nil {
				return err
			}
			switch {
			case *cancel:
				b, err = cancelBatch(cmd.Context(), a, b)
			case *again:
				b, err = retryBatch(cmd.Context(), a, b)
			}
			if err != nil {
				return err
			}
			v := viewBatch(&b, now)
			return show(cmd.OutOrStdout(), *asJSON, v, batchSheet(&v))
		}
		list, err := a.state.Batches(cmd.Context(), state.BatchFilter{})
		if err != nil {
			return err
		}
		views := make([]batchView, len(list))
		for i := range list {
			views[i] = viewBatch(&list[i], now)
		}
		return show(cmd.OutOrStdout(), *asJSON, views, batchTable(views))
	}
	return cmd
}

// cancelBatch cancels a batch and returns what it is then.
func cancelBatch(ctx context.Context, a *app, b state.Batch) (state.Batch, error) {
	err := a.state.CancelBatch(ctx, b.ID)
	if errors.Is(err, state.ErrBatchEnded) {
		return b, fmt.Errorf("batch %s has ended as %s; there is nothing to cancel", b.ID, b.Status)
	}
	if err != nil {
		return b, err
	}
	return a.state.Batch(ctx, b.ID)
}

// batchRetries is how often a person may have an item pushed again.
const batchRetries = 3

// retryBatch makes the failed items of a batch due and returns what it is then.
func retryBatch(ctx context.Context, a *app, b state.Batch) (state.Batch, error) {
	got, err := a.state.RetryBatch(ctx, b.ID, batchRetries, int32(a.cfg.Kafka.Partitions))
	switch {
	case errors.Is(err, state.ErrBatchCancelling):
		return b, fmt.Errorf("batch %s is being cancelled; wait until it has ended", b.ID)
	case err != nil:
		return b, err
	case got.Items == 0 && got.OverLimit == 0:
		return b, fmt.Errorf("batch %s has no failed item; there is nothing to retry", b.ID)
	case got.Items == 0:
		return b, fmt.Errorf("what has failed in batch %s was retried %d times: %s; a change of the product pushes it again",
			b.ID, batchRetries, count(got.OverLimit, "item"))
	}
	return a.state.Batch(ctx, b.ID)
}

// batchView is a batch as this command prints it. Its names are a promise: programs read them.
type batchView struct {
	ID    string `json:"id"`
	Kind  string `json:"kind"`
	Name  string `json:"name,omitempty"`
	Admin string `json:"admin,omitempty"`
	// XID and CommitLSN name the transaction, as pg_current_xact_id() and pg_lsn do; absent for a batch of ours.
	XID       string            `json:"xid,omitempty"`
	CommitLSN string            `json:"commit_lsn,omitempty"`
	Committed *time.Time        `json:"committed_at,omitempty"`
	Rows      int64             `json:"rows"`
	Status    state.BatchStatus `json:"status"`
	// Reason is why the batch is not whole, and so FAILED: capture had to give it up.
	Reason string `json:"reason,omitempty"`
	Round  int    `json:"round"`
	// Announced says that the whole transaction has been captured, so that Total can grow no more than by shops.
	Announced  bool       `json:"announced"`
	Cancelling bool       `json:"cancelling"`
	Created    *time.Time `json:"created_at,omitempty"`
	Started    *time.Time `json:"started_at,omitempty"`
	Ended      *time.Time `json:"ended_at,omitempty"`
	// Seconds is the time from the start to the end, or to now.
	Seconds    float64          `json:"duration_seconds"`
	Total      int              `json:"total"`
	Succeeded  int              `json:"succeeded"`
	Failed     int              `json:"failed"`
	Skipped    int              `json:"skipped"`
	Cancelled  int              `json:"cancelled"`
	Processing int              `json:"processing"`
	Rate       *float64         `json:"success_rate,omitempty"`
	Errors     []batchErrorView `json:"errors"`
}

// batchErrorView is a category of failures, with an example.
type batchErrorView struct {
	Category string `json:"category"`
	Count    int    `json:"count"`
	Product  string `json:"product_id"`
	Shop     string `json:"shop"`
	Message  string `json:"message"`
}

func viewBatch(b *state.Batch, now time.Time) batchView {
	v := batchView{
		ID: b.ID, Kind: b.Kind, Name: b.Name, Admin: b.Admin, Rows: b.Rows, Status: b.Status, Reason: b.Reason, Round: b.Round,
		Announced: b.Announced, Cancelling: b.Cancelling,
		Committed: timeView(b.CommitTime), Created: timeView(b.CreatedAt), Started: timeView(b.StartedAt), Ended: timeView(b.EndedAt),
		Seconds: b.Duration(now).Seconds(),
		Total:   b.Total, Succeeded: b.Succeeded, Failed: b.Failed, Skipped: b.Skipped, Cancelled: b.Cancelled, Processing: b.Processing,
		Errors: []batchErrorView{},
	}
	if b.XID != 0 {
		v.XID = fmt.Sprint(b.XID)
	}
	if b.CommitLSN != 0 {
		v.CommitLSN = b.CommitLSN.String()
	}
	if rate, ok := b.SuccessRate(); ok {
		v.Rate = &rate
	}
	for _, e := range b.Errors {
		v.Errors = append(v.Errors, batchErrorView{
			Category: string(e.Category), Count: e.Count, Product: e.ProductID, Shop: e.Shop, Message: e.Message,
		})
	}
	return v
}

// timeView is a time in UTC; nil for none.
func timeView(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(t.UTC())
}

func batchTable(list []batchView) *table {
	t := &table{
		head:    []string{"BATCH", "STATUS", "TOTAL", "OK", "FAILED", "SKIPPED", "OPEN", "TOOK", "NAME", "ADMIN", "ERRORS"},
		elastic: []string{"NAME", "ADMIN", "ERRORS"},
		empty:   "there is no batch yet",
	}
	for _, b := range list {
		var errs []string
		for _, e := range b.Errors {
			errs = append(errs, fmt.Sprintf("%d %s", e.Count, e.Category))
		}
		n := func(v int) string { return fmt.Sprint(v) }
		t.add(b.ID, string(b.Status), n(b.Total), n(b.Succeeded), n(b.Failed), n(b.Skipped), n(b.Processing), b.took(),
			b.Name, b.Admin, strings.Join(errs, ", "))
	}
	return t
}

// took is how long a batch has taken; empty while it has not ended.
func (b *batchView) took() string {
	if b.Ended == nil || b.Started == nil {
		return ""
	}
	return b.Ended.Sub(*b.Started).Round(10 * time.Millisecond).String()
}

// batchSheet shows one batch, with its errors in full.
func batchSheet(b *batchView) *table {
	t := &table{}
	line := func(name, value string) {
		if value != "" {
			t.add(name, value)
		}
	}
	at := func(v *time.Time) string {
		if v == nil {
			return ""
		}
		return v.Format(time.RFC3339)
	}
	line("batch", b.ID)
	line("kind", b.Kind)
	line("name", b.Name)
	line("admin", b.Admin)
	line("status", string(b.Status))
	line("reason", b.Reason)
	line("items", fmt.Sprintf("%d: %d succeeded, %d failed, %d skipped, %d cancelled, %d open",
		b.Total, b.Succeeded, b.Failed, b.Skipped, b.Cancelled, b.Processing))
	line("transaction", b.XID)
	line("committed", at(b.Committed))
	line("started", at(b.Started))
	line("ended", at(b.Ended))
	line("took", b.took())
	for _, e := range b.Errors {
		line("failed", fmt.Sprintf("%d %s, such as product %s in shop %s: %s", e.Count, e.Category, e.Product, e.Shop, e.Message))
	}
	return t
}
