package work

import (
	"errors"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// ErrRelayBusy says that another process is the relay.
var ErrRelayBusy = errors.New("another process holds the relay's lock")

// Incarnation names a state. Numbers of different ones cannot be compared.
type Incarnation struct {
	// ID is the state's own. Former is the one that it had before it was restored from a backup, if it was.
	ID, Former string
}

// Numbered is an outbox row that the relay has taken. Numbers are given when rows are taken, not when they are
// written, because writers commit in another order than they draw numbers in: whatever carries a number at or below n
// was taken no later than n. They rise strictly and are never given twice in one incarnation of the state.
type Numbered struct {
	Number int64
	event.Record
}
