package kafka

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// What kfake does with transactions that a crash has left open is not what Kafka does:
//
//   - It aborts them in memory only. No abort marker is written, so that a reader takes the next transactions of the
//     same producer for a part of the aborted one and drops them; and the next crash finds the old records followed by
//     a later commit marker, and brings them back.
//   - A transaction whose markers had reached some partitions only stays committed there and is aborted in the others.
//   - A batch whose line in the index is missing counts as one outside of any transaction.
//
// recoverLog mends the files before kfake reads them, as Kafka's coordinator would: a transaction with a marker
// anywhere is completed everywhere, any other gets its abort markers, and its producer may not go on with it.
//
// The format is kfake's of the version in go.mod: partitions/TOPIC-N/BASE.dat holds record batches as on the wire,
// BASE.idx 15 bytes for each of them, and pids.log framed JSON.

// transaction is one transaction: the epoch of its producer rises with each.
type transaction struct {
	producer int64
	epoch    int16
}

// partitionLog is the files of one partition, and what is open at their end.
type partitionLog struct {
	dir  string
	base int64 // of the last segment
	next int64 // offset after the last batch
	// leaderEpoch is what the last line of the index says.
	leaderEpoch int32
	open        map[int64]transaction // by producer
}

// recoverLog mends the directory of a broker that was not closed. A directory without data needs nothing.
func recoverLog(dir string) error {
	entries, err := os.ReadDir(filepath.Join(dir, "partitions"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var logs []*partitionLog
	outcome := map[transaction]bool{} // true: committed
	for _, e := range entries {
		p := &partitionLog{dir: filepath.Join(dir, "partitions", e.Name()), open: map[int64]transaction{}}
		if err := p.read(outcome); err != nil {
			return fmt.Errorf("recover %s: %w", e.Name(), err)
		}
		logs = append(logs, p)
	}
	// The producers first: a crash in the middle of this leaves transactions open, and is recovered from as well.
	if err := forbid(filepath.Join(dir, "pids.log"), logs); err != nil {
		return fmt.Errorf("recover the producers: %w", err)
	}
	for _, p := range logs {
		for _, tx := range p.open {
			if err := p.mark(tx, outcome[tx]); err != nil {
				return fmt.Errorf("recover %s: %w", p.dir, err)
			}
		}
	}
	return nil
}

// read walks through all segments.
func (p *partitionLog) read(outcome map[transaction]bool) error {
	files, err := filepath.Glob(filepath.Join(p.dir, "*.dat"))
	if err != nil {
		return err
	}
	var bases []int64
	for _, f := range files {
		base, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(f), ".dat"), 10, 64)
		if err != nil {
			return fmt.Errorf("segment %s: %w", f, err)
		}
		bases = append(bases, base)
	}
	slices.Sort(bases)
	for _, base := range bases {
		if err := p.segment(base, outcome); err != nil {
			return fmt.Errorf("segment %d: %w", base, err)
		}
	}
	return nil
}

func (p *partitionLog) file(ext string) string {
	return filepath.Join(p.dir, strconv.FormatInt(p.base, 10)+ext)
}

// The attributes of a record batch: https://kafka.apache.org/documentation/#recordbatch.
const (
	transactional = 1 << 4
	control       = 1 << 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segment notes what one segment opens and ends, cuts off a batch that was not written as a whole, and makes the index
// as long as the segment.
func (p *partitionLog) segment(base int64, outcome map[transaction]bool) error {
	p.base = base
	data, err := os.ReadFile(p.file(".dat"))
	if err != nil {
		return err
	}
	index, err := os.ReadFile(p.file(".idx"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	known, at, n := len(index)/indexLine, 0, 0
	index = index[:known*indexLine]
	for {
		b, size := nextBatch(data[at:])
		if size == 0 {
			break
		}
		at += size
		if n < known {
			p.leaderEpoch = int32(binary.LittleEndian.Uint32(index[n*indexLine+2:]))
		} else {
			index = appendIndex(index, p.leaderEpoch, b.Attributes&(transactional|control) == transactional)
		}
		n++
		p.next = b.FirstOffset + int64(b.LastOffsetDelta) + 1
		tx := transaction{b.ProducerID, b.ProducerEpoch}
		switch {
		case b.Attributes&control != 0:
			outcome[tx] = commits(b)
			delete(p.open, b.ProducerID)
		case b.Attributes&transactional != 0:
			p.open[b.ProducerID] = tx
		}
	}
	if at < len(data) {
		if err := os.Truncate(p.file(".dat"), int64(at)); err != nil {
			return err
		}
	}
	if n != known {
		return os.WriteFile(p.file(".idx"), index[:n*indexLine], 0o644)
	}
	return nil
}

// nextBatch reads the batch at the beginning of data; its size is 0 where there is no whole one.
func nextBatch(data []byte) (*kmsg.RecordBatch, int) {
	if len(data) < 61 { // the header of a batch
		return nil, 0
	}
	size := 12 + int(binary.BigEndian.Uint32(data[8:]))
	if size < 61 || size > len(data) || binary.BigEndian.Uint32(data[17:]) != crc32.Checksum(data[21:size], castagnoli) {
		return nil, 0
	}
	b := &kmsg.RecordBatch{}
	if b.ReadFrom(data[:size]) != nil {
		return nil, 0
	}
	return b, size
}

// commits reads a control batch: the key of its record is a version and a type, each of two bytes.
func commits(b *kmsg.RecordBatch) bool {
	var rec kmsg.Record
	return rec.ReadFrom(b.Records) == nil && len(rec.Key) >= 4 && binary.BigEndian.Uint16(rec.Key[2:]) == 1
}

// indexLine is the size of a line: version, checksum, leader epoch, a timestamp that is computed anew at every start,
// and whether the batch is part of a transaction.
const indexLine = 15

func appendIndex(index []byte, leaderEpoch int32, inTransaction bool) []byte {
	var line [indexLine]byte
	line[0] = 1
	binary.LittleEndian.PutUint32(line[2:], uint32(leaderEpoch))
	if inTransaction {
		line[14] = 1
	}
	line[1] = byte(crc32.Checksum(line[2:], castagnoli))
	return append(index, line[:]...)
}

// mark ends a transaction in this partition.
func (p *partitionLog) mark(tx transaction, commit bool) error {
	key := kmsg.ControlRecordKey{Type: kmsg.ControlRecordKeyTypeAbort}
	if commit {
		key.Type = kmsg.ControlRecordKeyTypeCommit
	}
	value := kmsg.EndTxnMarker{}
	rec := kmsg.Record{Key: key.AppendTo(nil), Value: value.AppendTo(nil)}
	rec.Length = int32(len(rec.AppendTo(nil)) - 1) // without the length itself, which takes one byte
	now := time.Now().UnixMilli()
	b := kmsg.RecordBatch{
		FirstOffset: p.next, PartitionLeaderEpoch: p.leaderEpoch, Magic: 2, Attributes: transactional | control,
		FirstTimestamp: now, MaxTimestamp: now, ProducerID: tx.producer, ProducerEpoch: tx.epoch,
		FirstSequence: -1, NumRecords: 1, Records: rec.AppendTo(nil),
	}
	raw := b.AppendTo(nil)
	b.Length, b.CRC = int32(len(raw)-12), int32(crc32.Checksum(raw[21:], castagnoli))
	p.next++
	if err := appendFile(p.file(".dat"), b.AppendTo(nil)); err != nil {
		return err
	}
	return appendFile(p.file(".idx"), appendIndex(nil, p.leaderEpoch, false))
}

// forbid raises the epochs of the producers of open transactions, so that what they still send for them is refused.
func forbid(pids string, logs []*partitionLog) error {
	epochs := map[int64]int16{}
	for _, p := range logs {
		for _, tx := range p.open {
			epochs[tx.producer] = max(epochs[tx.producer], tx.epoch)
		}
	}
	var lines []byte
	for producer, epoch := range epochs {
		entry, err := json.Marshal(map[string]any{"type": "timeout", "pid": producer, "epoch": min(epoch, math.MaxInt16-1) + 1})
		if err != nil {
			return err
		}
		// Length and checksum of what follows them: a version and the entry.
		body := append([]byte{1, 0}, entry...)
		lines = binary.LittleEndian.AppendUint32(lines, uint32(len(body)))
		lines = binary.LittleEndian.AppendUint32(lines, crc32.Checksum(body, castagnoli))
		lines = append(lines, body...)
	}
	if len(lines) == 0 {
		return nil
	}
	return appendFile(pids, lines)
}

func appendFile(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
