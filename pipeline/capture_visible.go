package pipeline

import (
	"context"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// WAL is sent before its commit is visible to new snapshots: for a moment, and for hours where it waits for a synchronous
// standby that is away. What is read at the source meanwhile is older than what the stream has told. So a session keeps the
// transactions of the stream until a snapshot has proved that they are visible, and hands those on in each position that
// nothing has proved: the next session cannot know of them otherwise, as a server's snapshot does not tell a commit that
// hangs from a transaction that has not ended.
//
// Whatever has them compared shortens the list: chunks of snapshots, look-ups of the parents' table, and, where it grows
// all the same, a question of its own, once in captureUnseen transactions. What is left are commits that hang, of which
// there are never more than connections.

// captureUnseen is how many transactions nothing need have proved visible before it is asked: they take some 2 bytes each in
// every position. captureUnseenMost is how many there may be at all: then the stream waits for the answer.
const captureUnseen, captureUnseenMost = 256, 1 << 14

// captureProvePause is the least time between two such questions.
const captureProvePause = 20 * time.Millisecond

// unproved is what a snapshot leaves of a list of transactions. What stands in the list is never overwritten: positions on
// their way to Kafka share it.
func unproved(list change.XIDs, s change.Snapshot) change.XIDs {
	if !slices.ContainsFunc(list, s.Sees) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), s.Sees)
}

// captureProver asks beside the stream which transactions are visible.
type captureProver struct {
	asks    chan struct{}
	answers chan change.Snapshot
	// at is how many unproved transactions call for a question; asked: one is under way. Both are the session's.
	at    int
	asked bool
}

func newCaptureProver() *captureProver {
	return &captureProver{asks: make(chan struct{}, 1), answers: make(chan change.Snapshot, 1), at: captureUnseen}
}

// run answers questions until ctx ends or an error that trying again cannot mend.
func (p *captureProver) run(ctx context.Context, c *Capture) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.asks:
		}
		var snap change.Snapshot
		var tries captureTries
		err := retry(ctx, c.log, "which transactions are visible", func(ctx context.Context) (err error) {
			snap, err = c.parts.Source.Snapshot(ctx)
			return tries.judge("which transactions are visible", err)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		p.answers <- snap // there is room: one question is under way at a time
		if !sleep(ctx, captureProvePause) {
			return nil
		}
	}
}

// prove has the transactions that nothing has proved visible compared with what is. It waits for the answer only where it
// stays away for so long that memory and positions would grow beyond measure.
func (s *captureSession) prove(ctx context.Context) error {
	p := s.prover
	if !p.asked {
		p.asked = true
		p.asks <- struct{}{}
	}
	select {
	case snap := <-p.answers:
		s.proved(snap)
		return nil
	default:
	}
	if len(s.book.recent) < captureUnseenMost {
		return nil
	}
	return s.stream.Attend(ctx, func(ctx context.Context) error {
		select {
		case snap := <-p.answers:
			s.proved(snap)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// proved takes an answer.
func (s *captureSession) proved(snap change.Snapshot) {
	s.prover.asked = false
	s.book.proved(snap)
	s.router.proved(snap)
	s.prover.at = max(captureUnseen, 2*len(s.book.recent))
}
