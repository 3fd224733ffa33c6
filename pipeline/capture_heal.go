package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// captureHistory tells whether a position still means anything; connectors/postgres implements it.
type captureHistory interface {
	// History names the cluster, the timeline and the slot that positions are of.
	History(ctx context.Context) (change.History, error)
	// SwitchPoint is where the present history left an earlier timeline; false when it never was on that.
	SwitchPoint(ctx context.Context, timeline int32) (change.LSN, bool, error)
	// WALEnd is how far the WAL reaches.
	WALEnd(ctx context.Context) (change.LSN, error)
}

// captureSlot looks after the slot; connectors/postgres implements it.
type captureSlot interface {
	// CheckSlot returns nil when the slot can be read, or is being read.
	CheckSlot(ctx context.Context) error
	// RenewSlot drops the slot, if there is one, and creates it at the end of WAL. One that is in use it leaves alone.
	RenewSlot(ctx context.Context) error
}

// captureGap is a break between the position on record and what the source can still give. Only a snapshot closes it.
type captureGap struct {
	// cause is one word: that of the slot's trouble, or one of the constants below.
	cause, reason string
	// renew: a new slot is needed. look: whether the slot still is in trouble is asked again before.
	renew, look bool
	// back: the source's history went back, and what was known of it beyond its data is void, transaction ids above all.
	back bool
}

// The causes that are not the slot's own.
const (
	gapPassed   = "passed"    // the slot has been read by somebody else
	gapPosition = "position"  // there is no position, and the slot has been used
	gapTimeline = "timeline"  // the source went back to before the position, and on from there
	gapBehind   = "behind"    // the source's WAL ends before the position
	gapSystem   = "system"    // the source is another cluster
	gapHalf     = "half"      // the rest of a transaction does not come: the source was set back, and has gone on since
	gapAsked    = "asked for" // Config.Restart
	// gapUnpublished is no gap of the stream but of some tables in it.
	gapUnpublished = "unpublished"
)

func (g *captureGap) Error() string { return g.reason }

// captureGapOf finds the gap in an error; nil when there is none. That a slot is gone it asks by behaviour.
func captureGapOf(err error) *captureGap {
	var gap *captureGap
	var slot interface {
		Gone() string
		Reason() string
	}
	switch {
	case errors.As(err, &gap):
		return gap
	case errors.As(err, &slot) && slot.Gone() != "":
		// A slot that is older than its publication looks well from outside.
		return &captureGap{cause: slot.Gone(), reason: slot.Reason(), renew: true, look: slot.Gone() != "stale"}
	}
	return nil
}

// resume finds out where to go on: from the position in Kafka, from the slot's where nothing was captured yet, or, over
// a gap, from the slot's with a snapshot of everything. It is called behind the fence and with the slot in hand, so
// that nobody else moves either.
func (c *Capture) resume(ctx context.Context, producer captureProducer, confirmed change.LSN) (event.Position, error) {
	history, err := c.parts.Source.History(ctx)
	if err != nil {
		return event.Position{}, err
	}
	old, found, err := c.parts.Position(ctx, "capture/"+history.Slot)
	if err != nil {
		return old, err
	}
	now, gap, err := c.gap(ctx, history, old, found, confirmed)
	if err != nil {
		return old, err
	}
	pos := event.Position{
		Writer: "capture/" + history.Slot, History: history, Position: change.Position{CommitLSN: confirmed}, Last: confirmed, Healed: old.Healed,
	}
	switch {
	case gap != nil && gap.renew:
		return old, gap // not while the slot is in hand
	case gap != nil:
		if pos, err = c.published(ctx, producer, event.Position{}, pos); err != nil {
			return old, err
		}
		return c.heal(ctx, producer, old, pos, gap)
	case old.CommitLSN == 0: // the first start
		c.restarted = true
	default:
		pos = now
		pos.History = history // on a newer timeline of the same history
		if old.Timeline != history.Timeline {
			pos.Unseen, pos.UnseenParents = nil, nil // what was committed before is visible on the new server, or is nowhere
		}
		if err := c.setBack(ctx, old, pos); err != nil {
			return old, err
		}
		if pos, err = c.published(ctx, producer, old, pos); err != nil {
			return old, err
		}
	}
	if pos.Published == nil {
		if pos, err = c.published(ctx, producer, event.Position{}, pos); err != nil {
			return old, err
		}
	}
	pos.Snapshots = snapshotPlan(pos, readableTables(captureTables(c.cfg), pos), time.Now())
	return pos, nil
}

// gap says why the stream from confirmed on is not the continuation of a position; nil when it is. The position that it
// returns is the one on the present timeline.
func (c *Capture) gap(ctx context.Context, h change.History, pos event.Position, found bool, confirmed change.LSN) (event.Position, *captureGap, error) {
	if begun := pos.Healed; found && pos.CommitLSN == 0 && begun != nil && begun.To == 0 {
		return pos, &captureGap{cause: begun.Cause, reason: begun.Reason, renew: begun.Renew, back: begun.Back}, nil
	}
	switch {
	case found && pos.CommitLSN == 0 && pos.Making:
		return pos, &captureGap{cause: gapPosition, renew: true, reason: fmt.Sprintf("whoever made the slot %s has not come to look whether it is good", h.Slot)}, nil
	case found && pos.CommitLSN == 0:
		return pos, nil, nil // marked before the slot was made, see reopen
	case !found:
		return pos, &captureGap{cause: gapPosition, reason: fmt.Sprintf("there is no position in %spositions, and the slot %s stands "+
			"at %s: was the topic made anew?", c.cfg.Prefix, h.Slot, confirmed)}, nil
	case c.cfg.Restart && !c.restarted:
		return pos, &captureGap{cause: gapAsked, reason: "a whole snapshot was asked for"}, nil
	}
	now, gap, err := c.otherHistory(ctx, h, pos)
	if gap != nil || err != nil {
		return pos, gap, err
	}
	if now.CommitLSN < confirmed {
		return pos, &captureGap{cause: gapPassed, reason: fmt.Sprintf("the slot %s was confirmed up to %s, and Kafka has only what "+
			"was committed before %s: somebody else has read from the slot, or set %spositions back", h.Slot, confirmed, now.CommitLSN, c.cfg.Prefix)}, nil
	}
	return now, nil, nil
}

// otherHistory says why a position is not of the source's past; nil when it is, with the position on the present timeline.
//
// A source that was set back without a new timeline (a file system's snapshot that was put back, a copied directory) is
// known by a WAL that ends before the position. Where it has written more than that since, before Capture looks, it is
// known only by a transaction that was half captured; else restore by Postgres' own recovery, which begins a timeline, or give up the position with Config.Restart.
func (c *Capture) otherHistory(ctx context.Context, h change.History, pos event.Position) (event.Position, *captureGap, error) {
	switch {
	case pos.SystemID != h.SystemID && !c.cfg.AcceptSource:
		return pos, nil, &captureError{fmt.Sprintf("the position in Kafka is of the cluster %s, and the source is the cluster %s: "+
			"if that is meant, run once with --accept-source, which takes a whole snapshot", pos.SystemID, h.SystemID)}
	case pos.SystemID != h.SystemID:
		return pos, &captureGap{cause: gapSystem, back: true, reason: fmt.Sprintf("the source is the cluster %s, and the position is "+
			"of the cluster %s", h.SystemID, pos.SystemID)}, nil
	case pos.Timeline != h.Timeline:
		left, ok, err := c.parts.Source.SwitchPoint(ctx, pos.Timeline)
		if err != nil {
			return pos, nil, err
		}
		ok = ok && switched(&pos, left)
		if !ok {
			return pos, &captureGap{cause: gapTimeline, renew: true, back: true, reason: fmt.Sprintf("the source is on timeline %d, "+
				"and left timeline %d before the position %s", h.Timeline, pos.Timeline, pos.CommitLSN)}, nil
		}
	}
	end, err := c.parts.Source.WALEnd(ctx)
	if err == nil && pos.CommitLSN > end {
		return pos, &captureGap{cause: gapBehind, renew: true, back: true, reason: fmt.Sprintf("the source's WAL ends at %s, before "+
			"the position %s: it was set back, or restored", end, pos.CommitLSN)}, nil
	}
	return pos, nil, err
}

// switched reports whether what a position describes happened before its timeline was left. The commit record of a
// transaction that is half in Kafka begins at its position, that of a whole one ends there.
//
// A server that dies may have told the stream of WAL that its standby never had. Where nothing of that was captured, as
// it concerned nobody here, nothing is amiss: the position goes back to where the timeline was left. There begins what
// the new one has written, and without that step it would be taken for captured.
func switched(pos *event.Position, left change.LSN) bool {
	switch {
	case pos.CommitLSN < left, pos.CommitLSN == left && pos.Open == nil:
	case pos.Open == nil && pos.Last != 0 && pos.Last <= left:
		pos.Position = change.Position{CommitLSN: left}
	default:
		return false
	}
	return true
}

// setBack has every product evaluated again that is known where the source went on on another timeline: the new server
// gives the transaction ids to others that the old one has given since it was left behind, and reads of it have noted those
// as seen. A kill before the next position has it done twice.
func (c *Capture) setBack(ctx context.Context, old, now event.Position) error {
	if now.Position == old.Position && old.Timeline == now.Timeline {
		return nil
	}
	touched := int64(0)
	if c.parts.Touch != nil {
		n, err := c.parts.Touch(ctx, true)
		if err != nil {
			return fmt.Errorf("touch the products that are known: %w", err)
		}
		touched = n
	}
	c.log.WarnContext(ctx, "the source went on on another timeline, perhaps without the last WAL of the server before it: nothing captured is lost, and "+
		"every known product is evaluated again", "from", old.CommitLSN.String(), "to", now.CommitLSN.String(),
		"timeline", now.Timeline, "products_touched", touched)
	return nil
}

// reopen makes the slot anew, for the next session to go on from. The slot is in nobody's hand meanwhile, but no
// process works without it, so that the fence stops nobody who does.
//
// Invariant: that there is a gap is on record before the new slot exists. Otherwise a process that finds the new slot
// beside the old position, after a kill in between, could take one for the continuation of the other: where the source
// was set back, the new slot may well stand before the position. That the slot is good is on record after it: a process
// that finds one that nobody has looked at makes it anew.
func (c *Capture) reopen(ctx context.Context, gap *captureGap) error {
	producer, err := c.parts.Fence(ctx)
	if err != nil {
		return err
	}
	defer producer.Close()
	if gap.look {
		switch err := c.parts.Source.CheckSlot(ctx); {
		case err == nil:
			return nil // somebody else was quicker
		case captureGapOf(err) == nil:
			return err
		default:
			gap = captureGapOf(err) // the catalog knows why the server has invalidated the slot
		}
	}
	history, err := c.parts.Source.History(ctx)
	if err != nil {
		return err
	}
	pos, found, err := c.parts.Position(ctx, "capture/"+history.Slot)
	if err != nil {
		return err
	}
	switch {
	case !found:
		pos = event.Position{Writer: "capture/" + history.Slot, History: history, Making: true}
	case pos.CommitLSN != 0:
		// What became of the source says more than that the slot is not there.
		_, other, err := c.otherHistory(ctx, history, pos)
		if err != nil {
			return err
		}
		if other != nil {
			gap = &captureGap{cause: other.cause, reason: other.reason, renew: true, back: true}
		}
		if err := c.mayHeal(gap, pos, history.Slot); err != nil {
			return err
		}
		pos.Healed = begunHealing(gap, pos)
		pos.Position = change.Position{}
	}
	if err := c.mark(ctx, producer, pos); err != nil {
		return err
	}
	if err := c.parts.Source.RenewSlot(ctx); err != nil {
		return err
	}
	if pos.Healed != nil {
		done := *pos.Healed
		done.Renew, pos.Healed = false, &done
	}
	pos.Making = false
	return c.mark(ctx, producer, pos)
}

// begunHealing describes a gap behind a position.
func begunHealing(gap *captureGap, pos event.Position) *event.Healing {
	h := &event.Healing{
		Cause: gap.cause, Reason: gap.reason, From: pos.CommitLSN, FromTime: pos.At, FromTimeline: pos.Timeline,
		Renew: gap.renew, Back: gap.back,
	}
	if last := pos.Healed; last != nil {
		h.Recent = last.Recent
	}
	return h
}

// mark puts a position on record that nothing was written under.
func (c *Capture) mark(ctx context.Context, producer captureProducer, pos event.Position) error {
	w := newCaptureWriter(c.cfg, producer, pos, &c.stats, func(*captureUnit) {})
	if err := w.write(ctx, &captureUnit{position: pos}); err != nil {
		return fmt.Errorf("note where capture begins: %w", err)
	}
	return nil
}

// healWindow is the time in which Config.HealMost healings are allowed.
const healWindow = time.Hour

// mayHeal refuses what only a person shall decide.
func (c *Capture) mayHeal(gap *captureGap, pos event.Position, slot string) error {
	if c.cfg.Restart && !c.restarted {
		return nil
	}
	byHand := "shelfwire run --restart-capture"
	if gap.renew && gap.cause != "missing" {
		byHand = fmt.Sprintf("psql -c \"SELECT pg_drop_replication_slot('%s')\" && %s", slot, byHand)
	}
	if c.cfg.NoHeal {
		since := "an unknown position"
		if pos.CommitLSN != 0 {
			since = fmt.Sprintf("%s (%s)", pos.CommitLSN, pos.At.UTC().Format(time.RFC3339))
		}
		return &captureError{fmt.Sprintf("%s; what was committed since %s is lost to the stream, and healing is off: to take "+
			"a whole snapshot, run: %s", gap.reason, since, byHand)}
	}
	var recent []time.Time
	if pos.Healed != nil {
		recent = healRecent(pos.Healed.Recent, time.Now())
	}
	if c.cfg.HealMost > 0 && len(recent) >= c.cfg.HealMost {
		return &captureError{fmt.Sprintf("%s; this is gap number %d within an hour, and snapshots do not mend its cause: look at "+
			"max_slot_wal_keep_size and at who else uses the slot, then run: %s", gap.reason, len(recent)+1, byHand)}
	}
	return nil
}

// healRecent drops the times that are no longer in the window.
func healRecent(times []time.Time, now time.Time) []time.Time {
	var out []time.Time
	for _, t := range times {
		if now.Sub(t) < healWindow {
			out = append(out, t)
		}
	}
	return out
}

// heal goes on at pos over a gap behind old: with a whole snapshot, and with every product touched that the state
// knows, as the snapshot cannot name those that are gone from the source. In one Kafka transaction stand the event,
// the ends of the batches that were given up, and the position; before it nothing has happened that may not happen
// twice.
func (c *Capture) heal(ctx context.Context, producer captureProducer, old, pos event.Position, gap *captureGap) (event.Position, error) {
	begun := old.Healed
	if old.CommitLSN != 0 || begun == nil { // not judged yet
		if err := c.mayHeal(gap, old, pos.Slot); err != nil {
			return old, err
		}
		begun = begunHealing(gap, old)
	}
	now := time.Now().UTC()
	h := *begun
	h.To, h.ToTimeline, h.At, h.Renew = pos.CommitLSN, pos.Timeline, now, false
	h.Recent = append(healRecent(h.Recent, now), now)
	if c.parts.Touch != nil {
		n, err := c.parts.Touch(ctx, gap.back)
		if err != nil {
			return old, fmt.Errorf("touch the products that are known: %w", err)
		}
		h.Touched = n
	}
	pos.Snapshots = snapshotPlan(pos, readableTables(captureTables(c.cfg), pos), now)
	if len(pos.Snapshots) > 0 {
		h.Snapshot = pos.Snapshots[0].ID
	}
	pos.Ended = snapshotsGivenUp(old, h.Snapshot)
	pos.Healed = &h
	u := &captureUnit{position: pos, announce: append(givenUp(old, &h), captureAnnounce{group: captureHealGroup, batch: event.Batch{
		Type: event.BatchHealed, ID: cmp.Or(h.Snapshot, "healed-"+now.Format("20060102T150405.000000")), Kind: event.KindSnapshot, Reason: h.Reason, Healing: &h,
	}})}
	// The writer goes on from the old position, whose open batches know their offsets.
	w := newCaptureWriter(c.cfg, producer, old, &c.stats, func(*captureUnit) {})
	if err := w.write(ctx, u); err != nil {
		return old, fmt.Errorf("heal: %w", err)
	}
	c.restarted = true
	c.stats.Healings.Add(1)
	c.stats.Healed.Store(now.UnixNano())
	c.log.ErrorContext(ctx, "capture healed: what was committed in the gap comes from a whole snapshot", "cause", h.Cause,
		"reason", h.Reason, "from", h.From.String(), "from_time", h.FromTime, "to", h.To.String(), "snapshot", h.Snapshot, "products_touched", h.Touched)
	return pos, nil
}

// captureHealGroup has no records.
const captureHealGroup = -1

// givenUp ends the batches that a position was in the middle of: what stands in the topics is all that comes of them,
// and the state ends them, as FAILED, when it has settled that.
func givenUp(old event.Position, h *event.Healing) []captureAnnounce {
	reason := "not whole: " + h.Reason + "; what is missing comes in " + h.Snapshot
	var out []captureAnnounce
	if o := old.Open; o != nil && o.BatchID != "" {
		out = append(out, captureAnnounce{group: captureResumed, batch: event.Batch{
			Type: event.BatchAnnounced, ID: o.BatchID, Kind: event.KindTransaction, Name: o.Name, Admin: o.Admin, Rows: o.Rows, Reason: reason,
		}})
	}
	for i, s := range old.Snapshots {
		if s.Rows > 0 {
			out = append(out, captureAnnounce{group: captureResumed + 1 + int64(i), batch: event.Batch{
				Type: event.BatchAnnounced, ID: s.ID, Kind: event.KindSnapshot, Rows: s.Rows, Reason: reason,
			}})
		}
	}
	return out
}
