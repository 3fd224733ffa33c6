package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// SlotKind says what is wrong with a replication slot.
type SlotKind string

// The kinds of slot trouble. Only Active, Blocked and Standby mend themselves.
const (
	// SlotMissing: no slot of that name. What was committed since the last position is not held for us.
	SlotMissing SlotKind = "missing"
	// SlotActive: another walsender uses it, often the one of a predecessor that has not noticed its end yet.
	SlotActive SlotKind = "active"
	// SlotLost: the server has removed WAL that the slot needs, or invalidated the slot.
	SlotLost SlotKind = "lost"
	// SlotPassed: the slot is confirmed beyond the position asked for. Postgres would forward silently; what stands
	// between the two is not sent again.
	SlotPassed SlotKind = "passed"
	// SlotForeign: the name is taken by a slot of another plugin, type or database.
	SlotForeign SlotKind = "foreign"
	// SlotBlocked: the creation waited too long for transactions that were running.
	SlotBlocked SlotKind = "blocked"
	// SlotStale: the slot is older than the publication. Its WAL can never be read through it.
	SlotStale SlotKind = "stale"
	// SlotStandby: the server is a standby. After a failover the address leads to the primary again.
	SlotStandby SlotKind = "on a standby"
)

// SlotError is trouble with the replication slot, with what a person can do about it.
type SlotError struct {
	Slot string
	Kind SlotKind
	// Detail says what was found, Mend what to do. Both are sentences without a full stop.
	Detail, Mend string
	// From and Confirmed are set for SlotPassed: the position asked for and the slot's.
	From, Confirmed change.LSN
	// PIDs are the server processes in the way, for SlotActive and SlotBlocked, where they are known.
	PIDs []int32
	// Err is the server's own error, if any.
	Err error
}

// InUse says who reads the slot, where that is all the trouble; else it is empty.
func (e *SlotError) InUse() string {
	if e.Kind != SlotActive {
		return ""
	}
	return fmt.Sprintf("slot %s: %s", e.Slot, e.Detail)
}

// Error gives kind, detail and mend in one line.
func (e *SlotError) Error() string {
	s := e.Reason()
	if e.Mend != "" {
		s += "; to mend it: " + e.Mend
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Reason says what is wrong, without what to do about it.
func (e *SlotError) Reason() string {
	return fmt.Sprintf("replication slot %q is %s: %s", e.Slot, e.Kind, e.Detail)
}

// Unwrap returns the server's error.
func (e *SlotError) Unwrap() error { return e.Err }

// Temporary reports whether the same call may succeed later without anybody's help.
func (e *SlotError) Temporary() bool {
	return e.Kind == SlotActive || e.Kind == SlotBlocked || e.Kind == SlotStandby
}

// Permanent reports whether only a person can mend it, and no new slot would: the name is taken by a slot of others.
func (e *SlotError) Permanent() bool { return e.Kind == SlotForeign }

// Gone is the kind of trouble where what the slot held cannot be had any more: a new slot is needed, and a snapshot of
// what was committed in between. It is empty for every other kind.
func (e *SlotError) Gone() string {
	if e.Kind == SlotMissing || e.Kind == SlotLost || e.Kind == SlotStale {
		return string(e.Kind)
	}
	return ""
}

// QueryError is a statement that did not succeed.
type QueryError struct {
	// Op names what was being done: "read documents of 20 products".
	Op string
	// SQLSTATE is empty when the server gave no answer.
	SQLSTATE string
	Err      error
}

// Error gives the operation and the cause.
func (e *QueryError) Error() string { return e.Op + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *QueryError) Unwrap() error { return e.Err }

// Temporary reports whether the same statement may succeed later as it stands: the connection was lost, the server
// was starting, stopping, short of something or a standby, or the statement ran into a timeout or a conflict.
func (e *QueryError) Temporary() bool {
	if e.SQLSTATE == "" {
		return true // no answer: connection trouble
	}
	if refusedParameter(e.Err) {
		return false // a pooler's word, in a class of codes that it uses for everything
	}
	switch e.SQLSTATE[:2] {
	case "08", "40", "53", "57", "58":
		return true
	}
	// lock_not_available, object_in_use, read_only_sql_transaction (a standby)
	return slices.Contains([]string{"55P03", "55006", "25006"}, e.SQLSTATE)
}

// Data reports whether the statement failed on a value it met: a division by zero, a text that is no number, a
// subquery with two rows, an exception raised in a function. The caller can halve its input until it has found the
// row. Where neither Temporary nor Data holds, the statement itself is wrong (a column that is gone), for every row.
func (e *QueryError) Data() bool {
	if len(e.SQLSTATE) != 5 {
		return false
	}
	switch e.SQLSTATE[:2] {
	case "20", "21", "22", "23", "44", "P0":
		return true
	}
	return e.SQLSTATE == "54000" || e.SQLSTATE == "54001" // program limits: stack depth of a recursive expression
}

// RowError says that the server cannot send a row: as text it has more than the gigabyte that Postgres can hold in one
// piece, as a bytea of half of that has. Every stream of the slot ends there, and every read of the chunk that it stands
// in. Trying again does not help, but it harms nobody either: what a person does about it is seen by the next try.
type RowError struct {
	Slot, Publication string
	// Table and After say which chunk cannot be read: that of the rows behind a key. Empty for the stream.
	Table string
	After []string
	// Err is the server's own.
	Err error
}

// Unreadable reports whether a snapshot cannot read a part of a table for it; the stream and other parts can.
func (e *RowError) Unreadable() bool { return e.Table != "" }

func (e *RowError) Error() string {
	if e.Table != "" {
		behind := "its first row"
		if len(e.After) > 0 {
			behind = "the row with the key (" + strings.Join(e.After, ", ") + ")"
		}
		return fmt.Sprintf("the server cannot send a row of %s, at or soon behind %s, that is larger than 1 GB as text; to mend it: make the row smaller, "+
			"or publish its table without the column (ALTER PUBLICATION %s DROP TABLE t; ALTER PUBLICATION %[3]s ADD TABLE t (columns)): %v",
			e.Table, behind, quoteIdent(e.Publication), e.Err)
	}
	return fmt.Sprintf("the server cannot send a row that is larger than 1 GB as text; to mend it: make the row smaller, or publish its table without "+
		"the column (ALTER PUBLICATION %s DROP TABLE t; ALTER PUBLICATION %[1]s ADD TABLE t (columns)), then SELECT pg_drop_replication_slot(%s), "+
		"which is healed by a whole snapshot: %v", quoteIdent(e.Publication), quoteLiteral(e.Slot), e.Err)
}

// Unwrap returns the server's error.
func (e *RowError) Unwrap() error { return e.Err }

// tooLarge recognises that the server could not make a piece of memory as large as a row. The text of the first error,
// an internal one, is never translated.
func tooLarge(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (strings.HasPrefix(pg.Message, "invalid memory alloc request size") || pg.Code == "54000" && pg.Routine == "enlargeStringInfo")
}

// wrap gives an error of the driver its type. A cancelled or expired ctx stays recognisable by errors.Is.
func wrap(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, errors.Join(ctx.Err(), err))
	}
	if _, ok := errors.AsType[*QueryError](err); ok {
		return fmt.Errorf("%s: %w", op, err)
	}
	return &QueryError{Op: op, SQLSTATE: sqlstate(err), Err: err}
}

func sqlstate(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

// slotError names the trouble with the slot behind an error of the server; nil for any other.
//
// The server's texts may be translated (lc_messages), and its codes are shared with what has nothing to do with a slot, or
// with a slot that is well, such as a wal_level that is too low. So an error is known by its code and by the function of
// the server that raised it, which do not change with the language. These functions may have other names in a version to
// come: what START_REPLICATION is refused for is therefore looked up in the catalog first, see Stream.refused.
func slotError(slot string, err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return nil
	}
	e := &SlotError{Slot: slot, Err: err}
	switch {
	case pg.Code == "55006":
		e.Kind, e.Detail = SlotActive, "another process reads from it"
		e.Mend = "wait until it has ended (a dead one is noticed after wal_sender_timeout), or end it with pg_terminate_backend"
	case pg.Code == "42704" && strings.HasPrefix(pg.Routine, "ReplicationSlot"):
		e.Kind, e.Detail, e.Mend = SlotMissing, "there is none of this name", mendMissing
	case pg.Code == "58P01" && strings.HasPrefix(pg.Routine, "WalSnd"): // a segment of WAL has already been removed
		e.Kind, e.Detail, e.Mend = SlotLost, "the server no longer has the WAL that it needs", mendLost(slot)
	case pg.Code == "0A000" && pg.Routine == "CheckLogicalDecodingRequirements":
		return standbyError(slot)
	default:
		return nil
	}
	return e
}

const mendMissing = "create it again and take a new snapshot: changes since the last position are not held"

func standbyError(slot string) *SlotError {
	return &SlotError{
		Slot: slot, Kind: SlotStandby, Detail: "the server is in recovery, and capture needs the primary",
		Mend: "wait for its promotion, or let source.url lead to the primary (target_session_attrs=read-write)",
	}
}

func mendLost(slot string) string {
	return fmt.Sprintf("SELECT pg_drop_replication_slot(%s), then run once with --restart-capture, which takes a whole snapshot", quoteLiteral(slot))
}

// connectionEnded reports whether err says that the peer has gone.
func connectionEnded(err error) bool {
	var ne net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &ne)
}
