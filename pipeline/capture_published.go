package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// capturePublication looks after the publication; connectors/postgres implements it.
type capturePublication interface {
	// KeepPublished makes sure that these tables are published, as far as they exist.
	KeepPublished(ctx context.Context, tables []string) error
	// Memberships says of each of these tables that is published which table it is, and which entry of the publication it
	// has. Both change when it was not published for a moment.
	Memberships(ctx context.Context, tables []string) (map[string]string, error)
}

// capturePublicationLost is why a session ends: the next one finds out what there is to do.
type capturePublicationLost struct{ tables []string }

func (e *capturePublicationLost) Error() string {
	return "the publication, or what it publishes, has changed: " + strings.Join(e.tables, ", ")
}

// watchPublication ends the session when a table is not what it was: dropped, made again, or taken out of the publication.
// Of what is written to it from then on, the stream has nothing.
func (c *Capture) watchPublication(ctx context.Context, had map[string]string) error {
	tables := PublishedTables(c.cfg)
	tick := time.NewTicker(c.cfg.PublicationEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := c.parts.Source.KeepPublished(ctx, tables)
		has, merr := c.parts.Source.Memberships(ctx, tables)
		if ctx.Err() != nil {
			return nil
		}
		if merr != nil {
			c.log.WarnContext(ctx, "publication not looked at", "error", errors.Join(err, merr))
			continue
		}
		c.stats.Unpublished.Store(int64(len(tables) - len(has)))
		switch other := membersChanged(had, has); {
		case len(other) == 0 && err != nil:
			c.log.WarnContext(ctx, "publication not looked at", "error", err)
		case err != nil: // a new session could not begin: what is still published is captured meanwhile
			c.log.ErrorContext(ctx, "tables are not captured any more, and cannot be published again", "tables", strings.Join(other, ", "), "error", err)
		case len(other) > 0:
			return &capturePublicationLost{other}
		}
	}
}

// orUnpublished makes an error that would end Capture one that ends the session, where the tables are not what they were:
// one that is gone cannot be read, and the next session knows it.
func (c *Capture) orUnpublished(ctx context.Context, had map[string]string, err error) error {
	if !captureFinal(err) {
		return err
	}
	if has, merr := c.parts.Source.Memberships(ctx, PublishedTables(c.cfg)); merr == nil {
		if other := membersChanged(had, has); len(other) > 0 {
			return &capturePublicationLost{other}
		}
	}
	return err
}

// readableTables are those of tables that are there.
func readableTables(tables []string, pos event.Position) []string {
	return slices.DeleteFunc(slices.Clone(tables), func(t string) bool { return slices.Contains(pos.Gone, t) })
}

// membersChanged lists the tables that are not what they were.
func membersChanged(had, has map[string]string) []string {
	var out []string
	for _, m := range []map[string]string{had, has} {
		for table := range m {
			if had[table] != has[table] && !slices.Contains(out, table) {
				out = append(out, table)
			}
		}
	}
	slices.Sort(out)
	return out
}

// published takes into a position what is published now. A table that is not what it was has changes that were never
// streamed, and rows that have gone with the table that had its name. So it is read again, and every product that the
// state knows is evaluated again, as those of rows that are gone cannot be named.
//
// The position is written before anything of the stream is, so that it is not forgotten by a kill. Of a position that
// does not say what was published, it is taken that nothing has changed.
func (c *Capture) published(ctx context.Context, producer captureProducer, old, pos event.Position) (event.Position, error) {
	has, err := c.parts.Source.Memberships(ctx, PublishedTables(c.cfg))
	if err != nil {
		return pos, err
	}
	// A table that has only now come into the configuration is none that has changed.
	had := maps.Clone(old.Published)
	for table := range has {
		if _, known := had[table]; had != nil && !known && !slices.Contains(old.Gone, table) {
			had[table] = has[table]
		}
	}
	pos.Published = has
	c.stats.Unpublished.Store(int64(len(PublishedTables(c.cfg)) - len(has)))
	tables := PublishedTables(c.cfg)
	pos.Gone = slices.DeleteFunc(slices.Clone(tables), func(t string) bool { return has[t] != "" })
	var changed []string
	if had != nil { // one that is not in the configuration any more is nobody's
		changed = slices.DeleteFunc(membersChanged(had, has), func(t string) bool { return !slices.Contains(tables, t) })
	}
	if len(changed) == 0 {
		return pos, nil
	}
	return c.reread(ctx, producer, old, pos, changed)
}

// reread puts on record that tables are read again.
func (c *Capture) reread(ctx context.Context, producer captureProducer, old, pos event.Position, changed []string) (event.Position, error) {
	var again, gone []string
	for _, t := range changed {
		if pos.Published[t] == "" {
			gone = append(gone, t)
		} else {
			again = append(again, t)
		}
	}
	reason := ""
	if len(again) > 0 {
		reason = fmt.Sprintf("%s: dropped and made again, or not published for a while: what changed in between was not streamed", strings.Join(again, ", "))
	}
	if len(gone) > 0 {
		reason = strings.TrimPrefix(reason+"; "+strings.Join(gone, ", ")+": dropped, renamed or not published any more", "; ")
	}
	if c.cfg.NoHeal {
		return old, &captureError{reason + "; healing is off: to take a whole snapshot, run: shelfwire run --restart-capture"}
	}
	now := time.Now().UTC()
	h := event.Healing{
		Cause: gapUnpublished, Reason: reason, From: old.CommitLSN, FromTime: old.At, FromTimeline: old.Timeline,
		To: old.CommitLSN, ToTimeline: pos.Timeline, At: now,
	}
	if old.Healed != nil {
		h.Recent = old.Healed.Recent // it does not count: it is somebody's will, and no trouble of the slot
	}
	routed := RoutedTables(c.cfg.Routes)
	if c.parts.Touch != nil && slices.ContainsFunc(changed, func(t string) bool { return slices.Contains(routed, t) }) {
		n, err := c.parts.Touch(ctx, false)
		if err != nil {
			return old, fmt.Errorf("touch the products that are known: %w", err)
		}
		h.Touched = n
	}
	pos.Tables = slices.DeleteFunc(slices.Clone(pos.Tables), func(t string) bool { return slices.Contains(again, t) })
	pos.Snapshots = slices.Clone(pos.Snapshots)
	for i := range pos.Snapshots {
		p := pos.Snapshots[i].Clone()
		for j, t := range p.Tables {
			if slices.Contains(again, t.Table) { // its keys are those of another table
				p.Tables[j] = event.SnapshotTable{Number: t.Number, Table: t.Table}
			}
		}
		pos.Snapshots[i] = p
	}
	pos.Snapshots = snapshotPlan(pos, readableTables(captureTables(c.cfg), pos), now)
	if i := slices.IndexFunc(pos.Snapshots, func(p event.SnapshotProgress) bool { return p.Request == nil }); i >= 0 {
		h.Snapshot = pos.Snapshots[i].ID
	}
	pos.Healed = &h
	u := &captureUnit{position: pos, announce: []captureAnnounce{{group: captureHealGroup, batch: event.Batch{
		Type: event.BatchHealed, ID: cmp.Or(h.Snapshot, "unpublished-"+now.Format("20060102T150405.000000")), Kind: event.KindSnapshot, Reason: h.Reason, Healing: &h,
	}}}}
	w := newCaptureWriter(c.cfg, producer, old, &c.stats, func(*captureUnit) {})
	if err := w.write(ctx, u); err != nil {
		return old, fmt.Errorf("note that tables are read again: %w", err)
	}
	c.stats.Healings.Add(1)
	c.stats.Healed.Store(now.UnixNano())
	c.log.ErrorContext(ctx, "tables are read again, as their changes were not streamed all the time", "reason", reason,
		"snapshot", h.Snapshot, "products_touched", h.Touched)
	return pos, nil
}
