package pipeline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// snapshotAsk is what somebody has asked for by a message.
type snapshotAsk struct {
	request event.SnapshotRequest
	tables  []string
	// content is the message as it was, position and lsn are its place.
	content  []byte
	position change.Position
	lsn      change.LSN
	refused  string // why it cannot be had
}

// The limits of a request: it stands in every position until it is done. snapshotMost is how many may run at a time.
const (
	snapshotAskBytes = 256 << 10
	snapshotMost     = 100
)

// parseSnapshotAsk reads a request and finds its tables.
func parseSnapshotAsk(m *change.Message, cfg CaptureConfig) *snapshotAsk {
	a := &snapshotAsk{lsn: m.LSN, position: m.Position, content: bytes.Clone(m.Content[:min(len(m.Content), snapshotAskBytes)])}
	if !m.Transactional {
		a.position = change.Position{CommitLSN: m.LSN}
	}
	if len(m.Content) > snapshotAskBytes {
		a.refused = fmt.Sprintf("a request may have %d bytes and this one has %d", snapshotAskBytes, len(m.Content))
		return a
	}
	dec := json.NewDecoder(bytes.NewReader(m.Content))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a.request); err != nil {
		a.refused = "not the JSON object of a request: " + err.Error()
		return a
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		a.refused = "something stands behind the JSON object of a request"
		return a
	}
	r := &a.request
	r.ID, r.Admin, r.Table = captureLabel(r.ID), captureLabel(r.Admin), captureLabel(r.Table)
	leading, all := SnapshotTables(cfg.Routes), captureTables(cfg)
	switch {
	case r.All && (r.Table != "" || r.Where != "" || len(r.Products) > 0):
		a.refused = `"all" goes with no table, condition or products`
	case r.All:
		a.tables = all
	case r.Table == "" && r.Where != "":
		a.refused = "a condition needs a table"
	case r.Table == "" && len(r.Products) == 0:
		a.refused = `it names neither a table nor products; {"all": true} asks for every routed table`
	case r.Table == "":
		a.tables = leading
	case slices.Contains(leading, r.Table), slices.Contains(all, r.Table) && len(r.Products) == 0:
		a.tables = []string{r.Table}
	case slices.Contains(all, r.Table):
		a.refused = "the rows of " + r.Table + " lead to no product each: it can be read whole or by a condition"
	case slices.ContainsFunc(cfg.Routes, func(x route.Route) bool { return x.Table == r.Table }):
		a.refused = "the rows of " + r.Table + " lead to products by a query only, and a snapshot of them touches none: take the tables of the products"
	default:
		a.refused = "there is no route for a table " + r.Table + ", nor is it mirrored; there are " + strings.Join(all, ", ")
	}
	if slices.ContainsFunc(r.Products, func(p string) bool { return p == "" }) {
		a.refused = "a product id is empty"
	}
	return a
}

// snapshotDead is the dead letter of a request.
func snapshotDead(topic string, a *snapshotAsk, reason string) event.Record {
	rec := event.Record{Topic: topic, Partition: -1, Value: a.content, Headers: []event.Header{
		{Key: event.HeaderPosition, Value: []byte(a.position.String())},
		{Key: event.HeaderOrigin, Value: []byte(MessageSnapshot)},
		{Key: event.HeaderReason, Value: []byte(captureLabel(reason))},
	}}
	if a.request.Table != "" {
		rec.Headers = append(rec.Headers, event.Header{Key: event.HeaderTable, Value: []byte(a.request.Table)})
	}
	return rec
}

// CheckSnapshotRequest says what is wrong with a request before it is sent, and otherwise which tables it reads. A
// condition it does not look at: only the database can.
func CheckSnapshotRequest(r *event.SnapshotRequest, cfg CaptureConfig) (tables []string, err error) {
	content, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("request of a snapshot: %w", err)
	}
	a := parseSnapshotAsk(&change.Message{Content: content}, cfg)
	if a.refused != "" {
		return nil, errors.New(a.refused)
	}
	return a.tables, nil
}
