package postgres

import (
	"errors"
	"fmt"
	"io"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// The messages of pgoutput by which a transaction is streamed before its end (protocol 2 and later).
const (
	msgStreamStart  = 'S'
	msgStreamStop   = 'E'
	msgStreamAbort  = 'A'
	msgStreamCommit = 'c'
)

// protocol is the newest version of pgoutput's protocol that a server knows. All of them stream in the same way; two-phase
// commit (3) and parallel streaming (4) are not asked for: a prepared transaction comes when it is committed.
func protocol(version int) int {
	switch {
	case version >= 160000:
		return 4
	case version >= 150000:
		return 3
	}
	return 2
}

// control works on the messages around the chunks of a streamed transaction. A transaction may come in many chunks,
// and the chunks of several take turns; within a chunk there is only one.
func (st *Stream) control(data []byte) (change.Event, bool, error) {
	r := reader{b: data[1:]}
	fail := func(what string, err error) (change.Event, bool, error) {
		return change.Event{}, false, fmt.Errorf("decode stream %s: %w", what, err)
	}
	switch data[0] {
	case msgStreamStart:
		xid, first := r.uint32(), r.byte()
		if r.err != nil {
			return fail("start", r.err)
		}
		return change.Event{}, false, st.openChunk(xid, first == 1)
	case msgStreamAbort:
		xid, sub := r.uint32(), r.uint32()
		if r.err != nil {
			return fail("abort", r.err)
		}
		st.abort(xid, sub)
		return change.Event{}, false, nil
	case msgStreamCommit:
		xid, _, commit, end, at := r.uint32(), r.byte(), r.lsn(), r.lsn(), r.time()
		if r.err != nil {
			return fail("commit", r.err)
		}
		if st.open || st.spill.txs[xid] == nil {
			return fail("commit", fmt.Errorf("transaction %d was not streamed", xid))
		}
		var err error
		if st.replay, err = st.spill.commit(xid); err != nil {
			return change.Event{}, false, err
		}
		st.replay.end = end
		st.near = change.Widen(xid, st.near)
		st.tx = change.Transaction{XID: st.near, CommitLSN: commit, CommitTime: at}
		st.open, st.ordinal = true, 0
		return change.Event{Kind: change.EventBegin, Transaction: &st.tx}, true, nil
	}
	return fail("stop", errors.New("no chunk is open"))
}

func (st *Stream) openChunk(xid uint32, first bool) error {
	if st.open || xid == 0 || first == (st.spill.txs[xid] != nil) {
		return fmt.Errorf("decode stream start: transaction %d does not begin here", xid)
	}
	if first {
		if err := st.spill.begin(xid); err != nil {
			return err
		}
	}
	st.chunk = xid
	return nil
}

// abort voids a transaction, or only one of its subtransactions: a savepoint that was rolled back. One that is not known
// has nothing to void: of a transaction that it found rolled back before it streamed any of it, PostgreSQL 18 still tells
// the end of each savepoint.
func (st *Stream) abort(xid, sub uint32) {
	tx := st.spill.txs[xid]
	switch {
	case tx == nil:
	case xid == sub:
		st.spill.drop(xid)
	default:
		tx.aborted = append(tx.aborted, sub)
	}
}

// spillChunk takes one message of the open chunk. All but the end of the chunk and origins carry the id of their
// subtransaction after the type.
func (st *Stream) spillChunk(start change.LSN, data []byte) error {
	tx := st.spill.txs[st.chunk]
	switch data[0] {
	case msgStreamStop:
		st.chunk = 0
		return st.spill.flush(tx)
	case msgOrigin, msgType:
		return nil // neither is used
	case msgRelation, msgInsert, msgUpdate, msgDelete, msgTruncate, msgMessage:
		r := reader{b: data[1:]}
		sub := r.uint32()
		if data[0] == msgMessage && r.err == nil {
			m := r // flags and position stand before the prefix
			_, _ = m.byte(), m.lsn()
			if !st.wants(m.string()) {
				return nil
			}
			tx.messages = true
		}
		if r.err != nil {
			return fmt.Errorf("decode a chunk of transaction %d: %w", st.chunk, r.err)
		}
		return st.spill.add(tx, sub, start, data[0], r.b)
	}
	return fmt.Errorf("message %q does not belong into a chunk of transaction %d", data[0], st.chunk)
}

// nextReplayed yields the next event of a streamed transaction that has committed.
func (st *Stream) nextReplayed() (change.Event, bool, error) {
	lsn, data, err := st.replay.next()
	switch {
	case errors.Is(err, io.EOF):
		end := st.replay.end
		st.replay.close()
		st.replay, st.open = nil, false
		return change.Event{Kind: change.EventCommit, Transaction: &st.tx, EndLSN: end}, true, nil
	case err != nil:
		return change.Event{}, false, err
	}
	if lsn != 0 {
		st.at = lsn
	}
	return st.apply(lsn, data)
}
