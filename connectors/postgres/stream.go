package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// Stream yields the committed changes of the published tables in commit order, each transaction whole.
//
// One goroutine owns it: that which calls Next, Attend, Keepalive and Close. Only Confirm may be called from others.
// The server ends a connection that it has not heard of for Config.SenderTimeout, so the owner must
// not stay away for longer than a third of that: it calls Next with an expiring ctx while it waits for something
// else, or puts the wait into Attend.
type Stream struct {
	src       *Source
	wire      *wire
	decoder   *decoder
	interval  time.Duration // of status messages
	confirmed atomic.Uint64
	began     change.LSN // the confirmed position at the start
	sent      change.LSN // the confirmed position of the last status message
	sentAt    time.Time
	asked     bool // the last keepalive asked for a reply

	steps      int        // calls that were answered, modulo keepaliveSteps
	near       change.XID // the full id that 32-bit ids are widened by
	open       bool       // between begin and commit
	tx         change.Transaction
	ordinal    uint64
	serverEnd  change.LSN
	unresolved *change.Relation // described, its primary key not yet looked up
	truncated  []*change.Relation
	msg        message
	change     change.Change
	message    change.Message
	at         change.LSN // WAL position of the message in work, for errors
	broken     error
	// spill holds the transactions that are streamed before their end; chunk is the one whose rows come now, 0 for
	// none; replay is the one that has committed and is being yielded.
	spill     *spill
	chunk     uint32
	replay    *replay
	liveTable func(ctx context.Context, oid uint32) (key []string, mixed bool, err error)
}

// Stream starts to read the slot. From is the position up to which everything is durable with the caller, as it was
// last given to [Stream.Confirm]: the EndLSN of a commit or of a keepalive; 0 stands for what the slot has confirmed.
// Transactions that committed before it are not sent again.
//
// Postgres answers a position that the slot has already passed by going on from the slot's without a word. That would
// lose changes, so it is an error here: a [*SlotError] of kind SlotPassed, which names both.
//
// Large transactions are streamed by the server before their end, spilled to Config.SpillDir, and yielded at their commit
// like any other; so memory is constant on both sides. Where that cannot be, the stream ends with a [*WholeError].
func (s *Source) Stream(ctx context.Context, from change.LSN) (*Stream, error) {
	conn, err := s.replication(ctx)
	if err != nil {
		return nil, err
	}
	timeout, err := senderTimeout(ctx, conn)
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx)) // the error at hand says more
		return nil, wrap(ctx, "connect for replication", err)
	}
	raw, err := takeOver(ctx, conn)
	if err != nil {
		return nil, wrap(ctx, "connect for replication", err)
	}
	st := &Stream{src: s, wire: newWire(raw, s.cfg.ReadBuffer, s.cfg.ReadPause), decoder: newDecoder(), sentAt: time.Now(), liveTable: s.liveTable}
	st.wire.chunk = &st.chunk
	st.interval = s.cfg.StatusInterval
	if timeout > 0 {
		st.interval = min(st.interval, timeout/3)
	}
	st.spill = newSpill(s.cfg.SpillDir, s.cfg.SpillLimit, &s.spillStats)
	streaming := s.streaming()
	err = st.start(ctx, from, streaming)
	if err == nil {
		err = st.Attend(ctx, func(ctx context.Context) error { return st.settle(ctx, from) })
	}
	if err == nil {
		err = st.status()
	}
	if err != nil {
		_ = raw.Close() // the error at hand says more
		return nil, err
	}
	if !streaming { // only a stream that stands has had its turn
		s.whole.Store(false)
	}
	return st, nil
}

// senderTimeout is after what silence the server ends the connection; 0: never.
func senderTimeout(ctx context.Context, conn *pgconn.PgConn) (time.Duration, error) {
	res, err := conn.Exec(ctx, "SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'").ReadAll()
	if err != nil {
		return 0, err
	}
	ms, err := strconv.ParseInt(string(res[0].Rows[0][0]), 10, 64)
	return time.Duration(ms) * time.Millisecond, err
}

// takeOver takes the connection from the driver, before the start, when nothing is in flight; it closes it when it
// cannot.
//
// Invariant: the driver reads no more. When a write of its own takes longer than 15 ms, as on a busy machine, it begins
// to read in the background, and that read goes on until the server says something: it would swallow the answer to
// START_REPLICATION, for which we would wait until the server's timeout. A round trip ends the read. Only then comes
// SyncConn, which finds out whether one is left: its own round trip is a comment, which not every version of the
// server takes for a statement on a replication connection.
func takeOver(ctx context.Context, conn *pgconn.PgConn) (net.Conn, error) {
	err := conn.Exec(ctx, "SELECT 1").Close()
	if err == nil {
		err = conn.SyncConn(ctx)
	}
	var h *pgconn.HijackedConn
	if err == nil {
		h, err = conn.Hijack()
	}
	if err != nil {
		_ = conn.Conn().Close() // the error at hand says more
		return nil, err
	}
	return h.Conn, nil
}

// start sends START_REPLICATION and waits for the copy to begin.
func (st *Stream) start(ctx context.Context, from change.LSN, streaming bool) error {
	cfg := st.src.cfg
	options := fmt.Sprintf("proto_version '%d', publication_names %s, messages 'true'",
		protocol(st.src.version), quoteOption(quoteIdent(cfg.Publication)))
	if streaming {
		options += ", streaming 'on'"
	}
	sql := fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL %s (%s)", quoteIdent(cfg.Slot), from, options)
	if err := st.wire.send('Q', append([]byte(sql), 0)); err != nil {
		return wrap(ctx, "start replication", err)
	}
	for {
		typ, body, err := st.wire.next()
		if err == nil && typ == 0 {
			err = st.wait(ctx, time.Now().Add(st.src.cfg.SlotTimeout))
			if errors.Is(err, errQuiet) {
				err = fmt.Errorf("no answer in %s", st.src.cfg.SlotTimeout)
			}
		}
		if err != nil {
			return wrap(ctx, "start replication", err)
		}
		switch typ {
		case 'W': // CopyBothResponse
			return nil
		case 'E':
			return st.refused(ctx, serverError(body))
		}
	}
}

// quoteOption quotes a value for the replication grammar, which knows no escape strings.
func quoteOption(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// settle compares the position asked for with the slot's. The slot is ours by now, so nobody can move it meanwhile.
func (st *Stream) settle(ctx context.Context, from change.LSN) error {
	info, err := st.src.slotInfo(ctx)
	if err != nil {
		return err
	}
	if from != 0 && from < info.ConfirmedFlush {
		return &SlotError{
			Slot: st.src.cfg.Slot, Kind: SlotPassed, From: from, Confirmed: info.ConfirmedFlush,
			Detail: fmt.Sprintf("it is confirmed to %s, and the position to go on from is %s: what was committed between them is not sent again", info.ConfirmedFlush, from),
			Mend:   "find out what has read from the slot or lost the position, then take a new snapshot",
		}
	}
	var near int64
	err = st.src.pool.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`).Scan(&near)
	if err != nil {
		return wrap(ctx, "start replication", err)
	}
	st.near = change.XID(near)
	st.began = max(from, info.ConfirmedFlush)
	st.confirmed.Store(uint64(st.began))
	return nil
}

// Confirm says that everything before lsn is durable: the server may drop its WAL for it and will not send it again.
// It is the EndLSN of a commit whose every event is durable, or of a keepalive received when nothing at all was
// outstanding. Positions before the last one are ignored. It is safe for concurrent use and does no I/O; the position
// goes out with a status message within about a second, as long as the owner calls the stream.
//
// Persist a position before it is confirmed, and Stream will recognise a slot that has moved without us.
func (st *Stream) Confirm(lsn change.LSN) {
	for {
		old := st.confirmed.Load()
		if uint64(lsn) <= old || st.confirmed.CompareAndSwap(old, uint64(lsn)) {
			return
		}
	}
}

// Confirmed is the highest confirmed position.
func (st *Stream) Confirmed() change.LSN { return change.LSN(st.confirmed.Load()) }

// ServerEnd is the end of WAL that the server has last spoken of; its distance to Confirmed is the lag in bytes.
func (st *Stream) ServerEnd() change.LSN { return st.serverEnd }

// Buffered reports whether Next would return an event, or at least have work to do, without waiting for the server.
// It is the sign for a caller that collects events to hand on what it has before it waits.
func (st *Stream) Buffered() bool {
	return len(st.truncated) > 0 || st.replay != nil || st.wire.whole()
}

// Next returns the next event, waiting for it as long as ctx allows. The event and what it points to are valid until
// the next call. When ctx ends first, its error is returned and the stream can be used further, with nothing lost:
// a caller with other duties calls Next with a short deadline. What has been received already is yielded even then.
// Every other error is final.
//
// EventKeepalive is yielded for each keepalive of the server outside a transaction, EventIdle whenever nothing came
// for Config.IdleAfter.
func (st *Stream) Next(ctx context.Context) (change.Event, error) {
	return st.NextUntil(ctx, time.Time{})
}

// NextUntil is Next, and yields EventIdle also at this time, if nothing else has come by then. It costs less than a
// context with a deadline. The zero time is none.
func (st *Stream) NextUntil(ctx context.Context, until time.Time) (change.Event, error) {
	if st.broken != nil {
		return change.Event{}, st.broken
	}
	ev, err := st.next(ctx, until)
	if err != nil {
		final := !errors.Is(err, ctx.Err()) || ctx.Err() == nil
		if final {
			err = st.lastWords(err)
		}
		err = fmt.Errorf("replication stream at %s: %w", max(st.at, st.Confirmed()), err)
		if final {
			st.broken = err
			st.src.streamFailed(err, st.Confirmed() > st.began)
		}
	}
	return ev, err
}

// keepaliveSteps is after how many events that came at once the clock is looked at.
const keepaliveSteps = 64

func (st *Stream) next(ctx context.Context, until time.Time) (change.Event, error) {
	idle := time.Time{}
	for {
		// What is in memory comes at once, and asking for the time costs as much as a good part of a row.
		if st.steps++; st.steps%keepaliveSteps == 0 || !st.Buffered() {
			if err := st.Keepalive(); err != nil {
				return change.Event{}, err
			}
		}
		if st.unresolved != nil {
			if err := st.Attend(ctx, st.resolve); err != nil {
				return change.Event{}, err
			}
		}
		if len(st.truncated) > 0 {
			return st.nextTruncated(), nil
		}
		if st.replay != nil {
			if ev, ok, err := st.nextReplayed(); ok || err != nil {
				return ev, err
			}
			continue
		}
		typ, body, err := st.wire.next()
		if err != nil {
			return change.Event{}, err
		}
		if typ != 0 {
			if ev, ok, err := st.take(typ, body); ok || err != nil {
				return ev, err
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return change.Event{}, err
		}
		now := time.Now()
		if !until.IsZero() && !now.Before(until) {
			return change.Event{Kind: change.EventIdle}, nil
		}
		if idle.IsZero() {
			idle = now.Add(st.src.cfg.IdleAfter)
		}
		deadline := earliest(idle, st.statusDue())
		if !until.IsZero() {
			deadline = earliest(deadline, until)
		}
		err = st.wait(ctx, deadline)
		switch {
		case err == nil:
			idle = time.Time{}
		case !errors.Is(err, errQuiet):
			return change.Event{}, err
		case !time.Now().Before(idle):
			return change.Event{Kind: change.EventIdle}, nil
		}
	}
}

// wait reads once from the socket, until the deadline or the end of ctx.
func (st *Stream) wait(ctx context.Context, deadline time.Time) error {
	if d, ok := ctx.Deadline(); ok {
		deadline = earliest(deadline, d)
	}
	st.wire.watch(ctx)
	err := st.wire.fill(deadline)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, errQuiet) {
		if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
			<-ctx.Done() // its timer is due as well
			return ctx.Err()
		}
	}
	return err
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// take works on one message of the server. It says whether that made an event.
func (st *Stream) take(typ byte, body []byte) (change.Event, bool, error) {
	switch typ {
	case 'd':
	case 'E':
		return change.Event{}, false, st.ended(serverError(body))
	case 'c', 'C', 'Z':
		return change.Event{}, false, errors.New("the server has ended the stream")
	case 'N':
		return change.Event{}, false, st.notice(body)
	case 'S':
		return change.Event{}, false, nil // a parameter has changed
	default:
		return change.Event{}, false, fmt.Errorf("unexpected message %q", typ)
	}
	r := reader{b: body}
	switch t := r.byte(); t {
	case 'k':
		end, _, ask := r.lsn(), r.uint64(), r.byte()
		if r.err != nil {
			return change.Event{}, false, fmt.Errorf("keepalive: %w", r.err)
		}
		return st.keepalive(end, ask != 0)
	case 'w':
		start, end, _ := r.lsn(), r.lsn(), r.uint64()
		if r.err != nil {
			return change.Event{}, false, fmt.Errorf("WAL data: %w", r.err)
		}
		st.serverEnd = max(st.serverEnd, end)
		if start != 0 {
			st.at = start
		}
		if st.wire.lost > 0 {
			st.src.cfg.Logger.Warn("row is too large, its widest values are not kept", "position", start.String(), "bytes", st.wire.lost)
			st.wire.lost = 0
		}
		return st.decode(start, r.b)
	default:
		return change.Event{}, false, fmt.Errorf("unexpected copy data %q", t)
	}
}

func (st *Stream) keepalive(end change.LSN, ask bool) (change.Event, bool, error) {
	st.serverEnd = max(st.serverEnd, end)
	if ask {
		// At once: the server is about to give up on us, or waits for this to shut down. If the caller confirms
		// what this keepalive says, the next call sends another.
		st.asked = true
		if err := st.status(); err != nil {
			return change.Event{}, false, err
		}
	}
	if st.open || st.chunk != 0 {
		return change.Event{}, false, nil
	}
	return change.Event{Kind: change.EventKeepalive, EndLSN: end}, true, nil
}

func (st *Stream) decode(start change.LSN, data []byte) (change.Event, bool, error) {
	switch {
	case len(data) == 0:
	case st.chunk != 0:
		return change.Event{}, false, st.spillChunk(start, data)
	case data[0] == msgStreamStart, data[0] == msgStreamStop, data[0] == msgStreamAbort, data[0] == msgStreamCommit:
		return st.control(data)
	}
	return st.apply(start, data)
}

// apply makes an event of one message of a transaction that has committed.
func (st *Stream) apply(start change.LSN, data []byte) (change.Event, bool, error) {
	m := &st.msg
	if err := st.decoder.decode(data, m); err != nil {
		return change.Event{}, false, err
	}
	switch m.kind {
	case msgBegin, msgCommit, msgInsert, msgUpdate, msgDelete, msgTruncate:
		if st.open == (m.kind == msgBegin) {
			return change.Event{}, false, fmt.Errorf("message %q does not belong here: transaction open: %t", m.kind, st.open)
		}
	}
	switch m.kind {
	case msgBegin:
		st.near = change.Widen(m.xid, st.near)
		st.tx = change.Transaction{XID: st.near, CommitLSN: m.lsn, CommitTime: m.at}
		st.open, st.ordinal = true, 0
		return change.Event{Kind: change.EventBegin, Transaction: &st.tx}, true, nil
	case msgCommit:
		st.open = false
		return change.Event{Kind: change.EventCommit, Transaction: &st.tx, EndLSN: m.lsn}, true, nil
	case msgRelation:
		st.unresolved = m.relation
	case msgTruncate:
		st.truncated = m.truncated
		st.change = change.Change{Op: change.Truncate, LSN: start}
	case msgInsert, msgUpdate, msgDelete:
		st.change = change.Change{Op: ops[m.kind], Relation: m.relation, Before: m.before, After: m.after, LSN: start, Position: st.position()}
		return change.Event{Kind: change.EventChange, Transaction: &st.tx, Change: &st.change}, true, nil
	case msgMessage:
		return st.logical(m)
	}
	return change.Event{}, false, nil
}

var ops = map[byte]change.Op{msgInsert: change.Create, msgUpdate: change.Update, msgDelete: change.Delete}

// logical yields a logical decoding message.
func (st *Stream) logical(m *message) (change.Event, bool, error) {
	if !st.wants(m.prefix) {
		return change.Event{}, false, nil
	}
	st.message = change.Message{Transactional: m.transactional, LSN: m.lsn, Prefix: m.prefix, Content: m.content}
	ev := change.Event{Kind: change.EventMessage, Message: &st.message}
	if m.transactional {
		if !st.open {
			return change.Event{}, false, fmt.Errorf("transactional message %q outside a transaction", m.prefix)
		}
		st.message.Position = change.Position{CommitLSN: st.tx.CommitLSN, Ordinal: st.ordinal}
		if st.counts(m.prefix) {
			st.message.Position = st.position()
		}
		ev.Transaction = &st.tx
	}
	return ev, true, nil
}

// wants reports whether messages of this prefix are yielded.
func (st *Stream) wants(prefix string) bool {
	return st.src.cfg.OtherMessages || st.counts(prefix)
}

// counts reports whether transactional messages of this prefix have an ordinal.
func (st *Stream) counts(prefix string) bool {
	return strings.HasPrefix(prefix, st.src.cfg.MessagePrefix)
}

// position numbers the next event of the open transaction.
func (st *Stream) position() change.Position {
	st.ordinal++
	return change.Position{CommitLSN: st.tx.CommitLSN, Ordinal: st.ordinal}
}

// nextTruncated yields one table of a truncate. Each has its own ordinal.
func (st *Stream) nextTruncated() change.Event {
	st.change.Relation, st.truncated = st.truncated[0], st.truncated[1:]
	st.change.Position = st.position()
	return change.Event{Kind: change.EventChange, Transaction: &st.tx, Change: &st.change}
}

// Close sends the confirmed position, ends the stream in good order, so that the slot is free when it returns, and
// closes the connection. It takes no longer than 2 s, and less when ctx ends.
func (st *Stream) Close(ctx context.Context) error {
	defer st.wire.close()
	if st.replay != nil {
		st.replay.close()
		st.replay = nil
	}
	st.spill.closeAll()
	if st.broken != nil {
		return nil
	}
	st.broken = fmt.Errorf("replication stream is closed: %w", net.ErrClosed)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := st.status()
	if err == nil {
		err = st.wire.send('c', nil) // CopyDone
	}
	for err == nil && ctx.Err() == nil {
		typ, _, nextErr := st.wire.next()
		switch {
		case nextErr != nil:
			return nextErr
		case typ == 'Z': // ReadyForQuery: the slot is released
			return st.wire.send('X', nil)
		case typ == 0:
			deadline, _ := ctx.Deadline()
			if err = st.wait(ctx, deadline); errors.Is(err, errQuiet) {
				err = nil // the end of an earlier ctx may come late; that of this one is an error of its own
			}
		}
	}
	if ctx.Err() != nil || connectionEnded(err) {
		return nil // closing the connection ends the walsender too, a little later
	}
	return fmt.Errorf("close the replication stream: %w", err)
}
