package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// buildDryRun builds what takes Push's place in run --dry-run: it begins with the next change.
func (a *app) buildDryRun(ctx context.Context, n int32) error {
	changes, err := a.reader(event.Changes)
	if err != nil {
		return err
	}
	ends, err := a.cluster.EndOffsets(ctx, a.cluster.Topic(event.Changes))
	if err != nil {
		return err
	}
	a.dry = pipeline.NewDryRun(a.pushConfig(n), pipeline.PushParts{
		Reader: changes, Documents: documents{a.source, a.cfg.Documents}, Snapshot: a.source.Snapshot,
		State: a.state, Sender: a.shops, Log: a.log,
	}, ends, func(s pipeline.Shown) { tellShown(ctx, a.log, s) })
	return nil
}

// tellShown tells what a push would be.
func tellShown(ctx context.Context, log *slog.Logger, s pipeline.Shown) {
	log = log.With("product", s.ProductID, "shop", s.Shop, "changes", s.Changes, "committed", s.FirstCommit.UTC().Format(time.RFC3339Nano))
	if s.Words == "" {
		log.InfoContext(ctx, "dry run: nothing would be sent", "status", s.Status, "reason", s.Reason, "message", s.Message)
		return
	}
	log.InfoContext(ctx, "dry run: would send", "plan", s.Words, "points", s.Points, "effects", s.Effects)
}
