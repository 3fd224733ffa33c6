package work

import (
	"context"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// Numbered is an outbox row that the relay has taken. Numbers are given when rows are taken, not when they are
// written, because writers commit in another order than they draw numbers in: whatever carries a number at or below n
// was taken no later than n. They rise strictly and are never given twice in one incarnation of the state.
type Numbered struct {
	Number int64
	event.Record
}

// RelayLock is the right of one process to number, send and delete outbox rows. It is bound to one session of the
// state: when that session ends, for whatever reason, the lock is free and everything that is asked with it fails.
type RelayLock interface {
	// Release gives the lock up. It may be called again and after the session has ended.
	Release(ctx context.Context) error
}
