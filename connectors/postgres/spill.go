package postgres

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// SpillStats says what is on disk of transactions that have not ended. It is safe for concurrent use.
type SpillStats struct {
	// Bytes is a gauge. Transactions counts those that were streamed, Left how often one had to be left to the server.
	Bytes, Transactions, Left atomic.Int64
	// Largest is a gauge, too: the bytes of the largest of them.
	Largest atomic.Int64
}

// WholeError ends a stream that cannot take a transaction before its end. The next stream of the same [Source] has the
// server keep transactions until their commit, and then sends all that was not confirmed.
type WholeError struct {
	// Reason says what stood against it, and what may be done.
	Reason string
	// Err is what the disk said, if it did.
	Err error
}

func (e *WholeError) Error() string {
	return "open transactions are left to the server until their commit, and the stream begins again: " + e.Reason
}

func (e *WholeError) Unwrap() error { return e.Err }

// spill keeps what the server streams of transactions that have not ended: a file for each, in WAL order, every
// message with the subtransaction that it belongs to. Rolled back subtransactions are remembered and their rows
// passed over when the file is read at the commit, so that what comes out is the same as of a transaction that was
// not streamed.
//
// The files have no name: they are unlinked as soon as they are open, so that nothing stays behind whatever becomes
// of the process. They are never needed again, as a new stream is sent all of an open transaction once more.
type spill struct {
	dir   string
	limit int64 // bytes of all files
	used  int64
	txs   map[uint32]*spilled
	buf   []byte // of the open chunk, not yet written
	stats *SpillStats
}

// spilled is one open transaction.
type spilled struct {
	file    *os.File
	size    int64
	aborted []uint32 // subtransactions: four bytes for each savepoint that was rolled back
	// messages: it has transactional messages, whose subtransaction the server does not tell.
	messages bool
}

// spillBuffer is how much is written or read at once.
const spillBuffer = 256 << 10

// spillHeader stands before each message: its length, its subtransaction, its position in the WAL.
const spillHeader = 4 + 4 + 8

func newSpill(dir string, limit int64, stats *SpillStats) *spill {
	return &spill{dir: dir, limit: limit, txs: map[uint32]*spilled{}, stats: stats}
}

// begin opens a transaction.
func (s *spill) begin(xid uint32) error {
	f, err := os.CreateTemp(s.dir, "shelfwire-spill-*")
	if err != nil {
		return s.diskError("create a spill file", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close() // the error at hand says more
		return fmt.Errorf("unlink a spill file: %w", err)
	}
	s.txs[xid] = &spilled{file: f}
	s.stats.Transactions.Add(1)
	return nil
}

// add appends one message of the open chunk, without its transaction id.
func (s *spill) add(tx *spilled, sub uint32, lsn change.LSN, kind byte, body []byte) error {
	s.buf = binary.BigEndian.AppendUint32(s.buf, uint32(1+len(body)))
	s.buf = binary.BigEndian.AppendUint32(s.buf, sub)
	s.buf = binary.BigEndian.AppendUint64(s.buf, uint64(lsn))
	s.buf = append(append(s.buf, kind), body...)
	if len(s.buf) >= spillBuffer {
		return s.flush(tx)
	}
	return nil
}

// flush writes what a chunk has gathered. One buffer serves all transactions, as chunks do not overlap.
func (s *spill) flush(tx *spilled) error {
	if len(s.buf) == 0 {
		return nil
	}
	if s.used+int64(len(s.buf)) > s.limit {
		return s.full(nil)
	}
	n, err := tx.file.Write(s.buf)
	tx.size += int64(n)
	s.account(int64(n))
	s.stats.Largest.Store(max(s.stats.Largest.Load(), tx.size))
	if err != nil {
		return s.diskError("write to a spill file", err)
	}
	s.buf = s.buf[:0]
	if cap(s.buf) > 4*spillBuffer { // one huge row does not keep its memory
		s.buf = nil
	}
	return nil
}

func (s *spill) diskError(op string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		return s.full(err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func (s *spill) full(disk error) error {
	e := &WholeError{Err: disk}
	if disk != nil {
		e.Reason = fmt.Sprintf("the disk of %s is full: %v; give the spill another directory or a lower limit", s.dir, disk)
	} else {
		e.Reason = fmt.Sprintf("they take more than %d bytes in %s; raise the spill limit to have them there", s.limit, s.dir)
	}
	return e
}

func (s *spill) account(n int64) {
	s.used += n
	s.stats.Bytes.Add(n)
}

// drop forgets a transaction that was rolled back.
func (s *spill) drop(xid uint32) {
	if tx := s.txs[xid]; tx != nil {
		delete(s.txs, xid)
		s.close(tx)
	}
}

func (s *spill) close(tx *spilled) {
	_ = tx.file.Close() // it was only read, or is not wanted any more
	s.account(-tx.size)
	tx.size = 0
	s.rank()
}

// rank finds the largest of the transactions that are left.
func (s *spill) rank() {
	var most int64
	for _, tx := range s.txs {
		most = max(most, tx.size)
	}
	s.stats.Largest.Store(most)
}

// closeAll gives all disk back.
func (s *spill) closeAll() {
	for xid := range s.txs {
		s.drop(xid)
	}
}

// commit hands a transaction over for reading.
func (s *spill) commit(xid uint32) (*replay, error) {
	tx := s.txs[xid]
	if tx.messages && len(tx.aborted) > 0 {
		// pgoutput gives a message the id of the whole transaction, so nobody can tell whether it was rolled back.
		return nil, &WholeError{Reason: fmt.Sprintf("transaction %d has a logical message and a savepoint that was rolled back, "+
			"and the protocol does not say whether the message was rolled back with it", xid)}
	}
	delete(s.txs, xid)
	s.rank()
	if _, err := tx.file.Seek(0, io.SeekStart); err != nil {
		s.close(tx)
		return nil, fmt.Errorf("read a spill file: %w", err)
	}
	slices.Sort(tx.aborted)
	return &replay{spill: s, tx: tx, in: bufio.NewReaderSize(tx.file, spillBuffer)}, nil
}

// replay reads a committed transaction back.
type replay struct {
	spill *spill
	tx    *spilled
	in    *bufio.Reader
	buf   []byte
	end   change.LSN // where the commit ends
}

// next returns the next message that survived, valid until the next call, or io.EOF after the last.
//
// Invariant: descriptions of tables (R) are returned also of subtransactions that were rolled back. The server sends
// each once for the whole transaction, whichever of its subtransactions needed it first.
func (r *replay) next() (change.LSN, []byte, error) {
	for {
		var h [spillHeader]byte
		if _, err := io.ReadFull(r.in, h[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return 0, nil, io.EOF
			}
			return 0, nil, fmt.Errorf("read a spill file: %w", err)
		}
		n, sub := int(binary.BigEndian.Uint32(h[:])), binary.BigEndian.Uint32(h[4:])
		if cap(r.buf) < n || cap(r.buf) > 4*spillBuffer && n <= spillBuffer {
			r.buf = make([]byte, max(n, spillBuffer))
		}
		b := r.buf[:n]
		if _, err := io.ReadFull(r.in, b); err != nil {
			return 0, nil, fmt.Errorf("read a spill file: %w", err)
		}
		if _, gone := slices.BinarySearch(r.tx.aborted, sub); gone && b[0] != msgRelation {
			continue
		}
		return change.LSN(binary.BigEndian.Uint64(h[8:])), b, nil
	}
}

func (r *replay) close() { r.spill.close(r.tx) }
