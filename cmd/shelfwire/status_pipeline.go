package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// awayView is a service that does not answer, or a shop that refuses everything: what the pipeline waits for.
type awayView struct {
	// Service is source, kafka, state or clickhouse, or shop/ and its name.
	Service string     `json:"service"`
	Reason  string     `json:"reason"`
	Since   *time.Time `json:"since,omitempty"`
	// Probe is when a shop is tried again.
	Probe *time.Time `json:"next_probe,omitempty"`
}

// stageView is how far a stage is with one topic.
type stageView struct {
	Stage string `json:"stage"`
	Topic string `json:"topic"`
	// Workers hold leases of Held of the partitions.
	Workers    int `json:"workers"`
	Held       int `json:"held"`
	Partitions int `json:"partitions"`
	// Behind is how many records are not finished, transaction markers included where there are many; -1 while Kafka is away.
	Behind int64 `json:"behind"`
}

type parkedView struct {
	Lane string `json:"lane"`
	// Shop is empty where the product was not read yet.
	Shop     string `json:"shop,omitempty"`
	Reason   string `json:"reason"`
	Products int64  `json:"products"`
	// Due of them may go, and wait for room or budget, the first for OldestDue.
	Due       int64   `json:"due"`
	OldestDue float64 `json:"oldest_due_seconds"`
}

// pipelineView is what of the status stands in the state.
type pipelineView struct {
	Stages []stageView  `json:"stages"`
	Parked []parkedView `json:"parked"`
	// ParkedMore is about how many products wait that Parked does not count.
	ParkedMore int64 `json:"parked_more,omitempty"`
	// Outbox waits for the relay, Intents are requests without an answer on record.
	Outbox       int64   `json:"outbox_records"`
	OutboxBytes  int64   `json:"outbox_bytes"`
	OutboxOldest float64 `json:"outbox_oldest_seconds"`
	Intents      int64   `json:"unanswered_requests"`
	Unanswered   float64 `json:"oldest_unanswered_seconds"`
	// Campaigns are those that have not ended.
	Campaigns []campaignView `json:"campaigns"`
	Pauses    []pauseView    `json:"pauses"`
	Holds     []holdView     `json:"holds"`
}

// away notes a service that does not answer, with what is to be done about it.
func (v *statusView) away(service string, err error) {
	v.Away = append(v.Away, awayView{Service: service, Reason: oneLine(err.Error())})
}

// pipeline adds what stands in the state. Kafka says how far the topics go, where it answers.
func (v *statusView) pipeline(ctx context.Context, a *app) error {
	b, err := a.state.Backlog(ctx)
	if err != nil {
		return err
	}
	v.Pipeline = &pipelineView{
		Stages: a.viewStages(ctx, b.Stages), Parked: []parkedView{}, ParkedMore: b.ParkedMore,
		Outbox: b.Outbox.Rows, OutboxBytes: b.Outbox.Bytes, OutboxOldest: b.Outbox.Oldest.Seconds(),
		Intents: b.Intents, Unanswered: b.Unanswered.Seconds(),
		Campaigns: []campaignView{}, Pauses: []pauseView{}, Holds: []holdView{},
	}
	p := v.Pipeline
	for _, g := range b.Parked {
		p.Parked = append(p.Parked, parkedView{
			Lane: g.Lane.String(), Shop: g.Shop, Reason: g.Reason, Products: g.Products, Due: g.Due, OldestDue: g.Oldest.Seconds(),
		})
	}
	shops, err := a.state.Shops(ctx)
	if err != nil {
		return err
	}
	for i := range shops {
		if h := &shops[i]; !h.DeadSince.IsZero() {
			v.Away = append(v.Away, awayView{
				Service: "shop/" + h.Shop, Reason: h.Reason, Since: timeView(h.DeadSince), Probe: timeView(h.NextProbe),
			})
		}
	}
	campaigns, err := a.state.Campaigns(ctx, state.CampaignFilter{Open: true})
	if err != nil {
		return err
	}
	for i := range campaigns {
		p.Campaigns = append(p.Campaigns, viewCampaign(&campaigns[i]))
	}
	pauses, err := a.state.Paused(ctx)
	if err != nil {
		return err
	}
	for _, z := range pauses {
		p.Pauses = append(p.Pauses, viewPause(z))
	}
	holds, err := a.state.Holds(ctx)
	for i := range holds {
		p.Holds = append(p.Holds, viewHold(&holds[i]))
	}
	return err
}

// viewStages brings leases and topics together. The loader counts the partitions of all topics in one row.
func (a *app) viewStages(ctx context.Context, leases []state.StageLeases) []stageView {
	of := map[work.Stage]*state.StageLeases{}
	for i := range leases {
		of[leases[i].Stage] = &leases[i]
	}
	out := []stageView{}
	add := func(stage work.Stage, kind string, first int32) int32 {
		l := of[stage]
		if l == nil {
			return first
		}
		n := partitionsOf(kind, int32(a.cfg.Kafka.Partitions))
		at := map[int32]int64{}
		for p := range n {
			at[p] = l.Positions[first+p]
		}
		out = append(out, stageView{
			Stage: string(stage), Topic: a.cfg.Kafka.Prefix + kind, Workers: l.Workers, Held: l.Held, Partitions: len(l.Positions),
			Behind: a.behind(ctx, a.cfg.Kafka.Prefix+kind, at),
		})
		return first + n
	}
	add(work.StagePush, event.Changes, 0)
	add(work.StageExpand, event.Fanouts, 0)
	add(work.StageBatches, event.Batches, 0)
	first := int32(0)
	for _, kind := range clickhouse.Topics() {
		first = add(work.StageLoad, kind, first)
	}
	return out
}

// scanned is how many offsets are looked at one by one to tell records from markers of transactions, which stand behind
// every record and would show a stage that has done everything as behind.
const scanned = 1000

// behind counts what a topic holds from the positions on; -1 when nobody can say.
func (a *app) behind(ctx context.Context, topic string, at map[int32]int64) (n int64) {
	if a.cluster == nil {
		return -1
	}
	ends, err := a.cluster.EndOffsets(ctx, topic)
	if err != nil {
		return -1
	}
	for p, end := range ends {
		gap := max(end-at[p], 0)
		if gap > 0 && gap <= scanned {
			records := int64(0)
			if _, err := a.cluster.Scan(ctx, topic, p, at[p], end, func(event.Record) bool { records++; return true }); err == nil {
				gap = records
			}
		}
		n += gap
	}
	return n
}

// parkedShown is how many groups of parked products the sheet has room for. JSON has all.
const parkedShown = 12

func (p *pipelineView) sheet(line func(name, value string)) {
	for _, s := range p.Stages {
		behind := "how far behind is not known"
		if s.Behind >= 0 {
			behind = count(int(s.Behind), "record") + " behind"
		}
		line(s.Stage, fmt.Sprintf("%s in %s; %s, with %d of %d partitions", behind, s.Topic, count(s.Workers, "worker"), s.Held, s.Partitions))
	}
	for i, g := range p.Parked {
		if i == parkedShown {
			line("parked", fmt.Sprintf("and %d more groups (--json shows all)", len(p.Parked)-i))
			break
		}
		where := "for its shops"
		if g.Shop != "" {
			where = "for " + g.Shop
		}
		text := fmt.Sprintf("%s %s, lane %s, %s", count(int(g.Products), "product"), where, g.Lane, g.Reason)
		if g.Due > 0 {
			text += fmt.Sprintf("; %d due, the first for %s", g.Due, seconds(g.OldestDue))
		}
		line("parked", text)
	}
	if p.ParkedMore > 0 {
		line("parked", fmt.Sprintf("and about %d more products that were not counted", p.ParkedMore))
	}
	if p.Outbox > 0 {
		line("outbox", fmt.Sprintf("%s, %s, the oldest for %s", count(int(p.Outbox), "record"), bytesText(p.OutboxBytes), seconds(p.OutboxOldest)))
	}
	if p.Intents > 0 {
		line("unanswered", fmt.Sprintf("%s on the way to shops, the oldest for %s", count(int(p.Intents), "product"), seconds(p.Unanswered)))
	}
	for _, c := range p.Campaigns {
		text := fmt.Sprintf("%s: %s, %d of %d", c.ID, strings.ToLower(c.Status), c.Done, c.Total)
		if c.Left != nil {
			text += ", " + seconds(*c.Left) + " left"
		}
		line("campaign", text)
	}
	for _, z := range p.Pauses {
		line("paused", strings.TrimSpace(z.Kind+" "+z.Name)+", since "+z.Since.Format(time.RFC3339))
	}
	for _, h := range p.Holds {
		line("held", fmt.Sprintf("%s, %s, since %s: shelfwire holds", h.Hold, count(h.Products, "product"), h.Since.Format(time.RFC3339)))
	}
}

// seconds is a length as people read it: whole seconds, or tenths below ten.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// awayText is a line of the sheet for each service that is waited for.
func awayText(list []awayView) []string {
	var out []string
	for _, w := range list {
		text := w.Service + ": " + w.Reason
		if w.Since != nil {
			text += ", since " + w.Since.Format(time.RFC3339)
		}
		if w.Probe != nil {
			text += ", tried again at " + w.Probe.Format(time.RFC3339)
		}
		out = append(out, text)
	}
	return out
}
