package pipeline

import (
	"sync/atomic"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// PushStats counts what a push worker has done since its start. Gauges are marked.
type PushStats struct {
	Consumed      atomic.Int64 // live records
	Parked        atomic.Int64
	Rounds        atomic.Int64
	Reads         atomic.Int64 // documents queries
	SeenBefore    atomic.Int64
	NotYetVisible atomic.Int64
	Dropped       atomic.Int64 // products without a row that no shop knows
	Coalesced     atomic.Int64 // changes that shared another change's push
	Succeeded     atomic.Int64
	Failed        atomic.Int64
	Skipped       atomic.Int64
	Retried       atomic.Int64
	Held          atomic.Int64
	Dead          atomic.Int64
	Points        atomic.Int64 // actual
	Hot           atomic.Int64 // gauge: waiting in memory
	Flying        atomic.Int64 // gauge: on their way
	Owned         atomic.Int64 // gauge: partitions
	Lag           atomic.Int64 // gauge: ns from the first commit of the last push to the shop's answer

	// Latency is called with the time from the commit of a push's first change to the shop's answer; nil is fine.
	// It must be set before Run.
	Latency func(time.Duration)
	// Step is called with the length of each step of a push that a shop took; nil is fine. It must be set before Run.
	Step func(step string, d time.Duration)
}

// The steps of a push, in their order. Each begins where the one before it ends; what the clocks of the source, Kafka and
// this process disagree about is within the first two.
const (
	StepCommitToKafka    = "commit_to_kafka"
	StepKafkaToDue       = "kafka_to_due"
	StepDueToRead        = "due_to_read"
	StepReadToSent       = "read_to_sent"
	StepSentToAnswered   = "sent_to_answered"
	StepAnsweredToSettle = "answered_to_settled"
)

// PushSteps are all of them.
func PushSteps() []string {
	return []string{StepCommitToKafka, StepKafkaToDue, StepDueToRead, StepReadToSent, StepSentToAnswered, StepAnsweredToSettle}
}

// steps reports the steps between these times: commit, Kafka, due, read, sent, answered, settled. A step of which an end
// is not known is left out.
func (s *PushStats) steps(at ...time.Time) {
	if s.Step == nil {
		return
	}
	for i, step := range PushSteps() {
		if !at[i].IsZero() && !at[i+1].IsZero() {
			s.Step(step, max(0, at[i+1].Sub(at[i])))
		}
	}
}

// Stats are safe to read at any time.
func (p *Push) Stats() *PushStats { return &p.stats }

func (s *PushStats) outcome(st event.Status) {
	switch st {
	case event.Success:
		s.Succeeded.Add(1)
	case event.Failed:
		s.Failed.Add(1)
	case event.Skipped, event.Cancelled:
		s.Skipped.Add(1)
	case event.Held:
		s.Held.Add(1)
	default:
		s.Retried.Add(1)
	}
}

func (s *PushStats) latency(from, to time.Time) {
	if from.IsZero() || to.IsZero() {
		return
	}
	s.Lag.Store(int64(to.Sub(from)))
	if s.Latency != nil {
		s.Latency(to.Sub(from))
	}
}

func (p *Push) gauge() {
	p.stats.Hot.Store(int64(len(p.hot)))
	p.stats.Flying.Store(int64(len(p.flying)))
	p.stats.Owned.Store(int64(len(p.owned)))
}
