package pipeline

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// settlement collects one settlement.
type settlement struct {
	work.Settlement
	p     *Push
	now   time.Time
	left  map[*flight]int             // jobs of the flight in this settlement
	asked map[[2]string][]work.Intent // by product and shop: written for the requests that are settled now
	err   error
}

// job adds one job's part.
func (s *settlement) job(j *job) {
	switch {
	case j.park != "":
		s.parkUnsent(j)
		return
	case j.cancelled: // as if it had never been pulled: no record, no outcome
		items, _ := s.items(j)
		s.Items = append(s.Items, items...)
		s.unpark(j)
		return
	}
	k := s.known(j)
	next := s.retry(j, &k) // first: the last attempt makes a FAILED of it, for the item and the record too
	s.documents(j, &k)
	items, batches := s.items(j)
	switch {
	case j.push.Shop == "" && j.result.Reason == reasonNoRow && len(items) == 0: // dropped silently, counted
		s.p.stats.Dropped.Add(1)
	case j.result.Reason == reasonNoRow && j.push.Shop != "":
		s.Forget = append(s.Forget, k)
	default:
		if j.result.Reason == reasonSlow {
			s.slow(k)
		}
		if j.push.Shop != "" && !j.same {
			record := k
			if j.result.Status == event.Failed { // what comes after has all its attempts before it
				record.Attempt = 0
			}
			s.Products = append(s.Products, work.Settled{Known: record, Attempted: !j.ready})
		}
		if !s.repeats(j, batches) && j.result.Reason != reasonRead {
			s.outcome(j, k, batches, next)
		}
	}
	s.Items = append(s.Items, items...)
	s.unpark(j)
}

// unpark ends the wait of the product in the job's shop.
func (s *settlement) unpark(j *job) {
	for _, ref := range j.flight.parked {
		if ref.Shop != "" && ref.Shop == j.push.Shop && s.covers(j.flight, ref) {
			s.Unpark = append(s.Unpark, ref)
		}
	}
}

// covers reports whether the flight stands for what the parked row waits for: its read has seen the row's transaction,
// or the row is parked anew, or the product cannot be read at all.
func (s *settlement) covers(f *flight, ref work.ParkedRef) bool {
	return f.blind || f.unseen || seesAll(f.r.snapshot, ref.XIDs)
}

// parkUnsent puts a job back that its shop does not take at the moment. Its items are PENDING while they wait. The row that it was
// pulled from goes: parking on top of it would add the same changes to it every time.
func (s *settlement) parkUnsent(j *job) {
	s.unpark(j)
	e := j.flight.entry
	row := work.Parked{
		ProductID: j.push.ProductID, Shop: j.push.Shop, Partition: e.partition, Lane: max(e.lane, j.plan.Lane),
		Due: s.now, Reason: j.park, Attempt: e.attempt, Changes: e.changes, FirstCommit: e.first, LastCommit: e.last,
	}
	switch j.park {
	case reasonInvisible:
		row.XIDs = j.flight.waitsFor().xids
		row.Due = s.now.Add(invisiblePause(s.now, e.last))
	case reasonSlow:
		row.XIDs = j.flight.waitsFor().xids
		row.Due = s.now.Add(slowTurn())
	case "SHOP_BUSY":
		if j.result.Message != "" { // the sender gave it up: no points in time, no bucket, no intent
			row.Due = s.now.Add(time.Second)
		}
	case "GUARD_UNKNOWN":
		row.Due = s.now.Add(time.Second)
	}
	s.park(j, row)
	if j.result.Reason != reasonUnsent {
		return
	}
	for _, it := range j.flight.items {
		if j.flight.r.snapshot.Sees(it.XID) && (it.Shop == "" || it.Shop == j.push.Shop) {
			it.Shop, it.Status = j.push.Shop, work.ItemPending
			s.Items = append(s.Items, it)
		}
	}
}

// known is the new record of the product in the job's shop.
func (s *settlement) known(j *job) work.Known {
	k := j.push.Known
	res := &j.result
	k.ProductID, k.Shop = j.push.ProductID, j.push.Shop
	k.Snapshot = j.flight.r.snapshot
	k.Shadow = res.Shadow
	if res.Shadow != nil { // an empty id then means that the shop has the product no longer
		k.ShopifyID = res.ShopifyID
	}
	k.Intents = nil
	switch res.Status {
	case event.Success, event.Skipped:
		k.Attempt = 0
		if res.Shadow != nil {
			k.OffSale = res.OffSale
		}
	case event.Retrying:
		if res.Counts {
			k.Attempt++
		}
	default: // failed, cancelled, held: nothing is tried again that would have to be counted
	}
	return k
}

// repeats reports whether the outcome says nothing new: the same SKIPPED or HELD as last time, outside any batch.
func (s *settlement) repeats(j *job, batches []string) bool {
	last := j.push.Known
	again := j.result.Status == event.Skipped || j.result.Status == event.Held
	return len(batches) == 0 && again && j.result.Status == last.LastStatus && j.result.Reason == last.LastReason
}

// documents publishes the evaluated document when it differs from the last one, and a tombstone when the source has
// none any more.
func (s *settlement) documents(j *job, k *work.Known) {
	k.LastStatus, k.LastReason = j.result.Status, j.result.Reason
	if k.LastReason == "" && (k.LastStatus == event.Failed || k.LastStatus == event.Retrying) {
		k.LastReason = headOf(j.result.Message)
	}
	if j.push.Shop == "" {
		return
	}
	key := j.push.ProductID + "|" + j.push.Shop
	part := change.Partition(j.flight.entry.product, s.p.cfg.Partitions)
	gone := j.push.Gone || j.push.Moved || j.push.Raw == nil && j.result.Reason == reasonNoRow
	switch {
	case gone && k.DocumentHash != "":
		k.DocumentHash = ""
		s.Outbox = append(s.Outbox, event.Record{
			Topic: s.p.cfg.Prefix + event.Documents, Partition: part, Key: []byte(key),
		})
	case j.push.Document != nil && j.push.Hash != k.DocumentHash:
		k.DocumentHash = j.push.Hash
		s.add(jsonRecord(s.p.cfg.Prefix+event.Documents, part, key, event.Document{
			ProductID: j.push.ProductID, Shop: j.push.Shop, Hash: j.push.Hash, Document: j.push.Raw,
			Snapshot: j.flight.r.snapshot.String(), ReadAt: j.flight.r.readAt,
		}))
	}
}

// headOf is as much of a message as a record of the product keeps.
func headOf(message string) string {
	const most = 300
	if r := []rune(message); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return message
}

func (s *settlement) add(rec event.Record, err error) {
	if err != nil {
		s.err = errors.Join(s.err, err)
		return
	}
	s.Outbox = append(s.Outbox, rec)
}

// items settles exactly the items whose transaction the read has seen.
func (s *settlement) items(j *job) (items []work.Item, batches []string) {
	for _, it := range j.flight.items {
		switch {
		case j.flight.blind: // the read breaks for every shop
			if it.Shop != "" && !j.flight.wants(it.Shop) {
				continue
			}
		case !j.flight.r.snapshot.Sees(it.XID) || it.Shop != "" && it.Shop != j.push.Shop:
			continue
		default:
			it.Shop = j.push.Shop
		}
		res := &j.result
		if it.Status == work.ItemHeld && res.Status == event.Held && it.Reason == res.Reason {
			continue // nothing is new
		}
		it.Status = itemStatus(res.Status)
		it.Category, it.Reason, it.Message, it.Field = res.Category, res.Reason, res.Message, res.Field
		it.ShopifyID, it.VariantIDs, it.Payload = res.ShopifyID, res.VariantIDs, res.Sent
		it.ProcessedAt = s.now
		if res.Counts {
			it.Attempt++
		}
		items = append(items, it)
		batches = append(batches, it.BatchID)
	}
	return items, batches
}

func itemStatus(s event.Status) work.ItemStatus {
	switch s {
	case event.Success:
		return work.ItemSuccess
	case event.Failed:
		return work.ItemFailed
	case event.Skipped:
		return work.ItemSkipped
	case event.Cancelled:
		return work.ItemCancelled
	case event.Held:
		return work.ItemHeld
	default:
		return work.ItemRetrying
	}
}

// retry parks what must be tried again and returns when.
func (s *settlement) retry(j *job, k *work.Known) time.Time {
	res := &j.result
	var reason string
	var after time.Duration
	if res.Status == event.Retrying && k.Attempt > attemptsMax {
		res.Status = event.Failed
	}
	switch res.Status {
	case event.Held:
		reason, after = "HELD", spread(heldRecheck) // a release makes it due at once, and each read decides anew
	case event.Retrying:
		reason, after = "RETRY", res.RetryAfter
		if after == 0 {
			after = retryDelay(max(k.Attempt, 1), mathrand.Float64())
		}
		if res.ShopDead {
			reason = "SHOP_DEAD"
		}
	default:
		if at := s.late(j); !at.IsZero() { // a request that was given up may still land: read once more after it
			reason, after = reasonLate, at.Sub(s.now)
			break
		}
		return time.Time{}
	}
	e := j.flight.entry
	row := work.Parked{
		ProductID: j.push.ProductID, Shop: j.push.Shop, Partition: e.partition, Lane: max(e.lane, work.LaneRetry),
		Due: s.now.Add(after), Reason: reason, Attempt: k.Attempt, Changes: e.changes, FirstCommit: e.first, LastCommit: e.last,
	}
	if res.Reason == reasonSlow { // unlike any other retry, nothing was seen yet
		row.Reason, row.XIDs = reasonSlow, j.flight.waitsFor().xids
	}
	if reason == reasonLate { // owed to the shop, whoever asked for the push
		row.Lane = work.LaneRetry
		s.Park = append(s.Park, row)
		return row.Due
	}
	s.park(j, row)
	return row.Due
}

// heldRecheck is how often what the guard holds is read again without being asked for: it only catches what was parked
// in the very moment of a release.
const heldRecheck = time.Hour

// spread is d, or up to a quarter more or less.
func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + mathrand.Float64()/2))
}

// reasonLate is why a product is parked of which a request may still land.
const reasonLate = "LATE_REQUEST"

// park lets a product wait again, once for each campaign that wants it.
func (s *settlement) park(j *job, row work.Parked) {
	for _, no := range j.flight.campaigns(row.Shop) {
		row.Campaign = no
		s.Park = append(s.Park, row)
	}
}

// late returns when the newest unanswered request of the product can no longer land; zero when that has passed.
func (s *settlement) late(j *job) time.Time {
	open := j.push.Known.Intents
	if j.result.Unanswered {
		open = append(slices.Clone(open), s.asked[[2]string{j.push.ProductID, j.push.Shop}]...)
	}
	var at time.Time
	for _, i := range open {
		if end := i.At.Add(s.p.cfg.LateRequest); end.After(s.now) && end.After(at) {
			at = end
		}
	}
	return at
}

// intents closes, for each product, the requests whose answer is known, and older ones that can no longer land.
func (s *settlement) intents(jobs []*job) {
	for _, j := range jobs {
		if j.ready && !j.plan.Nothing || j.park != "" || j.result.Unanswered {
			continue
		}
		answered := slices.Clone(s.asked[[2]string{j.push.ProductID, j.push.Shop}])
		for _, i := range j.push.Known.Intents {
			if !i.At.Add(s.p.cfg.LateRequest).After(s.now) {
				answered = append(answered, i)
			}
		}
		for _, i := range answered {
			i.ProductIDs, i.Shop = []string{j.push.ProductID}, j.push.Shop
			s.Intents = append(s.Intents, i)
		}
	}
}

// finish adds what only the last job of a product may carry: its own record, the parked row that it came from, and
// its offsets.
func (s *settlement) finish() map[*ownedPartition][]int64 {
	offsets := map[*ownedPartition][]int64{}
	for f, n := range s.left {
		e := f.entry
		done := offsets[e.owner]
		if n == f.open && !f.broken {
			// Invariant: these offsets are committed in the transaction that settles the last shop of their product.
			done = append(done, e.offsets...)
			s.last(f)
		}
		offsets[e.owner] = done
	}
	s.Positions = map[int32]int64{}
	for o, done := range offsets {
		fence := o.fence()
		s.Fences = append(s.Fences, fence)
		if len(done) > 0 {
			s.Positions[fence.Partition] = o.safeWith(done)
		}
	}
	return offsets
}

// last adds what a product's last job carries.
func (s *settlement) last(f *flight) {
	e := f.entry
	for _, ref := range f.parked {
		if f.ends(ref.Shop) && s.covers(f, ref) {
			s.Unpark = append(s.Unpark, ref)
		}
	}
	// Its own record spares reads to records that come after. What a campaign has found as it was leaves the record that it
	// had: nothing more is owed, and most of a replay is that.
	if f.news+len(e.offsets) == 0 && e.parked != "" {
		return
	}
	if f.slow == nil && !f.queued && !f.dropped && e.only == nil && seesAll(f.r.snapshot, e.xids) {
		s.Products = append(s.Products, work.Settled{Known: work.Known{
			ProductID: string(e.product), Snapshot: f.r.snapshot,
		}})
	}
}

// outcome puts the record of what happened into the outbox.
func (s *settlement) outcome(j *job, k work.Known, batches []string, next time.Time) {
	e, res := j.flight.entry, &j.result
	s.add(s.p.outcomeRecord(event.Outcome{
		ID: rand.Text(), ProductID: j.push.ProductID, Shop: j.push.Shop,
		Status: res.Status, Category: res.Category, Reason: res.Reason, Message: res.Message, Field: res.Field,
		ShopifyID: k.ShopifyID, VariantIDs: res.VariantIDs, BatchIDs: batches,
		Lane: max(e.lane, j.plan.Lane).String(), Attempt: k.Attempt, Plan: j.plan.Words, Sent: res.Sent,
		PointsRequested: res.PointsRequested, PointsActual: res.PointsActual, Changes: e.changes,
		FirstCommit: e.first, LastCommit: e.last, CapturedAt: e.captured, DueAt: e.due, ReadAt: j.flight.r.readAt,
		SentAt: res.SentAt, AnsweredAt: res.AnsweredAt, SettledAt: s.now,
		DocumentHash: j.push.Hash, NextAttempt: next,
	}))
}

func jsonRecord(topic string, partition int32, key string, v any) (event.Record, error) {
	b, err := json.Marshal(v)
	return event.Record{Topic: topic, Partition: partition, Key: []byte(key), Value: b}, err
}

// count books settled jobs into the worker's statistics.
func (s *settlement) count(jobs []*job) {
	st := &s.p.stats
	for _, j := range jobs {
		if j.park != "" {
			st.Parked.Add(1)
			continue
		}
		st.outcome(j.result.Status)
		st.Points.Add(int64(j.result.PointsActual))
		if !j.ready && j.result.Status == event.Success {
			st.Coalesced.Add(int64(max(0, j.flight.entry.changes-1)))
			e := j.flight.entry
			st.latency(e.first, j.result.AnsweredAt)
			st.steps(e.first, e.captured, e.due, j.flight.r.readAt, j.result.SentAt, j.result.AnsweredAt, time.Now())
		}
		if j.result.Status == event.Failed && strings.HasPrefix(j.result.Field, "documents") {
			st.Dead.Add(1)
		}
	}
}
