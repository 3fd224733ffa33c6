package pipeline

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// captureSession reads the stream of one session. Its goroutine owns the stream and everything here. The writer to Kafka
// and the readers of snapshots run beside it; where it must wait for the one, or for a look-up of parents, nothing is
// read, and the connection is kept alive (Attend).
//
// What it makes of the stream goes into the batcher, which decides what a transaction is and what a unit holds.
type captureSession struct {
	c       *Capture
	stream  captureStream
	router  *router
	encoder *captureEncoder
	mirror  *captureMirror
	batcher *captureBatcher
	units   chan *captureUnit
	// spare are units that are in Kafka, whose memory may be used again.
	spare chan *captureUnit

	// resume is what the session began with: everything at or below it is in Kafka.
	resume event.Position
	tx     change.Transaction
	// skip: the open transaction is in Kafka as a whole. began: a transaction has come that is not.
	// concerned: the open transaction has brought something of a table or a message that is captured.
	skip, began, concerned bool

	// backlog holds steps while a row among them waits for the product of its parent, and those of a snapshot chunk;
	// waiting counts the rows that wait, and waitingBytes is about what the backlog takes.
	// backlogIn is the number of the memory that the first of it lies in.
	backlog      []captureStep
	backlogIn    uint64
	waiting      int
	waitingBytes int
	pairs        []routerPair

	snapshots *snapshotReader
	book      *snapshotBook
	prover    *captureProver
	asked     []*snapshotAsk // by the open transaction
	// messages counts the messages for the mirror that have the position messagesAt.
	messagesAt change.Position
	messages   int64
	// truncated: the open transaction has truncated a routed table, in this session or the one before.
	truncated bool

	handed time.Time // when the last unit left
	events int       // that have come, modulo captureClock
}

// captureBacklog is how many rows may wait for one look-up of parents.
const captureBacklog = 1000

// captureDrain is how long the write in flight may take when Capture is stopped.
const captureDrain = 2 * time.Second

// work runs the session: the reader in this goroutine, the writer, the snapshot and the heartbeat beside it.
func (c *Capture) work(ctx context.Context, stream captureStream, producer captureProducer, pos event.Position) error {
	s := c.newSession(stream, pos)
	var err error
	if s.mirror, err = newCaptureMirror(c.cfg); err != nil {
		return err
	}
	w := newCaptureWriter(c.cfg, producer, pos, &c.stats, func(u *captureUnit) { s.written(u) })
	w.largest = c.parts.Largest

	g, ctx := errgroup.WithContext(ctx)
	// The writer outlives the reader: what it has begun it may finish, for a while.
	wctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g.Go(func() error { return w.run(wctx, s.units) })
	g.Go(func() error { return c.orUnpublished(ctx, pos.Published, s.snapshots.loop(ctx)) })
	g.Go(func() error { return c.orUnpublished(ctx, pos.Published, s.prover.run(ctx, c)) })
	g.Go(func() error { return c.tellSnapshots(ctx) })
	g.Go(func() error { return c.heartbeat(ctx) })
	g.Go(func() error { return c.watchPublication(ctx, pos.Published) })
	g.Go(func() error {
		err := s.read(ctx)
		close(s.units)
		time.AfterFunc(captureDrain, stop)
		return err
	})
	return g.Wait()
}

func (c *Capture) newSession(stream captureStream, pos event.Position) *captureSession {
	names := captureNames(pos)
	s := &captureSession{
		c: c, stream: stream, router: newRouter(c.cfg.Routes), resume: pos, units: make(chan *captureUnit),
		spare: make(chan *captureUnit, 1), // one more is being filled, and one written
		encoder: &captureEncoder{
			cfg: c.cfg, history: names, tables: map[uint32]uint64{}, names: map[*change.Relation][]byte{}, log: c.log,
			envelope: change.Envelope{Version: c.cfg.Version, Name: c.cfg.Name, Database: c.cfg.Database},
		},
		batcher: newCaptureBatcher(captureLimits{
			products: c.cfg.BatchProducts, rows: c.cfg.BatchRows, unitRows: c.cfg.TxRows, unitBytes: c.cfg.TxBytes,
			maxRecord: c.cfg.MaxRecordBytes, changes: c.cfg.Prefix + event.Changes, deadletters: c.cfg.Prefix + event.DeadLetters,
		}, pos, &c.stats),
	}
	s.encoder.memory = s.batcher.memory
	s.router.behind(pos.Unseen, pos.UnseenParents)
	s.tick()
	run := rand.Text()
	s.snapshots = newSnapshotReader(c.parts.Source, run, c.cfg, c.log)
	s.book = newSnapshotBook(run, c.cfg.SnapshotReaders, c.cfg.Routes, pos)
	s.prover = newCaptureProver()
	return s
}

// written runs in the writer's goroutine after each commit.
func (s *captureSession) written(u *captureUnit) {
	if u.confirm != 0 {
		s.stream.Confirm(u.confirm)
		s.c.stats.Confirmed.Store(int64(u.confirm))
	}
	s.c.stats.setSnapshots(u.position.Snapshots, time.Now())
	if !u.newest.IsZero() {
		s.c.stats.NewestCommit.Store(u.newest.UnixMicro())
		s.c.stats.NewestDurable.Store(time.Now().UnixNano())
	}
	select {
	case s.spare <- u:
	default:
	}
}

// read takes events until ctx ends or the stream does. Whatever can leave leaves before it waits.
func (s *captureSession) read(ctx context.Context) error {
	s.c.stats.setSnapshots(s.resume.Snapshots, time.Now())
	if len(s.book.running) > 0 {
		s.snapshotMoved() // where snapshots are to go on; one may have nothing left to read
	}
	if err := s.drain(ctx); err != nil {
		return err
	}
	for {
		ev, err := s.next(ctx)
		if err != nil {
			return err
		}
		if err := s.take(&ev); err != nil {
			return err
		}
		if err := s.after(ctx); err != nil {
			return err
		}
	}
}

// after lets go what an event has made, as far as it must not wait.
func (s *captureSession) after(ctx context.Context) error {
	if len(s.book.recent) >= s.prover.at {
		if err := s.prove(ctx); err != nil {
			return err
		}
	}
	switch {
	case len(s.backlog) == 0:
		if s.batcher.full() {
			return s.handOver(ctx)
		}
	case s.waiting == 0, len(s.backlog) >= captureBacklog, s.waitingBytes >= s.c.cfg.TxBytes:
		return s.drain(ctx)
	}
	return nil
}

// next returns the next event. While the server has nothing to say it hands on the unit, no sooner than TxEvery after
// the one before.
func (s *captureSession) next(ctx context.Context) (change.Event, error) {
	for {
		if s.stream.Buffered() {
			// Asking for the time costs as much as a good part of a row.
			if s.events++; s.events%captureClock == 0 {
				s.tick()
				if !s.batcher.empty() && s.encoder.envelope.At.Sub(s.handed) >= s.c.cfg.TxEvery {
					s.offer()
				}
			}
			return s.stream.NextUntil(ctx, time.Time{})
		}
		s.tick()
		if err := s.drain(ctx); err != nil {
			return change.Event{}, err
		}
		every := s.c.cfg.TxEvery
		switch {
		case !s.batcher.empty():
			if len(s.batcher.unit.records) < captureCompany {
				every = min(every, captureLull)
			}
		case s.batcher.unit.moved:
			every = s.c.cfg.IdleEvery
		default:
			return s.await(ctx, time.Time{})
		}
		if until := s.handed.Add(every); s.encoder.envelope.At.Before(until) {
			return s.await(ctx, until)
		}
		if err := s.handOver(ctx); err != nil {
			return change.Event{}, err
		}
	}
}

// await waits for an event. What comes is stamped with the time at which it came: with that of before the wait, a record
// would be older than its commit.
func (s *captureSession) await(ctx context.Context, until time.Time) (change.Event, error) {
	ev, err := s.stream.NextUntil(ctx, until)
	s.tick()
	return ev, err
}

// captureClock is after how many events that came at once the time is asked for again.
const captureClock = 32

// captureLull stands for TxEvery while the stream brings little: then a change waits for company no longer than the
// Kafka transaction before it takes. captureCompany records in a unit say that it brings much.
const (
	captureLull    = time.Millisecond
	captureCompany = 32
)

// tick sets the time that records are stamped with.
func (s *captureSession) tick() { s.encoder.envelope.At = time.Now() }

// handOver waits until the writer takes the unit. The stream is not read meanwhile, so that memory stays bounded
// however long Kafka is away, but kept alive.
func (s *captureSession) handOver(ctx context.Context) error {
	u := s.closeUnit()
	s.beginUnit()
	var err error
	select {
	case s.units <- u: // the writer has nothing to do
	default:
		err = s.stream.Attend(ctx, func(ctx context.Context) error {
			select {
			case s.units <- u:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}
	s.handed = time.Now()
	return err
}

// closeUnit completes the unit as it stands.
func (s *captureSession) closeUnit() *captureUnit {
	u := s.batcher.seal()
	u.position.Unseen, u.position.UnseenParents = s.book.unseen(), nil
	if len(u.position.Unseen) > 0 {
		u.position.UnseenParents = s.router.unseen()
	}
	needed := s.batcher.memory.number + 1
	if len(s.backlog) > 0 {
		needed = s.backlogIn
	}
	if s.batcher.holds() {
		needed = min(needed, s.batcher.tx.heldIn)
	}
	u.memories = s.batcher.memory.before(needed)
	return u
}

// beginUnit begins the next unit.
func (s *captureSession) beginUnit() {
	var spare *captureUnit
	select {
	case spare = <-s.spare:
	default:
	}
	s.batcher.renew(spare)
	s.encoder.turned()
}

// offer hands the unit over if the writer waits for one, and otherwise lets it grow.
func (s *captureSession) offer() {
	select {
	case s.units <- s.closeUnit():
		s.beginUnit()
		s.handed = time.Now()
	default:
	}
}

// take turns an event into steps.
func (s *captureSession) take(ev *change.Event) error {
	if ev.Kind != change.EventIdle {
		s.c.stats.LastEvent.Store(s.encoder.envelope.At.UnixNano())
	}
	switch ev.Kind {
	case change.EventBegin:
		return s.beginTx(*ev.Transaction)
	case change.EventChange:
		s.change(ev.Change)
	case change.EventMessage:
		if !ev.Message.Transactional {
			if err := s.passed(ev.Message.LSN); err != nil {
				return err
			}
		}
		s.takeMessage(ev.Message)
	case change.EventCommit:
		s.encoder.envelope.LastCommit = ev.EndLSN
		if !s.skip {
			s.endTx(ev.EndLSN)
		}
	case change.EventKeepalive:
		if err := s.passed(ev.EndLSN); err != nil {
			return err
		}
		s.step(captureStep{kind: captureAdvance, end: ev.EndLSN})
	case change.EventIdle: // a chance to hand over, which comes with every event
	}
	return nil
}

func (s *captureSession) beginTx(tx change.Transaction) error {
	if s.encoder.envelope.At.Before(tx.CommitTime) {
		s.tick()
	}
	s.tx, s.asked, s.concerned = tx, nil, false
	s.encoder.begin(&s.tx)
	s.book.streamed(tx.XID)
	s.skip = tx.CommitLSN < s.resume.CommitLSN
	if s.skip {
		return nil
	}
	if err := s.passed(tx.CommitLSN); err != nil {
		return err
	}
	s.began = true
	s.step(captureStep{kind: captureBegin, tx: tx})
	return nil
}

// endTx ends the open transaction. One that has truncated a routed table calls for a new snapshot: which products had
// rows in it is not known, so all are touched. One that has asked for snapshots gets them. That stands in the same step,
// so that no unit ends between the two.
func (s *captureSession) endTx(end change.LSN) {
	step := captureStep{kind: captureCommit, end: end, others: !s.concerned}
	if !s.truncated && len(s.asked) == 0 {
		s.step(step)
		return
	}
	if s.truncated {
		s.book.truncated(readableTables(SnapshotTables(s.c.cfg.Routes), s.resume), time.Now())
	}
	dead := s.begun(s.asked)
	s.truncated, s.asked = false, nil
	step.progress = s.snapshotStep(nil, dead)
	s.step(step)
	s.dispatch()
}

// passed reports a stream that has come to this place without the transaction that is half in Kafka.
func (s *captureSession) passed(to change.LSN) error {
	if s.resume.Open == nil || s.began || to <= s.resume.CommitLSN {
		return nil
	}
	return &captureGap{cause: gapHalf, renew: true, back: true, reason: fmt.Sprintf("the transaction that commits at %s is half in Kafka and is not sent "+
		"again: the stream has come to %s", s.resume.CommitLSN, to)}
}

func (s *captureSession) change(c *change.Change) {
	if !s.router.known(c.Relation) && s.mirror.topic(c.Relation) == "" {
		return
	}
	s.concerned = true
	s.encoder.count(c)
	if err := s.router.problem(c.Relation); err != nil {
		s.c.log.Error("table cannot be routed as it should", "error", err)
	}
	// These three must see what is captured already as well: what a truncate calls for is on record with the commit only.
	s.router.learn(c, s.tx.XID)
	s.book.touch(c)
	if !s.skip && c.Op == change.Truncate && s.router.routed(c.Relation) {
		s.truncated = true
	}
	if s.skip || c.Position.Compare(s.resume.Position) <= 0 {
		return
	}
	direct := len(s.backlog) == 0
	if row := s.routeRow(c, &s.tx, !direct); row != nil {
		s.push(row, direct)
	}
}

// routeRow routes and encodes a row of the open transaction or, with tx nil, of a snapshot; nil where it concerns nobody.
// later: it will wait, for those before it.
func (s *captureSession) routeRow(c *change.Change, tx *change.Transaction, later bool) (row *captureRowStep) {
	r := s.router.route(c, s.pairs)
	s.pairs = r.pairs
	topic := s.mirror.topic(c.Relation)
	switch {
	case c.Op == change.Truncate && s.router.routed(c.Relation):
		row = s.encoder.row(c, tx, r, true)
		row.dead = []string{"the table was truncated: which products had rows is not known; all tables are read again"}
		s.c.log.Warn("routed table truncated", "table", c.Relation.Table(), "position", c.Position.String())
	case len(r.pairs) > 0 || r.fanout:
		row = s.encoder.row(c, tx, r, later || routerWaits(r.pairs))
	case topic != "":
		row = s.encoder.mirrorRow(c, tx)
	default:
		return nil
	}
	if topic != "" {
		s.encoder.mirrored(c, row, topic)
	}
	return row
}

// step takes a step at once, unless others wait before it.
func (s *captureSession) step(st captureStep) {
	if len(s.backlog) == 0 {
		s.batcher.apply(&st)
		return
	}
	for i := range st.mirror {
		s.waitingBytes += captureSize(&st.mirror[i])
	}
	s.backlog = append(s.backlog, st)
}

// push takes a row, directly unless it waits.
func (s *captureSession) push(row *captureRowStep, direct bool) {
	if row.snapshot == "" && !row.mirrorOnly {
		s.c.stats.Rows.Add(1)
	}
	switch waits := routerWaits(row.pairs); {
	case waits:
		s.waiting++
	case direct:
		s.batcher.row(row)
		return
	}
	s.waitingBytes += len(row.whole) + len(row.leave) + len(row.arrive)
	if len(s.backlog) == 0 {
		s.backlogIn = s.batcher.memory.number
	}
	s.backlog = append(s.backlog, captureStep{kind: captureRow, row: row})
}

func (s *captureSession) takeMessage(m *change.Message) {
	s.concerned = true
	s.mirrorMessage(m)
	switch m.Prefix {
	case MessageBatch:
		if !m.Transactional || s.skip || m.Position.Compare(s.resume.Position) <= 0 {
			return
		}
		var b struct{ Name, Admin string }
		if err := json.Unmarshal(m.Content, &b); err != nil {
			// The transaction is a batch all the same: somebody meant it to be one.
			s.c.log.Warn("batch message is no JSON object of texts", "position", m.Position.String(), "error", err)
		}
		step := captureStep{kind: captureName, position: m.Position, name: captureLabel(b.Name), admin: captureLabel(b.Admin)}
		if rec, ok := s.encoder.message(m, &s.tx, s.mirror); ok {
			step.mirror = []event.Record{rec}
		}
		s.step(step)
	case messageWatermark:
		if mark, ok := parseSnapshotMark(string(m.Content)); ok && !m.Transactional {
			s.watermark(mark, m.LSN)
		}
	case MessageSnapshot:
		s.ask(m)
	}
}

// captureLabelBytes bounds the names that a batch carries: announcements, positions and the state hold them.
const captureLabelBytes = 500

// captureLabel makes a text that somebody wrote fit for Kafka and for a text column of Postgres.
func captureLabel(s string) string {
	if len(s) > captureLabelBytes {
		s = s[:captureLabelBytes]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// drain applies what waits, looking up parents first where it must, and writes units as they fill.
func (s *captureSession) drain(ctx context.Context) error {
	if len(s.backlog) == 0 {
		return nil
	}
	if s.waiting > 0 {
		if err := s.resolve(ctx); err != nil {
			return err
		}
	}
	s.batcher.waitedIn = s.backlogIn
	defer func() { s.batcher.waitedIn = 0 }()
	for i := range s.backlog {
		s.batcher.apply(&s.backlog[i])
		if s.batcher.full() && s.cuttable(i) {
			if err := s.handOver(ctx); err != nil {
				return err
			}
		}
	}
	clear(s.backlog)
	s.backlog, s.waitingBytes = s.backlog[:0], 0
	return nil
}

// cuttable reports whether a unit may end after step i: not between the rows of a snapshot chunk, which share a Kafka
// transaction with the progress that counts them.
func (s *captureSession) cuttable(i int) bool {
	st := &s.backlog[i]
	return st.kind != captureRow || st.row.snapshot == ""
}

// heartbeat writes a logical message whenever the stream has been silent for long.
func (c *Capture) heartbeat(ctx context.Context) error {
	if c.cfg.Heartbeat < 0 {
		return nil
	}
	tick := time.NewTicker(c.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if now.Sub(time.Unix(0, c.stats.LastEvent.Load())) < c.cfg.Heartbeat {
				continue
			}
		}
		if _, err := c.parts.Source.EmitMessage(ctx, messageHeartbeat, nil); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "heartbeat", "error", err)
		}
	}
}
