package postgres

import (
	"fmt"
	"strings"
	"time"
)

// lastWords finds out what the server has said before it closed the connection: whoever writes to it is told only that it
// is closed. Where it has said nothing, the error stays. What stands before the words is passed over, and comes again with
// the next stream: this one is broken.
func (st *Stream) lastWords(err error) error {
	if !connectionEnded(err) {
		return err
	}
	for deadline := time.Now().Add(time.Second); ; {
		typ, body, wireErr := st.wire.next()
		switch {
		case typ == 'E':
			return st.ended(serverError(body))
		case wireErr != nil || typ == 0 && st.wire.fill(deadline) != nil:
			return err
		}
	}
}

// ended gives an error that ends the stream its type.
func (st *Stream) ended(err error) error {
	if typed := slotError(st.src.cfg.Slot, err); typed != nil {
		return typed
	}
	if strings.Contains(err.Error(), "publication") && sqlstate(err) == "42704" {
		return st.stale(err)
	}
	if tooLarge(err) {
		return &RowError{Slot: st.src.cfg.Slot, Publication: st.src.cfg.Publication, Err: err}
	}
	return &QueryError{Op: "read", SQLSTATE: sqlstate(err), Err: err}
}

func (st *Stream) stale(err error) error {
	return &SlotError{
		Slot: st.src.cfg.Slot, Kind: SlotStale, Err: err, Mend: mendLost(st.src.cfg.Slot),
		Detail: fmt.Sprintf("the slot is older than publication %q and can never be read through it", st.src.cfg.Publication),
	}
}
