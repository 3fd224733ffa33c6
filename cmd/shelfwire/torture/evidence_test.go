package torture

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// evidence is what the topics of a trial are held against.
type evidence struct {
	topics  *kafkatopics.Cluster
	witness witness
	// first is where the first slot began; 0 where a healing tells.
	first change.LSN
	past  []pastEra
	// asked are the snapshots that somebody wanted.
	asked []string
}

// exhibit is all that is compared but the tables themselves.
type exhibit struct {
	topics map[string][]event.Record
	// now is the history of the server as it is.
	now []deed
}

// compare holds the topics against the history.
func (e *evidence) compare(ctx context.Context, f *findings, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	x, err := e.gather(ctx, conn)
	if err != nil {
		return err
	}
	return e.judge(ctx, f, conn, x)
}

// gather reads what is compared. Nobody may write meanwhile, as topics are read one after the other.
func (e *evidence) gather(ctx context.Context, conn *pgx.Conn) (*exhibit, error) {
	now, err := e.witness.readHistory(ctx, conn)
	if err != nil {
		return nil, err
	}
	x := &exhibit{topics: map[string][]event.Record{}, now: now}
	for _, name := range []string{event.Changes, event.Fanouts, event.Batches, event.DeadLetters, event.Positions} {
		if x.topics[name], err = readTopic(ctx, e.topics, name); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// judge notes what is wrong.
func (e *evidence) judge(ctx context.Context, f *findings, conn *pgx.Conn, x *exhibit) error {
	var batches []event.Batch
	var healings []event.Healing
	for _, r := range x.topics[event.Batches] {
		var b event.Batch
		if err := json.Unmarshal(r.Value, &b); err != nil {
			return err
		}
		batches = append(batches, b)
		if b.Type == event.BatchHealed {
			healings = append(healings, *b.Healing)
		}
	}
	f.count("healings", len(healings))
	eras := erasOf(f, e.first, e.past, x.now, healings)
	records := foundIn(eras, x.topics[event.Changes])
	end, err := lastPosition(x.topics[event.Positions])
	if err != nil {
		return err
	}
	compareTopics(f, eras, records, x.topics, batches, end)
	compareRequests(f, e.asked, len(healings) == 0, x.topics[event.Positions])
	return compareTables(ctx, f, conn, follow(records), eras)
}

// foundIn reads the records of catalog.changes, each with the era that it was written in.
func foundIn(eras []era, topic []event.Record) []found {
	var records []found
	for _, r := range topic {
		rec := foundOf(&r)
		for i := range eras {
			if !rec.at.Before(eras[i].began) {
				rec.era = i
			}
		}
		records = append(records, rec)
	}
	return records
}

// lastPosition is the one that the next capture would go on from.
func lastPosition(records []event.Record) (*event.Position, error) {
	pos := &event.Position{}
	for i := range records {
		if records[i].Partition == kafkatopics.CapturePartition {
			*pos = event.Position{}
			if err := json.Unmarshal(records[i].Value, pos); err != nil {
				return nil, err
			}
		}
	}
	return pos, nil
}

func compareTopics(f *findings, eras []era, records []found, topics map[string][]event.Record, batches []event.Batch, end *event.Position) {
	compareOrder(f, records)
	for i := range eras {
		var of []found
		for _, r := range records {
			if r.era == i {
				of = append(of, r)
			}
		}
		compareEra(f, &eras[i], of)
	}
	compareBatches(f, records, batches, end)
	if len(eras) == 1 {
		compareFanouts(f, &eras[0], topics[event.Fanouts])
	}
	compareDead(f, eras, topics[event.DeadLetters])
}

// compareRequests finds the end of each snapshot that was asked for, or, where requests may stand in gaps, of no others.
// The position names it for a while only, so that all positions are looked at.
func compareRequests(f *findings, asked []string, each bool, positions []event.Record) {
	ended := map[string]bool{}
	for _, r := range positions {
		var pos event.Position
		_ = json.Unmarshal(r.Value, &pos) // what is no position names nothing
		for _, e := range pos.Ended {
			ended[e.ID] = true
			if e.Request == "unwanted" {
				f.add("a snapshot was taken whose request was rolled back: " + e.ID)
			}
		}
	}
	f.count("requests", len(asked))
	if len(ended) > len(asked) || each && len(ended) < len(asked) {
		f.add(fmt.Sprintf("%d snapshots were asked for, and %d have ended", len(asked), len(ended)))
	}
}
