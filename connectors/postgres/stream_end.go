package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// lastWords finds out what the server has said before it closed the connection: whoever writes to it is told only that it
// is closed. Where it has said nothing, the error stays. What stands before the words is passed over, and comes again with
// the next stream: this one is broken.
func (st *Stream) lastWords(err error) error {
	if !connectionEnded(err) {
		return err
	}
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		typ, body, wireErr := st.wire.next()
		switch {
		case typ == 'E':
			return st.ended(serverError(body))
		case wireErr != nil || typ == 0 && st.wire.fill(deadline) != nil:
			return err
		}
	}
	return err
}

// refused gives an error that START_REPLICATION was answered with its type. What is wrong with the slot the catalog knows
// best, but where the slot is not the reason: somebody reads from it, which passes, and those who stand by ask again and
// again; or the server cannot decode at all (wal_level), whatever became of the slot, and a new one could not be made.
//
// Where the catalog cannot be asked, that is the error: of the server's own nobody knows yet what it means.
func (st *Stream) refused(ctx context.Context, err error) error {
	slot := st.src.cfg.Slot
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if ok && pg.Code != "55006" && (pg.Code != "55000" || pg.Routine != "CheckLogicalDecodingRequirements") {
		looked := st.src.CheckSlot(ctx)
		if trouble, ok := errors.AsType[*SlotError](looked); ok {
			trouble.Err = err
			return trouble
		}
		if looked != nil {
			return fmt.Errorf("start replication of slot %q is refused (%s), and why is not known: %w", slot, pg.Message, looked)
		}
	}
	if typed := slotError(slot, err); typed != nil {
		return typed
	}
	return wrap(ctx, fmt.Sprintf("start replication of slot %q", slot), err)
}

// ended gives an error that ends the stream its type.
func (st *Stream) ended(err error) error {
	if typed := slotError(st.src.cfg.Slot, err); typed != nil {
		return typed
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42704" && pg.Routine == "get_publication_oid" {
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

// serverError decodes an ErrorResponse.
func serverError(body []byte) error {
	var m pgproto3.ErrorResponse
	if err := m.Decode(body); err != nil {
		return fmt.Errorf("error of the server: %w", err)
	}
	return pgconn.ErrorResponseToPgError(&m)
}

// notice looks for the one that tells of a loss. Where the publication does not exist yet at a place of the WAL, a
// server before 18 ends the stream; a newer one warns, leaves the rows out and goes on.
func (st *Stream) notice(body []byte) error {
	var m pgproto3.NoticeResponse
	if err := m.Decode(body); err != nil {
		return fmt.Errorf("notice of the server: %w", err)
	}
	if m.Code == "55000" && m.Routine == "LoadPublications" { // the message itself may be translated
		return st.stale(pgconn.ErrorResponseToPgError((*pgproto3.ErrorResponse)(&m)))
	}
	return nil
}
