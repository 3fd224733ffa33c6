package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// Insert writes records of one topic, named as in package event without the prefix, and returns when the server has
// acknowledged them. Every record becomes one row: of its table, or of malformed when it cannot be read. Inserting a record again changes nothing that a view shows. The same token must always come
// with the same records of a topic; it spares the server the work of a repeat.
//
// Every error may be tried again with the same records; nothing about a record itself is an error.
func (d *DB) Insert(ctx context.Context, topic string, topicID [16]byte, records []event.Record, token string) (in event.Inserted, err error) {
	if len(records) == 0 {
		return in, nil
	}
	t, ok := tables[topic]
	if !ok {
		return in, fmt.Errorf("insert records of topic %s: there is no table for it", topic)
	}
	blocks := t(formatUUID(topicID), topic, records)
	for _, b := range blocks {
		if b.rows == 0 {
			continue
		}
		if b.table == malformedTable {
			in.Malformed = b.rows
		}
		in.SettledAt = append(in.SettledAt, b.settled...)
		// A table of several topics must not take one's token for the other's.
		if err := d.insert(ctx, b, formatUUID(topicID)+" "+token); err != nil {
			return event.Inserted{}, fmt.Errorf("insert %d rows into %s (%s): %w", b.rows, b.table, token, explain(err))
		}
	}
	return in, nil
}

// insert sends one block, which the server writes as one part for each month that it touches.
func (d *DB) insert(ctx context.Context, b block, token string) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.InsertTimeout)
	defer cancel()
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{
		"insert_deduplicate":         1,
		"insert_deduplication_token": token,
		// An acknowledgement must mean that the rows are in the table, whatever the profile of the user says.
		"async_insert": 0,
		// Records may carry any timestamp: a block of odd ones can touch more months than the limit for slips of the pen.
		"max_partitions_per_insert_block": 0,
	}))
	names := make([]string, len(b.columns))
	for i, c := range b.columns {
		names[i] = "`" + c.name + "`"
	}
	batch, err := d.conn.PrepareBatch(ctx, "INSERT INTO "+b.table+" ("+strings.Join(names, ", ")+")")
	if err != nil {
		return err
	}
	for i, c := range b.columns {
		if err := batch.Column(i).Append(c.values); err != nil {
			return errors.Join(fmt.Errorf("column %s: %w", c.name, err), batch.Abort())
		}
	}
	if err := batch.Send(); err != nil {
		return errors.Join(err, ignoreSent(batch.Close()))
	}
	return nil
}

func ignoreSent(err error) error {
	if errors.Is(err, clickhouse.ErrBatchAlreadySent) {
		return nil
	}
	return err
}

// Begin notes that the topic has this id now, and returns for each partition the offset after the last row that any table
// holds of it; one without rows is absent. A position above it says that rows which were acknowledged are gone, as after a
// restore, or that the topic was made anew. A position below it stands, because a row says nothing about those before it.
func (d *DB) Begin(ctx context.Context, topic string, topicID [16]byte) (ends map[int32]int64, err error) {
	if topicID == ([16]byte{}) {
		return nil, fmt.Errorf("begin topic %s: it has no id: Kafka gives topics ids since 2.8", topic)
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.InsertTimeout)
	defer cancel()
	id := formatUUID(topicID)
	err = d.conn.Exec(ctx, `INSERT INTO topics_rows
		SELECT {topic:String}, {id:UUID}, now64(3)
		WHERE ({topic:String}, {id:UUID}) NOT IN (SELECT topic, topic_id FROM topics_rows)`,
		clickhouse.Named("topic", topic), clickhouse.Named("id", id))
	if err != nil {
		return nil, fmt.Errorf("note id %s of topic %s: %w", id, topic, explain(err))
	}
	ends = map[int32]int64{}
	for _, table := range tablesOf(topic) {
		var rows []struct {
			Partition int32  `ch:"partition"`
			Last      uint64 `ch:"last"`
		}
		if err := d.conn.Select(ctx, &rows, endsSQL(table), clickhouse.Named("id", id)); err != nil {
			return nil, fmt.Errorf("find the last rows of %s in %s: %w", topic, table, explain(err))
		}
		for _, r := range rows {
			ends[r.Partition] = max(ends[r.Partition], int64(r.Last)+1)
		}
	}
	return ends, nil
}

// endsSQL is answered from the projection ends where the table is one that grows without end.
func endsSQL(table string) string {
	return "SELECT partition, max(offset) AS last FROM " + table + " WHERE topic_id = {id:UUID} GROUP BY partition"
}

// formatUUID writes a topic's id as ClickHouse reads it.
func formatUUID(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
}

// ServerError is an answer of the server, without its stack trace, and with what to do about it where that is known.
type ServerError struct {
	// Code is ClickHouse's error code.
	Code int32
	Text string
	Cure string
	err  error
}

func (e *ServerError) Error() string {
	s := fmt.Sprintf("ClickHouse answers code %d: %s", e.Code, e.Text)
	if e.Cure != "" {
		s += " (" + e.Cure + ")"
	}
	return s
}

func (e *ServerError) Unwrap() error { return e.err }

// cures tell a person what the server's codes mean here. The codes are those of ClickHouse's ErrorCodes.cpp.
var cures = map[int32]string{
	60:  "a table is missing: restart with the rights to create tables, so that it is migrated",
	81:  "the database is missing: restart with the right to create it, or create it",
	164: "the user may only read: grant INSERT and ALTER on the database",
	192: "the user does not exist: see clickhouse.user in the configuration",
	241: "the server is short of memory: it is tried again",
	242: "the table is read-only: it is tried again",
	243: "the server's disk is full: make room, it is tried again",
	252: "the server merges too slowly: it is tried again",
	497: "the user lacks a right: grant what the message names",
	774: "the table was made read-only (table_readonly): it is tried again",
	516: "the login was refused: see clickhouse.user and clickhouse.password in the configuration",
}

// explain makes an error of the driver readable. Anything else it leaves alone.
func explain(err error) error {
	if e, ok := errors.AsType[*clickhouse.Exception](err); ok {
		text, _, _ := strings.Cut(e.Message, "\n")
		return &ServerError{Code: e.Code, Text: strings.TrimPrefix(text, "DB::Exception: "), Cure: cures[e.Code], err: err}
	}
	var op *net.OpError
	var slow net.Error
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("ClickHouse does not answer: %w", err)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &slow) && slow.Timeout():
		return fmt.Errorf("ClickHouse has not answered in time: %w", err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("the connection to ClickHouse ended: %w", err)
	}
	return err
}

// clamp keeps a time within what DateTime64 can hold as text, from 1900 on, and what the driver can hand over, nanoseconds
// in 64 bits until 2262, so that a record with an absurd timestamp is still one and the same row every time.
func clamp(t time.Time) time.Time {
	switch {
	case t.Before(earliest):
		return earliest
	case t.After(latest):
		return latest
	}
	return t.UTC()
}

var (
	earliest = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2261, 12, 31, 23, 59, 59, 0, time.UTC)
)
